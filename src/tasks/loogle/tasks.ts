import { FoveaError } from "../../error.js";
import type { Span } from "../documents/index.js";
import { bleu, cloze, meteor, orderDistance, rouge, rougeL } from "../metrics.js";
import { stream } from "../ruler/words.js";
import { type CaseOptions, largestCase, type Metric, type Task, type TaskCase, type TaskQuestion } from "../task.js";
import { type LoogleDocument, type LoogleKind, type LoogleQuestion, locate, parseLoogle } from "./load.js";

const KINDS: Readonly<Record<LoogleKind, { does: string; metric: Metric; newTokens: number }>> = {
  "short-qa": { does: "LooGLE: a question that one place answers.", metric: "rouge-l", newTokens: 300 },
  "long-qa": { does: "LooGLE: a question that several places answer together.", metric: "rouge-l", newTokens: 500 },
  reorder: { does: "LooGLE: events to be put in order.", metric: "order", newTokens: 500 },
  cloze: { does: "LooGLE: names to be put in the place of masks.", metric: "cloze", newTokens: 50 },
  summary: { does: "LooGLE: a summary.", metric: "rouge-l", newTokens: 500 },
};

/** A reply may not take more than this share of a short text's length. */
const REPLY_SHARE = 1 / 8;

/**
 * LooGLE's questions (ACL 2024) from one of its files, as tasks `loogle-set/...`. Documents that are longer than asked
 * for are cut to the sentences around the evidence.
 */
export function loogleTasks(text: string): Task[] {
  const documents = parseLoogle(text);
  const tasks = (Object.keys(KINDS) as LoogleKind[]).flatMap((kind): Task[] => {
    const items = documents.flatMap((document) =>
      document.questions
        .filter((q) => q.kind === kind)
        .map((question) => ({
          document,
          question,
          evidence: question.evidence.flatMap((s) => locate(document.text, s)),
        }))
        // a question whose evidence is not where the data says cannot be cut around
        .filter(({ question, evidence }) => evidence.length > 0 || question.evidence.every((s) => s.trim() === "")),
    );
    return items.length === 0 ? [] : [loogleTask(kind, items)];
  });
  if (tasks.length === 0) throw new FoveaError("bad-file", "the LooGLE file holds no questions");
  return tasks;
}

interface Item {
  readonly document: LoogleDocument;
  readonly question: LoogleQuestion;
  readonly evidence: readonly Span[];
}

function loogleTask(kind: LoogleKind, items: readonly Item[]): Task {
  const { does, metric } = KINDS[kind];
  return {
    name: `loogle-set/${kind}`,
    family: "loogle-set",
    does,
    metric,
    make: (options) => makeCase(kind, stream(options.seed, `loogle ${kind}`).pick(items), options),
    score: (reply, question) => scoreLoogle(metric, reply, question.references[0]),
    figures: (reply, question) => loogleFigures(metric, reply, question.references[0]),
    oracle: (_document, question) => items.find((item) => promptOf(item.question) === question)?.question.answer ?? "",
  };
}

function makeCase(kind: LoogleKind, { document, question, evidence }: Item, options: CaseOptions): TaskCase {
  const newTokens = Math.min(KINDS[kind].newTokens, Math.ceil(options.length * REPLY_SHARE));
  const asked: Omit<TaskQuestion, "evidence"> = {
    text: promptOf(question),
    prefix: "Answer:",
    references: [question.answer],
    answer: question.answer,
    newTokens,
  };
  const pieces = sentencesOf(document.text);
  const order = byDistance(pieces, evidence);
  const needed = order.filter((i) => evidence.some((e) => overlaps(pieces[i], e))).length;
  return largestCase((n) => cut(document.text, pieces, order.slice(0, n), evidence, asked), options, {
    least: Math.max(1, needed),
    most: pieces.length,
    task: `loogle-set/${kind}`,
  });
}

function promptOf({ kind, question }: LoogleQuestion): string {
  if (kind === "cloze")
    return `Masks such as <mask-0> stand for persons, places or organisations; equal masks for equal names. Reply as JSON, mask to name.\n${question}`;
  return kind === "summary" ? question : `Question: ${question}`;
}

/** 0 to 1: ROUGE-L recall, masks that are right, or one less the share of swaps that an order takes. */
export function scoreLoogle(metric: Metric, reply: string, reference: string): number {
  if (metric === "cloze") return cloze(reply, masksOf(reference)).exact;
  if (metric === "order") return orderScore(reply, reference);
  return rougeL(reply, reference).recall;
}

/**
 * LooGLE's other figures of a reply, by their names there: overlaps of words with how long the reply is (recall alone
 * favours long ones), masks that are right in part, or distances of an order. An empty reply is "None", as in its script.
 */
export function loogleFigures(metric: Metric, reply: string, reference: string): Record<string, number> {
  const said = reply.trim() === "" ? "None" : reply;
  if (metric === "cloze") return { partial: cloze(said, masksOf(reference)).partial };
  if (metric === "order") return { ...distance(said, reference) };
  return {
    "bleu-1": bleu(said, reference, 1),
    "bleu-4": bleu(said, reference, 4),
    "rouge-1": rouge(said, reference, 1).recall,
    "rouge-2": rouge(said, reference, 2).recall,
    "rouge-l": rougeL(said, reference).recall,
    "rouge-l f1": rougeL(said, reference).f1,
    meteor: meteor(said, reference),
    words: reply.trim() === "" ? 0 : reply.trim().split(/\s+/).length,
  };
}

const masksOf = (reference: string) => JSON.parse(reference) as Record<string, string>;

/** "2,1,3" against the right order: 1 for the same, 0 for as many swaps as there can be. */
export function orderScore(reply: string, reference: string): number {
  const right = itemsOf(reference);
  if (right.length < 2) return itemsOf(reply)[0] === right[0] ? 1 : 0;
  return 1 - distance(reply, reference).sd / (right.length - 1);
}

function distance(reply: string, reference: string) {
  const right = itemsOf(reference);
  return orderDistance(itemsOf(reply).slice(0, right.length), right);
}

/** The numbers of an order; Roman ones, up to thirty-nine, where there are no others. */
function itemsOf(text: string): string[] {
  const digits = text.match(/\d+/g);
  if (digits) return digits;
  return (text.match(/\b[IVX]+\b/g) ?? []).map((numeral) => String(roman(numeral)));
}

function roman(numeral: string): number {
  const values = [...numeral].map((letter) => ({ I: 1, V: 5, X: 10 })[letter] ?? 0);
  return values.reduce((sum, value, i) => sum + (value < (values[i + 1] ?? 0) ? -value : value), 0);
}

/** Spans of the sentences and lines of a text, which together cover it. */
function sentencesOf(text: string): Span[] {
  const spans: Span[] = [];
  let start = 0;
  for (const { index, 0: gap } of text.matchAll(/(?<=[.!?]["”’)]?) +(?=["“(]?[A-Z])|\n+/g)) {
    spans.push([start, index + gap.length]);
    start = index + gap.length;
  }
  if (start < text.length) spans.push([start, text.length]);
  return spans.filter(([a, b]) => b > a);
}

const overlaps = ([a, b]: Span, [c, d]: Span) => a < d && c < b;

/** Pieces by how far they are from the evidence; the text's order where there is none. */
function byDistance(pieces: readonly Span[], evidence: readonly Span[]): number[] {
  const far = ([a, b]: Span) => evidence.reduce((d, [c, e]) => Math.min(d, Math.max(0, c - b, a - e)), Infinity);
  const distance = pieces.map((piece) =>
    evidence.some((e) => overlaps(piece, e)) ? -1 : evidence.length > 0 ? far(piece) : piece[0],
  );
  return pieces.map((_, i) => i).sort((a, b) => distance[a] - distance[b] || a - b);
}

/** The chosen pieces in the text's order, with the evidence's spans moved along. */
function cut(
  text: string,
  pieces: readonly Span[],
  chosen: readonly number[],
  evidence: readonly Span[],
  question: Omit<TaskQuestion, "evidence">,
): TaskCase {
  const kept = [...chosen].sort((a, b) => a - b).map((i) => pieces[i]);
  const spans: Span[] = [];
  let document = "";
  for (const [start, end] of kept) {
    for (const [a, b] of evidence) {
      const [from, to] = [Math.max(a, start), Math.min(b, end)];
      if (from < to) spans.push([document.length + from - start, document.length + to - start]);
    }
    document += text.slice(start, end);
  }
  return { document: document.trimEnd(), questions: [{ ...question, evidence: spans }] };
}
