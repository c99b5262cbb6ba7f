import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { getLlama, LlamaLogLevel } from "node-llama-cpp";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { hasRelease, Release } from "../../test/llama-release.js";
import { type ChatMessage, createChatTemplate } from "./chat.js";
import { openGguf } from "./gguf.js";
import { tokenizerFromGguf } from "./gguf-tokenizer.js";
import { createTokenizer, type Tokenizer } from "./tokenizer.js";

// Runs are alike, so that a failure is the change's.
fc.configureGlobal({ seed: 7 });

/** Published vocabularies whose texts come with the ids of the original tokenizer. */
const VOCABULARIES = [
  "llama-spm",
  "phi-3",
  "llama-bpe",
  "gpt-2",
  "qwen2",
  "qwen35",
  "falcon",
  "starcoder",
  "deepseek-coder",
];

/** Words, spaces, digits, punctuation and scripts that differ between the pre-tokenizers. */
const text = fc
  .array(
    fc.oneof(
      fc.constantFrom(
        "the ",
        " Hello",
        "world",
        "  ",
        "   ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        " \n",
        "'s",
        "'LL",
        "they'll ",
        "1234567",
        " 7",
        "3.14",
      ),
      fc.constantFrom(
        "中文字",
        "日本語です",
        "한국어",
        "Привет ",
        "é",
        "naïve",
        "🙂",
        "👩‍👩‍👧",
        "!!",
        "...",
        "((",
        " --",
        "a_b",
        "$x^2",
        "#!/bin",
        "==",
        "____",
      ),
      fc.string({ unit: "grapheme-ascii", maxLength: 8 }),
    ),
    { maxLength: 14 },
  )
  .map((parts) => parts.join("").normalize("NFC"));

describe.skipIf(!hasRelease)("published vocabularies", () => {
  let release: Release;
  let folder: string;
  beforeAll(() => {
    release = new Release();
    folder = mkdtempSync(join(tmpdir(), "fovea-"));
  });
  afterAll(() => {
    release?.close();
    if (folder) rmSync(folder, { recursive: true });
  });

  test.each(VOCABULARIES)("%s", async (name) => {
    const path = join(folder, `${name}.gguf`);
    writeFileSync(path, release.read(`models/ggml-vocab-${name}.gguf`));
    const file = await openGguf(path);
    const tokenizer = tokenizerFromGguf(file.metadata);
    await file.close();

    const texts = release.read(`models/ggml-vocab-${name}.gguf.inp`).toString().split("\n__ggml_vocab_test__\n");
    const lines = release.read(`models/ggml-vocab-${name}.gguf.out`).toString().split("\n");
    expect(texts.length).toBeGreaterThan(40);
    texts.forEach((input, i) => {
      const expected = lines[i].trim() === "" ? [] : lines[i].trim().split(" ").map(Number);
      const { ids, offsets } = tokenizer.encode(input, { special: false });
      expect(ids, JSON.stringify(input)).toEqual(expected);
      expect(covered(offsets)).toBe(input.length);
      expect(tokenizer.decode(ids)).toBe(input);
    });

    const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.disabled });
    const model = await llama.loadModel({ modelPath: path, vocabOnly: true });
    fc.assert(
      fc.property(text, (input) => {
        expect(tokenizer.encode(input, { special: false, parse: false }).ids).toEqual(model.tokenize(input, false));
      }),
      { numRuns: 100 },
    );
    expect(tokenizer.addsBos).toBe(model.tokens.shouldPrependBosToken);
    await llama.dispose();
  });

  test("a SentencePiece vocabulary as a plain list of merges", async () => {
    const file = await openGguf(new Uint8Array(release.read("models/ggml-vocab-llama-spm.gguf")));
    const { files, encode } = tokenizerFromGguf(file.metadata);
    const json = JSON.parse(JSON.stringify(files.tokenizer));
    expect(json.model.merges.length).toBeGreaterThan(60_000);
    const plain: Tokenizer = createTokenizer(json, files.config);
    fc.assert(
      fc.property(text, (input) => {
        expect(plain.encode(input)).toEqual(encode(input));
      }),
      { numRuns: 100 },
    );
  });
});

/** How far spans reach without a gap. */
function covered(offsets: readonly [number, number][]): number {
  let end = 0;
  for (const [from, to] of offsets) {
    expect(from).toBeLessThanOrEqual(end);
    end = Math.max(end, to);
  }
  return end;
}

/** Published chat templates of the families here. */
const TEMPLATES = [
  "Qwen-Qwen2.5-7B-Instruct",
  "Qwen-Qwen3-0.6B",
  "Qwen-QwQ-32B",
  "HuggingFaceTB-SmolLM3-3B",
  "meta-llama-Llama-3.1-8B-Instruct",
  "meta-llama-Llama-3.2-3B-Instruct",
  "meta-llama-Llama-3.3-70B-Instruct",
  "google-gemma-2-2b-it",
  "microsoft-Phi-3.5-mini-instruct",
  "mistralai-Mistral-Nemo-Instruct-2407",
  "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
];

describe.skipIf(!hasRelease)("published chat templates", () => {
  let release: Release;
  beforeAll(() => {
    release = new Release();
  });
  afterAll(() => release?.close());

  test.each(TEMPLATES)("%s", (name) => {
    const source = release.read(`models/templates/${name}.jinja`).toString();
    const template = createChatTemplate(source, { bos_token: "<s>", eos_token: "</s>" });
    const messages: ChatMessage[] = [
      { role: "user", content: ["What is a user?\n", "And what an assistant? "] },
      { role: "assistant", content: "A user is a user." },
      { role: "user", content: "user" },
    ];
    if (!name.includes("gemma-2")) messages.unshift({ role: "system", content: "Be brief, system." });
    const { text: rendered, messages: spans } = template.render(messages, {
      addGenerationPrompt: true,
      date: new Date(2024, 6, 26),
    });
    messages.forEach(({ content }, i) => {
      const whole = typeof content === "string" ? content : content.join("");
      const span = spans[i].content;
      expect(span, `message ${i} of ${rendered}`).toBeDefined();
      if (!span) return;
      expect(rendered.slice(...span).trim()).toBe(whole.trim());
      if (typeof content !== "string") {
        const parts = (spans[i].parts ?? []).map((part) => rendered.slice(...part).trim());
        expect(parts).toEqual(content.map((part) => part.trim()));
      }
    });
    // Nothing lies in two contents.
    const order = spans.map(({ content }) => content ?? [0, 0]).sort((a, b) => a[0] - b[0]);
    for (let i = 1; i < order.length; i++) expect(order[i][0]).toBeGreaterThan(order[i - 1][1]);
  });
});
