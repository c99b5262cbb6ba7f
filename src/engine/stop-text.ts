/** Text on its way out, held back while it may be the beginning of a stop text. */
export class StopText {
  readonly #stops: readonly string[];
  #held = "";
  #text = "";
  #stopped = false;

  constructor(stops: readonly string[]) {
    this.#stops = stops.filter((s) => s.length > 0);
  }

  /** Everything let out so far, without the stop text. */
  get text(): string {
    return this.#text;
  }

  get stopped(): boolean {
    return this.#stopped;
  }

  /** Takes more text in; gives what may be shown now. */
  push(more: string): string {
    if (this.#stopped) return "";
    this.#held += more;
    let first = -1;
    for (const stop of this.#stops) {
      const at = this.#held.indexOf(stop);
      if (at >= 0 && (first < 0 || at < first)) first = at;
    }
    if (first >= 0) {
      this.#stopped = true;
      return this.#release(first);
    }
    let keep = 0;
    for (const stop of this.#stops)
      for (let n = Math.min(stop.length - 1, this.#held.length); n > keep; n--)
        if (this.#held.endsWith(stop.slice(0, n))) {
          keep = n;
          break;
        }
    return this.#release(this.#held.length - keep);
  }

  /** The last of the text, when no stop came. */
  end(more: string): string {
    const out = this.push(more);
    return this.#stopped ? out : out + this.#release(this.#held.length);
  }

  #release(length: number): string {
    const out = this.#held.slice(0, length);
    this.#held = this.#held.slice(length);
    this.#text += out;
    return out;
  }
}
