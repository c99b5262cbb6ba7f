import type { ActivationsStep, RotaryPlan } from "../../engine/hooks.js";

/** Sums over the unrotated queries of a layer's heads. */
export interface QueryMoments {
  count: number;
  readonly sum: Float64Array; // [Hq, D]
  readonly outer: Float64Array; // [Hq, D, D], upper triangles
}
/** What is added up in each layer. */
export type MomentsByLayer = Map<number, QueryMoments>;

/** Adds the unrotated queries of a layer's rows, those of the first `sinks` tokens left out. */
export function addQueries(
  { state, layer, model, rows, positions, q }: ActivationsStep<MomentsByLayer>,
  sinks: number,
): void {
  const { heads, headDim: dim } = model;
  const moments = state.get(layer) ?? {
    count: 0,
    sum: new Float64Array(heads * dim),
    outer: new Float64Array(heads * dim * dim),
  };
  for (let t = 0; t < rows; t++) {
    if (positions[t] < sinks) continue;
    moments.count++;
    for (let at = 0; at < heads * dim; at++) {
      const x = q[t * heads * dim + at];
      moments.sum[at] += x;
      const i = at % dim;
      for (let j = i; j < dim; j++) moments.outer[at * dim + j] += x * q[t * heads * dim + at - i + j];
    }
  }
  state.set(layer, moments);
}

/** Mean of rotations over positions [first, first + count): per pair of channels its cos and sin. */
export interface MeanRotation {
  readonly cos: Float64Array;
  readonly sin: Float64Array;
}

/** `place`: where a KV head stands among all, 0 to 1, for plans whose groups of heads turn at frequencies of their own. */
export function averageRotation(plan: RotaryPlan | null, first: number, count: number, place = 0): MeanRotation {
  const half = plan ? plan.dims >> 1 : 0;
  const [cos, sin] = [new Float64Array(half), new Float64Array(half)];
  if (!plan) return { cos, sin };
  const start = Math.floor(place * (plan.groups ?? 1)) * half;
  for (let p = first; p < first + count; p++) {
    const factor = (plan.multiplier * (plan.queryScale?.(p) ?? 1)) / count;
    for (let i = 0; i < half; i++) {
      cos[i] += factor * Math.cos(p * plan.inverse[start + i]);
      sin[i] += factor * Math.sin(p * plan.inverse[start + i]);
    }
  }
  return { cos, sin };
}

/** Turns n numbers that lie `stride` apart in place. */
function turn(x: Float64Array, at: number, stride: number, { cos, sin }: MeanRotation): void {
  const half = cos.length;
  for (let i = 0; i < half; i++) {
    const [a, b] = [at + i * stride, at + (half + i) * stride];
    [x[a], x[b]] = [x[a] * cos[i] - x[b] * sin[i], x[b] * cos[i] + x[a] * sin[i]];
  }
}

/** Mean [D] and covariance [D, D] (null without) of a head's queries as rotated ahead: R m and R C R'. */
export function futureQueries(
  { count, sum, outer }: QueryMoments,
  head: number,
  rotation: MeanRotation,
  varied: boolean,
) {
  const dim = outer.length / sum.length;
  const mean = sum.slice(head * dim, (head + 1) * dim).map((x) => x / Math.max(1, count));
  const covariance = new Float64Array(varied ? dim * dim : 0);
  for (let i = 0; varied && i < dim; i++)
    for (let j = i; j < dim; j++) {
      const x = outer[(head * dim + i) * dim + j] / Math.max(1, count) - mean[i] * mean[j];
      covariance[i * dim + j] = x;
      covariance[j * dim + i] = x;
    }
  turn(mean, 0, 1, rotation);
  for (let i = 0; varied && i < dim; i++) turn(covariance, i * dim, 1, rotation); // C R'
  for (let j = 0; varied && j < dim; j++) turn(covariance, j, dim, rotation); // R C R'
  return { mean, covariance: varied ? covariance : null };
}

/** ln E exp(scale q.k) of normally distributed queries for keys [n, D]: [n]. */
export function expectedLogits(
  keys: Float32Array,
  { mean, covariance }: ReturnType<typeof futureQueries>,
  scale: number,
): Float64Array {
  const dim = mean.length;
  return Float64Array.from({ length: keys.length / dim }, (_, n) => {
    let linear = 0;
    let quadratic = 0;
    for (let i = 0; i < dim; i++) {
      const x = keys[n * dim + i];
      linear += x * mean[i];
      if (!covariance) continue;
      let row = 0;
      for (let j = 0; j < dim; j++) row += covariance[i * dim + j] * keys[n * dim + j];
      quadratic += x * row;
    }
    return scale * linear + (scale * scale * quadratic) / 2;
  });
}
