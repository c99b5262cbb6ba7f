import type { AttentionShape } from "./block-attention.js";
import type { AttendRequest, LayerCache } from "./cache.js";
import type { KeyView, Part, Partial } from "./hooks.js";
import type { KeySource, QueryRows } from "./key-source.js";

/**
 * Keys and values in a layer's pages: the kernel path. The step's own rows are stored already, as the newest entries,
 * so row i sees none newer than its own.
 */
export class PagedKeys implements KeySource {
  readonly view: KeyView;
  readonly #shape: AttentionShape;
  readonly #cache: LayerCache;
  /** Rows of the step, all of which are stored. */
  readonly #stored: number;

  constructor(shape: AttentionShape, cache: LayerCache, stored: number) {
    this.#shape = shape;
    this.#cache = cache;
    this.#stored = stored;
    this.view = cacheView(cache);
  }

  get keys(): number {
    return this.#cache.keys;
  }

  async attend(query: QueryRows, part: Part): Promise<Partial> {
    const { heads, valueDim } = this.#shape;
    const output = new Float32Array(query.rows * heads * valueDim);
    const lse = new Float32Array(query.rows * heads);
    this.attendInto(query, part, output, lse);
    return { output, lse };
  }

  attendInto(query: QueryRows, part: Part, output: Float32Array, lse: Float32Array): void {
    this.#cache.attend(this.#request(query, part), output, lse);
  }

  async logits(query: QueryRows, part: Part): Promise<Float32Array> {
    return this.#cache.scores(this.#request(query, part), "heads");
  }

  async sum(weights: Float32Array, rows: number): Promise<Float32Array> {
    return this.#cache.sum(weights, rows, "heads");
  }

  #request(query: QueryRows, part: Part): AttendRequest {
    const { scale, softcap, window } = this.#shape;
    const narrow = Math.min(part.window ?? Number.POSITIVE_INFINITY, window ?? Number.POSITIVE_INFINITY);
    return {
      q: query.q,
      rows: query.rows,
      scale,
      softcap,
      heads: part.heads,
      entries: part.entries,
      bias: part.bias,
      causal: this.#stored > 1,
      window: narrow === Number.POSITIVE_INFINITY ? undefined : narrow,
      positions: query.positions,
    };
  }
}

/** A layer's stored entries, widened when asked for. */
export function cacheView(cache: LayerCache): KeyView {
  return {
    length: (head) => cache.length(head),
    positions: (head) => cache.positions(head),
    keys: (head) => cache.read(head).k,
    values: (head) => cache.read(head).v,
  };
}
