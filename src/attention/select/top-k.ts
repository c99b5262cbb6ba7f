import type { AttentionStep, KeyView } from "../../engine/hooks.js";
import { largest } from "../budget.js";
import type { HeadScores } from "./groups.js";

/** What is chosen whatever its score; both lie inside the count. */
export interface Forced {
  /** First entries. Default 0. */
  readonly sinks?: number;
  /** Last entries. Default 0. */
  readonly window?: number;
}

/**
 * The `count` entries to read of a row of scores [n], ascending: the last `window`, the first `sinks` and the best of
 * the rest, ties to the lower index. Where the count is too small for what is forced, the last entries go first. Works
 * on tokens and on pages alike.
 */
export function topEntries(scores: Float32Array, count: number, { sinks = 0, window = 0 }: Forced = {}): Int32Array {
  const n = scores.length;
  if (count >= n) return largest(scores, n);
  const newest = Math.min(window, count);
  const first = Math.min(sinks, count - newest);
  const best = largest(scores, count - newest - first, first, n - newest);
  const chosen = new Int32Array(count);
  for (let i = 0; i < first; i++) chosen[i] = i;
  chosen.set(best, first);
  for (let i = 0; i < newest; i++) chosen[count - newest + i] = n - newest + i;
  return chosen;
}

/**
 * `topEntries` of each row. `lengths`: entries that each KV head holds, where rows are wider; the rows are those of KV
 * heads or of query heads.
 */
export function topPerHead(
  { data, heads, keys }: HeadScores,
  count: number | ((head: number) => number),
  forced: Forced = {},
  lengths?: readonly number[],
): Int32Array[] {
  return Array.from({ length: heads }, (_, head) => {
    const length = lengths ? lengths[Math.floor((head * lengths.length) / heads)] : keys;
    const row = data.subarray(head * keys, head * keys + length);
    return topEntries(row, typeof count === "number" ? count : count(head), forced);
  });
}

/** Entries of each KV head. */
export function headLengths(view: KeyView, kvHeads: number): number[] {
  return Array.from({ length: kvHeads }, (_, head) => view.length(head));
}

/** Exact logits of a decode step's row over all keys: [Hq, S], -Infinity where a head has fewer. */
export async function exactScores(step: AttentionStep, query?: Float32Array): Promise<HeadScores> {
  const data = await step.score(query ? { query } : {});
  const { heads } = step.model;
  return { data, heads, keys: data.length / heads };
}
