import { FoveaError } from "../../error.js";
import type { DocumentOptions } from "./generate.js";
import { mark, unmark } from "./marks.js";
import { oracle } from "./oracle.js";
import type { Random } from "./random.js";
import type { DocumentCase, Kind, Question } from "./types.js";
import { Words } from "./words.js";

const REVERSED = [
  (key: string, value: string) => `- ${value} (${key})`,
  (key: string, value: string) => `- ${value} for ${key}`,
  (key: string, value: string) => `- ${value} <- ${key}`,
];

/**
 * The bare lists that a small model learns first: `- key: value` lines with made-up keys, or lines with the value before
 * its key. As many lines as `facts` says, or as there is room for.
 */
export function listCase(options: DocumentOptions, kinds: readonly Kind[], random: Random): DocumentCase {
  const { length, split = "train", count = (text: string) => text.length, facts = Number.POSITIVE_INFINITY } = options;
  const words = new Words(random, split, true);
  const kind = random.pick(kinds);
  const line = kind === "pairs" ? (key: string, value: string) => `- ${key}: ${value}` : random.pick(REVERSED);
  const values = [
    () => words.pseudoWord(),
    () => String(words.number(999)),
    () => words.code(),
    () => words.person().name,
  ];
  // Of one sort in half of the lists: then only the key tells the values apart.
  const value = random.chance(0.5) ? random.pick(values) : () => random.pick(values)();
  const pairs: { key: string; value: string }[] = [];
  const lines: string[] = [];
  const plainLines: string[] = [];
  while (pairs.length < facts) {
    const pair = { key: words.pseudoWord(), value: value() };
    if (count([...plainLines, line(pair.key, pair.value)].join("\n")) > length) break;
    plainLines.push(line(pair.key, pair.value));
    lines.push(mark(`line ${pair.key}`, line(pair.key, mark(pair.key, pair.value))));
    pairs.push(pair);
  }
  if (pairs.length === 0) throw new FoveaError("bad-input", `a list of ${length} has no room for a line`);
  const { text: document, spans } = unmark(lines.join("\n"));
  const asked = random.shuffle(pairs).slice(0, options.questions ?? random.int(4, 8));
  return {
    document,
    questions: asked.map(
      ({ key, value: stated }): Question => ({
        text: `What is ${key}?`,
        kind,
        answer: stated,
        stated,
        spans: spans.get(key)!,
        evidence: spans.get(`line ${key}`)!,
      }),
    ),
    renderer: "list",
    forms: [],
    verbs: [],
    entities: pairs.map((pair) => pair.key),
    pseudo: true,
    oracle: (question) => oracle(document, question),
  };
}
