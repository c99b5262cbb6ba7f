/**
 * The waveform of a rotary base: how strongly a head whose query and key agree attends over a distance, and where it
 * peaks and dips. Bases whose dips lie on one another's peaks see every distance between them. HARPE gives them to heads,
 * Attention Buckets to streams.
 */

/** w_b(m) = 2 / sqrt(D) * sum over j < D/2 of cos(m b^(-2j/D)), at m = from .. to - 1. */
export function waveform(base: number, dims: number, from: number, to: number): Float64Array {
  const wave = new Float64Array(to - from);
  for (let j = 0; j < dims / 2; j++) {
    const f = base ** ((-2 * j) / dims);
    for (let m = from; m < to; m++) wave[m - from] += Math.cos(m * f);
  }
  return wave.map((x) => (2 / Math.sqrt(dims)) * x);
}

/** Positions of a waveform's highest and lowest points. */
export interface Extrema {
  readonly peaks: readonly number[];
  readonly valleys: readonly number[];
}

/** Distances over which extrema are looked for, as the code of Attention Buckets has them. */
export const RANGE = { from: 1000, to: 4090 };
/** An extremum is one of the envelope: nothing beyond it within so many positions. */
const AHEAD = 500;
const MOST = 6;

/**
 * Extrema of the envelope: peaks from the left, each the maximum of the 500 positions after it and more than 50 behind
 * the last; valleys from the right, each the minimum of the 500 before it and more than 60 apart. At most six of each.
 */
export function extrema(base: number, dims: number): Extrema {
  const wave = waveform(base, dims, RANGE.from, RANGE.to);
  const mirrored = wave.toReversed().map((x) => -x);
  return {
    peaks: envelope(wave, 50).map((i) => RANGE.from + i),
    valleys: envelope(mirrored, 60)
      .map((i) => RANGE.to - 1 - i)
      .reverse(),
  };
}

function envelope(wave: Float64Array, apart: number): number[] {
  const found: number[] = [];
  for (let i = 1; i + 1 < wave.length && found.length < MOST; i++) {
    if (!(wave[i] > wave[i - 1] && wave[i] >= wave[i + 1])) continue;
    if (found.length > 0 && i - found[found.length - 1] <= apart) continue;
    let highest = true;
    for (let j = i + 1; j < Math.min(wave.length, i + AHEAD); j++) if (wave[j] > wave[i]) highest = false;
    if (highest) found.push(i);
  }
  return found;
}

/** Distance from a position to the nearest of some others; 0 where there are none. */
export function nearestDistance(position: number, others: readonly number[]): number {
  return others.length === 0 ? 0 : Math.min(...others.map((o) => Math.abs(o - position)));
}
