import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Model } from "../src/engine/api.js";
import { load } from "../src/load.js";

const TEXT = "The harbour has two lights. The keeper of the north light is Ada Moreau. ".repeat(4);
const QUESTION = "The keeper of the north light is";

describe("Reading.measure", () => {
  let model: Model;
  beforeAll(async () => {
    model = await load("models/tiny", { worker: false, threads: 1, cache: "float32" });
  });
  afterAll(() => model?.close());

  async function measured(attention: string, watch: readonly number[] = [], maxTokens = 4) {
    await using reading = await model.read(TEXT, { attention });
    const answer = model.tokenizer.encode(" Ada", { special: false }).ids;
    return { reading: reading.length, answer, ...(await reading.measure(QUESTION, { answer, maxTokens, watch })) };
  }

  it("reads everything with full attention, and gives the logits of the text as a whole", async () => {
    const one = await measured("full", [1, 2, 30]);
    const question = model.tokenizer.encode(QUESTION, { special: false }).ids;
    expect(one.depth).toBe(one.reading + question.length);
    expect(one.coverage).toBe(1);
    expect(one.coverage_kept).toBe(1);
    expect(one.tokens_kept).toBe(one.depth);
    // rows of the forced answer each see one key more
    expect(one.tokens_read).toBeCloseTo(one.depth + (one.answer.length - 1) / 2, 9);
    expect([one.tokens_scored, one.bounds_read]).toEqual([0, 0]);
    const ids = [...model.prompt(TEXT).ids, ...question, ...one.answer.slice(0, -1)];
    const all = await model.logits(ids, { rows: "all" });
    const wanted = all.subarray(-one.answer.length * model.config.vocab);
    expect(one.logits.length).toBe(wanted.length);
    for (let i = 0; i < wanted.length; i++) expect(Math.abs(one.logits[i] - wanted[i])).toBeLessThan(1e-3);
  });

  it("answers as generate does, from where it stood before the forced answer", async () => {
    const one = await measured("full", [], 6);
    await using reading = await model.read(TEXT);
    const generated = await reading.generate(QUESTION, { maxTokens: 6 }).result;
    expect(one.ids).toEqual(generated.ids);
    expect(one.text).toBe(generated.text);
    // steps of the question but its last, and of the answer but its last, are timed
    expect(one.step_ms.length).toBe(one.depth - one.reading - 1 + one.ids.length - 1);
  });

  it("covers what the window covers", async () => {
    const full = await measured("full");
    const old = [0, 1, 2, 3];
    const recent = [full.depth - 3, full.depth - 2];
    const one = await measured("streaming-llm(sinks=0,window=16,positions=true,prompt=dense)", [...old, ...recent]);
    expect(one.tokens_read).toBe(16);
    expect(one.coverage).toBeCloseTo(2 / 6, 9);
    expect(one.coverage_kept).toBeCloseTo(2 / 6, 9);
    expect(one.cache_bytes).toBeLessThan(full.cache_bytes / 2);
  });

  it("refuses an empty question", async () => {
    await using reading = await model.read(TEXT);
    await expect(reading.measure([])).rejects.toThrow("no question");
  });
});
