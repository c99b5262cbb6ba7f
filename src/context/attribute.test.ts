import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { capture } from "../../test/capture.js";
import { run } from "../cli/run.js";
import { compile } from "../graph/index.js";
import {
  buildModel,
  type Checkpoint,
  createTokenizer,
  FAMILIES,
  type FamilyName,
  modelFeeds,
  openCheckpoint,
  randomConfig,
  randomWeights,
  tinyTokenizer,
} from "../models/index.js";
import { type Attribution, attribute, attributedPieces } from "./attribute.js";

const FACTS = "the keeper is Ada. the cook is Tom. the mate is Eve. the keeper is";
const STORIES = new URL("../../../shared/checkpoints/stories260K/", import.meta.url).pathname;
const NAMES = ["models/tiny", ...(existsSync(STORIES) ? [STORIES] : [])];
if (NAMES.length < 2) console.log("stories260K is not there: its attributions are skipped");

const logSumExp = (row: Float32Array): number => {
  const top = Math.max(...row);
  return top + Math.log(row.reduce((sum, x) => sum + Math.exp(x - top), 0));
};

describe.each(NAMES)("%s", (name) => {
  let checkpoint: Checkpoint;
  let ids: number[];
  let prompt: number;
  // of models/tiny an answer that it is not certain of: a saturated softmax has no slope
  const answer = name.includes("tiny") ? " Eve" : " and the";
  const text = name.includes("tiny") ? FACTS : "Once upon a time there was a little girl";
  beforeAll(async () => {
    checkpoint = await openCheckpoint(name);
    prompt = checkpoint.tokenizer.encode(text).ids.length;
    ids = checkpoint.tokenizer.encode(text + answer).ids;
  });
  afterAll(() => checkpoint.close());

  /** The answer's log-probability, or its logits' margin, with one inner tensor of the model edited. */
  async function withEdit(
    tap: string,
    edit: (data: Float32Array, dims: readonly number[]) => void,
    of: "probability" | "logit" = "probability",
  ): Promise<number> {
    const { config, weights } = checkpoint;
    const graph = buildModel(config);
    const inner = graph.taps.get(tap);
    if (!inner) throw new Error(tap);
    const options = { weights, precision: "float32", threads: 1 } as const;
    await using first = await compile({ inputs: graph.inputs, outputs: { inner } }, options);
    await using whole = await compile({ inputs: graph.inputs, outputs: { logits: graph.logits } }, options);
    await using rest = await compile(
      { inputs: { ...graph.inputs, inner }, outputs: { logits: graph.logits } },
      options,
    );
    const feeds = modelFeeds(config, ids);
    const value = (await first.run(feeds)).inner;
    const data = (value.data as Float32Array).slice();
    edit(data, value.dims);
    const logits = (await rest.run({ ...feeds, inner: { data, dims: value.dims } })).logits.data as Float32Array;
    expect(whole.inputs.length).toBeGreaterThan(0);
    let sum = 0;
    for (let t = prompt - 1; t + 1 < ids.length; t++) {
      const row = logits.subarray(t * config.vocab, (t + 1) * config.vocab);
      sum += row[ids[t + 1]] - (of === "logit" ? row.reduce((a, x) => a + x, 0) / row.length : logSumExp(row));
    }
    return sum;
  }

  /** d/de of the log-probability (or margin) with something scaled by 1 + e. */
  async function slope(
    tap: string,
    scale: (data: Float32Array, dims: readonly number[], by: number) => void,
    of?: "probability" | "logit",
  ) {
    const e = 2e-3;
    const [up, down] = [
      await withEdit(tap, (d, dims) => scale(d, dims, 1 + e), of),
      await withEdit(tap, (d, dims) => scale(d, dims, 1 - e), of),
    ];
    return (up - down) / (2 * e);
  }

  it.each(["probability", "logit"] as const)("gives by input the %s's slope along each embedding", async (of) => {
    const result = await attribute(checkpoint, { prompt: text, answer, method: "input", of, threads: 1 });
    expect(result.tokens.length).toBe(prompt);
    expect(result.logprob).toBeCloseTo(await withEdit("embeddings", () => undefined), 4);
    const { width } = checkpoint.config;
    for (const t of [0, 2, Math.floor(prompt / 2), prompt - 1]) {
      const wanted = await slope(
        "embeddings",
        (data, _, by) => {
          for (let i = t * width; i < (t + 1) * width; i++) data[i] *= by;
        },
        of,
      );
      expect(Math.abs(result.tokens[t].score - wanted)).toBeLessThan(0.02 + 0.05 * Math.abs(wanted));
    }
  });

  it("gives by attention the slope along each head's weights, and their sum over what each token is read", async () => {
    const result = await attribute(checkpoint, { prompt: text, answer, method: "attention", threads: 1 });
    const table = result.heads as NonNullable<Attribution["heads"]>;
    for (const [layer, head] of [
      [0, 0],
      [0, 1],
      [1, table.heads - 1],
    ]) {
      const wanted = await slope(`pattern.${layer}`, (data, [, rows, keys], by) => {
        for (let i = head * rows * keys; i < (head + 1) * rows * keys; i++) data[i] *= by;
      });
      const got = table.data[layer * table.heads + head];
      expect(Math.abs(got - wanted)).toBeLessThan(0.02 + 0.05 * Math.abs(wanted));
    }
    const all = table.data.reduce((a, b) => a + b, 0);
    const own = result.tokens.reduce((sum, t) => sum + t.score, 0);
    // the answer's own tokens are keys too, for an answer of several
    if (ids.length === prompt + 1) expect(own).toBeCloseTo(all, 2);
    else expect(table.data.some((x) => Math.abs(x) > 1e-3)).toBe(true);
  });
});

describe.skipIf(!existsSync(STORIES))("on stories260K", () => {
  const CASES = [
    ["There was a big red ball. The cat saw the", " ball", " ball."],
    [
      'Once upon a time, there was a boy named Tim. Tim had a dog named Max. One day, Tim said to his dog, "I love you,',
      " Max",
      " Max.",
    ],
  ];
  it.each(["input", "attention"] as const)("%s finds the word that the answer repeats", async (method) => {
    const checkpoint = await openCheckpoint(STORIES);
    for (const [prompt, answer, wanted] of CASES) {
      const result = await attribute(checkpoint, { prompt, answer, method });
      expect(result.logprob).toBeGreaterThan(-1.5);
      const size = method === "attention" ? (x: number) => x : Math.abs;
      const [best] = attributedPieces(result, "word").sort((a, b) => size(b.score) - size(a.score));
      expect(best.text).toBe(wanted);
    }
    await checkpoint.close();
  });
});

describe("on models/tiny", () => {
  it("refuses what cannot be", async () => {
    const checkpoint = await openCheckpoint("models/tiny");
    const bad = (options: object) => attribute(checkpoint, { prompt: FACTS, answer: " Ada", ...options });
    await expect(bad({ prompt: "the kee", answer: "per" })).rejects.toThrow(/one token together/);
    await expect(bad({ answer: "" })).rejects.toThrow(/no answer/);
    await expect(bad({ method: "magic" })).rejects.toThrow(/method is "magic"; expected one of input, attention/);
    await expect(bad({ of: "loss" })).rejects.toThrow(/of is "loss"/);
    await expect(bad({ memory: Number.NaN })).rejects.toThrow(/memory is NaN/);
    await expect(bad({ prompt: "word ".repeat(5000) })).rejects.toThrow(/more than the model's 4096/);
    await expect(bad({ prompt: "word ".repeat(900), memory: 2 ** 29 })).rejects.toThrow(
      /some [\d.]+ GiB; 0\.5 GiB are allowed/,
    );
    await checkpoint.close();
  });
});

describe("on random models", () => {
  const tokenizer = tinyTokenizer();
  const prompt = "the house by the sea";

  it.each(Object.keys(FAMILIES) as FamilyName[])("%s: both methods give finite scores that differ", async (family) => {
    const config = randomConfig(family);
    const checkpoint = { config, weights: randomWeights(config), tokenizer };
    const both = [];
    for (const method of ["input", "attention"] as const) {
      const result = await attribute(checkpoint, { prompt, answer: " and", method, threads: 1 });
      const scores = result.tokens.map((t) => t.score);
      expect(scores.every(Number.isFinite)).toBe(true);
      expect(Math.max(...scores.map(Math.abs))).toBeGreaterThan(0.01);
      both.push(scores);
    }
    expect(both[0]).not.toEqual(both[1]);
  });

  it("leaves out the end that a tokenizer adds", async () => {
    const { tokenizer: json, config: named } = tokenizer.files;
    const end = { SpecialToken: { id: "<|end|>", type_id: 0 } };
    const ending = createTokenizer(
      {
        ...json,
        post_processor: {
          type: "TemplateProcessing",
          single: [{ Sequence: { id: "A", type_id: 0 } }, end],
          pair: [],
          special_tokens: { "<|end|>": { id: "<|end|>", ids: [tokenizer.id("<|end|>")], tokens: ["<|end|>"] } },
        },
      },
      named,
    );
    expect(ending.encode(prompt).ids.at(-1)).toBe(tokenizer.id("<|end|>"));
    const config = randomConfig("llama");
    const weights = randomWeights(config);
    const ask = { prompt, answer: " and", threads: 1 };
    const plain = await attribute({ config, weights, tokenizer }, ask);
    const framed = await attribute({ config, weights, tokenizer: ending }, ask);
    expect(tokenizer.addsBos).toBe(false);
    expect(framed).toEqual(plain);
  });
});

describe("pieces", () => {
  const tokens = [
    { id: 0, start: 0, end: 0, score: 9 },
    { id: 1, start: 0, end: 2, score: 1 },
    { id: 2, start: 2, end: 3, score: 2 },
    { id: 3, start: 3, end: 6, score: 4 },
    { id: 4, start: 6, end: 8, score: 8 },
  ];
  const result: Attribution = { method: "input", prompt: "ab\ncd ef", answer: "x", logprob: 0, tokens };
  const show = (by: "token" | "word" | "line") => attributedPieces(result, by).map((p) => [p.text, p.score]);

  it("cover the prompt, each token in the piece where it begins", () => {
    expect(show("token")).toEqual([
      ["ab", 1],
      ["\n", 2],
      ["cd ", 4],
      ["ef", 8],
    ]);
    expect(show("word")).toEqual([
      ["ab", 1],
      ["\ncd", 6],
      [" ef", 8],
    ]);
    expect(show("line")).toEqual([
      ["ab\n", 3],
      ["cd ef", 12],
    ]);
  });
});

describe("fovea attribute", () => {
  it("prints, writes JSON and a page with the text escaped", async () => {
    const folder = await mkdtemp(join(tmpdir(), "fovea-attribute-"));
    const page = join(folder, "why.html");
    const ask = async (...args: string[]) => {
      const io = capture();
      return { code: await run(["attribute", "-m", "models/tiny", ...args], io), out: io.text(), err: io.errors() };
    };
    const prompt = `<b>&"x"</b> ${FACTS}`;
    const plain = await ask("-p", prompt, "--answer", " Ada", "--of", "logit", "--html", page);
    expect(plain.code).toBe(0);
    expect(plain.out).toMatch(/log-probability of " Ada": -0\.\d+/);
    expect(plain.out).toMatch(/score +at +text\n-+ .*\n *-?[\d.]+ +\d+ +\S+/);
    const html = await readFile(page, "utf8");
    expect(html).toContain("&lt;b&gt;&amp;&quot;x&quot;&lt;/b&gt;");
    expect(html).not.toContain("<b>&");
    const certain = await ask("-p", prompt, "--answer", " Ada", "--by", "line", "--json");
    expect(certain.err).toMatch(/certain of the answer/);
    const parsed = JSON.parse(certain.out);
    expect(parsed).toMatchObject({ method: "attention", answer: " Ada", pieces: [{ text: prompt }] });
    expect((await ask("-p", prompt)).err).toMatch(/which answer/);
    expect((await ask("--answer", " Ada")).err).toMatch(/no text was given/);
    expect((await ask("-p", "x", "--answer", "y", "--method", "magic")).err).toMatch(/--method is one of/);
    await rm(folder, { recursive: true, force: true });
  });

  it("shows control characters of the prompt and obeys none", async () => {
    const io = { ...capture(), color: 8 as const };
    const prompt = "one\n\u001b[2Jtwo\u009b1m\u0007 three";
    const args = ["-p", prompt, "--answer", " \u009bx", "--of", "logit", "--by", "line"];
    expect(await run(["attribute", "-m", "models/tiny", ...args], io)).toBe(0);
    const text = io.text();
    expect(text).toContain("␛[2Jtwo\ufffd1m␇ three");
    expect(text).toContain('log-probability of " \ufffdx"');
    // its own colours are all that is left
    const own = new RegExp(`${String.fromCharCode(27)}\\[[0-9;]*m`, "g");
    expect([...text.replace(own, "")].filter((c) => /\p{Cc}/u.test(c) && c !== "\n")).toEqual([]);
  });
});
