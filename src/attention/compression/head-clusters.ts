import type { Model, Reducer } from "../../engine/api.js";
import { aborted, FoveaError } from "../../error.js";
import type { Calibration } from "../calibration.js";

/** Cosine distances [H, H] of vectors, data [H, n]. A vector of zeros is at distance 1 from all others. */
export function cosineDistances(data: Float32Array, heads: number): Float64Array {
  const size = data.length / heads;
  const dot = (a: number, b: number): number => {
    let sum = 0;
    for (let i = 0; i < size; i++) sum += data[a * size + i] * data[b * size + i];
    return sum;
  };
  const lengths = Array.from({ length: heads }, (_, h) => Math.sqrt(dot(h, h)));
  const distances = new Float64Array(heads * heads);
  for (let a = 0; a < heads; a++)
    for (let b = 0; b < heads; b++)
      if (a !== b) distances[a * heads + b] = 1 - dot(a, b) / (lengths[a] * lengths[b] || 1);
  return distances;
}

/**
 * Agglomerative clustering with average linkage down to `count` clusters: each head's representative [H], the lowest
 * head of its cluster. Of pairs at the same distance the first is joined.
 */
export function clusterHeads(distances: Float64Array, count: number): Int32Array {
  const heads = Math.sqrt(distances.length);
  const clusters = Array.from({ length: heads }, (_, h) => [h]);
  const between = (a: readonly number[], b: readonly number[]): number =>
    a.reduce((sum, x) => sum + b.reduce((s, y) => s + distances[x * heads + y], 0), 0) / (a.length * b.length);
  while (clusters.length > Math.max(1, count)) {
    let best: [number, number, number] = [0, 1, Number.POSITIVE_INFINITY];
    for (let a = 0; a < clusters.length; a++)
      for (let b = a + 1; b < clusters.length; b++) {
        const distance = between(clusters[a], clusters[b]);
        if (distance < best[2]) best = [a, b, distance];
      }
    clusters[best[0]].push(...clusters[best[1]]);
    clusters.splice(best[1], 1);
  }
  const representative = new Int32Array(heads);
  for (const cluster of clusters) for (const h of cluster) representative[h] = Math.min(...cluster);
  return representative;
}

/** Products of heads' attention, summed over rows: [L, Hq, Hq]. What k-means over heads needs of the weights. */
export function headProducts(): Reducer<{
  readonly layers: number;
  readonly heads: number;
  readonly data: Float64Array;
}> {
  return {
    name: "head-products",
    start({ layers, heads }) {
      const sums = new Float64Array(layers * heads * heads);
      return {
        observe({ layer, weights: { data, rows, keys } }) {
          const size = rows * keys;
          for (let a = 0; a < heads; a++)
            for (let b = a; b < heads; b++) {
              let sum = 0;
              for (let i = 0; i < size; i++) sum += data[a * size + i] * data[b * size + i];
              sums[(layer * heads + a) * heads + b] += sum;
              if (a !== b) sums[(layer * heads + b) * heads + a] += sum;
            }
        },
        finish: () => ({ layers, heads, data: sums }),
      };
    },
  };
}

/**
 * CHAI's numbers of clusters, one for each layer: k-means over the heads' attention at each number of clusters, errors
 * summed over texts, and the elbow of that curve. `tolerance`: a curve whose elbow is flatter than this share of its
 * height has none, and the layer keeps all heads.
 *
 * @throws FoveaError `bad-input` without texts
 */
export async function clusterCounts(
  model: Model,
  texts: readonly (string | readonly number[])[],
  options: { readonly madeBy: string; readonly tolerance?: number; readonly signal?: AbortSignal },
): Promise<Calibration> {
  const { layers, heads, hash } = model.info.shape;
  if (texts.length === 0)
    throw new FoveaError("bad-input", "numbers of clusters are found on texts, and none is given");
  const errors = Array.from({ length: layers }, () => new Float64Array(heads + 1));
  for (const text of texts) {
    if (options.signal?.aborted) throw aborted(options.signal);
    const { products } = await model.observe(text, { products: headProducts() }, { signal: options.signal });
    for (let l = 0; l < layers; l++) {
      const gram = products.data.subarray(l * heads * heads, (l + 1) * heads * heads);
      for (let c = 1; c <= heads; c++) errors[l][c] += inertia(gram, c);
    }
  }
  const counts = errors.map((curve) => elbow([...curve.subarray(1)], options.tolerance ?? 0.1));
  return { model: hash, method: "chai", layers: counts, madeBy: options.madeBy };
}

/** Sum of squared distances to their centres of points with these products [H, H], in `count` clusters by k-means. */
export function inertia(gram: Float64Array, count: number): number {
  const n = Math.sqrt(gram.length);
  const between = (a: number, b: number): number => gram[a * n + a] + gram[b * n + b] - 2 * gram[a * n + b];
  // the points farthest from those chosen before begin the clusters
  const seeds = [0];
  while (seeds.length < count) {
    const far = Array.from({ length: n }, (_, i) => Math.min(...seeds.map((s) => between(i, s))));
    seeds.push(far.indexOf(Math.max(...far)));
  }
  let member = Array.from({ length: n }, (_, i) =>
    seeds.reduce((best, s, c) => (between(i, s) < between(i, seeds[best]) ? c : best), 0),
  );
  let total = 0;
  for (let round = 0; round < 50; round++) {
    const groups = seeds.map((_, c) => member.flatMap((m, i) => (m === c ? [i] : [])));
    const inner = groups.map(
      (g) => g.reduce((sum, a) => sum + g.reduce((s, b) => s + gram[a * n + b], 0), 0) / g.length ** 2,
    );
    const toCentre = (i: number, c: number): number => {
      const g = groups[c];
      if (g.length === 0) return Number.POSITIVE_INFINITY;
      return gram[i * n + i] - (2 * g.reduce((sum, j) => sum + gram[i * n + j], 0)) / g.length + inner[c];
    };
    total = member.reduce((sum, m, i) => sum + Math.max(0, toCentre(i, m)), 0);
    const next = member.map((m, i) =>
      groups.reduce((best, _, c) => (toCentre(i, c) < toCentre(i, best) - 1e-12 ? c : best), m),
    );
    if (next.every((m, i) => m === member[i])) break;
    member = next;
  }
  return total;
}

/** The number of clusters, from 1, that lies farthest below the line from the curve's first value to its last. */
export function elbow(curve: readonly number[], tolerance: number): number {
  const last = curve.length - 1;
  const height = curve[0] - curve[last];
  if (!(height > 0)) return 1;
  let best = last;
  let depth = tolerance;
  for (let i = 0; i < last; i++) {
    const below = 1 - i / last - (curve[i] - curve[last]) / height;
    if (below > depth) [best, depth] = [i, below];
  }
  return best + 1;
}
