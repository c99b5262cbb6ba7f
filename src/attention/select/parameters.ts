import { z } from "zod";
import { budget, budgetTokens } from "../budget.js";
import { GROUP_REDUCTIONS } from "./groups.js";

/**
 * Pieces of the parameters that selecting methods share, so that they have the same names, checks and words everywhere:
 *
 *     const parameters = z.object({ ...readingBudget(1024), ...denseLayers(2), ...groupReduction("none"), ...refresh() });
 */

/** `tokens`, the budget of reading, and `share`, the same as a share of the text. */
export function readingBudget(tokens: number, what = "tokens read per head and step, sinks and newest ones included") {
  return {
    tokens: budget().default(tokens).describe(what),
    share: z
      .number()
      .gt(0)
      .max(1)
      .optional()
      .describe("the same as a share of the text, for example 1/8; wins over tokens"),
  };
}

/** Tokens of a reading budget in a text of `length` tokens. */
export function readTokens(
  { tokens, share }: { readonly tokens: number; readonly share?: number },
  length: number,
): number {
  if (share === undefined) return budgetTokens(tokens, length);
  return share === 1 ? length : budgetTokens(share, length);
}

/** `denseLayers`: how many first layers stay dense, or which layers do. */
export function denseLayers(first: number | readonly number[]) {
  return {
    denseLayers: z
      .union([z.int().min(0), z.array(z.int())])
      .default(typeof first === "number" ? first : [...first])
      .describe("layers that read everything: how many first ones, or a list (negative ones count from the last)"),
  };
}

/** Whether a layer reads everything. */
export function isDense(layer: number, dense: number | readonly number[], layers: number): boolean {
  if (typeof dense === "number") return layer < dense;
  return dense.some((l) => (l < 0 ? l + layers : l) === layer);
}

/** `group`: how the scores of query heads that share keys become one choice. */
export function groupReduction(how: (typeof GROUP_REDUCTIONS)[number]) {
  return {
    group: z
      .enum(GROUP_REDUCTIONS)
      .default(how)
      .describe("one choice for the query heads of a KV head, by this of their scores; none: each chooses for itself"),
  };
}

/** `refresh`: how many steps a choice holds. */
export function refresh(steps = 1) {
  return {
    refresh: z
      .int()
      .min(1)
      .default(steps)
      .describe("decode steps that a choice holds; the newest tokens are read besides"),
  };
}

/** `sinks` and `window`: what is read whatever its score. */
export function forcedTokens(sinks: number, window: number) {
  return {
    sinks: z.int().min(0).default(sinks).describe("first tokens that are always read"),
    window: z.int().min(0).default(window).describe("newest tokens that are always read"),
  };
}
