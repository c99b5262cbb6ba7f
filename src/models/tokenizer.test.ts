import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { byteLevelTokenizer, PRE_TOKENIZERS, sentencePieceTokenizer, unigramTokenizer } from "../../test/tokenizers.js";
import { FoveaError } from "../error.js";
import { createTokenizer, type Encoding, loadTokenizer, type Tokenizer } from "./tokenizer.js";
import { HfTokenizer } from "./tokenizer-library.js";

interface Sample {
  name: string;
  tokenizer: Record<string, unknown>;
  config: Record<string, unknown>;
  /** The tokenizer keeps every character, as far as bytes go. */
  lossless: boolean;
}

const SAMPLES: Sample[] = [
  ...Object.keys(PRE_TOKENIZERS).map((name) => ({ name, ...byteLevelTokenizer(name), lossless: name !== "qwen2" })),
  { name: "sentencepiece with a leading space", ...sentencePieceTokenizer(true), lossless: true },
  { name: "sentencepiece without", ...sentencePieceTokenizer(false), lossless: true },
  { name: "unigram", ...unigramTokenizer(), lossless: false },
];

/** Text with words, spaces, marks, emoji of many units, Hangul in parts, special tokens and whole-range characters. */
const anyText = fc
  .array(
    fc.oneof(
      fc.constantFrom(
        "the ",
        "Lily ",
        " play",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "'s",
        "1234",
        "中文",
        "🙂",
        "👩‍👩‍👧",
        "é",
        "e\u0301",
        "각",
        "ñ",
      ),
      fc.constantFrom(
        "<s>",
        "<|im_end|>",
        "<tool>",
        "<0x41>",
        "▁",
        "Ġ",
        "ﬁ",
        "\u0301",
        "\u{1D15E}",
        "한국어",
        "\u0000",
        "\uFEFF",
      ),
      fc.string({ unit: "binary", maxLength: 4 }),
      fc.string({ unit: "grapheme", maxLength: 6 }),
    ),
    { maxLength: 12 },
  )
  .map((parts) => parts.join(""));

/** A lone half of a surrogate pair cannot be encoded and becomes U+FFFD. */
const wellFormed = (text: string): string =>
  new TextDecoder("utf-8", { ignoreBOM: true }).decode(new TextEncoder().encode(text));

/** Spans lie in the text, never go back and leave nothing out. */
function checkCover(text: string, { ids, offsets }: Encoding): void {
  expect(offsets.length).toBe(ids.length);
  let covered = 0;
  let start = 0;
  for (const [from, to] of offsets) {
    expect(from).toBeGreaterThanOrEqual(start);
    expect(from).toBeLessThanOrEqual(covered);
    expect(to).toBeGreaterThanOrEqual(from);
    expect(to).toBeLessThanOrEqual(text.length);
    start = from;
    covered = Math.max(covered, to);
  }
  expect(covered).toBe(text.length);
}

// Runs are alike, so that a failure is the change's.
fc.configureGlobal({ seed: 7 });

describe.each(SAMPLES)("$name", ({ name, tokenizer: json, config, lossless }) => {
  const tokenizer = createTokenizer(json, config);
  const library = new HfTokenizer(json, config);

  test("ids are the library's", () => {
    fc.assert(
      fc.property(anyText, (text) => {
        // The library takes only ASCII digits for digits; the original takes all.
        if (name === "smollm" && /[^\p{ASCII}]/u.test(text) && /(?![0-9])\p{N}/u.test(text)) return;
        expect(tokenizer.encode(text).ids).toEqual(library.encode(text).ids);
        expect(tokenizer.encode(text, { special: false }).ids).toEqual(
          library.encode(text, { add_special_tokens: false }).ids,
        );
      }),
      { numRuns: 300 },
    );
  });

  test("offsets cover any text in order", () => {
    fc.assert(
      fc.property(anyText, (text) => {
        checkCover(text, tokenizer.encode(text, { special: false }));
      }),
      { numRuns: 300 },
    );
  });

  test("the text of a token's span holds the token's text", () => {
    fc.assert(
      fc.property(anyText, (text) => {
        const { ids, offsets } = tokenizer.encode(text, { special: false });
        ids.forEach((id, i) => {
          const piece = tokenizer.piece(id);
          if (/<0x[0-9A-F]{2}>/.test(piece) || id === tokenizer.unknown) return;
          const span = text.slice(...offsets[i]);
          if (name === "qwen2") expect(span.normalize("NFC")).toContain(piece);
          // An added leading space stands for no character; a mark in the text decodes to a space.
          else
            expect(` ${span}`.replaceAll("▁", " ").endsWith(piece.replaceAll("▁", " ")), `${span}|${piece}`).toBe(true);
        });
      }),
      { numRuns: 200 },
    );
  });

  test("decoding gives the text back", () => {
    fc.assert(
      fc.property(anyText, (text) => {
        const { ids } = tokenizer.encode(text, { special: false });
        const back = tokenizer.decode(ids);
        if (name === "qwen2") expect(back).toBe(wellFormed(text).normalize("NFC"));
        if (!lossless || text.includes("▁")) return;
        // Two leading spaces appear where a text begins with a special token: then each section gets one.
        if (name.includes("leading") && /<s>|<0x/.test(text)) return;
        if (name.includes("sentence") && text.includes("<0x")) return;
        expect(back).toBe(wellFormed(text));
      }),
      { numRuns: 200 },
    );
  });

  test("a stream gives what decoding gives, and never half a character", () => {
    fc.assert(
      fc.property(fc.array(fc.nat({ max: tokenizer.vocabSize - 1 }), { maxLength: 30 }), (ids) => {
        const stream = tokenizer.stream({ skipSpecial: false, start: true });
        const parts = [...ids.map((id) => stream.push(id)), stream.end()];
        expect(parts.join("")).toBe(tokenizer.decode(ids));
        for (const part of parts) expect(part).toBe(wellFormed(part));
      }),
      { numRuns: 300 },
    );
  });

  test("decoding agrees with the library's", () => {
    fc.assert(
      fc.property(anyText, (text) => {
        // The library's byte fallback drops a byte order mark.
        if (text.includes("\uFEFF")) return;
        const { ids } = tokenizer.encode(text);
        if (ids.length === 0) return;
        for (const skipSpecial of [false, true]) {
          const list = skipSpecial ? ids.filter((id) => !tokenizer.isSpecial(id)) : ids;
          if (list.length === 0) continue;
          const theirs = library.decode(list, { clean_up_tokenization_spaces: false });
          expect(tokenizer.decode(ids, { skipSpecial })).toBe(theirs);
        }
      }),
      { numRuns: 200 },
    );
  });
});

describe("offsets by hand", () => {
  const pieces = (tokenizer: Tokenizer, text: string): [string, string][] => {
    const { ids, offsets } = tokenizer.encode(text);
    return ids.map((id, i) => [tokenizer.piece(id), text.slice(...offsets[i])]);
  };

  test("byte-level: the tokens of one character share its span", () => {
    const { tokenizer, config } = byteLevelTokenizer("gpt-2");
    expect(pieces(createTokenizer(tokenizer, config), "he ☃")).toEqual([
      ["he", "he"],
      [" ", " "],
      ["<0xE2>", "☃"],
      ["<0x98>", "☃"],
      ["<0x83>", "☃"],
    ]);
  });

  test("sentencepiece: the added space stands for nothing, bytes share a character", () => {
    const { tokenizer, config } = sentencePieceTokenizer(true);
    expect(pieces(createTokenizer(tokenizer, config), "☃ the")).toEqual([
      ["<s>", ""],
      [" ", ""],
      ["<0xE2>", "☃"],
      ["<0x98>", "☃"],
      ["<0x83>", "☃"],
      [" the", " the"],
    ]);
  });

  test("a composed character covers what it was composed of", () => {
    const { tokenizer, config } = byteLevelTokenizer("qwen2");
    const { ids, offsets } = createTokenizer(tokenizer, config).encode("cafe\u0301!");
    expect(offsets.at(-1)).toEqual([5, 6]);
    expect(offsets.at(-2)).toEqual([ids.length > 2 ? offsets.at(-2)?.[0] : 0, 5]);
  });

  test("special tokens are read, or not", () => {
    const { tokenizer, config } = byteLevelTokenizer("gpt-2");
    const made = createTokenizer(tokenizer, config);
    const end = made.id("<|im_end|>");
    expect(made.encode("a<|im_end|>b").ids).toContain(end);
    expect(made.encode("a<|im_end|>b", { parse: false }).ids).not.toContain(end);
    expect(made.encode("a<tool>b", { parse: false }).ids).toContain(made.id("<tool>"));
    expect(made.encode("a<|im_end|>b").offsets).toEqual([
      [0, 1],
      [1, 11],
      [11, 12],
    ]);
  });

  test("stripping and whole-word special tokens", () => {
    const { tokenizer, config } = byteLevelTokenizer("gpt-2");
    const added = (tokenizer.added_tokens as Record<string, unknown>[]).map((token, i) => ({
      ...token,
      lstrip: i === 0,
      rstrip: i === 0,
      single_word: i === 1,
    }));
    const made = createTokenizer({ ...tokenizer, added_tokens: added }, config);
    expect(pieces(made, "a <|begin|>  b")).toEqual([
      ["a", "a"],
      ["<|begin|>", " <|begin|>  "],
      ["b", "b"],
    ]);
    expect(made.encode("x<|im_end|>").ids).not.toContain(made.id("<|im_end|>"));
    expect(made.encode("x <|im_end|>").ids).toContain(made.id("<|im_end|>"));
  });
});

describe("streaming", () => {
  const { tokenizer: json, config } = sentencePieceTokenizer(true);
  const tokenizer = createTokenizer(json, config);

  test("a character of several byte tokens comes out whole", () => {
    const ids = [0xf0, 0x9f, 0x99, 0x82].map((byte) => tokenizer.id(`<0x${byte.toString(16).toUpperCase()}>`) ?? -1);
    const stream = tokenizer.stream();
    expect(ids.map((id) => stream.push(id))).toEqual(["", "", "", "🙂"]);
    expect(stream.end()).toBe("");
    const cut = tokenizer.stream();
    expect(ids.slice(0, 2).map((id) => cut.push(id))).toEqual(["", ""]);
    expect(cut.end()).toBe("\uFFFD");
  });

  test("a continuation keeps its leading space, a beginning loses it", () => {
    const [id] = tokenizer.encode("the", { special: false }).ids;
    expect(tokenizer.stream().push(id)).toBe(" the");
    expect(tokenizer.stream({ start: true }).push(id)).toBe("the");
    expect(tokenizer.decode([id])).toBe("the");
    expect(tokenizer.decode([id], { start: false })).toBe(" the");
  });
});

describe("malformed files", () => {
  const good = byteLevelTokenizer("gpt-2").tokenizer;
  const model = good.model as Record<string, unknown>;
  test.each<[string, unknown]>([
    ["null", null],
    ["a list", []],
    ["no model", { ...good, model: undefined }],
    ["an unknown model", { ...good, model: { ...model, type: "Magic" } }],
    ["no vocab", { ...good, model: { ...model, vocab: undefined } }],
    ["a negative id", { ...good, model: { ...model, vocab: { a: -1 } } }],
    ["an absurd id", { ...good, model: { ...model, vocab: { a: 1e12 } } }],
    ["merges of numbers", { ...good, model: { ...model, merges: [1, 2] } }],
    ["merges of one word", { ...good, model: { ...model, merges: ["ab"] } }],
    ["mixed merges", { ...good, model: { ...model, merges: [["a", "b"], "c d"] } }],
    ["added tokens that are none", { ...good, added_tokens: [{}] }],
    ["an empty added token", { ...good, added_tokens: [{ id: 1, content: "" }] }],
    ["an unknown normalizer", { ...good, normalizer: { type: "Rot13" } }],
    ["a normalizer without a pattern", { ...good, normalizer: { type: "Replace", content: "x" } }],
    ["a broken pattern", { ...good, pre_tokenizer: { type: "Split", pattern: { Regex: "(" }, behavior: "Isolated" } }],
    ["pieces of length 0", { ...good, pre_tokenizer: { type: "FixedLength", length: 0 } }],
    ["an unknown pre-tokenizer", { ...good, pre_tokenizer: { type: "Magic" } }],
    ["an unknown decoder", { ...good, decoder: { type: "Magic" } }],
    ["an unknown post-processor", { ...good, post_processor: { type: "Magic" } }],
    [
      "a post-processor with a token that is none",
      {
        ...good,
        post_processor: {
          type: "TemplateProcessing",
          single: [{ SpecialToken: { id: "<x>" } }, { Sequence: { id: "A" } }],
          pair: [],
        },
      },
    ],
    ["a unigram of nothing", { ...good, model: { type: "Unigram", vocab: [] } }],
  ])("%s is refused", (_, json) => {
    expect(() => createTokenizer(json)).toThrow(FoveaError);
  });

  test("a normalizer that grows without bound is stopped", () => {
    const grow = { type: "Replace", pattern: { String: "a" }, content: "aaaaaaaaaaaaaaaa" };
    const made = createTokenizer({ ...good, normalizer: { type: "Sequence", normalizers: [grow, grow, grow, grow] } });
    expect(() => made.encode("aaaa".repeat(100))).toThrow(/normalize to/);
  });

  test("token ids that are none are refused; unassigned ones are empty", () => {
    const made = createTokenizer(good);
    expect(() => made.decode([1.5])).toThrow(FoveaError);
    expect(() => made.piece(-1)).toThrow(FoveaError);
    expect(made.decode([1_000_000])).toBe("");
  });
});

const stories = join(import.meta.dirname, "../../../shared/checkpoints/stories260K");
describe.skipIf(!existsSync(stories))("stories260K", async () => {
  const tokenizer = existsSync(stories) ? await loadTokenizer(stories) : undefined;
  const reference = existsSync(stories) ? JSON.parse(readFileSync(join(stories, "reference.json"), "utf8")) : undefined;

  test("encodes and decodes the reference", () => {
    if (!tokenizer) return;
    expect(tokenizer.encode(reference.prompt).ids).toEqual(reference.prompt_ids);
    expect(tokenizer.decode(reference.prompt_ids, { skipSpecial: true })).toBe(reference.prompt);
    expect(tokenizer.decode(reference.greedy_ids, { start: false })).toBe(reference.greedy_text);
    const stream = tokenizer.stream();
    expect(reference.greedy_ids.map((id: number) => stream.push(id)).join("") + stream.end()).toBe(
      reference.greedy_text,
    );
    expect([tokenizer.vocabSize, tokenizer.bos, tokenizer.eos, tokenizer.addsBos]).toEqual([512, 1, 2, true]);
  });
});
