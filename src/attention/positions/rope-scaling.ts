import { z } from "zod";
import type { AttentionStep, LogBias, ModelShape, PositionStep, RotaryPlan } from "../../engine/hooks.js";
import { FoveaError } from "../../error.js";
import { alibiSlopes, frequencies, longropeAttention, type RotaryScaling, yarnAttention } from "../../models/index.js";
import { method } from "../method.js";
import { baseOf, needsRotary, plansOf } from "./plans.js";

const TYPES = ["yarn", "linear", "ntk", "dynamic", "llama3", "longrope", "proportional", "factors", "alibi"] as const;
const divisors = () => z.union([z.number().positive(), z.array(z.number().positive()).min(1)]);

const parameters = z.object({
  type: z.enum(TYPES).default("yarn").describe("rule by which frequencies change"),
  factor: z.number().min(1).default(4).describe("how much longer texts are (s); the alpha of ntk"),
  original: z.int().min(2).optional().describe("length that the model was trained at (L0); default its context"),
  betaFast: z.number().positive().default(32).describe("yarn: rotations within L0 above which a frequency stays"),
  betaSlow: z.number().positive().default(1).describe("yarn: rotations within L0 below which it is divided"),
  truncate: z.boolean().default(true).describe("yarn: round the range of the ramp"),
  attention: z.number().positive().optional().describe("yarn, longrope: factor on cos and sin; default by factor"),
  low: z.number().positive().default(1).describe("llama3: low_freq_factor"),
  high: z.number().positive().default(4).describe("llama3: high_freq_factor"),
  short: divisors().default(1).describe("longrope: divisors of each frequency up to L0; a number stands for all"),
  long: divisors().optional().describe("longrope beyond L0, factors: divisors of each frequency"),
  partial: z.number().positive().max(1).default(1).describe("proportional: share of pairs that rotate"),
});
type Parameters = z.output<typeof parameters>;

/**
 * Rotary scaling: the inverse frequencies of every layer are changed so that the angles of a longer text are such as the
 * model was trained on. What the rules do stands in models/rotary.ts, where a checkpoint's own scaling is read.
 */
export const ropeScaling = method({
  name: "rope-scaling",
  family: "positions",
  does: "Stretches rotary positions to longer texts: linear, NTK, dynamic, YaRN, llama3, LongRoPE; or ALiBi instead.",
  paper: {
    title: "YaRN: Efficient Context Window Extension of Large Language Models (and the rules before and after it)",
    venue: "ICLR 2024",
    url: "https://github.com/jquesnelle/yarn",
  },
  cost: "none: other tables of cos and sin; alibi adds one number per head and key",
  facts: "modeling_rope_utils.py of Hugging Face's transformers; ALiBi by BLOOM's rule",
  deviations: [
    "frequencies change from what the checkpoint has, its own scaling included; transformers replaces that",
    "dynamic and longrope choose by the length that a sequence begins with and stay: cached keys never mix two rules",
    "alibi on a model trained with rotary positions needs training to be of use",
  ],
  exact: { factor: 1 },
  trials: [
    { parameters: { original: 64 }, uniform: true },
    { parameters: { type: "linear", factor: 2 }, uniform: true },
    { parameters: { type: "dynamic", factor: 2, original: 32 } },
    { parameters: { type: "longrope", long: 3, original: 32 } },
    { parameters: { type: "alibi" }, uniform: true },
  ],
  status: "experimental",
  parameters,
  scope: "layers",
  hooks: ["position", "scores"],
  beyondContext: ({ type, factor, long }) => type === "alibi" || factor > 1 || long !== undefined,
  check(model, params) {
    needsRotary("rope-scaling", model);
    if ((params.type === "longrope" || params.type === "factors") && params.long === undefined)
      throw new FoveaError("bad-input", `rope-scaling: type ${params.type} needs the divisors of its frequencies`, {
        hint: "give `long` as a list with one number for each rotated pair, or one number for all",
      });
    if (params.high <= params.low)
      throw new FoveaError("bad-input", `rope-scaling: high is ${params.high}; expected more than low (${params.low})`);
  },
  create(params) {
    const plans = plansOf();
    const position = ({ plan, length, model }: PositionStep) => {
      if (!plan) return undefined;
      const byLength = params.type === "dynamic" || params.type === "longrope";
      return { plan: plans(plan, byLength ? `${length}` : "", () => scaledPlan(plan, params, model, length)) };
    };
    return params.type === "alibi" ? { position, bias: alibiBias } : { position };
  },
});

/** A plan under a rule: each frequency and the multiplier change by the ratio that the rule has to plain rotary. */
export function scaledPlan(plan: RotaryPlan, params: Parameters, model: ModelShape, length: number): RotaryPlan {
  if (params.type === "alibi") return { ...plan, inverse: new Float32Array(plan.inverse.length), multiplier: 1 };
  const base = baseOf(plan);
  const plain = frequencies(base, plan.dims, { type: "default" }, length).inverse;
  const { inverse, multiplier } = frequencies(base, plan.dims, scalingOf(params, plan.dims, model), length);
  return {
    ...plan,
    inverse: plan.inverse.map((f, i) => f * (inverse[i] / plain[i])),
    multiplier: plan.multiplier * multiplier,
  };
}

function scalingOf(params: Parameters, dims: number, model: ModelShape): RotaryScaling {
  const { type, factor, original = model.maxPositions, betaFast, betaSlow, truncate } = params;
  const list = (given: number | number[]) => listOf(given, dims / 2);
  switch (type) {
    case "yarn":
      return {
        type,
        factor,
        original,
        betaFast,
        betaSlow,
        truncate,
        attention: params.attention ?? yarnAttention(factor),
      };
    case "ntk":
      return { type, alpha: factor };
    case "dynamic":
      return { type, factor, original };
    case "llama3":
      return { type, factor, original, lowFrequency: params.low, highFrequency: params.high };
    case "longrope": {
      const attention = params.attention ?? longropeAttention(factor, original);
      return { type, short: list(params.short), long: list(params.long ?? 1), original, attention };
    }
    case "proportional":
      return { type, factor, pairs: Math.floor((params.partial * dims) / 2) };
    case "factors":
      return { type, factors: list(params.long ?? 1) };
    default:
      return { type: "linear", factor };
  }
}

function listOf(given: number | number[], pairs: number): number[] {
  if (typeof given === "number") return new Array<number>(pairs).fill(given);
  if (given.length === pairs) return given;
  throw new FoveaError("bad-input", `rope-scaling: ${given.length} divisors are given; this model has ${pairs} pairs`);
}

/** ALiBi: -slope (i - j), up to a constant of the row, which the softmax does not see: [Hq, S]. */
function alibiBias({ model, view, positions, rows }: AttentionStep): LogBias {
  const { heads, kvHeads } = model;
  const slopes = alibiSlopes(heads);
  const keys = Math.max(...Array.from({ length: kvHeads }, (_, kv) => view.length(kv)));
  const data = new Float32Array(heads * keys);
  for (let h = 0; h < heads; h++) {
    const at = view.positions(Math.floor((h * kvHeads) / heads));
    for (let i = 0; i < at.length; i++) data[h * keys + i] = slopes[h] * (at[i] - positions[rows - 1]);
  }
  return { data, heads, rows: 0 };
}
