import type { AttentionStep } from "../../engine/hooks.js";
import type { HeadScores } from "./groups.js";
import { headLengths } from "./top-k.js";

/** Tokens of a page of the cache: what `{ pages }` selections count in. */
export const PAGE = 16;

/** Lower and upper bound of each channel in each page of keys: [pages, D] each. */
export interface KeyBounds {
  readonly lower: Float32Array;
  readonly upper: Float32Array;
}

/**
 * Elementwise minimum and maximum of keys [n, D] in pages of `size` consecutive ones; a last page with fewer counts
 * those only. The plain form: `LayerCache.bounds` reads them off the cache's pages.
 */
export function keyBounds(keys: Float32Array, dim: number, size = PAGE): KeyBounds {
  const pages = Math.ceil(keys.length / dim / size);
  const lower = new Float32Array(pages * dim).fill(Number.POSITIVE_INFINITY);
  const upper = new Float32Array(pages * dim).fill(Number.NEGATIVE_INFINITY);
  for (let i = 0; i < keys.length; i++) {
    const at = Math.floor(i / dim / size) * dim + (i % dim);
    if (keys[i] < lower[at]) lower[at] = keys[i];
    if (keys[i] > upper[at]) upper[at] = keys[i];
  }
  return { lower, upper };
}

/** Mean key of each page of `size` consecutive keys [n, D]: [pages, D]; a last page with fewer is the mean of those. */
export function keyMeans(keys: Float32Array, dim: number, size = PAGE): Float32Array {
  const n = keys.length / dim;
  const means = new Float32Array(Math.ceil(n / size) * dim);
  for (let i = 0; i < keys.length; i++) means[Math.floor(i / dim / size) * dim + (i % dim)] += keys[i];
  for (let p = 0; p * size < n; p++) {
    const count = Math.min(size, n - p * size);
    for (let d = p * dim; d < (p + 1) * dim; d++) means[d] /= count;
  }
  return means;
}

/**
 * The largest dot product that a key within a page's bounds can have with a query [D]: sum over d of
 * max(q_d lower_d, q_d upper_d); one a page. The plain form of `LayerCache.pageScores`.
 */
export function boundScores(q: Float32Array, { lower, upper }: KeyBounds): Float32Array {
  const dim = q.length;
  return Float32Array.from({ length: lower.length / dim }, (_, p) => {
    let sum = 0;
    for (let d = 0; d < dim; d++) sum += Math.max(q[d] * lower[p * dim + d], q[d] * upper[p * dim + d]);
    return sum;
  });
}

/** The same for all query heads of a step over their heads' keys: [Hq, pages], -Infinity where a head has fewer pages. */
export function pageBounds({ q, view, model }: Pick<AttentionStep, "q" | "view" | "model">): HeadScores {
  const { heads, kvHeads, headDim } = model;
  const keys = Math.ceil(Math.max(...headLengths(view, kvHeads)) / PAGE);
  const data = new Float32Array(heads * keys).fill(Number.NEGATIVE_INFINITY);
  for (let kv = 0, head = 0; kv < kvHeads; kv++) {
    const bounds = keyBounds(view.keys(kv), headDim); // m, M [pages, D]
    for (; head < ((kv + 1) * heads) / kvHeads; head++)
      data.set(boundScores(q.subarray(head * headDim, (head + 1) * headDim), bounds), head * keys);
  }
  return { data, heads, keys };
}

/** Dot products of a query [D] with rows [n, D], such as page means. */
export function dotScores(q: Float32Array, rows: Float32Array): Float32Array {
  const dim = q.length;
  return Float32Array.from({ length: rows.length / dim }, (_, r) => {
    let sum = 0;
    for (let d = 0; d < dim; d++) sum += q[d] * rows[r * dim + d];
    return sum;
  });
}
