import { z } from "zod";
import type { AttentionStep, Part } from "../../engine/hooks.js";
import { rowRanges } from "../../engine/row-ranges.js";
import { method } from "../method.js";
import { denseLayers, headKeys, perView, readingBudget, readTokens } from "../select/index.js";
import { rowBlocks } from "./blocks.js";
import { bestTokens } from "./chunk-budget.js";
import { chunkStarts } from "./chunk-starts.js";

const parameters = z.object({
  ...readingBudget(1024, "keys that a block of queries reads, local and global ones included (N_b)"),
  queries: z
    .int()
    .min(1)
    .default(128)
    .describe("queries that share a choice (b); also the span that boundaries are chosen in"),
  boundaries: z
    .enum(["cosine", "fixed"])
    .default("cosine")
    .describe("chunks end where the mean keys on both sides differ most, or every `chunk` tokens"),
  chunk: z.int().min(1).default(16).describe("tokens of a chunk where boundaries are fixed"),
  side: z.int().min(1).default(4).describe("tokens on each side of a gap that are compared (w)"),
  apart: z.int().min(1).default(8).describe("least distance of two boundaries"),
  most: z.int().min(0).default(8).describe("most boundaries in a span of `queries` tokens (beta)"),
  threshold: z.number().default(0).describe("least score of a boundary (theta)"),
  local: z.int().min(0).default(128).describe("newest keys that are always read"),
  global: z.int().min(0).default(128).describe("first keys that are always read"),
  instruction: z.int().min(0).default(64).describe("last tokens of the prompt, which read everything"),
  ...denseLayers(0),
});
type Parameters = z.output<typeof parameters>;

/**
 * DHSA, without the trained predictor: keys are cut into chunks of unlike lengths, a block of queries scores the chunks by
 * their length-normalised means, and reads the tokens of the best. One choice for all heads.
 */
export const dhsa = method({
  name: "dhsa",
  family: "prefill",
  does: "Cuts keys into chunks of unlike lengths and lets each block of queries read the best chunks.",
  paper: {
    title: "Long-Context Modeling with Dynamic Hierarchical Sparse Attention for On-Device LLMs",
    venue: "NeurIPS 2025 workshop",
    url: "https://github.com/xiongsiheng/DHSA",
  },
  cost: "boundaries once a layer, one product per chunk and block of queries, then `tokens` keys a token",
  rows: { prefill: true, lastPromptRow: true, decode: false },
  facts: "the official code (its `legacy` folder)",
  deviations: [
    "boundaries come from the cosine of the mean keys on both sides of a gap, the fallback without a trained predictor, and are chosen span by span: later text does not move them",
    "every span of `queries` keys begins with a boundary, in the place of those at 0, at the end and at the instruction",
    "global tokens take slots of their own, so that no token fills two",
    "all rows of a block that holds a token of the instruction read everything",
    "decoding is dense, as the released code has it",
  ],
  exact: { tokens: 2 ** 30 },
  budget: null,
  trials: [
    { parameters: { tokens: 24, queries: 16, local: 8, global: 4, instruction: 4, apart: 3, side: 2, most: 4 } },
    { parameters: { share: 1 / 4, queries: 8, boundaries: "fixed", chunk: 4, local: 8, global: 2, instruction: 0 } },
  ],
  status: "experimental",
  parameters,
  hooks: ["select"],
  create: (params) => ({
    rowBlock: params.queries,
    denseLayers: params.denseLayers,
    select: (step) => (step.phase === "decode" ? [{}] : dhsaParts(step, params)),
  }),
});

function dhsaParts(step: AttentionStep, params: Parameters): Part[] {
  const { queries, instruction } = params;
  const lengths = Array.from({ length: step.model.kvHeads }, (_, h) => step.view.length(h));
  // after an eviction that differs by head no list fits all of them
  if (lengths.some((n) => n !== lengths[0])) return [{}];
  const { blocks, end } = rowBlocks(step, queries);
  const ranges = rowRanges({ rows: queries, heads: 1, blocks }, (block, _head, add) => {
    const last = end(block, 0);
    const budget = readTokens(params, last);
    const dense = step.firstRow + Math.min(step.rows, (block + 1) * queries) > step.totalRows - instruction;
    if (dense || budget >= last) return add(0, last);
    const starts = chunkStarts(step.view, params, last, step.model);
    for (const [from, to] of bestTokens(chunkScores(step, block, queries, starts, last), starts, last, budget, params))
      add(from, to);
  });
  return [{ blocks: ranges }];
}

/** Sums over KV heads of the keys before each entry, as a mean over heads: [n + 1, D]. */
const keySums = perView((view, kvHeads) => {
  const n = Math.min(...Array.from({ length: kvHeads }, (_, h) => view.length(h)));
  const heads = Array.from({ length: kvHeads }, (_, h) => headKeys(view, h));
  const dim = heads[0].length / Math.max(1, view.length(0));
  const sums = new Float64Array((n + 1) * dim);
  for (let t = 0; t < n; t++)
    for (let d = 0; d < dim; d++) {
      let sum = 0;
      for (const keys of heads) sum += keys[t * dim + d];
      sums[(t + 1) * dim + d] = sums[t * dim + d] + sum / kvHeads;
    }
  return sums;
});

/**
 * Score of each chunk for a block of queries: the product of the two means over heads and tokens, each times the square
 * root of its number of tokens, so that long chunks win over short ones with the same keys.
 */
function chunkScores(
  step: AttentionStep,
  block: number,
  queries: number,
  starts: readonly number[],
  last: number,
): Float32Array {
  const { heads, kvHeads, headDim } = step.model;
  const sums = keySums(step.view, kvHeads);
  const first = block * queries;
  const rows = Math.min(queries, step.rows - first);
  const query = new Float64Array(headDim); // mean * sqrt(rows)
  for (let i = first * heads * headDim; i < (first + rows) * heads * headDim; i++)
    query[i % headDim] += step.q[i] / (heads * Math.sqrt(rows));
  return Float32Array.from(starts, (start, c) => {
    const end = starts[c + 1] ?? last;
    let dot = 0;
    for (let d = 0; d < headDim; d++) dot += query[d] * (sums[end * headDim + d] - sums[start * headDim + d]);
    return dot / Math.sqrt(end - start);
  });
}
