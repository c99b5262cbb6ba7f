import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { getLlama, type Llama, LlamaLogLevel, type LlamaModel, type Token } from "node-llama-cpp";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { byteLevelTokenizer, PRE_TOKENIZERS, sentencePieceTokenizer, unigramTokenizer } from "../../test/tokenizers.js";
import { FoveaError } from "../error.js";
import { encodeGguf, openGguf, writeGguf } from "./gguf.js";
import { ggufTokenizerFiles, tokenizerFromGguf, tokenizerToGguf } from "./gguf-tokenizer.js";
import { createTokenizer, loadTokenizer, type Tokenizer } from "./tokenizer.js";

const folder = mkdtempSync(join(tmpdir(), "fovea-"));
let llama: Llama;
beforeAll(async () => {
  llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.disabled });
});
afterAll(async () => {
  await llama.dispose();
  rmSync(folder, { recursive: true });
});

const architecture = { "general.architecture": { type: "string", value: "llama" } } as const;

/** The vocabulary in llama.cpp's hands. */
async function inLlama(tokenizer: Tokenizer, vocabSize?: number): Promise<LlamaModel> {
  const path = join(folder, `${Math.random()}.gguf`);
  await writeGguf(path, { metadata: { ...architecture, ...tokenizerToGguf(tokenizer, { vocabSize }) }, tensors: [] });
  return llama.loadModel({ modelPath: path, vocabOnly: true });
}

/** The tokenizer written to GGUF metadata and read back. */
async function throughGguf(tokenizer: Tokenizer): Promise<Tokenizer> {
  const file = await openGguf(
    await encodeGguf({ metadata: { ...architecture, ...tokenizerToGguf(tokenizer) }, tensors: [] }),
  );
  return tokenizerFromGguf(file.metadata);
}

/** Text that every implementation's Unicode tables agree on, composed, without NUL (which ends a string in C). */
const text = fc
  .array(
    fc.oneof(
      fc.constantFrom(
        "the ",
        "Lily ",
        " play",
        "  ",
        "    ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "'s",
        "'LL",
        " they'll",
        "1234",
        "7",
        "²",
      ),
      fc.constantFrom(
        "中文",
        "日本語",
        "한국어",
        "привет",
        "é",
        "naïve",
        "🙂",
        "👩‍👩‍👧",
        "!!",
        "...",
        "((",
        "--",
        "a_b",
        "$x^2",
        "aaaa",
        "____",
      ),
      fc.string({ unit: "grapheme-ascii", maxLength: 8 }),
    ),
    { maxLength: 12 },
  )
  .map((parts) => parts.join("").normalize("NFC"));

const samples = [
  ...Object.keys(PRE_TOKENIZERS).map((name) => ({ name, ...byteLevelTokenizer(name) })),
  { name: "sentencepiece with a leading space", ...sentencePieceTokenizer(true) },
  { name: "sentencepiece without", ...sentencePieceTokenizer(false) },
];

// Runs are alike, so that a failure is the change's.
fc.configureGlobal({ seed: 7 });

describe.each(samples)("$name", ({ tokenizer: json, config }) => {
  const tokenizer = createTokenizer(json, config);

  test("llama.cpp reads the same ids from the vocabulary written for it", async () => {
    const model = await inLlama(tokenizer);
    fc.assert(
      fc.property(text, (input) => {
        expect(model.tokenize(input, false)).toEqual(tokenizer.encode(input, { special: false, parse: false }).ids);
        expect(model.tokenize(input, true)).toEqual(tokenizer.encode(input, { special: false }).ids);
      }),
      { numRuns: 300 },
    );
    const end = tokenizer.eos === undefined ? "" : tokenizer.piece(tokenizer.eos);
    const mixed = `the${end} play ${end}${end}1234`;
    expect(model.tokenize(mixed, true)).toEqual(tokenizer.encode(mixed, { special: false }).ids);
    expect(model.tokenize(mixed, false)).toEqual(tokenizer.encode(mixed, { special: false, parse: false }).ids);
    expect([model.tokens.bos, model.tokens.eos]).toEqual([tokenizer.bos, tokenizer.eos]);
    expect(model.tokens.shouldPrependBosToken).toBe(tokenizer.addsBos);
    for (let id = 0; id < tokenizer.vocabSize; id += 7) {
      const piece = tokenizer.piece(id);
      // llama.cpp drops a leading space, and shows half a character as U+FFFD.
      if (!piece.includes("<")) expect(model.detokenize([id as Token], true).trimStart()).toBe(piece.trimStart());
    }
    await model.dispose();
  });

  test("written to GGUF and read back it is the same tokenizer", async () => {
    const back = await throughGguf(tokenizer);
    fc.assert(
      fc.property(text, (input) => {
        const encoding = tokenizer.encode(input);
        expect(back.encode(input)).toEqual(encoding);
        expect(back.decode(encoding.ids)).toBe(tokenizer.decode(encoding.ids));
      }),
      { numRuns: 200 },
    );
    expect([back.bos, back.eos, back.addsBos, back.vocabSize]).toEqual([
      tokenizer.bos,
      tokenizer.eos,
      tokenizer.addsBos,
      tokenizer.vocabSize,
    ]);
    // And as a tokenizer.json, which is what a converted checkpoint gets.
    const files = JSON.parse(JSON.stringify({ ...back.files, scores: undefined }));
    const written = createTokenizer(files.tokenizer, files.config);
    expect(files.tokenizer.model.merges.length).toBeGreaterThan(100);
    fc.assert(
      fc.property(text, (input) => {
        expect(written.encode(input)).toEqual(tokenizer.encode(input));
      }),
      { numRuns: 200 },
    );
  });
});

describe("SentencePiece by scores", () => {
  const byte = (n: number): string => `<0x${n.toString(16).toUpperCase().padStart(2, "0")}>`;

  /** Metadata of a vocabulary of these pieces and scores, after the special and byte tokens. */
  function metadata(pieces: Record<string, number>): Record<string, unknown> {
    const bytes = Array.from({ length: 256 }, (_, n) => byte(n));
    const tokens = ["<unk>", "<s>", "</s>", ...bytes, ...Object.keys(pieces)];
    return {
      "tokenizer.ggml.model": "llama",
      "tokenizer.ggml.tokens": tokens,
      "tokenizer.ggml.scores": Float32Array.from([0, 0, 0, ...bytes.map(() => 0), ...Object.values(pieces)]),
      "tokenizer.ggml.token_type": Int32Array.from([
        2,
        3,
        3,
        ...bytes.map(() => 6),
        ...Object.values(pieces).map(() => 1),
      ]),
      "tokenizer.ggml.bos_token_id": 1,
      "tokenizer.ggml.eos_token_id": 2,
      "tokenizer.ggml.unknown_token_id": 0,
    };
  }
  const show = (tokenizer: Tokenizer, input: string): string[] =>
    tokenizer.encode(input, { special: false }).ids.map((id) => tokenizer.vocabulary.get(id) ?? "");

  test("the highest score merges first, the leftmost of equals", () => {
    const tokenizer = tokenizerFromGguf(metadata({ "▁": -9, a: -9, b: -9, c: -9, ab: -2, bc: -1, aa: -3, aaa: -4 }));
    expect(show(tokenizer, "abc")).toEqual(["▁", "a", "bc"]);
    // aa at the left first, and then aaa of aa and a, not of a and aa.
    expect(show(tokenizer, "aaaaa")).toEqual(["▁", "aa", "aaa"]);
    expect(show(tokenizer, "ä")).toEqual(["▁", "<0xC3>", "<0xA4>"]);
  });

  test("random vocabularies with equal scores merge as in llama.cpp", async () => {
    const pieces = fc.dictionary(
      fc.string({ unit: fc.constantFrom("a", "b", "▁", "é"), minLength: 1, maxLength: 4 }),
      fc.integer({ min: -4, max: 0 }),
      {
        minKeys: 4,
        maxKeys: 20,
      },
    );
    const inputs = fc.array(fc.string({ unit: fc.constantFrom("a", "b", " ", "é", "c"), maxLength: 12 }), {
      minLength: 10,
      maxLength: 10,
    });
    await fc.assert(
      fc.asyncProperty(pieces, inputs, async (dictionary, list) => {
        const tokenizer = tokenizerFromGguf(metadata(dictionary));
        const model = await inLlama(tokenizer);
        for (const input of list) {
          expect(model.tokenize(input, false), input).toEqual(tokenizer.encode(input, { special: false }).ids);
        }
        await model.dispose();
      }),
      { numRuns: 40 },
    );
  });
});

describe("what cannot be read or written", () => {
  const good = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab"],
    "tokenizer.ggml.merges": ["a b"],
  };
  test.each<[string, Record<string, unknown>, RegExp]>([
    ["another model", { ...good, "tokenizer.ggml.model": "rwkv" }, /model .*rwkv.* is not known/],
    ["no model", {}, /tokens must be a list/],
    ["no tokens", { ...good, "tokenizer.ggml.tokens": undefined }, /tokens must be a list/],
    ["tokens of numbers", { ...good, "tokenizer.ggml.tokens": [1] }, /tokens must be a list/],
    ["a token twice", { ...good, "tokenizer.ggml.tokens": ["a", "a"] }, /twice/],
    ["another pre-tokenizer", { ...good, "tokenizer.ggml.pre": "magic" }, /pre-tokenizer .*magic/],
    ["no merges", { ...good, "tokenizer.ggml.merges": undefined }, /merges/],
    ["merges that are none", { ...good, "tokenizer.ggml.merges": ["ab"] }, /merges/],
    ["too few types", { ...good, "tokenizer.ggml.token_type": Int32Array.of(1) }, /token_type must be a list of 3/],
  ])("%s", (_, metadata, message) => {
    expect(() => tokenizerFromGguf(metadata)).toThrow(FoveaError);
    expect(() => tokenizerFromGguf(metadata)).toThrow(message);
  });

  test("a vocabulary that GGUF cannot express", () => {
    const unigram = unigramTokenizer();
    expect(() => tokenizerToGguf(createTokenizer(unigram.tokenizer, unigram.config))).toThrow(/only BPE/);
    const { tokenizer, config } = byteLevelTokenizer("gpt-2");
    const odd = {
      ...tokenizer,
      pre_tokenizer: { type: "Sequence", pretokenizers: [{ type: "WhitespaceSplit" }, tokenizer.pre_tokenizer] },
    };
    expect(() => tokenizerToGguf(createTokenizer(odd, config))).toThrow(/no name for the pre-tokenizer/);
  });

  test("a token named __proto__ is a token", () => {
    const tokenizer = tokenizerFromGguf({ ...good, "tokenizer.ggml.tokens": ["a", "b", "ab", "__proto__"] });
    expect(tokenizer.id("__proto__")).toBe(3);
    expect(Object.keys(ggufTokenizerFiles(good).tokenizer)).toContain("model");
  });
});

const stories = join(import.meta.dirname, "../../../shared/checkpoints/stories260K");
describe.skipIf(!existsSync(stories))("stories260K", () => {
  test("its GGUF vocabulary gives the reference ids here and in llama.cpp, padded too", async () => {
    const tokenizer = await loadTokenizer(stories);
    const { prompt, prompt_ids: ids } = JSON.parse(readFileSync(join(stories, "reference.json"), "utf8"));
    const back = await throughGguf(tokenizer);
    expect(back.encode(prompt).ids).toEqual(ids);
    const model = await inLlama(tokenizer, 520);
    expect([model.tokens.bos, ...model.tokenize(prompt)]).toEqual(ids);
    fc.assert(
      fc.property(text, (input) => {
        const expected = tokenizer.encode(input, { special: false }).ids;
        expect(back.encode(input, { special: false }).ids).toEqual(expected);
        expect(model.tokenize(input)).toEqual(expected);
      }),
      { numRuns: 300 },
    );
    await model.dispose();
  });
});
