import { beforeAll, describe, expect, it } from "vitest";
import { tinyTokenizer } from "../../models/index.js";
import { tasksByName } from "../catalog.js";
import { type Filler, loadFiller } from "../documents/index.js";
import type { CaseOptions, TaskCase } from "../task.js";
import { baseScore, effectiveLength, LANDMARKS, NAMES, nolimaTasks, place } from "./nolima.js";

const tokenizer = tinyTokenizer();
const promptTokens = (document: string, question: string, prefix = "") =>
  tokenizer.encode(`${document}\n\n${question}\n${prefix}`, { special: true }).ids.length;
const STOP = new Set(
  "a about an and answer any been book by character has have he in is it nothing of or question says she strongly suggests that the to was were which who with".split(
    " ",
  ),
);
const stemsOf = (text: string) =>
  (text.toLowerCase().match(/[a-z]+/g) ?? []).filter((w) => !STOP.has(w)).map((w) => w.replace(/(es|s)$/, ""));
const stems = (text: string) => new Set(stemsOf(text));
const shared = (a: ReadonlySet<string>, b: ReadonlySet<string>) => [...a].filter((w) => b.has(w)).length;

/** Which of the texts BM25 puts first, the earliest among equals. */
function bm25(texts: readonly (readonly string[])[], query: ReadonlySet<string>): number {
  const mean = texts.reduce((n, text) => n + text.length, 0) / texts.length;
  const weights = new Map(
    [...query].map((word) => {
      const holding = texts.filter((text) => text.includes(word)).length;
      return [word, Math.log(1 + (texts.length - holding + 0.5) / (holding + 0.5))];
    }),
  );
  const scores = texts.map((text) =>
    [...weights].reduce((sum, [word, weight]) => {
      const count = text.filter((w) => w === word).length;
      return sum + (weight * count * 2.5) / (count + 1.5 * (0.25 + (0.75 * text.length) / mean));
    }, 0),
  );
  return scores.indexOf(Math.max(...scores));
}

describe("NoLiMa", () => {
  let filler: Filler[];
  beforeAll(async () => {
    filler = await loadFiller("data/filler");
  });
  const options = (seed: number, length = 2500): CaseOptions => ({ seed, length, promptTokens, filler });
  const cases = (name: string, count = 40): TaskCase[] =>
    Array.from({ length: count }, (_, seed) => tasksByName([name])[0].make(options(seed, 1200)));
  const asked = (made: TaskCase) => made.questions[0].text.split("Question: ")[1];
  const needle = ({ document, questions: [q] }: TaskCase) => document.slice(...q.evidence[0]);

  /** BM25's best sentence for the question: the needle, or not. */
  const literal = (made: TaskCase) => {
    const question = stems(asked(made));
    const sentences = made.document.split(/(?<=[.!?])\s+/);
    const found = bm25(sentences.map(stemsOf), question);
    return made.questions[0].references.some((name) => sentences[found].includes(name));
  };

  it("shares no word between needle and question, but in the control", () => {
    for (const name of ["nolima/one-hop", "nolima/two-hop"])
      for (const made of cases(name)) expect(shared(stems(needle(made)), stems(asked(made))), asked(made)).toBe(0);
    for (const made of cases("nolima/direct"))
      expect(shared(stems(needle(made)), stems(asked(made)))).toBeGreaterThan(0);
  });

  it("is latent: matching words finds the control's needle, and not the others'", () => {
    const rate = (name: string) => cases(name).filter(literal).length / 40;
    expect(rate("nolima/direct")).toBeGreaterThan(0.95);
    expect(rate("nolima/one-hop")).toBeLessThan(0.2);
    expect(rate("nolima/two-hop")).toBeLessThan(0.2);
    expect(rate("nolima/one-hop-distractor")).toBeLessThan(0.2);
  });

  it("holds the name once, and nowhere else a name of the set or what the test is about", () => {
    for (const kind of ["nolima/one-hop", "nolima/two-hop"])
      for (const made of cases(kind, 12)) {
        const [name] = made.questions[0].references;
        expect(made.document.split(name).length - 1).toBe(1);
        const rest = made.document.replace(needle(made), "");
        for (const other of NAMES) expect(rest).not.toContain(other);
        const [landmark, city, country] = LANDMARKS.find(([mark]) => needle(made).includes(mark)) ?? [];
        for (const word of [landmark, city, country]) {
          expect(word).toBeDefined();
          expect(rest).not.toContain(word);
        }
      }
  });

  it("gives a random name of the set a twelfth of the cases", () => {
    const task = tasksByName(["nolima/one-hop"])[0];
    const all = cases("nolima/one-hop", 120);
    const right = all.filter((made) => task.score("Anneli", made.questions[0])).length;
    expect(right).toBeGreaterThan(1);
    expect(right).toBeLessThan(24);
  });

  it("moves the window, and not the needle in its book", () => {
    const book = Array.from({ length: 200 }, (_, i) => `Sentence number ${i} is here.`);
    const at = (depth: number) => place(book, 40, depth, "NEEDLE.");
    expect(at(0).start).toBe(0);
    expect(at(1).document.endsWith("NEEDLE.")).toBe(true);
    // the window stays in the book: all of its 40 sentences are there
    for (const depth of [0, 0.5, 1]) expect(at(depth).document.match(/Sentence number/g)?.length).toBe(40);
    for (const depth of [0.2, 0.5, 0.8]) {
      const { document, start } = at(depth);
      expect(Math.abs(start / document.length - depth)).toBeLessThan(0.03);
      // the neighbours are the same at every depth
      expect(document).toContain("number 99 is here. NEEDLE.\nSentence number 100");
    }
  });

  it("keeps a distractor away from the needle", () => {
    const book = Array.from({ length: 200 }, (_, i) => `Sentence number ${i} is here.`);
    for (const depth of [0, 0.3, 0.5, 1]) {
      const { document, start } = place(book, 60, depth, "NEEDLE.", "DISTRACTOR.");
      expect(Math.abs(document.indexOf("DISTRACTOR") - start) / document.length).toBeGreaterThan(0.2);
    }
  });

  it("has the needle at its depth in tokens", () => {
    const task = tasksByName(["nolima/one-hop"])[0];
    for (const seed of [1, 2, 3, 4, 5, 6]) {
      const made = task.make(options(seed, 5000));
      const head = made.document.indexOf("\n\n") + 2;
      const [start] = made.questions[0].evidence[0];
      const tokens = (text: string) => tokenizer.encode(text, { special: false }).ids.length;
      const depth = tokens(made.document.slice(head, start)) / tokens(made.document.slice(head));
      // the nearest of 26 depths is within a line of it
      const nearest = Math.round(depth * 25) / 25;
      expect(Math.abs(depth - nearest)).toBeLessThan(0.021);
    }
  });

  it("reads NoLiMa's own sets", () => {
    const set = JSON.stringify([
      {
        id: "0401",
        needle: "{CHAR} lives next to {1}.",
        questions: { onehop: "Who has been to {2}?", twohop: "Who has been to {3}?" },
        character_set: ["Yuki", "Stuart"],
        distractors: { onehop: "There was an article about {2} in the paper." },
        tests: { T01: { input_args: ["the Semperoper", "Dresden", "Saxony"] } },
        task_template: "Read this.\n\n{haystack}\n\nQuestion: {question}",
      },
    ]);
    const tasks = nolimaTasks(set);
    expect(tasks.map((t) => t.name)).toEqual([
      "nolima-set/onehop",
      "nolima-set/onehop-distractor",
      "nolima-set/twohop",
    ]);
    const distracted = tasks[1].make(options(1)).document;
    expect(distracted).toContain("There was an article about Dresden in the paper.");
    const made = tasks[0].make(options(1));
    expect(made.document.startsWith("Read this.\n\n")).toBe(true);
    expect(made.questions[0].text).toBe("Question: Who has been to Dresden?");
    expect(needle(made)).toMatch(/^(Yuki|Stuart) lives next to the Semperoper\.$/);
    expect(tasks[0].score(tasks[0].oracle(made.document, made.questions[0].text), made.questions[0])).toBe(1);
    expect(() => nolimaTasks("[{}]")).toThrow("needle 1 lacks");
    expect(() => nolimaTasks("{")).toThrow("no JSON");
  });

  it("finds the effective length", () => {
    const scores = new Map([
      [1024, 94],
      [2048, 87],
      [4096, 81],
      [8192, 72],
    ]);
    expect(effectiveLength(scores, 97.3)).toBe(2048);
    expect(effectiveLength(scores, 200)).toBe(0);
  });

  it("takes each needle's best short length as its base", () => {
    const of = (...pairs: [number, number][]) => new Map(pairs);
    const needles = [of([250, 90], [500, 100], [1000, 80], [8000, 20]), of([250, 70], [1000, 60])];
    expect(baseScore(needles)).toBe(85);
    expect(() => baseScore([of([2000, 90])])).toThrow("lengths up to 1024");
    expect(() => baseScore([])).toThrow("every needle");
  });
});
