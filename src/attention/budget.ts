import { z } from "zod";

/** A budget of tokens: a whole number of them, or a share of the text below 1 (`1/8`). */
export function budget(least = 1) {
  return z
    .number()
    .min(least === 0 ? 0 : Number.MIN_VALUE)
    .refine((x) => x < 1 || Number.isInteger(x), "expected whole tokens, or a share below 1 such as 1/8");
}

/** Tokens of a budget for a text of `length` tokens; shares are rounded down, but never to none. */
export function budgetTokens(value: number, length: number): number {
  return value > 0 && value < 1 ? Math.max(1, Math.floor(value * length)) : value;
}

/**
 * Indices of the `count` largest of values[from, to), ascending. Among equal values the lower index wins, so that a
 * choice never depends on how it was computed.
 */
export function largest(values: Float32Array, count: number, from = 0, to = values.length): Int32Array {
  if (count >= to - from) return Int32Array.from({ length: Math.max(0, to - from) }, (_, i) => from + i);
  if (count <= 0) return new Int32Array(0);
  const sorted = values.slice(from, to).sort();
  const least = sorted[sorted.length - count];
  let ties = count;
  for (let i = sorted.length - 1; i >= 0 && sorted[i] > least; i--) ties--;
  const chosen = new Int32Array(count);
  for (let i = from, n = 0; n < count; i++)
    if (values[i] > least || (values[i] === least && ties-- > 0)) chosen[n++] = i;
  return chosen;
}
