import { FoveaError } from "../error.js";
import type { Filler, Span, Split } from "./documents/index.js";

/** How a reply is judged; `metrics.ts` defines each. */
export type Metric = "contains" | "recall" | "only-label" | "rouge-l" | "order" | "cloze";

/** A question about a case's document. */
export interface TaskQuestion {
  /** What stands after the document. */
  readonly text: string;
  /** The beginning of the reply, given to the model so that it only goes on. */
  readonly prefix?: string;
  /** What a right reply holds: one of them, or all, as the metric says. */
  readonly references: readonly string[];
  /** The reply that the model is forced through where distributions are compared. */
  readonly answer: string;
  /** Where the document holds what the answer rests on. */
  readonly evidence: readonly Span[];
  /** Tokens that a reply may take. */
  readonly newTokens: number;
}

/** A document with its questions, ready to be put to a model. */
export interface TaskCase {
  readonly document: string;
  readonly questions: readonly TaskQuestion[];
}

/** What a case is made from. */
export interface CaseOptions {
  /** The same seed and options give the same bytes; cases of other lengths share their needles. */
  readonly seed: number | string;
  /** Prompt and reply together take at most this many tokens, and more than 95% of it where there is filler to do so. */
  readonly length: number;
  /** Tokens of a prompt: the model's format and tokenizer. */
  readonly promptTokens: (document: string, question: string, prefix?: string) => number;
  /** Prose to hide things in. */
  readonly filler: readonly Filler[];
  /** Words and filler of which split. Default "held-out": what the embedded model was not trained on. */
  readonly split?: Split;
}

/** A task: makes cases with known answers at any length, and judges replies. */
export interface Task {
  readonly name: string;
  /** Tasks of a family can be named together. */
  readonly family: string;
  /** One sentence. */
  readonly does: string;
  readonly metric: Metric;
  /** @throws FoveaError `bad-input` where the length has no room for what the task needs */
  make(options: CaseOptions): TaskCase;
  /** From 0 (wrong) to 1 (right). */
  score(reply: string, question: TaskQuestion): number;
  /** Further figures of a reply, by name: what a paper's tables give beside the score. */
  readonly figures?: (reply: string, question: TaskQuestion) => Readonly<Record<string, number>>;
  /** Answers from the document and the question alone: what a model that reads perfectly would say. */
  oracle(document: string, question: string): string;
}

/** The filler of a split. */
export function fillerOf({ filler, split = "held-out" }: Pick<CaseOptions, "filler" | "split">): readonly Filler[] {
  const own = filler.filter((text) => text.split === split);
  if (own.length === 0)
    throw new FoveaError("bad-input", `there is no filler of the split ${split}`, {
      hint: "give `filler`, for example from loadFiller()",
    });
  return own;
}

/** Tokens of the longest of a case's prompts, its reply included. */
export function caseTokens(
  { document, questions }: TaskCase,
  { promptTokens }: Pick<CaseOptions, "promptTokens">,
): number {
  return Math.max(...questions.map((q) => promptTokens(document, q.text, q.prefix) + q.newTokens));
}

/**
 * The largest case that fits: `make(n)` gives one with n pieces of filler, and more pieces never take fewer tokens.
 * @throws FoveaError `bad-input` where not even `make(least)` fits
 */
export function largestCase(
  make: (n: number) => TaskCase,
  options: Pick<CaseOptions, "promptTokens" | "length">,
  { least = 0, most = 1 << 20, task = "the task" }: { least?: number; most?: number; task?: string } = {},
): TaskCase {
  const { length } = options;
  let low = { n: least, made: make(least), tokens: 0 };
  low.tokens = caseTokens(low.made, options);
  if (low.tokens > length)
    throw new FoveaError(
      "bad-input",
      `${task} needs ${low.tokens} tokens without any filler; the length is ${length}`,
      {
        hint: "ask for a greater length",
      },
    );
  let high: { n: number; tokens: number } | undefined;
  // by what a piece takes on average: a few rounds, where halving would take a dozen
  while (low.n < most && (high === undefined || high.n - low.n > 1)) {
    const per = high ? (high.tokens - low.tokens) / (high.n - low.n) : low.n > least ? low.tokens / low.n : 20;
    const step = Math.max(1, Math.floor((length - low.tokens) / Math.max(0.5, per)));
    const n = Math.min(most, high ? Math.min(high.n - 1, low.n + step) : low.n + step);
    const made = make(n);
    const tokens = caseTokens(made, options);
    if (tokens > length) high = { n, tokens };
    else {
      const stuck = tokens > 0.97 * length;
      low = { n, made, tokens };
      if (stuck) break;
    }
  }
  return low.made;
}
