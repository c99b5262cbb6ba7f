/** Eigenvalues of a symmetric matrix, largest first, and their unit vectors as columns of `vectors` [n, n]. */
export interface Eigen {
  readonly values: Float64Array;
  readonly vectors: Float64Array;
}

/**
 * All eigenvectors of a symmetric matrix [n, n] by Jacobi's rotations, to rounding. Time grows with n cubed: a second or
 * so for n = 256, minutes above 1000.
 */
export function symmetricEigen(matrix: Float64Array): Eigen {
  const n = Math.sqrt(matrix.length);
  const a = matrix.slice();
  // rows of v become the vectors
  const v = new Float64Array(n * n);
  for (let i = 0; i < n; i++) v[i * n + i] = 1;
  const total = a.reduce((sum, x) => sum + x * x, 0);
  for (let sweep = 0; sweep < 60; sweep++) {
    let off = 0;
    for (let p = 0; p < n; p++) for (let q = p + 1; q < n; q++) off += a[p * n + q] ** 2;
    if (off <= 1e-26 * total) break;
    for (let p = 0; p < n; p++)
      for (let q = p + 1; q < n; q++) {
        const apq = a[p * n + q];
        if (apq === 0) continue;
        const theta = (a[q * n + q] - a[p * n + p]) / (2 * apq);
        const t = (theta >= 0 ? 1 : -1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
        const c = 1 / Math.sqrt(t * t + 1);
        turnColumns(a, n, p, q, c, t * c);
        turnRows(a, n, p, q, c, t * c);
        turnRows(v, n, p, q, c, t * c);
      }
  }
  const order = Array.from({ length: n }, (_, i) => i).sort((i, j) => a[j * n + j] - a[i * n + i]);
  const vectors = new Float64Array(n * n);
  for (const [column, from] of order.entries()) for (let i = 0; i < n; i++) vectors[i * n + column] = v[from * n + i];
  return { values: Float64Array.from(order, (i) => a[i * n + i]), vectors };
}

function turnRows(m: Float64Array, n: number, p: number, q: number, c: number, s: number): void {
  for (let i = 0, x = p * n, y = q * n; i < n; i++, x++, y++) {
    const [a, b] = [m[x], m[y]];
    m[x] = c * a - s * b;
    m[y] = s * a + c * b;
  }
}

function turnColumns(m: Float64Array, n: number, p: number, q: number, c: number, s: number): void {
  for (let i = 0, x = p, y = q; i < n; i++, x += n, y += n) {
    const [a, b] = [m[x], m[y]];
    m[x] = c * a - s * b;
    m[y] = s * a + c * b;
  }
}

/** Adds x x^T to sums [n, n]: one triangle and the diagonal; `mirror` fills the other. */
export function addOuter(sums: Float64Array, x: ArrayLike<number>): void {
  const n = x.length;
  for (let i = 0; i < n; i++) {
    const xi = x[i];
    if (xi !== 0) for (let j = i; j < n; j++) sums[i * n + j] += xi * x[j];
  }
}

/** Makes a matrix of which `addOuter` filled one triangle symmetric. */
export function mirror(sums: Float64Array): Float64Array {
  const n = Math.sqrt(sums.length);
  for (let i = 0; i < n; i++) for (let j = 0; j < i; j++) sums[i * n + j] = sums[j * n + i];
  return sums;
}

/** The first `count` columns of vectors [n, n] as float32 [n, count]. */
export function firstColumns(vectors: Float64Array, count: number): Float32Array {
  const n = Math.sqrt(vectors.length);
  return Float32Array.from({ length: n * count }, (_, i) => vectors[Math.floor(i / count) * n + (i % count)]);
}

/**
 * x [n] in place onto the span of the first `count` columns of a basis [n, columns]: basis basis^T x. The numbers in
 * between, basis^T x, are what a cache would hold.
 */
export function projectOnto(x: Float32Array, basis: Float32Array, columns: number, count = columns): void {
  const latent = new Float64Array(count);
  for (let i = 0; i < x.length; i++)
    if (x[i] !== 0) for (let c = 0; c < count; c++) latent[c] += basis[i * columns + c] * x[i];
  for (let i = 0; i < x.length; i++) {
    let sum = 0;
    for (let c = 0; c < count; c++) sum += basis[i * columns + c] * latent[c];
    x[i] = sum;
  }
}
