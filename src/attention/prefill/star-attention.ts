import { z } from "zod";
import type { AttentionStep, Part } from "../../engine/hooks.js";
import { rowRanges } from "../../engine/row-ranges.js";
import { budget, budgetTokens } from "../budget.js";
import { method } from "../method.js";
import { entriesBelow, headPositions } from "../select/index.js";
import { inPrompt } from "../turn.js";
import { splitEntries } from "./shards.js";

const parameters = z.object({
  block: budget()
    .default(1 / 4)
    .describe("tokens of a context block, or their share of the context (b)"),
  anchor: budget(0)
    .optional()
    .describe("first tokens of the context that every block sees, or their share of it; default a block (a)"),
  query: z.int().min(0).default(64).describe("last tokens of the prompt that are the question and read everything"),
  shards: z
    .int()
    .min(1)
    .default(1)
    .describe("parts that the cache is read in after the context, merged by log-sum-exp, as on so many machines"),
});
type Parameters = z.output<typeof parameters>;

/** Rows that share a list: blocks of context are rounded to a power of two up to this. */
const ROWS = 64;

/**
 * Star Attention. Phase 1, the context: a token sees the anchor and its own block, causally; that is what running every
 * block behind a copy of the anchor, and dropping the copy, comes to. Phase 2, the question and the answer: everything,
 * in parts that merge exactly.
 */
export const starAttention = method({
  name: "star-attention",
  family: "prefill",
  does: "Context tokens read the first block and their own; the question and the answer read everything.",
  paper: {
    title: "Star Attention: Efficient LLM Inference over Long Sequences",
    venue: "ICML 2025",
    url: "https://github.com/NVIDIA/Star-Attention",
  },
  cost: "at most anchor + block keys a context token; all keys a token afterwards",
  rows: { prefill: true, lastPromptRow: false, decode: false },
  facts: "the official code",
  deviations: [
    "one machine: phase 1 is the mask that it comes to, so the anchor is not run again for each block",
    "the question is the prompt's last `query` tokens, and any later turn, and not tokenised apart",
    "blocks of 64 tokens and more are rounded up to whole 64s; the context ends at one of them (where blocks are smaller, at a power of two that divides them)",
  ],
  exact: { block: 2 ** 30 },
  budget: null,
  trials: [{ parameters: { block: 16, query: 10 } }, { parameters: { block: 24, anchor: 4, query: 3, shards: 3 } }],
  status: "experimental",
  measured:
    "not yet measured on nano. That the anchor must be there is not reproduced on stories260K, which has no sinks",
  parameters,
  hooks: ["select"],
  create: (params) => ({ rowBlock: ROWS, select: (step) => starParts(step, params) }),
});

function starParts(step: AttentionStep, params: Parameters): Part[] {
  const { view, rows } = step;
  const { kvHeads } = step.model;
  const layout = starLayout(step.totalRows, params);
  const context = inPrompt(step) ? layout.context : 0;
  // every row of the step is beyond the context
  if (step.firstRow >= context) return phaseTwo(step, params.shards);
  const ranges = rowRanges(
    { rows: layout.rows, heads: kvHeads, blocks: Math.ceil(rows / layout.rows) },
    (i, kv, add) => {
      const row = step.firstRow + i * layout.rows;
      const entry = (at: number) => entriesBelow(headPositions(view, kv), at);
      if (row >= context) return add(0, view.length(kv));
      const start = row - (row % layout.block);
      add(0, entry(Math.min(layout.anchor, start)));
      add(entry(start), entry(start + layout.block));
    },
  );
  return [{ blocks: ranges }];
}

/** Everything, in parts of the cache; new tokens are in the last one. */
function phaseTwo(step: AttentionStep, shards: number): Part[] {
  const length = Math.max(...Array.from({ length: step.model.kvHeads }, (_, h) => step.view.length(h)));
  return splitEntries(length, shards).map((range) => (shards === 1 ? {} : { entries: { ranges: [range] } }));
}

/** Sizes of phase 1 for a prompt of `length` tokens: rows that share a list, block, anchor, and where the context ends. */
export function starLayout(length: number, { block, anchor, query }: Omit<Parameters, "shards">) {
  const tokens = Math.max(0, length - query);
  const wanted = Math.max(1, budgetTokens(block, tokens));
  const size = wanted < ROWS ? wanted : Math.ceil(wanted / ROWS) * ROWS;
  const rows = Math.min(ROWS, size & -size);
  return {
    rows,
    block: size,
    anchor: anchor === undefined ? size : Math.min(size, budgetTokens(anchor, tokens)),
    context: tokens - (tokens % rows),
  };
}
