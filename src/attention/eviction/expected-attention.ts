import { z } from "zod";
import type { ActivationsStep, RetainStep } from "../../engine/hooks.js";
import { budget, budgetTokens } from "../budget.js";
import { method } from "../method.js";
import { topEntries } from "../select/index.js";
import { endsTurn, inPrompt, turnStart } from "../turn.js";
import { addQueries, averageRotation, expectedLogits, futureQueries, type MomentsByLayer } from "./future-queries.js";

const parameters = z.object({
  capacity: budget().default(2048).describe("tokens of the prompt that stay, or their share of it; the sinks included"),
  future: z.int().min(1).default(512).describe("positions behind the prompt that queries are expected at"),
  sinks: z.int().min(0).default(4).describe("first tokens, which stay, and whose queries do not count"),
  covariance: z.boolean().default(true).describe("count how queries vary, not their mean alone"),
  values: z.boolean().default(true).describe("multiply expected weights by the length of the value"),
  epsilon: z.number().min(0).default(0).describe("added to the expected weight before that"),
});
type Parameters = z.output<typeof parameters>;
type State = MomentsByLayer;

/**
 * Expected Attention: once, after the prompt, each KV head keeps the tokens that future queries are expected to attend to.
 * Those are modelled as normally distributed like the prompt's own unrotated queries, rotated to the positions ahead.
 */
export const expectedAttention = method({
  name: "expected-attention",
  family: "eviction",
  does: "Keeps the prompt tokens that future queries, modelled on the prompt's own, are expected to attend to.",
  paper: {
    title: "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution",
    venue: "2025",
    url: "https://github.com/NVIDIA/kvpress",
  },
  cost: "capacity + generated keys per token; once D^2 / 2 per query head and prompt token for the moments, D^2 for the scores",
  facts: "the official code (kvpress)",
  deviations: ["a query scale that depends on the position is averaged with the rotation"],
  rows: { prefill: false, lastPromptRow: false, decode: true },
  exact: { capacity: 2 ** 30 },
  trials: [
    { parameters: { capacity: 24, future: 64 } },
    { parameters: { capacity: 1 / 4, covariance: false, sinks: 0 } },
  ],
  status: "experimental",
  parameters,
  state: (): State => new Map(),
  activations(step: ActivationsStep<State>, { capacity, sinks }) {
    const tokens = turnStart(step) + step.totalRows;
    if (inPrompt(step) && tokens > budgetTokens(capacity, tokens)) addQueries(step, sinks);
  },
  retain(step: RetainStep<State>, params) {
    if (step.when !== "after" || !inPrompt(step) || !endsTurn(step)) return;
    const moments = step.state.get(step.layer);
    step.state.delete(step.layer);
    const { heads, kvHeads } = step.model;
    const tokens = turnStart(step) + step.totalRows;
    const capacity = budgetTokens(params.capacity, tokens);
    if (!moments) return;
    for (let kv = 0; kv < kvHeads; kv++) {
      if (step.view.length(kv) <= capacity) continue;
      const group = heads / kvHeads;
      const queries = Array.from({ length: group }, (_, g) => {
        const rotation = averageRotation(step.plan, tokens, params.future, kv / kvHeads);
        return futureQueries(moments, kv * group + g, rotation, params.covariance);
      });
      step.keep(kv, topEntries(expectedWeights(step, kv, queries, params), capacity, { sinks: params.sinks }));
    }
  },
});

/** A KV head's scores: softmax of the expected logits behind the sinks, mean over its queries, times |v|. */
function expectedWeights(
  { view, scale }: RetainStep<State>,
  kv: number,
  queries: readonly ReturnType<typeof futureQueries>[],
  { sinks, values, epsilon }: Parameters,
): Float32Array {
  const keys = view.keys(kv);
  const v = view.values(kv);
  const length = view.length(kv);
  const [dim, wide] = [keys.length / length, v.length / length];
  const scores = new Float32Array(length);
  for (const query of queries) {
    const logits = expectedLogits(keys.subarray(sinks * dim), query, scale);
    const max = logits.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
    const sum = logits.reduce((total, x) => total + Math.exp(x - max), 0);
    for (const [n, x] of logits.entries()) scores[sinks + n] += Math.exp(x - max) / sum / queries.length;
  }
  if (!values) return scores;
  return scores.map((x, n) => (x + epsilon) * Math.hypot(...v.subarray(n * wide, (n + 1) * wide)));
}
