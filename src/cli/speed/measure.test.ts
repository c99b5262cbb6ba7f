import { describe, expect, it } from "vitest";
import { DEEP, measureAll, median, type Plan, type Row, randomIds, ratios, type Setting } from "./measure.js";

const plan: Plan = {
  depths: [8, DEEP],
  runs: 3,
  decodeTokens: 4,
  vocab: 100,
  signal: new AbortController().signal,
};

/** A setting that records its turns and measures the given numbers one after the other. */
function fake(method: string, figures: readonly number[], turns: string[]): Setting {
  let run = 0;
  return {
    engine: "fovea",
    method,
    measure: async (ids, decodeTokens) => {
      turns.push(`${method}@${ids.length}`);
      const figure = figures[run++ % figures.length];
      return { prefill: figure, decode: figure * decodeTokens, cacheBytes: ids.length };
    },
    close: async () => {},
  };
}

function row(engine: Row["engine"], method: string, prefill: number, decode: number, bytes: number): Row {
  return {
    engine,
    method,
    depth: 8,
    prefill_tps: prefill,
    decode_tps: decode,
    cache_bytes: bytes,
    runs: 1,
    prefill_range: [prefill, prefill],
    decode_range: [decode, decode],
  };
}

describe("median", () => {
  it("is the middle, or between the two middle ones", () => {
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 3, 2])).toBe(2.5);
    expect(median([7])).toBe(7);
  });
});

describe("measureAll", () => {
  it("takes turns, prints medians and runs once where it is deep", async () => {
    const turns: string[] = [];
    const rows = await measureAll([fake("a", [1, 9, 2], turns), fake("b", [5], turns)], plan);
    expect(turns.slice(0, 6)).toEqual(["a@9", "b@9", "a@9", "b@9", "a@9", "b@9"]);
    expect(turns.slice(6)).toEqual([`a@${DEEP + 1}`, `b@${DEEP + 1}`]);
    expect(rows[0]).toMatchObject({
      method: "a",
      depth: 8,
      prefill_tps: 2,
      decode_tps: 8,
      prefill_range: [1, 9],
      runs: 3,
    });
    expect(rows[2]).toMatchObject({ method: "a", depth: DEEP, runs: 1 });
  });

  it("runs every setting once before it measures, where that is asked for", async () => {
    const turns: string[] = [];
    const settings = [fake("a", [100, 2], turns), fake("b", [100, 5], turns)];
    const rows = await measureAll(settings, { ...plan, depths: [8], runs: 1, warmUp: 3 });
    expect(turns).toEqual(["a@4", "b@4", "a@9", "b@9"]);
    expect(rows.map((one) => one.prefill_tps)).toEqual([2, 5]);
  });

  it("stops between runs when it is aborted", async () => {
    const abort = new AbortController();
    const turns: string[] = [];
    const stopping: Setting = {
      ...fake("a", [1], turns),
      measure: async () => {
        abort.abort();
        return { prefill: 1, decode: 1, cacheBytes: 1 };
      },
    };
    await expect(measureAll([stopping, fake("b", [1], turns)], { ...plan, signal: abort.signal })).rejects.toThrow();
    expect(turns).toEqual([]);
  });
});

describe("ratios", () => {
  it("are against the other engine's best setting, figure by figure", () => {
    const rows = [
      row("fovea", "full", 300, 60, 60),
      row("llama.cpp", "flash off", 100, 40, 100),
      row("llama.cpp", "flash on", 200, 20, 100),
    ];
    expect(ratios(rows, 0.5)).toEqual([
      {
        depth: 8,
        method: "full",
        prefill: 1.5,
        decode: 1.5,
        cache_f16: 0.6,
        cache_q8_0: 1.2,
        best: { prefill: "flash on", decode: "flash off" },
      },
    ]);
  });

  it("are none without another engine", () => {
    expect(ratios([row("fovea", "full", 1, 1, 1)], 0.5)).toEqual([]);
  });
});

describe("randomIds", () => {
  it("are the same every time and lie in the vocabulary", () => {
    const ids = randomIds(1000, 50);
    expect(randomIds(1000, 50)).toEqual(ids);
    expect(Math.min(...ids)).toBeGreaterThanOrEqual(0);
    expect(Math.max(...ids)).toBeLessThan(50);
    expect(new Set(ids).size).toBeGreaterThan(40);
  });
});
