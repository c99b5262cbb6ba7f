import { mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Model } from "../src/engine/api.js";
import { load } from "../src/load.js";

const TINY = "models/tiny";
const TEXT = "key one: red. key two: blue. key three: green. key two:";

describe.each(["worker", "calling thread"])("readings, engine in a %s", (where) => {
  const options = { worker: where === "worker" };
  const folder = mkdtempSync(join(tmpdir(), "fovea-"));
  let model: Model;
  beforeAll(async () => {
    model = await load(TINY, options);
  });
  afterAll(async () => {
    await model.close();
    rmSync(folder, { recursive: true });
  });

  test("a reading answers as the whole text does, twice, and stays as it was", async () => {
    const [head, tail] = [TEXT.slice(0, 30), TEXT.slice(30)];
    const ids = [...model.tokenizer.encode(head).ids, ...model.tokenizer.encode(tail, { special: false }).ids];
    const whole = await model.generate(ids, { maxTokens: 8, ignoreEos: true }).result;
    const reading = await model.read(head);
    const length = reading.length;
    for (let i = 0; i < 2; i++) {
      const result = await reading.generate(tail, { maxTokens: 8, ignoreEos: true }).result;
      expect(result.ids).toEqual(whole.ids);
      // only the question is prefilled
      expect(result.timings.prompt_tokens).toBe(ids.length - length);
    }
    expect(reading.length).toBe(length);
    await reading.close();
  });

  test("a reading goes on by itself when nothing is added", async () => {
    const reading = await model.read(TEXT);
    const whole = await model.generate(TEXT, { maxTokens: 6, ignoreEos: true }).result;
    expect((await reading.generate([], { maxTokens: 6, ignoreEos: true }).result).ids).toEqual(whole.ids);
    await reading.close();
  });

  test("a fork goes its own way", async () => {
    const reading = await model.read(TEXT);
    const fork = await reading.fork();
    await fork.extend(" blue. key one:");
    expect(fork.length).toBeGreaterThan(reading.length);
    const again = await reading.generate(" x", { maxTokens: 4, ignoreEos: true }).result;
    const fresh = await model.read(TEXT);
    expect((await fresh.generate(" x", { maxTokens: 4, ignoreEos: true }).result).ids).toEqual(again.ids);
    for (const r of [reading, fork, fresh]) await r.close();
    await expect(reading.fork()).rejects.toMatchObject({ code: "closed" });
  });

  test("saved and opened, a reading continues bit for bit", async () => {
    const file = join(folder, "report.cache");
    const reading = await model.read(TEXT);
    await reading.save(file);
    expect(readdirSync(folder)).toEqual(["report.cache"]);
    const opened = await model.open(file);
    expect(opened.ids).toEqual(reading.ids);
    const continued = " blue. key three:";
    const a = await reading.score(continued);
    const b = await opened.score(continued);
    expect(b.tokens).toEqual(a.tokens);
    expect((await opened.generate(continued, { maxTokens: 6 }).result).ids).toEqual(
      (await reading.generate(continued, { maxTokens: 6 }).result).ids,
    );
    await opened.close();
    await reading.close();
  });

  test("a saved reading is refused by another method, another cache type, and when it is damaged", async () => {
    const file = join(folder, "method.cache");
    const sparse = model.with("streaming-llm(sinks=2,window=8)");
    const reading = await sparse.read(TEXT);
    await reading.save(file);
    await reading.close();
    await expect(model.open(file)).rejects.toMatchObject({ code: "mismatch" });
    const opened = await sparse.open(file);
    await opened.close();
    const other = await load(TINY, { ...options, cache: "float32" });
    await expect(other.with("streaming-llm(sinks=2,window=8)").open(file)).rejects.toMatchObject({ code: "mismatch" });
    await other.close();

    const bytes = readFileSync(file);
    for (const [name, damage] of Object.entries({
      "cut short": () => truncateSync(file, bytes.length - 40),
      "a flipped bit": () => {
        const copy = Buffer.from(bytes);
        copy[copy.length - 100] ^= 4;
        writeFileSync(file, copy);
      },
      "longer than it says": () => writeFileSync(file, Buffer.concat([bytes, Buffer.alloc(8)])),
      "another file": () => writeFileSync(file, "hello"),
      empty: () => writeFileSync(file, ""),
    })) {
      damage();
      await expect(sparse.open(file), name).rejects.toMatchObject({ code: "bad-file" });
    }
    await expect(sparse.open(join(folder, "nothing"))).rejects.toMatchObject({ code: "not-found" });
    await expect(sparse.read(TEXT).then((r) => r.save(join(folder, "no", "such", "folder")))).rejects.toMatchObject({
      code: "bad-file",
    });
  });

  test("several generations at once give what each gives alone", async () => {
    const prompts = [TEXT, TEXT.slice(0, 20), "key three: green. key three:"];
    const alone = [];
    for (const prompt of prompts)
      alone.push((await model.generate(prompt, { maxTokens: 12, ignoreEos: true }).result).ids);
    const together = await Promise.all(
      prompts.map((p) => model.generate(p, { maxTokens: 12, ignoreEos: true }).result),
    );
    expect(together.map((r) => r.ids)).toEqual(alone);
  });

  test("an abort ends a generation with what there is", async () => {
    const abort = new AbortController();
    const generation = model.generate(TEXT, { maxTokens: 100_000, ignoreEos: true, signal: abort.signal });
    let count = 0;
    for await (const _ of generation) if (++count === 5) abort.abort();
    const result = await generation.result;
    expect(result.finish).toBe("aborted");
    expect(result.ids.length).toBeGreaterThanOrEqual(5);
    expect(result.ids.length).toBeLessThan(5000);
  });

  test("bad requests are refused in words", async () => {
    await expect(model.generate([]).result).rejects.toThrow(/no token/);
    await expect(model.generate([1e6]).result).rejects.toThrow(/token id 1000000 .* outside the vocabulary of 768/);
    await expect(model.generate(TEXT, { maxTokens: -1 }).result).rejects.toThrow(/maxTokens is -1/);
    await expect(model.generate(TEXT, { temperature: Number.NaN }).result).rejects.toThrow(/temperature/);
    await expect(model.with("quest-of(x=1)").score(TEXT)).rejects.toMatchObject({ code: "unknown-method" });
    await expect(model.attention(TEXT, { layer: 9, head: 0 })).rejects.toThrow(/layers 0 to 1/);
    expect(() => model.prompt([{ role: "user", content: "hi" }])).toThrow(/chat template/);
    expect(() => model.prompt(TEXT).span("purple")).toThrow(/purple/);
  });

  test("one seed, one text; stop texts end it", async () => {
    const run = (seed: number) => model.generate(TEXT, { maxTokens: 10, temperature: 3, seed, ignoreEos: true }).result;
    const [a, b, c] = [await run(1), await run(1), await run(2)];
    expect(a.ids).toEqual(b.ids);
    expect(a.ids).not.toEqual(c.ids);
    const stop = a.text.slice(3, 6);
    const stopped = await model.generate(TEXT, {
      maxTokens: 10,
      temperature: 3,
      seed: 1,
      ignoreEos: true,
      stop: [stop],
    }).result;
    expect(stopped.finish).toBe("stop");
    expect(stopped.text).toBe(a.text.slice(0, a.text.indexOf(stop)));
  });
});

test("the caller's event loop stays free while the worker runs", async () => {
  const model = await load(TINY);
  let ticks = 0;
  const timer = setInterval(() => ticks++, 5);
  const started = performance.now();
  await model.generate(TEXT, { maxTokens: 400, ignoreEos: true }).result;
  const took = performance.now() - started;
  clearInterval(timer);
  // a blocked loop would have ticked once or twice
  expect(ticks).toBeGreaterThan(Math.min(10, took / 50));
  await model.close();
  await expect(model.score(TEXT)).rejects.toMatchObject({ code: "closed" });
});

test("prompt spans find a text's tokens", async () => {
  const model = await load(TINY, { worker: false });
  const prompt = model.prompt(TEXT);
  const [start, end] = prompt.span("blue");
  expect(model.tokenizer.decode(prompt.ids.slice(start, end)).trim()).toContain("blue");
  await model.close();
});
