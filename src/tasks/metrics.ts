import { stem } from "./stem.js";

/** A reply as it is judged: control characters become line ends (as RULER does), the ends are trimmed. */
export function cleanReply(reply: string): string {
  return Array.from(reply, (c) => (c < " " ? "\n" : c))
    .join("")
    .trim();
}

/** 1 where the reply holds any of the references, whatever the case. */
export function contains(reply: string, references: readonly string[]): number {
  const text = cleanReply(reply).toLowerCase();
  return references.some((r) => text.includes(r.toLowerCase())) ? 1 : 0;
}

/** The share of the references that the reply holds, whatever the case. */
export function recall(reply: string, references: readonly string[]): number {
  const text = cleanReply(reply).toLowerCase();
  return references.filter((r) => text.includes(r.toLowerCase())).length / references.length;
}

/** 1 where the reply is one of the references, but for case, the ends, and a full stop or quotes around it. */
export function exact(reply: string, references: readonly string[]): number {
  const bare = (text: string) =>
    cleanReply(text)
      .toLowerCase()
      .replace(/^["'“‘]+|["'”’.]+$/g, "")
      .trim();
  return references.some((r) => bare(reply) === bare(r)) ? 1 : 0;
}

/**
 * BABILong's judgement: of the label words in the reply's first sentence, those that the question names are left out; right
 * is a reply in which the target is the only one left.
 */
export function onlyLabel(reply: string, target: string, question: string, labels: readonly string[]): number {
  const first = reply.toLowerCase().split(".")[0].split("<context>")[0].split("<example>")[0].split("question")[0];
  const words = (text: string) => new Set(text.match(/[\p{L}\p{N}]+/gu) ?? []);
  const [said, asked] = [words(first), words(question.toLowerCase())];
  const left = labels.map((l) => l.toLowerCase()).filter((l) => said.has(l) && !asked.has(l));
  return left.length === 1 && left[0] === target.toLowerCase() ? 1 : 0;
}

const wordsOf = (text: string) => text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];

function grams(words: readonly string[], n: number): Map<string, number> {
  const counts = new Map<string, number>();
  for (let i = 0; i + n <= words.length; i++) {
    const gram = words.slice(i, i + n).join(" ");
    counts.set(gram, (counts.get(gram) ?? 0) + 1);
  }
  return counts;
}

function overlap(a: ReadonlyMap<string, number>, b: ReadonlyMap<string, number>): number {
  let n = 0;
  for (const [gram, count] of a) n += Math.min(count, b.get(gram) ?? 0);
  return n;
}

/** What of the reference a reply holds, and what of the reply the reference does. */
export interface Overlap {
  readonly recall: number;
  readonly precision: number;
  readonly f1: number;
}

function overlapOf(common: number, reference: number, hypothesis: number): Overlap {
  const [recall, precision] = [reference ? common / reference : 0, hypothesis ? common / hypothesis : 0];
  return { recall, precision, f1: recall + precision > 0 ? (2 * recall * precision) / (recall + precision) : 0 };
}

/** ROUGE-n over words. */
export function rouge(hypothesis: string, reference: string, n: number): Overlap {
  const [h, r] = [grams(wordsOf(hypothesis), n), grams(wordsOf(reference), n)];
  const size = (m: ReadonlyMap<string, number>) => [...m.values()].reduce((a, b) => a + b, 0);
  return overlapOf(overlap(r, h), size(r), size(h));
}

/** ROUGE-L: the longest common subsequence of words. */
export function rougeL(hypothesis: string, reference: string): Overlap {
  const [h, r] = [wordsOf(hypothesis), wordsOf(reference)];
  let row = new Int32Array(h.length + 1);
  for (const word of r) {
    const next = new Int32Array(h.length + 1);
    for (let i = 0; i < h.length; i++) next[i + 1] = word === h[i] ? row[i] + 1 : Math.max(row[i + 1], next[i]);
    row = next;
  }
  return overlapOf(row[h.length], r.length, h.length);
}

/** BLEU of n-grams of one length alone, not cumulative (LooGLE's "BLEU-4" is that of 4-grams), with the brevity penalty. */
export function bleu(hypothesis: string, reference: string, n: number): number {
  const [h, r] = [wordsOf(hypothesis), wordsOf(reference)];
  const total = h.length - n + 1;
  if (total <= 0) return 0;
  const precision = overlap(grams(h, n), grams(r, n)) / total;
  return precision * (h.length >= r.length ? 1 : Math.exp(1 - r.length / h.length));
}

/**
 * METEOR over the words of both texts, none twice, as LooGLE takes it: words that are the same, then those of one stem
 * (Porter's). Recall counts nine times as much as precision, and up to a half is lost where matches do not stand in one run.
 * There is no WordNet here, so synonyms do not match: scores are at most those of METEOR with it.
 */
export function meteor(hypothesis: string, reference: string): number {
  const [h, r] = [hypothesis, reference].map((text) => [...new Set(wordsOf(text))]);
  // the reference's word for each of the hypothesis; -1 for none
  const matched = h.map((word) => r.indexOf(word));
  const stems = r.map(stem);
  for (const [i, word] of h.entries())
    if (matched[i] < 0) matched[i] = stems.findIndex((own, j) => own === stem(word) && !matched.includes(j));
  const at = matched.filter((j) => j >= 0);
  if (at.length === 0) return 0;
  const [precision, recall] = [at.length / h.length, at.length / r.length];
  const mean = (precision * recall) / (0.9 * precision + 0.1 * recall);
  const runs = matched.filter((j, i) => j >= 0 && (i === 0 || matched[i - 1] < 0 || matched[i - 1] !== j - 1)).length;
  return mean * (1 - 0.5 * (runs / at.length) ** 3);
}

/** Masks of a cloze that are right, exactly and in at least one word; of a reply that is no JSON object, none. */
export function cloze(reply: string, reference: Readonly<Record<string, string>>): { exact: number; partial: number } {
  const given = parseObject(reply);
  let [exactly, partly] = [0, 0];
  for (const [mask, name] of Object.entries(reference)) {
    const said = given[mask];
    if (typeof said !== "string") continue;
    if (said === name) exactly++;
    const words = new Set(said.split(/\s+/));
    if (name.split(/\s+/).some((word) => words.has(word))) partly++;
  }
  const masks = Object.keys(reference).length;
  return { exact: exactly / masks, partial: partly / masks };
}

function parseObject(reply: string): Record<string, unknown> {
  const text = /\{[^{}]*\}/.exec(reply)?.[0] ?? "";
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}

/** How far an order is from the right one. */
export interface OrderDistance {
  /** Mean squared and mean absolute deviation of places. */
  readonly lsd: number;
  readonly lmd: number;
  /** Fewest swaps that put it right. */
  readonly sd: number;
  /** Total distance of swaps, the best one first. */
  readonly sdd: number;
}

/**
 * Distances of a hypothesis from a reference order. An order that is no rearrangement of the reference gets the largest
 * values there are. (LooGLE's script gives those to valid orders: its condition is the wrong way round.)
 */
export function orderDistance(hypothesis: readonly string[], reference: readonly string[]): OrderDistance {
  const n = reference.length;
  const places = new Array<number>(n).fill(-1);
  hypothesis.forEach((item, i) => {
    const at = reference.indexOf(item);
    if (at >= 0) places[at] = i;
  });
  if (hypothesis.length !== n || places.includes(-1)) {
    // the reversal deviates most; a single cycle takes most swaps
    const { lsd, lmd } = orderDistance([...reference].reverse(), reference);
    return { lsd, lmd, sd: Math.max(0, n - 1), sdd: (n * (n - 1)) / 2 };
  }
  const mean = (of: (d: number) => number) => places.reduce((sum, p, i) => sum + of(p - i), 0) / n;
  return { lsd: mean((d) => d * d), lmd: mean(Math.abs), sd: n - cycles(places), sdd: swapDistance(places) };
}

function cycles(places: readonly number[]): number {
  const seen = new Set<number>();
  let count = 0;
  for (let i = 0; i < places.length; i++) {
    if (seen.has(i)) continue;
    count++;
    for (let at = i; !seen.has(at); at = places[at]) seen.add(at);
  }
  return count;
}

/** Swaps, each the one that puts most items in place, the shortest among equals; their distances summed. */
function swapDistance(order: readonly number[]): number {
  const places = [...order];
  let total = 0;
  for (;;) {
    let best: { i: number; j: number; fixed: number } | undefined;
    for (let i = 0; i < places.length; i++)
      for (let j = i + 1; j < places.length; j++) {
        if (places[i] === i || places[j] === j) continue;
        const fixed = Number(places[i] === j) + Number(places[j] === i);
        if (fixed > (best?.fixed ?? 0) || (best && fixed === best.fixed && j - i < best.j - best.i))
          best = { i, j, fixed };
      }
    if (!best) return total;
    const { i, j } = best;
    [places[i], places[j]] = [places[j], places[i]];
    total += j - i;
  }
}
