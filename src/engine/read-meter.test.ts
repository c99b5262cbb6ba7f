import { afterAll, describe, expect, it } from "vitest";
import { CachePool } from "./cache.js";
import { ReadMeter } from "./read-meter.js";

/** Two KV heads with two query heads each, in one layer. */
const pool = new CachePool({ layers: [{ kvHeads: 2, keyDim: 8, valueDim: 8 }], type: "float32" });
afterAll(() => pool.close());

function filled(tokens: number, watched: readonly number[] = []) {
  const cache = pool.create();
  const layer = cache.layer(0);
  layer.append(new Float32Array(tokens * 16).fill(0.1), new Float32Array(tokens * 16).fill(1), tokens);
  const meter = new ReadMeter(1, 4, watched);
  cache.meter(meter);
  return { cache, layer, meter };
}

const q = new Float32Array(4 * 8).fill(0.1);
const out = new Float32Array(4 * 8);

describe("the read meter", () => {
  it("counts every key of full attention, and starts anew when taken", () => {
    const { layer, meter, cache } = filled(40, [3, 39]);
    layer.attend({ q, rows: 1, scale: 1 }, out);
    expect(meter.take()).toEqual({ attended: 40, scored: 0, bounds: 0, watched: 1 });
    expect(meter.take()).toEqual({ attended: 0, scored: 0, bounds: 0, watched: 0 });
    cache.release();
  });

  it("counts ranges, pages and tokens as the kernels read them", () => {
    const { layer, meter, cache } = filled(40, [2, 35]);
    layer.attend(
      {
        q,
        rows: 1,
        scale: 1,
        entries: {
          ranges: [
            [0, 4],
            [2, 6],
          ],
        },
      },
      out,
    );
    expect(meter.take()).toMatchObject({ attended: 6, watched: 0.5 });
    // the last page holds 8 of 16
    layer.attend({ q, rows: 1, scale: 1, entries: { pages: Int32Array.of(0, 2) } }, out);
    expect(meter.take()).toMatchObject({ attended: 24, watched: 1 });
    // one KV head of two
    layer.attend({ q, rows: 1, scale: 1, heads: [1, 2], entries: { tokens: Int32Array.of(2) } }, out);
    expect(meter.take()).toMatchObject({ attended: 0.5, watched: 0.25 });
    cache.release();
  });

  it("counts causal rows, windows and biases of -Infinity", () => {
    const { layer, meter, cache } = filled(10);
    const two = new Float32Array(2 * 4 * 8).fill(0.1);
    layer.attend({ q: two, rows: 2, scale: 1 }, new Float32Array(2 * 4 * 8));
    expect(meter.take().attended).toBe(9 + 10);
    layer.attend({ q, rows: 1, scale: 1, window: 3 }, out);
    expect(meter.take().attended).toBe(3);
    const data = new Float32Array(4 * 10);
    data.fill(Number.NEGATIVE_INFINITY, 0, 10);
    layer.attend({ q, rows: 1, scale: 1, bias: { data, heads: 4, rows: 0 } }, out);
    expect(meter.take().attended).toBe(7.5);
    cache.release();
  });

  it("tells what choosing cost from what was attended to", () => {
    const { layer, meter, cache } = filled(40);
    layer.scores({ q, rows: 1, scale: 1 });
    layer.bounds(0);
    layer.bounds(1);
    layer.attend({ q, rows: 1, scale: 1, entries: { ranges: [[0, 8]] } }, out);
    expect(meter.take()).toMatchObject({ attended: 8, scored: 40, bounds: 3 });
    // rows of weights: keys were scored to be summed
    const weights = layer.scores({ q, rows: 1, scale: 1 }).map((_, i) => (i % 40 < 10 ? 0.1 : 0));
    layer.sum(weights, 1);
    expect(meter.take()).toMatchObject({ attended: 10, scored: 30 });
    cache.release();
  });

  it("watches positions, not places, after an eviction", () => {
    const { layer, meter, cache } = filled(40, [5, 30]);
    layer.keep(0, Int32Array.of(0, 30, 39));
    layer.keep(1, Int32Array.of(0, 30, 39));
    layer.attend({ q, rows: 1, scale: 1 }, out);
    expect(meter.take()).toMatchObject({ attended: 3, watched: 0.5 });
    cache.release();
  });
});
