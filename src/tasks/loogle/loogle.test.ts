import { existsSync, readFileSync } from "node:fs";
import { beforeAll, describe, expect, it } from "vitest";
import { tinyTokenizer } from "../../models/index.js";
import { type Filler, loadFiller } from "../documents/index.js";
import { caseTokens } from "../task.js";
import { parseLiteral } from "./literal.js";
import { keepEnds, locate, parseLoogle } from "./load.js";
import { loogleFigures, loogleTasks, orderScore } from "./tasks.js";

const tokenizer = tinyTokenizer();
const promptTokens = (document: string, question: string, prefix = "") =>
  tokenizer.encode(`${document}\n\n${question}\n${prefix}`, { special: true }).ids.length;
const DATA = new URL("../../../../shared/data/loogle-wikipedia/", import.meta.url).pathname;

describe("Python literals", () => {
  it("are read, not run", () => {
    const text = `[{'Q': 'Who said "no"?', 'A': "It's Bob\\n", 'S': ['a', "b",], 'n': -1.5e2, 'x': None}, (True, [])]`;
    expect(parseLiteral(text)).toEqual([
      { Q: 'Who said "no"?', A: "It's Bob\n", S: ["a", "b"], n: -150, x: null },
      [true, []],
    ]);
    expect(parseLiteral("'\\x41\\u00e9'")).toBe("Aé");
    expect(parseLiteral(JSON.stringify({ a: [1, "b"] }))).toEqual({ a: [1, "b"] });
  });

  it("say where they go wrong", () => {
    for (const bad of ["[1, 2", "{'a' 1}", "__import__('os')", "'open", "[1] 2", ""])
      expect(() => parseLiteral(bad), bad).toThrow(/expected .* at character \d+/);
  });
});

const LINES = [
  {
    title: "A",
    input: "Ann founded the mill.\nIt rained. The sun shone. Bob sold it in 1901.",
    output: "none",
    qa_pairs: "[{'Q': 'Who founded the mill?', 'A': 'Ann', 'S': 'Ann founded\\nthe mill.'}]",
  },
  {
    title: "B",
    input: "<mask-0> met <mask-1>.",
    output: "none",
    qa_pairs: [{ Q: "<mask-0> met whom?", A: { "<mask-0>": "Bob Dylan" }, S: "" }],
  },
  {
    title: "C",
    input: "First this. Then that.",
    output: "none",
    qa_pairs: [{ Q: "Order: 1 that, 2 this", A: "2,1", S: ["First this.", "Then that."], type: "timeline_reorder" }],
  },
  { title: "D", input: "A long paper.", output: "An abstract.", qa_pairs: "none" },
];
const text = LINES.map((line) => JSON.stringify(line)).join("\n");

describe("LooGLE", () => {
  let filler: Filler[];
  beforeAll(async () => {
    filler = await loadFiller("data/filler");
  });

  it("reads both forms of its files, and tells the kinds of question", () => {
    const kinds = parseLoogle(text).flatMap((d) => d.questions.map((q) => q.kind));
    expect(kinds).toEqual(["short-qa", "cloze", "reorder", "summary"]);
    expect(
      loogleTasks(text)
        .map((t) => t.name)
        .sort(),
    ).toEqual(kinds.map((k) => `loogle-set/${k}`).sort());
    expect(() => parseLoogle('{"input": 3}')).toThrow("line 1");
  });

  it("finds evidence whatever its white space", () => {
    const [{ text: document }] = parseLoogle(text);
    const of = (evidence: string) => locate(document, evidence).map((span) => document.slice(...span));
    expect(of("Ann founded[1]\nthe  mill.")).toEqual(["Ann founded the mill."]);
    expect(of("Ann founded the mill. Bob sold it in 1901.")).toEqual(["Ann founded the mill.", "Bob sold it in 1901."]);
    expect(of("Ann sold the mill.")).toEqual([]);
  });

  it("cuts the middle of what is too long", () => {
    const ids = Array.from({ length: 11 }, (_, i) => i);
    expect(keepEnds(ids.slice(0, 10), 10)).toEqual(ids.slice(0, 10));
    expect(keepEnds(ids, 10)).toEqual([0, 1, 2, 3, 4, 6, 7, 8, 9, 10]);
    expect(keepEnds(ids, 5)).toEqual([0, 1, 8, 9, 10]);
    // of a prompt of one token more than fits only the middle goes: the question at its end stays
    const prompt = tokenizer.encode(`${LINES[0].input} Who founded the mill?`, { special: true }).ids;
    const question = tokenizer.encode(" Who founded the mill?", { special: false }).ids;
    const kept = keepEnds(prompt, prompt.length - 1);
    expect(kept.length).toBe(prompt.length - 1);
    expect(kept.slice(-question.length)).toEqual(question);
  });

  it("scores orders by the swaps that they take", () => {
    expect(orderScore("2,1,3", "2,1,3")).toBe(1);
    expect(orderScore("The order is 1, 2, 3.", "2,1,3")).toBe(0.5);
    expect(orderScore("nothing", "2,1,3")).toBe(0);
    expect(orderScore("II, I, III", "2,1,3")).toBe(1);
    expect(orderScore("IV, IX, XIV", "4,9,14")).toBe(1);
  });

  it("gives LooGLE's other figures", () => {
    const answer = "Ann Birk founded the mill at Orl";
    const same = loogleFigures("rouge-l", answer, answer);
    for (const name of ["bleu-1", "bleu-4", "rouge-1", "rouge-2", "rouge-l", "rouge-l f1"])
      expect(same[name], name).toBe(1);
    expect(same.meteor).toBeGreaterThan(0.99);
    expect(same.words).toBe(7);
    const empty = loogleFigures("rouge-l", " ", answer);
    for (const value of Object.values(empty)) expect(value).toBe(0);
    // recall does not fall as a reply grows; F1 does
    const long = loogleFigures("rouge-l", `${answer} ${"and more ".repeat(20)}`, answer);
    expect(long["rouge-l"]).toBe(1);
    expect(long["rouge-l f1"]).toBeLessThan(0.4);
    const masks = '{"<mask-0>": "Bob Dylan", "<mask-1>": "Rome"}';
    expect(loogleFigures("cloze", '{"<mask-0>": "Bob", "<mask-1>": "Paris"}', masks)).toEqual({ partial: 0.5 });
    expect(loogleFigures("order", "3,2,1", "1,2,3")).toEqual({ lsd: 8 / 3, lmd: 4 / 3, sd: 1, sdd: 2 });
    expect(loogleFigures("order", "none", "1,2,3")).toEqual({ lsd: 8 / 3, lmd: 4 / 3, sd: 2, sdd: 3 });
  });

  it.skipIf(!existsSync(DATA))("cuts real documents around the evidence", () => {
    for (const file of ["shortdep_qa.jsonl", "longdep_qa.jsonl"])
      for (const task of loogleTasks(readFileSync(`${DATA}${file}`, "utf8"))) {
        let tried = 0;
        for (const seed of [1, 2, 3, 4]) {
          const options = { seed, length: 6000, promptTokens, filler };
          // some evidence is longer than this length
          const made = attempt(() => task.make(options));
          if (!made) continue;
          tried++;
          expect(task.make(options)).toEqual(made);
          expect(caseTokens(made, options)).toBeLessThanOrEqual(6000);
          expect(caseTokens(made, options)).toBeGreaterThan(0.95 * 6000);
          const [question] = made.questions;
          expect(question.evidence.length).toBeGreaterThan(0);
          for (const [start, end] of question.evidence) expect(end).toBeGreaterThan(start);
          expect(task.score(question.answer, question)).toBe(1);
          expect(task.score("None", question)).toBeLessThan(0.2);
          expect(task.score(task.oracle(made.document, question.text), question)).toBe(1);
        }
        expect(tried).toBeGreaterThan(0);
      }
  });

  it.skipIf(!existsSync(DATA))("finds most of the evidence that the data gives", () => {
    const [found, all] = ["shortdep_qa.jsonl", "longdep_qa.jsonl"]
      .flatMap((file) => parseLoogle(readFileSync(`${DATA}${file}`, "utf8")))
      .flatMap(({ text: document, questions }) =>
        questions.flatMap((q) => q.evidence.filter((e) => e.trim() !== "").map((e) => locate(document, e).length > 0)),
      )
      .reduce(([f, a], hit) => [f + Number(hit), a + 1], [0, 0]);
    expect(all).toBeGreaterThan(150);
    expect(found / all).toBeGreaterThan(0.75);
  });
});

function attempt<T>(make: () => T): T | undefined {
  try {
    return make();
  } catch (error) {
    expect(String(error)).toMatch(/needs \d+ tokens/);
    return undefined;
  }
}
