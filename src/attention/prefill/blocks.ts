import type { AttentionStep } from "../../engine/hooks.js";
import { largest } from "../budget.js";
import { entriesBelow, headPositions } from "../select/index.js";

/** Below so many, the best are found one by one; above, by sorting. */
const ONE_BY_ONE = 16;

/**
 * Indices of the `count` largest of scores[from, to), ascending, counted from `from`; the lower index wins a tie.
 * Written for a few of a few dozen blocks, many times.
 */
export function bestBlocks(scores: Float32Array, count: number, from: number, to: number): ArrayLike<number> {
  if (count > ONE_BY_ONE || count >= to - from) return largest(scores, count, from, to).map((i) => i - from);
  const best: number[] = [];
  for (let n = 0; n < count; n++) {
    let at = -1;
    for (let i = from; i < to; i++) if ((at < 0 || scores[i] > scores[at]) && !best.includes(i - from)) at = i;
    best.push(at - from);
  }
  return best.sort((a, b) => a - b);
}

/** The blocks of `size` rows of a step, and per block the entry after its last row's own, in a KV head. */
export function rowBlocks(step: Pick<AttentionStep, "rows" | "positions" | "view">, size: number) {
  const blocks = Math.ceil(step.rows / size);
  /** Entries that the last row of a block sees. */
  const end = (block: number, head: number) =>
    entriesBelow(headPositions(step.view, head), step.positions[Math.min(step.rows, (block + 1) * size) - 1] + 1);
  /** Entries that stand before the first row of a block. */
  const start = (block: number, head: number) =>
    entriesBelow(headPositions(step.view, head), step.positions[block * size]);
  return { blocks, start, end };
}
