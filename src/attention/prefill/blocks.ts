import type { AttentionStep, KeyView } from "../../engine/hooks.js";
import { largest } from "../budget.js";

/** How many of ascending positions are below `limit`: the first entry that stands there or later. */
export function entriesBelow(positions: Int32Array, limit: number): number {
  let from = 0;
  let to = positions.length;
  while (from < to) {
    const middle = (from + to) >> 1;
    if (positions[middle] < limit) from = middle + 1;
    else to = middle;
  }
  return from;
}

/**
 * Something made of one head's keys, once for all blocks of rows that are selected for on the same view: a prompt's keys
 * of a layer do not change while its rows attend.
 */
export function perView<T>(make: (view: KeyView, head: number) => T): (view: KeyView, head: number) => T {
  const made = new WeakMap<KeyView, Map<number, T>>();
  return (view, head) => {
    let ofView = made.get(view);
    if (!ofView) made.set(view, (ofView = new Map()));
    let found = ofView.get(head);
    if (found === undefined) ofView.set(head, (found = make(view, head)));
    return found;
  };
}

/** A head's positions and keys [n, D], read out once a view. */
export const headPositions = perView((view, head) => view.positions(head));
export const headKeys = perView((view, head) => view.keys(head));

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
