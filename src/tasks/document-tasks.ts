import { FoveaError } from "../error.js";
import { type DocumentCase, generateDocument, type Kind, oracle, type Renderer } from "./documents/index.js";
import { contains, recall } from "./metrics.js";
import { type CaseOptions, caseTokens, fillerOf, type Task, type TaskCase } from "./task.js";

const NEW_TOKENS = 24;
/** Questions put to one document: a compressed document serves several, and a long one has room for more. */
const questionsOf = (length: number) => (length < 2048 ? 4 : 8);

interface DocumentKind {
  readonly name: string;
  readonly family: string;
  readonly does: string;
  readonly kind: Kind;
  /** Default all layouts. */
  readonly renderers?: readonly Renderer[];
  /** Facts for each 100 tokens of the length, where distractors are to fill the text; default as many as are asked for. */
  readonly density?: number;
  readonly prefix?: string;
}

const KINDS: readonly DocumentKind[] = [
  ...(
    [
      ["single", "One slot of one fact."],
      ["latest", "The last of several values that a thing had."],
      ["two-hop", "A slot of a thing or a person that another fact identifies."],
      ["not-stated", 'A slot that no fact fills: the answer is "not stated".'],
      ["several", "All things that one person did the same to."],
      ["distractors", "One slot, among facts that share verb, person, thing or noun."],
      ["comparison", "Which of two people did more."],
      ["pairs", "A value of a bare list, by its key."],
      ["reversed", "A value of a bare list in which the value stands before its key."],
    ] as const
  ).map(([kind, does]): DocumentKind => ({ name: `documents/${kind}`, family: "documents", does, kind })),
  {
    name: "questions/single",
    family: "questions",
    does: "RULER's question answering in form: numbered passages of facts, a question about one of them.",
    kind: "single",
    renderers: ["passages"],
    density: 1.2,
    prefix: "Answer:",
  },
  {
    name: "questions/two-hop",
    family: "questions",
    does: "The same with questions that take two passages.",
    kind: "two-hop",
    renderers: ["passages"],
    density: 1.2,
    prefix: "Answer:",
  },
  {
    name: "recall",
    family: "recall",
    does: "Associative recall: a list of pairs of made-up words that fills the length, and one key.",
    kind: "pairs",
  },
];

/** The kinds of the document generator as tasks, and what can be made of them. */
export const documentTasks: readonly Task[] = KINDS.map((kind) => ({
  name: kind.name,
  family: kind.family,
  does: kind.does,
  metric: kind.kind === "several" ? "recall" : "contains",
  make: (options) => makeDocument(kind, options),
  score: (reply, { references }) => (kind.kind === "several" ? recall(reply, references) : contains(reply, references)),
  oracle,
}));

function makeDocument(kind: DocumentKind, options: CaseOptions): TaskCase {
  const { length, promptTokens, split = "held-out" } = options;
  const bare = promptTokens("", "");
  const questions = questionsOf(length);
  const count = byLines((text) => promptTokens(text, "") - bare);
  const make = (size: number): TaskCase =>
    toCase(
      kind,
      generateDocument({
        seed: `${kind.name} ${options.seed}`,
        length: size,
        count,
        kind: kind.kind,
        split,
        filler: isList(kind.kind) ? [] : fillerOf(options),
        questions,
        ...(kind.renderers && { renderers: kind.renderers }),
        ...(kind.density && { facts: Math.max(questions + 2, Math.floor((kind.density * length) / 100)) }),
      }),
    );
  // what the questions take, and what a layout leaves empty, is known once they are made
  let size = length - bare - NEW_TOKENS - 32;
  let tooLong = Number.POSITIVE_INFINITY;
  let best: { made: TaskCase; tokens: number; size: number } | undefined;
  for (let round = 0; round < ROUNDS; round++) {
    const made = make(size);
    const tokens = caseTokens(made, options);
    if (tokens <= length && tokens > (best?.tokens ?? 0)) best = { made, tokens, size };
    if (tokens > length) tooLong = Math.min(tooLong, size);
    if (best && best.tokens > 0.96 * length) break;
    const wanted = size + length - tokens - (tokens > length ? 4 : 0);
    const from = best?.size ?? 0;
    size = wanted > from && wanted < tooLong ? wanted : Math.floor((from + Math.min(tooLong, 2 * size)) / 2);
  }
  if (best) return best.made;
  throw new FoveaError("bad-input", `${kind.name} finds no document of ${length} tokens`, {
    hint: "ask for a greater length",
  });
}

/** Tries to fill the length before a document with less filler is taken. */
const ROUNDS = 8;

/** Counts a text that grows by lines by its new lines only: a list would be counted again for every line. */
function byLines(count: (text: string) => number): (text: string) => number {
  let [last, tokens] = ["", 0];
  return (text) => {
    const grown = last !== "" && text.startsWith(last) && text[last.length] === "\n";
    tokens = grown ? tokens + count(text.slice(last.length)) : count(text);
    last = text;
    return tokens;
  };
}

const isList = (kind: Kind) => kind === "pairs" || kind === "reversed";

function toCase(kind: DocumentKind, made: DocumentCase): TaskCase {
  return {
    document: made.document,
    questions: made.questions.map(({ text, stated, evidence }) => ({
      text,
      ...(kind.prefix && { prefix: kind.prefix }),
      references: kind.kind === "several" ? stated.split(", ") : [stated],
      answer: stated,
      evidence,
      newTokens: NEW_TOKENS,
    })),
  };
}
