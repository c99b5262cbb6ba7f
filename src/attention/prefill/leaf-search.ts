import type { AttentionStep } from "../../engine/hooks.js";
import { headKeys } from "../select/index.js";

/** What is searched in one head: entries [from, to), leaves of `leaf` of them. */
export interface Range {
  readonly from: number;
  readonly to: number;
}

/** How hip searches: see its parameters of these names. */
export interface LeafSearch {
  readonly tokens: number;
  readonly leaf: number;
  readonly stride: number;
  readonly sample: "center" | "first";
}

/** The tree search for one block of queries: per query head the first entries of the chosen leaves, ascending. */
export async function searchLeaves(
  step: AttentionStep,
  { tokens, leaf, stride, sample }: LeafSearch,
  firstRow: number,
  count: number,
  searched: readonly Range[],
): Promise<Int32Array[]> {
  const { heads, kvHeads, headDim } = step.model;
  const wanted = Math.floor(tokens / leaf); // m
  const blocks = searched.map(({ from, to }) => Math.ceil((to - from) / leaf)); // B, in leaves
  // a range within the budget is read whole
  const whole = searched.map(({ from, to }) => to - from <= tokens);
  let segments = searched.map((_, h) => firstSegments(blocks[h], whole[h] ? blocks[h] : wanted));
  const q = strided(step.q, firstRow, count, stride, heads * headDim);
  const rows = q.length / (heads * headDim);
  for (let halved = Math.max(...blocks.map((b, h) => (whole[h] ? 1 : b / wanted))); halved > 1; halved /= 2) {
    segments = segments.map((own, h) => (whole[h] ? own : halves(own)));
    const children = segments.map((own, h) => (whole[h] ? [] : own));
    const width = Math.max(...children.map((own) => own.length));
    const keys = new Float32Array(heads * width * leaf * headDim);
    for (let h = 0, to = 0; h < heads; h++, to = h * width * leaf * headDim) {
      const all = headKeys(step.view, Math.floor((h * kvHeads) / heads));
      for (const [first, size] of children[h]) {
        const at = searched[h].from + leaf * (first + (sample === "center" ? size >> 1 : 0));
        for (let i = 0; i < leaf; i++, to += headDim) {
          const e = Math.min(at + i, searched[h].to - 1);
          keys.set(all.subarray(e * headDim, (e + 1) * headDim), to);
        }
      }
    }
    const scores = await step.products(q, keys, { heads, rows, keys: leaf }); // [Hq, 1, width]
    segments = segments.map((own, h) => (whole[h] ? own : best(own, scores.subarray(h * width), wanted)));
  }
  return segments.map((own, h) => Int32Array.from(own, ([first]) => searched[h].from + leaf * first).sort());
}

type Segment = readonly [first: number, size: number];

/** `count` segments of like size over `blocks` leaves; those without a leaf are left out. */
function firstSegments(blocks: number, count: number): Segment[] {
  const at = (j: number) => Math.floor((blocks * j) / count);
  return Array.from({ length: count }, (_, j): Segment => [at(j), at(j + 1) - at(j)]).filter(([, size]) => size > 0);
}

function halves(segments: readonly Segment[]): Segment[] {
  return segments.flatMap(([first, size]): Segment[] => {
    const left = size >> 1;
    const both: Segment[] = [
      [first, left],
      [first + left, size - left],
    ];
    return both.filter(([, n]) => n > 0);
  });
}

/** The `count` segments with the best scores; the earlier one wins a tie. */
function best(segments: readonly Segment[], scores: Float32Array, count: number): Segment[] {
  if (segments.length <= count) return [...segments];
  const order = segments.map((_, i) => i).sort((a, b) => scores[b] - scores[a] || a - b);
  return order.slice(0, count).map((i) => segments[i]);
}

/** Every `stride`-th of some rows. */
function strided(q: Float32Array, first: number, count: number, stride: number, width: number): Float32Array {
  if (stride === 1) return q.subarray(first * width, (first + count) * width);
  const rows = Math.ceil(count / stride);
  const some = new Float32Array(rows * width);
  for (let i = 0; i < rows; i++)
    some.set(q.subarray((first + i * stride) * width, (first + i * stride + 1) * width), i * width);
  return some;
}
