/**
 * How unlike the text is on both sides of each gap: 1 - cosine of the mean keys of `side` tokens before and after it. Keys
 * [n, width]; entry i is the gap before token i. 0 nearer than 2 * side to either end.
 */
export function boundaryScores(keys: Float32Array, width: number, side: number): Float32Array {
  const n = keys.length / width;
  const scores = new Float32Array(n);
  const left = new Float64Array(width);
  const right = new Float64Array(width);
  for (let gap = 2 * side; gap <= n - 2 * side; gap++) {
    if (gap === 2 * side)
      for (let i = 0; i < side; i++)
        for (let d = 0; d < width; d++) {
          left[d] += keys[(gap - 1 - i) * width + d];
          right[d] += keys[(gap + i) * width + d];
        }
    else
      for (let d = 0; d < width; d++) {
        const crossing = keys[(gap - 1) * width + d];
        left[d] += crossing - keys[(gap - 1 - side) * width + d];
        right[d] += keys[(gap - 1 + side) * width + d] - crossing;
      }
    let [dot, a, b] = [0, 0, 0];
    for (let d = 0; d < width; d++) {
      dot += left[d] * right[d];
      a += left[d] * left[d];
      b += right[d] * right[d];
    }
    scores[gap] = a > 0 && b > 0 ? 1 - dot / Math.sqrt(a * b) : 0;
  }
  return scores;
}

/** What a matrix of attention says of boundaries: what a predictor is trained towards. */
export interface BoundaryLabels {
  /** [n, n], row-major: causal weights, mean over heads. */
  readonly weights: Float32Array;
  readonly side: number;
}

/**
 * ratio of what later rows give to the `side` tokens before a gap and to those after it, the larger over the smaller; entry
 * i is the gap before token i. 0 nearer than 2 * side to either end. Topic changes peak.
 */
export function boundaryLabels({ weights, side }: BoundaryLabels): Float32Array {
  const n = Math.sqrt(weights.length);
  const ratios = new Float32Array(n);
  for (let gap = 2 * side; gap <= n - 2 * side; gap++) {
    let [past, future] = [0, 0];
    for (let row = gap + side; row < n; row++)
      for (let i = 0; i < side; i++) {
        past += weights[row * n + gap - 1 - i];
        future += weights[row * n + gap + i];
      }
    ratios[gap] = (Math.max(past, future) + 1e-6) / (Math.min(past, future) + 1e-6);
  }
  return ratios;
}

/** At most `most` gaps above `threshold`, the best first, none nearer than `apart` to a better one; ascending. */
export function chooseBoundaries(
  scores: Float32Array,
  { threshold, apart, most }: { readonly threshold: number; readonly apart: number; readonly most: number },
): number[] {
  const candidates = Array.from(scores.keys()).filter((i) => i > 0 && scores[i] > threshold);
  candidates.sort((a, b) => scores[b] - scores[a] || a - b);
  const chosen: number[] = [];
  for (const gap of candidates) {
    if (chosen.length === most) break;
    if (chosen.every((other) => Math.abs(other - gap) >= apart)) chosen.push(gap);
  }
  return chosen.sort((a, b) => a - b);
}
