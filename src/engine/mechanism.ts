import { type CompileOptions, type GraphCut, input } from "../graph/index.js";
import type { AttentionShape } from "./block-attention.js";
import type { Hooks, KeyView } from "./hooks.js";
import { SegmentCache } from "./segment-cache.js";

type Mechanism = NonNullable<Hooks["mechanism"]>;

/** Runs mechanisms: attention written over graph tensors, compiled once per mechanism and attention shape. */
export class MechanismRunner {
  readonly #options: CompileOptions;
  readonly #segments = new Map<Mechanism, SegmentCache>();

  constructor(options: CompileOptions) {
    this.#options = options;
  }

  /** Rows [from, rows) of q [rows, Hq, D] against all keys of the view; writes [rows, Hq, Dv] to `out`. */
  async run(
    mechanism: Mechanism,
    shape: AttentionShape,
    view: KeyView,
    q: Float32Array,
    positions: Int32Array,
    from: number,
    out: Float32Array,
  ): Promise<void> {
    const { heads, kvHeads, keyDim, valueDim } = shape;
    const rows = positions.length - from;
    let segments = this.#segments.get(mechanism);
    if (!segments) {
      segments = new SegmentCache(this.#options);
      this.#segments.set(mechanism, segments);
    }
    const key = [heads, kvHeads, keyDim, valueDim, shape.scale].join("|");
    const segment = await segments.get(key, () => mechanismGraph(mechanism, shape));
    const keys = Math.max(...Array.from({ length: kvHeads }, (_, h) => view.length(h)));
    const k = new Float32Array(kvHeads * keys * keyDim);
    const v = new Float32Array(kvHeads * keys * valueDim);
    const mask = new Float32Array(kvHeads * rows * keys);
    for (let h = 0; h < kvHeads; h++) {
      k.set(view.keys(h), h * keys * keyDim);
      v.set(view.values(h), h * keys * valueDim);
      const at = view.positions(h);
      for (let r = 0; r < rows; r++)
        for (let i = 0; i < at.length; i++) {
          const distance = positions[from + r] - at[i];
          if (distance >= 0 && distance < (shape.window ?? Number.POSITIVE_INFINITY))
            mask[(h * rows + r) * keys + i] = 1;
        }
    }
    const swapped = new Float32Array(heads * rows * keyDim);
    for (let r = 0; r < rows; r++)
      for (let h = 0; h < heads; h++)
        swapped.set(
          q.subarray(((from + r) * heads + h) * keyDim, ((from + r) * heads + h + 1) * keyDim),
          (h * rows + r) * keyDim,
        );
    const result = await segment.run({
      q: { data: swapped, dims: [heads, rows, keyDim] },
      k: { data: k, dims: [kvHeads, keys, keyDim] },
      v: { data: v, dims: [kvHeads, keys, valueDim] },
      mask: { data: mask, dims: [kvHeads, rows, keys] },
    });
    const data = result.out.data as Float32Array;
    for (let r = 0; r < rows; r++)
      for (let h = 0; h < heads; h++)
        out.set(
          data.subarray((h * rows + r) * valueDim, (h * rows + r + 1) * valueDim),
          ((from + r) * heads + h) * valueDim,
        );
  }

  async release(): Promise<void> {
    for (const segments of this.#segments.values()) await segments.release();
    this.#segments.clear();
  }
}

/** The mechanism between inputs and output; it sees one key-value head per query head, so it need not know of groups. */
function mechanismGraph(mechanism: Mechanism, shape: AttentionShape): GraphCut {
  const { heads, kvHeads, keyDim, valueDim, scale } = shape;
  const groups = heads / kvHeads;
  const inputs = {
    q: input("q", [heads, "T", keyDim]),
    k: input("k", [kvHeads, "S", keyDim]),
    v: input("v", [kvHeads, "S", valueDim]),
    mask: input("mask", [kvHeads, "T", "S"]),
  };
  const repeat = (t: typeof inputs.k, dims: readonly [string, string | number]) => {
    if (groups === 1) return t;
    const repeated = t.unsqueeze(1).expand([kvHeads, groups, ...dims]);
    return repeated.reshape([heads, ...dims]);
  };
  const out = mechanism({
    q: inputs.q,
    k: repeat(inputs.k, ["S", keyDim]),
    v: repeat(inputs.v, ["S", valueDim]),
    mask: repeat(inputs.mask, ["T", "S"]),
    scale,
  });
  return { inputs, outputs: { out } };
}
