import type { Reducer } from "../../engine/api.js";
import { Random } from "../../engine/sampling.js";
import { FoveaError } from "../../error.js";
import type { HeadTable } from "../observers/head-table.js";
import { rowMean, summed } from "../observers/row-mean.js";

/**
 * Functional scores of heads by their attention alone, in 0..1, reduced while rows stream (Attention Heads of Large
 * Language Models: A Survey, arXiv:2409.03752). A pattern is no proof of a function: confirm with `knock-out`.
 */

/** Mean weight on the token `offset` places back, over the rows that have one. offset 1: previous-token heads. */
export function offsetScore(offset: number): Reducer<HeadTable> {
  if (!Number.isInteger(offset) || offset < 0)
    throw new FoveaError("bad-input", `an offset of ${offset} tokens; expected a whole number of at least 0`);
  return rowMean(`offset-${offset}`, { rows: { from: offset } }, ({ weights, keys, position }) =>
    weightAt(weights, keys, position - offset),
  );
}

/** Mean weight on the token before. */
export const previousTokenScore = (): Reducer<HeadTable> => offsetScore(1);

/** Where the two copies of a repeated probe stand: tokens [start, start + length) twice. See `repeatedProbe`. */
export interface Repeated {
  readonly start: number;
  readonly length: number;
}

/**
 * Induction (prefix matching) on a probe that repeats itself: mean weight, over the second copy's rows, on the token
 * after the earlier occurrence of the row's own token.
 */
export function inductionScore({ start, length }: Repeated): Reducer<HeadTable> {
  const rows: [number, number] = [start + length, start + 2 * length];
  return rowMean("induction", { rows }, ({ weights, keys, position }) =>
    weightAt(weights, keys, position - length + 1),
  );
}

/** Mean weight, over the second copy's rows, on the earlier occurrence of the row's own token. */
export function duplicateTokenScore({ start, length }: Repeated): Reducer<HeadTable> {
  const rows: [number, number] = [start + length, start + 2 * length];
  return rowMean("duplicate-token", { rows }, ({ weights, keys, position }) =>
    weightAt(weights, keys, position - length),
  );
}

/** A needle's place and the answer's in a text of tokens. */
export interface RetrievalCase {
  /** The whole text: document, question and answer. */
  readonly ids: readonly number[];
  /** Tokens of the document that hold the answer, [start, end). */
  readonly needle: readonly [start: number, end: number];
  /** First token of the answer, which runs to the end of `ids`. */
  readonly answer: number;
}

/**
 * Retrieval score (Retrieval Head Mechanistically Explains Long-Context Factuality, arXiv:2404.15574): the share of the
 * needle's tokens that a head copies, i.e. reads with its largest weight, inside the needle, in the very step that
 * writes that token. Rows of a text that holds the answer already are those of writing it greedily, if the model did.
 */
export function retrievalScore({ ids, needle: [start, end], answer }: RetrievalCase): Reducer<HeadTable> {
  if (!(0 <= start && start < end && end <= answer && answer < ids.length))
    throw new FoveaError(
      "bad-input",
      `a needle at tokens ${start} to ${end} and an answer from ${answer} on, in a text of ${ids.length} tokens`,
      { hint: "the needle stands before the answer, and both hold a token" },
    );
  const rows: [number, number] = [answer - 1, ids.length - 1];
  const mean = rowMean("retrieval", { rows }, ({ weights, keys, position }) => {
    let best = 0;
    for (let i = 1; i < keys.length; i++) if (weights[i] > weights[best]) best = i;
    const key = keys[best];
    return key >= start && key < end && ids[key] === ids[position + 1] ? 1 : 0;
  });
  // the mean is over the answer's tokens; the score over the needle's
  return summed(mean, (rows[1] - rows[0]) / (end - start));
}

/** The weight on one position; 0 where no entry stands there. Positions ascend. */
function weightAt(weights: Float32Array, keys: Int32Array, position: number): number {
  // without evictions entry i stands at position i
  if (keys[position] === position) return weights[position];
  const at = keys.indexOf(position);
  return at < 0 ? 0 : weights[at];
}

/**
 * A probe of random tokens that repeats itself: [first, r, r], r of `length` tokens. For induction and duplicate scores.
 *
 * @param from vocabulary ids that are drawn from, e.g. ordinary words only
 */
export function repeatedProbe(
  from: readonly number[],
  options: { length?: number; seed?: number; first?: number } = {},
): { ids: number[]; repeated: Repeated } {
  const { length = 50, seed = 1, first } = options;
  if (from.length < 2)
    throw new FoveaError("bad-input", `${from.length} tokens to draw a probe from; expected several`);
  const random = new Random(seed);
  const draw = (): number => from[Math.floor(random.next() * from.length)];
  const r = Array.from({ length }, draw);
  const begin = first === undefined ? [] : [first];
  return { ids: [...begin, ...r, ...r], repeated: { start: begin.length, length } };
}
