import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { convert, openCheckpoint } from "../models/index.js";
import { learnMerges, trainTokenizer, trainTokenizerFiles } from "./bpe.js";
import { decoder } from "./trainable.js";

const TEXTS = [
  "The ferry leaves at 7:45 and again at 17:45; the last one leaves at 23:10. She wasn't there, they're sure.",
  "low low low low low lower lower newest newest newest newest newest newest widest widest widest",
  "Übermut tut selten gut — naïve café, 12 345,67 € und 2024! \n\n\tindented = true;",
];
const tokenizer = trainTokenizer(TEXTS, { vocabulary: 284 });

describe("trainTokenizer", () => {
  it("learns the merges of the paper's example, most frequent first", () => {
    // arXiv:1508.07909: low 5, lower 2, newest 6, widest 3; "es" and "st" both occur 9 times, "es" sorts first
    const words = new Map([
      ["low", 5],
      ["lower", 2],
      ["newest", 6],
      ["widest", 3],
    ]);
    const merges = learnMerges(words, 4, 2).map((m) => m.join("+"));
    expect(merges).toEqual(["e+s", "es+t", "l+o", "lo+w"]);
  });

  it("counts a merge of repeated letters as it is made, from the left", () => {
    // aaaa: three pairs at first, two pieces after the merge, one pair left
    expect(
      learnMerges(
        new Map([
          ["aaaa", 2],
          ["aaa", 1],
        ]),
        2,
        2,
      ),
    ).toEqual([
      ["a", "a"],
      ["aa", "aa"],
    ]);
  });

  it("is what recounting everything after each merge gives", () => {
    const word = fc.array(fc.constantFrom("a", "b", "c"), { minLength: 1, maxLength: 9 }).map((w) => w.join(""));
    fc.assert(
      fc.property(fc.dictionary(word, fc.integer({ min: 1, max: 5 }), { maxKeys: 12 }), (counts) => {
        const words = new Map(Object.entries(counts));
        expect(learnMerges(words, 8, 2)).toEqual(byRecounting(words, 8, 2));
      }),
    );
  });

  it("encodes any text as plain byte-pair merging does, and reads it back", () => {
    const { merges } = trainTokenizerFiles(TEXTS, { vocabulary: 284 }).tokenizer.model as { merges: string[] };
    const text = fc.oneof(fc.string({ unit: "binary" }), fc.string({ unit: "grapheme" }), fc.constantFrom(...TEXTS));
    fc.assert(
      fc.property(text, (x) => {
        if (/\p{Cs}/u.test(x) || /<\|(begin|end)\|>/.test(x)) return;
        const { ids } = tokenizer.encode(x, { special: false });
        expect(tokenizer.decode(ids)).toBe(x);
        expect(ids).toEqual(plainEncode(x, merges));
      }),
    );
  });

  it("keeps every digit apart, unless told otherwise, and special tokens whole", () => {
    const pieces = (t: typeof tokenizer, text: string) =>
      t.encode(text, { special: false }).ids.map((id) => t.piece(id));
    const numbers = Array.from({ length: 40 }, () => "in 2024 and 2024").join(" ");
    const apart = trainTokenizer([numbers], { vocabulary: 263 });
    const together = trainTokenizer([numbers], { vocabulary: 263, digits: "together" });
    expect(pieces(apart, "2024").join("|")).toBe("2|0|2|4");
    expect([...apart.vocabulary.values()].filter((v) => /\d/.test(v) && v.length > 1)).toEqual([]);
    expect(pieces(together, " 2024").length).toBeLessThan(3);
    expect(tokenizer.encode("a<|end|>b", { special: true }).ids.slice(0, 3)).toEqual([
      tokenizer.id("<|begin|>"),
      tokenizer.id("a"),
      tokenizer.id("<|end|>"),
    ]);
    expect([tokenizer.bos, tokenizer.eos, tokenizer.vocabSize]).toEqual([0, 1, 284]);
  });

  it("says what is too little", () => {
    expect(() => trainTokenizer(["ab"], { vocabulary: 200 })).toThrow(/no room for 258/);
    expect(() => trainTokenizer(["ab ab"], { vocabulary: 400 })).toThrow(/give \d+ tokens of the 400/);
    expect(() => trainTokenizer(["ab"], { vocabulary: 258, end: "</s>" })).toThrow(/not among the special tokens/);
    for (const special of [[""], ["a"], ["<x>", "<x>"]])
      expect(() => trainTokenizer(TEXTS, { vocabulary: 260, special })).toThrow(/cannot be a special token/);
    for (const minFrequency of [0, Number.NaN])
      expect(() => trainTokenizer(TEXTS, { vocabulary: 260, minFrequency })).toThrow(/at least 1/);
  });

  it("is a tokenizer that llama.cpp reads alike", async () => {
    const folder = await mkdtemp(join(tmpdir(), "fovea-bpe-"));
    try {
      const { name, config, weights } = decoder({ layers: 1, width: 64, tokenizer });
      await convert({ name, config, weights, tokenizer }, join(folder, "model.gguf"), { type: "f32" });
      const { getLlama, LlamaLogLevel } = await import("node-llama-cpp");
      const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error });
      const model = await llama.loadModel({ modelPath: join(folder, "model.gguf"), vocabOnly: true });
      for (const text of [...TEXTS, "it's 3,999.5 apples\n\n  and  spaces", "日本語 ok"])
        expect(model.tokenize(text, false), text).toEqual(tokenizer.encode(text, { special: false }).ids);
      await model.dispose();
      const again = await openCheckpoint(join(folder, "model.gguf"));
      expect(again.tokenizer.encode(TEXTS[0]).ids).toEqual(tokenizer.encode(TEXTS[0]).ids);
      await again.close();
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });
});

/** The definition: count all pairs, take the best, merge it everywhere, begin anew. */
function byRecounting(counts: ReadonlyMap<string, number>, wanted: number, least: number): [string, string][] {
  let words = [...counts].map(([word, n]) => ({ pieces: [...word], n }));
  const merges: [string, string][] = [];
  while (new Set(merges.map((m) => m.join(""))).size < wanted) {
    const pairs = new Map<string, number>();
    for (const { pieces, n } of words)
      for (let i = 1; i < pieces.length; i++) {
        const key = `${pieces[i - 1]} ${pieces[i]}`;
        pairs.set(key, (pairs.get(key) ?? 0) + n);
      }
    const [best] = [...pairs].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1));
    if (!best || best[1] < least) break;
    const [left, right] = best[0].split(" ");
    merges.push([left, right]);
    words = words.map(({ pieces, n }) => ({ pieces: mergeAll(pieces, left, right), n }));
  }
  return merges;
}

function mergeAll(pieces: readonly string[], left: string, right: string): string[] {
  const out: string[] = [];
  for (const piece of pieces)
    if (out.at(-1) === left && piece === right) out[out.length - 1] = `${left}${right}\u0000`;
    else out.push(piece);
  return out.map((p) => p.replace("\u0000", ""));
}

/** Encodes word by word: of all neighbouring pieces the pair that was learnt first merges, the leftmost of them. */
function plainEncode(text: string, merges: readonly string[]): number[] {
  const rank = new Map(merges.map((m, i) => [m, i]));
  const parts = text.split(/(\p{N})/u);
  const pattern = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;
  return parts.flatMap((part) =>
    [...part.matchAll(pattern)].flatMap(([word]) => {
      let pieces = Array.from(new TextEncoder().encode(word), (byte) => letterOf(byte));
      for (;;) {
        let best = -1;
        for (let i = 1; i < pieces.length; i++) {
          const r = rank.get(`${pieces[i - 1]} ${pieces[i]}`);
          const known = best < 0 ? undefined : rank.get(`${pieces[best - 1]} ${pieces[best]}`);
          if (r !== undefined && (known === undefined || r < known)) best = i;
        }
        if (best < 0) break;
        pieces = [...pieces.slice(0, best - 1), pieces[best - 1] + pieces[best], ...pieces.slice(best + 1)];
      }
      return pieces.map((piece) => tokenizer.id(piece) as number);
    }),
  );
}

/** GPT-2's letter of a byte: printable ones stand for themselves, the others follow from U+0100 on. */
function letterOf(byte: number): string {
  const printable = (b: number) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  if (printable(byte)) return String.fromCodePoint(byte);
  let moved = 256;
  for (let b = 0; b < byte; b++) if (!printable(b)) moved++;
  return String.fromCodePoint(moved);
}
