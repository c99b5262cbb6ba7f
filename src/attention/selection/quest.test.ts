import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { CachePool } from "../../engine/cache.js";
import type { AttentionStep, Entries, KeyView, Part } from "../../engine/hooks.js";
import { cacheView } from "../../engine/paged-keys.js";
import { load } from "../../load.js";
import { full } from "../full.js";
import { PlainLayer, type PlainRows } from "../plain.js";
import { maxDifference, normals, randomRows, sliceRows } from "../testing.js";
import { choosePages, choosePagesPlainly, quest } from "./quest.js";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 8 };
const { heads, kvHeads, headDim } = SHAPE;

/** Decoded rows behind a prompt, [n, Hq, D]. */
async function decoded(layer: PlainLayer, rows: PlainRows, tokens: number, prompt: number): Promise<Float32Array> {
  await layer.step(sliceRows(rows, tokens, 0, prompt));
  const out: number[] = [];
  for (let t = prompt; t < tokens; t++) out.push(...(await layer.step(sliceRows(rows, tokens, t, t + 1))));
  return Float32Array.from(out);
}

/** What `quest` asked for at each step, and what it saw. */
function recorded(layer: PlainLayer) {
  const steps: { parts: readonly Part[]; q: Float32Array; n: number; keys: Float32Array[] }[] = [];
  for (const { hooks } of layer.composed.layer(0).select) {
    const { select } = hooks;
    hooks.select = async (step) => {
      const parts = (await select?.(step)) ?? [];
      const keys = Array.from({ length: kvHeads }, (_, kv) => step.view.keys(kv));
      steps.push({ parts: parts as Part[], q: step.q, n: step.view.length(0), keys });
      return parts;
    };
  }
  return steps;
}

const pagesOf = (parts: readonly Part[]): number[][] =>
  (parts[0].entries as Entries[]).map((e) => (e !== "all" && "pages" in e ? [...e.pages] : [-1]));

describe("quest", () => {
  const tokens = 150;
  const rows = randomRows(tokens, SHAPE, 5);

  it("is full attention when the budget holds everything, and in dense layers", async () => {
    const wanted = await decoded(new PlainLayer(SHAPE, [full()]), rows, tokens, 130);
    for (const attached of [
      quest({ tokens: 160, denseLayers: 0 }),
      quest({ tokens: 16 }),
      quest({ share: 1, denseLayers: 0 }),
    ])
      expect(maxDifference(await decoded(new PlainLayer(SHAPE, [attached]), rows, tokens, 130), wanted)).toBeLessThan(
        1e-5,
      );
    const sparse = new PlainLayer(SHAPE, [quest({ tokens: 48, denseLayers: 0 })]);
    expect(maxDifference(await decoded(sparse, rows, tokens, 130), wanted)).toBeGreaterThan(0.01);
  });

  it("reads for each query head the pages that sorting all bounds gives, the newest inside the budget", async () => {
    for (const group of ["none", "sum", "max"] as const) {
      const layer = new PlainLayer(SHAPE, [quest({ tokens: 70, denseLayers: 0, group })]);
      const steps = recorded(layer);
      await decoded(layer, rows, tokens, 130);
      expect(pagesOf(steps[1].parts).length).toBe(group === "none" ? heads : kvHeads);
      for (const { parts, q, n, keys } of steps.slice(1)) {
        const pages = Math.ceil(n / 16);
        const bounds = Array.from({ length: heads }, (_, h) =>
          Array.from({ length: pages }, (_, p) => {
            const own = keys[Math.floor(h / 2)];
            let sum = 0;
            for (let d = 0; d < headDim; d++) {
              const x = q[h * headDim + d];
              let best = Number.NEGATIVE_INFINITY;
              for (let i = p * 16; i < Math.min(n, p * 16 + 16); i++) best = Math.max(best, x * own[i * headDim + d]);
              sum += best;
            }
            return sum;
          }),
        );
        const rowsOf = { none: bounds, sum: pairs(bounds, (a, b) => a + b), max: pairs(bounds, Math.max) }[group];
        const wanted = rowsOf.map((row) => {
          const order = [...row.keys()].slice(0, -1).sort((a, b) => row[b] - row[a]);
          return [...order.slice(0, 3), pages - 1].sort((a, b) => a - b);
        });
        expect(pagesOf(parts)).toEqual(wanted);
      }
    }
  });

  it("finds an early key among eight times the budget, where random and recent pages do not", async () => {
    const long = 600;
    const next = normals(9);
    const planted = randomRows(long, SHAPE, 10);
    const direction = next(headDim);
    const at = 37;
    for (let kv = 0; kv < kvHeads; kv++)
      for (let d = 0; d < headDim; d++) {
        planted.k[(at * kvHeads + kv) * headDim + d] = 4 * direction[d];
        planted.v[(at * kvHeads + kv) * headDim + d] = 50;
      }
    for (let h = 0; h < heads; h++)
      for (let d = 0; d < headDim; d++) planted.q[((long - 1) * heads + h) * headDim + d] = 3 * direction[d];
    const last = async (parts?: (view: KeyView) => number[]) => {
      const attached = quest({ tokens: 80, denseLayers: 0 });
      const layer = new PlainLayer(SHAPE, [attached], { rotaryBase: null });
      if (parts) {
        const hooks = layer.composed.layer(0).select[0].hooks;
        hooks.select = (step) =>
          step.phase === "decode" ? [{ entries: { pages: Int32Array.from(parts(step.view)) } }] : [{}];
      }
      return decoded(layer, planted, long, long - 1);
    };
    const wanted = await decoded(new PlainLayer(SHAPE, [full()], { rotaryBase: null }), planted, long, long - 1);
    expect(wanted[0]).toBeGreaterThan(40);
    expect(maxDifference(await last(), wanted)).toBeLessThan(1);
    expect((await last(() => [33, 34, 35, 36, 37]))[0]).toBeLessThan(10);
    expect((await last(() => [5, 12, 20, 31, 37]))[0]).toBeLessThan(10);
  });

  it("holds a choice for `refresh` steps and reads pages that were begun since", async () => {
    const layer = new PlainLayer(SHAPE, [quest({ tokens: 48, denseLayers: 0, refresh: 20 })]);
    const steps = recorded(layer);
    await decoded(layer, rows, tokens, 128);
    const lists = steps.slice(1).map(({ parts }) => pagesOf(parts));
    // chosen at token 128, whose page is 8; page 9 begins sixteen steps later
    for (const list of lists.slice(0, 16)) expect(list).toEqual(lists[0]);
    for (const [h, list] of lists[16].entries()) expect(list).toEqual([...lists[0][h], 9]);
    expect(lists[20].map((l) => l.length)).toEqual([3, 3, 3, 3]);
    expect(lists[20]).not.toEqual(lists[0].map((l) => [...l.slice(0, -1), 9]));
  });

  it("chooses in the kernels what it chooses by the definition, of pages with holes too", () => {
    for (const type of ["float32", "int8"] as const) {
      const pool = new CachePool({ layers: [{ kvHeads, keyDim: headDim, valueDim: headDim }], type, threads: 1 });
      const cache = pool.create().layer(0);
      const n = 500;
      const all = randomRows(n, SHAPE, 6);
      cache.append(all.k, all.v, n);
      const step = {
        q: normals(7)(heads * headDim),
        cache,
        view: cacheView(cache),
        model: { ...SHAPE } as AttentionStep["model"],
      };
      for (const group of ["none", "sum", "max", "mean"] as const) {
        const [fast, plain] = [choosePages(step, 6, group), choosePagesPlainly(step, 6, group)];
        const shared = fast.map((e, i) => common(e, plain[i]));
        // int8 bounds are those of codes, so that near ties may fall otherwise
        for (const count of shared) expect(count).toBeGreaterThanOrEqual(type === "float32" ? 6 : 5);
      }
      cache.keep(
        0,
        Int32Array.from({ length: n }, (_, i) => i).filter((i) => i % 7 > 0),
      );
      const [first, second] = choosePages(step, 6, "sum");
      expect(first).toHaveProperty("ranges");
      expect(second).toHaveProperty("pages");
      expect(first !== "all" && "ranges" in first && first.ranges.at(-1)?.[1]).toBe(cache.length(0));
      pool.close();
    }
  });

  it("scores pages that grew token by token as pages filled at once, whatever the order of a page's tokens", () => {
    const n = 90;
    const { k, v } = randomRows(n, SHAPE, 16);
    const width = kvHeads * headDim;
    const backwards = k.slice();
    for (let t = 0; t < n; t++) {
      const start = t - (t % 16);
      const other = start + Math.min(16, n - start) - 1 - (t % 16);
      backwards.set(k.subarray(t * width, (t + 1) * width), other * width);
    }
    const q = normals(17)(heads * headDim);
    const pool = new CachePool({
      layers: [{ kvHeads, keyDim: headDim, valueDim: headDim }],
      type: "float32",
      threads: 1,
    });
    const scores = (keys: Float32Array, rows: number) => {
      const cache = pool.create().layer(0);
      for (let t = 0; t < n; t += rows)
        cache.append(keys.slice(t * width, (t + rows) * width), v.slice(t * width, (t + rows) * width), rows);
      return cache.pageScores(q).data;
    };
    const wanted = scores(k, n);
    expect(wanted.length).toBe(heads * 6);
    expect(scores(k, 1)).toEqual(wanted);
    expect(scores(backwards, n)).toEqual(wanted);
    pool.close();
  });

  it("answers from a text of eight times its budget, where random and recent pages of that budget do not", async () => {
    await using model = await load("models/tiny", {
      worker: false,
      threads: 1,
      precision: "float32",
      cache: "float32",
    });
    const text = `${readFileSync("examples/harbour.txt", "utf8")}\nThe keeper of the north light is`;
    expect(model.prompt(text).ids.length).toBeGreaterThan(640);
    const answer = async (attention: string) =>
      (await model.with(attention).generate(text, { maxTokens: 12, stop: ["."] }).result).text;
    for (const attention of [
      "quest(tokens=80,denseLayers=0)",
      "sparq(tokens=80,components=16)",
      "tokenselect(tokens=40,sinks=4,window=36)",
    ])
      expect(await answer(attention), attention).toBe(" Ada Moreau");
    for (const attention of ["random-pages(tokens=80)", "streaming-llm(sinks=4,window=76)"])
      expect(await answer(attention), attention).not.toBe(" Ada Moreau");
  });
});

function pairs(rows: number[][], join: (a: number, b: number) => number): number[][] {
  return Array.from({ length: rows.length / 2 }, (_, i) => rows[2 * i].map((x, p) => join(x, rows[2 * i + 1][p])));
}

function common(a: Entries, b: Entries): number {
  if (a === "all" || b === "all" || !("pages" in a) || !("pages" in b)) return 0;
  const { pages } = b;
  return a.pages.filter((p) => pages.includes(p)).length;
}
