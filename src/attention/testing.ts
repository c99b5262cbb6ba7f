import type { PlainRows } from "./plain.js";

/** Seeded normal numbers, for tests. */
export function normals(seed: number): (count: number) => Float32Array {
  let state = seed >>> 0;
  const uniform = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state + 0.5) / 4294967296;
  };
  return (count) =>
    Float32Array.from({ length: count }, () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
}

/** Random projections of T tokens. */
export function randomRows(
  tokens: number,
  shape: { heads: number; kvHeads: number; headDim: number },
  seed = 1,
): PlainRows {
  const next = normals(seed);
  const kv = tokens * shape.kvHeads * shape.headDim;
  return { q: next(tokens * shape.heads * shape.headDim), k: next(kv), v: next(kv) };
}

/** Rows [from, to) of projections. */
export function sliceRows(rows: PlainRows, tokens: number, from: number, to: number): PlainRows {
  const cut = (x: Float32Array) => x.slice((x.length / tokens) * from, (x.length / tokens) * to);
  return { q: cut(rows.q), k: cut(rows.k), v: cut(rows.v) };
}

/** Largest absolute difference. */
export function maxDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) return Number.POSITIVE_INFINITY;
  let max = 0;
  for (let i = 0; i < a.length; i++) max = Math.max(max, Math.abs(a[i] - b[i]));
  return Number.isNaN(max) ? Number.POSITIVE_INFINITY : max;
}
