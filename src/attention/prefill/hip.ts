import { z } from "zod";
import type { AttentionStep, Part } from "../../engine/hooks.js";
import { rowRanges } from "../../engine/row-ranges.js";
import { FoveaError } from "../../error.js";
import { method } from "../method.js";
import { denseLayers, forcedTokens, refresh } from "../select/index.js";
import { rowBlocks } from "./blocks.js";
import { type Range, searchLeaves } from "./leaf-search.js";

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
  status: "not reproduced on nano",
  measured:
    "nano, 4096 tokens, 32 questions, each asked after the text was read: " +
    "with a quarter of the keys read 6.3% right (full attention 37.5%, random pages 0)",
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
