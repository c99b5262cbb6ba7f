import { FoveaError } from "../../error.js";
import { type Extrema, extrema } from "./waveform.js";

/** Peaks and valleys within so many positions cover each other. */
const TOLERANCE = 3;

/**
 * The paper's search for N bases, offline: from the pair whose peaks and valleys cover one another best, always the base
 * that covers most of the set's; ties go to the closer ones. Ascending. Stay within one to three times the base that a
 * model was trained with.
 */
export function bucketBases(options: {
  readonly dims: number;
  readonly count: number;
  readonly min?: number;
  readonly max?: number;
  readonly step?: number;
}): number[] {
  const { dims, count, min = 10000, max = 30000, step = 500 } = options;
  const size = Math.floor((max - min) / step + 1e-9) + 1;
  if (!(size >= count && count >= 1 && size <= 4096))
    throw new FoveaError(
      "bad-input",
      `${count} bases of the ${size} between ${min} and ${max}; expected 1 to ${size}`,
      {
        hint: "change min, max or step; at most 4096 bases are searched",
      },
    );
  const left = Array.from({ length: size }, (_, i) => min + i * step).map((base) => ({ base, ...extrema(base, dims) }));
  if (count === 1) return [min];
  let best: readonly [number, number] = [0, 1];
  for (let a = 0; a < size; a++)
    for (let b = a + 1; b < size; b++) if (covers(left[b], left[a], left[best[1]], left[best[0]])) best = [a, b];
  const chosen = [left[best[0]], left[best[1]]];
  let set = merged(chosen[0], chosen[1]);
  for (const taken of chosen) left.splice(left.indexOf(taken), 1);
  while (chosen.length < count) {
    const next = left.reduce((a, b) => (covers(b, set, a, set) ? b : a));
    left.splice(left.indexOf(next), 1);
    chosen.push(next);
    set = merged(set, next);
  }
  return chosen.map((c) => c.base).sort((a, b) => a - b);
}

/** Whether `a` covers `set` better than `b` covers `other`. */
function covers(a: Extrema, set: Extrema, b: Extrema, other: Extrema): boolean {
  const [x, y] = [cover(a, set), cover(b, other)];
  return x.pairs > y.pairs || (x.pairs === y.pairs && x.error < y.error);
}

function cover(own: Extrema, set: Extrema): { pairs: number; error: number } {
  const gaps = [
    ...own.peaks.flatMap((p) => set.valleys.map((v) => p - v)),
    ...own.valleys.flatMap((v) => set.peaks.map((p) => v - p)),
  ].filter((gap) => Math.abs(gap) <= TOLERANCE);
  return { pairs: gaps.length, error: gaps.reduce((sum, gap) => sum + gap * gap, 0) / Math.max(1, gaps.length) };
}

/** Both sets of points, without positions that are a peak and a valley now. */
function merged(a: Extrema, b: Extrema): Extrema {
  const peaks = [...new Set([...a.peaks, ...b.peaks])];
  const valleys = [...new Set([...a.valleys, ...b.valleys])];
  return { peaks: peaks.filter((p) => !valleys.includes(p)), valleys: valleys.filter((v) => !peaks.includes(v)) };
}
