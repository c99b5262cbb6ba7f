import { type CompileOptions, compile, input, type Segment } from "../graph/index.js";
import type { AttentionShape } from "./block-attention.js";
import type { Hooks, KeyView } from "./hooks.js";

type Mechanism = NonNullable<Hooks["mechanism"]>;

/** Runs mechanisms: attention written over graph tensors, compiled once per mechanism and attention shape. */
export class MechanismRunner {
  readonly #options: CompileOptions;
  readonly #cache = new Map<Mechanism, Map<string, Promise<Segment>>>();

  constructor(options: CompileOptions) {
    this.#options = { ...options, precision: "float32" };
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
    const segment = await this.#get(mechanism, shape);
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
    for (const segments of this.#cache.values())
      for (const segment of segments.values()) await (await segment).release();
    this.#cache.clear();
  }

  #get(mechanism: Mechanism, shape: AttentionShape): Promise<Segment> {
    const { heads, kvHeads, keyDim, valueDim, scale } = shape;
    const key = [heads, kvHeads, keyDim, valueDim, scale].join("|");
    let segments = this.#cache.get(mechanism);
    if (!segments) this.#cache.set(mechanism, (segments = new Map()));
    let segment = segments.get(key);
    if (!segment) {
      const groups = heads / kvHeads;
      const q = input("q", [heads, "T", keyDim]);
      const k = input("k", [kvHeads, "S", keyDim]);
      const v = input("v", [kvHeads, "S", valueDim]);
      const mask = input("mask", [kvHeads, "T", "S"]);
      // the mechanism sees one key-value head per query head, so that it need not know of groups
      const repeat = (t: typeof k, dims: [string, string | number]) =>
        groups === 1
          ? t
          : t
              .unsqueeze(1)
              .expand([kvHeads, groups, ...dims])
              .reshape([heads, ...dims]);
      const out = mechanism({
        q,
        k: repeat(k, ["S", keyDim]),
        v: repeat(v, ["S", valueDim]),
        mask: repeat(mask, ["T", "S"]),
        scale,
      });
      segment = compile({ inputs: { q, k, v, mask }, outputs: { out } }, this.#options);
      const list = segments;
      segment.catch(() => list.delete(key));
      segments.set(key, segment);
    }
    return segment;
  }
}
