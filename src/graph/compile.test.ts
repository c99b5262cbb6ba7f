import { describe, expect, test } from "vitest";
import { FoveaError } from "../error.js";
import { compile, exportOnnx } from "./compile.js";
import { graphFunction, substitute } from "./function.js";
import { loadRuntime } from "./runtime.js";
import { ShapeError } from "./shape.js";
import { concat, constant, input, parameter, type Tensor, tap } from "./tensor.js";
import { largestDifference, randomFloats } from "./testing.js";
import { floatWeight, quantizeQ8, type WeightSource, weightsFrom } from "./weights.js";

/** The error that a call ends in. */
async function failure(call: () => unknown): Promise<FoveaError> {
  try {
    await call();
  } catch (error) {
    if (error instanceof FoveaError) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}

const rows = (data: readonly number[], width: number): { data: Float32Array; dims: number[] } => ({
  data: Float32Array.from(data),
  dims: [data.length / width, width],
});

describe("cutting", () => {
  // Two layers with taps, as a model has them.
  const taps = new Map<string, Tensor>();
  const x = tap(input("x", ["T", 2]), "residual.0", taps);
  let residual = x;
  for (const layer of [0, 1]) {
    const q = tap(residual.linear(parameter(`w.${layer}`, [2, 2])), `q.${layer}`, taps);
    const heads = tap(q.tanh(), `heads.${layer}`, taps);
    residual = tap(residual.add(heads), `residual.${layer + 1}`, taps);
  }
  const weights = weightsFrom({ "w.0": floatWeight([2, 2], [1, 2, 3, 4]), "w.1": floatWeight([2, 2], [0, 1, -1, 0]) });
  const at = (name: string): Tensor => taps.get(name)!;
  const ports = (...names: string[]): Record<string, Tensor> =>
    Object.fromEntries(names.map((name) => [name, at(name)]));

  test("one definition, run whole and in pieces, gives the same", async () => {
    await using whole = await compile({ outputs: ports("residual.2", "q.1") }, { weights });
    expect(whole.inputNames).toEqual(["x"]);
    const feed = rows([0.1, -0.2, 0.3, 0.4, 0.5, 0.6], 2);
    const expected = await whole.run({ x: feed });

    await using first = await compile({ inputs: ports("residual.0"), outputs: ports("q.0") }, { weights });
    await using middle = await compile(
      { inputs: ports("residual.0", "heads.0"), outputs: ports("residual.1", "q.1") },
      { weights },
    );
    await using last = await compile(
      { inputs: ports("residual.1", "heads.1"), outputs: ports("residual.2") },
      { weights },
    );
    const { "q.0": q0 } = await first.run({ "residual.0": feed });
    const heads0 = { data: (q0.data as Float32Array).map(Math.tanh), dims: q0.dims };
    const inner = await middle.run({ "residual.0": feed, "heads.0": heads0 });
    const heads1 = { data: (inner["q.1"].data as Float32Array).map(Math.tanh), dims: q0.dims };
    const { "residual.2": end } = await last.run({ "residual.1": inner["residual.1"], "heads.1": heads1 });
    expect(largestDifference(end.data as Float32Array, expected["residual.2"].data as Float32Array)).toBeLessThan(1e-6);
    expect(largestDifference(inner["q.1"].data as Float32Array, expected["q.1"].data as Float32Array)).toBeLessThan(
      1e-6,
    );
  });

  test("a segment asks only for the weights on its side of the cut", async () => {
    const asked: string[] = [];
    const watched: WeightSource = {
      get(name) {
        asked.push(name);
        return weights.get(name);
      },
    };
    await using _ = await compile({ inputs: ports("residual.1"), outputs: ports("q.1") }, { weights: watched });
    expect(asked).toEqual(["w.1"]);
  });

  test("prefetch hears of all weights first", async () => {
    const heard: string[][] = [];
    const source: WeightSource = {
      get: (name) => weights.get(name),
      async prefetch(names) {
        heard.push([...names]);
      },
    };
    await using _ = await compile({ outputs: ports("residual.2") }, { weights: source });
    expect(heard).toEqual([["w.0", "w.1"]]);
  });

  test("a weight may be an input instead", async () => {
    const w = parameter("w", [2, 2]);
    await using segment = await compile({ inputs: { w }, outputs: { y: input("x", ["T", 2]).linear(w) } });
    expect([...segment.inputNames].sort()).toEqual(["w", "x"]);
    const { y } = await segment.run({ x: rows([1, 1], 2), w: rows([1, 2, 3, 4], 2) });
    expect([...(y.data as Float32Array)]).toEqual([3, 7]);
  });

  test("outputs that are inputs, weights, constants, or one tensor twice", async () => {
    const a = input("a", ["T", 2]);
    const sum = a.add(1);
    const outputs = { same: a, w: parameter("w", [2]), one: constant(1), sum, again: sum, equal: a.add(1) };
    await using segment = await compile({ outputs }, { weights: weightsFrom({ w: floatWeight([2], [5, 6]) }) });
    const result = await segment.run({ a: rows([1, 2], 2) });
    const lists = Object.fromEntries(
      Object.entries(result).map(([name, { data }]) => [name, [...(data as Float32Array)]]),
    );
    expect(lists).toEqual({ same: [1, 2], w: [5, 6], one: [1], sum: [2, 3], again: [2, 3], equal: [2, 3] });
  });

  test("names that inputs, weights, outputs and inner values share do not mix", async () => {
    const a = input("Add_1", ["T", 2]);
    const weight = parameter("constant_1", [2]);
    const outputs = { y: a.add(weight).mul(3), y_1: a.add(1), w_transposed: a.add(weight) };
    await using segment = await compile(
      { inputs: { constant_1: a }, outputs },
      { weights: weightsFrom({ constant_1: floatWeight([2], [10, 20]) }) },
    );
    const { y, y_1 } = await segment.run({ constant_1: rows([1, 2], 2) });
    expect([...(y.data as Float32Array)]).toEqual([33, 66]);
    expect([...(y_1.data as Float32Array)]).toEqual([2, 3]);
  });

  test("an alias: the second tap on a tensor is its own place to cut", async () => {
    const found = new Map<string, Tensor>();
    const a = tap(input("x", ["T", 2]).add(1), "attn_in", found);
    const b = tap(a, "mlp_in", found);
    expect(b).not.toBe(a);
    expect(tap(b, "mlp_in", found)).toBe(b);
    await using segment = await compile({ inputs: { mlp_in: b }, outputs: { y: a.add(b) } });
    expect([...segment.inputNames].sort()).toEqual(["mlp_in", "x"]);
  });
});

describe("symbolic dimensions", () => {
  test("one segment runs any sizes, and dimensions are computed where they are needed", async () => {
    const a = input("a", ["T", 2]);
    const b = input("b", ["S", 2]);
    const both = concat([a, b], 0);
    expect(both.shape).toEqual(["S + T", 2]);
    const outer = both.matmul(both.transpose()).reshape(["S + T", 1, "S + T"]);
    await using segment = await compile({ outputs: { outer, last: both.slice({ axis: 0, start: "T" }) } });
    for (const [T, S] of [
      [1, 1],
      [3, 2],
      [2, 5],
      [1, 7],
    ]) {
      const result = await segment.run({ a: rows(new Array(2 * T).fill(1), 2), b: rows(new Array(2 * S).fill(2), 2) });
      expect(result.outer.dims).toEqual([T + S, 1, T + S]);
      expect(result.last.dims).toEqual([S, 2]);
    }
  });

  test("no rows at all", async () => {
    const x = input("x", ["T", 4]);
    await using segment = await compile({
      outputs: { y: x.reshape([0, 2, 2]).transpose().reshape(["T", 4]).softmax() },
    });
    const { y } = await segment.run({ x: { data: new Float32Array(0), dims: [0, 4] } });
    expect(y.dims).toEqual([0, 4]);
  });

  test("a size that nothing tells is an error that names it", async () => {
    const error = await failure(() => compile({ outputs: { y: input("x", [1]).expand(["T"]) } }));
    expect(error).toBeInstanceOf(ShapeError);
    expect(error.message).toMatch(/how large T is/);
  });
});

describe("running", () => {
  test("outputs are written in place, and only where asked", async () => {
    const x = input("x", ["T", 2]);
    await using segment = await compile({ outputs: { double: x.mul(2), square: x.square() } });
    const double = new Float32Array(4);
    const { Tensor: RuntimeTensor } = await loadRuntime();
    const square = new RuntimeTensor("float32", new Float32Array(4), [2, 2]);
    const feeds = { x: rows([1, 2, 3, 4], 2) };
    await segment.run(feeds, { double: { data: double, dims: [2, 2] }, square });
    expect([...double]).toEqual([2, 4, 6, 8]);
    expect([...(square.data as Float32Array)]).toEqual([1, 4, 9, 16]);
    expect(Object.keys(await segment.run(feeds, ["square"]))).toEqual(["square"]);
    const part = await segment.run(feeds, { double: { data: double, dims: [2, 2] } });
    expect([...(part.square.data as Float32Array)]).toEqual([1, 4, 9, 16]);
  });

  test("places within larger arrays are written in place too", async () => {
    const x = input("x", ["T", 2]);
    await using segment = await compile({ outputs: { y: x.add(1) } });
    const all = new Float32Array(8);
    const part = (from: number, to: number) => ({ data: all.subarray(from, to), dims: [(to - from) / 2, 2] });
    await segment.run({ x: rows([1, 2], 2) }, { y: part(2, 4) });
    expect([...all]).toEqual([0, 0, 2, 3, 0, 0, 0, 0]);
    await segment.run({ x: part(2, 4) }, { y: part(4, 6) });
    expect([...all]).toEqual([0, 0, 2, 3, 3, 4, 0, 0]);
  });

  test("every type goes in and out", async () => {
    const outputs = {
      i: input("i64", ["T"], "int64").add(1),
      j: input("i32", ["T"], "int32").add(1),
      b: input("bool", ["T"], "bool").not(),
      u: input("u8", ["T"], "uint8").cast("int32"),
      s: input("i8", ["T"], "int8").cast("int32"),
      h: input("f16", ["T"], "float16").cast("float32"),
    };
    await using segment = await compile({ outputs });
    const one = { data: [1, 0], dims: [2] };
    const result = await segment.run({ i64: one, i32: one, bool: one, u8: one, i8: one, f16: one });
    const lists = Object.values(result).map(({ data }) => Array.from(data as Float32Array, Number));
    expect(lists).toEqual([
      [2, 1],
      [2, 1],
      [0, 1],
      [1, 0],
      [1, 0],
      [1, 0],
    ]);
  });

  test("what does not fit is refused by name", async () => {
    const segment = await compile({ outputs: { y: input("x", ["T", 2]).add(1) } });
    const missing = await failure(() => segment.run({}));
    expect(missing.message).toMatch(/no value for "x" \[T, 2\] float32/);
    const shape = await failure(() => segment.run({ x: rows([1, 2, 3], 3) }));
    expect([shape.code, shape.message]).toEqual(["bad-shape", '"x" must be [T, 2], but [1, 3] was given']);
    const count = await failure(() => segment.run({ x: { data: new Float32Array(3), dims: [1, 2] } }));
    expect(count.message).toMatch(/3 elements given for \[1, 2\]/);
    const type = await failure(() => segment.run({ x: { data: new Int32Array(2), dims: [1, 2] } }));
    expect(type.message).toMatch(/must be float32, but a Int32Array was given/);
    const output = await failure(() => segment.run({ x: rows([1, 2], 2) }, ["z"]));
    expect(output.message).toMatch(/no output "z"; it has y/);
    await segment.release();
    await segment.release();
    expect((await failure(() => segment.run({ x: rows([1, 2], 2) }))).code).toBe("closed");
  });

  test("repeats a run that was bound, on what the arrays hold then", async () => {
    const segment = await compile({ outputs: { y: input("x", ["T", 2]).mul(3) } });
    const [from, into] = [new Float32Array([1, 2]), new Float32Array(2)];
    const run = segment.bind({ x: { data: from, dims: [1, 2] } }, { y: { data: into, dims: [1, 2] } });
    await run();
    expect([...into]).toEqual([3, 6]);
    from.set([5, 7]);
    await run();
    expect([...into]).toEqual([15, 21]);
    expect(() => segment.bind({}, {})).toThrow(/no value for "x"/);
    expect(() => segment.bind({ x: { data: from, dims: [1, 2] } }, { z: { data: into, dims: [1, 2] } })).toThrow(
      /no output "z"/,
    );
    await segment.release();
    expect((await failure(run)).code).toBe("closed");
  });
});

describe("errors of building", () => {
  test("shapes and names are in the message and in the error", async () => {
    const q = input("layers.0.q", ["T", 64]);
    const cos = input("cos", ["T", 65]);
    const error = await failure(() => q.mul(cos));
    expect(error).toBeInstanceOf(ShapeError);
    expect(error.code).toBe("bad-shape");
    expect(error.message).toBe(
      'mul: dimensions 64 and 65 do not broadcast; given "layers.0.q" [T, 64] float32 and "cos" [T, 65] float32',
    );
    expect(error).toMatchObject({
      op: "mul",
      names: ["layers.0.q", "cos"],
      shapes: [
        ["T", 64],
        ["T", 65],
      ],
    });
  });

  test.each<[string, RegExp, () => unknown]>([
    ["types", /types differ/, () => input("a", [2]).add(input("b", [2], "int64"))],
    ["integers have no exp", /must be float32 or float16/, () => input("a", [2], "int64").exp()],
    ["matmul", /inner dimensions: 3 and 4 differ/, () => input("a", [2, 3]).matmul(input("b", [4, 2]))],
    ["vectors", /at least two dimensions/, () => input("a", [2]).matmul(input("b", [2, 2]))],
    [
      "linear",
      /last dimension of x and of the weight: 3 and 4/,
      () => input("a", ["T", 3]).linear(parameter("w", [5, 4])),
    ],
    ["bias", /the bias must be \[5\]/, () => input("a", ["T", 4]).linear(parameter("w", [5, 4]), parameter("b", [4]))],
    ["axis", /axis 2 does not exist in a tensor of 2/, () => input("a", [2, 2]).softmax(2)],
    ["reshape", /6 elements do not fill \[4\]/, () => input("a", [2, 3]).reshape([4])],
    ["two open", /more than one -1/, () => input("a", [2, 3]).reshape([-1, -1])],
    ["squeeze", /axis 0 is not of size 1/, () => input("a", [2, 1]).squeeze(0)],
    ["concat", /dimensions other than axis 0 differ/, () => concat([input("a", [2, 3]), input("b", [2, 4])], 0)],
    ["split", /do not add up/, () => input("a", [5]).split([2, 2])],
    ["topk", /k = 6 of 5/, () => input("a", [5]).topk(6)],
    [
      "rotary",
      /cos and sin \[T, 4\]/,
      () => input("x", ["T", 2, 8]).rotary(input("c", ["T", 8]), input("s", ["T", 8])),
    ],
    ["norm", /must be \[8\]/, () => input("x", ["T", 8]).rmsNorm(parameter("w", [4]), { eps: 1e-5 })],
    ["parameter", /dimensions are numbers|is no size/, () => parameter("w", [-1])],
    ["constant", /3 numbers do not fill \[2\]/, () => constant([1, 2, 3], [2])],
    ["withShape", /contradicts/, () => input("x", ["T", 8]).withShape(["T", 9])],
  ])("%s", async (_, message, build) => {
    expect((await failure(build)).message).toMatch(message);
  });

  test("weights that are missing, or of another shape", async () => {
    const outputs = { y: input("x", ["T", 2]).linear(parameter("layers.0.q", [3, 2])) };
    const none = await failure(() => compile({ outputs }));
    expect([none.code, none.message]).toEqual(["not-found", 'no value for the parameter "layers.0.q"']);
    expect((await failure(() => compile({ outputs }, { weights: weightsFrom({}) }))).code).toBe("not-found");
    const other = weightsFrom({ "layers.0.q": floatWeight([2, 3], new Float32Array(6)) });
    const shape = await failure(() => compile({ outputs }, { weights: other }));
    expect(shape.message).toMatch(/the weight source has \[2, 3\]; given "layers.0.q" \[3, 2\] float32/);
    const short = weightsFrom({ "layers.0.q": floatWeight([3, 2], new Float32Array(5)) });
    expect((await failure(() => compile({ outputs }, { weights: short }))).message).toMatch(
      /5 numbers do not fill \[3, 2\]/,
    );
  });

  test("names that clash", async () => {
    const a = input("x", ["T"]);
    const clash = await failure(() => compile({ outputs: { y: a.add(input("x", ["T"])) } }));
    expect(clash.message).toMatch(/two different inputs .* "x"/);
    expect((await failure(() => compile({ outputs: { x: a.add(1) } }))).message).toMatch(/both an input and an output/);
    expect((await failure(() => compile({ outputs: {} }))).message).toMatch(/at least one output/);
  });

  test("a graph past 2 GiB is refused before it is written", async () => {
    // One array stands for every weight, so that the test needs no memory.
    const data = new Float32Array(2 ** 26);
    const source: WeightSource = { get: () => ({ kind: "float", dtype: "float32", shape: [2 ** 13, 2 ** 13], data }) };
    let x = input("x", ["T", 2 ** 13]);
    for (let i = 0; i < 9; i++) x = x.linear(parameter(`w.${i}`, [2 ** 13, 2 ** 13]));
    const error = await failure(() => exportOnnx({ outputs: { x_out: x } }, { weights: source }));
    expect([error.code, error.hint]).toEqual(["too-large", expect.stringMatching(/segments/)]);
  });

  test("auto finds a provider that works", async () => {
    const x = input("x", ["T"]);
    await using segment = await compile({ outputs: { y: x.add(1) } }, { provider: "auto" });
    expect(["cpu", "webgpu", "cuda"]).toContain(segment.provider);
    const { y } = await segment.run({ x: { data: [1], dims: [1] } });
    expect([...(y.data as Float32Array)]).toEqual([2]);
  });

  test("a provider that is not there is an error with a way out", async () => {
    const { listSupportedBackends } = await loadRuntime();
    if (listSupportedBackends().some(({ name }) => name === "cuda")) return;
    const error = await failure(() => compile({ outputs: { y: input("x", ["T"]).add(1) } }, { provider: "cuda" }));
    expect([error.code, error.hint]).toEqual(["unsupported", 'try provider "cpu"']);
  });
});

describe("large graphs", () => {
  test("ten thousand operations deep", async () => {
    let x = input("x", ["T"]);
    for (let i = 0; i < 10_000; i++) x = i % 2 === 0 ? x.add(1) : x.sub(1);
    const bytes = exportOnnx({ outputs: { y: x } });
    expect(bytes.length).toBeGreaterThan(10_000);
    const moved = substitute(
      { y: x },
      { dims: new Map([["T", 3]]), tensors: new Map([[input("z", [3]), input("u", [3])]]) },
    );
    expect(moved.y.shape).toEqual([3]);
  });

  test("shared parts are written once: two to the thirtieth paths", async () => {
    let x = input("x", ["T"]);
    for (let i = 0; i < 30; i++) x = x.mul(0.5).add(x.mul(0.5));
    await using segment = await compile({ outputs: { y: x } });
    expect(segment.bytes).toBeLessThan(6000);
    const { y } = await segment.run({ x: { data: [3], dims: [1] } });
    expect([...(y.data as Float32Array)]).toEqual([3]);
  });
});

describe("files", () => {
  const x = input("x", ["T", 8]);
  const hidden = x
    .rmsNorm(parameter("norm", [8]), { eps: 1e-5, offset: 1 })
    .linear(parameter("up", [12, 8]), parameter("bias", [12]));
  const outputs = {
    y: hidden
      .silu()
      .add(hidden.gelu())
      .linear(parameter("down", [8, 12]))
      .add(x),
  };
  const values = {
    norm: floatWeight([8], randomFloats(8, 1)),
    up: floatWeight([12, 8], randomFloats(96, 2)),
    bias: floatWeight([12], randomFloats(12, 3)),
    down: floatWeight([8, 12], randomFloats(96, 4)),
  };

  test("an exported file runs in a plain session and gives the same", async () => {
    const weights = weightsFrom(values);
    const { InferenceSession, Tensor: RuntimeTensor } = await loadRuntime();
    const data = randomFloats(16, 5);
    await using segment = await compile({ outputs }, { weights });
    const { y } = await segment.run({ x: { data, dims: [2, 8] } });
    for (const precision of ["float32", "int8"] as const) {
      const session = await InferenceSession.create(exportOnnx({ outputs }, { weights, precision }));
      expect(session.inputNames).toEqual(["x"]);
      const plain = await session.run({ x: new RuntimeTensor("float32", data, [2, 8]) });
      const tolerance = precision === "float32" ? 1e-5 : 0.2;
      expect(largestDifference(plain.y.data as Float32Array, y.data as Float32Array)).toBeLessThan(tolerance);
      await session.release();
    }
  });

  test("a float file holds nothing but the standard; a quantised one says what it needs", () => {
    const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString("latin1");
    const weights = weightsFrom(values);
    expect(text(exportOnnx({ outputs }, { weights }))).not.toMatch(/com\.microsoft|Simplified/);
    expect(text(exportOnnx({ outputs }, { weights, precision: "int8" }))).toMatch(/com\.microsoft/);
    expect(text(exportOnnx({ outputs }, { weights }))).toMatch(/norm/);
  });
});

describe("functions", () => {
  const x = input("x", ["T", 4]);
  const block = graphFunction(
    "block",
    { x },
    {
      y: tap(x.linear(parameter("weight", [4, 4])), "inner")
        .reshape(["T", 2, 2])
        .sum(-1),
    },
  );

  test("one definition, two places: own weights, own sizes", async () => {
    const a = block.call({ x: input("a", ["S", 4]) }, { scope: "layers.0" });
    const b = block.call({ x: input("b", [3, 4]) }, { scope: "layers.1" });
    expect([a.y.shape, b.y.shape]).toEqual([
      ["S", 2],
      [3, 2],
    ]);
    const weights = weightsFrom({
      "layers.0.weight": floatWeight([4, 4], new Float32Array(16).fill(1)),
      "layers.1.weight": quantizeQ8(new Float32Array(16).fill(2), 4, 4),
    });
    await using segment = await compile({ outputs: { "a.y": a.y, "b.y": b.y } }, { weights, precision: "float32" });
    const result = await segment.run({ a: rows([1, 1, 1, 1], 4), b: rows(new Array(12).fill(1), 4) });
    expect([...(result["a.y"].data as Float32Array)]).toEqual([8, 8]);
    expect(result["b.y"].dims).toEqual([3, 2]);
    expect(largestDifference(result["b.y"].data as Float32Array, new Array(6).fill(16))).toBeLessThan(1e-5);
  });

  test("arguments are checked", async () => {
    const error = await failure(() => block.call({ x: input("a", ["S", 5]) }));
    expect(error.message).toMatch(/block: the argument "x" must be .*\[T, 4\].* here \[S, 4\]; given "a" \[S, 5\]/);
  });

  test("substitution replaces an inner tensor and shares the rest", async () => {
    const a = input("a", ["T"]);
    const kept = a.exp();
    const inner = a.add(1);
    const out = inner.mul(kept);
    const { y } = substitute({ y: out }, { tensors: new Map([[inner, a.mul(10)]]) });
    expect(y.inputs[1]).toBe(kept);
    await using segment = await compile({ outputs: { y } });
    const { y: result } = await segment.run({ a: { data: [0, 1], dims: [2] } });
    expect(largestDifference(result.data as Float32Array, [0, 10 * Math.E])).toBeLessThan(1e-5);
  });
});
