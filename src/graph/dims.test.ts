import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  addDims,
  canonicalDim,
  type Dim,
  divideDims,
  multiplyDims,
  productOfDims,
  replaceSymbols,
  subtractDims,
} from "./dims.js";
import { broadcast, ShapeError } from "./shape.js";
import { concat, input } from "./tensor.js";
import { broadcastShapes } from "./testing.js";

const atom = fc.oneof(fc.integer({ min: 1, max: 9 }), fc.constantFrom<Dim>("S", "T", "U"));
/** Sums and products of symbols and numbers. */
const dim: fc.Arbitrary<Dim> = fc
  .array(fc.array(atom, { minLength: 1, maxLength: 3 }), { minLength: 1, maxLength: 3 })
  .map((terms) => terms.map((factors) => productOfDims(factors)).reduce(addDims));
const sizes = fc
  .record({ S: fc.nat(7), T: fc.nat(7), U: fc.nat(7) })
  .map((o) => new Map<string, Dim>(Object.entries(o)));

describe("symbolic dimensions", () => {
  test("spellings become one", () => {
    expect(canonicalDim("T+S")).toBe("S + T");
    expect(canonicalDim("T*2 - T")).toBe("T");
    expect(canonicalDim("T - T")).toBe(0);
    expect(addDims("T", -1)).toBe("T - 1");
    expect(divideDims(multiplyDims("S + T", 64), 64)).toBe("S + T");
    expect(divideDims("T", 2)).toBeUndefined();
    expect(divideDims("S*T", "T")).toBe("S");
  });

  test("arithmetic agrees with arithmetic on the sizes", () => {
    fc.assert(
      fc.property(dim, dim, sizes, (a, b, map) => {
        const at = (d: Dim): number => replaceSymbols(d, map) as number;
        expect(at(addDims(a, b))).toBe(at(a) + at(b));
        expect(at(subtractDims(a, b))).toBe(at(a) - at(b));
        expect(at(multiplyDims(a, b))).toBe(at(a) * at(b));
      }),
    );
  });

  test("it is commutative, and what is put in can be taken out", () => {
    fc.assert(
      fc.property(dim, dim, atom, (a, b, c) => {
        expect(addDims(a, b)).toBe(addDims(b, a));
        expect(multiplyDims(a, b)).toBe(multiplyDims(b, a));
        expect(subtractDims(addDims(a, b), b)).toBe(a);
        expect(divideDims(multiplyDims(a, c), c)).toBe(a);
        expect(canonicalDim(a)).toBe(a);
      }),
    );
  });
});

const size = fc.constantFrom(1, 2, 3);
const shape = fc.array(size, { maxLength: 4 });

describe("shape laws", () => {
  test("broadcasting is NumPy's, or refused where NumPy refuses", () => {
    fc.assert(
      fc.property(shape, shape, (a, b) => {
        const tensors = [input("a", a), input("b", b)];
        let expected: number[] | undefined;
        try {
          expected = broadcastShapes(a, b);
        } catch {
          expected = undefined;
        }
        if (expected) expect(broadcast("add", tensors)).toEqual(expected);
        else expect(() => broadcast("add", tensors)).toThrow(ShapeError);
      }),
    );
  });

  test("two names are two sizes; a name that begins with ? is any", () => {
    expect(() => input("a", ["T"]).add(input("b", ["S"]))).toThrow(/dimensions S and T|dimensions T and S/);
    expect(() => input("a", ["T"]).add(input("b", [3]))).toThrow(ShapeError);
    expect(input("a", ["T"]).add(input("b", ["?"])).shape).toEqual(["T"]);
    expect(input("a", ["T"]).add(input("b", ["T"])).shape).toEqual(["T"]);
  });

  test("reshape keeps the number of elements, there and back", () => {
    fc.assert(
      fc.property(fc.array(fc.oneof(size, fc.constantFrom<Dim>("T", "S")), { minLength: 1, maxLength: 4 }), (dims) => {
        const x = input("x", dims);
        const flat = x.reshape([-1]);
        expect(flat.shape).toEqual([productOfDims(dims)]);
        expect(flat.reshape(dims).shape).toEqual(x.shape);
        expect(x.unsqueeze(0).squeeze(0).shape).toEqual(x.shape);
        expect(() => x.reshape([productOfDims(dims), 2])).toThrow(ShapeError);
      }),
    );
  });

  test("transposing by a permutation and its inverse is nothing", () => {
    const permuted = fc
      .shuffledSubarray([0, 1, 2, 3], { minLength: 4 })
      .chain((permutation) => fc.tuple(fc.constant(permutation), fc.tuple(atom, atom, atom, atom)));
    fc.assert(
      fc.property(permuted, ([permutation, dims]) => {
        const x = input("x", dims);
        const inverse = permutation.map((_, i) => permutation.indexOf(i));
        expect(x.transpose(...permutation).transpose(...inverse).shape).toEqual(x.shape);
      }),
    );
  });

  test("parts of an axis add up to it, whatever the axis is", () => {
    fc.assert(
      fc.property(fc.array(atom, { minLength: 1, maxLength: 4 }), (parts) => {
        const total = parts.reduce(addDims);
        const x = input("x", [total, 3]);
        const cut = x.split(parts, 0);
        expect(cut.map((part) => part.shape[0])).toEqual(parts);
        expect(concat(cut, 0).shape).toEqual(x.shape);
        expect(() => x.split([...parts, 1], 0)).toThrow(ShapeError);
      }),
    );
  });
});
