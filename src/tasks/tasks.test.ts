import { beforeAll, describe, expect, it } from "vitest";
import { tinyTokenizer } from "../models/index.js";
import { taskCatalog, tasksByName } from "./catalog.js";
import { type Filler, loadFiller } from "./documents/index.js";
import { frequencies } from "./ruler/counting.js";
import { type CaseOptions, caseTokens, largestCase } from "./task.js";

const tokenizer = tinyTokenizer();
const promptTokens = (document: string, question: string, prefix = "") =>
  tokenizer.encode(`${document}\n\n${question}\n${prefix}`, { special: true }).ids.length;
// this tokenizer knows few words
const LENGTHS = [2500, 5000];
const SEEDS = [1, 2, 3];

describe("tasks", () => {
  let filler: Filler[];
  beforeAll(async () => {
    filler = await loadFiller("data/filler");
  });
  const options = (seed: number, length: number): CaseOptions => ({ seed, length, promptTokens, filler });

  it.each([...taskCatalog.keys()])(
    "%s: same bytes, length kept, evidence holds the answer, the oracle is right",
    (name) => {
      const task = taskCatalog.get(name);
      if (!task) throw new Error(name);
      for (const length of LENGTHS)
        for (const seed of SEEDS) {
          const made = task.make(options(seed, length));
          expect(task.make(options(seed, length))).toEqual(made);
          const tokens = caseTokens(made, { promptTokens });
          expect(tokens).toBeLessThanOrEqual(length);
          // a layout of tables leaves some of it empty
          expect(tokens, `${name} at ${length}`).toBeGreaterThan(
            (name.startsWith("documents/") ? 0.85 : 0.95) * length,
          );
          expect(made.questions.length).toBeGreaterThan(0);
          for (const question of made.questions) {
            const said = task.oracle(made.document, question.text);
            expect(task.score(said, question), `${question.text}: ${said}, not ${question.answer}`).toBe(1);
            expect(task.score(question.answer, question)).toBe(1);
            expect(task.score("", question)).toBe(0);
            expect(task.score("nothing of the kind", question)).toBe(0);
            const evidence = question.evidence.map(([start, end]) => made.document.slice(start, end)).join("\n");
            // orders and masks are put together from the evidence
            const whole = task.metric !== "order" && task.metric !== "cloze";
            const stated = question.references.filter((r) => whole && r !== "not stated");
            for (const reference of stated) expect(evidence, question.text).toContain(reference);
          }
        }
    },
  );

  it("plants every asked value once", () => {
    for (const task of tasksByName(["needle"]))
      for (const seed of SEEDS) {
        const { document, questions } = task.make(options(seed, 2500));
        for (const { references } of questions)
          for (const value of references) expect(document.split(value).length - 1).toBe(1);
      }
  });

  it("loses the answer with the evidence", () => {
    for (const task of tasksByName(["needle", "variables", "facts"]))
      for (const seed of SEEDS) {
        const { document, questions } = task.make(options(seed, 2500));
        for (const question of questions) {
          const [start, end] = question.evidence[0];
          const rest = document.slice(0, start) + document.slice(end);
          if (task.name === "facts/three") continue; // an earlier place may be the same
          expect(task.score(task.oracle(rest, question.text), question), task.name).toBeLessThan(1);
        }
      }
  });

  it("shares needles between lengths", () => {
    for (const name of ["needle/single", "variables", "facts/two"]) {
      const task = tasksByName([name])[0];
      const [short, long] = LENGTHS.map((length) => task.make(options(5, length)));
      expect(long.questions[0].references).toEqual(short.questions[0].references);
      expect(long.document.length).toBeGreaterThan(1.5 * short.document.length);
    }
  });

  it("counts frequent words as RULER does", () => {
    expect(frequencies(1000, 4)).toEqual([607, 151, 67, 37]);
  });

  it("spreads needles over the text", () => {
    const [task] = tasksByName(["needle/single"]);
    const depths = Array.from({ length: 20 }, (_, seed) => {
      const { document, questions } = task.make(options(seed, 1500));
      return questions[0].evidence[0][0] / document.length;
    });
    expect(Math.min(...depths)).toBeLessThan(0.25);
    expect(Math.max(...depths)).toBeGreaterThan(0.75);
  });

  it("names tasks one by one, by family and together", () => {
    expect(tasksByName(["needle/single", "needle"]).length).toBe(8);
    expect(tasksByName(["ruler"]).length).toBe(13);
    expect(tasksByName(["all"]).length).toBe(taskCatalog.size);
    expect(() => tasksByName(["neddle"])).toThrow("no task");
    expect(() => tasksByName(["questions-set/squad"])).toThrow("come from a file");
  });

  it("refuses a length without room", () => {
    const [task] = tasksByName(["needle/multi-key"]);
    expect(() => task.make(options(1, 100))).toThrow(/needs \d+ tokens/);
  });
});

describe("largestCase", () => {
  it("finds the largest n that fits", () => {
    const of = (per: number, length: number) => {
      const question = { text: "", references: [], answer: "", evidence: [], newTokens: 0 };
      const make = (n: number) => ({ document: "x".repeat(7 + per * n), questions: [question] });
      return largestCase(make, { length, promptTokens: (d) => d.length }).document.length;
    };
    expect(of(40, 1000)).toBe(7 + 40 * 24);
    expect(of(1, 50)).toBeGreaterThan(0.97 * 50);
    expect(of(300, 1000)).toBe(7 + 900);
    expect(of(2000, 1000)).toBe(7);
  });
});
