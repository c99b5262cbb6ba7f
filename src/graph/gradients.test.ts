import { describe, expect, test } from "vitest";
import { isFloat } from "./dtype.js";
import { gradientRules } from "./gradient-rules.js";
import { gradients } from "./gradients.js";
import { type Case, cases, give } from "./op-cases.js";
import { ops } from "./ops.js";
import { input } from "./tensor.js";
import { evaluate, type Given, largestDifference, type NDArray, randomFloats } from "./testing.js";

/** d sum(seed * f) / d given[index], by central differences of plain loops in double precision. */
function differences(row: Case, given: readonly NDArray[], seed: readonly number[], index: number): number[] {
  const step = 1e-5;
  const total = (array: NDArray): number =>
    row.expected(...given.with(index, array)).data.reduce((sum, value, i) => sum + value * seed[i], 0);
  const { shape, data } = given[index];
  return data.map((value, i) => {
    const moved = (by: number): number => total({ shape, data: data.with(i, value + by) });
    return (moved(step) - moved(-step)) / (2 * step);
  });
}

/** The gradients of sum(seed * f) by every float input, computed by the graph. */
async function graphGradients(
  row: Case,
  given: readonly Given[],
  seed: NDArray,
  standard: boolean,
): Promise<Record<string, NDArray>> {
  const { arrays } = await evaluate(
    [...given, { shape: seed.shape.map((_, i) => `?s${i}`), array: seed }],
    (...all) => {
      const inputs = all.slice(0, -1);
      const wrt = inputs.filter(({ dtype }) => isFloat(dtype));
      const out = row.build(...inputs);
      const results = gradients(out, wrt, { seed: all[inputs.length].withShape(out.shape) });
      return Object.fromEntries(results.map((result, i) => [`d_${wrt[i].name}`, result]));
    },
    { standard },
  );
  return arrays;
}

describe("each operation's gradient equals central differences of plain loops", () => {
  const differentiable = cases.flatMap((row, i) => {
    const given = give(row, i + 1);
    const floats = given.some(({ dtype = "float32" }) => isFloat(dtype));
    const out = row.build(...given.map(({ shape, dtype }, j) => input(`i${j}`, shape, dtype)));
    return floats && isFloat(out.dtype) ? [{ title: `${row.op}${row.note ? `: ${row.note}` : ""}`, row, given }] : [];
  });

  test.each(differentiable)("$title", async ({ row, given }) => {
    const arrays = given.map(({ array }) => array);
    const { shape } = row.expected(...arrays);
    const count = shape.reduce((product, size) => product * size, 1);
    const seed = { shape, data: Array.from(randomFloats(count, 7)) };
    const numeric = row.symbolic ? given : given.map((value) => ({ ...value, shape: value.array.shape }));
    for (const [values, standard] of [
      [given, false],
      [numeric, false],
      [given, true],
    ] as const) {
      const found = await graphGradients(row, values, seed, standard);
      given.forEach(({ dtype = "float32", array }, i) => {
        if (!isFloat(dtype)) return;
        const result = found[`d_${String.fromCharCode(97 + i)}`];
        expect(result.shape).toEqual(array.shape);
        const expected = row.op === "stopGradient" ? array.data.map(() => 0) : differences(row, arrays, seed.data, i);
        const scale = Math.max(1, ...expected.map(Math.abs));
        expect(largestDifference(result.data, expected) / scale, `input ${i}`).toBeLessThan(2e-5);
      });
    }
  });

  test("every operation has a rule, or says that it has none", () => {
    expect(Object.keys(gradientRules).sort()).toEqual(Object.keys(ops).sort());
    const differentiated = new Set<string>(differentiable.map(({ row }) => row.op));
    const elsewhere = ["groupQueryAttention", "cast"];
    const rules = Object.entries(gradientRules).filter(([op, rule]) => rule !== null && !elsewhere.includes(op));
    expect(rules.map(([op]) => op).filter((op) => !differentiated.has(op))).toEqual([]);
    for (const [op, rule] of rules) {
      const byPlain = rule === "plain" || (Array.isArray(rule) && rule.includes("plain"));
      if (byPlain) expect(ops[op as keyof typeof ops].plain, op).toBeDefined();
    }
  });
});
