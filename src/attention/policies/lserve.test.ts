import { existsSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openStories, STORIES } from "../../../test/trained-stories.js";
import { full } from "../full.js";
import { method } from "../method.js";
import { PlainLayer, type PlainRows } from "../plain.js";
import { boundScores, keyBounds } from "../select/index.js";
import { quest } from "../selection/quest.js";
import { maxDifference, normals, randomRows, sliceRows } from "../testing.js";
import { duoattention } from "./duoattention.js";
import { pageMaxima, selectPages } from "./logical-pages.js";
import { lserve } from "./lserve.js";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 8 };
const tokens = 200;
const rows = randomRows(tokens, SHAPE, 51);
const ones = (n: number) => new Array<number>(n).fill(1);
const ALL = { gates: [1, 1], sparsity: 0 };

async function run(layer: PlainLayer, sizes: readonly number[], of: PlainRows = rows): Promise<number[]> {
  const out: number[] = [];
  let at = 0;
  for (const n of sizes) out.push(...(await layer.step(sliceRows(of, tokens, at, (at += n)))));
  return out;
}

describe("lserve", () => {
  it("is full attention without streaming heads and with room for everything", async () => {
    const wanted = await run(new PlainLayer(SHAPE, [full()]), [150, ...ones(50)]);
    const got = await run(new PlainLayer(SHAPE, [lserve(ALL)]), [150, ...ones(50)]);
    expect(maxDifference(got, wanted)).toBeLessThan(1e-6);
  });

  it("is DuoAttention with room for everything in retrieval heads", async () => {
    const policy = { gates: [1, 0], sinks: 3, window: 20 };
    const sizes = [150, ...ones(50)];
    const wanted = await run(new PlainLayer(SHAPE, [duoattention({ ...policy, prompt: "dense" })]), sizes);
    const layer = new PlainLayer(SHAPE, [lserve(policy)]);
    expect(maxDifference(await run(layer, sizes), wanted)).toBeLessThan(1e-5);
    expect([layer.positions(0).length, layer.positions(1).length < 3 + 20 + 16]).toEqual([tokens, true]);
  });

  it("is Quest with one page in a page and a choice at each token", async () => {
    const wanted = await run(new PlainLayer(SHAPE, [quest({ tokens: 64, denseLayers: 0 })]), [150, ...ones(50)]);
    const got = await run(new PlainLayer(SHAPE, [lserve({ ...ALL, tokens: 64, page: 16, interval: 1 })]), [
      150,
      ...ones(50),
    ]);
    expect(maxDifference(got, wanted)).toBeLessThan(1e-6);
    const dense = await run(new PlainLayer(SHAPE, [full()]), [150, ...ones(50)]);
    expect(maxDifference(got, dense)).toBeGreaterThan(1e-2);
  });

  it("reads sinks and local blocks in streaming heads' prompt rows", async () => {
    const seen: Float32Array[] = [];
    const watch = method({ name: "watch", observe: (step) => void seen.push(step.weights.data.slice()) });
    const attached = lserve({ heads: [{ layer: 0, head: 0 }], sinks: 4, window: 20, local: 32 });
    await new PlainLayer(SHAPE, [attached, watch()]).step(rows);
    const read = (head: number, row: number) =>
      [...seen[0].subarray((head * tokens + row) * tokens, (head * tokens + row + 1) * tokens).entries()]
        .filter(([, w]) => w > 0)
        .map(([s]) => s);
    expect(read(1, 150)).toEqual(Array.from({ length: 151 }, (_, s) => s));
    // row 150 stands in the block of rows 128 to 191
    expect(read(2, 150)).toEqual([0, 1, 2, 3, ...Array.from({ length: 150 - 96 + 1 }, (_, i) => 96 + i)]);
  });

  it("chooses at lengths that the interval divides, and reads the newest page in between", async () => {
    const lists: string[] = [];
    const watch = method({
      name: "watch",
      observe({ phase, positions, weights: { data, keys } }) {
        if (phase !== "decode") return;
        const pages = new Set([...data.subarray(0, keys).entries()].filter(([, w]) => w > 0).map(([s]) => s >> 4));
        expect(pages.has(positions[0] >> 4)).toBe(true);
        lists.push([...pages].join(" "));
      },
    });
    const attached = lserve({ ...ALL, tokens: 48, page: 16, interval: 5 });
    await run(new PlainLayer(SHAPE, [attached, watch()]), [150, ...ones(50)]);
    const changed = lists.flatMap((list, i) => (i > 0 && list !== lists[i - 1] ? [150 + i] : []));
    expect(changed.length).toBeGreaterThan(3);
    // besides a choice, only a page begun since adds to a list
    for (const length of changed) expect(length % 5 === 0 || length % 16 === 0).toBe(true);
  });
});

describe("pages of pages", () => {
  it("are the sheet's: keys (1, 0) twice and (0, 1) twice score 2 as one page for (1, 1), and 1 as two", () => {
    const keys = Float32Array.of(1, 0, 1, 0, 0, 1, 0, 1);
    const q = Float32Array.of(1, 1);
    expect([...boundScores(q, keyBounds(keys, 2, 4))]).toEqual([2]);
    expect([...pageMaxima(boundScores(q, keyBounds(keys, 2, 2)), 2)]).toEqual([1]);
  });

  it("bound no looser than one page does, and never below the largest product", () => {
    const next = normals(7);
    const keys = next(256 * 8);
    for (let n = 0; n < 20; n++) {
      const q = next(8);
      const coarse = boundScores(q, keyBounds(keys, 8, 64));
      const fine = pageMaxima(boundScores(q, keyBounds(keys, 8, 16)), 4);
      const exact = pageMaxima(boundScores(q, keyBounds(keys, 8, 1)), 64);
      for (let p = 0; p < 4; p++) {
        expect(fine[p]).toBeLessThanOrEqual(coarse[p]);
        expect(fine[p]).toBeGreaterThanOrEqual(exact[p] - 1e-5);
      }
    }
    expect([...pageMaxima(Float32Array.of(1, 5, 2, 3, 9), 2)]).toEqual([5, 3, 9]);
  });

  it("find a needle among mixed pages that bounds of the whole page lose", () => {
    // a page of 64 has four small pages, each large in a channel of its own: together its bounds promise 12 and more, though
    // no key of it gives more than 4; the needle's page holds one key that gives 9.6
    const length = 1024;
    const dim = 8;
    const keys = Float32Array.from({ length: length * dim }, (_, i) => {
      const [token, d] = [Math.floor(i / dim), i % dim];
      return token >> 6 !== 1 && (token >> 4) % dim === d ? 3 : 0.1;
    });
    const needle = 70;
    for (let d = 0; d < dim; d++) keys[needle * dim + d] = 1.2;
    const q = new Float32Array(dim).fill(1);
    const view = {
      length: () => length,
      positions: () => new Int32Array(length),
      keys: () => keys,
      values: () => keys,
    };
    const model = { heads: 1, kvHeads: 1, headDim: dim } as Parameters<typeof selectPages>[0]["model"];
    const [fine] = selectPages({ q, cache: null, view, model }, [length], 2, { page: 64, group: "none" });
    expect([...fine]).toEqual([1, 15]);
    const coarse = boundScores(q, keyBounds(keys, dim, 64));
    expect(coarse.indexOf(Math.min(...coarse))).toBe(1);
  });
});

describe.skipIf(!existsSync(STORIES))("lserve on a trained model", () => {
  let stories: Awaited<ReturnType<typeof openStories>>;
  beforeAll(async () => {
    stories = await openStories();
  });
  afterAll(() => stories?.close());

  it("chooses the same pages by kernels as by keys read out", async () => {
    const { engine, ids } = stories;
    let compared = 0;
    const watch = method({
      name: "watch",
      select(step) {
        if (step.phase === "decode") {
          const lengths = Array.from({ length: step.model.kvHeads }, (_, h) => step.view.length(h));
          for (const group of ["none", "max"] as const) {
            const fast = selectPages(step, lengths, 3, { page: 32, group });
            expect(fast).toEqual(selectPages({ ...step, ...plainOf(step) }, lengths, 3, { page: 32, group }));
            compared++;
          }
        }
        return [{}];
      },
    });
    const sequence = engine.sequence(engine.compose([watch()]));
    await engine.prefill(sequence, ids.slice(0, 200), { wanted: "last" });
    for (const id of ids.slice(200, 203)) await engine.decode([{ sequence, id }]);
    sequence.close();
    expect(compared).toBe(2 * 3 * engine.shape.layers);
  });
});

function plainOf({ q, view, model }: Parameters<typeof selectPages>[0]): Parameters<typeof selectPages>[0] {
  return { q, view, model, cache: null };
}
