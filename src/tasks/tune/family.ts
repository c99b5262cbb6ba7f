import { budgeted } from "../bench/budget.js";

/** The share of the text that is tried first, and the least one. */
const FIRST = 1 / 8;
const LEAST = 1 / 128;
const MOST = 1 / 2;

/** One method at shares of the text: which is to be tried next. */
export class Family {
  readonly #outcomes = new Map<string, boolean>();
  readonly #at: ((share: number) => string) | undefined;
  #open: string | undefined;
  #share = FIRST;

  /** @throws FoveaError as `resolve` does for a string that is no method */
  constructor(method: string, length: number) {
    const place = budgeted(method);
    if (place) {
      const { least, most, step } = place.range;
      const scale = most ?? length;
      this.#at = (share) => {
        const value = Math.round((share * scale) / step) * step;
        return place.at(Number(Math.max(least, Math.min(scale, value)).toFixed(6)));
      };
    }
    this.#open = this.#at?.(FIRST) ?? method;
  }

  /** The method string to try; undefined when its share is found. */
  next(): string | undefined {
    return this.#open;
  }

  /** What came of a method string. Less is tried after one that keeps, more after one that does not. */
  note(method: string, keeps: boolean | "failed"): void {
    if (method !== this.#open) return;
    this.#open = undefined;
    if (keeps === "failed" || !this.#at) return;
    this.#outcomes.set(method, keeps);
    this.#share = keeps ? this.#share / 2 : this.#share * 2;
    if (this.#share < LEAST || this.#share > MOST) return;
    const next = this.#at(this.#share);
    if (!this.#outcomes.has(next)) this.#open = next;
  }
}
