import type { RotaryPlan } from "../../engine/hooks.js";

/** Pairs [d_r / 2] that keep their position by their frequency alone, ascending. */
export function choosePairs(
  half: number,
  { rotary, pairs }: { readonly rotary: number; readonly pairs: "uniform" | "high" | "low" },
): number[] {
  const count = pairsKept(half, rotary);
  return Array.from({ length: count }, (_, i) =>
    pairs === "high" ? i : pairs === "low" ? half - count + i : Math.floor((i * half) / count),
  );
}

/** How many of the pairs of a head keep their position: at least one. */
export function pairsKept(half: number, rotary: number): number {
  return Math.max(1, Math.min(half, Math.round(rotary < 1 ? rotary * half : rotary / 2)));
}

/** The plan with frequency 0, no rotation, in all pairs but those kept for each KV head. */
export function partialPlan(plan: RotaryPlan, kept: readonly (readonly number[])[]): RotaryPlan {
  const half = plan.dims / 2;
  const inverse = new Float32Array(kept.length * half);
  for (const [head, pairs] of kept.entries()) for (const i of pairs) inverse[head * half + i] = plan.inverse[i];
  return { ...plan, inverse, groups: kept.length };
}
