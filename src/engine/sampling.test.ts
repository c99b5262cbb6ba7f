import fc from "fast-check";
import { expect, test } from "vitest";
import { argmax, checkSampling, logSumExp, Random, sample } from "./sampling.js";

const random = () => new Random(7);

test("temperature 0 takes the largest logit, the lower index on a tie", () => {
  expect(sample(Float32Array.of(1, 3, 3, 2), [], {}, random())).toBe(1);
});

test("top-k 1 is greedy at any temperature", () => {
  fc.assert(
    fc.property(fc.array(fc.float({ noNaN: true, min: -20, max: 20 }), { minLength: 1 }), (values) => {
      const logits = Float32Array.from(values);
      expect(sample(logits.slice(), [], { temperature: 5, topK: 1 }, random())).toBe(argmax(logits));
    }),
  );
});

test("frequencies follow the softmax", () => {
  const logits = Float32Array.of(Math.log(0.5), Math.log(0.3), Math.log(0.2));
  const source = new Random(1);
  const counts = [0, 0, 0];
  for (let i = 0; i < 20000; i++) counts[sample(logits.slice(), [], { temperature: 1 }, source)]++;
  expect(counts[0] / 20000).toBeCloseTo(0.5, 1);
  expect(Math.abs(counts[1] / 20000 - 0.3)).toBeLessThan(0.015);
  expect(Math.abs(counts[2] / 20000 - 0.2)).toBeLessThan(0.015);
});

test("top-p keeps the smallest set that reaches p, min-p what is near the best", () => {
  const logits = Float32Array.of(Math.log(0.5), Math.log(0.3), Math.log(0.15), Math.log(0.05));
  const seen = (options: { topP?: number; minP?: number; topK?: number }) => {
    const source = new Random(3);
    const ids = new Set<number>();
    for (let i = 0; i < 3000; i++) ids.add(sample(logits.slice(), [], { temperature: 1, ...options }, source));
    return [...ids].sort();
  };
  expect(seen({ topP: 0.5 })).toEqual([0]);
  expect(seen({ topP: 0.79 })).toEqual([0, 1]);
  expect(seen({ minP: 0.25 })).toEqual([0, 1, 2]);
  expect(seen({ topK: 2 })).toEqual([0, 1]);
});

test("the repetition penalty pushes seen tokens down, whatever their sign", () => {
  const logits = Float32Array.of(2, 1.5, -1);
  sample(logits, [0, 2, 0], { repetitionPenalty: 2 }, random());
  expect([...logits]).toEqual([1, 1.5, -2]);
});

test("one seed, one sequence; another seed, another", () => {
  const draw = (seed: number) => {
    const source = new Random(seed);
    return Array.from({ length: 5 }, () => source.next());
  };
  expect(draw(5)).toEqual(draw(5));
  expect(draw(5)).not.toEqual(draw(6));
});

test("logSumExp neither overflows nor underflows", () => {
  expect(logSumExp(Float32Array.of(1000, 1000))).toBeCloseTo(1000 + Math.log(2), 6);
  expect(logSumExp(Float32Array.of(-1000, -1000))).toBeCloseTo(-1000 + Math.log(2), 6);
  expect(logSumExp(new Float32Array(0))).toBe(Number.NEGATIVE_INFINITY);
});

test("options out of range are refused by name", () => {
  expect(() => checkSampling({ temperature: -1 })).toThrow(/temperature is -1/);
  expect(() => checkSampling({ topP: 0 })).toThrow(/topP is 0/);
  expect(() => checkSampling({ temperature: Number.NaN })).toThrow(/temperature/);
});
