import { FoveaError } from "../../error.js";

/** How the scores of the query heads of a KV head become one row. */
export const GROUP_REDUCTIONS = ["none", "sum", "max", "mean"] as const;
export type GroupReduction = (typeof GROUP_REDUCTIONS)[number];

/** Rows of scores, one a head: data [heads, keys]. */
export interface HeadScores {
  readonly data: Float32Array;
  /** Hq or Hkv. */
  readonly heads: number;
  readonly keys: number;
}

/**
 * Scores [Hq, n] reduced over the query heads of each KV head: [Hkv, n]; "none" gives them back as they are. -Infinity
 * stays what it is under "max", and wins under "sum" and "mean".
 */
export function reduceGroups(scores: HeadScores, kvHeads: number, how: GroupReduction): HeadScores {
  const { data, heads, keys } = scores;
  const group = heads / kvHeads;
  if (!Number.isInteger(group))
    throw new FoveaError("bad-shape", `${heads} rows of scores are no multiple of ${kvHeads} KV heads`);
  if (how === "none" || group === 1) return scores;
  const reduced = new Float32Array(kvHeads * keys);
  for (let kv = 0; kv < kvHeads; kv++) {
    const to = reduced.subarray(kv * keys, (kv + 1) * keys);
    to.set(data.subarray(kv * group * keys, (kv * group + 1) * keys));
    for (let head = kv * group + 1; head < (kv + 1) * group; head++) {
      const from = data.subarray(head * keys, (head + 1) * keys);
      if (how === "max") for (let i = 0; i < keys; i++) to[i] = Math.max(to[i], from[i]);
      else for (let i = 0; i < keys; i++) to[i] += from[i];
    }
    if (how === "mean") for (let i = 0; i < keys; i++) to[i] /= group;
  }
  return { data: reduced, heads: kvHeads, keys };
}
