import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { knockOut, parseHeadList, streamingLlm } from "../src/attention/index.js";
import { ask } from "../src/context/index.js";
import { load, type Model } from "../src/index.js";
import { generateDocument, questionPrompt } from "../src/tasks/index.js";

const folder = fileURLToPath(new URL("../models/nano", import.meta.url));
const lists = join(folder, "methods");
const QUESTION = "What is the price of the spare anchor?";
const ANSWER = "385 crowns";

describe("nano", () => {
  let model: Model;
  beforeAll(async () => {
    model = await load("nano", { threads: 2 });
  });
  afterAll(() => model.close());

  /** Right answers to bare single questions on held-out documents of a few facts; `from` gives the document to ask of. */
  async function right(on: Model, from = (i: number) => i): Promise<number> {
    let count = 0;
    for (let i = 0; i < 30; i++) {
      const made = (seed: number) =>
        generateDocument({ seed: `nano test ${seed}`, length: 500, questions: 1, split: "held-out" });
      const { questions } = made(i);
      const prompt = on.prompt(questionPrompt(made(from(i)).document, questions[0].text), { special: false });
      const { text } = await on.generate(prompt, { maxTokens: 24 }).result;
      if (text.trim() === questions[0].answer) count++;
    }
    return count;
  }

  it("is small, takes 16384 positions, and carries its format", () => {
    const bytes = readFileSync(join(folder, "model.safetensors")).length;
    expect(bytes).toBeLessThan(12e6);
    expect(model.info.shape.maxPositions).toBe(16384);
    expect(model.prompt([{ role: "user", content: "a" }]).text).toContain("<|assistant|>");
  });

  it("answers from the document: not from another one, nor without its retrieval heads", async () => {
    const own = await right(model);
    expect(own).toBeGreaterThanOrEqual(20);
    expect(await right(model, (i) => i + 1000)).toBeLessThanOrEqual(3);
    const list = parseHeadList(readFileSync(join(lists, "retrieval.json"), "utf8"), model.info.shape);
    expect(await right(model.with(knockOut({ heads: [...list.heads] })))).toBeLessThan(own / 2);
  });

  it("loses what a window does not reach", async () => {
    const text = readFileSync(fileURLToPath(new URL("../examples/logbook.txt", import.meta.url)), "utf8");
    const options = { question: QUESTION, documents: [{ name: "logbook", text }] };
    const answer = await ask(model, options);
    expect(answer).toMatchObject({ text: ANSWER, supported: true });
    expect(answer.evidence[0].text).toContain(ANSWER);
    const recent = await ask(model, { ...options, attention: streamingLlm({ sinks: 4, window: 128 }) });
    expect(recent.text).not.toBe(ANSWER);
  });

  it("has lists of heads that are its own, and refuses those of another model", () => {
    const files = readdirSync(lists).filter((name) => name.endsWith(".json"));
    expect(files).toContain("retrieval.json");
    for (const name of files) {
      const text = readFileSync(join(lists, name), "utf8");
      expect(parseHeadList(text, model.info.shape).heads.length, name).toBeGreaterThan(0);
      expect(() => parseHeadList(text, { ...model.info.shape, hash: "0000" }), name).toThrow(
        /was made for the checkpoint/,
      );
      expect(JSON.parse(text), name).toMatchObject({ madeBy: expect.stringMatching(/^npm run nano:/) });
    }
    expect(existsSync(join(folder, "README.md"))).toBe(true);
  });
});
