import { z } from "zod";
import type { RotaryPlan } from "../../engine/hooks.js";
import { FoveaError } from "../../error.js";
import { method } from "../method.js";
import { type Base, baseOf, baseParameter, inverseOf, needsRotary, plansOf } from "./plans.js";
import { extrema, nearestDistance, RANGE } from "./waveform.js";

const parameters = z.object({
  min: baseParameter().default(1e6).describe("smallest base (b_min); `own` is the model's"),
  max: baseParameter().default(5e6).describe("largest base (b_max)"),
  stride: z.number().positive().default(30000).describe("spacing of the bases that the search chooses from (s)"),
  strategy: z
    .enum(["search", "ascending", "descending"])
    .default("search")
    .describe("bases whose peaks cover one another's valleys, or bases at even distances over the heads"),
  distance: z
    .enum(["nearest", "all"])
    .default("nearest")
    .describe("search: peaks against the nearest valley, or against all of them, as the paper prints it"),
});
type Parameters = z.output<typeof parameters>;

/**
 * HARPE: every key-value head has a rotary base of its own, the same set in every layer, ascending over the heads, chosen
 * so that what one head hardly sees another sees well.
 */
export const harpe = method({
  name: "harpe",
  family: "positions",
  does: "Gives every key-value head a rotary base of its own, so that heads complement one another over distances.",
  paper: {
    title:
      "Breaking the Stage Barrier: A Novel Single-Stage Approach to Long Context Extension for Large Language Models",
    venue: "COLING 2025",
  },
  needs: "training at the target length; attached to a model without it, it makes texts worse",
  cost: "none: tables of cos and sin per key-value head",
  facts: "the paper; the range and envelope of extrema from the code of Attention Buckets; no official code was found",
  deviations: [
    "one base for each key-value head, which its query heads share: a cached key has one rotation",
    "the search measures to the nearest extremum; distance=all is the sum over all pairs that the paper prints",
  ],
  exact: { min: "own", max: "own", strategy: "ascending" },
  trials: [
    { parameters: { strategy: "ascending" }, uniform: true },
    { parameters: { min: "own", max: 40000, strategy: "descending" }, uniform: true },
  ],
  status: "experimental",
  parameters,
  scope: "layers",
  hooks: ["position"],
  beyondContext: () => true,
  check: (model) => needsRotary("harpe", model),
  create(params) {
    const plans = plansOf();
    return {
      position: ({ plan, model }) =>
        plan ? { plan: plans(plan, "", () => headPlan(plan, headBases(plan, model.kvHeads, params))) } : undefined,
    };
  },
});

/** A plan with a base for each KV head. */
export function headPlan(plan: RotaryPlan, bases: readonly Base[]): RotaryPlan {
  const half = plan.dims / 2;
  const inverse = new Float32Array(bases.length * half);
  for (const [h, base] of bases.entries()) inverse.set(inverseOf(plan, base), h * half);
  return { ...plan, inverse, groups: bases.length };
}

function headBases(plan: RotaryPlan, count: number, params: Parameters): readonly Base[] {
  const { min, max, stride, strategy, distance } = params;
  if (min === "own" && max === "own") return new Array<Base>(count).fill("own");
  const [low, high] = [min, max].map((b) => (b === "own" ? baseOf(plan) : b));
  if (high < low)
    throw new FoveaError("bad-input", `harpe: max is ${high}; expected at least min, which is ${low}`, {
      hint: "give `max` above the model's own base",
    });
  if (strategy === "search") return searchBases({ dims: plan.dims, count, min: low, max: high, stride, distance });
  const bases = evenBases(low, high, count);
  return strategy === "ascending" ? bases : bases.reverse();
}

/** Bases at even distances: b_min + h (b_max - b_min) / (N - 1). */
export function evenBases(min: number, max: number, count: number): number[] {
  return Array.from({ length: count }, (_, h) => (count === 1 ? min : min + (h * (max - min)) / (count - 1)));
}

/**
 * HARPE's search: from b_min on, always the base of the grid b_min + k s whose peaks lie closest to the valleys of those
 * chosen and whose valleys lie closest to their peaks. Ascending. Throws bad-input where the grid is too small.
 */
export function searchBases(options: {
  readonly dims: number;
  readonly count: number;
  readonly min: number;
  readonly max: number;
  readonly stride: number;
  readonly distance?: "nearest" | "all";
}): number[] {
  const { dims, count, min, max, stride, distance = "nearest" } = options;
  const size = Math.floor((max - min) / stride + 1e-9);
  if (size + 1 < count || size > 4096)
    throw new FoveaError("bad-input", `harpe: ${size} bases lie between ${min} and ${max} at a stride of ${stride}`, {
      hint: `expected ${count - 1} to 4096: change min, max or stride`,
    });
  const left = Array.from({ length: size }, (_, i) => min + (i + 1) * stride).map((base) => ({
    base,
    ...extrema(base, dims),
  }));
  const chosen = [min];
  const { peaks, valleys } = extrema(min, dims);
  const [allPeaks, allValleys] = [[...peaks], [...valleys]];
  const apart = (own: readonly number[], others: readonly number[]) => {
    if (distance === "all") return own.reduce((all, x) => all + others.reduce((sum, o) => sum + Math.abs(o - x), 0), 0);
    // a mean, so that a base with few extrema is not the closest for that alone
    return own.length === 0 ? RANGE.to : own.reduce((sum, x) => sum + nearestDistance(x, others), 0) / own.length;
  };
  while (chosen.length < count) {
    const scores = left.map((c) => apart(c.peaks, allValleys) + apart(c.valleys, allPeaks));
    const best = scores.reduce((a, x, i) => (x < scores[a] ? i : a), 0);
    const [next] = left.splice(best, 1);
    chosen.push(next.base);
    allPeaks.push(...next.peaks);
    allValleys.push(...next.valleys);
  }
  return chosen.sort((a, b) => a - b);
}
