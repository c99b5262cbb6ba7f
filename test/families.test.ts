import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { WeightSource } from "../src/graph/index.js";
import {
  type Checkpoint,
  convert,
  type FamilyName,
  type ModelConfig,
  openCheckpoint,
  randomConfig,
  randomWeights,
  tinyTokenizer,
} from "../src/models/index.js";
import { openOracle } from "./llama-oracle.js";
import { MUTATIONS, type MutationName } from "./mutants.js";
import { compileWhole, greedy, logProbabilities, logSoftmax } from "./whole-model.js";

/** How far log-probabilities may lie from the oracle's, and how far a mutant's must lie. */
const TOLERANCE = 1e-2;
const MUTANT = 10 * TOLERANCE;

const TEXT = "The cat went down to the water, and every evening it came back to tell her what it saw there. One day";

const ROTARY: MutationName[] = ["rotary base 1.5 times", "no rotary", "interleaved rotary layout"];
const GATED: MutationName[] = ["gate and up swapped", "norm epsilon 0.1"];
const SILU: MutationName[] = ["gelu for silu", "relu"];
const GQA: MutationName[] = ["query heads on the wrong key heads"];
const SCALE: MutationName[] = ["attention scale 1.2 times"];
const LLAMA = [...ROTARY, ...GATED, ...SILU, ...GQA, ...SCALE];
const GEMMA: MutationName[] = [
  ...ROTARY,
  ...GATED,
  ...GQA,
  ...SCALE,
  "silu",
  "relu",
  "no window",
  "window one larger",
  "windows in the other layers",
  "norms without their offset",
  "embeddings not scaled",
  "post norms swapped",
];
const LAYER_NORM: MutationName[] = [
  ...SCALE,
  "silu",
  "relu",
  "RMS norms for layer norms",
  "norm epsilon 0.1",
  "no biases of q, k, v",
  "no bias of o",
  "no biases of the MLP",
  "no biases of norms",
];
const SCALING: MutationName[] = ["rotary scaling left out", "rotary base 1.5 times"];

interface Case {
  readonly name: string;
  readonly family: FamilyName;
  /** Fields of config.json beside those of the tiny random model. */
  readonly fields?: Record<string, unknown>;
  readonly mutations: readonly MutationName[];
}

/** Longrope's divisors for the 8 frequencies of a tiny head. */
const SHORT = [1, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 2.2];
const LONG = [1, 1.4, 2, 3, 5, 8, 13, 21];

const CASES: Case[] = [
  { name: "llama", family: "llama", mutations: [...LLAMA, "norms with an offset"] },
  {
    name: "llama, biases and tied",
    family: "llama",
    fields: { attention_bias: true, tie_word_embeddings: true },
    mutations: ["no biases of q, k, v", "no bias of o", "interleaved rotary layout"],
  },
  {
    name: "llama, heads of their own width",
    family: "llama",
    fields: { head_dim: 32 },
    mutations: [...ROTARY, ...GQA, ...SCALE],
  },
  {
    name: "llama, linear scaling",
    family: "llama",
    fields: { rope_scaling: { type: "linear", factor: 4 } },
    mutations: SCALING,
  },
  {
    name: "llama, llama3 scaling",
    family: "llama",
    fields: {
      rope_scaling: {
        rope_type: "llama3",
        factor: 8,
        low_freq_factor: 1,
        high_freq_factor: 4,
        original_max_position_embeddings: 64,
      },
    },
    mutations: SCALING,
  },
  {
    name: "llama, yarn scaling",
    family: "llama",
    fields: {
      rope_scaling: { rope_type: "yarn", factor: 8, original_max_position_embeddings: 64, attention_factor: 1.4 },
    },
    mutations: [...SCALING, "rotary attention factor left out"],
  },
  { name: "qwen2", family: "qwen2", mutations: [...LLAMA, "no biases of q, k, v"] },
  {
    name: "qwen2, yarn scaling",
    family: "qwen2",
    fields: { rope_scaling: { type: "yarn", factor: 4, original_max_position_embeddings: 128 } },
    mutations: [...SCALING, "rotary attention factor left out"],
  },
  {
    name: "qwen3",
    family: "qwen3",
    mutations: [...LLAMA, "no query and key norm", "query and key norms swapped"],
  },
  { name: "gemma2", family: "gemma2", mutations: [...GEMMA, "no attention cap", "no final cap"] },
  {
    name: "gemma3",
    family: "gemma3",
    mutations: [
      ...GEMMA,
      "no query and key norm",
      "query and key norms swapped",
      "local layers at the global base",
      "global layers at the local base",
    ],
  },
  {
    name: "gemma3, linear scaling of the global layers",
    family: "gemma3",
    fields: { rope_scaling: { rope_type: "linear", factor: 8 } },
    mutations: ["rotary scaling left out", "global layers at the local base"],
  },
  { name: "phi3", family: "phi3", mutations: LLAMA },
  {
    name: "phi3, part of the head rotated",
    family: "phi3",
    fields: { partial_rotary_factor: 0.5 },
    mutations: [...ROTARY, "rotates whole heads"],
  },
  {
    name: "phi3, longrope, short",
    family: "phi3",
    fields: {
      original_max_position_embeddings: 256,
      rope_scaling: { type: "longrope", short_factor: SHORT, long_factor: LONG },
    },
    mutations: [...SCALING, "rotary attention factor left out"],
  },
  {
    name: "phi3, longrope, long",
    family: "phi3",
    fields: {
      original_max_position_embeddings: 32,
      rope_scaling: { type: "longrope", short_factor: SHORT, long_factor: LONG },
    },
    mutations: [...SCALING, "rotary attention factor left out"],
  },
  { name: "gpt2", family: "gpt2", mutations: [...LAYER_NORM, "no positions", "positions off by one"] },
  {
    name: "gpt-neox",
    family: "gpt-neox",
    mutations: [...LAYER_NORM, ...ROTARY, "rotates whole heads", "sequential residual"],
  },
  {
    name: "gpt-neox, sequential residual",
    family: "gpt-neox",
    fields: { use_parallel_residual: false },
    mutations: ["parallel residual"],
  },
  {
    name: "olmo2",
    family: "olmo2",
    mutations: [...LLAMA, "no query and key norm", "post norms swapped"],
  },
];

describe.each(CASES)("$name against llama.cpp", ({ name, family, fields, mutations }) => {
  let folder = "";
  let config: ModelConfig;
  let weights: WeightSource;
  let ids: number[];
  let theirs: Float64Array[];
  let theirGreedy: number[];

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "fovea-family-"));
    config = randomConfig(family, {}, fields);
    weights = randomWeights(config, 7);
    const tokenizer = tinyTokenizer(config.vocab);
    ids = tokenizer.encode(TEXT).ids;
    await convert({ name, config, weights, tokenizer }, join(folder, "model.gguf"), { type: "f32" });
    await convert({ name, config, weights, tokenizer }, join(folder, "hf"));
    const oracle = await openOracle(join(folder, "model.gguf"), config.vocab);
    theirs = (await oracle.logits(ids)).map(logSoftmax);
    theirGreedy = await oracle.greedy(ids, 12);
    await oracle.close();
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  /** Largest difference of log-probability from the oracle: over all tokens, and over the text's own. */
  async function distance(model: {
    config: ModelConfig;
    weights: WeightSource;
  }): Promise<{ all: number; text: number }> {
    const whole = await compileWhole(model.config, model.weights);
    const ours = await logProbabilities(whole, ids);
    await whole.segment.release();
    let [all, text] = [0, 0];
    for (const [t, row] of ours.entries()) {
      for (let v = 0; v < row.length; v++) all = Math.max(all, Math.abs(row[v] - theirs[t][v]));
      const next = ids[t + 1];
      if (next !== undefined) text = Math.max(text, Math.abs(row[next] - theirs[t][next]));
    }
    return { all, text };
  }

  it("gives the same log-probabilities and the same greedy text", async () => {
    expect((await distance({ config, weights })).all).toBeLessThan(TOLERANCE);
    const whole = await compileWhole(config, weights);
    expect(await greedy(whole, ids, 12)).toEqual(theirGreedy);
    await whole.segment.release();
  });

  it("is far from certain and far from uniform", () => {
    const entropy = theirs.map((row) => -row.reduce((sum, x) => sum + x * Math.exp(x), 0));
    const mean = entropy.reduce((a, b) => a + b, 0) / entropy.length;
    expect(mean).toBeGreaterThan(0.5);
    expect(mean).toBeLessThan(Math.log(config.vocab) - 1);
  });

  it.each(["model.gguf", "hf"])("is the same model when read from %s", async (file) => {
    const checkpoint: Checkpoint = await openCheckpoint(join(folder, file));
    try {
      // GGUF holds float32 where config.json holds decimal numbers, and not the name of the class.
      expect(comparable(checkpoint.config)).toEqual(comparable(config));
      if (file === "hf") expect(checkpoint.config).toEqual(config);
      expect(checkpoint.tokenizer.encode(TEXT).ids).toEqual(ids);
      expect((await distance(checkpoint)).all).toBeLessThan(TOLERANCE);
    } finally {
      await checkpoint.close();
    }
  });

  // Both sides round activations too (to float16, or to 8 bits), each in its own way: agreement is looser by that.
  const types = [
    ["f16", 0.02],
    ["q8_0", 0.2],
  ] as const;
  it.each(fields ? [] : types)("runs alike from %s weights", async (type, tolerance) => {
    const file = join(folder, `${type}.gguf`);
    const tokenizer = tinyTokenizer(config.vocab);
    await convert({ name, config, weights, tokenizer }, file, { type });
    const oracle = await openOracle(file, config.vocab);
    const rows = (await oracle.logits(ids)).map(logSoftmax);
    await oracle.close();
    const checkpoint = await openCheckpoint(file);
    const whole = await compileWhole(checkpoint.config, checkpoint.weights);
    const ours = await logProbabilities(whole, ids);
    await whole.segment.release();
    await checkpoint.close();
    const mean = ours.map((row, t) => row.reduce((sum, x, v) => sum + Math.abs(x - rows[t][v]), 0) / row.length);
    expect(mean.reduce((a, b) => a + b) / mean.length).toBeLessThan(tolerance);
  });

  it.each(mutations)("mutant: %s", async (mutation) => {
    const mutant = MUTATIONS[mutation](config, weights);
    expect((await distance(mutant)).text).toBeGreaterThan(MUTANT);
  });
});

/** A config with numbers rounded to float32's precision, for comparing. */
function comparable(config: ModelConfig): unknown {
  return JSON.parse(
    JSON.stringify(config, (_, value) => (typeof value === "number" ? Number(value.toPrecision(6)) : value)),
  );
}
