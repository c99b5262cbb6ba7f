/** Sums over the far keys of a KV head, of which mean and covariance are made. */
export interface KeyMoments {
  count: number;
  readonly sum: Float64Array; // [D]
  readonly outer: Float64Array; // [D, D]
}

/** Moments of no keys. */
export function noMoments(dim: number): KeyMoments {
  return { count: 0, sum: new Float64Array(dim), outer: new Float64Array(dim * dim) };
}

/** Adds keys [n, D]. */
export function addKeys(moments: KeyMoments, keys: Float32Array): void {
  const { sum, outer } = moments;
  const dim = sum.length;
  for (let at = 0; at < keys.length; at += dim, moments.count++)
    for (let i = 0; i < dim; i++) {
      sum[i] += keys[at + i];
      for (let j = 0; j < dim; j++) outer[i * dim + j] += keys[at + i] * keys[at + j];
    }
}

/** Mean [D] and covariance [D, D]. */
export function farModel({ count, sum, outer }: KeyMoments) {
  const mean = sum.map((x) => x / Math.max(1, count));
  const dim = mean.length;
  const covariance = outer.map((x, i) => x / Math.max(1, count) - mean[Math.floor(i / dim)] * mean[i % dim]);
  return { mean, covariance };
}

/** ln of the summed exp(scale q.k) of `count` keys: ln count + scale q.mean + scale^2 / 2 q'Cq. */
export function farLogMass(
  q: ArrayLike<number>,
  { mean, covariance }: ReturnType<typeof farModel>,
  count: number,
  scale: number,
): number {
  const dim = mean.length;
  let linear = 0;
  let quadratic = 0;
  for (let i = 0; i < dim; i++) {
    linear += q[i] * mean[i];
    for (let j = 0; j < dim; j++) quadratic += q[i] * q[j] * covariance[i * dim + j];
  }
  return Math.log(count) + scale * linear + (scale * scale * quadratic) / 2;
}

/** Near keys' share of the whole mass: sigmoid(lA - lB). */
export function nearShare(near: number, far: number): number {
  return 1 / (1 + Math.exp(far - near));
}

/** ln(e^a + e^b). */
export function logAdd(a: number, b: number): number {
  const max = Math.max(a, b);
  return max === Number.NEGATIVE_INFINITY ? max : max + Math.log(Math.exp(a - max) + Math.exp(b - max));
}
