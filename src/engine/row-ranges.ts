import { addBiases, type HeadCounts } from "./biases.js";
import type { Entries, LogBias, Part, RowRanges } from "./hooks.js";

/**
 * Row ranges from a function that names the ranges of each list, in order: `add(start, end)`; touching ranges become
 * one, empty ones none. `blocks`: blocks of rows; `heads`: lists a block. `apart`: touching ranges stay apart; where rows
 * have lists of their own, those that list the same range are then found by it.
 */
export function rowRanges(
  {
    rows,
    heads,
    blocks,
    apart = false,
  }: { readonly rows: number; readonly heads: number; readonly blocks: number; readonly apart?: boolean },
  list: (block: number, head: number, add: (start: number, end: number) => void) => void,
): RowRanges {
  let pairs = new Int32Array(64);
  const offsets = new Int32Array(blocks * heads + 1);
  let n = 0;
  let first = 0;
  const add = (start: number, end: number) => {
    if (end <= start) return;
    if (!apart && n > first && pairs[2 * n - 1] === start) {
      pairs[2 * n - 1] = end;
      return;
    }
    if (2 * n === pairs.length) {
      const more = new Int32Array(4 * n);
      more.set(pairs);
      pairs = more;
    }
    pairs[2 * n] = start;
    pairs[2 * n + 1] = end;
    n++;
  };
  for (let i = 0; i < blocks * heads; i++) {
    first = n;
    list(Math.floor(i / heads), i % heads, add);
    offsets[i + 1] = n;
  }
  return { rows, heads, offsets, pairs: pairs.slice(0, 2 * n) };
}

/** The ranges of one list: those of head `head` of `heads`, in a block of rows. */
export function rangesOf(ranges: RowRanges, block: number, head: number, heads: number): [number, number][] {
  const own = Math.floor((head * ranges.heads) / heads);
  const list: [number, number][] = [];
  const at = block * ranges.heads + own;
  for (let i = ranges.offsets[at]; i < ranges.offsets[at + 1]; i++)
    list.push([ranges.pairs[2 * i], ranges.pairs[2 * i + 1]]);
  return list;
}

/** The same ranges for KV heads [from, to) only: other heads list nothing. */
export function limitRanges(
  ranges: RowRanges,
  { heads, kvHeads }: HeadCounts,
  [from, to]: readonly [number, number],
): RowRanges {
  const lists = Math.max(kvHeads, ranges.heads);
  const blocks = (ranges.offsets.length - 1) / ranges.heads;
  return rowRanges({ rows: ranges.rows, heads: lists, blocks }, (block, list, add) => {
    const kv = Math.floor((list * kvHeads) / lists);
    if (kv < from || kv >= to) return;
    for (const [start, end] of rangesOf(ranges, block, Math.floor((list * heads) / lists), heads)) add(start, end);
  });
}

/** What hides a logit: below -1e29 it counts as masked everywhere in the engine. */
const MASKED = -1e30;

/**
 * The same part without `blocks`: one list of entries a head where all rows share it, else a bias that masks, row by
 * row, what a row does not list. The plain form, and what is used where keys lie in pages or rows of logits are asked
 * for. `rows`: rows of the step; `keys`: most entries of any head.
 */
export function withoutBlocks(part: Part, rows: number, keys: number, shape: HeadCounts): Part {
  const { blocks, ...rest } = part;
  if (!blocks) return part;
  const { heads } = blocks;
  if (rows <= blocks.rows) {
    const entries = Array.from({ length: heads }, (_, h): Entries => ({ ranges: rangesOf(blocks, 0, h, heads) }));
    return { ...rest, entries: heads === 1 ? entries[0] : entries };
  }
  const data = new Float32Array(heads * rows * keys).fill(MASKED);
  for (let h = 0; h < heads; h++)
    for (let t = 0; t < rows; t++)
      for (const [start, end] of rangesOf(blocks, Math.floor(t / blocks.rows), h, heads))
        data.fill(0, (h * rows + t) * keys + start, (h * rows + t) * keys + Math.min(end, keys));
  const mask: LogBias = { data, heads, rows };
  return { ...rest, bias: part.bias ? addBiases(part.bias, mask, shape) : mask };
}
