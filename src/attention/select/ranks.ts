import type { AttentionStep, OwnKeys, RotaryPlan } from "../../engine/hooks.js";
import { type RotaryTable, rotate } from "../../engine/rotary.js";

/**
 * Listed entries of every KV head with their keys turned by `turns` (one position an entry): what reads keys that lie
 * unrotated at positions of a method's choice. Lists of all KV heads are of one length.
 */
export function turnedKeys(
  { view, cache, model }: Pick<AttentionStep, "view" | "cache" | "model">,
  lists: readonly Int32Array[],
  turns: Int32Array,
  plan: RotaryPlan,
  table: RotaryTable,
): OwnKeys {
  const { kvHeads, headDim } = model;
  const count = turns.length;
  const k = new Float32Array(kvHeads * count * headDim);
  const v = new Float32Array(kvHeads * count * headDim);
  for (let kv = 0; kv < kvHeads; kv++) {
    const own = cache ? cache.gather(kv, lists[kv]) : picked(view.keys(kv), view.values(kv), lists[kv], headDim);
    k.set(own.k, kv * count * headDim);
    v.set(own.v, kv * count * headDim);
  }
  // one head at a time: rows are [entries, D]
  for (let kv = 0; kv < kvHeads; kv++)
    rotate(k.subarray(kv * count * headDim, (kv + 1) * count * headDim), 1, headDim, turns, plan, table);
  return { count, k, v };
}

function picked(k: Float32Array, v: Float32Array, list: Int32Array, dim: number) {
  const pick = (x: Float32Array) => {
    const out = new Float32Array(list.length * dim);
    for (const [i, e] of list.entries()) out.set(x.subarray(e * dim, (e + 1) * dim), i * dim);
    return out;
  };
  return { k: pick(k), v: pick(v) };
}
