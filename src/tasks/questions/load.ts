import { FoveaError } from "../../error.js";
import type { Span } from "../documents/index.js";

/** A paragraph, in sentences that together are its text. */
export interface Passage {
  /** A text that is the same in two places of a file is one passage. */
  readonly text: string;
  /** Where each sentence of `text` ends, the last at its end. */
  readonly ends: readonly number[];
}

/** A question about a text, with the passages that answer it. */
export interface PassageQuestion {
  readonly question: string;
  /** Any of them is right. */
  readonly answers: readonly string[];
  /** What the first answer rests on: spans of the passages, by their index in `gold`. */
  readonly evidence: readonly { readonly passage: number; readonly span: Span }[];
  readonly gold: readonly Passage[];
  /** Passages that are like the gold ones: of the same article, or given with the question. */
  readonly near: readonly Passage[];
}

/** The questions of a file and all its passages, none twice. */
export interface PassageSet {
  readonly questions: readonly PassageQuestion[];
  readonly passages: readonly Passage[];
}

const SQUAD_FORM =
  'expected {"data": [{"paragraphs": [{"context": "...", "qas": [...]}]}]} as in SQuAD v1.1, v2.0 and XQuAD, or JSON lines with context and qas';
const HOTPOT_FORM =
  'expected a list of {"question", "answer", "supporting_facts": [[title, sentence]], "context": [[title, [sentences]]]}';
const LEAST_FACTS =
  "give a file in which each question's paragraphs are in its context (hotpot_dev_distractor_v1.json)";

type Json = Readonly<Record<string, unknown>>;

/**
 * Reads SQuAD's form (v1.1, v2.0, XQuAD): `data[].paragraphs[].context` and `qas`; or JSON lines, a paragraph in each.
 * Questions that have no answer (v2.0) are left out.
 * @throws FoveaError `bad-file` naming the place
 */
export function parseSquad(text: string): PassageSet {
  const passages = new Passages();
  const questions = articlesOf(text).flatMap(({ at, paragraphs }) => {
    const own = paragraphs.map((paragraph, i) => {
      const where = at(i);
      if (!isObject(paragraph) || typeof paragraph.context !== "string" || !Array.isArray(paragraph.qas))
        throw new FoveaError("bad-file", `${where} has no context and qas`, { hint: SQUAD_FORM });
      return { where, passage: passages.of(paragraph.context), qas: paragraph.qas as readonly unknown[] };
    });
    return own.flatMap(({ where, passage, qas }) => {
      const near = [...new Set(own.map((other) => other.passage))].filter((other) => other !== passage);
      return qas.flatMap((qa, i) => squadQuestion(qa, `${where}, question ${i + 1}`, passage, near));
    });
  });
  if (questions.length === 0)
    throw new FoveaError("bad-file", "the SQuAD file holds no question with an answer", { hint: SQUAD_FORM });
  return { questions, passages: passages.all() };
}

/**
 * Reads HotpotQA's form: `context` is a list of titles with their sentences, `supporting_facts` of titles with a sentence's
 * number. Questions whose supporting paragraphs are not in their context (as in the full-wiki setting) are left out.
 * @throws FoveaError `bad-file` naming the place
 */
export function parseHotpot(text: string): PassageSet {
  const list = parseJson(text, "HotpotQA", HOTPOT_FORM);
  if (!Array.isArray(list)) throw new FoveaError("bad-file", "the HotpotQA file is no list", { hint: HOTPOT_FORM });
  const passages = new Passages();
  const questions = list.flatMap((one: unknown, i) => hotpotQuestion(one, `HotpotQA, question ${i + 1}`, passages));
  if (questions.length === 0)
    throw new FoveaError("bad-file", `none of the HotpotQA file's ${list.length} questions has its paragraphs`, {
      hint: LEAST_FACTS,
    });
  return { questions, passages: passages.all() };
}

interface Article {
  /** What an error calls a paragraph. */
  readonly at: (paragraph: number) => string;
  readonly paragraphs: readonly unknown[];
}

function articlesOf(text: string): Article[] {
  const lines = text.split("\n").flatMap((line, i) => (line.trim() === "" ? [] : [{ line, number: i + 1 }]));
  // one document may be laid out over many lines; a line of JSON lines is an object by itself
  if (lines.length > 1 && /^\s*\{.*\}\s*$/.test(lines[0].line))
    return lines.map(({ line, number }) => ({
      at: () => `SQuAD, line ${number}`,
      paragraphs: [parseJson(line, `SQuAD, line ${number}`, SQUAD_FORM)],
    }));
  const whole = parseJson(text, "SQuAD", SQUAD_FORM);
  if (isObject(whole) && typeof whole.context === "string") return [{ at: () => "SQuAD, line 1", paragraphs: [whole] }];
  if (!isObject(whole) || !Array.isArray(whole.data))
    throw new FoveaError("bad-file", "the SQuAD file has no data", { hint: SQUAD_FORM });
  return whole.data.map((article: unknown, a): Article => {
    if (!isObject(article) || !Array.isArray(article.paragraphs))
      throw new FoveaError("bad-file", `SQuAD, article ${a + 1} has no paragraphs`, { hint: SQUAD_FORM });
    return { at: (p) => `SQuAD, article ${a + 1}, paragraph ${p + 1}`, paragraphs: article.paragraphs };
  });
}

function squadQuestion(qa: unknown, where: string, passage: Passage, near: readonly Passage[]): PassageQuestion[] {
  if (!isObject(qa) || typeof qa.question !== "string" || !Array.isArray(qa.answers))
    throw new FoveaError("bad-file", `${where} has no question and answers`, { hint: SQUAD_FORM });
  if (qa.is_impossible === true || qa.answers.length === 0) return [];
  const found = qa.answers.map((answer: unknown): { text: string; span: Span } => {
    const start = isObject(answer) ? (answer.answer_start ?? answer.start) : undefined;
    if (!isObject(answer) || typeof answer.text !== "string" || answer.text === "" || typeof start !== "number")
      throw new FoveaError("bad-file", `${where}: an answer has no text and answer_start`, { hint: SQUAD_FORM });
    const span = answerSpan(passage.text, answer.text, start);
    if (span) return { text: answer.text, span };
    throw new FoveaError(
      "bad-file",
      `${where}: its answer ${JSON.stringify(answer.text)} does not stand in its paragraph`,
      {
        hint: "an answer is a piece of its context, word for word: correct it or leave the question out",
      },
    );
  });
  const [{ span }] = found;
  const answers = [...new Set(found.map((answer) => answer.text))];
  return [{ question: qa.question.trim(), answers, evidence: [{ passage: 0, span }], gold: [passage], near }];
}

/** Where an answer stands: at its place in UTF-16 units, in code points (as the files count), or where it is nearest. */
function answerSpan(context: string, answer: string, start: number): Span | undefined {
  if (context.startsWith(answer, start)) return [start, start + answer.length];
  const counted = Array.from(context).slice(0, start).join("").length;
  if (context.startsWith(answer, counted)) return [counted, counted + answer.length];
  let nearest: number | undefined;
  for (let at = context.indexOf(answer); at >= 0; at = context.indexOf(answer, at + 1))
    if (nearest === undefined || Math.abs(at - start) < Math.abs(nearest - start)) nearest = at;
  return nearest === undefined ? undefined : [nearest, nearest + answer.length];
}

function hotpotQuestion(one: unknown, where: string, passages: Passages): PassageQuestion[] {
  if (!isObject(one) || typeof one.question !== "string" || typeof one.answer !== "string")
    throw new FoveaError("bad-file", `${where} has no question and answer`, { hint: HOTPOT_FORM });
  if (!Array.isArray(one.context) || !Array.isArray(one.supporting_facts))
    throw new FoveaError("bad-file", `${where} has no context and supporting_facts`, { hint: HOTPOT_FORM });
  const given = one.context.map((entry: unknown) => {
    const [title, sentences] = pairOf(entry, `${where}, context`);
    if (typeof title !== "string" || !Array.isArray(sentences))
      throw new FoveaError("bad-file", `${where}: a paragraph of its context is no title with sentences`, {
        hint: HOTPOT_FORM,
      });
    const pieces = sentences.map(String);
    return { title, head: title.length + 1, pieces, passage: passages.of(`${title}\n${pieces.join("")}`) };
  });
  const facts = one.supporting_facts.map((fact: unknown) => {
    const [title, sentence] = pairOf(fact, `${where}, supporting_facts`);
    return { paragraph: given.find((paragraph) => paragraph.title === title), sentence: Number(sentence) };
  });
  const gold = [...new Set(facts.map((fact) => fact.paragraph?.passage))];
  if (gold.length === 0 || gold.includes(undefined)) return [];
  const held = gold.filter((passage) => passage !== undefined);
  const evidence = facts.flatMap(({ paragraph, sentence }) => {
    // the data names a few sentences that its paragraphs do not have
    if (paragraph?.pieces[sentence] === undefined) return [];
    const start = paragraph.head + paragraph.pieces.slice(0, sentence).join("").length;
    const text = paragraph.pieces[sentence];
    const indent = text.length - text.trimStart().length;
    const span: Span = [start + indent, start + Math.max(indent, text.trimEnd().length)];
    return [{ passage: held.indexOf(paragraph.passage), span }];
  });
  const all = held.map((passage, i) => ({ passage: i, span: [0, passage.text.length] as const }));
  const near = [...new Set(given.map((paragraph) => paragraph.passage))].filter((passage) => !held.includes(passage));
  const { question, answer } = one;
  return [
    { question: question.trim(), answers: [answer], evidence: evidence.length > 0 ? evidence : all, gold: held, near },
  ];
}

/** Passages by their text. */
class Passages {
  readonly #byText = new Map<string, Passage>();

  of(text: string): Passage {
    const known = this.#byText.get(text);
    if (known) return known;
    const passage = { text, ends: sentenceEnds(text) };
    this.#byText.set(text, passage);
    return passage;
  }

  all(): Passage[] {
    return [...this.#byText.values()];
  }
}

function sentenceEnds(text: string): number[] {
  // a stop of Chinese or Japanese has no space behind it
  const inner = [...text.matchAll(/(?<=[.!?؟।]["”’)]?)\s+(?=\S)|(?<=[。！？])(?=.)/gu)].map((gap) => gap.index);
  return [...inner, text.length];
}

const isObject = (value: unknown): value is Json =>
  typeof value === "object" && value !== null && !Array.isArray(value);

function pairOf(value: unknown, where: string): readonly [unknown, unknown] {
  if (Array.isArray(value) && value.length === 2) return [value[0], value[1]];
  throw new FoveaError("bad-file", `${where}: ${JSON.stringify(value)?.slice(0, 60)} is no pair`, {
    hint: HOTPOT_FORM,
  });
}

function parseJson(text: string, what: string, form: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new FoveaError("bad-file", `${what} is no JSON: ${why}`, { hint: form, cause });
  }
}
