import type { AttentionStep } from "../../engine/hooks.js";
import { headKeys, perView } from "../select/index.js";
import { meanRow, quantize4 } from "./quantize.js";

/** How sale cuts and judges: see its parameters of these names. */
export interface Tiles {
  readonly threshold: number | readonly number[];
  readonly queries: number;
  readonly keys: number;
  readonly from: number;
}

/** Threshold of a query head in the step's layer. */
export function thresholdOf(
  { threshold }: Pick<Tiles, "threshold">,
  step: Pick<AttentionStep, "layer" | "model">,
  head: number,
): number {
  if (typeof threshold === "number") return threshold;
  return threshold[(step.layer * step.model.heads + head) % threshold.length];
}

/** A KV head's keys less their mean, [n, D], and the same through 4 bits with a column of ones, [n, D + 1]. */
const preparedKeys = (count: number) =>
  perView((view, kv) => {
    const all = headKeys(view, kv);
    const dim = all.length / Math.max(1, view.length(kv));
    const mean = meanRow(all.subarray(0, Math.min(all.length, count * dim)), dim);
    const centred = all.map((x, i) => x - mean[i % dim]);
    const codes = quantize4(centred, dim);
    const wide = new Float32Array((all.length / dim) * (dim + 1)).fill(1);
    for (let j = 0; j * dim < all.length; j++) wide.set(codes.subarray(j * dim, (j + 1) * dim), j * (dim + 1));
    return { mean, centred, wide };
  });
const prepared = new Map<number, ReturnType<typeof preparedKeys>>();

/** Per query head, which tiles of keys [keys, to) one tile of queries keeps. */
export async function keptTiles(
  step: AttentionStep,
  params: Tiles,
  block: number,
  to: number,
  lse: Float32Array,
): Promise<boolean[][]> {
  const { heads, kvHeads, headDim } = step.model;
  const { queries, keys } = params;
  const centring = Math.max(keys, params.from);
  let of = prepared.get(centring);
  if (!of) prepared.set(centring, (of = preparedKeys(centring)));
  const ready = Array.from({ length: kvHeads }, (_, kv) => (of as ReturnType<typeof preparedKeys>)(step.view, kv));
  const n = to - keys;
  const gather = (pick: (kv: number) => Float32Array, dim: number) => {
    const some = new Float32Array(kvHeads * n * dim);
    for (let kv = 0; kv < kvHeads; kv++) some.set(pick(kv).subarray(keys * dim, to * dim), kv * n * dim);
    return some;
  };
  const first = block * queries;
  const rows = Math.min(queries, step.rows - first);
  const q = step.q.subarray(first * heads * headDim, (first + rows) * heads * headDim);
  const qMean = meanRow(q, heads * headDim); // [Hq, D]
  const qCodes = quantize4(
    q.map((x, i) => x - qMean[i % (heads * headDim)]),
    headDim,
  );
  // a row keeps a tile if estimate * scale > lse + ln(tau), with the row's product with the keys' mean in both
  const a = new Float32Array(rows * heads * (headDim + 1));
  for (let t = 0; t < rows; t++)
    for (let h = 0; h < heads; h++) {
      const at = t * heads + h;
      const { mean } = ready[Math.floor((h * kvHeads) / heads)];
      let shift = 0;
      for (let d = 0; d < headDim; d++) shift += q[at * headDim + d] * mean[d];
      a.set(qCodes.subarray(at * headDim, (at + 1) * headDim), at * (headDim + 1));
      const limit = lse[(first + t) * heads + h] + Math.log(thresholdOf(params, step, h));
      a[at * (headDim + 1) + headDim] = shift - limit / step.scale;
    }
  const bias = await step.products(
    qMean,
    gather((kv) => ready[kv].centred, headDim),
    { heads: kvHeads },
  ); // b [Hq, 1, n]
  const best = await step.products(
    a,
    gather((kv) => ready[kv].wide, headDim + 1),
    {
      ...{ heads: kvHeads, dim: headDim + 1, rows, keys, bias },
    },
  ); // [Hq, 1, n / keys]
  const tiles = n / keys;
  return Array.from({ length: heads }, (_, h) => Array.from({ length: tiles }, (_, i) => best[h * tiles + i] > 0));
}
