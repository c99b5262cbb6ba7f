import { z } from "zod";
import type { AttentionStep, Part, Partial } from "../../engine/hooks.js";
import { logSumExp } from "../../engine/sampling.js";
import { budget, budgetTokens, largest } from "../budget.js";
import { method } from "../method.js";
import { headLengths, readingBudget, readTokens, reduceGroups, topPerHead } from "../select/index.js";
import { addValues, currentMeans, type MeansByLayer, withMean } from "./value-means.js";

const parameters = z.object({
  ...readingBudget(128, "keys read exactly beside the current one, the local ones included (k)"),
  components: budget()
    .default(1 / 4)
    .describe("query components by which keys are ranked, or their share of a head's width (r)"),
  local: budget(0)
    .default(1 / 4)
    .describe("newest keys that are always read, or their share of the keys read (l)"),
  reallocate: z.boolean().default(true).describe("give the weight of unread keys to the mean value"),
});
type Parameters = z.output<typeof parameters>;
type State = MeansByLayer;

/**
 * SparQ attention: while decoding, keys are ranked by the r largest components of the query; the best k are read
 * exactly, and the weight that the ranking gives to the others goes to the mean value.
 */
export const sparq = method({
  name: "sparq",
  family: "selection-approximate",
  does: "Ranks keys by a few large query components, reads the best exactly and gives the rest the mean value.",
  paper: {
    title: "SparQ Attention: Bandwidth-Efficient LLM Inference",
    venue: "ICML 2024",
    url: "https://github.com/graphcore-research/llm-inference-research",
  },
  cost: "r of D components of every key, then k keys and values: S r + 2 k D + 4 D numbers per KV head and token",
  facts: "sheet, from the official code",
  deviations: [
    "keys lie once in the cache; the scoring kernel passes over all components, so the r that matter save no time yet",
    "shares are rounded down",
  ],
  rows: { prefill: false, lastPromptRow: false, decode: true },
  scope: "layers",
  exact: { tokens: 2 ** 30 },
  trials: [
    { parameters: { tokens: 16, components: 1 / 2 } },
    { parameters: { share: 1 / 8, components: 3, reallocate: false } },
  ],
  status: "holds",
  measured:
    "nano, 4096 tokens, 32 questions, each asked after the text was read: " +
    "with a sixteenth of the keys read 40.6% right (full attention 37.5%, random pages 0). " +
    "On stories260K, whose heads are 8 wide, nearer to full attention with the mean value than " +
    "without, and with the coverage temperature than with sqrt(r)",
  parameters,
  state: (): State => new Map(),
  activations: (step, { reallocate }) => (reallocate ? addValues(step) : undefined),
  select: (step, params) => sparqParts(step, params),
});

/** Factor on the approximate logits q[I].k[I] / sqrt(D): 1 / sqrt(coverage), coverage = sum_I |q| / sum |q|. */
export const coverageScale = (coverage: number) => 1 / Math.sqrt(coverage);

/** What a decoded row reads. `scale` is a parameter for comparison only. */
export async function sparqParts(
  step: AttentionStep<State>,
  params: Parameters,
  scale = coverageScale,
): Promise<(Part | Partial)[]> {
  const { heads, kvHeads, headDim } = step.model;
  const lengths = headLengths(step.view, kvHeads);
  const tokens = readTokens(params, Math.max(...lengths));
  if (step.phase !== "decode" || tokens + 1 >= Math.max(...lengths)) return [{}];
  const components = Math.min(headDim, budgetTokens(params.components, headDim));
  const query = sparseQueries(step.q, heads, kvHeads, components, scale);
  const approximate = await step.score({ query }); // u [Hq, S]
  const keys = approximate.length / heads;
  const ranked = reduceGroups({ data: approximate, heads, keys }, kvHeads, "sum");
  const local = Math.min(tokens, budgetTokens(params.local, tokens));
  const chosen = topPerHead(ranked, tokens + 1, { window: local + 1 }, lengths); // J, a list a KV head
  const part: Part = { entries: chosen.map((list) => ({ tokens: list })) };
  if (!params.reallocate) return [part];
  const exact = await step.attend(part); // y
  const means = currentMeans(step, lengths);
  const group = heads / kvHeads;
  const kept = Float32Array.from({ length: heads }, (_, head) =>
    keptMass(approximate.subarray(head * keys, (head + 1) * keys), chosen[Math.floor(head / group)]),
  );
  return [withMean(exact, kept, means, group)];
}

/** q with all but the r components that are largest in the sum of |q| over a group set to 0, times the scale: [Hq, D]. */
export function sparseQueries(
  q: Float32Array,
  heads: number,
  kvHeads: number,
  components: number,
  scale = coverageScale,
): Float32Array {
  const dim = q.length / heads;
  const group = heads / kvHeads;
  const sparse = new Float32Array(q.length);
  for (let kv = 0; kv < kvHeads; kv++) {
    const sums = new Float32Array(dim);
    for (let i = kv * group * dim; i < (kv + 1) * group * dim; i++) sums[i % dim] += Math.abs(q[i]);
    const chosen = largest(sums, components);
    for (let head = kv * group; head < (kv + 1) * group; head++) {
      const own = q.subarray(head * dim, (head + 1) * dim);
      const total = own.reduce((sum, x) => sum + Math.abs(x), 0);
      const covered = chosen.reduce((sum, d) => sum + Math.abs(own[d]), 0);
      const factor = covered > 0 ? scale(covered / total) : 0;
      for (const d of chosen) sparse[head * dim + d] = own[d] * factor;
    }
  }
  return sparse;
}

/** Share of a row's softmax that falls on the entries: alpha. */
export function keptMass(logits: Float32Array, entries: Int32Array): number {
  return Math.min(1, Math.exp(logSumExp(Float32Array.from(entries, (i) => logits[i])) - logSumExp(logits)));
}
