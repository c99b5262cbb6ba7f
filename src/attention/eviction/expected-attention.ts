import { z } from "zod";
import type { ActivationsStep, RetainStep, RotaryPlan } from "../../engine/hooks.js";
import { budget, budgetTokens } from "../budget.js";
import { method } from "../method.js";
import { topEntries } from "../select/index.js";
import { endsTurn, inPrompt, turnStart } from "../turn.js";

const parameters = z.object({
  capacity: budget().default(2048).describe("tokens of the prompt that stay, or their share of it; the sinks included"),
  future: z.int().min(1).default(512).describe("positions behind the prompt that queries are expected at"),
  sinks: z.int().min(0).default(4).describe("first tokens, which stay, and whose queries do not count"),
  covariance: z.boolean().default(true).describe("count how queries vary, not their mean alone"),
  values: z.boolean().default(true).describe("multiply expected weights by the length of the value"),
  epsilon: z.number().min(0).default(0).describe("added to the expected weight before that"),
});
type Parameters = z.output<typeof parameters>;

/** Sums over the unrotated queries of a layer's heads. */
export interface QueryMoments {
  count: number;
  readonly sum: Float64Array; // [Hq, D]
  readonly outer: Float64Array; // [Hq, D, D], upper triangles
}
type State = Map<number, QueryMoments>;

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

function addQueries({ state, layer, model, rows, positions, q }: ActivationsStep<State>, sinks: number): void {
  const { heads, headDim: dim } = model;
  const moments = state.get(layer) ?? {
    count: 0,
    sum: new Float64Array(heads * dim),
    outer: new Float64Array(heads * dim * dim),
  };
  for (let t = 0; t < rows; t++) {
    if (positions[t] < sinks) continue;
    moments.count++;
    for (let at = 0; at < heads * dim; at++) {
      const x = q[t * heads * dim + at];
      moments.sum[at] += x;
      const i = at % dim;
      for (let j = i; j < dim; j++) moments.outer[at * dim + j] += x * q[t * heads * dim + at - i + j];
    }
  }
  state.set(layer, moments);
}

/** Mean of rotations over positions [first, first + count): per pair of channels its cos and sin. */
export interface MeanRotation {
  readonly cos: Float64Array;
  readonly sin: Float64Array;
}

/** `place`: where a KV head stands among all, 0 to 1, for plans whose groups of heads turn at frequencies of their own. */
export function averageRotation(plan: RotaryPlan | null, first: number, count: number, place = 0): MeanRotation {
  const half = plan ? plan.dims >> 1 : 0;
  const [cos, sin] = [new Float64Array(half), new Float64Array(half)];
  if (!plan) return { cos, sin };
  const start = Math.floor(place * (plan.groups ?? 1)) * half;
  for (let p = first; p < first + count; p++) {
    const factor = (plan.multiplier * (plan.queryScale?.(p) ?? 1)) / count;
    for (let i = 0; i < half; i++) {
      cos[i] += factor * Math.cos(p * plan.inverse[start + i]);
      sin[i] += factor * Math.sin(p * plan.inverse[start + i]);
    }
  }
  return { cos, sin };
}

/** Turns n numbers that lie `stride` apart in place. */
function turn(x: Float64Array, at: number, stride: number, { cos, sin }: MeanRotation): void {
  const half = cos.length;
  for (let i = 0; i < half; i++) {
    const [a, b] = [at + i * stride, at + (half + i) * stride];
    [x[a], x[b]] = [x[a] * cos[i] - x[b] * sin[i], x[b] * cos[i] + x[a] * sin[i]];
  }
}

/** Mean [D] and covariance [D, D] (null without) of a head's queries as rotated ahead: R m and R C R'. */
export function futureQueries(
  { count, sum, outer }: QueryMoments,
  head: number,
  rotation: MeanRotation,
  varied: boolean,
) {
  const dim = outer.length / sum.length;
  const mean = sum.slice(head * dim, (head + 1) * dim).map((x) => x / Math.max(1, count));
  const covariance = new Float64Array(varied ? dim * dim : 0);
  for (let i = 0; varied && i < dim; i++)
    for (let j = i; j < dim; j++) {
      const x = outer[(head * dim + i) * dim + j] / Math.max(1, count) - mean[i] * mean[j];
      covariance[i * dim + j] = x;
      covariance[j * dim + i] = x;
    }
  turn(mean, 0, 1, rotation);
  for (let i = 0; varied && i < dim; i++) turn(covariance, i * dim, 1, rotation); // C R'
  for (let j = 0; varied && j < dim; j++) turn(covariance, j, dim, rotation); // R C R'
  return { mean, covariance: varied ? covariance : null };
}

/** ln E exp(scale q.k) of normally distributed queries for keys [n, D]: [n]. */
export function expectedLogits(
  keys: Float32Array,
  { mean, covariance }: ReturnType<typeof futureQueries>,
  scale: number,
): Float64Array {
  const dim = mean.length;
  return Float64Array.from({ length: keys.length / dim }, (_, n) => {
    let linear = 0;
    let quadratic = 0;
    for (let i = 0; i < dim; i++) {
      const x = keys[n * dim + i];
      linear += x * mean[i];
      if (!covariance) continue;
      let row = 0;
      for (let j = 0; j < dim; j++) row += covariance[i * dim + j] * keys[n * dim + j];
      quadratic += x * row;
    }
    return scale * linear + (scale * scale * quadratic) / 2;
  });
}

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
