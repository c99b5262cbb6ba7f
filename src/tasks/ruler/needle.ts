import type { Span } from "../documents/index.js";
import { contains, recall } from "../metrics.js";
import { type CaseOptions, fillerOf, largestCase, type Task, type TaskCase, type TaskQuestion } from "../task.js";
import { inEssays, inLines, type Marked, moved, NOISE } from "./haystack.js";
import { keys, numbers, stream, uuids } from "./words.js";

type Sort = "number" | "uuid";

interface NeedleKind {
  readonly does: string;
  /** What the needles lie in. */
  readonly filler: "noise" | "essays" | "needles";
  /** Needles whose keys differ, and needles of one key. */
  readonly keys?: number;
  readonly values?: number;
  /** Keys that are asked for together; each needle is a question of its own otherwise. */
  readonly asked?: number;
  readonly key?: "words" | "uuid";
  readonly value?: Sort;
}

/** RULER's eight retrieval tasks. */
const KINDS: Readonly<Record<string, NeedleKind>> = {
  "single-noise": { does: "One needle in sentences that repeat.", filler: "noise" },
  single: { does: "One needle in essays.", filler: "essays" },
  "single-uuid": { does: "One needle with an identifier for a value, in essays.", filler: "essays", value: "uuid" },
  "multi-key": { does: "Four needles with different keys in essays; one is asked for.", filler: "essays", keys: 4 },
  "multi-key-needles": { does: "Needles among needles; one is asked for.", filler: "needles" },
  "multi-key-uuid": {
    does: "Needles among needles, keys and values identifiers; one is asked for.",
    filler: "needles",
    key: "uuid",
    value: "uuid",
  },
  "multi-value": { does: "Four values of one key in essays; all are asked for.", filler: "essays", values: 4 },
  "multi-query": { does: "Four needles in essays; all are asked for at once.", filler: "essays", keys: 4, asked: 4 },
};

const NEW_TOKENS = 128;

const needleText = (key: string, value: string, sort: Sort) =>
  `One of the special magic ${sort}s for ${key} is: ${value}.`;

/** Needle in a haystack, in the forms of RULER (arXiv 2404.06654). */
export const needleTasks: readonly Task[] = Object.entries(KINDS).map(([name, kind]) => ({
  name: `needle/${name}`,
  family: "needle",
  does: kind.does,
  metric: kind.values || kind.asked ? "recall" : "contains",
  make: (options) => makeNeedles(name, kind, options),
  score: (reply, { references }) =>
    kind.values || kind.asked ? recall(reply, references) : contains(reply, references),
  oracle: (document, question) => needleOracle(document, question),
}));

function makeNeedles(name: string, kind: NeedleKind, options: CaseOptions): TaskCase {
  const { filler, value = "number", keys: count = 1, values = 1, asked = 1 } = kind;
  const seed = `needle ${name} ${options.seed}`;
  const draw = stream(seed, "needles");
  const keyOf = (n: number) => (kind.key === "uuid" ? uuids(n, draw) : keys(n, draw));
  const draws = (n: number) => (value === "uuid" ? uuids(n, draw) : numbers(n, 7, draw));
  const names = keyOf(count);
  const pairs = names.flatMap((key) => draws(values).map((v) => ({ key, value: v })));
  const needles = pairs.map((p) => needleText(p.key, p.value, value));
  const others = filler === "needles" ? otherNeedles(kind, seed, value, new Set(names)) : undefined;

  const make = (n: number): TaskCase => {
    const hay: Marked =
      filler === "essays"
        ? inEssays(needles, n, fillerOf(options), seed)
        : inLines(needles, others ? others(n) : noise(n), seed, { between: others ? "\n" : " " });
    const head = `Some special magic ${value}s are hidden in the following text. Remember them: they will be asked for.\n`;
    const spans = moved(hay.spans, head.length);
    return { document: head + hay.text, questions: questionsOf(pairs, spans, names, asked, value) };
  };
  return largestCase(make, options, { task: `needle/${name}` });
}

const noise = (n: number) => Array.from({ length: n }, (_, i) => NOISE[i % NOISE.length]);

/** Needles that are not asked for: n of them, the same first ones whatever n. */
function otherNeedles(kind: NeedleKind, seed: string, value: Sort, taken: ReadonlySet<string>) {
  const made: string[] = [];
  const seen = new Set(taken);
  const draw = stream(seed, "others");
  return (n: number): string[] => {
    while (made.length < n) {
      const key = kind.key === "uuid" ? uuids(1, draw)[0] : `${keys(1, draw)[0]}`;
      // after many needles the plain keys are used up
      const own = seen.has(key) ? `${key}-${seen.size}` : key;
      seen.add(own);
      made.push(needleText(own, value === "uuid" ? uuids(1, draw)[0] : numbers(1, 7, draw)[0], value));
    }
    return made.slice(0, n);
  };
}

function questionsOf(
  pairs: readonly { key: string; value: string }[],
  spans: readonly Span[],
  names: readonly string[],
  asked: number,
  sort: Sort,
): TaskQuestion[] {
  const groups = asked > 1 ? [names.slice(0, asked)] : names.map((key) => [key]);
  return groups.map((group): TaskQuestion => {
    const at = pairs.map((_, i) => i).filter((i) => group.includes(pairs[i].key));
    const many = at.length > 1;
    const of = list(group);
    const references = at.map((i) => pairs[i].value);
    return {
      text: many
        ? `What are all the special magic ${sort}s for ${of} that the text mentions?`
        : `What is the special magic ${sort} for ${of} that the text mentions?`,
      prefix: many
        ? `The special magic ${sort}s for ${of} that the text mentions are`
        : `The special magic ${sort} for ${of} that the text mentions is`,
      references,
      answer: list(references),
      evidence: at.map((i) => spans[i]),
      newTokens: NEW_TOKENS,
    };
  });
}

/** "a", "a and b", "a, b and c". */
export function list(items: readonly string[]): string {
  return items.length < 2 ? items.join("") : `${items.slice(0, -1).join(", ")} and ${items[items.length - 1]}`;
}

/** Looks the needles of the keys in the question up. */
function needleOracle(document: string, question: string): string {
  const asked = /for (.+) that the text mentions\?$/.exec(question)?.[1].split(/, | and /) ?? [];
  const found: string[] = [];
  for (const [, key, value] of document.matchAll(/special magic \w+ for (\S+) is: (\S+)\./g))
    if (asked.includes(key)) found.push(value);
  return list(found);
}
