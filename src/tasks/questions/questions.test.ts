import { existsSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { load } from "../../load.js";
import { tinyTokenizer } from "../../models/index.js";
import { PromptFormat } from "../bench/prompt.js";
import { runBench } from "../bench/run.js";
import { taskCatalog, tasksByName } from "../catalog.js";
import { type CaseOptions, caseTokens, type Task, type TaskCase } from "../task.js";
import { parseHotpot, parseSquad } from "./load.js";
import { hotpotTask, squadTask } from "./tasks.js";

const tokenizer = tinyTokenizer();
const promptTokens = (document: string, question: string, prefix = "") =>
  tokenizer.encode(`${document}\n\n${question}\n${prefix}`, { special: true }).ids.length;
const options = (seed: number, length: number): CaseOptions => ({ seed, length, promptTokens, filler: [] });

const SQUAD = new URL("../../../../shared/data/squad-xquad/xquad-en.jsonl", import.meta.url).pathname;
const HOTPOT = new URL("../../../../shared/data/multihop-ircot/multihop.jsonl", import.meta.url).pathname;

const ask = (id: string, question: string, context: string, ...answers: string[]) => ({
  id,
  question,
  // the files count characters, not UTF-16 units
  answers: answers.map((text) => ({ text, answer_start: [...context.slice(0, context.indexOf(text))].length })),
});
const MILL = "🌾 The mill at Orl was built in 1801. Ann Birk ran it for the owner. It burned down in 1850.";
const BRIDGE = "The bridge at Orl has six arches. Its toll was two pence. A flood took one arch in 1822.";
const MARKET = "The market of Orl is held on Thursdays. Cloth is sold there, and so are geese.";
const SCHOOL = "The school at Tavi has one room. Nine children sat in it. Its bell came from a ship.";
const ARTICLES = {
  version: "v2.0",
  data: [
    {
      title: "Orl",
      paragraphs: [
        {
          context: MILL,
          qas: [
            { ...ask("1", "When was the mill built?", MILL, "1801", "in 1801"), is_impossible: false },
            { ...ask("2", " Who ran the mill?", MILL, "Ann Birk"), is_impossible: false },
            { id: "3", question: "Who painted the mill?", answers: [], is_impossible: true },
          ],
        },
        { context: BRIDGE, qas: [ask("4", "How many arches has the bridge?", BRIDGE, "six")] },
        { context: MARKET, qas: [ask("5", "What is sold at the market?", MARKET, "Cloth")] },
      ],
    },
    { title: "Tavi", paragraphs: [{ context: SCHOOL, qas: [ask("6", "Whence came the bell?", SCHOOL, "a ship")] }] },
  ],
};
const lines = (articles: typeof ARTICLES) =>
  articles.data.flatMap(({ paragraphs }) => paragraphs.map((p) => JSON.stringify(p))).join("\n");

const FILMS = [
  {
    _id: "a",
    question: "In which town was the maker of The Kiln born?",
    answer: "Orl",
    supporting_facts: [
      ["The Kiln", 1],
      ["Jo Marsh", 0],
      ["Jo Marsh", 7],
    ],
    context: [
      ["The Oven", ["The Oven is a play.", " It has two acts."]],
      ["The Kiln", ["The Kiln is a film.", " It was made by Jo Marsh."]],
      ["Jo Marsh", ["Jo Marsh was born in Orl.", " She died in Tavi."]],
    ],
  },
  {
    _id: "b",
    question: "Are Tavi and Orl both towns?",
    answer: "yes",
    supporting_facts: [
      ["Tavi", 0],
      ["Orl", 0],
    ],
    context: [
      ["Tavi", ["Tavi is a town."]],
      ["Orl", ["Orl is a town with a mill."]],
      ["Birk", ["Birk is a hill.", " Nobody lives there."]],
    ],
  },
  {
    _id: "c",
    question: "Who found Birk?",
    answer: "Nobody knows",
    supporting_facts: [["A paragraph that was not retrieved", 0]],
    context: [["Birk", ["Birk is a hill.", " Nobody lives there."]]],
  },
];

const evidenceOf = ({ document, questions }: TaskCase, i = 0) =>
  questions[i].evidence.map(([start, end]) => document.slice(start, end));
/** The documents of a prompt, without their numbers. */
const documentsOf = ({ document }: TaskCase) => document.split(/\n\nDocument \d+:\n/).slice(1);

/** What holds of every case. */
function check(task: Task, made: TaskCase, { length, seed }: CaseOptions): void {
  expect(task.make(options(Number(seed), length))).toEqual(made);
  const tokens = caseTokens(made, { promptTokens });
  expect(tokens).toBeLessThanOrEqual(length);
  expect(tokens, `${task.name} at ${length}`).toBeGreaterThan(0.95 * length);
  for (const question of made.questions) {
    expect(question.newTokens).toBe(32);
    expect(question.evidence.length).toBeGreaterThan(0);
    expect(task.score(task.oracle(made.document, question.text), question)).toBe(1);
    for (const reference of question.references) expect(task.score(`It is ${reference}.`, question)).toBe(1);
    expect(task.score("", question)).toBe(0);
    const [start] = question.evidence[0];
    const without = made.document.slice(0, start) + made.document.slice(start + 1);
    expect(task.oracle(without, question.text)).toBe("");
  }
  const numbers = [...made.document.matchAll(/\n\nDocument (\d+):\n/g)].map(([, n]) => Number(n));
  expect(numbers).toEqual(numbers.map((_, i) => i + 1));
}

describe("SQuAD's form", () => {
  it("is read in all its versions", () => {
    const v2 = parseSquad(JSON.stringify(ARTICLES, null, 1));
    expect(v2.questions.map((q) => q.question)).toEqual([
      "When was the mill built?",
      "Who ran the mill?",
      "How many arches has the bridge?",
      "What is sold at the market?",
      "Whence came the bell?",
    ]);
    expect(v2.questions[0].answers).toEqual(["1801", "in 1801"]);
    expect(v2.questions[0].near.map(({ text }) => text)).toEqual([BRIDGE, MARKET]);
    expect(v2.passages.map(({ text }) => text)).toEqual([MILL, BRIDGE, MARKET, SCHOOL]);
    for (const { gold, evidence, answers } of v2.questions)
      expect(gold[evidence[0].passage].text.slice(...evidence[0].span)).toBe(answers[0]);
    // lines of JSON know no articles
    const each = parseSquad(lines(ARTICLES));
    expect(each.questions.map((q) => q.answers)).toEqual(v2.questions.map((q) => q.answers));
    expect(each.questions[0].near).toEqual([]);
    expect(parseSquad(lines(ARTICLES).split("\n")[3]).questions.length).toBe(1);
    // and a place may be called start, or be a little off
    const moved = lines(ARTICLES).replace(/"answer_start":(\d+)/g, (_, n) => `"start":${Number(n) + 2}`);
    expect(parseSquad(moved).questions.map((q) => q.evidence)).toEqual(v2.questions.map((q) => q.evidence));
  });

  it("is told from other files", () => {
    expect(() => parseSquad("{")).toThrow("SQuAD is no JSON");
    expect(() => parseSquad("{}")).toThrow("no data");
    expect(() => parseSquad('{"data": [{"title": "A"}]}')).toThrow("article 1 has no paragraphs");
    expect(() => parseSquad('{"data": [{"paragraphs": [{"context": "A"}]}]}')).toThrow("article 1, paragraph 1");
    expect(() => parseSquad(`${lines(ARTICLES)}\n{"context": 3}`)).toThrow("line 5 has no context");
    expect(() => parseSquad(lines(ARTICLES).replace('"text":"six"', '"text":"seven"'))).toThrow(
      'line 2, question 1: its answer "seven" does not stand in its paragraph',
    );
    expect(() => parseSquad('{"data": []}')).toThrow("no question with an answer");
  });
});

describe("HotpotQA's form", () => {
  it("is read, with the sentences that support an answer", () => {
    const { questions, passages } = parseHotpot(JSON.stringify(FILMS));
    expect(questions.map((q) => q.answers)).toEqual([["Orl"], ["yes"]]);
    const [{ gold, near, evidence }] = questions;
    expect(gold.map(({ text }) => text.split("\n")[0])).toEqual(["The Kiln", "Jo Marsh"]);
    expect(near.map(({ text }) => text)).toEqual(["The Oven\nThe Oven is a play. It has two acts."]);
    // a sentence that its paragraph does not have is left out
    expect(evidence.map(({ passage, span }) => gold[passage].text.slice(...span))).toEqual([
      "It was made by Jo Marsh.",
      "Jo Marsh was born in Orl.",
    ]);
    expect(passages.length).toBe(6);
  });

  it("is told from other files", () => {
    expect(() => parseHotpot("[")).toThrow("HotpotQA is no JSON");
    expect(() => parseHotpot("{}")).toThrow("no list");
    expect(() => parseHotpot('[{"question": "Who?"}]')).toThrow("question 1 has no question and answer");
    expect(() => parseHotpot('[{"question": "Who?", "answer": "I"}]')).toThrow("no context and supporting_facts");
    const bad = { ...FILMS[0], context: [["The Kiln"]] };
    expect(() => parseHotpot(JSON.stringify([bad]))).toThrow('context: ["The Kiln"] is no pair');
    expect(() => parseHotpot(JSON.stringify([FILMS[2]]))).toThrow("none of the HotpotQA file's 1 questions");
  });
});

describe("question answering over given data", () => {
  const squad = squadTask(JSON.stringify(ARTICLES));
  const hotpot = hotpotTask(JSON.stringify(FILMS));

  it.each([squad, hotpot])("$name: same bytes, length kept, evidence found", (task) => {
    for (const length of [900, 2500])
      for (const seed of [1, 2, 3, 4, 5, 6]) check(task, task.make(options(seed, length)), options(seed, length));
  });

  it("marks the answer in its paragraph, and asks all that a paragraph answers", () => {
    const all = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10].map((seed) => squad.make(options(seed, 900)));
    for (const made of all)
      made.questions.forEach((question, i) => {
        expect(evidenceOf(made, i)).toEqual([question.answer]);
        expect(question.references).toContain(question.answer);
      });
    expect(all.some(({ questions }) => questions.length === 2)).toBe(true);
  });

  it("marks the supporting sentences", () => {
    for (const seed of [1, 2, 3, 4, 5, 6]) {
      const made = hotpot.make(options(seed, 900));
      expect(evidenceOf(made)).toEqual(
        made.questions[0].answer === "yes"
          ? ["Tavi is a town.", "Orl is a town with a mill."]
          : ["It was made by Jo Marsh.", "Jo Marsh was born in Orl."],
      );
    }
  });

  it("takes paragraphs of the same article first, and each gold one once", () => {
    for (let seed = 1; seed <= 20; seed++) {
      const made = squad.make(options(seed, 420));
      const documents = documentsOf(made);
      const gold = documents.filter((text) => text.includes(made.questions[0].answer));
      expect(gold.length).toBeGreaterThan(0);
      if (made.questions[0].text.includes("bell")) continue;
      if (documents.length <= 3) expect(documents.some((text) => SCHOOL.startsWith(text))).toBe(false);
      const whole = [MILL, BRIDGE, MARKET].filter((text) => documents.includes(text));
      expect(whole.length).toBeGreaterThan(0);
    }
    const long = squad.make(options(1, 4000));
    const [start] = long.questions[0].evidence[0];
    const own = documentsOf(long).filter((text) => text === goldOf(long, start));
    expect(own.length).toBe(1);
  });

  it("puts the gold paragraph anywhere", () => {
    const depths = Array.from({ length: 20 }, (_, seed) => {
      const { document, questions } = squad.make(options(seed, 1500));
      return questions[0].evidence[0][0] / document.length;
    });
    expect(Math.min(...depths)).toBeLessThan(0.25);
    expect(Math.max(...depths)).toBeGreaterThan(0.75);
  });

  it("shares questions between lengths, and refuses one without room", () => {
    for (const task of [squad, hotpot]) {
      const [short, long] = [900, 2500].map((length) => task.make(options(3, length)));
      expect(long.questions.map((q) => q.text)).toEqual(short.questions.map((q) => q.text));
      expect(() => task.make(options(1, 60))).toThrow(/questions-set\/\w+ needs \d+ tokens/);
    }
  });

  it("fills 128k tokens, over and over where a file is small", () => {
    // four characters for a token
    const count = (document: string, question: string, prefix = "") =>
      Math.ceil((document.length + question.length + prefix.length) / 4);
    for (const task of [squad, hotpot]) {
      const made = task.make({ seed: 1, length: 131072, promptTokens: count, filler: [] });
      const tokens = caseTokens(made, { promptTokens: count });
      expect(tokens).toBeLessThanOrEqual(131072);
      expect(tokens).toBeGreaterThan(0.95 * 131072);
      const gold = documentsOf(made).filter((text) => text === goldOf(made, made.questions[0].evidence[0][0]));
      expect(gold.length).toBe(1);
    }
  });

  it("is put to a model, with the answer's tokens as evidence", async () => {
    const model = await load("models/tiny", { worker: false, threads: 1, cache: "float32" });
    try {
      const format = new PromptFormat(model);
      const made = squad.make({ ...options(1, 900), promptTokens: (d, q, p) => format.tokens(d, q, p) });
      for (const question of made.questions) {
        const { ids, evidence } = format.prompt(made.document, question);
        expect(model.tokenizer.decode(evidence.map((i) => ids[i]))).toContain(question.answer);
      }
      const filler = [{ genre: "none", split: "held-out" as const, sentences: [BRIDGE] }];
      const { records } = await runBench({
        ...{ models: [model], methods: ["full"], lengths: [900], tasks: [squad, hotpot], filler },
        ...{ cases: 2, seeds: 1, maxTokens: 4 },
      });
      expect(records.map((r) => [r.task, r.coverage])).toEqual([
        [squad.name, 1],
        [squad.name, 1],
        [hotpot.name, 1],
        [hotpot.name, 1],
      ]);
    } finally {
      await model.close();
    }
  });

  it("is part of RULER where it is given", () => {
    const catalog = new Map([...taskCatalog, [squad.name, squad], [hotpot.name, hotpot]]);
    const names = tasksByName(["ruler"], catalog).map((task) => task.name);
    expect(names.length).toBe(13);
    expect(names.filter((name) => name.startsWith("questions"))).toEqual([squad.name, hotpot.name]);
    expect(tasksByName(["questions-set"], catalog).length).toBe(2);
  });
});

/** The document in which a place lies. */
function goldOf({ document }: TaskCase, at: number): string {
  const from = document.lastIndexOf(":\n", at) + 2;
  const next = document.indexOf("\n\nDocument ", at);
  return document.slice(from, next < 0 ? undefined : next);
}

describe("question answering over published data", () => {
  it.skipIf(!existsSync(SQUAD))("SQuAD's questions of XQuAD", () => {
    const text = readFileSync(SQUAD, "utf8");
    const { questions, passages } = parseSquad(text);
    expect([questions.length, passages.length]).toEqual([1190, 240]);
    for (const { gold, evidence, answers } of questions)
      expect(gold[0].text.slice(...evidence[0].span)).toBe(answers[0]);
    const task = squadTask(text);
    for (const seed of [1, 2]) check(task, task.make(options(seed, 5000)), options(seed, 5000));
  });

  it.skipIf(!existsSync(HOTPOT))("HotpotQA's questions of IRCoT", () => {
    const list = readFileSync(HOTPOT, "utf8")
      .split("\n")
      .filter((line) => line !== "")
      .map((line) => hotpotForm(JSON.parse(line) as IrcotQuestion))
      .filter((one) => one.supporting_facts.length > 0);
    expect(list.length).toBeGreaterThan(40);
    const task = hotpotTask(JSON.stringify(list));
    for (const seed of [1, 2]) check(task, task.make(options(seed, 5000)), options(seed, 5000));
  });
});

interface IrcotQuestion {
  readonly question: string;
  readonly answer: string;
  readonly paragraphs: readonly { readonly title: string; readonly text: string }[];
  readonly gold: readonly number[];
  readonly evidence?: readonly { readonly title: string; readonly text: string }[];
}

/** A question of the other set in HotpotQA's form: paragraphs cut before and after the evidence. */
function hotpotForm({ question, answer, paragraphs, evidence = [] }: IrcotQuestion) {
  const context = paragraphs.map(({ title, text }): [string, string[]] => {
    const cuts = evidence.flatMap((e) => {
      const at = e.title === title ? text.indexOf(e.text) : -1;
      return at < 0 ? [] : [at, at + e.text.length];
    });
    const places = [...new Set([0, ...cuts, text.length])].sort((a, b) => a - b);
    return [title, places.slice(1).map((end, i) => text.slice(places[i], end))];
  });
  const supporting = evidence.flatMap((e): [string, number][] => {
    const at = context.find(([title]) => title === e.title)?.[1].indexOf(e.text) ?? -1;
    return at < 0 ? [] : [[e.title, at]];
  });
  return { question, answer, supporting_facts: supporting, context };
}
