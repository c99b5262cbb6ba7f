import { existsSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { decodedLogits, openStories, STORIES } from "../../../test/trained-stories.js";
import type { AttachedMethod, AttentionStep, Entries, KeyView, ModelShape, Part } from "../../engine/hooks.js";
import { headLengths, middleLayer, topEntries } from "../select/index.js";
import { normals } from "../testing.js";
import { lessismore, mergeRanks, unifiedSet } from "./lessismore.js";
import { tidaldecode } from "./tidaldecode.js";

const MODEL = { layers: 10, heads: 4, kvHeads: 2, headDim: 8 } as ModelShape;

/** A cache of keys at the given positions, the same for all KV heads. */
function viewOf(positions: readonly number[]): KeyView {
  const list = Int32Array.from(positions);
  return {
    length: () => list.length,
    positions: () => list,
    keys: () => new Float32Array(0),
    values: () => new Float32Array(0),
  };
}

/** Runs a method's layers over one decode step; `logits(layer)` [Hq, S] is what a choosing layer scores. */
async function token(
  attached: AttachedMethod,
  logits: (layer: number) => Float32Array,
  options: { state?: unknown; model?: ModelShape; view?: (layer: number) => KeyView; position?: number } = {},
) {
  const { model = MODEL } = options;
  const length = logits(0).length / model.heads;
  const view = options.view ?? (() => viewOf(Array.from({ length }, (_, i) => i)));
  const bound = { state: options.state ?? attached.hooks.state?.(model) };
  const read: (number[][] | "all")[] = [];
  const scored: number[] = [];
  for (let layer = 0; layer < model.layers; layer++) {
    const step = Object.assign(bound, {
      layer,
      phase: "decode",
      rows: 1,
      positions: Int32Array.of(options.position ?? length - 1),
      model,
      view: view(layer),
      score: async () => {
        scored.push(layer);
        return logits(layer);
      },
    }) as unknown as AttentionStep;
    const parts = (await attached.hooks.select?.(step)) as Part[];
    expect(parts.length).toBe(1);
    const { entries } = parts[0];
    read.push(entries ? (entries as Entries[]).map((e) => (e !== "all" && "tokens" in e ? [...e.tokens] : [])) : "all");
  }
  return { read, scored, state: bound.state };
}

const random = (seed: number, n: number) => (layer: number) => normals(seed + layer)(MODEL.heads * n);

describe("tidaldecode", () => {
  it("chooses the sheet's two tokens, whatever the next layer's own logits say", async () => {
    const model = { ...MODEL, layers: 4, heads: 1, kvHeads: 1 };
    const logits = (layer: number) => (layer === 0 ? Float32Array.of(5, 1, 3, 2) : Float32Array.of(0, 9, 0, 0));
    // the newest token is one of the k here, so that k = 3 keeps the paper's two and it
    const { read } = await token(tidaldecode({ tokens: 3, choose: 0, again: 9 }), logits, { model });
    expect(read).toEqual(["all", [[0, 2, 3]], [[0, 2, 3]], [[0, 2, 3]]]);
  });

  it("reads behind each choosing layer that layer's top k, and everything before and in them", async () => {
    const n = 60;
    const logits = random(1, n);
    const { read, scored } = await token(tidaldecode({ tokens: 9, choose: 2, again: 6 }), logits);
    expect(scored).toEqual([2, 6]);
    const top = (layer: number) =>
      Array.from({ length: 4 }, (_, h) => [
        ...topEntries(logits(layer).subarray(h * n, (h + 1) * n), 9, { window: 1 }),
      ]);
    expect(read).toEqual(["all", "all", "all", top(2), top(2), top(2), "all", top(6), top(6), top(6)]);
    expect(top(2)).not.toEqual(top(3));
  });

  it("shares a choice in a group of query heads where asked", async () => {
    const { read } = await token(tidaldecode({ tokens: 9, group: "sum" }), random(1, 60));
    expect(middleLayer(MODEL.layers)).toBe(4);
    expect([read[3].length, read[4], read[5].length]).toEqual([2, "all", 2]);
  });

  it("is dense with room for everything, and where nothing is left to choose for", async () => {
    const dense = Array<string>(10).fill("all");
    expect((await token(tidaldecode({ tokens: 60 }), random(1, 60))).read).toEqual(dense);
    expect((await token(tidaldecode({ tokens: 9, choose: 9, again: 20 }), random(1, 60))).read).toEqual(dense);
    expect((await token(tidaldecode({ tokens: 9, choose: 10, again: 20 }), random(1, 60))).read).toEqual(dense);
  });

  it("forgets the choice of the step before, and follows positions where layers lost other entries", async () => {
    const attached = tidaldecode({ tokens: 3, choose: 2, again: 20 });
    const first = await token(attached, random(1, 60));
    const stale = { ...MODEL, layers: 2 };
    // a model cut below the choosing layer sees the old state only
    const next = await token(tidaldecode({ tokens: 3, choose: 0, again: 1 }), random(2, 61), {
      state: first.state,
      model: stale,
    });
    expect(next.read).toEqual(["all", "all"]);
    const logits = () => Float32Array.from({ length: 4 * 5 }, (_, i) => [9, 0, 8, 1, 2][i % 5]);
    const view = (layer: number) => viewOf(layer === 3 ? [3, 4, 6, 9] : [1, 3, 6, 8, 9]);
    const { read } = await token(attached, logits, { view, position: 9 });
    // positions 1, 6 and 9 were chosen; layer 3 has lost 1
    expect(read[4]).toEqual(Array<number[]>(4).fill([0, 2, 4]));
    expect(read[3]).toEqual(Array<number[]>(4).fill([2, 3]));
  });
});

describe.skipIf(!existsSync(STORIES))("tidaldecode on a trained model", () => {
  it("can rely on neighbouring layers: their best tokens are the same far more often than by chance", async () => {
    const { engine, ids, close } = await openStories();
    const count = 32;
    const best: Set<number>[][] = [];
    const shares: number[] = [];
    const watch: AttachedMethod = {
      name: "watch",
      spec: "watch",
      hooks: {
        select: async (step: AttentionStep) => {
          if (step.phase !== "decode") return [{}];
          const data = await step.score();
          const n = data.length / step.model.heads;
          best[step.layer] = Array.from(
            { length: step.model.heads },
            (_, h) => new Set(topEntries(data.subarray(h * n, (h + 1) * n), count)),
          );
          if (step.layer > 0)
            for (const [h, own] of best[step.layer].entries())
              shares.push([...own].filter((t) => best[step.layer - 1][h].has(t)).length / count);
          return [{}];
        },
      },
    };
    await decodedLogits(engine, [watch], ids, ids.length - 20);
    await close();
    const mean = shares.reduce((a, b) => a + b, 0) / shares.length;
    expect(shares.length).toBe(20 * 4 * 8);
    expect(mean).toBeGreaterThan((2 * count) / ids.length);
  });
});

describe("lessismore", () => {
  it("merges ranks in turns", () => {
    const rows = [Int32Array.of(5, 3, 2), Int32Array.of(7, 5, 1)];
    expect(mergeRanks(rows, 3)).toEqual([5, 7, 3]);
    expect(mergeRanks([rows[1], rows[0]], 3)).toEqual([7, 5, 3]);
    expect(mergeRanks(rows, 9)).toEqual([5, 7, 3, 2, 1]);
  });

  it("has sinks, the unified set and the newest tokens, K in all", () => {
    const [heads, n] = [4, 80];
    const data = normals(3)(heads * n);
    for (const [tokens, recent, sinks] of [
      [16, 0.25, 2],
      [16, 0.25, 4],
      [21, 0.5, 4],
      [16, 1, 4],
      [16, 0, 0],
      [79, 0.25, 4],
    ]) {
      const set = [...unifiedSet({ data, heads, keys: n }, n, tokens, { recent, sinks })];
      expect(set.length).toBe(tokens);
      expect(set).toEqual([...new Set(set)].sort((a, b) => a - b));
      expect(set).toContain(n - 1);
    }
    // all of the budget for the newest: StreamingLLM's sinks and window
    const streaming = [...unifiedSet({ data, heads, keys: n }, n, 16, { recent: 1, sinks: 4 })];
    expect(streaming).toEqual([0, 1, 2, 3, ...Array.from({ length: 12 }, (_, i) => n - 12 + i)]);
    // sinks that do not fit beside the current token are left out
    expect([...unifiedSet({ data, heads, keys: n }, n, 16, { recent: 0.25, sinks: 4 })].slice(-4)).toEqual([
      76, 77, 78, 79,
    ]);
  });

  it("gives no head the whole budget", () => {
    // head 0 ranks tokens 0..9, head 1 tokens 10..19
    const data = Float32Array.from({ length: 2 * 40 }, (_, i) => {
      const [head, at] = [Math.floor(i / 40), i % 40];
      return Math.floor(at / 10) === head ? 10 + at : 0;
    });
    const set = [...unifiedSet({ data, heads: 2, keys: 40 }, 40, 9, { recent: 0, sinks: 0 })];
    expect(set.filter((i) => i < 10).length).toBe(4);
    expect(set.filter((i) => i >= 10 && i < 20).length).toBe(4);
  });

  it("cuts the last rank only where heads come in another order", () => {
    const [heads, n, tokens] = [4, 60, 21];
    const rows = Array.from({ length: heads }, (_, h) => normals(70 + h)(n));
    const chosen = (order: number[]) => {
      const data = Float32Array.from(order.flatMap((h) => [...rows[h]]));
      return unifiedSet({ data, heads, keys: n }, n, tokens, { recent: 0.25, sinks: 2 });
    };
    const [one, other] = [new Set(chosen([0, 1, 2, 3])), new Set(chosen([3, 1, 0, 2]))];
    const apart = [...one].filter((t) => !other.has(t)).length;
    expect(other.size).toBe(one.size);
    expect(apart).toBeLessThan(heads);
    // tokens of all ranks but the last are in both: each head's first four of the sixteen between sinks and newest
    for (const row of rows)
      for (const t of [...row.keys()]
        .slice(2, n - 3)
        .sort((a, b) => row[b] - row[a])
        .slice(0, 4)) {
        expect(one.has(t)).toBe(true);
        expect(other.has(t)).toBe(true);
      }
  });

  it("is tidaldecode for one head without sinks and recent tokens", async () => {
    const model = { ...MODEL, heads: 1, kvHeads: 1 };
    const logits = (layer: number) => normals(50 + layer)(70);
    const one = await token(lessismore({ tokens: 12, recent: 0, sinks: 0 }), logits, { model });
    const other = await token(tidaldecode({ tokens: 12 }), logits, { model });
    expect(one.read).toEqual(other.read);
    expect(one.read[3]).not.toBe("all");
  });

  it("reads the same set in all heads, and everything with room for it", async () => {
    const { read, scored } = await token(lessismore({ tokens: 12, choose: 1, again: 6 }), random(4, 60));
    expect(scored).toEqual([1, 6]);
    expect(read[2]).toEqual([read[2][0], read[2][0]]);
    expect(read[2]).toEqual(read[5]);
    expect(read[7]).not.toEqual(read[5]);
    expect((await token(lessismore({ tokens: 60 }), random(4, 60))).read).toEqual(Array<string>(10).fill("all"));
    expect(headLengths(viewOf([0, 1, 2]), 2)).toEqual([3, 3]);
  });
});
