import { z } from "zod";
import type { RetainStep } from "../../engine/hooks.js";
import { budget, budgetTokens, largest } from "../budget.js";
import { method } from "../method.js";
import { endsTurn, inPrompt } from "../turn.js";
import { pooledScores, windowParameters } from "./snapkv.js";

const parameters = z.object({
  capacity: budget()
    .default(2048)
    .describe("tokens of the prompt that a KV head keeps on average, or their share of it; the window included"),
  safeguard: z.number().min(0).max(1).default(0.2).describe("share of the average that every head keeps (alpha)"),
  ...windowParameters,
});

/**
 * Ada-KV: SnapKV's scores under one budget for all KV heads of a layer. The best tokens stay whichever head they are in,
 * so that a head that looks at many places gets more than one that looks at few; each keeps a safeguard of its own best.
 */
export const adaKv = method({
  name: "ada-kv",
  family: "eviction",
  does: "Keeps the prompt tokens that its end looks at, with more of them for heads that look at more places.",
  paper: {
    title: "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference",
    venue: "NeurIPS 2025",
    url: "https://github.com/FFY0/AdaKV",
  },
  cost: "capacity + generated keys per token on average; one scoring of window x prompt per layer",
  facts: "NVIDIA's kvpress; scores as in snapkv, with its defaults",
  deviations: [
    "query heads that share keys and values share one set, chosen by the mean of their pooled scores",
    "entries really leave; kvpress hides them",
  ],
  rows: { prefill: false, lastPromptRow: false, decode: true },
  scope: "layers",
  exact: { capacity: 2 ** 30 },
  trials: [
    { parameters: { capacity: 24, window: 8 } },
    { parameters: { capacity: 1 / 4, window: 8, safeguard: 0, pool: "max" } },
  ],
  status: "experimental",
  measured:
    "nano, 4096 tokens, 32 questions, each asked after the text was read: " +
    "with a quarter kept 6.3% right (full attention 37.5%, random pages kept 12.5%): choosing before the question is known loses its answer",
  parameters,
  async retain(step: RetainStep, params) {
    if (step.when !== "after" || !inPrompt(step) || !endsTurn(step)) return;
    const length = step.view.length(0);
    const capacity = budgetTokens(params.capacity, length);
    if (length <= capacity) return;
    const window = Math.min(params.window, step.queryRows, capacity);
    const scores = await pooledScores(step, window, params);
    for (const [kv, chosen] of adaptiveEntries(scores, capacity - window, params.safeguard).entries())
      step.keep(kv, withEnd(chosen, length, window));
  },
});

/**
 * The best entries of heads' scores [S] under one budget, `average` a head: first each head's best
 * floor(safeguard * average), then the best of what is left, in whichever head. Ascending; ties to the lower head.
 */
export function adaptiveEntries(scores: readonly Float32Array[], average: number, safeguard: number): Int32Array[] {
  const keys = scores[0].length;
  const safe = scores.map((row) => largest(row, Math.floor(safeguard * average)));
  const all = new Float32Array(scores.length * keys);
  for (const [head, row] of scores.entries()) {
    all.set(row, head * keys);
    for (const i of safe[head]) all[head * keys + i] = Number.POSITIVE_INFINITY;
  }
  const chosen = largest(all, scores.length * average);
  return scores.map((_, head) => chosen.filter((i) => Math.floor(i / keys) === head).map((i) => i - head * keys));
}

function withEnd(chosen: Int32Array, length: number, window: number): Int32Array {
  return Int32Array.from({ length: chosen.length + window }, (_, i) =>
    i < chosen.length ? chosen[i] : length - window + i - chosen.length,
  );
}
