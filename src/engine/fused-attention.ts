import { type CompileOptions, input } from "../graph/index.js";
import type { AttentionShape } from "./block-attention.js";
import { SegmentCache } from "./segment-cache.js";

/**
 * Causal attention of a whole prompt in one operator (GroupQueryAttention), without hooks: keys and values in float32
 * as projected. `BlockAttention` is its plain form.
 */
export class FusedAttention {
  readonly #segments: SegmentCache;

  constructor(options: CompileOptions) {
    this.#segments = new SegmentCache(options);
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
    const { heads, kvHeads, keyDim, scale, softcap, window } = shape;
    const segment = await this.#segments.get([heads, kvHeads, keyDim, scale, softcap, window].join("|"), () => {
      const inputs = {
        q: input("q", ["T", heads * keyDim]),
        k: input("k", ["T", kvHeads * keyDim]),
        v: input("v", ["T", kvHeads * keyDim]),
      };
      const out = inputs.q.groupQueryAttention({ k: inputs.k, v: inputs.v, heads, kvHeads, scale, softcap, window });
      return { inputs, outputs: { out } };
    });
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

  release(): Promise<void> {
    return this.#segments.release();
  }
}
