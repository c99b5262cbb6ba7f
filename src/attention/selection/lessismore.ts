import { z } from "zod";
import type { AttentionStep, Part } from "../../engine/hooks.js";
import { largest } from "../budget.js";
import { method } from "../method.js";
import {
  chosenEntries,
  exactScores,
  type HeadScores,
  headLengths,
  type LayerChoice,
  middleLayer,
  readingBudget,
  readTokens,
} from "../select/index.js";

const parameters = z.object({
  ...readingBudget(1024, "tokens read in the sparse layers, sinks and newest ones included (K)"),
  recent: z
    .number()
    .min(0)
    .max(1)
    .default(0.25)
    .describe("share of them for the newest tokens, out of which the sinks come (r)"),
  sinks: z.int().min(0).default(4).describe("first tokens that are always read (s)"),
  choose: z.int().min(0).default(2).describe("layer that chooses; the layers before it are dense (a)"),
  again: z.int().min(0).optional().describe("layer that chooses again (b); default 0.4 of the way up"),
});
type Parameters = z.output<typeof parameters>;

/**
 * LessIsMore: TidalDecode's layers with one set of tokens for all heads. Every head ranks the tokens between sinks and
 * newest ones; the ranks are merged in turns, all first choices before all second ones, until the set is full.
 */
export const lessismore = method({
  name: "lessismore",
  family: "selection",
  does: "Chooses one set of tokens for all heads by turns in two layers, and reads it with the newest ones behind them.",
  paper: {
    title: "Less Is More: Training-Free Sparse Attention with Global Locality for Efficient Reasoning",
    venue: "arXiv 2025",
    url: "https://github.com/DerrickYLJ/LessIsMore",
  },
  cost: "choose + 2 dense layers, `tokens` keys and values per KV head in the others; nothing is freed",
  facts: "the sheet, from the official code; the place of the second choice without a calibration is inferred",
  deviations: [
    "`recent` is the share of the newest tokens in every model (the official files use the argument both ways)",
    "the current token is always read, also with recent=0",
  ],
  rows: { prefill: false, lastPromptRow: false, decode: true },
  scope: "layers",
  exact: { tokens: 2 ** 30 },
  budget: { parts: { tokens: 1 }, sparse: { choose: 0 } },
  trials: [{ parameters: { tokens: 16, sinks: 2, choose: 1, again: 3 } }, { parameters: { share: 1 / 8, choose: 0 } }],
  status: "experimental",
  parameters,
  state: (): LayerChoice | null => null,
  select: (step, params) => lessParts(step, params),
});

async function lessParts(step: AttentionStep<LayerChoice | null>, params: Parameters): Promise<Part[]> {
  const { layer, phase, view, positions, model } = step;
  if (phase !== "decode" || layer < params.choose) return [{}];
  if (layer !== params.choose && layer !== (params.again ?? middleLayer(model.layers))) {
    const entries = chosenEntries(step.state, positions[0], view, model.kvHeads);
    return [entries ? { entries } : {}];
  }
  const lengths = headLengths(view, model.kvHeads);
  // one set for all heads: where an eviction left heads of other lengths, those entries that all have
  const length = Math.min(...lengths);
  const tokens = readTokens(params, Math.max(...lengths));
  if (tokens >= length) {
    step.state = null;
    return [{}];
  }
  const set = unifiedSet(await exactScores(step), length, tokens, params);
  const held = view.positions(lengths.indexOf(length));
  step.state = { step: positions[0], positions: [set.map((entry) => held[entry])] };
  return [{}];
}

/** `tokens` of the first `length` keys that scored rows choose together, with sinks and newest ones; ascending. */
export function unifiedSet(
  { data, heads, keys }: HeadScores,
  length: number,
  tokens: number,
  { recent, sinks }: Pick<Parameters, "recent" | "sinks">,
): Int32Array {
  let newest = Math.max(1, tokens - Math.floor(tokens * (1 - recent))); // n
  const middle = tokens - newest; // m
  const first = newest - 1 >= sinks ? sinks : 0; // s
  newest -= first;
  const rows = Array.from({ length: heads }, (_, h) =>
    ranked(data.subarray(h * keys, h * keys + length), middle, first, length - newest),
  );
  const set = new Set<number>();
  for (let i = 0; i < first; i++) set.add(i);
  for (const entry of mergeRanks(rows, middle)) set.add(entry);
  for (let i = length - newest; i < length; i++) set.add(i);
  return Int32Array.from(set).sort();
}

/** Indices of the `count` largest of scores[from, to), best first, ties to the lower index. */
function ranked(scores: Float32Array, count: number, from: number, to: number): Int32Array {
  return largest(scores, count, from, to).sort((a, b) => scores[b] - scores[a] || a - b);
}

/** The first `count` different entries of all rows' first choices, in order of heads, then all second choices, ... */
export function mergeRanks(rows: readonly Int32Array[], count: number): number[] {
  const merged = new Set<number>();
  const ranks = Math.max(0, ...rows.map((row) => row.length));
  for (let rank = 0; rank < ranks; rank++)
    for (const row of rows) {
      if (merged.size >= count) return [...merged];
      if (rank < row.length) merged.add(row[rank]);
    }
  return [...merged];
}
