import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { halfToFloat, toHalf, toTypedArray } from "./dtype.js";

describe("float16", () => {
  test("known values", () => {
    expect(toHalf(0)).toBe(0);
    expect(toHalf(-0)).toBe(0x8000);
    expect(toHalf(1)).toBe(0x3c00);
    expect(toHalf(-2)).toBe(0xc000);
    expect(toHalf(65504)).toBe(0x7bff);
    expect(toHalf(65520)).toBe(0x7c00);
    expect(toHalf(2 ** -24)).toBe(1);
    expect(toHalf(2 ** -25)).toBe(0);
    expect(toHalf(3 * 2 ** -25)).toBe(2);
    expect(toHalf(1 + 2 ** -11)).toBe(0x3c00);
    expect(toHalf(1 + 3 * 2 ** -11)).toBe(0x3c02);
    expect(toHalf(Number.POSITIVE_INFINITY)).toBe(0x7c00);
    expect(halfToFloat(toHalf(Number.NaN))).toBeNaN();
  });

  test("every float16 survives the way to float32 and back", () => {
    for (let bits = 0; bits < 65536; bits++) {
      const value = halfToFloat(bits);
      if (!Number.isNaN(value)) expect(toHalf(value)).toBe(bits);
    }
  });

  test("a number goes to the nearest float16", () => {
    const finite = fc.double({ min: -65504, max: 65504, noNaN: true }).map(Math.fround);
    fc.assert(
      fc.property(finite, (value) => {
        const bits = toHalf(value);
        const error = Math.abs(halfToFloat(bits) - value);
        for (const near of [bits - 1, bits + 1]) {
          const other = halfToFloat(near & 0xffff);
          if (Number.isFinite(other)) expect(error).toBeLessThanOrEqual(Math.abs(other - value));
        }
      }),
    );
  });
});

test("lists become the array of a type", () => {
  expect(toTypedArray([1, -2], "int64")).toEqual(BigInt64Array.of(1n, -2n));
  expect(toTypedArray([0, 3, true], "bool")).toEqual(Uint8Array.of(0, 1, 1));
  expect(toTypedArray([1], "float16")).toEqual(Uint16Array.of(0x3c00));
});
