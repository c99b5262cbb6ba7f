import { FoveaError } from "../../error.js";

/** RULER's bar for a length that counts: what Llama-2-7B scores at 4096 tokens, in percent. */
export const RULER_BAR = 85.6;

/**
 * RULER's mean over lengths, with weights that rise (`long`) or fall (`short`) by equal steps from length to length.
 * @param scores length to score, in any order
 * @throws FoveaError `bad-input` without scores
 */
export function weightedMean(scores: ReadonlyMap<number, number>, favour: "long" | "short"): number {
  if (scores.size === 0)
    throw new FoveaError("bad-input", "a mean over lengths takes the score of one length at least, got none");
  const byLength = [...scores].sort(([a], [b]) => (favour === "long" ? a - b : b - a));
  const sum = byLength.reduce((total, [, score], i) => total + (i + 1) * score, 0);
  return sum / ((byLength.length * (byLength.length + 1)) / 2);
}
