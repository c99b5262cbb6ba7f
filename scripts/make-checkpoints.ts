/**
 * Writes small random checkpoints, one folder per family, for trying things out and for tests: a config, weights that are
 * scaled so that every mechanism matters, and a byte-level tokenizer with a few learnt merges.
 *
 *   node scripts/run.mjs scripts/make-checkpoints.ts [folder] [--family llama,qwen2] [--seed 1] [--gguf]
 *     [--layers 3] [--width 64] [--heads 4] [--kv-heads 2] [--head-dim 16] [--mlp 128] [--vocab 384] [--positions 512]
 *
 * Default: every family into out/random. --gguf also writes each as float32 GGUF, where llama.cpp knows the family.
 */
import { join } from "node:path";
import { parseArgs } from "node:util";
import {
  convert,
  FAMILIES,
  type FamilyName,
  hasGgufForm,
  type RandomSizes,
  randomConfig,
  randomWeights,
  tinyTokenizer,
} from "../src/models/index.js";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    family: { type: "string" },
    seed: { type: "string", default: "1" },
    gguf: { type: "boolean", default: false },
    layers: { type: "string" },
    width: { type: "string" },
    heads: { type: "string" },
    "kv-heads": { type: "string" },
    "head-dim": { type: "string" },
    mlp: { type: "string" },
    vocab: { type: "string" },
    positions: { type: "string" },
  },
});

const folder = positionals[0] ?? "out/random";
const known = Object.keys(FAMILIES) as FamilyName[];
const families = values.family?.split(",") ?? known;
const sizes: RandomSizes = Object.fromEntries(
  Object.entries({
    layers: values.layers,
    width: values.width,
    heads: values.heads,
    kvHeads: values["kv-heads"],
    headDim: values["head-dim"],
    mlpWidth: values.mlp,
    vocab: values.vocab,
    maxPositions: values.positions,
  }).flatMap(([name, text]) => (text === undefined ? [] : [[name, Number(text)]])),
);

for (const family of families) {
  if (!known.includes(family as FamilyName)) {
    console.error(`There is no family ${family}; known are ${known.join(", ")}.`);
    process.exit(2);
  }
  const config = randomConfig(family as FamilyName, sizes);
  const source = {
    name: family,
    config,
    weights: randomWeights(config, Number(values.seed)),
    tokenizer: tinyTokenizer(config.vocab),
  };
  const written = [await convert(source, join(folder, family), { overwrite: true })];
  if (values.gguf && hasGgufForm(config)) {
    written.push(await convert(source, join(folder, `${family}.gguf`), { type: "f32" }));
  }
  for (const { path, bytes } of written) console.log(`${path}  ${(bytes / 1e6).toFixed(2)} MB`);
}
