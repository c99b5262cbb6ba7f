import { z } from "zod";

/** A budget of tokens: a whole number of them, or a share of the text below 1 (`1/8`). */
export function budget(least = 1) {
  const bounded = least === 0 ? z.number().min(0) : z.number().gt(0);
  return bounded.refine((x) => x < 1 || Number.isInteger(x), "expected whole tokens, or a share below 1 such as 1/8");
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
  const bits = new Int32Array(values.buffer, values.byteOffset, values.length);
  const { least, ties } = kthLargest(bits, count, from, to);
  const chosen = new Int32Array(count);
  let left = ties;
  for (let i = from, n = 0; n < count; i++) {
    const key = orderOf(bits[i]);
    if (key > least || (key === least && left-- > 0)) chosen[n++] = i;
  }
  return chosen;
}

/** A float's bits as an integer of the same order; -0 counts as 0. */
function orderOf(bits: number): number {
  return bits >= 0 ? bits : -(bits & 0x7fffffff);
}

const COUNTS = new Uint32Array(2048);
/** Shifts and bits of the three digits of a key, highest first. */
const DIGITS = [
  [21, 11],
  [10, 11],
  [0, 10],
] as const;

/**
 * The `count`-th largest key, digit by digit, without sorting: a choice among thousands of scores is made at every token.
 * `ties`: how many keys equal to it belong to the largest.
 */
function kthLargest(bits: Int32Array, count: number, from: number, to: number): { least: number; ties: number } {
  let prefix = 0;
  let ties = count;
  let above = 32;
  for (const [shift, width] of DIGITS) {
    const mask = (1 << width) - 1;
    COUNTS.fill(0, 0, mask + 1);
    for (let i = from; i < to; i++) {
      // the sign bit flipped: unsigned order
      const key = orderOf(bits[i]) ^ 0x80000000;
      if (above < 32 && key >>> above !== prefix) continue;
      COUNTS[(key >>> shift) & mask]++;
    }
    let digit = mask;
    while (COUNTS[digit] < ties) ties -= COUNTS[digit--];
    prefix = ((prefix << width) | digit) >>> 0;
    above = shift;
  }
  return { least: (prefix ^ 0x80000000) | 0, ties };
}
