import { FoveaError } from "../../error.js";
import { run } from "../documents/filler.js";
import type { Filler } from "../documents/index.js";
import { contains } from "../metrics.js";
import { take } from "../ruler/haystack.js";
import { stream } from "../ruler/words.js";
import { type CaseOptions, fillerOf, largestCase, type Task, type TaskCase } from "../task.js";

/** Places of the haystack, from its beginning to its end. */
export const DEPTHS = 26;
const BOOKS = 5;
/** Sentences of a book: the needle's place is in the middle, and the window moves around it. */
const BOOK = 8000;
/** A distractor stands at least this far from the needle. */
const FREE_ZONE = 0.2;
const NEW_TOKENS = 32;

/** A needle with the questions that it answers. `NAME` is the drawn name; `{1}`, `{2}` the test's arguments. */
export interface NeedleEntry {
  readonly id: string;
  readonly needle: string;
  readonly questions: Readonly<Record<string, string>>;
  /** Arguments of each test. */
  readonly tests: readonly (readonly string[])[];
  readonly names: readonly string[];
  /** A sentence with the question's words and no answer, by question. */
  readonly distractors?: Readonly<Record<string, string>>;
  /** The whole prompt, with {haystack} and {question}. */
  readonly template?: string;
}

/** First names that the filler does not have. */
export const NAMES = "Anneli Bastian Corvin Delphine Emeric Fenja Gwendal Hilmar Ilka Jorinde Kasimir Leontyne".split(
  " ",
);

/** Where things stand: landmark, city, country. */
export const LANDMARKS = [
  ["the Eiffel Tower", "Paris", "France"],
  ["the Colosseum", "Rome", "Italy"],
  ["the Brandenburg Gate", "Berlin", "Germany"],
  ["the Acropolis", "Athens", "Greece"],
  ["the Sagrada Familia", "Barcelona", "Spain"],
  ["the Charles Bridge", "Prague", "Czechia"],
  ["the Hagia Sophia", "Istanbul", "Turkey"],
  ["the Rijksmuseum", "Amsterdam", "Netherlands"],
  ["the Tivoli Gardens", "Copenhagen", "Denmark"],
  ["the Taj Mahal", "Agra", "India"],
  ["the Great Sphinx", "Giza", "Egypt"],
  ["Table Mountain", "Cape Town", "South Africa"],
] as const;

const TESTS = LANDMARKS.map((places) => [...places]);
const questions = {
  "one-hop": "Which character has been to {2}?",
  "two-hop": "Which character has been to the country {3}?",
  direct: "Which character lives next to {1}?",
};
const distractors = {
  "one-hop": "There was an article about {2}, where no character has been.",
  "two-hop": "There was an article about the country {3}, where no character has been.",
};

/** The project's own needles: somebody lives next to a landmark; who has been to its city, or its country? */
const OWN: readonly NeedleEntry[] = [
  { id: "lives", needle: "NAME lives next to {1}.", questions, distractors, tests: TESTS, names: NAMES },
  { id: "lives-inverted", needle: "Next to {1} lives NAME.", questions, distractors, tests: TESTS, names: NAMES },
];

const DOES: Readonly<Record<string, string>> = {
  "one-hop": "A needle that shares no word with its question: a landmark for a city.",
  "two-hop": "The same over two steps: a landmark for a country.",
  direct: "The control: the question has the needle's words.",
  "one-hop-distractor": "One step, with a sentence that has the question's words and no answer.",
};

/** NoLiMa (ICML 2025) over needles and prose of the project's own. */
export const nolimaSubstitutes: readonly Task[] = Object.keys(DOES).map((name) => ({
  ...nolimaTask(`nolima/${name}`, OWN, name.replace("-distractor", ""), name.endsWith("-distractor")),
  family: "nolima",
  does: DOES[name],
}));

/**
 * NoLiMa's own needle set (its JSON file) as tasks `nolima-set/onehop` and so on, hidden in the filler that is given; where
 * it has distractors, as `nolima-set/onehop-distractor` too.
 * @throws FoveaError `bad-file` for what is no needle set
 */
export function nolimaTasks(text: string): Task[] {
  const entries = parseNeedleSet(text);
  const kinds = [...new Set(entries.flatMap((entry) => Object.keys(entry.questions)))];
  return kinds.flatMap((kind) => {
    const asked = entries.filter((entry) => kind in entry.questions);
    const distracted = asked.filter((entry) => entry.distractors?.[kind] !== undefined);
    return [
      nolimaTask(`nolima-set/${kind}`, asked, kind, false),
      ...(distracted.length > 0 ? [nolimaTask(`nolima-set/${kind}-distractor`, distracted, kind, true)] : []),
    ];
  });
}

/** Reads a needle set: a list of objects with id, needle, questions and tests. */
export function parseNeedleSet(text: string): NeedleEntry[] {
  let list: unknown;
  try {
    list = JSON.parse(text);
  } catch (cause) {
    throw new FoveaError("bad-file", "the needle set is no JSON", { cause });
  }
  if (!Array.isArray(list)) throw new FoveaError("bad-file", "the needle set is no list of needles");
  return list.map((raw: unknown, i): NeedleEntry => {
    const one = raw as Record<string, unknown>;
    if (typeof one?.needle !== "string" || typeof one.questions !== "object" || typeof one.tests !== "object")
      throw new FoveaError("bad-file", `needle ${i + 1} lacks needle, questions or tests`);
    const tests = Object.values(one.tests as Record<string, { input_args?: unknown[] }>);
    const names =
      Array.isArray(one.character_set) && one.character_set.length > 0 ? one.character_set.map(String) : NAMES;
    return {
      id: String(one.id ?? i),
      needle: one.needle.replaceAll("{CHAR}", "NAME"),
      questions: one.questions as Record<string, string>,
      tests: tests.map((test) => (test.input_args ?? []).map(String)),
      names,
      ...(isTexts(one.distractors) && { distractors: one.distractors }),
      ...(typeof one.task_template === "string" && { template: one.task_template }),
    };
  });
}

const isTexts = (value: unknown): value is Record<string, string> =>
  typeof value === "object" && value !== null && Object.values(value).every((text) => typeof text === "string");

function nolimaTask(name: string, entries: readonly NeedleEntry[], kind: string, distracted: boolean): Task {
  return {
    name,
    family: name.split("/")[0],
    does: `NoLiMa: a needle that its question does not name, ${kind}.`,
    metric: "contains",
    make: (options) => makeCase(name, entries, kind, distracted, options),
    score: (reply, { references }) => contains(reply, references),
    oracle: (document, question) => lookUp(entries, kind, document, question),
  };
}

const fill = (text: string, args: readonly string[]) =>
  args.reduce((out, arg, i) => out.replaceAll(`{${i + 1}}`, arg), text);

function makeCase(
  name: string,
  entries: readonly NeedleEntry[],
  kind: string,
  distracted: boolean,
  options: CaseOptions,
): TaskCase {
  const seed = `${name} ${options.seed}`;
  const random = stream(seed, "needle");
  const entry = random.pick(entries);
  const args = random.pick(entry.tests);
  const who = random.pick(entry.names);
  const depth = random.int(0, DEPTHS - 1) / (DEPTHS - 1);
  const needle = fill(entry.needle.replaceAll("NAME", who), args);
  const question = fill(entry.questions[kind], args);
  const text = bookOf(random.int(0, BOOKS - 1), fillerOf(options), [...entry.names, ...args]);
  const other = distracted ? fill(entry.distractors?.[kind] ?? "", args) : undefined;
  const [before, after] = promptAround(entry.template, question);
  const make = (n: number): TaskCase => {
    const { document, start } = place(text, n, depth, needle, other);
    const at = before.length + start;
    return {
      document: before + document + after.context,
      questions: [
        {
          text: after.question,
          references: [who],
          answer: who,
          evidence: [[at, at + needle.length]],
          newTokens: NEW_TOKENS,
        },
      ],
    };
  };
  return largestCase(make, options, { most: BOOK / 2, task: name });
}

/** What stands before the haystack, and what stands after it within the document and as the question. */
function promptAround(template: string | undefined, question: string): [string, { context: string; question: string }] {
  if (template?.includes("{haystack}")) {
    const [before, after] = template.replace("{question}", question).split("{haystack}");
    return [before, { context: "", question: after.trim() }];
  }
  const head = "Below is a part of a book. Read it; a question about it follows.\n\n";
  const ask = `Answer by what the text says or strongly suggests, with nothing but the name.\nQuestion: ${question}`;
  return [head, { context: "", question: ask }];
}

/** A book of passages in random order, without sentences that hold any of the words. */
function bookOf(book: number, filler: readonly Filler[], without: readonly string[]): string[] {
  const clean = function* () {
    for (const sentence of run(filler, stream("nolima", `book ${book}`)))
      if (!without.some((word) => sentence.includes(word))) yield sentence;
  };
  return take(clean(), BOOK);
}

/**
 * A window of n sentences around the middle of a book, with the needle at `depth` of it: the window moves, so that the text
 * around the needle is the same at every depth.
 */
export function place(
  book: readonly string[],
  n: number,
  depth: number,
  needle: string,
  distractor?: string,
): { document: string; start: number } {
  const middle = book.length >> 1;
  // characters stand for tokens: the sentence at whose end the share is nearest to the depth
  let best = { k: 0, error: Number.POSITIVE_INFINITY };
  for (let k = 0; k <= n; k++) {
    const before = size(book, middle - k, middle);
    const all = before + size(book, middle, middle + n - k);
    const error = n === 0 ? 0 : Math.abs(before / all - depth);
    if (error < best.error) best = { k, error };
    if (before / Math.max(1, all) > depth + 0.1) break;
  }
  const before = book.slice(middle - best.k, middle);
  const after = book.slice(middle, middle + n - best.k);
  if (distractor) {
    // on the side with more room, in the middle of it
    const side = before.length >= after.length ? before : after;
    const share = side.length / Math.max(1, n);
    side.splice(share / 2 >= FREE_ZONE ? side.length >> 1 : side === before ? 0 : side.length, 0, distractor);
  }
  const head = before.length > 0 ? `${before.join(" ")} ` : "";
  const tail = after.length > 0 ? `\n${after.join(" ")}` : "";
  return { document: head + needle + tail, start: head.length };
}

function size(book: readonly string[], from: number, to: number): number {
  let n = 0;
  for (let i = from; i < to; i++) n += book[i].length + 1;
  return n;
}

/** Finds which test a question belongs to, and whose name stands in its needle. */
function lookUp(entries: readonly NeedleEntry[], kind: string, document: string, question: string): string {
  for (const entry of entries)
    for (const args of entry.tests) {
      if (!question.includes(fill(entry.questions[kind], args))) continue;
      const who = entry.names.find((name) => document.includes(fill(entry.needle.replaceAll("NAME", name), args)));
      if (who) return who;
    }
  return "";
}

/**
 * The longest length at which the score is still `threshold` of the base score: NoLiMa's effective length; 0 where none is.
 * @param scores length to score
 */
export function effectiveLength(scores: ReadonlyMap<number, number>, base: number, threshold = 0.85): number {
  return Math.max(0, ...[...scores].filter(([, score]) => score >= threshold * base).map(([length]) => length));
}

/**
 * NoLiMa's base score: the mean over needles of the best that each scores at a short length.
 * @param needles of each needle with its question, length to score
 * @param longest lengths up to this one are short
 * @throws FoveaError `bad-input` where a needle was asked at no short length
 */
export function baseScore(needles: readonly ReadonlyMap<number, number>[], longest = 1024): number {
  const best = needles.map((scores) =>
    Math.max(...[...scores].filter(([n]) => n <= longest).map(([, score]) => score)),
  );
  if (best.length === 0 || best.includes(Number.NEGATIVE_INFINITY))
    throw new FoveaError("bad-input", `a base score takes scores of every needle at lengths up to ${longest}`, {
      hint: "NoLiMa asks at 250, 500 and 1000 tokens",
    });
  return best.reduce((sum, score) => sum + score, 0) / best.length;
}
