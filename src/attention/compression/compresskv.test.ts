import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Model } from "../../engine/api.js";
import { load } from "../../load.js";
import { printCalibration } from "../calibration.js";
import { snapkv } from "../eviction/snapkv.js";
import { full } from "../full.js";
import { printHeadList } from "../heads/head-list.js";
import { method } from "../method.js";
import { PlainLayer } from "../plain.js";
import { maxDifference, normals, randomRows } from "../testing.js";
import { compresskv, layerBudgets, votingHeads } from "./compresskv.js";
import { evictionErrors, recall, semanticRetrievalHeads } from "./compresskv-calibration.js";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 8 };

describe("compresskv's budgets", () => {
  it("follow the layers' errors: the sheet's example gives 83, 70, 58 and 45 of 64", () => {
    expect(layerBudgets([0.4, 0.3, 0.2, 0.1], 64)).toEqual([83, 70, 58, 45]);
  });

  it("always sum to layers x mean, within floor and cap", () => {
    const next = normals(3);
    for (let run = 0; run < 200; run++) {
      const layers = 1 + (run % 12);
      const mean = 8 + ((run * 37) % 300);
      const importance = [...next(layers)].map((x) => (run % 5 === 0 ? (x > 1 ? 1 : 0.001) : Math.abs(x) ** 3));
      const budgets = layerBudgets(importance, mean);
      expect(budgets.reduce((a, b) => a + b, 0)).toBe(layers * mean);
      expect(Math.min(...budgets)).toBeGreaterThanOrEqual(Math.min(32, mean));
      expect(Math.max(...budgets)).toBeLessThanOrEqual(3 * mean);
    }
  });

  it("are refused where weights are none", () => {
    const attached = compresskv({ tokens: 8, importance: [0] });
    expect(() => new PlainLayer(SHAPE, [attached])).toThrow(/at least 0, some above/);
    expect(() => new PlainLayer(SHAPE, [compresskv({ importance: [1, 2] })])).toThrow(/2 numbers.*1 layers/);
  });
});

describe("compresskv", () => {
  it("lets the first F of the listed heads vote, all heads of a layer that the list leaves out", () => {
    const listed = [
      { layer: 1, head: 3 },
      { layer: 1, head: 0 },
      { layer: 1, head: 2 },
    ];
    expect(votingHeads(listed, { layers: 2, heads: 4 }, 2)).toEqual([
      [0, 1, 2, 3],
      [3, 0],
    ]);
  });

  it("is full attention while the prompt fits, and in the prompt itself", async () => {
    const rows = randomRows(40, SHAPE, 4);
    const wanted = await new PlainLayer(SHAPE, [full()]).step(rows);
    const layer = new PlainLayer(SHAPE, [compresskv({ tokens: 40 })]);
    expect(maxDifference(await layer.step(rows), wanted)).toBe(0);
    expect(layer.positions(1).length).toBe(40);
    const evicting = new PlainLayer(SHAPE, [compresskv({ tokens: 16 })]);
    expect(maxDifference(await evicting.step(rows), wanted)).toBe(0);
    expect(evicting.positions(1).length).toBe(16);
  });

  it("keeps what SnapKV keeps where all heads vote and share one KV head", async () => {
    const shape = { heads: 4, kvHeads: 1, headDim: 8 };
    const rows = randomRows(70, shape, 5);
    const own = new PlainLayer(shape, [compresskv({ tokens: 20, window: 6, kernel: 3 })]);
    const snap = new PlainLayer(shape, [snapkv({ capacity: 20, window: 6, kernel: 3 })]);
    await own.step(rows);
    await snap.step(rows);
    expect([...own.positions(0)]).toEqual([...snap.positions(0)]);
  });

  it("keeps the same tokens in all KV heads: the budget exactly, the last ones among them", async () => {
    const layer = new PlainLayer(SHAPE, [compresskv({ tokens: 1 / 4, window: 8, heads: [{ layer: 0, head: 3 }] })]);
    await layer.step(randomRows(80, SHAPE, 6));
    expect(layer.positions(0).length).toBe(20);
    expect([...layer.positions(1)]).toEqual([...layer.positions(0)]);
    expect([...layer.positions(0)].slice(-8)).toEqual([72, 73, 74, 75, 76, 77, 78, 79]);
  });

  it("asks the voters alone: a needle that only head 1 looks at stays or goes with its vote", async () => {
    const { heads, kvHeads, headDim } = SHAPE;
    const tokens = 100;
    const survives = async (voter: number) => {
      const rows = randomRows(tokens, SHAPE, 8);
      // without rotation: tokens 40-44 have a key of their own in KV head 0, the last queries of head 1 look for it
      for (let t = 40; t < 45; t++) rows.k[t * kvHeads * headDim] = 12;
      for (let t = 92; t < tokens; t++) {
        rows.q[(t * heads + 1) * headDim] = 4;
        rows.q[t * heads * headDim] = -4;
      }
      const attached = compresskv({ tokens: 20, heads: [{ layer: 0, head: voter }], voters: 1 });
      const layer = new PlainLayer(SHAPE, [attached], { rotaryBase: null });
      await layer.step(rows);
      return [40, 41, 42, 43, 44].filter((p) => layer.positions(0).includes(p)).length;
    };
    expect(await survives(1)).toBe(5);
    expect(await survives(0)).toBe(0);
  });
});

describe("compresskv's calibration, on models/tiny, which copies what followed the same words before", () => {
  let model: Model;
  let folder = "";
  beforeAll(async () => {
    model = await load("models/tiny", { worker: false, threads: 1 });
    folder = await mkdtemp(join(tmpdir(), "fovea-compresskv-"));
  });
  afterAll(async () => {
    await model.close();
    await rm(folder, { recursive: true, force: true });
  });

  const FILLER = "birds sing at dawn and rain falls on the hills. ";
  const prompts = (needles: readonly string[]) =>
    needles.map((needle, i) => {
      const prompt = model.prompt(`${FILLER.repeat(1 + i)}the code is ${needle}. ${FILLER}the code is`);
      return { ids: prompt.ids, needle: prompt.span(` ${needle}`) };
    });

  it("counts a word as often as it stands there", () => {
    expect(recall("The red, red door", "a red door")).toBeCloseTo(2 / 4);
    expect(recall("red door", "Red? Door!")).toBe(1);
    expect(recall("", "red")).toBe(0);
  });

  it("finds the heads that read the needle, and refuses to rank what no answer shows", async () => {
    const list = await semanticRetrievalHeads(model, prompts(["south", "tide", "gate"]), {
      maxTokens: 3,
      madeBy: "the test",
    });
    expect(list.heads.length).toBe(8);
    const scores = list.scores as number[];
    expect(scores[0]).toBeGreaterThan(0.5);
    expect(scores).toEqual([...scores].sort((a, b) => b - a));
    // copying takes two layers: the first finds the token before, the second reads the needle
    expect(list.heads[0].layer).toBe(1);
    const none = model.prompt(`${FILLER}the code is open. birds sing at`);
    await expect(
      semanticRetrievalHeads(model, [{ ids: none.ids, needle: none.span("open") }], { maxTokens: 1, madeBy: "" }),
    ).rejects.toThrow(/none of the 1 needles/);
  });

  it("finds heads without which the answer is lost, as it is not without others of their layer", async () => {
    // who reads the two words before alone is misled
    const told = (needle: string) =>
      `${FILLER}the code is ${needle}. a code is open. her code is open. a code is open. ${FILLER}the code is`;
    const asked = ["south", "tide"].map((needle) => {
      const prompt = model.prompt(told(needle));
      return { ids: prompt.ids, needle: prompt.span(` ${needle}`) };
    });
    const { heads } = await semanticRetrievalHeads(model, asked, { maxTokens: 3, madeBy: "the test" });
    const [first, second, ...others] = heads.filter(({ layer }) => layer === 1).map(({ head }) => `1.${head}`);
    const { ids } = model.prompt(`${told("west")} west`);
    const answer = async (attention: string) => (await model.with(attention).score(ids)).tokens.at(-1)?.logprob ?? 0;
    const without = await answer(`knock-out(heads=[${first},${second}])`);
    expect(await answer("full")).toBeGreaterThan(-0.1);
    expect(await answer(`knock-out(heads=[${others}])`)).toBeGreaterThan(without + 1);
  });

  it("keeps the needle with the votes of the heads it finds; the newest tokens alone lose it", async () => {
    const found = await semanticRetrievalHeads(model, prompts(["south", "tide"]), { maxTokens: 3, madeBy: "the test" });
    const file = join(folder, "found.json");
    await writeFile(file, printHeadList(found));
    /** Prompts of whose needle the last layer still holds everything after eviction. */
    const kept = async (heads: string, window = 4) => {
      let whole = 0;
      for (const needle of ["west", "east", "north"]) {
        const prompt = model.prompt(`${FILLER.repeat(2)}the code is ${needle}. ${FILLER.repeat(3)}the code is`);
        const [start, end] = prompt.span(` ${needle}`);
        let left = 0;
        const watch = method({
          name: "watch",
          observe({ phase, layer, keyPositions }) {
            if (phase === "decode" && layer === 1) left = keyPositions(0).filter((p) => p >= start && p < end).length;
          },
        });
        const attached = model.with(`compresskv(tokens=16,window=${window},voters=1,heads="${heads}")`, watch());
        await attached.generate(prompt, { maxTokens: 2 }).result;
        if (left === end - start) whole++;
      }
      return whole;
    };
    expect(await kept(file)).toBe(3);
    expect(await kept(file, 16)).toBe(0);
    const other = join(folder, "other.json");
    await writeFile(other, printHeadList({ ...found, model: "another" }));
    await expect(kept(other)).rejects.toThrow(/made for the checkpoint another/);
  });

  it("measures layers against their full output, errors not added up, and gives more to those that lose more", async () => {
    const ids = model.prompt(`${FILLER.repeat(6)}the code is open. ${FILLER}the code is`).ids;
    const told = await evictionErrors(model, [{ task: "needle", prompts: [ids] }], {
      tokens: 12,
      maxTokens: 4,
      madeBy: "the test",
    });
    expect(told.layers.length).toBe(2);
    expect(told.layers.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 6);
    // the first layer looks at the token before, which always stays; the second at the needle
    expect(told.layers[1]).toBeGreaterThan(told.layers[0]);
    // all that is kept is all that there is: no error to measure
    await expect(
      evictionErrors(model, [{ task: "short", prompts: [ids] }], { tokens: 1000, maxTokens: 2, madeBy: "" }),
    ).rejects.toThrow(/nothing is evicted/);
    const file = join(folder, "errors.json");
    await writeFile(file, printCalibration({ ...told, layers: [0.75, 0.25] }));
    const kept: number[] = [];
    const watch = method({
      name: "watch",
      observe: (step) => {
        if (step.phase === "decode") kept[step.layer] ??= step.keyPositions(0).length - 1;
      },
    });
    await model.with(`compresskv(tokens=40,importance="${file}")`, watch()).generate(ids, { maxTokens: 2 }).result;
    expect(kept).toEqual([44, 36]);
    await writeFile(file, printCalibration({ ...told, model: "another" }));
    await expect(model.with(`compresskv(importance="${file}")`).generate(ids, { maxTokens: 1 }).result).rejects.toThrow(
      /made for the checkpoint another/,
    );
  });
});
