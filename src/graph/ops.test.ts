import { describe, expect, test } from "vitest";
import { isUnknown } from "./dims.js";
import { type Case, cases, give, SIZES } from "./op-cases.js";
import { ops } from "./ops.js";
import { constant, input } from "./tensor.js";
import { concrete, evaluate, largestDifference, testProvider } from "./testing.js";

/** WGSL promises sines and cosines to 2^-11 only, and nothing about NaN. */
function tolerance({ op, tolerance = 1e-5 }: Case): number {
  if (testProvider() !== "webgpu") return tolerance;
  return op === "sin" || op === "cos" ? 2 ** -11 : op === "isNaN" ? 2 : tolerance;
}

describe("each operation equals plain loops", () => {
  test.each(cases.map((row, i) => ({ title: `${row.op}${row.note ? `: ${row.note}` : ""}`, row, i })))(
    "$title",
    async ({ row, i }) => {
      const given = give(row, i + 1);
      const expected = row.expected(...given.map(({ array }) => array));
      const numeric = row.symbolic ? given : given.map((value) => ({ ...value, shape: value.array.shape }));
      for (const [values, standard] of [
        [given, false],
        [numeric, false],
        [given, true],
      ] as const) {
        const { arrays, tensors } = await evaluate(values, row.build, { standard });
        expect(arrays.out.shape).toEqual(expected.shape);
        if (!tensors.out.shape.some(isUnknown)) expect(concrete(tensors.out.shape, SIZES)).toEqual(expected.shape);
        expect(largestDifference(arrays.out.data, expected.data)).toBeLessThan(tolerance(row));
      }
    },
  );

  test("no operation is left out", () => {
    const elsewhere = ["input", "parameter", "constant", "groupQueryAttention", "scan"];
    const tested = new Set<string>([...elsewhere, ...cases.map(({ op }) => op)]);
    expect(Object.keys(ops).filter((op) => !tested.has(op))).toEqual([]);
  });

  test("plain forms equal fused ones", async () => {
    for (const [i, row] of cases.entries()) {
      const { plain, onnx } = ops[row.op];
      if (!plain || !onnx) continue;
      const { arrays } = await evaluate(give(row, i), (...inputs) => {
        const node = row.build(...inputs);
        return { fused: node, plain: ops[node.op].plain?.(node) ?? node };
      });
      expect(largestDifference(arrays.fused.data, arrays.plain.data), row.op).toBeLessThan(2e-6);
    }
  });

  test("wide types: a constant keeps its type", () => {
    expect(input("x", ["T"], "int64").add(1).dtype).toBe("int64");
    expect(constant([true, false]).dtype).toBe("bool");
    expect(
      constant([
        [1, 2],
        [3, 4],
      ]).shape,
    ).toEqual([2, 2]);
    expect(() => constant([[1, 2], [3]])).toThrow(/one length/);
  });
});
