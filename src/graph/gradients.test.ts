import { describe, expect, test } from "vitest";
import { attention } from "./attention.js";
import { compile } from "./compile.js";
import { isFloat } from "./dtype.js";
import { Emitter } from "./emit.js";
import { gradientRules } from "./gradient-rules.js";
import { gradients } from "./gradients.js";
import { crossEntropy } from "./losses.js";
import { type Case, cases, give, SIZES } from "./op-cases.js";
import { ops } from "./ops.js";
import { recompute } from "./recompute.js";
import { constant, input, parameter, type Tensor, tap } from "./tensor.js";
import {
  at,
  concrete,
  elementwise,
  evaluate,
  type Given,
  generate,
  largestDifference,
  type NDArray,
  random,
  randomFloats,
} from "./testing.js";

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
    const elsewhere = ["groupQueryAttention", "cast", "scan"];
    const rules = Object.entries(gradientRules).filter(([op, rule]) => rule !== null && !elsewhere.includes(op));
    expect(rules.map(([op]) => op).filter((op) => !differentiated.has(op))).toEqual([]);
    for (const [op, rule] of rules) {
      const byPlain = rule === "plain" || (Array.isArray(rule) && rule.includes("plain"));
      if (byPlain) expect(ops[op as keyof typeof ops].plain, op).toBeDefined();
    }
  });
});

/** Float32 numbers of a shape (or its sizes). */
function floats(shape: readonly number[], data: readonly number[] | number): Given {
  const count = shape.reduce((product, size) => product * size, 1);
  return { shape, array: { shape, data: typeof data === "number" ? Array.from(randomFloats(count, data)) : data } };
}

function integers(shape: readonly number[], data: readonly number[]): Given {
  return { shape, dtype: "int64", array: { shape, data } };
}

describe("compositions", () => {
  interface Step {
    row: Case;
    others: NDArray[];
    residual: boolean;
  }
  const smooth = cases.filter(({ op }) => gradientRules[op] !== null && op !== "cast" && op !== "rsqrt");

  /** A chain of operations that fit one another, some with a path around them. */
  function chain(seed: number): { start: NDArray; steps: Step[] } {
    const next = random(seed);
    const start = generate([SIZES.T, next() < 0.5 ? 3 : 6], () => next() * 2 - 1);
    const steps: Step[] = [];
    let { shape } = start;
    while (steps.length < 6) {
      const fitting = smooth.filter((row) => {
        const [{ shape: first, dtype = "float32", sizes = concrete(first, SIZES) }] = row.inputs;
        return dtype === "float32" && !row.symbolic && sizes.join() === shape.join();
      });
      if (fitting.length === 0) break;
      const row = fitting[Math.floor(next() * fitting.length)];
      const others = give(row, Math.floor(next() * 1e6)).slice(1);
      const arrays = others.map(({ array }) => array);
      const after = row.expected(
        { shape, data: start.data.slice(0, 1).concat(Array(shape.reduce((a, b) => a * b, 1) - 1).fill(0.5)) },
        ...arrays,
      ).shape;
      steps.push({ row, others: arrays, residual: after.join() === shape.join() && next() < 0.5 });
      shape = after;
    }
    return { start, steps };
  }

  /** low..high, from any number, so that every operation is given numbers that it is defined on. */
  const range = ({ inputs: [{ low = -1, high = 1 }] }: Case): [number, number] => [low, Math.min(high, low + 4) - low];

  const byLoops = (x: NDArray, steps: readonly Step[]): NDArray => {
    for (const { row, others, residual } of steps) {
      const [low, width] = range(row);
      const squashed = elementwise((value) => low + width / (1 + Math.exp(-value)), x);
      const out = row.expected(squashed, ...others);
      x = residual ? elementwise((a, b) => a + b, out, x) : out;
    }
    return x;
  };

  const byGraph = (x: Tensor, steps: readonly Step[], others: readonly Tensor[]): Tensor => {
    let taken = 0;
    for (const { row, others: given, residual } of steps) {
      const [low, width] = range(row);
      const out = row.build(x.sigmoid().mul(width).add(low), ...others.slice(taken, taken + given.length));
      taken += given.length;
      x = residual ? out.add(x) : out;
    }
    return x;
  };

  test("fifty chains made at random", async () => {
    let longest = 0;
    let moved = 0;
    for (let i = 0; i < 50; i++) {
      const { start, steps } = chain(1000 + i);
      longest = Math.max(longest, steps.length);
      const out = byLoops(start, steps);
      const seed = Array.from(randomFloats(out.data.length, i));
      const total = (x: NDArray): number => byLoops(x, steps).data.reduce((sum, value, j) => sum + value * seed[j], 0);
      const expected = start.data.map((value, j) => {
        const at = (by: number): number => total({ shape: start.shape, data: start.data.with(j, value + by) });
        return (at(1e-5) - at(-1e-5)) / 2e-5;
      });
      const extra = steps.flatMap(({ row, others }) =>
        others.map((array, j): Given => ({ shape: array.shape, dtype: row.inputs[j + 1].dtype, array })),
      );
      const { arrays } = await evaluate([{ shape: start.shape, array: start }, ...extra], (x, ...others) => {
        const y = byGraph(x, steps, others);
        const [dx] = gradients(y, [x], { seed: constant(Float32Array.from(seed), out.shape) });
        return { y, dx };
      });
      const names = steps.map(({ row, residual }) => `${row.op}${residual ? "+" : ""}`).join(" ");
      const scale = Math.max(1, ...expected.map(Math.abs));
      expect(largestDifference(arrays.dx.data, expected) / scale, names).toBeLessThan(2e-4);
      if (expected.some((value) => Math.abs(value) > 1e-3)) moved++;
    }
    expect(longest).toBe(6);
    expect(moved).toBeGreaterThan(30);
  });
});

describe("gradients", () => {
  test("of a two-layer network, by hand", async () => {
    // x = (1, 2), W1 = ((1, -1), (2, 1)), so h = relu(-1, 4) = (0, 4); W2 = (3, 0.5), y = 2; loss (y - 5)^2 = 9.
    // dy = 2 (2 - 5) = -6; dW2 = -6 h = (0, -24); dh = -6 W2 = (-18, -3), of which relu lets (0, -3) through;
    // dW1 = ((0, 0), -3 x) = ((0, 0), (-3, -6)); dx = -3 (2, 1) = (-6, -3); db1 = (0, -3).
    const given = [
      floats([1, 2], [1, 2]),
      floats([2, 2], [1, -1, 2, 1]),
      floats([2], [0, 0]),
      floats([1, 2], [3, 0.5]),
    ];
    const { arrays } = await evaluate(given, (x, w1, b1, w2) => {
      const loss = x.linear(w1, b1).relu().linear(w2).sub(5).square().sum();
      const [dx, dw1, db1, dw2] = gradients(loss, [x, w1, b1, w2]);
      return { loss, dx, dw1, db1, dw2 };
    });
    expect(arrays.loss.data).toEqual([9]);
    expect(arrays.dw2.data).toEqual([0, -24]);
    expect(arrays.dw1.data.map((value) => value + 0)).toEqual([0, 0, -3, -6]);
    expect(arrays.db1.data.map((value) => value + 0)).toEqual([0, -3]);
    expect(arrays.dx.data).toEqual([-6, -3]);
  });

  test("of cross-entropy with weights, by hand", async () => {
    // Both rows have p = (0.5, 0.5). Weights 3 and 0: the mean counts the first row alone; its target is 1.
    const given = [floats([2, 2], [7, 7, 1, 1]), integers([2], [1, -1]), floats([2], [3, 0])];
    const { arrays } = await evaluate(given, (logits, targets, weights) => {
      const loss = crossEntropy(logits, targets, weights);
      const none = crossEntropy(logits, targets, weights.mul(0));
      return { loss, none, d: gradients(loss, [logits])[0], dnone: gradients(none, [logits])[0] };
    });
    expect(arrays.loss.data[0]).toBeCloseTo(Math.log(2), 6);
    expect(largestDifference(arrays.d.data, [0.5, -0.5, 0, 0])).toBeLessThan(1e-6);
    expect(arrays.none.data).toEqual([0]);
    expect(arrays.dnone.data.every((value) => value === 0)).toBe(true);
  });

  test("at ties: shared by equal elements", async () => {
    const { arrays } = await evaluate([floats([4], [2, 5, 5, 1]), floats([4], [2, 4, 5, 3])], (x, y) => {
      const [dx, dy] = gradients(x.maximum(y).sum(), [x, y]);
      const [least] = gradients(x.minimum(5).sum(), [x]);
      return { top: gradients(x.max(), [x])[0], dx, dy, least, relu: gradients(x.sub(2).relu().sum(), [x])[0] };
    });
    expect(arrays.top.data).toEqual([0, 0.5, 0.5, 0]);
    expect(arrays.dx.data).toEqual([0.5, 1, 0.5, 0]);
    expect(arrays.dy.data).toEqual([0.5, 0, 0.5, 1]);
    expect(arrays.least.data).toEqual([1, 0.5, 0.5, 1]);
    expect(arrays.relu.data).toEqual([0, 1, 1, 0]);
  });

  test("of a look-up: repeated indices add up, others are zero", async () => {
    const given = [floats([4, 2], 1), integers([2, 2], [3, 1, 3, 3])];
    const { arrays } = await evaluate(given, (table, ids) => {
      const rows = table.gather(ids); // [2, 2, 2]
      const scale = constant([
        [
          [1, 10],
          [2, 20],
        ],
        [
          [3, 30],
          [4, 40],
        ],
      ]);
      return { out: gradients(rows.mul(scale).sum(), [table])[0] };
    });
    expect(arrays.out.data).toEqual([0, 0, 2, 20, 0, 0, 8, 80]);
  });

  test("of a look-up are the same to the last bit in every run", async () => {
    // Sums of 4096 rows into eight: any change of their order would show.
    const ids = input("ids", ["N"], "int64");
    const g = input("g", ["N", 64]);
    const table = parameter("table", [8, 64]);
    const [out] = gradients(table.gather(ids), [table], { seed: g });
    await using segment = await compile({ inputs: { ids, g, table }, outputs: { out } }, { threads: 2 });
    const next = random(3);
    const feeds = {
      ids: { data: BigInt64Array.from({ length: 4096 }, () => BigInt(Math.floor(next() * 8))), dims: [4096] },
      g: { data: randomFloats(4096 * 64, 5), dims: [4096, 64] },
      table: { data: new Float32Array(8 * 64), dims: [8, 64] },
    };
    const first = (await segment.run(feeds)).out.data as Float32Array;
    const sum = feeds.g.data.reduce((total, value) => total + value, 0);
    expect(first.reduce((total, value) => total + value, 0)).toBeCloseTo(sum, 1);
    for (let i = 0; i < 40; i++) {
      const again = (await segment.run(feeds)).out.data as Float32Array;
      expect(Buffer.compare(Buffer.from(first.buffer), Buffer.from(again.buffer))).toBe(0);
    }
  });

  test("stop at stopGradient, at integers and where no path leads", async () => {
    const { arrays } = await evaluate([floats([3], [1, 2, 3]), floats([2], 1)], (x, apart) => {
      const [dx, none] = gradients(x.mul(x.stopGradient()).sum(), [x, apart]);
      const [rounded] = gradients(x.cast("int32").cast("float32").sum(), [x]);
      return { dx, none, rounded };
    });
    expect(arrays.dx.data).toEqual([1, 2, 3]);
    expect(arrays.none).toEqual({ shape: [2], data: [0, 0] });
    expect(arrays.rounded.data).toEqual([0, 0, 0]);
  });

  test("of inner tensors: what is computed from them counts, what lies beside does not", async () => {
    const { arrays } = await evaluate([floats([2], [2, 3])], (x) => {
      const inner = tap(x.mul(x), "inner"); // (4, 9)
      const loss = inner.mul(inner).add(x).sum(); // d inner = 2 inner; d x = 2 inner 2 x + 1
      const [dInner, dx, dLoss] = gradients(loss, [inner, x, loss]);
      return { dInner, dx, dLoss };
    });
    expect(arrays.dInner.data).toEqual([8, 18]);
    expect(arrays.dx.data).toEqual([33, 109]);
    expect(arrays.dLoss).toEqual({ shape: [], data: [1] });
  });

  test("of attention weights, in batches of symbolic size", async () => {
    const given: Given[] = ["B", "B", "B"].map((B, i) => ({
      shape: [B, "T", 4],
      array: floats([2, 3, 4], i + 1).array,
    }));
    const { arrays } = await evaluate(given, (q, k, v) => {
      const pattern = q.matmul(k.transpose()).softmax(-1); // [B, T, T]
      const out = pattern.matmul(v);
      const [dPattern, dv] = gradients(out.square().sum(), [pattern, v]);
      return { pattern, out, dPattern, dv };
    });
    const { pattern, out } = arrays;
    const v = given[2].array;
    const expected = generate([2, 3, 3], (b, t, s) =>
      [0, 1, 2, 3].reduce((sum, d) => sum + 2 * at(out, b, t, d) * at(v, b, s, d), 0),
    );
    expect(largestDifference(arrays.dPattern.data, expected.data)).toBeLessThan(1e-5);
    const dv = generate([2, 3, 4], (b, s, d) =>
      [0, 1, 2].reduce((sum, t) => sum + 2 * at(out, b, t, d) * at(pattern, b, t, s), 0),
    );
    expect(largestDifference(arrays.dv.data, dv.data)).toBeLessThan(1e-5);
  });

  test("of fused attention equal those of its definition", async () => {
    const given: Given[] = [4, 2, 2].map((heads, i) => ({
      shape: ["T", heads * 8],
      array: floats([5, heads * 8], i + 1).array,
    }));
    const { arrays } = await evaluate(given, (q, k, v) => {
      const fused = q.groupQueryAttention({ k, v, heads: 4, kvHeads: 2, softcap: 3, window: 3 });
      const apart = (x: Tensor, heads: number): Tensor => x.reshape(["T", heads, 8]);
      const plain = attention(apart(q, 4), apart(k, 2), apart(v, 2), { softcap: 3, window: 3 }).heads;
      const pairs = [fused, plain].map((out, i) =>
        gradients(out.exp().sum(), [q, k, v]).map((d, j) => [`${i} ${j}`, d] as const),
      );
      return Object.fromEntries(pairs.flat());
    });
    for (const j of [0, 1, 2]) {
      expect(largestDifference(arrays[`0 ${j}`].data, arrays[`1 ${j}`].data)).toBeLessThan(1e-5);
      expect(arrays[`0 ${j}`].data.some((value) => Math.abs(value) > 0.05)).toBe(true);
    }
  });

  test("of a masked softmax are not masked twice, and are zero where hidden", async () => {
    const given = [floats([2, 3], [1, 2, 3, 3, 2, 1]), floats([2, 3], [1, 5, 7, 2, 4, 8])];
    const build = (x: Tensor, c: Tensor): Record<string, Tensor> => {
      const mask = constant([
        [true, true, false],
        [false, true, true],
      ]);
      const hidden = tap(mask.where(x, Number.NEGATIVE_INFINITY), "logits");
      const [d] = gradients(hidden.softmax(-1).mul(c).sum(), [x]);
      const [other] = gradients(hidden.exp().add(hidden.softmax(-1)).mul(c).sum(), [x]);
      return { d, other };
    };
    const { arrays } = await evaluate(given, build);
    const p = 1 / (1 + Math.exp(1));
    const slope = p * (1 - p);
    const expected = [slope * (1 - 5), slope * (5 - 1), 0, 0, slope * (4 - 8), slope * (8 - 4)];
    expect(largestDifference(arrays.d.data, expected)).toBeLessThan(1e-6);
    const exps = [1, 5 * Math.E, 0, 0, 4 * Math.E, 8].map(
      (value, i) => value * Math.E * Number(value !== 0) + expected[i],
    );
    expect(largestDifference(arrays.other.data, exps)).toBeLessThan(1e-4);
  });

  test("of gradients: second derivatives", async () => {
    const given = [floats([3], [1, -2, 0.5]), floats([3], [0.3, 1, -1])];
    const { arrays } = await evaluate(given, (x, v) => {
      const cubic = gradients(gradients(x.pow(3).sum(), [x])[0].sum(), [x])[0]; // 6 x
      const product = (f: (x: Tensor) => Tensor): Tensor =>
        gradients(gradients(f(x).sum(), [x])[0].mul(v).sum(), [x])[0];
      const attended = product((y) =>
        y
          .softmax(-1)
          .mul(constant([1, 2, 4]))
          .sum(),
      );
      const norm = product((y) =>
        y
          .unsqueeze(0)
          .rmsNorm(constant([1, 2, 3]), { eps: 0.1 })
          .square(),
      );
      const first = (f: (x: Tensor) => Tensor, at: Tensor): Tensor => gradients(f(at).sum(), [at])[0];
      const moved = (f: (x: Tensor) => Tensor): Tensor => {
        const step = 1 / 128;
        return first(f, x.add(v.mul(step)))
          .sub(first(f, x.sub(v.mul(step))))
          .div(2 * step);
      };
      return {
        cubic,
        attended,
        attendedMoved: moved((y) =>
          y
            .softmax(-1)
            .mul(constant([1, 2, 4]))
            .sum(),
        ),
        norm,
        normMoved: moved((y) =>
          y
            .unsqueeze(0)
            .rmsNorm(constant([1, 2, 3]), { eps: 0.1 })
            .square(),
        ),
      };
    });
    expect(largestDifference(arrays.cubic.data, [6, -12, 3])).toBeLessThan(1e-5);
    expect(largestDifference(arrays.attended.data, arrays.attendedMoved.data)).toBeLessThan(1e-3);
    expect(largestDifference(arrays.norm.data, arrays.normMoved.data)).toBeLessThan(2e-3);
    expect(arrays.norm.data.some((value) => Math.abs(value) > 0.1)).toBe(true);
  });

  test("in float16", async () => {
    const { arrays, tensors } = await evaluate([floats([2, 3], 1), floats([4, 3], 2)], (x, w) => {
      const [dx, exact] = [
        gradients(x.cast("float16").linear(w.cast("float16")).tanh().cast("float32").sum(), [x])[0],
        gradients(x.linear(w).tanh().sum(), [x])[0],
      ];
      return {
        dx,
        exact,
        inner: gradients(x.cast("float16").exp(), [x], { seed: constant(1, [], "float16").expand([2, 3]) })[0],
      };
    });
    expect(tensors.inner.dtype).toBe("float32");
    expect(largestDifference(arrays.dx.data, arrays.exact.data)).toBeLessThan(1e-2);
  });

  test("need one number, and fractions", () => {
    const x = input("x", ["T", 2]);
    expect(() => gradients(x, [x])).toThrow(/must be one number, not "x" \[T, 2\]/);
    expect(() => gradients(x.sum(), [x.cast("int64")])).toThrow(/no tensor of fractions/);
    expect(() => gradients(input("n", [], "int64"), [x])).toThrow(/no tensor of fractions/);
  });

  test("of graphs too deep for recursion", async () => {
    const { arrays } = await evaluate([floats([1], [1])], (x) => {
      let y = x;
      for (let i = 0; i < 3000; i++) y = i % 2 === 0 ? y.add(0.5) : y.sub(0.5);
      return { dx: gradients(y.sum(), [x])[0] };
    });
    expect(arrays.dx.data).toEqual([1]);
  });
});

describe("recompute", () => {
  const block = (w: Tensor, scale: Tensor) => (x: Tensor) => x.linear(w).tanh().mul(scale).add(x);
  const given = [floats([3, 4], 1), floats([4, 4], 2), floats([4], 3)];
  const model =
    (again: boolean) =>
    (x: Tensor, w: Tensor, s: Tensor): Record<string, Tensor> => {
      let y = x;
      for (let i = 0; i < 3; i++) y = again ? recompute([y], block(w, s.exp())) : block(w, s.exp())(y);
      const [dx, dw, ds] = gradients(y.square().sum(), [x, w, s]);
      return { y, dx, dw, ds };
    };

  test("changes no gradient", async () => {
    const plain = await evaluate(given, model(false));
    const again = await evaluate(given, model(true));
    for (const name of ["y", "dx", "dw", "ds"]) {
      expect(again.arrays[name]).toEqual(plain.arrays[name]);
    }
  });

  test("computes inner values again, once, and only after the gradient of the block's end", () => {
    const counts = [false, true].map((again) => {
      const inputs = given.map(({ shape }, i) => input("abc"[i], shape));
      const outputs = model(again)(inputs[0], inputs[1], inputs[2]);
      const text = new TextDecoder("latin1").decode(new Emitter({}).buildNow({ outputs }).bytes);
      return { tanh: text.split("Tanh_").length, exp: text.split("Exp_").length };
    });
    expect(counts[1].tanh).toBeGreaterThan(counts[0].tanh);
    expect(counts[1].exp).toBe(counts[0].exp); // does not depend on the block's input
  });

  test("of a block with several ends, inside another, and called twice", async () => {
    const build =
      (again: boolean) =>
      (x: Tensor, w: Tensor): Record<string, Tensor> => {
        const twice = (y: Tensor): Record<string, Tensor> => {
          const hidden = y.linear(w).tanh();
          return { sum: hidden.add(y), product: hidden.mul(y) };
        };
        const outer = (y: Tensor): Tensor => {
          const { sum, product } = again ? recompute([y], twice) : twice(y);
          return sum.sub(product.sin());
        };
        let y = x;
        for (let i = 0; i < 2; i++) y = again ? recompute([y], outer) : outer(y);
        const [dx, dw] = gradients(y.square().sum(), [x, w]);
        return { dx, dw };
      };
    const plain = await evaluate(given.slice(0, 2), build(false));
    const again = await evaluate(given.slice(0, 2), build(true));
    expect(again.arrays).toEqual(plain.arrays);
  });
});
