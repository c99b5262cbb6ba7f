import { z } from "zod";
import type { RetainStep } from "../../engine/hooks.js";
import { budget, budgetTokens, largest } from "../budget.js";
import { method } from "../method.js";
import { endsTurn, inPrompt } from "../turn.js";

/** How a window of queries scores the tokens before it; Ada-KV's parameters too. */
export const windowParameters = {
  window: z.int().min(1).default(32).describe("last prompt tokens, whose queries choose and which stay (m)"),
  kernel: z
    .int()
    .min(1)
    .refine((k) => k % 2 === 1, "expected an odd width")
    .default(5)
    .describe("width over which scores are pooled along the text"),
  pool: z.enum(["avg", "max"]).default("avg").describe("average (zero padding counts) or maximum"),
};
const parameters = z.object({
  capacity: budget()
    .default(2048)
    .describe("tokens of the prompt that stay, or their share of it; the window included"),
  ...windowParameters,
});
type Parameters = z.output<typeof parameters>;

/**
 * SnapKV: once, after the prompt, each KV head keeps the tokens that the prompt's last `window` queries look at, and
 * that window. Nothing leaves later, and positions stay the true ones.
 */
export const snapkv = method({
  name: "snapkv",
  family: "eviction",
  does: "Keeps the prompt tokens that the end of the prompt looks at, and that end.",
  paper: {
    title: "SnapKV: LLM Knows What You are Looking for Before Generation",
    venue: "NeurIPS 2024",
    url: "https://github.com/FasterDecoding/SnapKV",
  },
  cost: "capacity + generated keys per token; one scoring of window x prompt per layer",
  facts: "the official code; one set per KV head as in NVIDIA's kvpress",
  deviations: ["query heads that share keys and values share one set, chosen by the mean of their pooled scores"],
  rows: { prefill: false, lastPromptRow: false, decode: true },
  exact: { capacity: 2 ** 30 },
  trials: [{ parameters: { capacity: 24, window: 8 } }, { parameters: { capacity: 1 / 4, window: 8, pool: "max" } }],
  status: "experimental",
  measured:
    "nano, 4096 tokens, 32 questions, each asked after the text was read: " +
    "with a quarter kept 3.1% right (full attention 37.5%, random pages kept 12.5%): choosing before the question is known loses its answer. " +
    "stories260K, 200 tokens after prompts of 400: 1.08 nats at 20% of the cache as in full; but a window of 80 tokens does " +
    "as well (1.07), so this model does not tell methods apart.",
  parameters,
  async retain(step: RetainStep, params) {
    if (step.when !== "after" || !inPrompt(step) || !endsTurn(step)) return;
    const length = step.view.length(0);
    const capacity = budgetTokens(params.capacity, length);
    if (length <= capacity) return;
    const window = Math.min(params.window, step.queryRows);
    for (const [kv, scores] of (await pooledScores(step, window, params)).entries())
      step.keep(kv, snapEntries(scores, length, window, capacity));
  },
});

/** Scores of the tokens before the window, one row a KV head: the mean over its query heads' pooled ones, [S - m]. */
export async function pooledScores(
  step: RetainStep,
  window: number,
  { kernel, pool: kind }: Pick<Parameters, "kernel" | "pool">,
): Promise<Float32Array[]> {
  const { heads, kvHeads } = step.model;
  const group = heads / kvHeads;
  const weights = await step.weights(window); // [Hq, m, S]
  return Array.from({ length: kvHeads }, (_, kv) =>
    mean(
      Array.from({ length: group }, (_, g) =>
        pool(windowScores(weights, kv * group + g, window, step.view.length(0)), kernel, kind),
      ),
    ),
  );
}

/** Sums of a head's weights [m, S] over the window's queries, without the window's own columns: [S - m]. */
export function windowScores(weights: Float32Array, head: number, window: number, length: number): Float32Array {
  const scores = new Float32Array(length - window);
  for (let row = head * window; row < (head + 1) * window; row++)
    for (let s = 0; s < scores.length; s++) scores[s] += weights[row * length + s];
  return scores;
}

/** Pooling along positions at stride 1, of the same length: an average counts the zeros beyond the ends. */
export function pool(scores: Float32Array, kernel: number, kind: Parameters["pool"]): Float32Array {
  const half = (kernel - 1) / 2;
  return scores.map((_, at) => {
    const near = scores.subarray(Math.max(0, at - half), at + half + 1);
    return kind === "max" ? near.reduce((a, b) => Math.max(a, b)) : near.reduce((a, b) => a + b, 0) / kernel;
  });
}

function mean(rows: readonly Float32Array[]): Float32Array {
  return rows[0].map((_, i) => rows.reduce((sum, row) => sum + row[i], 0) / rows.length);
}

/** The best of the scored tokens and the window, `capacity` in all; of a window that alone is too long, its end. */
export function snapEntries(scores: Float32Array, length: number, window: number, capacity: number): Int32Array {
  const chosen = largest(scores, Math.max(0, capacity - window));
  const last = Math.min(window, capacity);
  return Int32Array.from({ length: chosen.length + last }, (_, i) =>
    i < chosen.length ? chosen[i] : length - last + i - chosen.length,
  );
}
