import { z } from "zod";
import type { ModelShape, RetainStep } from "../../engine/hooks.js";
import { FoveaError } from "../../error.js";
import { budget, budgetTokens } from "../budget.js";
import { layerNumbers, layersParameter } from "../calibration.js";
import { pool, snapEntries, windowScores } from "../eviction/snapkv.js";
import { oncePerModel } from "../files.js";
import { headsOf, headsParameter } from "../heads/head-list.js";
import { method } from "../method.js";
import { endsTurn, inPrompt } from "../turn.js";

const parameters = z.object({
  tokens: budget()
    .default(1024)
    .describe("tokens of the prompt that a layer keeps on average, or their share of it; the window included (b)"),
  heads: headsParameter
    .default([])
    .describe("semantic retrieval heads, best first, as a head-list file or heads; none: every head votes"),
  voters: z.int().min(1).default(4).describe("heads of a layer that vote: its first ones in the list (F)"),
  importance: layersParameter
    .optional()
    .describe("weight of each layer in the budget, as a calibration file or a list; default: all alike (c)"),
  window: z.int().min(1).default(8).describe("last prompt tokens, whose queries vote and which stay (m)"),
  kernel: z
    .int()
    .min(1)
    .refine((k) => k % 2 === 1, "expected an odd width")
    .default(5)
    .describe("width over which scores are averaged along the text"),
});
type Parameters = z.output<typeof parameters>;

/** Fewest tokens that a layer is given, and most, as a multiple of the mean. */
const FLOOR = 32;
const CAP = 3;

/**
 * CompressKV: once, after the prompt, the few heads of each layer that read by meaning vote; all KV heads of the layer
 * keep the same tokens, and layers that lose more by eviction are given more of the budget.
 */
export const compresskv = method({
  name: "compresskv",
  family: "compression",
  does: "Keeps the prompt tokens that the semantic retrieval heads of a layer look at, more of them where it matters.",
  paper: {
    title: "CompressKV: Semantic Retrieval Heads Know What Tokens are Not Important Before Generation",
    venue: "arXiv 2508.02401, 2025",
    url: "https://github.com/TUDa-HWAI/CompressKV",
  },
  needs: "semantic retrieval heads (`semanticRetrievalHeads`) and layer weights (`evictionErrors`) of the model, once",
  cost: "the layer's budget + generated keys per token; one scoring of window x prompt per layer",
  facts: "a sheet made from the official code: head detection, eviction, layer errors, allocation",
  deviations: [
    "without a head list every head votes, with a set for each layer where SnapKV has one for each KV head",
    "budgets below the floor of 32 tokens a layer lower the floor to the budget",
  ],
  rows: { prefill: false, lastPromptRow: false, decode: true },
  exact: { tokens: 2 ** 30 },
  trials: [
    { parameters: { tokens: 24 } },
    {
      parameters: {
        tokens: 40,
        heads: [
          { layer: 0, head: 1 },
          { layer: 1, head: 2 },
        ],
      },
    },
  ],
  status: "experimental",
  parameters,
  scope: "layers",
  hooks: ["retain"],
  check(model, { heads, importance }) {
    headsOf(heads, model);
    if (importance !== undefined) checkImportance(layerNumbers(importance, "compresskv", model));
  },
  create(params) {
    const found = oncePerModel((model) => ({
      voters: votingHeads(headsOf(params.heads, model), model, params.voters),
      importance: params.importance === undefined ? undefined : layerNumbers(params.importance, "compresskv", model),
    }));
    return {
      async retain(step) {
        if (step.when !== "after" || !inPrompt(step) || !endsTurn(step)) return;
        const { voters, importance } = found(step.model);
        const length = step.view.length(0);
        const mean = budgetTokens(params.tokens, length);
        const tokens = importance ? layerBudgets(importance, mean)[step.layer] : mean;
        if (length <= tokens) return;
        const kept = await chosenEntries(step, voters[step.layer], tokens, params);
        for (let kv = 0; kv < step.model.kvHeads; kv++) step.keep(kv, kept);
      },
    };
  },
});

/** The entries that a layer keeps of its prompt, the same for all its KV heads; ascending. */
export async function chosenEntries(
  step: Pick<RetainStep, "view" | "queryRows" | "weights">,
  voters: readonly number[],
  tokens: number,
  { window: last, kernel }: Pick<Parameters, "window" | "kernel">,
): Promise<Int32Array> {
  const length = step.view.length(0);
  const window = Math.min(last, step.queryRows);
  const weights = await step.weights(window); // [Hq, m, S]
  const pooled = voters.map((head) => pool(windowScores(weights, head, window, length), kernel, "avg"));
  const mean = pooled[0].map((_, i) => pooled.reduce((sum, scores) => sum + scores[i], 0) / pooled.length);
  return snapEntries(mean, length, window, tokens);
}

/** The heads that vote in each layer: the first `count` of those listed for it, or all where none is listed. */
export function votingHeads(
  heads: readonly { layer: number; head: number }[],
  model: Pick<ModelShape, "layers" | "heads">,
  count: number,
): number[][] {
  return Array.from({ length: model.layers }, (_, layer) => {
    const listed = heads.filter((h) => (h.layer < 0 ? h.layer + model.layers : h.layer) === layer);
    const own = listed.slice(0, count).map(({ head }) => head);
    return own.length > 0 ? own : Array.from({ length: model.heads }, (_, head) => head);
  });
}

function checkImportance(importance: readonly number[]): void {
  if (importance.some((c) => !(c >= 0 && Number.isFinite(c))) || !importance.some((c) => c > 0))
    throw new FoveaError("bad-input", "compresskv: the layers' weights must be numbers of at least 0, some above it");
}

/**
 * Tokens of each layer for a mean budget: a floor for all, the rest by weight, no more than three times the mean, and
 * the sum brought to layers * mean one by one, the most important layers first.
 */
export function layerBudgets(importance: readonly number[], mean: number): number[] {
  const layers = importance.length;
  const floor = Math.min(FLOOR, mean);
  const total = importance.reduce((a, b) => a + b, 0);
  const budgets = importance.map((c) =>
    Math.min(CAP * mean, floor + Math.round((c / total) * layers * (mean - floor))),
  );
  const order = importance.map((_, l) => l).sort((a, b) => importance[b] - importance[a] || a - b);
  for (let left = layers * mean - budgets.reduce((a, b) => a + b, 0); left !== 0; ) {
    const one = Math.sign(left);
    for (const l of one > 0 ? order : [...order].reverse()) {
      if (left === 0) break;
      const next = budgets[l] + one;
      if (next < floor || next > CAP * mean) continue;
      budgets[l] = next;
      left -= one;
    }
  }
  return budgets;
}
