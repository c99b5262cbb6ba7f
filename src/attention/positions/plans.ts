import { z } from "zod";
import type { ModelShape, RotaryPlan } from "../../engine/hooks.js";
import { FoveaError } from "../../error.js";

/** The base of rotary frequencies: a number, or the model's own. */
export const baseParameter = () => z.union([z.literal("own"), z.number().gt(1)]);
export type Base = z.output<ReturnType<typeof baseParameter>>;

/**
 * Plans made from the model's own, one for each key: the engine keeps a table of cos and sin per plan, so a method has to
 * return the same object at every step.
 */
export function plansOf(): (own: RotaryPlan, key: string, make: () => RotaryPlan) => RotaryPlan {
  const made = new WeakMap<RotaryPlan, Map<string, RotaryPlan>>();
  return (own, key, make) => {
    const plans = made.get(own) ?? new Map<string, RotaryPlan>();
    made.set(own, plans);
    const plan = plans.get(key) ?? make();
    plans.set(key, plan);
    return plan;
  };
}

/** The base of a plan's frequencies, before any scaling. */
export function baseOf(plan: RotaryPlan): number {
  return plan.base ?? (plan.inverse[0] / plan.inverse[1]) ** (plan.dims / 2);
}

/** Inverse frequencies of a base, base^(-2i/dims): [dims / 2]. The model's own are taken as they are, scaled or not. */
export function inverseOf(plan: RotaryPlan, base: Base): Float32Array {
  if (base === "own") return plan.inverse;
  return Float32Array.from({ length: plan.dims / 2 }, (_, i) => base ** ((-2 * i) / plan.dims));
}

/** max(1, ln(p + 1) / ln(c)): factor on a query at position p of a model trained at c tokens. */
export function logScale(position: number, trained: number): number {
  return Math.max(1, Math.log(position + 1) / Math.log(trained));
}

/** Throws `unsupported` for a model that does not rotate queries and keys. */
export function needsRotary(name: string, model: ModelShape): void {
  if (!model.rotary)
    throw new FoveaError("unsupported", `${name} changes rotary positions, and this model has none`, {
      hint: "streaming-llm(positions=true) and eviction methods work with positions of every kind",
    });
}
