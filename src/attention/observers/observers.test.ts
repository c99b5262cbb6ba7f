import { describe, expect, it } from "vitest";
import type { Reducer } from "../../engine/api.js";
import type { ModelShape, ObserveStep } from "../../engine/hooks.js";
import { attentionRows } from "./attention-rows.js";
import { distance, entropy, received, sinkRate, spanMass } from "./reducers.js";

const model: ModelShape = {
  layers: 2,
  heads: 2,
  kvHeads: 1,
  width: 4,
  headDim: 2,
  mlpWidth: 1,
  vocab: 1,
  maxPositions: 64,
  hash: "",
  rotary: false,
};

/** Feeds maps [layer][head][row][key] in blocks of rows, as the engine does. */
function reduce<R>(reducer: Reducer<R>, maps: number[][][][], block = 2): R {
  const tokens = maps[0][0].length;
  const run = reducer.start(model, tokens);
  for (const [layer, heads] of maps.entries())
    for (let first = 0; first < tokens; first += block) {
      const count = Math.min(block, tokens - first);
      const data = heads.flatMap((map) => map.slice(first, first + count).flat());
      const step: ObserveStep = {
        layer,
        phase: "prompt",
        rows: count,
        positions: Int32Array.from({ length: count }, (_, i) => first + i),
        firstRow: first,
        totalRows: tokens,
        model,
        state: undefined,
        weights: { data: Float32Array.from(data), heads: 2, rows: count, keys: tokens },
        keyPositions: () => Int32Array.from({ length: tokens }, (_, i) => i),
      };
      run.observe(step);
    }
  return run.finish();
}

const uniform = (n: number) =>
  Array.from({ length: n }, (_, t) => Array.from({ length: n }, (_, s) => (s <= t ? 1 / (t + 1) : 0)));
const first = (n: number) => Array.from({ length: n }, () => Array.from({ length: n }, (_, s) => (s === 0 ? 1 : 0)));
const sheet = [
  [1, 0, 0, 0],
  [0.5, 0.5, 0, 0],
  [0.4, 0.4, 0.2, 0],
  [0.7, 0.1, 0.1, 0.1],
];

describe("observers", () => {
  const maps = [
    [sheet, uniform(4)],
    [first(4), sheet],
  ];

  it("sums the mass on a span", () => {
    const last = reduce(spanMass([1, 3]), maps);
    expect(last.at({ layer: 0, head: 0 })).toBeCloseTo(0.2);
    expect(last.at({ layer: 0, head: 1 })).toBeCloseTo(0.5);
    expect(last.at({ layer: 1, head: 0 })).toBe(0);
    expect(last.at({ layer: -1, head: 1 })).toBeCloseTo(0.2);
    expect(reduce(spanMass([1, 2], { rows: "all" }), maps).at({ layer: 0, head: 0 })).toBeCloseTo(
      (0.5 + 0.4 + 0.1) / 4,
    );
    expect(reduce(spanMass([1, 2], { rows: [1, 3] }), maps).at({ layer: 0, head: 0 })).toBeCloseTo(0.45);
    expect(reduce(spanMass([1, 2], { layers: [-1] }), maps).at({ layer: 0, head: 0 })).toBeNaN();
    expect(() => spanMass([3, 3])).toThrow(/start below end/);
    expect(() => reduce(spanMass([0, 1], { rows: [2, 9] }), maps)).toThrow(/rows 2 to 9 of a text of 4 tokens/);
    expect(() => last.at({ layer: 2, head: 0 })).toThrow(/no head 2\.0/);
  });

  it("measures entropy and distance", () => {
    const h = reduce(entropy(), maps);
    expect(h.at({ layer: 0, head: 1 })).toBeCloseTo((Math.log(2) + Math.log(3) + Math.log(4)) / 4);
    expect(h.at({ layer: 1, head: 0 })).toBe(0);
    const d = reduce(distance(), maps);
    expect(d.at({ layer: 1, head: 0 })).toBeCloseTo((0 + 1 + 2 + 3) / 4);
    expect(d.at({ layer: 0, head: 1 })).toBeCloseTo((0 + 0.5 + 1 + 1.5) / 4);
  });

  it("sums what each token receives", () => {
    const sums = reduce(received(), maps, 3);
    expect([...sums.at({ layer: 0, head: 0 })].map((x) => +x.toFixed(5))).toEqual([2.6, 1, 0.3, 0.1]);
    expect(sums.data.length).toBe(2 * 2 * 4);
  });

  it("gives the sheet's sink rates: alpha .65, .3333, .15, .1, and 0.07412 for a uniform map of 64", () => {
    for (const [token, alpha] of [0.65, 1 / 3, 0.15, 0.1].entries()) {
      const table = reduce(sinkRate({ token }), maps);
      expect(table.at({ layer: 0, head: 0 })).toBeCloseTo(alpha, 4);
    }
    expect(
      reduce(sinkRate(), [
        [sheet, sheet],
        [first(4), uniform(4)],
      ]).rate,
    ).toBe(1);
    expect(reduce(sinkRate({ threshold: 0.8 }), maps).rate).toBe(0.25);
    const wide = reduce(sinkRate(), [
      [uniform(64), first(64)],
      [uniform(64), uniform(64)],
    ]);
    expect(wide.at({ layer: 0, head: 0 })).toBeCloseTo(0.07412, 5);
    expect(wide.rate).toBe(0.25);
  });

  it("returns rows of one head, the last, some, all, or each as it passes", () => {
    const close = (x: Float32Array, wanted: number[]) => expect([...x].map((v) => +v.toFixed(5))).toEqual(wanted);
    const last = reduce(attentionRows({ layer: 0, head: 0 }), maps);
    expect([last.rows, last.columns, last.firstRow]).toEqual([1, 4, 3]);
    close(last.row(3), sheet[3]);
    expect(() => last.row(1)).toThrow(/row 1 was not kept/);
    const some = reduce(attentionRows({ layer: -1, head: 1, rows: [1, 3] }), maps, 3);
    close(some.row(2), sheet[2]);
    close(some.data, [...sheet[1], ...sheet[2]]);
    close(reduce(attentionRows({ layer: 0, head: 0, rows: "all" }), maps).data, sheet.flat());
    const seen: number[][] = [];
    const each = reduce(
      attentionRows({ layer: 0, head: 0, rows: "all", each: (position, row) => seen.push([position, row[0]]) }),
      maps,
    );
    expect(seen.map(([p, x]) => [p, +x.toFixed(5)])).toEqual([
      [0, 1],
      [1, 0.5],
      [2, 0.4],
      [3, 0.7],
    ]);
    expect(each.data.length).toBe(0);
  });
});
