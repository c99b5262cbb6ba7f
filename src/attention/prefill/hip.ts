import { z } from "zod";
import type { AttentionStep, Part } from "../../engine/hooks.js";
import { rowRanges } from "../../engine/row-ranges.js";
import { FoveaError } from "../../error.js";
import { method } from "../method.js";
import { denseLayers, forcedTokens, headKeys, refresh } from "../select/index.js";
import { rowBlocks } from "./blocks.js";

const parameters = z.object({
  tokens: z.int().min(1).default(512).describe("keys that the search finds for a block of queries (k)"),
  queries: z.int().min(1).default(64).describe("queries of a prompt that share a choice (b_q)"),
  leaf: z.int().min(1).default(2).describe("neighbouring keys that are chosen together (b_k)"),
  stride: z.int().min(1).default(2).describe("every so many-th query of a block is scored"),
  sample: z.enum(["center", "first"]).default("center").describe("which leaf stands for a segment"),
  ...forcedTokens(16, 256),
  ...refresh(8),
  ...denseLayers(3),
});
type Parameters = z.output<typeof parameters>;

/** A choice that decoding goes on with: per query head the leaves' first entries, and where window and search met. */
interface Held {
  left: number;
  leaves: Int32Array[];
  ends: number[];
}
type State = { layers: (Held | undefined)[] };

/** What is searched in one head: entries [from, to), leaves of `leaf` of them. */
interface Range {
  readonly from: number;
  readonly to: number;
}

/**
 * HiP: for each block of queries and each head, a tree search over the keys between sinks and window: segments are halved,
 * each half is scored by one leaf of real keys, the better halves stay, until they are single leaves.
 */
export const hip = method<typeof parameters, State>({
  name: "hip",
  family: "prefill",
  does: "Finds the best keys for each block of queries by a tree search that scores one leaf per segment.",
  paper: {
    title: "HiP Attention: Sparse Sub-Quadratic Attention with Hierarchical Attention Pruning",
    venue: "ICLR 2025",
    url: "https://github.com/DeepAuto-AI/hip-attention",
  },
  cost: "2 tokens / leaf representatives in each of log2(S / tokens) rounds a block, then tokens + window + sinks keys a token",
  facts: "the official code (v1.0 and v1.1 reference, v1.1 kernel's arguments)",
  deviations: [
    "a leaf that reaches beyond the searched range is scored and read up to its end",
    "while a choice is held, decoded tokens grow its window instead of moving it",
  ],
  budget: { parts: { tokens: 1 / 2, window: 1 / 2 }, range: { least: 8, step: 1 }, sparse: { denseLayers: 0 } },
  exact: { window: 2 ** 30 },
  trials: [
    { parameters: { tokens: 8, queries: 16, sinks: 2, window: 6, denseLayers: 0, refresh: 4 } },
    { parameters: { tokens: 8, queries: 8, leaf: 1, stride: 1, sample: "first", sinks: 0, window: 4, denseLayers: 1 } },
  ],
  status: "experimental",
  parameters,
  hooks: ["select"],
  create(params) {
    if (params.tokens < params.leaf)
      throw new FoveaError("bad-input", `hip: tokens is ${params.tokens}; expected a leaf of ${params.leaf} or more`);
    return {
      rowBlock: params.queries,
      denseLayers: params.denseLayers,
      state: (model) => ({ layers: Array.from({ length: model.layers }, () => undefined) }),
      select: (step) => hipParts(step, params),
    };
  },
});

async function hipParts(step: AttentionStep<State>, params: Parameters): Promise<Part[]> {
  const { heads, kvHeads } = step.model;
  const { leaf, sinks, window, queries } = params;
  const decode = step.phase === "decode";
  const { blocks, end } = rowBlocks(step, queries);
  const held = decode ? step.state.layers[step.layer] : undefined;
  const kvOf = (head: number) => Math.floor((head * kvHeads) / heads);
  const choices: Held[] = [];
  if (held && held.left > 0) choices.push({ ...held, left: held.left - 1 });
  else
    for (let block = 0; block < blocks; block++) {
      const searched = Array.from({ length: heads }, (_, h): Range => {
        const to = end(block, kvOf(h)) - window;
        return { from: Math.min(sinks, Math.max(0, to)), to: Math.max(to, Math.min(sinks, Math.max(0, to))) };
      });
      const first = block * queries;
      const count = Math.min(queries, step.rows - first);
      const leaves = await searchLeaves(step, params, first, count, searched);
      choices.push({ left: params.refresh - 1, leaves, ends: searched.map(({ to }) => to) });
    }
  step.state.layers[step.layer] = decode ? choices[0] : undefined;
  const ranges = rowRanges({ rows: queries, heads, blocks }, (block, head, add) => {
    const { leaves, ends } = choices[block];
    add(0, Math.min(sinks, ends[head]));
    for (const start of leaves[head]) add(start, Math.min(start + leaf, ends[head]));
    add(Math.max(0, ends[head]), end(block, kvOf(head)));
  });
  return [{ blocks: ranges }];
}

/** The tree search for one block of queries: per query head the first entries of the chosen leaves, ascending. */
export async function searchLeaves(
  step: AttentionStep,
  { tokens, leaf, stride, sample }: Pick<Parameters, "tokens" | "leaf" | "stride" | "sample">,
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
