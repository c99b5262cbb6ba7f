import { byteLevelTokenizer } from "./byte-level.js";
import { createTokenizer, type Tokenizer } from "./tokenizer.js";
import { BYTE_CHARACTERS } from "./tokenizer-align.js";

/** Text from which the merges of the tiny tokenizer are learnt. */
const TEXT = `Attention is what a model reads when it writes the next word. Each head looks back over the text and
weighs what it finds there: the first token, the last few words, the same word somewhere above, the end of a sentence.
Most of what is looked at is near, and some of it is far away. A cache holds the keys and the values of all the tokens
that were read, and the question is always the same: which of them does this head need now? When the answer is known
before the work is done, most of the work need not be done at all. There was once a little house by the sea, and in the
house there lived an old woman and her cat. Every morning the cat went down to the water to see what the waves had left
there in the night, and every evening it came back to tell her. One day it did not come back, and so she put on her coat
and went to look for it. The wind was cold and the sand was wet, but she walked on until she found it.`;

/** Tokens of the tiny tokenizer that stand for no text: BOS, EOS. */
const SPECIAL = ["<|begin|>", "<|end|>"];

/**
 * A small byte-level BPE tokenizer for random models: BOS is 0, EOS is 1, then all bytes, then as many merges learnt
 * from a few sentences as fit. It encodes any text.
 * @param vocab number of tokens, at least 258; where the text gives fewer merges the rest is left out. Default 384
 */
export function tinyTokenizer(vocab = 384): Tokenizer {
  const vocabulary: Record<string, number> = {};
  const add = (token: string): void => {
    vocabulary[token] ??= Object.keys(vocabulary).length;
  };
  for (const token of SPECIAL) add(token);
  for (const character of BYTE_CHARACTERS) add(character);
  const merges: [string, string][] = [];
  let words = countWords();
  let size = Object.keys(vocabulary).length;
  while (size < vocab) {
    const best = mostFrequentPair(words);
    if (!best) break;
    merges.push(best);
    words = words.map(({ pieces, count }) => ({ pieces: merge(pieces, best), count }));
    add(best.join(""));
    size = Object.keys(vocabulary).length;
  }
  return createTokenizer(
    byteLevelTokenizer({
      pieces: Object.keys(vocabulary),
      merges,
      special: SPECIAL,
      begin: null,
      digits: "together",
    }),
    {
      tokenizer_class: "GPT2Tokenizer",
      bos_token: SPECIAL[0],
      eos_token: SPECIAL[1],
      add_bos_token: false,
      add_eos_token: false,
      add_prefix_space: false,
    },
  );
}

interface Word {
  readonly pieces: readonly string[];
  readonly count: number;
}

/** Words of the text with their leading space, in byte characters, with how often each occurs. */
function countWords(): Word[] {
  const counts = new Map<string, number>();
  for (const [word] of TEXT.replaceAll("\n", " ").matchAll(/ ?\p{L}+| ?[^\s\p{L}]+|\s+/gu)) {
    counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  return [...counts].map(([word, count]) => ({
    pieces: Array.from(new TextEncoder().encode(word), (byte) => BYTE_CHARACTERS[byte]),
    count,
  }));
}

/** The most frequent pair of neighbours; of equal ones the first met. */
function mostFrequentPair(words: readonly Word[]): [string, string] | undefined {
  const counts = new Map<string, { pair: [string, string]; count: number }>();
  for (const { pieces, count } of words) {
    for (let i = 1; i < pieces.length; i++) {
      const pair: [string, string] = [pieces[i - 1], pieces[i]];
      const entry = counts.get(pair.join(" ")) ?? { pair, count: 0 };
      entry.count += count;
      counts.set(pair.join(" "), entry);
    }
  }
  let best: { pair: [string, string]; count: number } | undefined;
  for (const entry of counts.values()) if (entry.count > (best?.count ?? 0)) best = entry;
  return best?.pair;
}

function merge(pieces: readonly string[], [a, b]: readonly [string, string]): string[] {
  const out: string[] = [];
  for (let i = 0; i < pieces.length; i++) {
    if (pieces[i] === a && pieces[i + 1] === b) {
      out.push(a + b);
      i++;
    } else {
      out.push(pieces[i]);
    }
  }
  return out;
}
