import { largest } from "../budget.js";

/** Accumulated scores of a KV head's entries, whose positions ascend. */
export interface Scores {
  positions: Int32Array;
  scores: Float32Array;
}

/** Adds each column's sum of weights [T, S] to scores [<= S]. */
export function addColumnSums(scores: Float32Array, weights: Float32Array, keys: number): void {
  for (let at = 0; at < weights.length; at += keys)
    for (let s = 0; s < scores.length; s++) scores[s] += weights[at + s];
}

/** Scores for entries at `positions`: those known go along, new entries begin at 0. */
export function carryScores(known: Scores | undefined, positions: Int32Array): Float32Array {
  const scores = new Float32Array(positions.length);
  if (known)
    for (let i = 0, j = 0; i < positions.length && j < known.positions.length; ) {
      if (positions[i] === known.positions[j]) scores[i++] = known.scores[j++];
      else if (positions[i] < known.positions[j]) i++;
      else j++;
    }
  return scores;
}

/** Of scored entries: the `heavy` largest among all but the last `recent`, and those last. Ascending. */
export function keptByScore(scores: Float32Array, heavy: number, recent: number): Int32Array {
  const split = Math.max(0, scores.length - recent);
  const chosen = largest(scores, heavy, 0, split);
  return Int32Array.from({ length: chosen.length + scores.length - split }, (_, i) =>
    i < chosen.length ? chosen[i] : split + i - chosen.length,
  );
}

/** Of no entries yet. */
export function emptyScores(): Scores {
  return { positions: new Int32Array(0), scores: new Float32Array(0) };
}

/**
 * One row of the simulation. `set` is the heavy set with its scores; `group` the row's full logits, one array [S] per
 * query head, masked in place: heavy tokens and those at a distance of `recent` or less stay. The new set: the
 * heavy - 1 best, and the row's own token; their weights over the full row are added.
 */
export function maskRow(
  set: Scores,
  group: readonly Float32Array[],
  position: number,
  entries: Int32Array,
  heavy: number,
  recent: number,
): Scores {
  const stay =
    set.positions.length >= heavy ? largest(set.scores, Math.max(0, heavy - 1)) : set.positions.map((_, i) => i);
  const positions = Int32Array.from({ length: stay.length + 1 }, (_, i) =>
    i < stay.length ? set.positions[stay[i]] : position,
  );
  const scores = Float32Array.from({ length: positions.length }, (_, i) => (i < stay.length ? set.scores[stay[i]] : 0));
  for (const logits of group) {
    let max = Number.NEGATIVE_INFINITY;
    for (const x of logits) if (x > max) max = x;
    let sum = 0;
    for (const x of logits) sum += Math.exp(x - max);
    for (let s = 0, i = 0; s < entries.length && entries[s] <= position; s++) {
      const inSet = i < positions.length && positions[i] === entries[s];
      if (inSet) scores[i++] += Math.exp(logits[s] - max) / sum;
      else if (position - entries[s] > recent) logits[s] = Number.NEGATIVE_INFINITY;
    }
  }
  return { positions, scores };
}
