import type { ActivationsStep, AttentionStep, KeyView, Partial } from "../../engine/hooks.js";

/** Running means of the values of a layer, a KV head each. */
export interface ValueMeans {
  /** Tokens in each head's mean, [Hkv]. */
  readonly count: Int32Array;
  readonly mean: Float32Array; // [Hkv, Dv]
}
/** The means of each layer. */
export type MeansByLayer = Map<number, ValueMeans>;

/** alpha y + (1 - alpha) mean, per query head; the log-sum-exp is that of all keys as alpha estimates it. */
export function withMean({ output, lse }: Partial, kept: Float32Array, { mean }: ValueMeans, group: number): Partial {
  const dim = output.length / lse.length;
  return {
    output: output.map((y, i) => {
      const head = Math.floor(i / dim);
      return kept[head] * y + (1 - kept[head]) * mean[Math.floor(head / group) * dim + (i % dim)];
    }),
    lse: lse.map((x, head) => x - Math.log(kept[head])),
  };
}

/** vbar <- (n vbar + v) / (n + 1), row by row. */
export function addValues({ state, layer, model, rows, v }: ActivationsStep<MeansByLayer>): void {
  const { kvHeads } = model;
  const dim = v.length / (rows * kvHeads);
  const means = state.get(layer) ?? { count: new Int32Array(kvHeads), mean: new Float32Array(kvHeads * dim) };
  for (let t = 0; t < rows; t++)
    for (let kv = 0, i = 0; kv < kvHeads; kv++) {
      const n = ++means.count[kv];
      for (let d = 0; d < dim; d++, i++) means.mean[i] += (v[t * kvHeads * dim + i] - means.mean[i]) / n;
    }
  state.set(layer, means);
}

/** The layer's means; taken anew from the cache for heads that another method has evicted entries of. */
export function currentMeans(
  { state, layer, view, model }: AttentionStep<MeansByLayer>,
  lengths: readonly number[],
): ValueMeans {
  const dim = model.headDim;
  const means = state.get(layer) ?? {
    count: new Int32Array(model.kvHeads),
    mean: new Float32Array(model.kvHeads * dim),
  };
  for (const [kv, length] of lengths.entries()) if (means.count[kv] !== length) rebuild(means, kv, view);
  state.set(layer, means);
  return means;
}

function rebuild({ count, mean }: ValueMeans, kv: number, view: KeyView): void {
  const values = view.values(kv);
  count[kv] = view.length(kv);
  const dim = values.length / count[kv];
  const own = mean.subarray(kv * dim, (kv + 1) * dim).fill(0);
  for (let i = 0; i < values.length; i++) own[i % dim] += (values[i] - own[i % dim]) / (Math.floor(i / dim) + 1);
}
