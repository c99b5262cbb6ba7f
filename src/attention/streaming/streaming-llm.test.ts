import { describe, expect, it } from "vitest";
import { rotate } from "../../engine/rotary.js";
import { full } from "../full.js";
import { PlainLayer, type PlainRows } from "../plain.js";
import { maxDifference, randomRows, sliceRows } from "../testing.js";
import { keptEntries, streamingLlm } from "./streaming-llm.js";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 8 };
const { heads, kvHeads, headDim } = SHAPE;

/**
 * The paper's cache, one row a call: unrotated keys; room is made before the rows are added; keys and queries are rotated
 * at their places in the cache; plain softmax attention.
 */
class RankedCache {
  k: number[][][] = [];
  v: number[][][] = [];
  positions: number[] = [];
  #next = 0;
  readonly sinks: number;
  readonly window: number;
  constructor(sinks: number, window: number) {
    this.sinks = sinks;
    this.window = window;
  }

  /** Rows fed at once: room for all of them first, then each attends causally. */
  feed(rows: PlainRows): Float32Array {
    const count = rows.q.length / (heads * headDim);
    const over = this.k.length + count - (this.sinks + this.window);
    if (over > 0 && this.k.length > 0) {
      const keep = (_: unknown, i: number) => i < this.sinks || i >= this.k.length - this.window + count;
      const [k, v, positions] = [this.k.filter(keep), this.v.filter(keep), this.positions.filter(keep)];
      [this.k, this.v, this.positions] = [k, v, positions];
    }
    const past = this.k.length;
    for (let t = 0; t < count; t++) {
      const row = (x: Float32Array) =>
        Array.from({ length: kvHeads }, (_, h) => [
          ...x.subarray((t * kvHeads + h) * headDim, (t * kvHeads + h + 1) * headDim),
        ]);
      this.k.push(row(rows.k));
      this.v.push(row(rows.v));
      this.positions.push(this.#next++);
    }
    const out = new Float32Array(rows.q.length);
    for (let t = 0; t < count; t++)
      for (let h = 0; h < heads; h++) {
        const at = (t * heads + h) * headDim;
        const q = turned([...rows.q.subarray(at, at + headDim)], past + t);
        const g = Math.floor(h / (heads / kvHeads));
        const logits = this.k.slice(0, past + t + 1).map((k, rank) => dot(q, turned(k[g], rank)) / Math.sqrt(headDim));
        const max = Math.max(...logits);
        const weights = logits.map((x) => Math.exp(x - max));
        const total = weights.reduce((a, b) => a + b, 0);
        for (const [i, w] of weights.entries())
          for (let d = 0; d < headDim; d++) out[at + d] += (w / total) * this.v[i][g][d];
      }
    return out;
  }
}

const PLAN = {
  inverse: Float32Array.from({ length: headDim / 2 }, (_, i) => 10000 ** ((-2 * i) / headDim)),
  multiplier: 1,
  dims: headDim,
};
function turned(x: number[], position: number): number[] {
  const y = Float32Array.from(x);
  rotate(y, 1, headDim, [position], PLAN);
  return [...y];
}
const dot = (a: number[], b: number[]) => a.reduce((sum, x, i) => sum + x * b[i], 0);

function join(parts: Float32Array[]): Float32Array {
  const all = new Float32Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of parts) {
    all.set(p, at);
    at += p.length;
  }
  return all;
}

/** Rows in pieces of the given sizes through a layer. */
async function run(layer: PlainLayer, rows: PlainRows, tokens: number, sizes: number[]): Promise<Float32Array> {
  const out: Float32Array[] = [];
  let at = 0;
  for (const n of sizes) out.push(await layer.step(sliceRows(rows, tokens, at, (at += n))));
  expect(at).toBe(tokens);
  return join(out);
}

describe("streaming-llm", () => {
  it("keeps the first and the last: sinks 2, window 3, tokens 0..7 leave {0,1,5,6,7} at ranks 0..4", async () => {
    // the cache before token 7 holds 0, 1, 4, 5, 6: one leaves, then 7 comes
    expect([...keptEntries(5, 2, 2)]).toEqual([0, 1, 3, 4]);
    const ranked = new RankedCache(2, 3);
    const rows = randomRows(8, SHAPE);
    for (let t = 0; t < 8; t++) ranked.feed(sliceRows(rows, 8, t, t + 1));
    expect(ranked.positions).toEqual([0, 1, 5, 6, 7]);
    // the method, as it decides while feeding a prompt of eight tokens
    const layer = new PlainLayer(SHAPE, [streamingLlm({ sinks: 2, window: 3 })]);
    await layer.step(rows);
    expect([...layer.positions(0)]).toEqual([0, 1, 5, 6, 7]);
    expect([...layer.positions(1)]).toEqual([0, 1, 5, 6, 7]);
  });

  it.each([
    [4, 5],
    [0, 6],
    [3, 1],
    [1, 30],
  ])("equals the paper's re-rotated cache, fed token by token (sinks %i, window %i)", async (sinks, window) => {
    const tokens = 70;
    const rows = randomRows(tokens, SHAPE, 7);
    const ranked = new RankedCache(sinks, window);
    const wanted = join(Array.from({ length: tokens }, (_, t) => ranked.feed(sliceRows(rows, tokens, t, t + 1))));
    const attached = streamingLlm({ sinks, window });
    for (const sizes of [[...Array(tokens)].map(() => 1), [tokens], [20, 30, 1, 1, 10, 1, 7], [3, 1, 1, 65]]) {
      const got = await run(new PlainLayer(SHAPE, [attached]), rows, tokens, sizes);
      expect(maxDifference(got, wanted)).toBeLessThan(2e-5);
    }
    const blocks = await run(new PlainLayer(SHAPE, [attached], { blockRows: 9 }), rows, tokens, [tokens]);
    expect(maxDifference(blocks, wanted)).toBeLessThan(2e-5);
  });

  it("feeds a dense prompt and later turns at once, as the paper's code does with turns", async () => {
    const tokens = 60;
    const rows = randomRows(tokens, SHAPE, 3);
    const ranked = new RankedCache(3, 12);
    const sizes = [10, 9, 1, 1, 1, 12, 1, 1, 5, 14, 1, 1, 3];
    let at = 0;
    const wanted = join(sizes.map((n) => ranked.feed(sliceRows(rows, tokens, at, (at += n)))));
    const got = await run(
      new PlainLayer(SHAPE, [streamingLlm({ sinks: 3, window: 12, prompt: "dense" })]),
      rows,
      tokens,
      sizes,
    );
    expect(maxDifference(got, wanted)).toBeLessThan(2e-5);
  });

  it("reads a dense prompt in full and a masked one by sinks and window at true positions", async () => {
    const tokens = 40;
    const rows = randomRows(tokens, SHAPE, 5);
    const dense = await new PlainLayer(SHAPE, [full()]).step(rows);
    const got = await new PlainLayer(SHAPE, [streamingLlm({ sinks: 2, window: 6, prompt: "dense" })]).step(rows);
    expect(maxDifference(got, dense)).toBe(0);
    const masked = await new PlainLayer(SHAPE, [streamingLlm({ sinks: 2, window: 6, prompt: "masked" })]).step(rows);
    const atTrue = await new PlainLayer(SHAPE, [streamingLlm({ sinks: 2, window: 6, positions: "true" })]).step(rows);
    expect(maxDifference(masked, atTrue)).toBe(0);
    expect(maxDifference(masked, dense)).toBeGreaterThan(1e-2);
    const byRank = await new PlainLayer(SHAPE, [streamingLlm({ sinks: 2, window: 6 })]).step(rows);
    expect(maxDifference(masked, byRank)).toBeGreaterThan(1e-2);
    // row 20 of the masked form by hand: keys 0, 1 and 15..20
    const visible = [0, 1, 15, 16, 17, 18, 19, 20];
    const kRotated = (s: number) => turned([...rows.k.subarray(s * kvHeads * headDim, (s * kvHeads + 1) * headDim)], s);
    const q = turned([...rows.q.subarray(20 * heads * headDim, (20 * heads + 1) * headDim)], 20);
    const weights = visible.map((s) => Math.exp(dot(q, kRotated(s)) / Math.sqrt(headDim)));
    const total = weights.reduce((a, b) => a + b, 0);
    const wanted = Array.from({ length: headDim }, (_, d) =>
      visible.reduce((sum, s, i) => sum + (weights[i] / total) * rows.v[s * kvHeads * headDim + d], 0),
    );
    expect(maxDifference(masked.subarray(20 * heads * headDim, (20 * heads + 1) * headDim), wanted)).toBeLessThan(1e-5);
  });

  it("is full attention while the text is shorter than sinks and window", async () => {
    const tokens = 30;
    const rows = randomRows(tokens, SHAPE, 2);
    const wanted = await new PlainLayer(SHAPE, [full()]).step(rows);
    for (const prompt of ["stream", "masked", "dense"] as const)
      for (const positions of ["rank", "true"] as const) {
        const attached = streamingLlm({ sinks: 4, window: 26, prompt, positions });
        const got = await run(new PlainLayer(SHAPE, [attached]), rows, tokens, [12, 1, 1, 9, 7]);
        expect(maxDifference(got, wanted)).toBeLessThan(1e-5);
      }
  });

  it("holds a constant number of tokens over a long stream", async () => {
    const tokens = 400;
    const rows = randomRows(tokens, SHAPE, 4);
    const layer = new PlainLayer(SHAPE, [streamingLlm({ sinks: 4, window: 20 })]);
    let most = 0;
    for (let t = 0; t < tokens; t++) {
      await layer.step(sliceRows(rows, tokens, t, t + 1));
      most = Math.max(most, layer.positions(0).length);
    }
    expect(most).toBeLessThanOrEqual(4 + 20 + 16);
    expect([...layer.positions(0).subarray(0, 4)]).toEqual([0, 1, 2, 3]);
  });

  it("acts on the layers and heads of its scope only", async () => {
    const tokens = 30;
    const rows = randomRows(tokens, SHAPE, 9);
    const dense = await new PlainLayer(SHAPE, [full()]).step(rows);
    const streamed = await new PlainLayer(SHAPE, [streamingLlm({ sinks: 2, window: 5 })]).step(rows);
    // heads 2 and 3 share the second key-value head
    const limited = new PlainLayer(SHAPE, [
      streamingLlm({
        sinks: 2,
        window: 5,
        heads: [
          { layer: 0, head: 2 },
          { layer: 0, head: 3 },
        ],
      }),
    ]);
    const got = await limited.step(rows);
    for (let t = 0; t < tokens; t++)
      for (let h = 0; h < heads; h++) {
        const at = (t * heads + h) * headDim;
        const wanted = h < 2 ? dense : streamed;
        expect(maxDifference(got.subarray(at, at + headDim), wanted.subarray(at, at + headDim))).toBeLessThan(1e-6);
      }
    expect(limited.positions(0).length).toBe(30);
    expect(limited.positions(1).length).toBe(7);
  });

  it("refuses positions inside the cache where positions are embedded", () => {
    expect(() => new PlainLayer(SHAPE, [streamingLlm()], { rotaryBase: null })).toThrow(/positions to its embeddings/);
    expect(() => new PlainLayer(SHAPE, [streamingLlm({ positions: "true" })], { rotaryBase: null })).not.toThrow();
  });
});
