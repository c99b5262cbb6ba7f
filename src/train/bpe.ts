import { FoveaError } from "../error.js";
import { BYTE_CHARACTERS, byteLevelTokenizer, createTokenizer, type Tokenizer } from "../models/index.js";

/** Options of `trainTokenizer`. */
export interface TokenizerOptions {
  /** Tokens in all: special ones, the 256 bytes and merges. */
  readonly vocabulary: number;
  /** Special tokens, with ids from 0 on. Default `<|begin|>` and `<|end|>`. */
  readonly special?: readonly string[];
  /** Token put before every text. Default the first special one; null: none. */
  readonly begin?: string | null;
  /** Token that ends a text. Default the last special one. */
  readonly end?: string;
  /** Whether every digit is a token of its own (as in SmolLM) or digits merge like letters (GPT-2). Default "apart". */
  readonly digits?: "apart" | "together";
  /** Pairs that occur more seldom are not merged. Default 2. */
  readonly minFrequency?: number;
  readonly chatTemplate?: string;
}

/** A tokenizer as the files of a checkpoint. */
export interface TokenizerFiles {
  /** tokenizer.json */
  readonly tokenizer: Record<string, unknown>;
  /** tokenizer_config.json */
  readonly config: Record<string, unknown>;
}

/** GPT-2's words: contractions, letters, numbers and other signs, each with the space before it. */
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;
const DIGITS = /(\p{N})/u;

/**
 * Trains a byte-level byte-pair tokenizer (Neural Machine Translation of Rare Words with Subword Units, ACL 2016): the
 * pair of neighbouring pieces that occurs most often becomes a piece, until the vocabulary is full. Among equals the pair
 * that sorts first wins, so the same texts give the same tokenizer everywhere. Its pre-tokenizer is one that llama.cpp
 * knows: that of SmolLM ("smollm") with digits apart, else GPT-2's ("gpt-2").
 *
 * @throws FoveaError `bad-input` for a vocabulary too small for bytes and special tokens, or more than the texts give;
 *   for a special token that is empty, a single byte or named twice; for a minFrequency below 1
 */
export function trainTokenizerFiles(texts: Iterable<string>, options: TokenizerOptions): TokenizerFiles {
  const { vocabulary, special = ["<|begin|>", "<|end|>"], digits = "apart", minFrequency = 2 } = options;
  const { begin = special[0] ?? null, end = special.at(-1), chatTemplate } = options;
  const least = special.length + BYTE_CHARACTERS.length;
  if (!(Number.isInteger(minFrequency) && minFrequency >= 1))
    throw new FoveaError("bad-input", `minFrequency is ${minFrequency}; expected a whole number of at least 1`);
  for (const [i, token] of special.entries())
    if (token === "" || BYTE_CHARACTERS.includes(token) || special.indexOf(token) !== i)
      throw new FoveaError("bad-input", `${JSON.stringify(token)} cannot be a special token`, {
        hint: "each is a text of its own that is not empty and no single byte, such as <|end|>",
      });
  if (!Number.isInteger(vocabulary) || vocabulary < least)
    throw new FoveaError(
      "bad-input",
      `a vocabulary of ${vocabulary} has no room for ${least} bytes and special tokens`,
    );
  for (const token of [begin, end])
    if (token !== null && token !== undefined && !special.includes(token))
      throw new FoveaError("bad-input", `${token} is not among the special tokens ${special.join(" ")}`);
  const words = countWords(texts, digits, special);
  const merges = learnMerges(words, vocabulary - least, minFrequency);
  const pieces = [...special, ...BYTE_CHARACTERS, ...new Set(merges.map(([a, b]) => a + b))];
  if (pieces.length < vocabulary)
    throw new FoveaError("bad-input", `the texts give ${pieces.length} tokens of the ${vocabulary} asked for`, {
      hint: "give more text, a smaller vocabulary or a smaller minFrequency",
    });
  return {
    tokenizer: byteLevelTokenizer({ pieces, merges, special, begin, digits }),
    config: {
      tokenizer_class: "PreTrainedTokenizerFast",
      ...(begin !== null && { bos_token: begin }),
      ...(end !== undefined && { eos_token: end }),
      clean_up_tokenization_spaces: false,
      ...(chatTemplate !== undefined && { chat_template: chatTemplate }),
    },
  };
}

/** The same, ready to encode. */
export function trainTokenizer(texts: Iterable<string>, options: TokenizerOptions): Tokenizer {
  const { tokenizer, config } = trainTokenizerFiles(texts, options);
  return createTokenizer(tokenizer, config);
}

/** Words of the texts in byte characters, with how often each occurs. Special tokens are no text. */
function countWords(
  texts: Iterable<string>,
  digits: TokenizerOptions["digits"],
  special: readonly string[],
): Map<string, number> {
  const counts = new Map<string, number>();
  const escaped = special.map((token) => token.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const apart = escaped.length > 0 ? new RegExp(escaped.join("|"), "g") : undefined;
  for (const text of texts)
    for (const plain of apart ? text.split(apart) : [text])
      for (const part of digits === "apart" ? plain.split(DIGITS) : [plain])
        for (const [word] of part.matchAll(WORDS)) counts.set(word, (counts.get(word) ?? 0) + 1);
  const encoder = new TextEncoder();
  return new Map(
    [...counts].map(([word, n]) => [Array.from(encoder.encode(word), (byte) => BYTE_CHARACTERS[byte]).join(""), n]),
  );
}

/** A pair of neighbouring pieces: how often it occurs, and in which words. */
interface Pair {
  readonly left: string;
  readonly right: string;
  count: number;
  /** The count that it stands in the queue with. */
  queued: number;
  readonly words: Set<number>;
}

/**
 * Merges in the order in which they are learnt, until they make `wanted` different pieces (two merges may make the same
 * one). Counts are kept up to date: a merge touches the words that hold it.
 */
export function learnMerges(
  counts: ReadonlyMap<string, number>,
  wanted: number,
  minFrequency: number,
): [left: string, right: string][] {
  const words = [...counts.keys()].map((word) => [...word]);
  const often = [...counts.values()];
  const pairs = new Map<string, Pair>();
  const heap = new PairHeap();
  const change = (left: string, right: string, word: number, by: number): void => {
    const key = `${left} ${right}`;
    let pair = pairs.get(key);
    if (!pair) {
      pair = { left, right, count: 0, queued: 0, words: new Set() };
      pairs.set(key, pair);
    }
    pair.count += by;
    if (by > 0) pair.words.add(word);
    touched.add(pair);
  };
  const touched = new Set<Pair>();
  const requeue = (): void => {
    for (const pair of touched) if (pair.count !== pair.queued) heap.push(pair);
    touched.clear();
  };
  for (const [w, pieces] of words.entries())
    for (let i = 1; i < pieces.length; i++) change(pieces[i - 1], pieces[i], w, often[w]);
  requeue();
  const merges: [string, string][] = [];
  const made = new Set<string>();
  while (made.size < wanted) {
    const best = heap.pop();
    if (!best || best.count < minFrequency) break;
    merges.push([best.left, best.right]);
    made.add(best.left + best.right);
    for (const w of best.words) {
      const old = words[w];
      const merged = mergePair(old, best.left, best.right);
      if (merged.length === old.length) continue;
      for (let i = 1; i < old.length; i++) change(old[i - 1], old[i], w, -often[w]);
      for (let i = 1; i < merged.length; i++) change(merged[i - 1], merged[i], w, often[w]);
      words[w] = merged;
    }
    requeue();
  }
  return merges;
}

function mergePair(pieces: readonly string[], left: string, right: string): string[] {
  const merged: string[] = [];
  for (let i = 0; i < pieces.length; i++)
    if (pieces[i] === left && pieces[i + 1] === right) merged.push(left + pieces[++i]);
    else merged.push(pieces[i]);
  return merged;
}

/** Most frequent pair first. Entries are never moved: one whose count has changed since is skipped when it comes up. */
class PairHeap {
  readonly #items: { readonly pair: Pair; readonly count: number }[] = [];

  push(pair: Pair): void {
    const items = this.#items;
    const item = { pair, count: pair.count };
    pair.queued = pair.count;
    let at = items.push(item) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!before(item, items[parent])) break;
      items[at] = items[parent];
      at = parent;
    }
    items[at] = item;
  }

  pop(): Pair | undefined {
    const items = this.#items;
    for (;;) {
      const first = items[0];
      const last = items.pop();
      if (!first || !last) return undefined;
      if (items.length > 0) {
        let at = 0;
        for (;;) {
          let child = 2 * at + 1;
          if (child >= items.length) break;
          if (child + 1 < items.length && before(items[child + 1], items[child])) child++;
          if (!before(items[child], last)) break;
          items[at] = items[child];
          at = child;
        }
        items[at] = last;
      }
      if (first.pair.count === first.count) return first.pair;
    }
  }
}

type Queued = { readonly pair: Pair; readonly count: number };

function before(a: Queued, b: Queued): boolean {
  if (a.count !== b.count) return a.count > b.count;
  return `${a.pair.left} ${a.pair.right}` < `${b.pair.left} ${b.pair.right}`;
}
