import { type CompileOptions, compile, type GraphCut, type Segment } from "../graph/index.js";

/** Small graphs compiled on first use, one per key. A compilation that fails is tried again next time. */
export class SegmentCache {
  readonly #options: CompileOptions;
  readonly #segments = new Map<string, Promise<Segment>>();

  /** `own`: the weights of graphs that have some. Default none. */
  constructor(options: CompileOptions, own: Pick<CompileOptions, "weights" | "precision"> = {}) {
    this.#options = { ...options, precision: own.precision ?? "float32", weights: own.weights };
  }

  get(key: string, build: () => GraphCut): Promise<Segment> {
    const found = this.#segments.get(key);
    if (found) return found;
    const segment = Promise.resolve().then(() => compile(build(), this.#options));
    segment.catch(() => this.#segments.delete(key));
    this.#segments.set(key, segment);
    return segment;
  }

  async release(): Promise<void> {
    for (const segment of this.#segments.values()) await (await segment).release();
    this.#segments.clear();
  }
}
