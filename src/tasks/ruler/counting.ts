import type { Span } from "../documents/index.js";
import { recall } from "../metrics.js";
import { type CaseOptions, largestCase, type Task, type TaskCase } from "../task.js";
import { joinMarked, moved } from "./haystack.js";
import { coded, stream, words } from "./words.js";

const COMMON = 10;
/** Words of a list, at least: a long one takes more, three places for each. */
const VOCABULARY = 4000;
/** Words of the worked example, the common ones included. */
const SHOWN = 40;
/** zeta(2), by which word counts of a Zipf distribution with exponent 2 are normalised. */
const ZETA = Math.PI ** 2 / 6;

/** A numbered list of words, with where those that are marked stand. */
function numbered(list: readonly string[], marked: ReadonlySet<string>): { text: string; spans: Span[] } {
  const pieces = list.map((word, i) => `${i + 1}. ${word}`);
  const at = list.map((_, i) => i).filter((i) => marked.has(list[i]));
  const { text, spans } = joinMarked(pieces, at);
  return { text, spans: [...spans] };
}

/** RULER's common words: ten words stand 30 times in a list, the others 3 times (below 4k tokens 6 times and once). */
export const commonWords: Task = {
  name: "common-words",
  family: "common-words",
  does: "Finds the ten words that are most common in a shuffled list.",
  metric: "recall",
  make(options: CaseOptions): TaskCase {
    const seed = `common-words ${options.seed}`;
    const [often, seldom] = options.length < 4096 ? [6, 1] : [30, 3];
    const vocabulary = words(Math.max(VOCABULARY, options.length >> 3), stream(seed, "words"));
    const common = vocabulary.slice(0, COMMON);
    const marked = new Set(common);
    const ask = "What are the 10 most common words in the above list?";
    const listOf = (
      frequent: readonly string[],
      rare: readonly string[],
      [a, b]: readonly [number, number],
      part: string,
    ) => stream(seed, part).shuffle([...repeat(frequent, a), ...repeat(rare, b)]);
    const intro =
      "Below is a numbered list of words. Some occur more often than others. Remember those that are most common.\n";
    const shown = vocabulary.slice(-SHOWN);
    const example = numbered(listOf(shown.slice(0, COMMON), shown.slice(COMMON), [4, 1], "example"), new Set());
    const prefix = "The top 10 words that occur most often in the list are:";
    const head = `${intro}${example.text}\n${ask} ${prefix} ${shown.slice(0, COMMON).join(", ")}\n\n${intro}`;
    const make = (n: number): TaskCase => {
      const own = numbered(listOf(common, vocabulary.slice(COMMON, COMMON + n), [often, seldom], `list ${n}`), marked);
      return {
        document: head + own.text,
        questions: [
          {
            text: ask,
            prefix,
            references: common,
            answer: common.join(", "),
            evidence: moved(own.spans, head.length),
            newTokens: 120,
          },
        ],
      };
    };
    return largestCase(make, options, { most: vocabulary.length - COMMON - SHOWN, task: "common-words" });
  },
  score: (reply, { references }) => recall(reply, references),
  oracle: (document) => {
    // the example's list comes first
    const list = document.slice(document.lastIndexOf("\n1. ") + 1);
    return top(
      [...list.matchAll(/\d+\. (\S+)/g)].map((m) => m[1]),
      COMMON,
    ).join(", ");
  },
};

/** How often the word of each rank occurs in a coded text of about n words: int(n k^-2 / zeta(2)). */
export function frequencies(n: number, ranks: number): number[] {
  return Array.from({ length: ranks }, (_, i) => Math.floor(n / ((i + 1) ** 2 * ZETA)));
}

/** RULER's frequent words: made-up words whose counts follow Zipf's law; rank 1 is "..." and does not count. */
export const frequentWords: Task = {
  name: "frequent-words",
  family: "frequent-words",
  does: "Finds the three made-up words that occur most often.",
  metric: "recall",
  make(options: CaseOptions): TaskCase {
    const seed = `frequent-words ${options.seed}`;
    const vocabulary = ["...", ...coded(2000, stream(seed, "words"))];
    const wanted = vocabulary.slice(1, 4);
    const ask = "What are the three words that occur most often in the above coded text? Dots do not count.";
    const head = "Read the following coded text and remember how often each coded word occurs.\n";
    const make = (n: number): TaskCase => {
      const counts = frequencies(n, vocabulary.length);
      const text = stream(seed, `text ${n}`).shuffle(
        counts.flatMap((count, i) => Array<string>(count).fill(vocabulary[i])),
      );
      const at = text.map((_, i) => i).filter((i) => wanted.includes(text[i]));
      const { text: coded, spans } = joinMarked(text, at);
      return {
        document: head + coded,
        questions: [
          {
            text: ask,
            prefix: "The three words that occur most often are:",
            references: wanted,
            answer: wanted.join(", "),
            evidence: moved(spans, head.length),
            newTokens: 50,
          },
        ],
      };
    };
    // fewer words, and ranks would not differ
    return largestCase(make, options, { least: 60, task: "frequent-words" });
  },
  score: (reply, { references }) => recall(reply, references),
  oracle: (document) => {
    const text = document.slice(document.indexOf("\n") + 1);
    return top(
      text.split(" ").filter((word) => word !== "..."),
      3,
    ).join(", ");
  },
};

const repeat = (list: readonly string[], times: number) => list.flatMap((word) => Array<string>(times).fill(word));

function top(list: readonly string[], count: number): string[] {
  const counts = new Map<string, number>();
  for (const word of list) counts.set(word, (counts.get(word) ?? 0) + 1);
  return [...counts]
    .sort((a, b) => b[1] - a[1])
    .slice(0, count)
    .map(([word]) => word);
}
