import type { ActivationsStep, ModelShape, PositionStep, RotaryPlan } from "../../engine/hooks.js";
import { rotate } from "../../engine/rotary.js";

/** What a layer knows of its chunks. */
export interface ChunkState {
  /** Unrotated rows of the chunk that is still filling, [< w, Hkv, D]; queries are means over their group. */
  q: Float32Array;
  k: Float32Array;
  v: Float32Array;
  /** Vectors of full chunks, [chunks, Hkv, D]. */
  vectors: Float32Array;
}
type State = Map<number, ChunkState>;

/** Takes up unrotated rows. */
export function addRows({ state, layer, model, rows, q, k, v }: ActivationsStep<State>): void {
  const { heads, kvHeads, headDim } = model;
  const none = new Float32Array(0);
  const own = state.get(layer) ?? { q: none, k: none, v: none, vectors: none };
  const group = heads / kvHeads;
  const means = new Float32Array(rows * kvHeads * headDim);
  for (let i = 0; i < q.length; i++) means[Math.floor(i / headDim / group) * headDim + (i % headDim)] += q[i] / group;
  state.set(layer, { ...own, q: join(own.q, means), k: join(own.k, k), v: join(own.v, v) });
}

/** Makes vectors of the chunks that are full and lets their rows go. */
export function summarise({ state, layer, model, plan }: PositionStep<State>, chunk: number): undefined {
  const own = state.get(layer);
  if (!own || !plan) return;
  const { kvHeads, headDim } = model;
  const size = chunk * kvHeads * headDim;
  const full = Math.floor(own.k.length / size);
  if (full === 0) return;
  const vectors = new Float32Array(full * kvHeads * headDim);
  for (let c = 0; c < full; c++) {
    const [q, k, v] = [own.q, own.k, own.v].map((x) => x.slice(c * size, (c + 1) * size));
    vectors.set(chunkVectors(q, k, v, model, plan), c * kvHeads * headDim);
  }
  const rest = (x: Float32Array) => x.slice(full * size);
  state.set(layer, { q: rest(own.q), k: rest(own.k), v: rest(own.v), vectors: join(own.vectors, vectors) });
}

/**
 * A chunk's vectors [Hkv, D] of its unrotated q, k, v [w, Hkv, D]: rows attend to each other both ways; the mean of what
 * they give, taken for a query, gives a mean of the keys. Keys are rotated as if the chunk stood at the text's start.
 */
export function chunkVectors(
  q: Float32Array,
  k: Float32Array,
  v: Float32Array,
  { kvHeads, headDim }: Pick<ModelShape, "kvHeads" | "headDim">,
  plan: RotaryPlan | null,
): Float32Array {
  const width = kvHeads * headDim;
  const rows = k.length / width;
  const [turnedQ, turnedK] = [q.slice(), k.slice()];
  const places = Int32Array.from({ length: rows }, (_, i) => i);
  if (plan) for (const x of [turnedQ, turnedK]) rotate(x, kvHeads, headDim, places, plan);
  const vectors = new Float32Array(width);
  for (let kv = 0; kv < kvHeads; kv++) {
    const head = (x: Float32Array) => x.subarray(kv * headDim);
    const mean = new Float32Array(headDim);
    for (let i = 0; i < rows; i++) {
      const given = attend(head(turnedQ).subarray(i * width), head(turnedK), head(v), rows, width, headDim);
      for (let d = 0; d < headDim; d++) mean[d] += given[d] / rows;
    }
    vectors.set(attend(mean, head(turnedK), head(turnedK), rows, width, headDim), kv * headDim);
  }
  return vectors;
}

/** softmax(q.k / sqrt(D)) v over rows that lie `stride` apart: [D]. */
function attend(q: Float32Array, k: Float32Array, v: Float32Array, rows: number, stride: number, dim: number) {
  const weights = new Float32Array(rows);
  let max = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < rows; i++) {
    for (let d = 0; d < dim; d++) weights[i] += q[d] * k[i * stride + d];
    max = Math.max(max, (weights[i] /= Math.sqrt(dim)));
  }
  const out = new Float32Array(dim);
  let sum = 0;
  for (let i = 0; i < rows; i++) {
    const weight = Math.exp(weights[i] - max);
    sum += weight;
    for (let d = 0; d < dim; d++) out[d] += weight * v[i * stride + d];
  }
  return out.map((x) => x / sum);
}

function join(a: Float32Array, b: Float32Array): Float32Array {
  const all = new Float32Array(a.length + b.length);
  all.set(a);
  all.set(b, a.length);
  return all;
}
