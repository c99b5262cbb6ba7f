import { describe, expect, it } from "vitest";
import type { ModelShape } from "../../engine/hooks.js";
import { full } from "../full.js";
import { PlainLayer, type PlainRows } from "../plain.js";
import { streamingLlm } from "../streaming/streaming-llm.js";
import { maxDifference, randomRows, sliceRows } from "../testing.js";
import { duoattention, streamingHeads } from "./duoattention.js";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 8 };
/** Query heads of the first KV head. */
const FIRST = [
  { layer: 0, head: 0 },
  { layer: 0, head: 1 },
];
const tokens = 60;
const rows = randomRows(tokens, SHAPE, 21);

async function run(layer: PlainLayer, of: PlainRows, sizes: readonly number[]): Promise<number[]> {
  const out: number[] = [];
  let at = 0;
  for (const n of sizes) out.push(...(await layer.step(sliceRows(of, tokens, at, (at += n)))));
  return out;
}
const ones = (n: number) => new Array<number>(n).fill(1);

describe("duoattention", () => {
  it("is full attention at sparsity 0, where no head streams, and while sinks and window cover the text", async () => {
    const wanted = await new PlainLayer(SHAPE, [full()]).step(rows);
    for (const attached of [
      duoattention({ gates: [0.3, 0.1], sparsity: 0, sinks: 1, window: 2 }),
      duoattention({ heads: [FIRST[0], { layer: 0, head: 3 }], sparsity: 0, sinks: 1, window: 2 }),
      duoattention({ gates: [0.3, 0.1], sparsity: 1, sinks: 4, window: tokens - 4 }),
      duoattention({ heads: [], sinks: 0, window: tokens }),
    ]) {
      const got = await run(new PlainLayer(SHAPE, [attached], { blockRows: 16 }), rows, [40, ...ones(10), 10]);
      expect(maxDifference(got, wanted)).toBeLessThan(1e-5);
    }
  });

  it("is sinks and window everywhere at sparsity 1, as streaming-llm at true positions", async () => {
    const sizes = [30, 1, 1, 1, 17, ...ones(10)];
    const streaming = streamingLlm({ sinks: 3, window: 9, positions: "true", prompt: "masked" });
    const wanted = await run(new PlainLayer(SHAPE, [streaming]), rows, sizes);
    const attached = duoattention({ gates: [1, 1], sparsity: 1, sinks: 3, window: 9 });
    const layer = new PlainLayer(SHAPE, [attached], { blockRows: 7 });
    expect(maxDifference(await run(layer, rows, sizes), wanted)).toBeLessThan(1e-5);
    expect(Math.max(layer.positions(0).length, layer.positions(1).length)).toBeLessThan(3 + 9 + 16);
    expect([...layer.positions(1)].slice(0, 3)).toEqual([0, 1, 2]);
  });

  it("gives each KV head its own: retrieval heads the full output, the others the streaming one", async () => {
    const { heads, headDim } = SHAPE;
    const half = (out: ArrayLike<number>, retrieval: boolean) =>
      Array.from(out).filter((_, i) => Math.floor((i % (heads * headDim)) / (2 * headDim)) === (retrieval ? 0 : 1));
    const sizes = [35, ...ones(20), 5];
    const dense = await run(new PlainLayer(SHAPE, [full()]), rows, sizes);
    const streaming = streamingLlm({ sinks: 2, window: 7, positions: "true", prompt: "masked" });
    const streamed = await run(new PlainLayer(SHAPE, [streaming]), rows, sizes);
    for (const attached of [
      duoattention({ heads: FIRST, sinks: 2, window: 7 }),
      duoattention({ heads: [FIRST[1]], sinks: 2, window: 7 }),
      duoattention({ gates: [0.9, 0.2], sinks: 2, window: 7 }),
    ]) {
      const layer = new PlainLayer(SHAPE, [attached]);
      const got = await run(layer, rows, sizes);
      expect(maxDifference(half(got, true), half(dense, true))).toBeLessThan(1e-5);
      expect(maxDifference(half(got, false), half(streamed, false))).toBeLessThan(1e-5);
      expect(layer.positions(0).length).toBe(tokens);
      expect(layer.positions(1).length).toBeLessThan(2 + 7 + 16);
    }
  });

  it("reads a dense prompt whole and truncates it then, to the keys that the window would have kept", async () => {
    const dense = await new PlainLayer(SHAPE, [full()]).step(rows);
    const whole = new PlainLayer(SHAPE, [duoattention({ heads: FIRST, sinks: 2, window: 7, prompt: "dense" })]);
    const masked = new PlainLayer(SHAPE, [duoattention({ heads: FIRST, sinks: 2, window: 7 })]);
    expect(maxDifference(await whole.step(rows), dense)).toBe(0);
    await masked.step(rows);
    expect([...whole.positions(1)]).toEqual([0, 1, 53, 54, 55, 56, 57, 58, 59]);
    expect([...masked.positions(1)]).toEqual([...whole.positions(1)]);
    expect(whole.positions(0).length).toBe(tokens);
  });

  it("counts the current token in the window: w = 1 and no sinks read the row itself alone", async () => {
    const layer = new PlainLayer(SHAPE, [duoattention({ heads: [], sinks: 0, window: 1 })]);
    const out = await layer.step(rows);
    const at = 50; // a single key's weight is 1: the output is the row's own value
    const own = rows.v.subarray(at * 16 + 8, (at + 1) * 16);
    expect(maxDifference(out.subarray((at * 4 + 3) * 8, (at * 4 + 4) * 8), own)).toBeLessThan(1e-6);
  });
});

describe("which heads stream", () => {
  const model = { layers: 2, heads: 4, kvHeads: 2 } as ModelShape;
  const of = (given: Parameters<typeof streamingHeads>[1], shape = model) =>
    streamingHeads("duoattention", given, shape);

  it("the best gates are retrieval heads: half with grouped queries, a quarter without", () => {
    expect(of({ gates: [0.9, 0.1, 0.5, 0.7] })).toEqual([
      [false, true],
      [true, false],
    ]);
    const plain = { layers: 1, heads: 4, kvHeads: 4 } as ModelShape;
    expect(of({ gates: [0.2, 0.1, 0.9, 0.3] }, plain)).toEqual([[true, true, false, true]]);
    expect(of({ gates: [0.9, 0.1, 0.5, 0.7], sparsity: 0.25 })[0]).toEqual([false, true]);
    // equal gates: the first ones
    expect(of({ gates: [1, 1, 1, 1] })).toEqual([
      [false, false],
      [true, true],
    ]);
  });

  it("a list that names some heads names the retrieval heads; one that ranks all is cut", () => {
    expect(of({ heads: [{ layer: 1, head: 3 }] })).toEqual([
      [true, true],
      [true, false],
    ]);
    const all = [3, 2, 1, 0].flatMap((at) => [{ layer: at >> 1, head: 2 * (at & 1) }]);
    expect(of({ heads: all })).toEqual([
      [true, true],
      [false, false],
    ]);
  });

  it("refuses neither and both, gates of another number, and heads that are not there", () => {
    expect(() => of({})).toThrow(/needs retrieval heads or gates/);
    expect(() => of({ heads: [], gates: [1] })).toThrow(/takes one of the two/);
    expect(() => of({ gates: [1, 2] })).toThrow(/2 gates; the model has 4/);
    expect(() => of({ heads: [{ layer: 2, head: 0 }] })).toThrow(/no head 2\.0/);
    expect(() => new PlainLayer(SHAPE, [duoattention()])).toThrow(/needs retrieval heads or gates/);
  });
});
