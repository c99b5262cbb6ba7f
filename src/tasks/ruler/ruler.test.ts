import { beforeAll, describe, expect, it } from "vitest";
import { taskCatalog, tasksByName } from "../catalog.js";
import { type Filler, loadFiller } from "../documents/index.js";
import { Random } from "../documents/random.js";
import { effectiveLength } from "../nolima/nolima.js";
import type { TaskCase } from "../task.js";
import { frequencies } from "./counting.js";
import { NOISE } from "./haystack.js";
import { RULER_BAR, weightedMean } from "./score.js";
import { words } from "./words.js";

// four characters for a token: the form is tested here, and not a tokenizer
const promptTokens = (document: string, question: string, prefix = "") =>
  Math.ceil((document.length + question.length + prefix.length) / 4);
const SEEDS = [1, 2, 3, 4, 5];
const NUMBER = /^\d{7}$/;
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
// a key that is drawn again is told apart by a number
const WORDS = /^[a-z]+-[a-z]+(-\d+)?$/;

describe("RULER's tasks", () => {
  let filler: Filler[];
  beforeAll(async () => {
    filler = await loadFiller("data/filler");
  });
  const make = (name: string, seed: number, length = 4096): TaskCase =>
    tasksByName([name])[0].make({ seed, length, promptTokens, filler });
  const needlesOf = (text: string) =>
    [...text.matchAll(/One of the special magic (\w+)s for (\S+) is: (\S+)\./g)].map(([, sort, key, value]) => ({
      sort,
      key,
      value,
    }));

  // filler, keys, values of a key, keys asked for at once, what a key and a value look like: the sheet's table
  it.each([
    ["needle/single-noise", "noise", 1, 1, 1, WORDS, NUMBER],
    ["needle/single", "essays", 1, 1, 1, WORDS, NUMBER],
    ["needle/single-uuid", "essays", 1, 1, 1, WORDS, UUID],
    ["needle/multi-key", "essays", 4, 1, 1, WORDS, NUMBER],
    ["needle/multi-key-needles", "needles", 1, 1, 1, WORDS, NUMBER],
    ["needle/multi-key-uuid", "needles", 1, 1, 1, UUID, UUID],
    ["needle/multi-value", "essays", 1, 4, 1, WORDS, NUMBER],
    ["needle/multi-query", "essays", 4, 1, 4, WORDS, NUMBER],
  ] as const)("%s hides what it should, and asks for it", (name, hay, keys, values, asked, key, value) => {
    for (const seed of SEEDS) {
      const { document, questions } = make(name, seed);
      const needles = needlesOf(document);
      expect(questions.length).toBe(asked > 1 ? 1 : keys);
      for (const needle of needles) {
        expect(needle.key).toMatch(key);
        expect(needle.value).toMatch(value);
        expect(needle.sort).toBe(value === UUID ? "uuid" : "number");
      }
      if (hay === "needles") expect(needles.length).toBeGreaterThan(50);
      else expect(needles.length).toBe(keys * values);
      const rest = document.split("\n").slice(1).join("\n");
      const noise = NOISE.reduce((text, sentence) => text.replaceAll(sentence, ""), rest);
      expect(noise.trim().length < 100).toBe(hay === "noise");
      for (const { text, prefix = "", references, newTokens, evidence } of questions) {
        expect(newTokens).toBe(128);
        expect(references.length).toBe(values * asked);
        expect(evidence.length).toBe(references.length);
        // one answer is asked for in the singular
        const many = references.length > 1;
        expect(text.startsWith(many ? "What are all the special magic" : "What is the special magic")).toBe(true);
        expect(prefix.endsWith(many ? " are" : " is")).toBe(true);
        for (const reference of references) expect(document.split(reference).length - 1).toBe(1);
        const places = evidence.map(([start, end]) => needlesOf(document.slice(start, end)));
        expect(places.map(([needle]) => needle.value).sort()).toEqual([...references].sort());
      }
    }
  });

  it("puts needles of essays at depths out of forty", () => {
    for (const seed of SEEDS) {
      const { document, questions } = make("needle/multi-key", seed, 16384);
      const body = document.slice(document.indexOf("\n") + 1);
      const sentences = body.split(/(?<=[.!?]["”’']?) (?=["“‘']?[A-Z])/);
      const at = questions.map((q) => sentences.findIndex((s) => s.includes(q.references[0])));
      expect(at).not.toContain(-1);
      for (const i of at) {
        const slot = (39 * i) / sentences.length;
        expect(Math.abs(slot - Math.round(slot)), `sentence ${i} of ${sentences.length}`).toBeLessThan(0.35);
      }
      expect(new Set(at).size).toBe(4);
    }
  });

  it("chains five variables over four hops, after a worked example of its own", () => {
    const examples = SEEDS.map((seed) => {
      const { document, questions } = make("variables", seed);
      const [{ text, references, evidence, newTokens }] = questions;
      expect(newTokens).toBe(30);
      expect(references.length).toBe(5);
      for (const name of references) expect(name).toMatch(/^[A-Z]{5}$/);
      const value = /value (\d{5}) /.exec(text)?.[1];
      const lines = evidence.map(([start, end]) => document.slice(start, end));
      expect(lines).toEqual(
        references.map((name, i) => `VAR ${name} = ${i === 0 ? value : `VAR ${references[i - 1]}`}`),
      );
      const starts = evidence.map(([start]) => start);
      expect(starts).toEqual([...starts].sort((a, b) => a - b));
      const example = [...document.slice(0, starts[0]).matchAll(/VAR ([A-Z]{3}) = (\d{5}|VAR [A-Z]{3})$/gm)];
      expect(example.length).toBe(5);
      return example[0][2];
    });
    expect(new Set(examples).size).toBe(SEEDS.length);
  });

  it.each([
    [2048, 6, 1],
    [4096, 30, 3],
    [8192, 30, 3],
  ])("counts common words at %i tokens: %i times, the others %i", (length, often, seldom) => {
    for (const seed of SEEDS) {
      const { document, questions } = make("common-words", seed, length);
      const list = [...document.slice(document.lastIndexOf("\n1. ")).matchAll(/\d+\. (\S+)/g)].map((m) => m[1]);
      const counts = new Map<string, number>();
      for (const word of list) counts.set(word, (counts.get(word) ?? 0) + 1);
      const [{ references, newTokens }] = questions;
      expect([references.length, newTokens]).toEqual([10, 120]);
      for (const [word, count] of counts) expect(count).toBe(references.includes(word) ? often : seldom);
      // the worked example has words of its own
      const example = document.slice(0, document.lastIndexOf("\n1. "));
      for (const word of references) expect(example).not.toMatch(new RegExp(`\\b${word}\\b`));
    }
  });

  it("counts coded words as Zipf's law has it", () => {
    expect(frequencies(1000, 4)).toEqual([607, 151, 67, 37]);
    for (const seed of SEEDS) {
      const { document, questions } = make("frequent-words", seed);
      const counts = new Map<string, number>();
      for (const word of document.slice(document.indexOf("\n") + 1).split(" "))
        counts.set(word, (counts.get(word) ?? 0) + 1);
      const ranked = [...counts].sort((a, b) => b[1] - a[1]);
      const total = Array.from({ length: 4000 }, (_, n) => n).find((n) => frequencies(n, 1)[0] === counts.get("..."));
      const wanted = frequencies((total ?? 0) + 1, 40);
      // some n with rank 1's count: the others may differ by one
      ranked.slice(0, 8).forEach(([, count], i) => {
        expect(Math.abs(count - wanted[i])).toBeLessThan(2);
      });
      const [{ references, newTokens }] = questions;
      expect(newTokens).toBe(50);
      expect(ranked.slice(0, 4).map(([word]) => word)).toEqual(["...", ...references]);
      for (const word of references) expect(word).toMatch(/^[a-z]{6}$/);
    }
  });

  it("fills 128k tokens too, and is answered there", () => {
    const length = 131072;
    for (const task of tasksByName(["needle", "variables", "common-words", "frequent-words"])) {
      const made = task.make({ seed: 1, length, promptTokens, filler });
      for (const question of made.questions) {
        const tokens = promptTokens(made.document, question.text, question.prefix) + question.newTokens;
        expect(tokens).toBeLessThanOrEqual(length);
        expect(tokens, task.name).toBeGreaterThan(0.95 * length);
        expect(task.score(task.oracle(made.document, question.text), question), task.name).toBe(1);
      }
    }
  });

  it("judges replies by the share of the references, and questions by any of them", () => {
    const score = (name: string, reply: string, references: string[]) => {
      const task = taskCatalog.get(name);
      return task?.score(reply, { ...make(name, 1).questions[0], references });
    };
    expect(score("needle/multi-value", "12 and\u000034", ["12", "34", "56", "78"])).toBe(0.5);
    expect(score("variables", "abcde", ["ABCDE", "FGHIJ"])).toBe(0.5);
    expect(score("questions/single", "the Mill", ["mill", "windmill"])).toBe(1);
  });

  it("has words for any list", () => {
    const list = words(17000, new Random(1));
    expect(new Set(list).size).toBe(17000);
    // a shorter list is the beginning of a longer one
    expect(words(4000, new Random(1))).toEqual(list.slice(0, 4000));
  });
});

describe("RULER's figures", () => {
  // the published row of GPT-4-1106-preview
  const scores = new Map([96.6, 96.3, 95.2, 93.2, 87.0, 81.2].map((score, i) => [4096 * 2 ** i, score]));

  it("weigh long or short lengths", () => {
    expect(weightedMean(scores, "long")).toBeCloseTo(89.0, 1);
    expect(weightedMean(scores, "short")).toBeCloseTo(94.1, 1);
    expect(weightedMean(new Map([...scores].reverse()), "long")).toBeCloseTo(89.0, 1);
    expect(() => weightedMean(new Map(), "long")).toThrow("got none");
  });

  it("give the effective length", () => {
    expect(effectiveLength(scores, RULER_BAR, 1)).toBe(65536);
  });
});
