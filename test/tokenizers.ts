/**
 * Small tokenizers of every kind, made on the spot, so that tests need no download. Each is a tokenizer.json.
 */

/** GPT-2's printable character for each byte. */
export const BYTES: readonly string[] = (() => {
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) =>
    String.fromCharCode((byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174 ? byte : next++),
  );
})();

const TEXT = `Once upon a time there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big,
red ball; "Can I play with it?" she asked. It's 1234 o'clock and they'll be here. Ünïcödé: café naïve, 中文字符 日本語 한국어 привет мир
function main() {\n    return 42;\n}\n\n\nThe the there then these those. Don't, won't, I'm, you're, we've. 🙂🙃 👩‍👩‍👧 e\u0301`;

/** Learns byte-pair merges from words, the plain way. */
export function learnMerges(words: readonly string[], count: number): [string, string][] {
  let split = words.map((word) => [...word]);
  const merges: [string, string][] = [];
  while (merges.length < count) {
    const seen = new Map<string, { pair: [string, string]; n: number }>();
    for (const word of split) {
      for (let i = 0; i + 1 < word.length; i++) {
        const key = JSON.stringify([word[i], word[i + 1]]);
        const entry = seen.get(key) ?? { pair: [word[i], word[i + 1]] as [string, string], n: 0 };
        entry.n++;
        seen.set(key, entry);
      }
    }
    const best = [...seen.values()].reduce((a, b) => (b.n > a.n ? b : a), { pair: ["", ""] as [string, string], n: 0 });
    if (best.n === 0) break;
    merges.push(best.pair);
    split = split.map((word) => {
      const out: string[] = [];
      for (let i = 0; i < word.length; i++) {
        if (word[i] === best.pair[0] && word[i + 1] === best.pair[1]) {
          out.push(best.pair[0] + best.pair[1]);
          i++;
        } else out.push(word[i]);
      }
      return out;
    });
  }
  return merges;
}

const LLAMA3 =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const split = (Regex: string): object => ({ type: "Split", pattern: { Regex }, behavior: "Isolated", invert: false });
const bytes = (use_regex: boolean): object => ({
  type: "ByteLevel",
  add_prefix_space: false,
  trim_offsets: true,
  use_regex,
});

/** The pre-tokenizers of the byte-level families. */
export const PRE_TOKENIZERS: Readonly<Record<string, object>> = {
  "gpt-2": bytes(true),
  "llama-bpe": { type: "Sequence", pretokenizers: [split(LLAMA3), bytes(false)] },
  qwen2: { type: "Sequence", pretokenizers: [split(LLAMA3.replace("{1,3}", "")), bytes(false)] },
  smollm: { type: "Sequence", pretokenizers: [{ type: "Digits", individual_digits: true }, bytes(true)] },
};

const special = (id: number, content: string, more: object = {}): object => ({
  id,
  content,
  single_word: false,
  lstrip: false,
  rstrip: false,
  normalized: false,
  special: true,
  ...more,
});

/** A byte-level BPE in the style of a family of `PRE_TOKENIZERS`. */
export function byteLevelTokenizer(style: string): {
  tokenizer: Record<string, unknown>;
  config: Record<string, unknown>;
} {
  const words = (TEXT.match(/ ?[^\s]+|\s+/gu) ?? []).map((word) =>
    [...new TextEncoder().encode(word)].map((byte) => BYTES[byte]).join(""),
  );
  const merges = learnMerges(words, 200);
  const vocab: Record<string, number> = {};
  for (const token of [...BYTES, ...merges.map((pair) => pair.join(""))]) vocab[token] ??= Object.keys(vocab).length;
  const next = Object.keys(vocab).length;
  return {
    tokenizer: {
      version: "1.0",
      truncation: null,
      padding: null,
      added_tokens: [
        special(next, "<|begin|>"),
        special(next + 1, "<|im_end|>"),
        special(next + 2, "<tool>", { special: false }),
      ],
      normalizer: style === "qwen2" ? { type: "NFC" } : null,
      pre_tokenizer: PRE_TOKENIZERS[style],
      post_processor:
        style === "llama-bpe"
          ? {
              type: "Sequence",
              processors: [
                bytes(true),
                {
                  type: "TemplateProcessing",
                  single: [{ SpecialToken: { id: "<|begin|>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
                  pair: [],
                  special_tokens: { "<|begin|>": { id: "<|begin|>", ids: [next], tokens: ["<|begin|>"] } },
                },
              ],
            }
          : bytes(true),
      decoder: bytes(true),
      model: {
        type: "BPE",
        dropout: null,
        unk_token: null,
        continuing_subword_prefix: "",
        end_of_word_suffix: "",
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: style === "llama-bpe",
        vocab,
        merges: merges.map((pair) => pair.join(" ")),
      },
    },
    config: {
      bos_token: "<|begin|>",
      eos_token: "<|im_end|>",
      tokenizer_class: "PreTrainedTokenizerFast",
      clean_up_tokenization_spaces: false,
    },
  };
}

/** A SentencePiece vocabulary as BPE with byte fallback: Llama 2's way (with a leading space), or Gemma's (without). */
export function sentencePieceTokenizer(leadingSpace: boolean): {
  tokenizer: Record<string, unknown>;
  config: Record<string, unknown>;
} {
  const words = TEXT.replaceAll(/\s+/g, " ")
    .split(" ")
    .map((word) => `▁${word}`);
  const learnt = learnMerges(words, 250);
  const vocab: Record<string, number> = {};
  const add = (token: string): void => {
    vocab[token] ??= Object.keys(vocab).length;
  };
  for (const token of ["<unk>", "<s>", "</s>"]) add(token);
  for (let byte = 0; byte < 256; byte++) add(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
  for (const pair of learnt) add(pair.join(""));
  const rankable = new Set(learnt.map((pair) => pair.join("")));
  // Like SentencePiece: single characters come last; rare ones are left to the bytes.
  for (const character of new Set(words.join("")))
    if (character < "\u0500" || character === "▁" || [...rankable].some((token) => token.includes(character)))
      add(character);
  const rank = new Map(learnt.map((pair, i) => [pair.join(""), i]));
  const merges: [string, string][] = [];
  for (const [token, at] of [...rank].sort((a, b) => a[1] - b[1])) {
    const characters = [...token];
    for (let i = 1; i < characters.length; i++) {
      const pair: [string, string] = [characters.slice(0, i).join(""), characters.slice(i).join("")];
      if (Object.hasOwn(vocab, pair[0]) && Object.hasOwn(vocab, pair[1]) && at >= 0) merges.push(pair);
    }
  }
  const space = { type: "Replace", pattern: { String: " " }, content: "▁" };
  const back = [
    { type: "Replace", pattern: { String: "▁" }, content: " " },
    { type: "ByteFallback" },
    { type: "Fuse" },
  ];
  return {
    tokenizer: {
      version: "1.0",
      added_tokens: [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
      normalizer: leadingSpace ? { type: "Sequence", normalizers: [{ type: "Prepend", prepend: "▁" }, space] } : space,
      pre_tokenizer: null,
      post_processor: {
        type: "TemplateProcessing",
        single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
        pair: [],
        special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } },
      },
      decoder: {
        type: "Sequence",
        decoders: leadingSpace ? [...back, { type: "Strip", content: " ", start: 1, stop: 0 }] : back,
      },
      model: {
        type: "BPE",
        dropout: null,
        unk_token: "<unk>",
        continuing_subword_prefix: null,
        end_of_word_suffix: null,
        fuse_unk: true,
        byte_fallback: true,
        ignore_merges: false,
        vocab,
        merges,
      },
    },
    config: {
      bos_token: "<s>",
      eos_token: "</s>",
      unk_token: "<unk>",
      add_bos_token: true,
      add_eos_token: false,
      tokenizer_class: leadingSpace ? "LlamaTokenizer" : "GemmaTokenizer",
    },
  };
}

/** A unigram vocabulary with a Metaspace pre-tokenizer. */
export function unigramTokenizer(): { tokenizer: Record<string, unknown>; config: Record<string, unknown> } {
  const { tokenizer } = sentencePieceTokenizer(true);
  const { vocab } = tokenizer.model as { vocab: Record<string, number> };
  const pieces = Object.keys(vocab)
    .sort((a, b) => vocab[a] - vocab[b])
    .filter((piece) => !piece.startsWith("<0x"))
    .map((piece, i): [string, number] => [piece, i < 3 ? 0 : -5 - i / 50 + [...piece].length]);
  return {
    tokenizer: {
      version: "1.0",
      added_tokens: [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
      normalizer: null,
      pre_tokenizer: { type: "Metaspace", replacement: "▁", prepend_scheme: "always", split: true },
      post_processor: {
        type: "TemplateProcessing",
        single: [{ Sequence: { id: "A", type_id: 0 } }, { SpecialToken: { id: "</s>", type_id: 0 } }],
        pair: [],
        special_tokens: { "</s>": { id: "</s>", ids: [2], tokens: ["</s>"] } },
      },
      decoder: { type: "Metaspace", replacement: "▁", prepend_scheme: "always", split: true },
      model: { type: "Unigram", unk_id: 0, vocab: pieces },
    },
    config: { eos_token: "</s>", unk_token: "<unk>", tokenizer_class: "T5Tokenizer" },
  };
}
