/** z [keys]: sums over heads of their softmax over candidates [from, to) of `factor` times logits [heads, keys]. */
export function softVote(
  logits: Float32Array,
  heads: number,
  keys: number,
  from: number,
  to: number,
  factor = 1,
): Float32Array {
  const z = new Float32Array(keys);
  for (let at = 0; at < heads * keys; at += keys) {
    let max = Number.NEGATIVE_INFINITY;
    for (let i = at + from; i < at + to; i++) max = Math.max(max, logits[i]);
    let sum = 0;
    for (let i = at + from; i < at + to; i++) sum += Math.exp((logits[i] - max) * factor);
    for (let i = from; i < to; i++) z[i] += Math.exp((logits[at + i] - max) * factor) / sum;
  }
  return z;
}

/** Each value the largest within half of `width` to both sides. */
export function pooled(z: Float32Array, width: number): Float32Array {
  if (width === 1) return z;
  const half = width >> 1;
  return z.map((_, i) => z.subarray(Math.max(0, i - half), i + half + 1).reduce((a, b) => Math.max(a, b)));
}

/** Cosine of two vectors. */
export function cosine(a: Float32Array, b: Float32Array): number {
  let [dot, x, y] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    dot += a[i] * b[i];
    x += a[i] * a[i];
    y += b[i] * b[i];
  }
  return dot / Math.sqrt(x * y);
}
