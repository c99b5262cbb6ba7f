import { FoveaError } from "../error.js";
import type { SamplingOptions } from "./api.js";

/** A seeded source of uniform numbers in [0, 1) whose whole state is one 32-bit integer. */
export class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = seed >>> 0;
  }
  get state(): number {
    return this.#state;
  }
  next(): number {
    // mulberry32: one add, two multiplies; period 2^32, enough for sampling
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  }
}

/** Index of the largest value; the lower index wins a tie. */
export function argmax(values: Float32Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

/** log(sum(exp(values))), computed about the maximum. */
export function logSumExp(values: Float32Array): number {
  let max = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < values.length; i++) if (values[i] > max) max = values[i];
  if (max === Number.NEGATIVE_INFINITY) return max;
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += Math.exp(values[i] - max);
  return max + Math.log(sum);
}

/** Throws bad-input on options out of range. */
export function checkSampling(options: SamplingOptions): void {
  const check = (name: string, value: number | undefined, ok: (v: number) => boolean, expected: string) => {
    if (value !== undefined && !(Number.isFinite(value) && ok(value)))
      throw new FoveaError("bad-input", `${name} is ${value}; expected ${expected}`);
  };
  check("temperature", options.temperature, (v) => v >= 0, "a number of 0 (greedy) or more");
  check("topK", options.topK, (v) => Number.isInteger(v) && v >= 0, "a whole number of 0 (off) or more");
  check("topP", options.topP, (v) => v > 0 && v <= 1, "a number above 0 and at most 1");
  check("minP", options.minP, (v) => v >= 0 && v <= 1, "a number from 0 to 1");
  check("repetitionPenalty", options.repetitionPenalty, (v) => v > 0, "a number above 0 (1 is off)");
  check("seed", options.seed, (v) => Number.isInteger(v), "a whole number");
}

/**
 * Chooses the next token from logits [V] (edited in place). Order: repetition penalty (over `seen`; divides positive
 * and multiplies negative logits), temperature, top-k, top-p, min-p. temperature 0 takes the largest.
 */
export function sample(logits: Float32Array, seen: Iterable<number>, options: SamplingOptions, random: Random): number {
  const { temperature = 0, topK = 0, topP = 1, minP = 0, repetitionPenalty = 1 } = options;
  if (repetitionPenalty !== 1) {
    for (const id of new Set(seen))
      logits[id] = logits[id] > 0 ? logits[id] / repetitionPenalty : logits[id] * repetitionPenalty;
  }
  if (temperature === 0 || topK === 1) return argmax(logits);
  const max = logits[argmax(logits)];
  const order: number[] = [];
  // weights under e^-30 of the largest never matter; leaving them out keeps the sort short
  for (let i = 0; i < logits.length; i++) if ((logits[i] - max) / temperature > -30) order.push(i);
  order.sort((a, b) => logits[b] - logits[a] || a - b);
  if (topK > 0 && order.length > topK) order.length = topK;
  const weights = order.map((i) => Math.exp((logits[i] - max) / temperature));
  const total = weights.reduce((a, b) => a + b, 0);
  let kept = order.length;
  if (topP < 1) {
    let sum = 0;
    for (kept = 0; kept < order.length && sum < topP * total; kept++) sum += weights[kept];
  }
  if (minP > 0) while (kept > 1 && weights[kept - 1] < minP * weights[0]) kept--;
  let sum = 0;
  for (let i = 0; i < kept; i++) sum += weights[i];
  let at = random.next() * sum;
  for (let i = 0; i < kept; i++) {
    at -= weights[i];
    if (at < 0) return order[i];
  }
  return order[kept - 1];
}
