import type { Span } from "../documents/index.js";
import type { Random } from "../documents/random.js";
import { contains } from "../metrics.js";
import { stream } from "../ruler/words.js";
import { type CaseOptions, largestCase, type Task, type TaskCase } from "../task.js";
import { type Passage, type PassageQuestion, type PassageSet, parseHotpot, parseSquad } from "./load.js";

const NEW_TOKENS = 32;
/** Questions put to one document, where its passages answer several. */
const QUESTIONS = 4;
const HEAD = "Below are documents, and after them a question that they answer.";
const ASK = "Answer by the documents above, with nothing but the answer.\nQuestion: ";

/**
 * RULER's first question answering over a file in SQuAD's form, as the task `questions-set/squad`: the paragraph with the
 * answer among others, those of its own article first.
 * @throws FoveaError `bad-file` for what is no such file
 */
export function squadTask(text: string): Task {
  return setTask("questions-set/squad", "SQuAD: the paragraph with the answer among others.", parseSquad(text));
}

/**
 * RULER's second question answering over a file in HotpotQA's form, as the task `questions-set/hotpot`: two paragraphs that
 * answer together among others, those that the data gives with the question first.
 * @throws FoveaError `bad-file` for what is no such file
 */
export function hotpotTask(text: string): Task {
  return setTask("questions-set/hotpot", "HotpotQA: the paragraphs that answer among others.", parseHotpot(text));
}

function setTask(name: string, does: string, set: PassageSet): Task {
  return {
    name,
    family: "questions-set",
    does,
    metric: "contains",
    make: (options) => makeCase(name, set, options),
    score: (reply, { references }) => contains(reply, references),
    oracle(document, asked) {
      // several paragraphs may be asked the same
      const all = set.questions.filter(({ question }) => ASK + question === asked);
      return all.find(({ gold }) => gold.every(({ text }) => document.includes(text)))?.answers[0] ?? "";
    },
  };
}

function makeCase(name: string, { questions, passages }: PassageSet, options: CaseOptions): TaskCase {
  const random = stream(options.seed, name);
  const first = random.pick(questions);
  const alike = questions.filter((q) => q !== first && q.gold.length === 1 && q.gold[0] === first.gold[0]);
  const asked = [first, ...(first.gold.length === 1 ? random.shuffle(alike).slice(0, QUESTIONS - 1) : [])];
  const others = fillerOf(first, passages, random);
  // each gold passage's place among the others, as a share
  const places = first.gold.map(() => random.next());
  const make = (n: number): TaskCase => {
    const filler = take(others, n);
    // those that are near do not all stand first
    const mixed = stream(options.seed, `${name} order ${filler.length}`).shuffle(filler);
    return arrange(first.gold, mixed, places, asked);
  };
  return largestCase(make, options, { most: others.length === 0 ? 0 : 1 << 20, task: name });
}

/** The passages that fill, in their order: those near the gold ones first, then all others. */
function fillerOf({ gold, near }: PassageQuestion, passages: readonly Passage[], random: Random): Passage[] {
  const used = new Set([...gold, ...near]);
  return [...random.shuffle(near), ...random.shuffle(passages.filter((passage) => !used.has(passage)))];
}

/** n sentences of passages, the last of which may be cut; over again where there are not enough. */
function take(passages: readonly Passage[], n: number): string[] {
  const taken: string[] = [];
  for (let i = 0, left = n; left > 0; i++) {
    const { text, ends } = passages[i % passages.length];
    taken.push(text.slice(0, ends[Math.min(left, ends.length) - 1]));
    left -= ends.length;
  }
  return taken;
}

/** Puts the gold passages at their places, numbers the documents, and finds where the evidence went. */
function arrange(
  gold: readonly Passage[],
  filler: readonly string[],
  places: readonly number[],
  asked: readonly PassageQuestion[],
): TaskCase {
  // of a gold passage its index, of one that only fills -1
  const pieces = filler.map((text) => ({ text, gold: -1 }));
  gold.forEach(({ text }, i) => {
    pieces.splice(Math.floor(places[i] * (pieces.length + 1)), 0, { text, gold: i });
  });
  const starts: number[] = new Array(gold.length).fill(0);
  let document = HEAD;
  pieces.forEach(({ text, gold: index }, i) => {
    document += `\n\nDocument ${i + 1}:\n`;
    if (index >= 0) starts[index] = document.length;
    document += text;
  });
  return {
    document,
    questions: asked.map(({ question, answers, evidence }) => ({
      text: ASK + question,
      prefix: "Answer:",
      references: answers,
      answer: answers[0],
      evidence: evidence.map(
        ({ passage, span: [start, end] }): Span => [starts[passage] + start, starts[passage] + end],
      ),
      newTokens: NEW_TOKENS,
    })),
  };
}
