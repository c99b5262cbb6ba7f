/** For tests only: every operation on small inputs, with the same by plain loops. */
import type { Dim } from "./dims.js";
import type { DType } from "./dtype.js";
import { tokenLosses } from "./losses.js";
import type { OpName } from "./ops.js";
import { concat, constant, einsum, stack, Tensor } from "./tensor.js";
import { at, concrete, elementwise, type Given, generate, matmul, type NDArray, random, reduce } from "./testing.js";

/** The sizes of symbolic dimensions. */
export const SIZES = { T: 4, S: 5 };

/** One row: inputs (shape, and type or range), the graph, and the same by plain loops. */
export interface Case {
  op: OpName;
  note?: string;
  inputs: { shape: Dim[]; dtype?: DType; low?: number; high?: number; sizes?: number[] }[];
  build: (...inputs: Tensor[]) => Tensor;
  expected: (...arrays: NDArray[]) => NDArray;
  tolerance?: number;
  /** The graph names symbols, so it cannot be built over numbers. */
  symbolic?: boolean;
}

const sum = (values: number[]): number => values.reduce((a, b) => a + b, 0);
const mean = (values: number[]): number => sum(values) / values.length;
/** The error function by its series; exact to double precision on the range used here. */
function erf(x: number): number {
  let [term, total] = [x, x];
  for (let n = 1; n < 80; n++) {
    term *= (-x * x) / n;
    total += term / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * total;
}
const halfEven = (x: number): number => {
  const low = Math.floor(x);
  return x - low === 0.5 ? (low % 2 === 0 ? low : low + 1) : Math.round(x);
};

/** f of one number. */
function one(
  op: OpName,
  build: (x: Tensor) => Tensor,
  f: (x: number) => number,
  range: { low?: number; high?: number; dtype?: DType } = {},
): Case {
  return { op, inputs: [{ shape: ["T", 3], ...range }], build, expected: (x) => elementwise(f, x) };
}

/** f of two numbers, broadcast in both directions: [T, 1, 3] and [S, 1]. */
function two(
  op: OpName,
  build: (a: Tensor, b: Tensor) => Tensor,
  f: (a: number, b: number) => number,
  range: { low?: number; high?: number; dtype?: DType } = {},
): Case {
  return {
    op,
    note: range.dtype,
    inputs: [
      { shape: ["T", 1, 3], ...range },
      { shape: ["S", 1], ...range },
    ],
    build,
    expected: (a, b) => elementwise(f, a, b),
  };
}

/** A reduction over one axis, over two with keep, and over all. */
function reduction(
  op: OpName,
  build: (x: Tensor, axes?: number | number[], options?: { keep: boolean }) => Tensor,
  f: (values: number[]) => number,
): Case[] {
  const inputs = [{ shape: ["T", 3, "S"] }];
  return [
    { op, inputs, build: (x) => build(x, -1), expected: (x) => reduce(x, [2], false, f) },
    { op, inputs, build: (x) => build(x, [2, 0], { keep: true }), expected: (x) => reduce(x, [0, 2], true, f) },
    { op, inputs, build: (x) => build(x), expected: (x) => reduce(x, [0, 1, 2], false, f) },
  ];
}

function softmaxRow(row: NDArray, index: number[], axis: number): { value: number; total: number; max: number } {
  const along = Array.from({ length: row.shape[axis] }, (_, i) => at(row, ...index.with(axis, i)));
  const max = Math.max(...along);
  return { value: at(row, ...index), max, total: sum(along.map((v) => Math.exp(v - max))) };
}

const FACTORS = [
  [1, 2, 3],
  [1, 0, 2],
  [0, 0, 1],
  [3, 1, 1],
];
const constantArray = (rows: number[][]): NDArray => ({ shape: [rows.length, rows[0].length], data: rows.flat() });
const INTEGERS = { dtype: "int64", low: -9, high: 9 } as const;
const NONZERO = { dtype: "int64", low: 1, high: 9 } as const;
const BOOLS = { dtype: "bool", low: 0, high: 2 } as const;
const bool = (value: boolean): number => (value ? 1 : 0);
const X = [{ shape: ["T", 6] as Dim[] }];

/** At least one row per operation that is no leaf; its numbers are in double precision. */
export const cases: Case[] = [
  two(
    "add",
    (a, b) => a.add(b),
    (a, b) => a + b,
  ),
  two(
    "add",
    (a, b) => a.add(b),
    (a, b) => a + b,
    INTEGERS,
  ),
  two(
    "sub",
    (a, b) => a.sub(b),
    (a, b) => a - b,
  ),
  two(
    "mul",
    (a, b) => a.mul(b),
    (a, b) => a * b,
  ),
  two(
    "div",
    (a, b) => a.div(b.abs().add(1)),
    (a, b) => a / (Math.abs(b) + 1),
  ),
  two(
    "div",
    (a, b) => a.div(b),
    (a, b) => Math.trunc(a / b),
    NONZERO,
  ),
  two(
    "mod",
    (a, b) => a.mod(b.abs().add(0.5)),
    (a, b) => a % (Math.abs(b) + 0.5),
  ),
  two(
    "mod",
    (a, b) => a.sub(5).mod(b),
    (a, b) => (((a - 5) % b) + b) % b,
    NONZERO,
  ),
  two(
    "pow",
    (a, b) => a.pow(b),
    (a, b) => a ** b,
    { low: 0.5, high: 2 },
  ),
  two("minimum", (a, b) => a.minimum(b), Math.min),
  two("maximum", (a, b) => a.maximum(b), Math.max),
  one(
    "maximum",
    (x) => x.clip(-0.25, 0.5),
    (x) => Math.min(0.5, Math.max(-0.25, x)),
  ),
  two(
    "equal",
    (a, b) => a.equal(b),
    (a, b) => bool(a === b),
    { dtype: "int64", low: 0, high: 3 },
  ),
  two(
    "less",
    (a, b) => a.less(b),
    (a, b) => bool(a < b),
  ),
  two(
    "greater",
    (a, b) => a.greater(b),
    (a, b) => bool(a > b),
  ),
  two(
    "lessEqual",
    (a, b) => a.lessEqual(b),
    (a, b) => bool(a <= b),
    { dtype: "int64", low: 0, high: 3 },
  ),
  two(
    "greaterEqual",
    (a, b) => a.greaterEqual(b),
    (a, b) => bool(a >= b),
    { dtype: "int32", low: 0, high: 3 },
  ),
  two(
    "and",
    (a, b) => a.and(b),
    (a, b) => a & b,
    BOOLS,
  ),
  two(
    "or",
    (a, b) => a.or(b),
    (a, b) => a | b,
    BOOLS,
  ),
  two(
    "xor",
    (a, b) => a.xor(b),
    (a, b) => a ^ b,
    BOOLS,
  ),
  one(
    "not",
    (x) => x.not(),
    (x) => 1 - x,
    BOOLS,
  ),
  {
    op: "mul",
    note: "unknown sizes, one of which is 1",
    inputs: [
      { shape: ["?a", 3, "?b"], sizes: [1, 3, 2] },
      { shape: ["?c", 3, "?d"], sizes: [4, 3, 1] },
    ],
    symbolic: true,
    build: (a, b) => a.mul(b),
    expected: (a, b) => elementwise((x, y) => x * y, a, b),
  },
  {
    op: "where",
    note: "all three broadcast",
    inputs: [{ shape: ["T", 1], ...BOOLS }, { shape: [3] }, { shape: ["S", "T", 1] }],
    build: (c, x, y) => c.where(x, y),
    expected: (c, x, y) => elementwise((condition, yes, no) => (condition ? yes : no), c, x, y),
  },
  {
    op: "where",
    inputs: [{ shape: ["T", 1], ...BOOLS }, { shape: [3] }],
    build: (c, x) => c.where(x, -2),
    expected: (c, x) => elementwise((condition, value) => (condition ? value : -2), c, x),
  },
  one(
    "neg",
    (x) => x.neg(),
    (x) => -x,
  ),
  one("abs", (x) => x.abs(), Math.abs),
  one("sign", (x) => x.sign(), Math.sign),
  one("exp", (x) => x.exp(), Math.exp),
  one("log", (x) => x.log(), Math.log, { low: 0.1, high: 9 }),
  one("sqrt", (x) => x.sqrt(), Math.sqrt, { low: 0.1, high: 9 }),
  one(
    "rsqrt",
    (x) => x.rsqrt(),
    (x) => 1 / Math.sqrt(x),
    { low: 0.1, high: 9 },
  ),
  one(
    "reciprocal",
    (x) => x.reciprocal(),
    (x) => 1 / x,
    { low: 0.2, high: 3 },
  ),
  one(
    "square",
    (x) => x.square(),
    (x) => x * x,
  ),
  one("sin", (x) => x.sin(), Math.sin, { low: -9, high: 9 }),
  one("cos", (x) => x.cos(), Math.cos, { low: -9, high: 9 }),
  one("tanh", (x) => x.tanh(), Math.tanh, { low: -4, high: 4 }),
  one(
    "sigmoid",
    (x) => x.sigmoid(),
    (x) => 1 / (1 + Math.exp(-x)),
    { low: -9, high: 9 },
  ),
  one(
    "relu",
    (x) => x.relu(),
    (x) => Math.max(0, x),
  ),
  one("erf", (x) => x.erf(), erf, { low: -3, high: 3 }),
  one(
    "gelu",
    (x) => x.gelu(),
    (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
    { low: -4, high: 4 },
  ),
  one(
    "gelu",
    (x) => x.gelu({ approximate: "tanh" }),
    (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
    { low: -4, high: 4 },
  ),
  one(
    "silu",
    (x) => x.silu(),
    (x) => x / (1 + Math.exp(-x)),
    { low: -9, high: 9 },
  ),
  one(
    "softplus",
    (x) => x.softplus(),
    (x) => Math.log1p(Math.exp(x)),
    { low: -9, high: 9 },
  ),
  one(
    "elu",
    (x) => x.elu(0.7),
    (x) => (x > 0 ? x : 0.7 * Math.expm1(x)),
    { low: -3, high: 3 },
  ),
  one("floor", (x) => x.floor(), Math.floor, { low: -3, high: 3 }),
  one("ceil", (x) => x.ceil(), Math.ceil, { low: -3, high: 3 }),
  one(
    "round",
    (x) => x.mul(2).floor().div(2).round(),
    (x) => halfEven(Math.floor(x * 2) / 2),
    { low: -3, high: 3 },
  ),
  one(
    "isNaN",
    (x) => x.log().isNaN(),
    (x) => bool(x < 0),
    { low: -3, high: 3 },
  ),
  one("cast", (x) => x.cast("int32"), Math.trunc, { low: -3, high: 3 }),
  one(
    "cast",
    (x) => x.cast("float32").div(2),
    (x) => x / 2,
    INTEGERS,
  ),
  {
    op: "after",
    inputs: [{ shape: ["T", 3] }, { shape: ["S", 2] }],
    build: (x, other) => new Tensor("after", [x, other]).add(new Tensor("after", [x, other.sum()])),
    expected: (x) => elementwise((value) => 2 * value, x),
  },
  one(
    "stopGradient",
    (x) => x.stopGradient().add(1),
    (x) => x + 1,
  ),
  one(
    "identity",
    (x) => x.identity().add(1),
    (x) => x + 1,
  ),

  ...reduction("sum", (x, axes, options) => x.sum(axes, options), sum),
  ...reduction("mean", (x, axes, options) => x.mean(axes, options), mean),
  ...reduction(
    "max",
    (x, axes, options) => x.max(axes, options),
    (v) => Math.max(...v),
  ),
  ...reduction(
    "min",
    (x, axes, options) => x.min(axes, options),
    (v) => Math.min(...v),
  ),
  ...reduction(
    "prod",
    (x, axes, options) => x.prod(axes, options),
    (v) => v.reduce((a, b) => a * b, 1),
  ),
  ...reduction(
    "logSumExp",
    (x, axes, options) => x.logSumExp(axes, options),
    (v) => Math.log(sum(v.map(Math.exp))),
  ),
  {
    op: "logSumExp",
    note: "of large numbers",
    inputs: [{ shape: ["T", 6], low: 900, high: 1000 }],
    build: (x) => x.logSumExp(-1),
    expected: (x) =>
      reduce(x, [1], false, (v) => Math.max(...v) + Math.log(sum(v.map((y) => Math.exp(y - Math.max(...v)))))),
    tolerance: 1e-3,
  },
  {
    op: "prod",
    note: "one zero in a row, two in another",
    inputs: [{ shape: [4, 3] }],
    build: (x) => x.mul(constant(FACTORS)).prod(-1),
    expected: (x) =>
      reduce(
        elementwise((a, b) => a * b, x, constantArray(FACTORS)),
        [1],
        false,
        (v) => v.reduce((a, b) => a * b, 1),
      ),
  },
  {
    op: "argmax",
    inputs: X,
    build: (x) => x.argmax(),
    expected: (x) => reduce(x, [1], false, (v) => v.indexOf(Math.max(...v))),
  },
  {
    op: "argmax",
    note: "ties",
    inputs: X,
    build: (x) => x.mul(0).argmax(0),
    expected: (x) => reduce(x, [0], false, () => 0),
  },
  {
    op: "argmin",
    inputs: X,
    build: (x) => x.argmin(0, { keep: true }),
    expected: (x) => reduce(x, [0], true, (v) => v.indexOf(Math.min(...v))),
  },
  {
    op: "cumsum",
    inputs: X,
    build: (x) => x.cumsum(0),
    expected: (x) => generate(x.shape, (t, i) => sum(Array.from({ length: t + 1 }, (_, s) => at(x, s, i)))),
  },
  {
    op: "cumsum",
    note: "reverse and exclusive",
    inputs: X,
    build: (x) => x.cumsum(1, { reverse: true, exclusive: true }),
    expected: (x) => generate(x.shape, (t, i) => sum(Array.from({ length: 5 - i }, (_, s) => at(x, t, i + 1 + s)))),
  },
  ...[0, 1].flatMap((axis): Case[] => [
    {
      op: "softmax",
      inputs: X,
      build: (x) => x.softmax(axis),
      expected: (x) =>
        generate(x.shape, (...index) => {
          const { value, total, max } = softmaxRow(x, index, axis);
          return Math.exp(value - max) / total;
        }),
    },
    {
      op: "logSoftmax",
      inputs: X,
      build: (x) => x.logSoftmax(axis),
      expected: (x) =>
        generate(x.shape, (...index) => {
          const { value, total, max } = softmaxRow(x, index, axis);
          return value - max - Math.log(total);
        }),
    },
  ]),
  {
    op: "topk",
    inputs: X,
    build: (x) => x.topk(3).values,
    expected: (x) => generate([SIZES.T, 3], (t, i) => x.data.slice(t * 6, t * 6 + 6).sort((a, b) => b - a)[i]),
  },
  {
    op: "topk",
    note: "smallest along the first axis, as many as S - 2",
    symbolic: true,
    inputs: [{ shape: ["T", 6] }, { shape: ["S"] }],
    build: (x) => x.topk("S - 2", { axis: 0, largest: false }).indices,
    expected: (x) => generate([3, 6], (k, i) => [0, 1, 2, 3].sort((a, b) => at(x, a, i) - at(x, b, i))[k]),
  },

  {
    op: "matmul",
    inputs: [{ shape: ["S", "T", 3] }, { shape: [3, 7] }],
    build: (a, b) => a.matmul(b),
    expected: matmul,
  },
  {
    op: "matmul",
    note: "batches broadcast",
    inputs: [{ shape: [2, 1, "T", 3] }, { shape: ["S", 3, "T"] }],
    build: (a, b) => a.matmul(b),
    expected: matmul,
  },
  ...(
    [
      ["T", 6],
      ["S", "T", 6],
    ] as Dim[][]
  ).map(
    (shape): Case => ({
      op: "linear",
      note: `x of ${shape.length} dimensions, the weight computed`,
      inputs: [{ shape }, { shape: [5, 6] }, { shape: [5] }],
      build: (x, w, b) => x.linear(w.mul(1), b),
      expected: (x, w, b) =>
        elementwise(
          (y, z) => y + z,
          matmul(
            x,
            generate([6, 5], (k, n) => at(w, n, k)),
          ),
          b,
        ),
    }),
  ),
  {
    op: "einsum",
    inputs: [{ shape: ["T", 2, 3] }, { shape: ["S", 2, 3] }],
    build: (q, k) => einsum("thd, shd -> hts", q, k),
    expected: (q, k) =>
      generate([2, SIZES.T, SIZES.S], (h, t, s) => sum([0, 1, 2].map((d) => at(q, t, h, d) * at(k, s, h, d)))),
  },
  {
    op: "conv",
    note: "causal along T, one kernel per channel",
    inputs: [{ shape: [1, 3, "T"] }, { shape: [3, 1, 2] }, { shape: [3] }],
    build: (x, w, b) => x.conv(w, { bias: b, before: [1], groups: 3 }),
    expected: (x, w, b) =>
      generate(
        [1, 3, SIZES.T],
        (_, c, t) => at(b, c) + at(w, c, 0, 1) * at(x, 0, c, t) + (t > 0 ? at(w, c, 0, 0) * at(x, 0, c, t - 1) : 0),
      ),
  },
  {
    op: "einsum",
    note: "a letter that is summed in one operand alone, three operands",
    inputs: [{ shape: ["T", 2] }, { shape: [2, 3, "S"] }, { shape: ["S"] }],
    build: (a, b, c) => einsum("td,dks,s->td", a, b, c),
    expected: (a, b, c) =>
      generate([SIZES.T, 2], (t, d) =>
        sum([0, 1, 2].flatMap((k) => [0, 1, 2, 3, 4].map((s) => at(a, t, d) * at(b, d, k, s) * at(c, s)))),
      ),
  },
  {
    op: "conv",
    note: "two groups of two channels, padded unevenly, stride 2 over T",
    inputs: [{ shape: [2, 4, "T"] }, { shape: [6, 2, 3] }, { shape: [6] }],
    build: (x, w, b) => x.conv(w, { bias: b, groups: 2, before: [2], after: [1], strides: [2] }),
    expected: (x, w, b) =>
      generate([2, 6, 3], (n, m, i) => {
        let total = at(b, m);
        for (const c of [0, 1])
          for (const k of [0, 1, 2]) {
            const t = 2 * i + k - 2;
            if (t >= 0 && t < SIZES.T) total += at(w, m, c, k) * at(x, n, m < 3 ? c : 2 + c, t);
          }
        return total;
      }),
  },
  {
    op: "conv",
    note: "two axes, stride and dilation",
    inputs: [{ shape: [1, 2, 7, 8] }, { shape: [3, 2, 2, 3] }],
    build: (x, w) => x.conv(w, { strides: [2, 1], dilations: [1, 2] }),
    expected: (x, w) =>
      generate([1, 3, 3, 4], (_, m, i, j) => {
        let total = 0;
        for (const c of [0, 1])
          for (const a of [0, 1])
            for (const b of [0, 1, 2]) total += at(w, m, c, a, b) * at(x, 0, c, 2 * i + a, j + 2 * b);
        return total;
      }),
  },

  {
    op: "transpose",
    inputs: [{ shape: ["T", 3, "S"] }],
    build: (x) => x.transpose(2, 0, 1),
    expected: (x) => generate([SIZES.S, SIZES.T, 3], (s, t, i) => at(x, t, i, s)),
  },
  {
    op: "transpose",
    inputs: [{ shape: ["T", 3, "S"] }],
    build: (x) => x.transpose(),
    expected: (x) => generate([SIZES.T, SIZES.S, 3], (t, s, i) => at(x, t, i, s)),
  },
  {
    op: "reshape",
    note: "one free dimension",
    inputs: X,
    build: (x) => x.reshape([0, 2, -1]),
    expected: (x) => ({ shape: [SIZES.T, 2, 3], data: x.data }),
  },
  {
    op: "reshape",
    note: "two symbols change places: sizes computed at run time",
    symbolic: true,
    inputs: [{ shape: ["T", "S", 2] }],
    build: (x) => x.reshape(["S", "T", 2]),
    expected: (x) => ({ shape: [SIZES.S, SIZES.T, 2], data: x.data }),
  },
  {
    op: "reshape",
    note: "a product",
    symbolic: true,
    inputs: [{ shape: ["T", "S", 2] }],
    build: (x) => x.reshape(["2*S*T"]).reshape([2, "T*S"]),
    expected: (x) => ({ shape: [2, 20], data: x.data }),
  },
  {
    op: "unsqueeze",
    inputs: X,
    build: (x) => x.unsqueeze(0, -1),
    expected: (x) => ({ shape: [1, SIZES.T, 6, 1], data: x.data }),
  },
  {
    op: "squeeze",
    inputs: [{ shape: [1, "T", 1, 3] }],
    build: (x) => x.squeeze(2).squeeze(),
    expected: (x) => ({ shape: [SIZES.T, 3], data: x.data }),
  },
  {
    op: "slice",
    inputs: X,
    build: (x) => x.slice({ axis: 1, start: 1, end: -1, step: 2 }),
    expected: (x) => generate([SIZES.T, 2], (t, i) => at(x, t, 1 + 2 * i)),
  },
  {
    op: "slice",
    note: "the last two rows",
    inputs: X,
    build: (x) => x.slice({ axis: 0, start: -2 }),
    expected: (x) => generate([2, 6], (t, i) => at(x, SIZES.T - 2 + t, i)),
  },
  {
    op: "slice",
    note: "symbolic end",
    symbolic: true,
    inputs: [{ shape: ["T", 2] }, { shape: ["S", 2] }],
    build: (_, y) => y.slice({ axis: 0, start: 1, end: "T" }),
    expected: (_, y) => generate([3, 2], (t, i) => at(y, t + 1, i)),
  },
  {
    op: "slice",
    note: "backwards",
    inputs: X,
    build: (x) => x.slice({ axis: 1, step: -1 }),
    expected: (x) => generate([SIZES.T, 6], (t, i) => at(x, t, 5 - i)),
  },
  {
    op: "slice",
    note: "every second place of T, backwards from the last but one",
    inputs: X,
    build: (x) => x.slice({ axis: 0, start: -2, step: -2 }),
    expected: (x) => generate([2, 6], (t, i) => at(x, 2 - 2 * t, i)),
  },
  {
    op: "slice",
    note: "one place, from the end",
    inputs: X,
    build: (x) => x.at(-1),
    expected: (x) => generate([6], (i) => at(x, SIZES.T - 1, i)),
  },
  {
    op: "slice",
    note: "split and joined in another order",
    inputs: X,
    build: (x) => {
      const [a, b, c] = x.split([1, 2, 3]);
      return concat([c, a, b], 1);
    },
    expected: (x) => generate([SIZES.T, 6], (t, i) => at(x, t, [3, 4, 5, 0, 1, 2][i])),
  },
  {
    op: "concat",
    inputs: [{ shape: ["T", 2] }, { shape: ["S", 2] }],
    build: (a, b) => concat([a, b], 0),
    expected: (a, b) => ({ shape: [9, 2], data: [...a.data, ...b.data] }),
  },
  {
    op: "concat",
    note: "stack",
    inputs: [{ shape: ["T"] }, { shape: ["T"] }],
    build: (a, b) => stack([a, b], -1),
    expected: (a, b) => generate([SIZES.T, 2], (t, i) => at(i === 0 ? a : b, t)),
  },
  {
    op: "expand",
    symbolic: true,
    inputs: [{ shape: ["T", 1] }, { shape: ["S"] }],
    build: (x) => x.expand([2, "T", "S"]),
    expected: (x) => generate([2, SIZES.T, SIZES.S], (_, t) => at(x, t, 0)),
  },
  {
    op: "tile",
    inputs: X,
    build: (x) => x.tile([2, 1]),
    expected: (x) => ({ shape: [2 * SIZES.T, 6], data: [...x.data, ...x.data] }),
  },
  {
    op: "tile",
    note: "two axes",
    inputs: [{ shape: ["T", 2, 3] }],
    build: (x) => x.tile([3, 1, 2]),
    expected: (x) => generate([3 * SIZES.T, 2, 6], (t, i, j) => at(x, t % SIZES.T, i, j % 3)),
  },
  {
    op: "pad",
    note: "before only",
    inputs: X,
    build: (x) => x.pad({ axis: 1, before: 2 }),
    expected: (x) => generate([SIZES.T, 8], (t, i) => (i < 2 ? 0 : at(x, t, i - 2))),
  },
  {
    op: "pad",
    inputs: X,
    build: (x) => x.pad({ axis: 0, before: 2, after: 1, value: 7 }),
    expected: (x) => ({ shape: [SIZES.T + 3, 6], data: [...Array(12).fill(7), ...x.data, ...Array(6).fill(7)] }),
  },
  {
    op: "triangle",
    inputs: X,
    build: (x) => x.triu(1),
    expected: (x) => generate(x.shape, (t, i) => (i >= t + 1 ? at(x, t, i) : 0)),
  },
  {
    op: "triangle",
    inputs: X,
    build: (x) => x.tril(),
    expected: (x) => generate(x.shape, (t, i) => (i <= t ? at(x, t, i) : 0)),
  },
  {
    op: "unslice",
    note: "a place that is counted from the end",
    inputs: [{ shape: ["T", 2] }, { shape: ["T", 6] }],
    build: (g, x) => new Tensor("unslice", [g, x], { axis: 1, start: -3, end: -1, step: 1 }),
    expected: (g) => generate([SIZES.T, 6], (t, i) => (i === 3 || i === 4 ? at(g, t, i - 3) : 0)),
  },
  {
    op: "unslice",
    note: "of a symbolic size",
    inputs: [{ shape: [2, 3] }, { shape: ["S", 3] }],
    build: (g, x) => new Tensor("unslice", [g, x], { axis: 0, start: -3, end: -1, step: 1 }),
    expected: (g) => generate([SIZES.S, 3], (s, i) => (s === 2 || s === 3 ? at(g, s - 2, i) : 0)),
  },
  {
    op: "splitLike",
    inputs: [{ shape: [9, 2] }, { shape: ["T", 2] }, { shape: ["S", 2] }],
    build: (joined, a, b) => new Tensor("splitLike", [joined, a, b], { axis: 0, index: 1 }),
    expected: (joined) => generate([SIZES.S, 2], (s, i) => at(joined, SIZES.T + s, i)),
  },
  {
    op: "sumLike",
    note: "one unknown size is 1, the other is not",
    symbolic: true,
    inputs: [{ shape: [2, "T", 3, "S"] }, { shape: ["?a", 3, "?b"], sizes: [1, 3, SIZES.S] }],
    build: (g, x) => new Tensor("sumLike", [g, x]),
    expected: (g) => {
      const both = reduce(g, [0, 1], true, sum);
      return { shape: [1, 3, SIZES.S], data: both.data };
    },
  },
  { op: "range", inputs: X, build: (x) => x.range(0), expected: () => generate([SIZES.T], (t) => t) },
  { op: "range", inputs: X, build: (x) => x.range(1), expected: () => generate([6], (i) => i) },
  { op: "size", inputs: X, build: (x) => x.size(0).mul(x.size(1)), expected: () => ({ shape: [], data: [24] }) },

  {
    op: "gather",
    inputs: [{ shape: [9, 3] }, { shape: ["T", 2], dtype: "int64", low: 0, high: 9 }],
    build: (table, ids) => table.gather(ids),
    expected: (table, ids) => generate([SIZES.T, 2, 3], (t, i, d) => at(table, at(ids, t, i), d)),
  },
  {
    op: "gather",
    note: "second axis, int32",
    inputs: [{ shape: ["T", 9] }, { shape: ["S"], dtype: "int32", low: 0, high: 9 }],
    build: (x, ids) => x.gather(ids, 1),
    expected: (x, ids) => generate([SIZES.T, SIZES.S], (t, s) => at(x, t, at(ids, s))),
  },
  {
    op: "gatherElements",
    inputs: [{ shape: ["T", 6] }, { shape: ["T", "S"], dtype: "int64", low: 0, high: 6 }],
    build: (x, ids) => x.gatherElements(ids, 1),
    expected: (x, ids) => generate([SIZES.T, SIZES.S], (t, s) => at(x, t, at(ids, t, s))),
  },
  {
    op: "scatterElements",
    note: "duplicates add up",
    inputs: [{ shape: ["T", 3] }, { shape: ["T", "S"], dtype: "int64", low: 0, high: 3 }, { shape: ["T", "S"] }],
    build: (x, ids, updates) => x.scatterElements(ids, updates, 1, { reduction: "add" }),
    expected: (x, ids, updates) =>
      generate(
        x.shape,
        (t, i) => at(x, t, i) + sum([0, 1, 2, 3, 4].map((s) => (at(ids, t, s) === i ? at(updates, t, s) : 0))),
      ),
  },
  {
    op: "scatterElements",
    inputs: [{ shape: [2, 3] }, { shape: [2, 3] }],
    build: (x, updates) =>
      x.scatterElements(
        constant(
          [
            [2, 0, 1],
            [1, 2, 0],
          ],
          undefined,
          "int64",
        ),
        updates,
        1,
      ),
    expected: (_, u) => ({
      shape: [2, 3],
      data: [at(u, 0, 1), at(u, 0, 2), at(u, 0, 0), at(u, 1, 2), at(u, 1, 0), at(u, 1, 1)],
    }),
  },

  {
    op: "crossEntropy",
    note: "the last target counts from the end",
    inputs: [
      { shape: ["T", 6], low: -3, high: 3 },
      { shape: ["T"], dtype: "int64", low: -1, high: 6 },
    ],
    build: (x, targets) => tokenLosses(x, targets),
    expected: (x, targets) =>
      generate([SIZES.T], (t) => {
        const target = (at(targets, t) + 6) % 6;
        const { value, max, total } = softmaxRow(x, [t, target], 1);
        return max + Math.log(total) - value;
      }),
  },

  ...[0, 1].map(
    (offset): Case => ({
      op: "rmsNorm",
      note: `offset ${offset}`,
      inputs: [{ shape: ["T", 2, 6] }, { shape: [6] }],
      build: (x, w) => x.rmsNorm(w, { eps: 1e-3, offset }),
      expected: (x, w) =>
        generate(x.shape, (t, h, i) => {
          const row = [0, 1, 2, 3, 4, 5].map((j) => at(x, t, h, j));
          return (at(x, t, h, i) / Math.sqrt(mean(row.map((v) => v * v)) + 1e-3)) * (at(w, i) + offset);
        }),
    }),
  ),
  ...[true, false].map(
    (biased): Case => ({
      op: "layerNorm",
      note: biased ? "with bias" : "without bias",
      inputs: [{ shape: ["T", 6] }, { shape: [6] }, { shape: [6] }],
      build: (x, w, b) => x.layerNorm(w, biased ? b : undefined, { eps: 1e-3 }),
      expected: (x, w, b) =>
        generate(x.shape, (t, i) => {
          const row = x.data.slice(t * 6, t * 6 + 6);
          const variance = mean(row.map((v) => (v - mean(row)) ** 2));
          return ((at(x, t, i) - mean(row)) / Math.sqrt(variance + 1e-3)) * at(w, i) + (biased ? at(b, i) : 0);
        }),
    }),
  ),
  ...[
    { dims: 6, interleaved: false },
    { dims: 6, interleaved: true },
    { dims: 4, interleaved: false },
    { dims: 4, interleaved: true },
  ].map(
    ({ dims, interleaved }): Case => ({
      op: "rotary",
      note: `${dims} of 6 dimensions, ${interleaved ? "neighbours" : "halves"}`,
      inputs: [{ shape: ["T", 2, 6] }, { shape: ["T", dims / 2] }, { shape: ["T", dims / 2] }],
      build: (x, cos, sin) => x.rotary(cos, sin, { dims, interleaved }),
      expected: (x, cos, sin) =>
        generate(x.shape, (t, h, i) => {
          if (i >= dims) return at(x, t, h, i);
          const half = dims / 2;
          const pair = interleaved ? Math.floor(i / 2) : i % half;
          const [first, second] = interleaved ? [2 * pair, 2 * pair + 1] : [pair, pair + half];
          const [a, b, c, s] = [at(x, t, h, first), at(x, t, h, second), at(cos, t, pair), at(sin, t, pair)];
          return i === first ? a * c - b * s : b * c + a * s;
        }),
    }),
  ),
];

/** Random values for the inputs of a row. */
export function give(row: Case, seed: number): Given[] {
  const next = random(seed);
  return row.inputs.map(
    ({ shape, dtype = "float32", low = -1, high = 1, sizes = concrete(shape, SIZES) as number[] }) => {
      const draw = (): number => low + next() * (high - low);
      const array = generate(sizes, () => (dtype === "float32" ? Math.fround(draw()) : Math.floor(draw())));
      return { shape, dtype, array };
    },
  );
}
