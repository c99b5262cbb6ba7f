import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { z } from "zod";
import { largest } from "../budget.js";
import { maxDifference, normals } from "../testing.js";
import {
  boundScores,
  denseLayers,
  dotScores,
  forcedTokens,
  groupReduction,
  heldChoice,
  isDense,
  keyBounds,
  keyMeans,
  readingBudget,
  readTokens,
  reduceGroups,
  refresh,
  topEntries,
  topPerHead,
  withNewer,
} from "./index.js";

describe("the largest of a row", () => {
  it("is what sorting gives, for any floats and any part of a row", () => {
    const scores = fc.array(
      fc.oneof(fc.float({ noNaN: true }), fc.integer({ min: -3, max: 3 }), fc.constantFrom(0, -0, -1 / 0, 1 / 0)),
      { maxLength: 60 },
    );
    fc.assert(
      fc.property(scores, fc.nat(60), fc.nat(20), fc.nat(20), (list, count, from, cut) => {
        const values = Float32Array.from(list);
        const to = Math.max(0, values.length - cut);
        const wanted = [...values.keys()]
          .slice(from, to)
          .sort((a, b) => values[b] - values[a] || a - b)
          .slice(0, count)
          .sort((a, b) => a - b);
        expect([...largest(values, count, from, to)]).toEqual(wanted);
      }),
    );
  });

  it("reads a part of a larger array", () => {
    const all = Float32Array.of(9, 9, 1, 5, 3);
    expect([...largest(all.subarray(2), 2)]).toEqual([1, 2]);
  });
});

describe("top entries with forced parts", () => {
  const row = Float32Array.of(0, 5, 1, 4, 2, 3);

  it("keeps sinks and newest ones inside the count", () => {
    expect([...topEntries(row, 3)]).toEqual([1, 3, 5]);
    expect([...topEntries(row, 3, { sinks: 1 })]).toEqual([0, 1, 3]);
    expect([...topEntries(row, 3, { window: 1 })]).toEqual([1, 3, 5]);
    expect([...topEntries(row, 4, { sinks: 1, window: 2 })]).toEqual([0, 1, 4, 5]);
    expect([...topEntries(row, 9, { sinks: 1, window: 2 })]).toEqual([0, 1, 2, 3, 4, 5]);
  });

  it("lets the newest go first where the count is too small", () => {
    expect([...topEntries(row, 3, { sinks: 2, window: 2 })]).toEqual([0, 4, 5]);
    expect([...topEntries(row, 1, { sinks: 2, window: 2 })]).toEqual([5]);
    expect([...topEntries(row, 0, { sinks: 2, window: 2 })]).toEqual([]);
  });

  it("always has exactly the count, ascending, with what is forced", () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: -4, max: 4 }), { maxLength: 30 }),
        fc.nat(35),
        fc.nat(8),
        fc.nat(8),
        (list, count, sinks, window) => {
          const chosen = [...topEntries(Float32Array.from(list), count, { sinks, window })];
          expect(chosen.length).toBe(Math.min(count, list.length));
          expect(chosen).toEqual([...new Set(chosen)].sort((a, b) => a - b));
          if (count >= sinks + window)
            for (let i = 0; i < list.length; i++)
              if (i < sinks || i >= list.length - window) expect(chosen).toContain(i);
        },
      ),
    );
  });

  it("chooses per head, within each head's own entries", () => {
    const data = Float32Array.of(1, 2, 3, 9, 4, 3, 2, 1);
    const lists = topPerHead({ data, heads: 2, keys: 4 }, 1, {}, [3, 4]);
    expect(lists.map((l) => [...l])).toEqual([[2], [0]]);
    // four query heads of two KV heads: rows 0 and 1 read head 0's three entries
    const four = topPerHead({ data: Float32Array.of(...data, ...data), heads: 4, keys: 4 }, 1, {}, [3, 4]);
    expect(four.map((l) => [...l])).toEqual([[2], [0], [3], [0]]);
  });
});

describe("groups", () => {
  const data = Float32Array.of(1, 2, 3, 0, 5, -1, 7, 8);
  const scores = { data, heads: 4, keys: 2 };

  it("reduces rows of query heads to rows of KV heads", () => {
    expect(reduceGroups(scores, 2, "none")).toBe(scores);
    expect([...reduceGroups(scores, 2, "sum").data]).toEqual([4, 2, 12, 7]);
    expect([...reduceGroups(scores, 2, "mean").data]).toEqual([2, 1, 6, 3.5]);
    expect([...reduceGroups(scores, 2, "max").data]).toEqual([3, 2, 7, 8]);
    expect([...reduceGroups(scores, 1, "sum").data]).toEqual([16, 9]);
    expect([...data]).toEqual([1, 2, 3, 0, 5, -1, 7, 8]);
  });

  it("refuses rows that do not divide", () => {
    expect(() => reduceGroups(scores, 3, "sum")).toThrow("4 rows of scores are no multiple of 3");
  });
});

describe("page summaries", () => {
  it("bound pages as Quest's example has it", () => {
    // page A = {(1,0),(0,1)}, page B = {(0.8,0.8),(0.7,0.7)}
    const bounds = keyBounds(Float32Array.of(1, 0, 0, 1, 0.8, 0.8, 0.7, 0.7), 2, 2);
    expect(maxDifference(boundScores(Float32Array.of(1, 1), bounds), [2, 1.6])).toBeLessThan(1e-6);
    expect(maxDifference(boundScores(Float32Array.of(-1, 1), bounds), [1, 0.1])).toBeLessThan(1e-6);
  });

  it("are never below a dot product of the page, and equal it for pages of one key", () => {
    const next = normals(3);
    const [n, dim] = [37, 8];
    const keys = next(n * dim);
    for (const size of [1, 4, 16]) {
      const q = next(dim);
      const scores = boundScores(q, keyBounds(keys, dim, size));
      const dots = dotScores(q, keys);
      expect(scores.length).toBe(Math.ceil(n / size));
      for (let i = 0; i < n; i++) expect(scores[Math.floor(i / size)]).toBeGreaterThanOrEqual(dots[i] - 1e-5);
      if (size === 1) expect(maxDifference(scores, dots)).toBeLessThan(1e-5);
    }
  });

  it("average pages, a partial one over what it holds", () => {
    expect([...keyMeans(Float32Array.of(1, 2, 3, 4, 5, 7), 2, 2)]).toEqual([2, 3, 5, 7]);
  });
});

describe("refreshing", () => {
  it("holds a choice for the interval and drops one of rows that were taken back", () => {
    const choices = new Map();
    let made = 0;
    const at = (position: number, interval = 3) => heldChoice(choices, 0, position, interval, () => ++made);
    expect([10, 11, 12, 13, 14].map((p) => at(p))).toEqual([1, 1, 1, 2, 2]);
    expect(at(11)).toBe(3);
    expect(at(11, 1)).toBe(4);
  });

  it("adds the entries that came since", () => {
    expect([...withNewer(Int32Array.of(1, 4), 6, 8)]).toEqual([1, 4, 6, 7]);
    expect([...withNewer(Int32Array.of(1, 4), 6, 6)]).toEqual([1, 4]);
  });
});

describe("shared parameters", () => {
  const schema = z.object({
    ...readingBudget(64),
    ...denseLayers(2),
    ...groupReduction("none"),
    ...refresh(),
    ...forcedTokens(4, 32),
  });

  it("have defaults and refuse nonsense", () => {
    const defaults = schema.parse({});
    expect(defaults).toEqual({ tokens: 64, denseLayers: 2, group: "none", refresh: 1, sinks: 4, window: 32 });
    for (const bad of [
      { tokens: 1.5 },
      { share: 0 },
      { share: 2 },
      { group: "min" },
      { refresh: 0 },
      { denseLayers: -1 },
    ])
      expect(schema.safeParse(bad).success).toBe(false);
  });

  it("count a budget in tokens or as a share", () => {
    expect(readTokens({ tokens: 64 }, 1000)).toBe(64);
    expect(readTokens({ tokens: 1 / 4 }, 1000)).toBe(250);
    expect(readTokens({ tokens: 64, share: 1 / 8 }, 1000)).toBe(125);
    expect(readTokens({ tokens: 64, share: 1 }, 1000)).toBe(1000);
  });

  it("name dense layers by count or one by one", () => {
    expect([0, 1, 2].map((l) => isDense(l, 2, 4))).toEqual([true, true, false]);
    expect([0, 1, 2, 3].map((l) => isDense(l, [0, -1], 4))).toEqual([true, false, false, true]);
  });
});
