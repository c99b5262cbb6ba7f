import { z } from "zod";
import type { AttentionStep, Part } from "../../engine/hooks.js";
import { rowRanges } from "../../engine/row-ranges.js";
import { method } from "../method.js";
import { denseLayers } from "../select/index.js";
import { rowBlocks } from "./blocks.js";
import { keptTiles, thresholdOf } from "./tile-estimates.js";

const parameters = z.object({
  threshold: z
    .union([z.number().min(0), z.array(z.number().min(0))])
    .default(0.004)
    .describe(
      "a tile is read if a weight in it exceeds this (tau); one for all heads or one per layer and query head; 0: dense",
    ),
  queries: z.int().min(1).default(64).describe("queries in a tile"),
  keys: z.int().min(1).default(32).describe("keys in a tile"),
  local: z.int().min(0).default(128).describe("keys before a tile's own rows that are always read"),
  from: z.int().min(0).default(1024).describe("rows before this position read everything"),
  ...denseLayers(0),
});
type Parameters = z.output<typeof parameters>;

/** Thresholds below this mean dense. */
const DENSE = 1e-5;

/**
 * SALE: every product of a prompt is estimated with 4-bit integers, and a tile of queries and keys is read only if an
 * estimated weight in it, relative to what its row gives sinks and neighbours, exceeds the head's threshold.
 */
export const sale = method({
  name: "sale",
  family: "prefill",
  does: "Estimates all of a prompt's attention with 4-bit integers and skips tiles in which no weight matters.",
  paper: {
    title: "SALE: Low-bit Estimation for Efficient Sparse Attention in Long-context LLM Prefilling",
    venue: "2025",
    url: "https://github.com/BirdChristopher/SALE",
  },
  needs: "thresholds per head, found by `calibrateSale` on a few prompts; one for all heads works without",
  cost: "products of all pairs once more, estimated (the paper has 4-bit hardware for them, here they are float32), then the tiles that are left",
  rows: { prefill: true, lastPromptRow: true, decode: false },
  facts: "the official code (quantiser, control flow, calibration)",
  deviations: [
    "estimates are products of the 4-bit values in float32: neither ONNX Runtime on CPUs nor WebAssembly multiplies 4-bit integers",
    "queries are centred by the mean of their tile and keys by that of the first `from` (or a tile's) keys, not by those of the whole prompt: a prompt in pieces then gives the same tiles",
    "rows before `from` are dense instead of prompts of at most 1024 tokens",
    "the local band ends at a tile of keys, and is not widened to whole segments of 128 keys",
    "scales are per token",
  ],
  exact: { threshold: 0 },
  budget: null,
  trials: [
    { parameters: { threshold: 0.2, queries: 16, keys: 8, local: 8, from: 16 } },
    { parameters: { threshold: 1e9, queries: 8, keys: 4, local: 4, from: 8, denseLayers: 1 } },
  ],
  status: "experimental",
  parameters,
  hooks: ["select"],
  create: (params) => ({
    rowBlock: params.queries,
    denseLayers: params.denseLayers,
    select: (step) => (step.phase === "decode" ? [{}] : saleParts(step, params)),
  }),
});

/** The tiles that a step's rows read, per block of queries and query head. */
export async function saleParts(step: AttentionStep, params: Parameters): Promise<Part[]> {
  const { heads, kvHeads } = step.model;
  const { queries, keys } = params;
  const { blocks, start, end } = rowBlocks(step, queries);
  const kvOf = (head: number) => Math.floor((head * kvHeads) / heads);
  /** Keys that are searched: tiles 1.. up to the local band, which begins at a whole tile. */
  const searchedTo = (block: number, head: number) => {
    const dense = step.positions[block * queries] < params.from || thresholdOf(params, step, head) < DENSE;
    const band = Math.floor(Math.max(0, start(block, kvOf(head)) - params.local) / keys) * keys;
    return dense ? 0 : Math.max(keys, band);
  };
  const always = rowRanges({ rows: queries, heads, blocks }, (block, head, add) => {
    const band = searchedTo(block, head);
    if (band > 0) add(0, keys);
    add(band, end(block, kvOf(head)));
  });
  const { lse } = await step.attend({ blocks: always });
  const kept: boolean[][][] = [];
  for (let block = 0; block < blocks; block++) {
    const to = Math.max(...Array.from({ length: heads }, (_, h) => searchedTo(block, h)));
    kept.push(to > keys ? await keptTiles(step, params, block, to, lse) : []);
  }
  const ranges = rowRanges({ rows: queries, heads, blocks }, (block, head, add) => {
    const band = searchedTo(block, head);
    if (band > 0) add(0, keys);
    kept[block][head]?.forEach((keep, tile) => {
      if (keep && (tile + 2) * keys <= band) add((tile + 1) * keys, (tile + 2) * keys);
    });
    add(band, end(block, kvOf(head)));
  });
  return [{ blocks: ranges }];
}
