import { type CompileOptions, compile, input, type Segment } from "../graph/index.js";
import type { AttentionShape } from "./block-attention.js";

/**
 * Causal attention of a whole prompt in one operator (GroupQueryAttention), without hooks: keys and values in float32
 * as projected. `BlockAttention` is its plain form.
 */
export class FusedAttention {
  readonly #options: CompileOptions;
  readonly #cache = new Map<string, Promise<Segment>>();

  constructor(options: CompileOptions) {
    this.#options = { ...options, precision: "float32" };
  }

  /** q [T, Hq, D], k and v [T, Hkv, D], rotated; writes [T, Hq, D] to `out`. */
  async run(
    shape: AttentionShape,
    q: Float32Array,
    k: Float32Array,
    v: Float32Array,
    rows: number,
    out: Float32Array,
  ): Promise<void> {
    const segment = await this.#get(shape);
    const wide = shape.heads * shape.keyDim;
    const narrow = shape.kvHeads * shape.keyDim;
    await segment.run(
      {
        q: { data: q, dims: [rows, wide] },
        k: { data: k, dims: [rows, narrow] },
        v: { data: v, dims: [rows, narrow] },
      },
      { out: { data: out, dims: [rows, wide] } },
    );
  }

  async release(): Promise<void> {
    for (const segment of this.#cache.values()) await (await segment).release();
    this.#cache.clear();
  }

  #get(shape: AttentionShape): Promise<Segment> {
    const { heads, kvHeads, keyDim, scale, softcap, window } = shape;
    const key = [heads, kvHeads, keyDim, scale, softcap, window].join("|");
    let segment = this.#cache.get(key);
    if (!segment) {
      const q = input("q", ["T", heads * keyDim]);
      const k = input("k", ["T", kvHeads * keyDim]);
      const v = input("v", ["T", kvHeads * keyDim]);
      const out = q.groupQueryAttention({ k, v, heads, kvHeads, scale, softcap, window });
      segment = compile({ inputs: { q, k, v }, outputs: { out } }, this.#options);
      segment.catch(() => this.#cache.delete(key));
      this.#cache.set(key, segment);
    }
    return segment;
  }
}
