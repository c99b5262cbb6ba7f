import fc from "fast-check";
import { expect, test } from "vitest";
import type { RotaryPlan } from "./hooks.js";
import { RotaryTable, rotate } from "./rotary.js";

const plan: RotaryPlan = { inverse: Float32Array.of(1, 0.1), multiplier: 1, dims: 4 };
const dot = (a: Float32Array, b: Float32Array) => a.reduce((s, x, i) => s + x * b[i], 0);
const turned = (x: readonly number[], at: number, p: RotaryPlan = plan) => {
  const y = Float32Array.from(x);
  rotate(y, 1, x.length, [at], p);
  return y;
};

test("a quarter turn of the first pair, by hand", () => {
  const y = turned([1, 0, 0, 0], Math.PI / 2);
  expect(y[0]).toBeCloseTo(0, 6);
  expect(y[2]).toBeCloseTo(1, 6);
});

test("products depend on the distance only", () => {
  const vector = fc.array(fc.float({ noNaN: true, min: -3, max: 3 }), { minLength: 4, maxLength: 4 });
  fc.assert(
    fc.property(vector, vector, fc.nat(5000), fc.nat(5000), fc.nat(5000), (q, k, a, b, shift) => {
      expect(dot(turned(q, a), turned(k, b))).toBeCloseTo(dot(turned(q, a + shift), turned(k, b + shift)), 2);
    }),
  );
});

test("dimensions beyond the rotated ones pass, and the multiplier scales only rotated ones", () => {
  const y = turned([1, 2, 3, 4, 5, 6], 3, { inverse: Float32Array.of(1, 0.1), multiplier: 2, dims: 4 });
  expect([...y.subarray(4)]).toEqual([5, 6]);
  expect(Math.hypot(y[0], y[2])).toBeCloseTo(2 * Math.hypot(1, 3), 5);
});

test("far, negative and fractional positions do not disturb the kept ones", () => {
  const table = new RotaryTable(plan);
  const near = () => {
    const y = Float32Array.of(1, 2, 3, 4);
    rotate(y, 1, 4, [5], plan, table);
    return [...y];
  };
  const before = near();
  for (const at of [1e6, -3, 70]) rotate(Float32Array.of(1, 2, 3, 4), 1, 4, [at], plan, table);
  expect(near()).toEqual(before);
});
