import { beforeAll, describe, expect, it } from "vitest";
import { createChatTemplate } from "../../models/chat.js";
import type { Tokenizer } from "../../models/index.js";
import { trainTokenizer } from "../../train/bpe.js";
import { type Filler, filler } from "./filler.js";
import {
  CHAT_TEMPLATE,
  questionPrompt,
  SPECIAL_TOKEN_LIST,
  tokenWeights,
  trainingText,
  trainingTokens,
  userMessage,
} from "./format.js";
import { FRAMES, frameSplit, PROPERTIES } from "./frames.js";
import { type DocumentOptions, generateDocument } from "./generate.js";
import { loadFiller } from "./load-filler.js";
import { oracle } from "./oracle.js";
import { hash } from "./random.js";
import { type DocumentCase, FORMS, KINDS, type Kind, RENDERERS, SPLITS, type Span } from "./types.js";

/** Two genres of the test's own, so that pinned bytes do not change with data/filler. */
const PROSE = [
  filler(
    "rain",
    "It rained all night. By morning the street was a river! Nobody minded much, since the work was done.",
  ),
  filler("bread", "Bread wants patience. Flour and water do the rest, and the oven waits.", "held-out"),
];

const SEEDS = Array.from({ length: 30 }, (_, i) => i);

function made(kind: Kind | readonly Kind[], seed: number, more: Partial<DocumentOptions> = {}): DocumentCase {
  return generateDocument({ seed, kind, length: 1600, filler: PROSE, questions: 3, ...more });
}

/** Every kind, in both splits, with several seeds. */
function* cases(): Generator<[Kind, DocumentCase, (typeof SPLITS)[number]]> {
  for (const kind of KINDS)
    for (const split of SPLITS) for (const seed of SEEDS) yield [kind, made(kind, seed, { split }), split];
}

const inside = ([a, b]: Span, [from, to]: Span) => from <= a && b <= to;

describe("documents with known answers", () => {
  let all: [Kind, DocumentCase, (typeof SPLITS)[number]][] = [];
  beforeAll(() => {
    all = [...cases()];
  });

  it("answers every question from the text alone, and finds one answer only", () => {
    for (const [kind, document] of all)
      for (const question of document.questions)
        expect(oracle(document.document, question.text), `${kind}: ${question.text}\n${document.document}`).toBe(
          question.stated,
        );
  });

  it("loses the answer with its evidence", () => {
    for (const kind of ["single", "two-hop", "distractors", "pairs", "reversed"] as const)
      for (const seed of SEEDS) {
        const { document, questions } = made(kind, seed);
        for (const { text, evidence, stated } of questions) {
          const [start, end] = evidence.at(-1)!;
          expect(oracle(document.slice(0, start) + document.slice(end), text)).not.toBe(stated);
        }
      }
  });

  it("answers the last of several values with the one before it when the last is cut out", () => {
    for (const seed of SEEDS) {
      const { document, questions } = made("latest", seed, { questions: 1 });
      const [{ text, evidence, stated }] = questions;
      const rest = document.slice(0, evidence[0][0]) + document.slice(evidence[0][1]);
      expect([stated, "not stated"]).not.toContain(oracle(rest, text));
    }
  });

  it("answers in verbatim spans that lie in the evidence", () => {
    for (const [kind, { document, questions }] of all)
      for (const { spans, evidence, stated, slot, planted } of questions) {
        const cut = spans.map(([start, end]) => document.slice(start, end));
        if (kind !== "not-stated" && kind !== "counting") {
          expect(cut.join(kind === "rewriting" ? "\n" : ", ")).toBe(stated);
          for (const span of spans) expect(evidence.some((whole) => inside(span, whole))).toBe(true);
        } else expect(spans).toEqual([]);
        if (kind === "two-hop") expect(evidence).toHaveLength(2);
        if (kind === "several") expect(slot).toBe("what");
        if (planted) expect(document.slice(...planted.span)).toContain(planted.answer);
      }
  });

  it("leaves no mark of its making, and keeps to the length", () => {
    for (const [, { document, questions }] of all) {
      expect(document.length).toBeLessThanOrEqual(1600);
      expect(document + questions.map((one) => one.text).join("")).not.toMatch(/\p{Cc}(?<!\n)|undefined|\s$| {2}/u);
    }
    const words = (text: string) => text.split(/\s+/).length;
    for (const renderer of RENDERERS) {
      const { document } = made("single", 5, { length: 900, count: words, renderers: [renderer] });
      expect(words(document)).toBeLessThanOrEqual(900);
      expect(words(document)).toBeGreaterThan(850);
    }
  });

  it("gives the same bytes for the same seed", () => {
    const bytes = (seed: number) => hash(JSON.stringify(made(["single", "latest", "two-hop", "form"], seed)));
    expect([1, 2, 3].map(bytes)).toEqual([1, 2, 3].map(bytes));
    expect([1, 2, 3].map(bytes)).toEqual([197336918, 1270240471, 2318994099]);
  });

  it("asserts opinions that are wrong, and plants what is no answer", () => {
    for (const [kind, { questions }, split] of all)
      for (const one of questions) {
        if (kind === "wrong-opinion") {
          expect(one.wrong).not.toBe(one.stated);
          expect(one.text).toContain(one.wrong);
          expect(one.answer).toBe(one.stated);
        }
        if (kind !== "planted") continue;
        expect(one.planted!.answer).not.toBe(one.stated);
        expect(one.answer).toBe(one.planted!.obeyed ? one.planted!.answer : one.stated);
        if (split === "held-out") expect(one.planted!.obeyed).toBe(false);
      }
    const obeyed = SEEDS.filter((seed) => made("planted", seed).questions[0].planted!.obeyed).length;
    const places = SEEDS.map((seed) => made("planted", seed)).map(
      ({ document, questions }) => questions[0].planted!.span[0] / document.length,
    );
    expect(places.filter((place) => place < 0.3).length).toBeGreaterThan(3);
    expect(places.filter((place) => place > 0.6).length).toBeGreaterThan(3);
    expect(obeyed).toBeGreaterThan(1);
    expect(obeyed).toBeLessThan(16);
  });

  it("marks instructions about the form, of which two may contradict each other", () => {
    const questions = all.filter(([kind]) => kind === "form").flatMap(([, one]) => one.questions);
    for (const { text, forms, answer, stated } of questions) {
      expect(answer).toBe(forms![0].answer);
      expect(answer).toContain(stated);
      for (const form of forms!) expect(text.slice(...form.span)).toMatch(/^(Important: )?Write the answer .*\.$/);
    }
    const two = questions.filter((one) => one.forms!.length === 2);
    expect(two.length).toBeGreaterThan(questions.length / 4);
    const first = two.filter((one) => one.forms![0].span[0] < one.forms![1].span[0]).length;
    expect(first).toBeGreaterThan(two.length / 4);
    expect(first).toBeLessThan((two.length * 3) / 4);
  });

  it("says that something is not stated only where a neighbouring fact stands", () => {
    for (const seed of SEEDS) {
      const { document, questions, verbs } = made("not-stated", seed, { questions: 1 });
      expect(questions[0].answer).toBe("not stated");
      expect(oracle(document, questions[0].text)).toBe("not stated");
      expect(verbs.length).toBeGreaterThan(0);
    }
  });

  it("keeps entities, verbs and filler of the splits apart", () => {
    const of = (split: string) => all.filter(([, , one]) => one === split).map(([, one]) => one);
    const entities = (split: string) => new Set(of(split).flatMap((one) => one.entities));
    const real = (split: string) => new Set(of(split).flatMap((one) => (one.pseudo ? [] : one.verbs)));
    const held = entities("held-out");
    expect(held.size).toBeGreaterThan(500);
    expect([...entities("train")].filter((name) => held.has(name))).toEqual([]);
    const heldVerbs = real("held-out");
    expect(heldVerbs.size).toBeGreaterThan(20);
    expect([...real("train")].filter((verb) => heldVerbs.has(verb))).toEqual([]);
    for (const [, { document }, split] of all) {
      expect(document.includes("Bread") && split === "train").toBe(false);
      expect(document.includes("rained") && split === "held-out").toBe(false);
    }
    const whole = made("single", 1, { split: "held-out", frames: "train", pseudo: 0 });
    for (const verb of whole.verbs) expect(frameSplit(FRAMES.find((one) => one.base === verb)!)).toBe("train");
  });

  it("uses all it has: verbs, properties, forms and layouts", () => {
    expect(FRAMES.length).toBeGreaterThanOrEqual(200);
    const verbs = new Set<string>();
    const forms = new Set<string>();
    const layouts = new Set<string>();
    const slots = new Set<string>();
    let text = "";
    for (let seed = 0; seed < 400; seed++) {
      const one = made("single", seed, { frames: "all", filler: [], length: 3000, questions: 8 });
      for (const verb of one.verbs) verbs.add(verb);
      for (const form of one.forms) forms.add(form);
      for (const { slot } of one.questions) slots.add(slot!);
      layouts.add(one.renderer);
      text += one.document;
    }
    expect(FRAMES.filter((frame) => !verbs.has(frame.base)).map((frame) => frame.base)).toEqual([]);
    expect(PROPERTIES.filter(({ name }) => !text.includes(name)).map(({ name }) => name)).toEqual([]);
    expect([...forms].sort()).toEqual([...FORMS].sort());
    expect([...layouts].sort()).toEqual([...RENDERERS].sort());
    expect(slots.size).toBe(8);
  });

  it("makes up verbs and properties where it is told to, and answers of them too", () => {
    const known = new Set(FRAMES.map((frame) => frame.base));
    for (const kind of ["single", "latest", "two-hop", "not-stated", "distractors"] as const)
      for (const seed of SEEDS) {
        const one = made(kind, seed, { coined: 1, pseudo: 0 });
        expect(one.verbs.filter((verb) => known.has(verb))).toEqual([]);
        expect(PROPERTIES.filter(({ name }) => one.document.includes(`${name} of the`))).toEqual([]);
        for (const { text, stated } of one.questions) expect(oracle(one.document, text), text).toBe(stated);
      }
    expect(made("single", 4, { pseudo: 0 }).verbs.every((verb) => known.has(verb))).toBe(true);
    expect(() => made("single", 1, { coined: -1 })).toThrow(/coined is -1/);
  });

  it("does not show by the words around a fact which question it answers", () => {
    const counts = new Map<string, { first: number; all: number }>();
    for (let seed = 0; seed < 400; seed++) {
      const { document, questions } = made("single", seed, {
        questions: 2,
        facts: 2,
        filler: [],
        renderers: ["prose"],
      });
      if (questions.length < 2) continue;
      const lead = document.slice(0, document.indexOf(":"));
      const count = counts.get(lead) ?? { first: 0, all: 0 };
      counts.set(lead, count);
      count.all++;
      if (questions[0].evidence[0][0] < questions[1].evidence[0][0]) count.first++;
    }
    expect(counts.size).toBe(4);
    for (const [lead, { first, all }] of counts) {
      expect(all, lead).toBeGreaterThan(50);
      // a fair coin is this far off once in some 15000 times
      expect(Math.abs(first / all - 0.5), lead).toBeLessThan(2 / Math.sqrt(all));
    }
  });

  it("asks for the slots that it is given", () => {
    // an event that has no time is asked for something else
    for (const slots of [["who", "what"], ["value"], ["when"]] as const)
      for (const seed of SEEDS.slice(0, 10))
        for (const { slot } of made("single", seed, { slots }).questions)
          expect(slots[0] === "when" ? "when who what where whom which howMany".split(" ") : slots).toContain(slot);
  });

  it("takes only the layouts and forms that it is given, and puts evidence at the depth asked for", () => {
    const one = made("single", 3, { renderers: ["prose"], forms: ["passive"] });
    expect([one.renderer, one.forms]).toEqual(["prose", ["passive"]]);
    for (const depth of [0, 0.5, 1]) {
      const { document, questions } = made("single", 4, { length: 8000, renderers: ["prose"], questions: 1, depth });
      expect(Math.abs(questions[0].evidence[0][0] / document.length - depth)).toBeLessThan(0.08);
    }
    expect(made("pairs", 1, { facts: 2 }).document.split("\n")).toHaveLength(2);
  });

  it("refuses what it cannot make", () => {
    expect(() => made("single", 1, { length: 10 })).toThrow(/no room/);
    expect(() => made("pairs", 1, { length: 3 })).toThrow(/no room/);
    expect(() => made("riddle" as Kind, 1)).toThrow(/no kind "riddle"/);
    expect(() => made([], 1)).toThrow(/at least one/);
    expect(() => made("single", 1, { pseudo: 2 })).toThrow(/pseudo is 2/);
    expect(() => filler("empty", " \n ")).toThrow(/no sentence/);
  });
});

describe("the oracle", () => {
  const text = [
    "Note: It was Dana Orlo who gave the red coat to Milo Veer in Ashford.",
    "Later, the red coat was sold by Milo Veer on 12 March. Tora Lind was asked to help. She mended the red coat at Dorby Hall.",
    "In all, 14 steel pumps were repaired by Dana Orlo. KX-482 is the serial number of the red coat.",
  ].join(" ");
  const answers: readonly [string, string][] = [
    ["To whom did Dana Orlo give the red coat?", "Milo Veer"],
    ["Where was the red coat given?", "Ashford"],
    ["When was the red coat sold by Milo Veer?", "12 March"],
    ["Who mended the red coat?", "Tora Lind"],
    ["Where did Tora Lind mend the red coat?", "Dorby Hall"],
    ["How many steel pumps did Dana Orlo repair?", "14"],
    ["What is the serial number of the thing that Tora Lind mended?", "KX-482"],
    ["Where did Milo Veer sell the red coat?", "not stated"],
    ["Who gave the blue coat?", "not stated"],
  ];
  it.each(answers)("%s %s", (question, answer) => {
    expect(oracle(text, question)).toBe(answer);
  });

  it("reports two answers as both", () => {
    expect(oracle(`${text} Ana Biro mended the red coat.`, "Who mended the red coat?")).toBe("Tora Lind | Ana Biro");
  });
});

describe("the training format", () => {
  const sample = made(["single", "several", "not-stated"], 9);

  it("ends no prompt in a space, and is what the training text begins with", () => {
    for (const [i, { text }] of sample.questions.entries()) {
      const prompt = questionPrompt(sample.document, text);
      expect(prompt).toMatch(/<\|assistant\|>$/);
      if (i === 0) expect(trainingText(sample).text.startsWith(prompt)).toBe(true);
    }
  });

  it("is what the chat template renders", () => {
    const template = createChatTemplate(CHAT_TEMPLATE);
    const messages = sample.questions.flatMap((question, i) => [
      { role: "user", content: i === 0 ? userMessage(sample.document, question.text) : question.text },
      { role: "assistant", content: question.answer },
    ]);
    expect(template.render(messages).text).toBe(trainingText(sample).text);
    expect(template.render(messages.slice(0, 1), { addGenerationPrompt: true }).text).toBe(
      questionPrompt(sample.document, sample.questions[0].text),
    );
  });

  it("weighs answers, with their space and their end", () => {
    const { text, answers, weights, document } = trainingText(sample, { answer: 7, rest: 0.5 });
    expect(text.slice(...document)).toBe(sample.document);
    expect(answers.map(([start, end]) => text.slice(start, end))).toEqual(
      sample.questions.map(({ answer }) => ` ${answer}<|end|>`),
    );
    expect(weights[answers[0][0] - 1]).toBe(0.5);
    expect(weights[answers[0][0]]).toBe(7);
    expect(weights[answers[0][1] - 1]).toBe(7);
    expect(weights[answers[0][1]]).toBe(0.5);
    const offsets: Span[] = [
      [0, 2],
      [2, 3],
      [3, 3],
    ];
    expect([...tokenWeights(offsets, [1, 9, 2, 4])]).toEqual([9, 2, 4]);
  });
});

describe("under a byte-level tokenizer with digits apart", () => {
  let tokenizer: Tokenizer;
  beforeAll(() => {
    const texts = Array.from({ length: 60 }, (_, i) => trainingText(made(["single", "latest"], 1000 + i)).text);
    tokenizer = trainTokenizer(texts, { vocabulary: 700, special: SPECIAL_TOKEN_LIST });
  });

  const ids = (text: string) => [...tokenizer.encode(text, { special: false }).ids];
  const holds = (whole: readonly number[], part: readonly number[]) =>
    whole.some((_, i) => part.every((id, j) => whole[i + j] === id));

  it("has every answer's tokens in the document's", () => {
    const copied = KINDS.filter((kind) => !["not-stated", "counting", "rewriting", "several"].includes(kind));
    for (const kind of copied)
      for (const seed of SEEDS.slice(0, 12)) {
        const { document, questions } = made(kind, seed);
        const whole = ids(`<|user|>${document}\n\n`);
        for (const { stated } of questions)
          expect(holds(whole, ids(`<|assistant|> ${stated}<|end|>`).slice(1, -1)), `${stated} in\n${document}`).toBe(
            true,
          );
      }
  });

  it("gives tokens with weights, the special ones whole", () => {
    const sample = made("single", 2);
    const { ids: tokens, weights } = trainingTokens(sample, tokenizer);
    expect(tokens[0]).toBe(SPECIAL_TOKEN_LIST.indexOf("<|begin|>"));
    const weighted = Array.from(tokens).filter((_, i) => weights[i] === 10);
    expect(tokenizer.decode(weighted)).toBe(sample.questions.map(({ answer }) => ` ${answer}<|end|>`).join(""));
    expect(weights[0]).toBe(1);
  });
});

describe("the filler of the project", () => {
  let texts: Filler[] = [];
  beforeAll(async () => {
    texts = await loadFiller();
  });

  it("has genres of both splits, and states nothing that a question asks", () => {
    expect(new Set(texts.map((text) => text.split))).toEqual(new Set(SPLITS));
    for (const seed of SEEDS) {
      const { document, questions } = made("single", seed, { filler: texts, length: 6000 });
      expect(document.length).toBeGreaterThan(5500);
      for (const one of questions) expect(oracle(document, one.text)).toBe(one.stated);
    }
  });

  it("is cut at the ends of sentences", () => {
    for (const { sentences } of texts)
      for (const sentence of sentences) expect(sentence).toMatch(/^["“'‘]?[A-Z0-9].*[.!?:]["”'’]?$/s);
  });
});
