import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { compile } from "./compile.js";
import type { Precision } from "./emit.js";
import { input, parameter } from "./tensor.js";
import { at, largestDifference, matmul, type NDArray, randomFloats, testProvider } from "./testing.js";
import {
  BLOCK,
  blocksOf,
  floatWeight,
  type Q8Weight,
  quantizeQ4,
  quantizeQ8,
  toFloats,
  unsignedCodes,
  type WeightValue,
  weightsFrom,
} from "./weights.js";

const matrix = fc
  .record({ N: fc.integer({ min: 1, max: 4 }), K: fc.integer({ min: 1, max: 70 }), seed: fc.nat() })
  .map(({ N, K, seed }) => ({ N, K, data: randomFloats(N * K, seed) }));

/** The largest magnitude in each number's block. */
function blockSizes(data: Float32Array, N: number, K: number): number[] {
  return Array.from({ length: N * K }, (_, i) => {
    const row = Math.floor(i / K);
    const from = row * K + Math.floor((i % K) / BLOCK) * BLOCK;
    const block = data.subarray(from, Math.min(from + BLOCK, (row + 1) * K));
    return Math.max(...block.map(Math.abs));
  });
}

describe("quantising", () => {
  test("8 bits: each number is off by at most half a step of its block", () => {
    fc.assert(
      fc.property(matrix, ({ N, K, data }) => {
        const back = toFloats(quantizeQ8(data, N, K));
        const largest = blockSizes(data, N, K);
        back.forEach((value, i) => {
          expect(Math.abs(value - data[i])).toBeLessThanOrEqual((largest[i] / 127) * 0.501);
        });
      }),
    );
  });

  test("4 bits: each number is off by at most half a step, one step at the open end", () => {
    fc.assert(
      fc.property(matrix, ({ N, K, data }) => {
        const back = toFloats(quantizeQ4(data, N, K));
        const largest = blockSizes(data, N, K);
        back.forEach((value, i) => {
          expect(Math.abs(value - data[i])).toBeLessThanOrEqual((largest[i] / 8) * 1.001);
        });
      }),
    );
  });

  test("by hand: a block of one number, a block of zeros", () => {
    const q8 = quantizeQ8(Float32Array.of(127, -64, 0, 1), 1, 4);
    expect([...q8.codes.subarray(0, 5)]).toEqual([127, -64, 0, 1, 0]);
    expect([...q8.scales]).toEqual([1]);
    const q4 = quantizeQ4(Float32Array.of(-8, 7, 0, 1), 1, 4);
    expect([...q4.codes.subarray(0, 3)]).toEqual([0xf0, 0x98, 0x88]);
    expect([...q4.scales]).toEqual([1]);
    expect([...toFloats(quantizeQ8(new Float32Array(3), 1, 3))]).toEqual([0, 0, 0]);
    expect([...toFloats(quantizeQ4(new Float32Array(3), 1, 3))]).toEqual([0, 0, 0]);
  });

  test("signed codes become unsigned, whatever the array's offset", () => {
    const codes = Int8Array.from({ length: 70 }, (_, i) => i - 35);
    for (const from of [0, 1, 4]) {
      expect([...unsignedCodes(codes.subarray(from))]).toEqual([...codes.subarray(from)].map((code) => code + 128));
    }
  });
});

/** x Wᵀ with the weight's own numbers, in double precision. */
function product(x: Float32Array, weight: WeightValue): number[] {
  const [N, K] = weight.shape;
  const w: NDArray = { shape: [N, K], data: [...toFloats(weight)] };
  const transposed = { shape: [K, N], data: Array.from({ length: K * N }, (_, i) => at(w, i % N, Math.floor(i / N))) };
  return [...matmul({ shape: [x.length / K, K], data: [...x] }, transposed).data];
}

async function linear(x: Float32Array, weight: WeightValue, precision?: Precision): Promise<Float32Array> {
  const [N, K] = weight.shape;
  const outputs = { y: input("x", ["T", K]).linear(parameter("w", [N, K])) };
  await using segment = await compile(
    { outputs },
    { weights: weightsFrom({ w: weight }), precision, threads: 1, provider: testProvider() },
  );
  const { y } = await segment.run({ x: { data: x, dims: [x.length / K, K] } });
  return y.data as Float32Array;
}

/** What quantising the activations to 8 bits per block may move one product by: half a step times each weight. */
function activationError(K: number, largestWeight: number): number {
  return (0.5 / 127) * Math.sqrt(K) * largestWeight * 4;
}

describe("linear layers", () => {
  for (const K of [32, 64, 576, 8, 33, 100]) {
    test.each(["q8_0", "q4", "q4 with minima"])(`rows of ${K}: %s against the same numbers as floats`, async (kind) => {
      const N = 7;
      const data = randomFloats(N * K, K);
      let weight: WeightValue = kind === "q8_0" ? quantizeQ8(data, N, K) : quantizeQ4(data, N, K);
      if (kind === "q4 with minima" && weight.kind === "q4") {
        weight = { ...weight, mins: randomFloats(N * blocksOf(K), 3) };
      }
      const largest = Math.max(...toFloats(weight).map(Math.abs));
      for (const T of [1, 3, 40]) {
        const x = randomFloats(T * K, T);
        const y = await linear(x, weight);
        expect(largestDifference(y, product(x, weight))).toBeLessThan(activationError(K, largest));
        // Widened to float32 nothing is lost at all.
        expect(largestDifference(await linear(x, weight, "float32"), product(x, weight))).toBeLessThan(1e-4);
      }
    });
  }

  test("8-bit codes reach the kernel unchanged: activations that are exact in 8 bits give exact results", async () => {
    const codes = Int8Array.from({ length: 2 * 64 }, (_, i) => ((i * 37) % 255) - 127);
    const weight: Q8Weight = { kind: "q8_0", shape: [2, 64], codes, scales: Float32Array.of(1, 0.5, 2, 0.25) };
    const x = Float32Array.from({ length: 64 }, (_, i) => (i % 32 === 0 ? 127 : (i % 7) - 3));
    expect([...(await linear(x, weight))]).toEqual(product(x, weight));
  });

  test("padding in the last block is not read as weight", async () => {
    const full = quantizeQ8(randomFloats(3 * 40), 3, 40);
    const dirty = { ...full, codes: Int8Array.from(full.codes, (code, i) => (i % 64 >= 40 ? 99 : code)) };
    const x = randomFloats(40, 5);
    expect(largestDifference(await linear(x, dirty), product(x, full))).toBeLessThan(activationError(40, 1));
  });

  test("floats are quantised as asked, one weight by one", async () => {
    const K = 64;
    const weight = floatWeight([5, K], randomFloats(5 * K));
    const x = randomFloats(2 * K, 9);
    const exact = product(x, weight);
    const floats = weight.data as Float32Array;
    const stored = await linear(x, weight);
    const int8 = await linear(x, weight, "int8");
    const int4 = await linear(x, weight, "int4");
    expect(largestDifference(stored, exact)).toBeLessThan(1e-5);
    expect(largestDifference(int8, product(x, quantizeQ8(floats, 5, K)))).toBeLessThan(activationError(K, 1));
    expect(largestDifference(int4, product(x, quantizeQ4(floats, 5, K)))).toBeLessThan(activationError(K, 1));
    expect(largestDifference(int4, exact)).toBeGreaterThan(largestDifference(int8, exact));

    const a = parameter("a", [5, K]);
    const b = parameter("b", [5, K]);
    const xs = input("x", ["T", K]);
    await using segment = await compile(
      { outputs: { a: xs.linear(a), b: xs.linear(b) } },
      {
        weights: weightsFrom({ a: weight, b: weight }),
        precision: (name) => (name === "a" ? "int8" : "float32"),
        provider: testProvider(),
      },
    );
    const both = await segment.run({ x: { data: x, dims: [2, K] } });
    expect(both.a.data).toEqual(int8);
    expect(both.b.data).toEqual(stored);
  });

  test("float16 weights are widened", async () => {
    const data = Uint16Array.of(0x3c00, 0xc000, 0x3800, 0x0001);
    const y = await linear(Float32Array.of(1, 1), { kind: "float", dtype: "float16", shape: [2, 2], data });
    expect([...y]).toEqual([-1, Math.fround(0.5 + 2 ** -24)]);
  });

  test("bias, more dimensions, and one weight used twice", async () => {
    const weight = quantizeQ8(randomFloats(3 * 32), 3, 32);
    const w = parameter("w", [3, 32]);
    const x = input("x", ["B", "T", 32]);
    const outputs = { y: x.linear(w, parameter("b", [3])), z: x.mul(2).linear(w) };
    const weights = weightsFrom({ w: weight, b: floatWeight([3], [1, 2, 3]) });
    await using segment = await compile({ outputs }, { weights });
    expect(segment.bytes).toBeLessThan(1500);
    const data = randomFloats(2 * 2 * 32, 4);
    const { y, z } = await segment.run({ x: { data, dims: [2, 2, 32] } });
    const plain = product(data, weight);
    expect(y.dims).toEqual([2, 2, 3]);
    expect(
      largestDifference(
        y.data as Float32Array,
        plain.map((v, i) => v + 1 + (i % 3)),
      ),
    ).toBeLessThan(0.05);
    expect(
      largestDifference(
        z.data as Float32Array,
        plain.map((v) => 2 * v),
      ),
    ).toBeLessThan(0.1);
  });
});

describe("embedding look-up", () => {
  test.each([
    ["q8_0", 64],
    ["q4", 64],
    ["q8_0", 40],
    ["q4 with minima", 32],
  ] as const)("%s rows of %i are read exactly", async (kind, K) => {
    const V = 11;
    const data = randomFloats(V * K);
    let table: WeightValue = kind === "q8_0" ? quantizeQ8(data, V, K) : quantizeQ4(data, V, K);
    if (kind === "q4 with minima" && table.kind === "q4") table = { ...table, mins: randomFloats(V * blocksOf(K), 3) };
    const embed = parameter("embed", [V, K]);
    const rows = embed.gather(input("ids", ["T"], "int64"));
    await using segment = await compile(
      { outputs: { rows, logits: rows.linear(embed) } },
      { weights: weightsFrom({ embed: table }), provider: testProvider() },
    );
    const ids = [3, 10, 0, 3];
    const { rows: found } = await segment.run({ ids: { data: ids, dims: [4] } });
    const floats = toFloats(table);
    const expected = ids.flatMap((id) => [...floats.subarray(id * K, (id + 1) * K)]);
    expect(largestDifference(found.data as Float32Array, expected)).toBeLessThan(1e-6);
  });
});
