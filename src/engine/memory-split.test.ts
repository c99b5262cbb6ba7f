import { describe, expect, it } from "vitest";
import { compile, input, parameter, type Segment, type Tensor } from "../graph/index.js";
import { splitMemory } from "./memory-split.js";
import { reached } from "./segments.js";

const q = input("q", ["T", 3]);
const memory = input("memory", ["M", 2]);
const weight = parameter("w", [3, 2]);
const scale = parameter("scale", [3]);
const weights = {
  get: (name: string) => ({
    ...{ kind: "float" as const, dtype: "float32" as const },
    ...(name === "w"
      ? { shape: [3, 2], data: Float32Array.of(1, 2, 3, 4, 5, 6) }
      : { shape: [3], data: Float32Array.of(1, -1, 2) }),
  }),
};
const run = async (segment: Segment, feeds: Record<string, { data: Float32Array; dims: readonly number[] }>) => {
  const out = await segment.run(Object.fromEntries(segment.inputNames.map((name) => [name, feeds[name]])));
  await segment.release();
  return out;
};

describe("splitMemory", () => {
  it("takes apart what is made of the memory and weights, and leaves the rest without them", async () => {
    const keys = memory.linear(weight); // [M, 3]
    const out = q.mul(scale).matmul(keys.transpose()).softmax(-1).matmul(keys.mul(scale));
    const split = splitMemory({ inputs: { q, memory }, outputs: { out } });
    if (!split) throw new Error("nothing was taken apart");
    const { alone, rest } = split;
    expect(Object.values(alone.outputs).map((t) => t.op).length).toBe(2); // the transposed keys and the scaled ones
    const left = reached(Object.values(rest.outputs), new Set(Object.values(rest.inputs)));
    expect([weight, memory].some((tensor) => left.has(tensor))).toBe(false);
    expect(left.has(scale)).toBe(true);

    const feeds = {
      q: { data: Float32Array.of(0.1, 0.2, -0.3, 1, 0, 0.5), dims: [2, 3] },
      memory: { data: Float32Array.of(1, 0, 0.5, -1, 2, 2), dims: [3, 2] },
    };
    const whole = await run(await compile({ inputs: { q, memory }, outputs: { out } }, { weights, threads: 1 }), feeds);
    const made = await run(await compile(alone, { weights, threads: 1 }), feeds);
    const inputs = Object.fromEntries(Object.entries(rest.inputs).filter(([, tensor]) => left.has(tensor)));
    const parts = await run(await compile({ inputs, outputs: rest.outputs }, { weights, threads: 1 }), {
      ...feeds,
      ...(made as Record<string, { data: Float32Array; dims: readonly number[] }>),
    });
    expect(parts.out.data).toEqual(whole.out.data);
  });

  it("leaves a graph whole where nothing is made of the memory alone", () => {
    const cut = (out: Tensor, more = {}) => splitMemory({ inputs: { q, ...more }, outputs: { out } });
    expect(cut(q.mul(2))).toBeUndefined();
    expect(cut(q.mul(2), { memory })).toBeUndefined();
    const both = input("q", ["M", 2]);
    expect(splitMemory({ inputs: { q: both, memory }, outputs: { out: both.add(memory) } })).toBeUndefined();
  });
});
