import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Model, Reducer } from "../../engine/api.js";
import type { ModelShape } from "../../engine/hooks.js";
import { load } from "../../load.js";
import { focusScore, importantHeads, instructionShare } from "../observers/attention-tracker.js";
import { type HeadTable, headTable } from "../observers/head-table.js";
import { pasta } from "../steering/pasta.js";
import { parseHeadList, printHeadList } from "./head-list.js";
import {
  duplicateTokenScore,
  inductionScore,
  offsetScore,
  previousTokenScore,
  repeatedProbe,
  retrievalScore,
} from "./head-scores.js";
import { knockOut } from "./knock-out.js";
import { allHeads, type MeasuredHead, searchHeads, toHeadList } from "./search.js";

const shape: ModelShape = {
  layers: 1,
  heads: 2,
  kvHeads: 1,
  width: 4,
  headDim: 2,
  mlpWidth: 1,
  vocab: 8,
  maxPositions: 128,
  hash: "abc",
  rotary: false,
};

/** Feeds one layer's maps [head][row][key] to a reducer, whole. */
function reduce(reducer: Reducer<HeadTable>, maps: number[][][]): HeadTable {
  const tokens = maps[0].length;
  const run = reducer.start(shape, tokens);
  run.observe({
    layer: 0,
    phase: "prompt",
    rows: tokens,
    positions: Int32Array.from({ length: tokens }, (_, i) => i),
    firstRow: 0,
    totalRows: tokens,
    model: shape,
    state: undefined,
    weights: { data: Float32Array.from(maps.flat(2)), heads: 2, rows: tokens, keys: tokens },
    keyPositions: () => Int32Array.from({ length: tokens }, (_, i) => i),
  });
  return run.finish();
}
const map = (tokens: number, at: (row: number, key: number) => number) =>
  Array.from({ length: tokens }, (_, i) => Array.from({ length: tokens }, (_, j) => at(i, j)));
const uniform = (tokens: number) => map(tokens, (i, j) => (j <= i ? 1 / (i + 1) : 0));
const values = (table: HeadTable) => [...table.data];

describe("scores of heads by their patterns", () => {
  it("knows a previous-token head from a uniform one", () => {
    const maps = [map(9, (i, j) => (j === Math.max(0, i - 1) ? 1 : 0)), uniform(9)];
    const [own, other] = values(reduce(previousTokenScore(), maps));
    expect(own).toBe(1);
    const mean = [1, 2, 3, 4, 5, 6, 7, 8].reduce((sum, i) => sum + 1 / (i + 1), 0) / 8;
    expect(other).toBeCloseTo(mean, 6);
    expect(values(reduce(offsetScore(2), maps))[0]).toBe(0);
    expect(values(reduce(inductionScore({ start: 1, length: 4 }), maps))[0]).toBe(0);
  });

  it("gives the sheet's induction score of uniform attention: 0.01357 for 50 tokens repeated", () => {
    const { repeated, ids } = repeatedProbe([3, 4, 5, 6], { length: 50, first: 1 });
    expect(ids.length).toBe(101);
    expect(ids.slice(1, 51)).toEqual(ids.slice(51));
    const copies = map(101, (i, j) => (i > 50 ? Number(j === i - 49) : Number(j === 0)));
    const [flat, induction] = values(reduce(inductionScore(repeated), [uniform(101), copies]));
    expect(flat).toBeCloseTo(0.01357, 5);
    expect(induction).toBe(1);
    expect(values(reduce(duplicateTokenScore(repeated), [uniform(101), copies]))[1]).toBe(0);
  });

  it("counts a needle's token only where the largest weight lies on it and it is what was written", () => {
    //          0  1  2  3  4  5  6; the needle is 2..4, the answer 5 6 repeats it
    const ids = [9, 8, 5, 7, 3, 5, 7];
    const looks = (at: Record<number, number>) => map(7, (i, j) => (j === (at[i] ?? 0) ? 0.6 : j === 1 ? 0.4 : 0));
    const score = (at: Record<number, number>) =>
      values(reduce(retrievalScore({ ids, needle: [2, 4], answer: 5 }), [looks(at), looks({})]));
    expect(score({ 4: 2, 5: 3 })).toEqual([1, 0]); // both tokens copied
    expect(score({ 4: 2, 5: 2 })).toEqual([0.5, 0]); // the second step reads in the needle, but another token
    expect(score({ 4: 3, 5: 4 })).toEqual([0, 0]);
    expect(() => retrievalScore({ ids, needle: [2, 6], answer: 5 })).toThrow(/needle at tokens 2 to 6/);
  });
});

describe("attention tracker", () => {
  it("is inst / (inst + data), whatever lies outside both", () => {
    const row = (i: number, j: number) => (i === 5 ? [0.1, 0.3, 0.05, 0.05, 0.3, 0.2][j] : Number(j === 0));
    const maps = [map(6, row), uniform(6)];
    const share = reduce(instructionShare({ instruction: [1, 2], data: [2, 4] }), maps);
    expect(share.at({ layer: 0, head: 0 })).toBeCloseTo(0.75, 5);
    expect(share.at({ layer: 0, head: 1 })).toBeCloseTo(1 / 3, 5);
    expect(focusScore(share, allHeads(shape))).toBeCloseTo((0.75 + 1 / 3) / 2, 5);
    expect(reduce(instructionShare({ instruction: [1, 2] }), maps).at({ layer: 0, head: 0 })).toBeCloseTo(1, 5);
    expect(() => focusScore(share, [])).toThrow(/at least one/);
  });

  it("keeps the heads that hold the two kinds of prompt apart: the sheet's example", () => {
    const table = (x: number) => headTable(Float32Array.of(x, 0.5), 1, 2);
    const [normal, attacked] = [[0.9, 0.8].map(table), [0.2, 0.3].map(table)];
    expect(importantHeads(normal, attacked, 5)).toEqual([{ layer: 0, head: 0, margin: expect.closeTo(0.1, 5) }]);
    expect(importantHeads(normal, attacked, 7)).toEqual([]);
  });
});

describe("head lists", () => {
  const list = { model: "abc", name: "retrieval", heads: [{ layer: 0, head: 1 }], scores: [0.5], madeBy: "make it" };

  it("are read back as written", () => {
    expect(parseHeadList(printHeadList(list), shape)).toEqual(list);
  });

  it("are refused in words: another model's, no list, heads that are not there", () => {
    expect(() => parseHeadList(printHeadList({ ...list, model: "xyz" }), shape)).toThrow(
      expect.objectContaining({
        message: expect.stringContaining("checkpoint xyz"),
        hint: expect.stringContaining("make it"),
      }),
    );
    expect(() => parseHeadList("{")).toThrow(/no JSON/);
    expect(() => parseHeadList('{"format":"other"}')).toThrow(/no head list/);
    expect(() => parseHeadList(printHeadList({ ...list, heads: [{ layer: 3, head: 0 }] }), shape)).toThrow(/head 3\.0/);
    expect(() => parseHeadList(printHeadList({ ...list, scores: [1, 2] }))).toThrow(/2 scores for 1 heads/);
  });
});

describe("on models/tiny, which copies what followed the same words before", () => {
  let model: Model;
  let folder = "";
  beforeAll(async () => {
    model = await load("models/tiny", { worker: false, threads: 1 });
    folder = await mkdtemp(join(tmpdir(), "fovea-heads-"));
  });
  afterAll(async () => {
    await model.close();
    await rm(folder, { recursive: true, force: true });
  });

  const PAIR = "the red door is locked. the blue door is open. the red door is";
  const writes = async (m: Model) => (await m.generate(PAIR, { maxTokens: 4, stop: ["."] }).result).text.trim();

  it("the search finds the heads that it cannot do without, and can be stopped and resumed", async () => {
    expect(await writes(model)).toBe("locked");
    const measured: MeasuredHead[][] = [];
    let calls = 0;
    const measure = async (m: Model) => {
      calls++;
      return (await writes(m)) === "locked" ? 0 : 1;
    };
    const search = { model, measure, edit: (head: { layer: number; head: number }) => knockOut({ heads: [head] }) };
    const full = await searchHeads({ ...search, onProgress: ({ done }) => measured.push([...done]) });
    expect(full.base).toBe(0);
    expect(full.heads.length).toBe(8);
    expect([full.heads[0].value, full.heads.at(-1)?.value]).toEqual([1, 0]); // some heads matter, some do not
    const before = calls;
    const resumed = await searchHeads({ ...search, done: measured[4] });
    expect(resumed).toEqual(full);
    expect(calls - before).toBe(1 + 3);

    const file = join(folder, "needed.json");
    const about = { model: model.info.shape, name: "needed", keep: 1, madeBy: "the test" };
    await writeFile(file, printHeadList(toHeadList(full.heads, about)));
    expect(await writes(model.with(`knock-out(heads="${file}")`))).not.toBe("locked");
    const other = join(folder, "other.json");
    await writeFile(other, printHeadList({ ...toHeadList(full.heads, about), model: "another" }));
    await expect(writes(model.with(`knock-out(heads="${other}")`))).rejects.toThrow(/made for the checkpoint another/);
    await expect(writes(model.with("knock-out(heads=nowhere.json)"))).rejects.toThrow(/no head list nowhere\.json/);
  });

  it("pasta highlights: of two facts the one that is highlighted is copied, and the sign flips with the span", async () => {
    const text = "the key is red. the key is blue. the key is";
    const prompt = model.prompt(text);
    const [red, blue] = [" red", " blue"].map((w) => model.tokenizer.encode(w, { special: false }).ids[0]);
    // head 1.3 looks at the longest match alone, with logits that no penalty of 4.6 reaches: it is left out
    const without = knockOut({ heads: [{ layer: 1, head: 3 }] });
    const difference = async (m: Model) => {
      const logits = await m.with(without).logits(prompt);
      return logits[red] - logits[blue];
    };
    const heads = allHeads(model.info.shape).filter((h) => h.layer === 1);
    const base = await difference(model);
    const onRed = await difference(model.with(pasta({ heads, span: [...prompt.span("is red.")] })));
    const onBlue = await difference(model.with(pasta({ heads, span: [...prompt.span("is blue.")] })));
    expect(onRed).toBeGreaterThan(base);
    expect(onBlue).toBeLessThan(base);
    expect(Math.sign(onRed)).toBe(1);
    expect(Math.sign(onBlue)).toBe(-1);
    // alpha 1, the whole prompt, and no heads are no steering at all
    const whole: [number, number] = [0, prompt.ids.length];
    for (const method of [
      pasta({ heads, span: [0, 1], alpha: 1 }),
      pasta({ heads, span: whole }),
      pasta({ heads: [], span: [0, 1] }),
    ])
      expect(await difference(model.with(method))).toBeCloseTo(base, 3);
  });

  it("pasta multiplies and normalises: every other weight by alpha, in the heads given, and not in others", async () => {
    const prompt = model.prompt("the key is red. the key is blue. the key is");
    const span = [...prompt.span("red")] as [number, number];
    const last = prompt.ids.length - 1;
    const steered = model.with(pasta({ heads: [{ layer: 0, head: 1 }], span }));
    for (const head of [0, 1, 2]) {
      const rows = [last, last + 1] as const;
      const [plain, edited] = [
        (await model.attention(prompt, { layer: 0, head, rows })).data,
        (await steered.attention(prompt, { layer: 0, head, rows })).data,
      ];
      const numerators = plain.map((w, j) => (head !== 1 || (j >= span[0] && j < span[1]) ? w : 0.01 * w));
      const total = numerators.reduce((a, b) => a + b);
      edited.forEach((w, j) => {
        expect(w).toBeCloseTo(numerators[j] / total, 5);
      });
    }
  });
});
