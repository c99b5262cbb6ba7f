import { z } from "zod";
import type { RetainStep } from "../../engine/hooks.js";
import { budget, budgetTokens } from "../budget.js";
import { method } from "../method.js";
import { endsTurn, turnStart } from "../turn.js";
import { keptByScore } from "./heavy-hitters.js";

const parameters = z.object({
  capacity: budget().default(2048).describe("tokens that stay, the newest included; or their share of the prompt"),
});

/**
 * TOVA: whenever more than `capacity` tokens lie in the cache, those stay that the newest token attends to most, by the
 * mean over all heads of the layer. The newest one stays too.
 */
export const tova = method({
  name: "tova",
  family: "eviction",
  does: "Keeps the tokens that the newest one attends to most, at every step.",
  paper: {
    title: "Transformers are Multi-State RNNs",
    venue: "EMNLP 2024",
    url: "https://github.com/schwartz-lab-NLP/TOVA",
  },
  cost: "capacity keys per token, scored once more when the cache is full",
  facts: "NVIDIA's kvpress, which cites the official code; eviction at every decoded token from the paper",
  deviations: [
    "the newest token always stays, as in kvpress",
    "where KV heads hold different tokens (another method evicts too) each goes by the heads that share it",
  ],
  rows: { prefill: false, lastPromptRow: false, decode: true },
  exact: { capacity: 2 ** 30 },
  trials: [{ parameters: { capacity: 24 } }, { parameters: { capacity: 1 / 4 } }],
  status: "experimental",
  measured:
    "nano, 4096 tokens, 32 questions, each asked after the text was read: " +
    "with a quarter kept 0% right (full attention 37.5%, random pages kept 12.5%): choosing before the question is known loses its answer",
  parameters,
  state: () => ({ length: 0 }),
  async retain(step: RetainStep<{ length: number }>, params) {
    if (step.when !== "after" || !endsTurn(step)) return;
    // shares are of the text as it was read, not of what is generated behind it
    if (step.phase !== "decode") step.state.length = turnStart(step) + step.totalRows;
    const capacity = budgetTokens(params.capacity, step.state.length || step.positions[0] + 1);
    const { heads, kvHeads } = step.model;
    const lengths = Array.from({ length: kvHeads }, (_, kv) => step.view.length(kv));
    if (lengths.every((n) => n <= capacity)) return;
    const weights = await step.weights(1); // [Hq, 1, S]
    const group = heads / kvHeads;
    const alike = lengths.every((n) => n === lengths[0]);
    for (const [kv, length] of lengths.entries()) {
      if (length <= capacity) continue;
      const [from, to] = alike ? [0, heads] : [kv * group, (kv + 1) * group];
      step.keep(kv, keptByScore(meanWeights(weights, heads, from, to).subarray(0, length), capacity - 1, 1));
    }
  },
});

/** Mean of rows [from, to) of weights [Hq, S]: [S]. */
export function meanWeights(weights: Float32Array, heads: number, from: number, to: number): Float32Array {
  const keys = weights.length / heads;
  const mean = new Float32Array(keys);
  for (let h = from; h < to; h++) for (let s = 0; s < keys; s++) mean[s] += weights[h * keys + s] / (to - from);
  return mean;
}
