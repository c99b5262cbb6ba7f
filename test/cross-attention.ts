import { z } from "zod";
import { softmaxAttention } from "../src/attention/linear/index.js";
import type { Tensor } from "../src/graph/index.js";
import {
  boundMechanism,
  type Memory,
  type MemoryInputs,
  type ModelConfig,
  mechanism,
  seededNormals,
} from "../src/models/index.js";

/** Softmax of the queries over a memory [B, M, m]: heads' outputs [B, H, T, D]. */
function readMemory({ q, memory, weights, scale }: MemoryInputs): Tensor {
  const [B, heads, , headDim] = q.shape;
  const project = (name: string): Tensor =>
    memory
      .linear(weights[name]) // [B, M, H * D]
      .reshape([B, -1, heads, headDim])
      .transpose(0, 2, 1, 3); // [B, H, M, D]
  const pattern = q.matmul(project("memory_k").transpose()).mul(scale).softmax(-1); // [B, H, T, M]
  return pattern.matmul(project("memory_v"));
}

const memoryWeights = (width: number, outputs: number) => ({
  memory_k: { shape: [outputs, width] },
  memory_v: { shape: [outputs, width] },
});

/** Every row reads the text as far as it goes, and the memory. */
export const crossAttention = mechanism({
  name: "cross-attention-test",
  memory: ({ width }) => width,
  weights: ({ width, heads, headDim }) => memoryWeights(width, heads * headDim),
  forward: (inputs) => (softmaxAttention.definition.forward(inputs, {}) as Tensor).add(readMemory(inputs)),
});

/** The same beside a state: a running sum of values, instead of a cache. */
export const crossState = mechanism({
  name: "cross-state-test",
  rotary: false,
  rows: 8,
  parameters: z.object({ width: z.int().min(1).default(6) }),
  memory: (_, { width }) => width,
  weights: ({ heads, headDim }, { width }) => memoryWeights(width, heads * headDim),
  state: ({ heads, headDim }) => ({ sum: [heads, 1, headDim] }),
  forward(inputs) {
    const sums = inputs.v.mul(0.2).cumsum(2).add(inputs.state.sum);
    return { out: sums.tanh().add(readMemory(inputs)), state: { sum: sums.slice({ axis: 2, start: -1 }) } };
  },
});

/** A memory of a model, the same for a seed; undefined where it reads none. */
export function memoryOf(config: ModelConfig, rows = 5, seed = 1): Memory | undefined {
  const width = boundMechanism(config)?.memory;
  if (width === undefined) return undefined;
  const next = seededNormals(`memory ${seed}`);
  return { data: Float32Array.from({ length: rows * width }, next), rows };
}

/** Memories of the sequences of a batch, side by side: [B, M, m]. */
export function batchMemory(memories: readonly (Memory | undefined)[]) {
  const [first] = memories;
  if (!first) return {};
  const data = Float32Array.from(memories.flatMap((memory) => [...(memory?.data ?? [])]));
  const { length } = memories;
  return { memory: { data, dims: [length, first.rows, data.length / length / first.rows] } };
}
