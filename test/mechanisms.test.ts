import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import ort from "onnxruntime-node";
import { describe, expect, it } from "vitest";
import { z } from "zod";
import { knockOut, snapkv, streamingLlm } from "../src/attention/index.js";
import {
  deltaRule,
  gatedDeltaRule,
  gatedLinearAttention,
  linearAttention,
  softmaxAttention,
} from "../src/attention/linear/index.js";
import type { Engine } from "../src/engine/engine.js";
import { decodeSequence, encodeSequence } from "../src/engine/sequence.js";
import { compile } from "../src/graph/index.js";
import { load } from "../src/load.js";
import {
  batchFeeds,
  buildModel,
  convert,
  exportModel,
  type MechanismUse,
  type ModelConfig,
  mechanism,
  modelFeeds,
  parseConfig,
  randomConfig,
  randomWeights,
} from "../src/models/index.js";
import { batchMemory, crossAttention, crossState, memoryOf } from "./cross-attention.js";
import { checkpointOf, engineFor, someIds } from "./random-checkpoint.js";

/** Every hook of the full form: x, positions, weights of two kinds, a state, a form for one row. */
const counting = mechanism({
  name: "counting-test",
  parameters: z.object({ rate: z.number().default(0.5) }),
  rotary: false,
  rows: 4,
  weights: ({ width, heads }) => ({ gate: { shape: [heads, width] }, shift: { shape: [heads], first: 1 } }),
  state: ({ heads, headDim }) => ({ sum: [heads, 1, headDim] }),
  forward({ v, x, positions, weights, state }, { rate }) {
    const [B, T] = x.shape;
    const heads = v.shape[1] as number;
    const gate = x.linear(weights.gate, weights.shift).sigmoid().reshape([B, T, heads, 1]).transpose(0, 2, 1, 3);
    const count = positions.cast("float32").add(1).reshape([B, 1, T, 1]);
    const sums = v.mul(gate).cumsum(2).add(state.sum);
    return { out: sums.div(count).mul(rate), state: { sum: sums.slice({ axis: 2, start: -1 }) } };
  },
  step({ v, x, positions, weights, state }, { rate }) {
    const heads = v.shape[1] as number;
    const gate = x.linear(weights.gate, weights.shift).sigmoid().reshape([1, heads, 1, 1]);
    const sum = v.mul(gate).add(state.sum);
    return { out: sum.mul(rate).div(positions.cast("float32").add(1).reshape([1, 1, 1, 1])), state: { sum } };
  },
});

/** The design's example, word for word. */
const squared = mechanism({
  name: "squared-relu-attention",
  forward: ({ q, k, v, mask }) => {
    const pattern = q.matmul(k.transpose()).relu().square().mul(mask); // [B, H, T, S]
    return pattern.div(pattern.sum(-1, { keep: true }).add(1e-6)).matmul(v);
  },
});

const USES: Record<string, MechanismUse> = {
  softmax: softmaxAttention(),
  squared: squared(),
  linear: linearAttention(),
  "linear without normaliser": linearAttention({ normaliser: false, feature: "identity" }),
  "linear with parts": linearAttention({ convolution: 3, output: "gated" }),
  "fixed decay": gatedLinearAttention({ gate: "fixed", chunk: 5 }),
  "scalar decay": gatedLinearAttention({ gate: "scalar", rank: 3 }),
  "key decay": gatedLinearAttention({ gate: "key", normalizer: 2 }),
  "value decay": gatedLinearAttention({ gate: "value" }),
  delta: deltaRule({ chunk: 8, convolution: 0, output: "plain" }),
  "delta with parts": deltaRule(),
  "gated delta": gatedDeltaRule(),
  counting: counting(),
  "with a memory": crossAttention(),
  "with a memory and a state": crossState(),
};
const STATELESS = ["softmax", "squared", "with a memory"];

function configOf(use: MechanismUse, family: "llama" | "gemma3" | "gpt2" = "llama"): ModelConfig {
  return { ...randomConfig(family), mechanism: use };
}

/** Logits [T, V] of all rows by the graph that trains, with the config's own memory where it reads one. */
async function trainingLogits(config: ModelConfig, ids: readonly number[]): Promise<Float32Array> {
  const graph = buildModel(config, { batch: true, length: ids.length });
  const weights = randomWeights(config, 1);
  const segment = await compile({ inputs: graph.inputs, outputs: { out: graph.logits } }, { weights, threads: 1 });
  const feeds = batchFeeds(config, { rows: 1, length: ids.length, ids, ...batchMemory([memoryOf(config)]) });
  const { out } = await segment.run(feeds);
  await segment.release();
  return out.data as Float32Array;
}

/** An empty sequence, with the memory that `trainingLogits` reads. */
function begin(engine: Engine) {
  return engine.sequence(engine.compose([]), memoryOf(engine.config));
}

async function prefillAll(engine: Engine, ids: readonly number[]): Promise<Float32Array> {
  const sequence = begin(engine);
  const all = new Float32Array(ids.length * engine.config.vocab);
  const onLogits = (first: number, _: number, logits: Float32Array) => all.set(logits, first * engine.config.vocab);
  await engine.prefill(sequence, ids, { wanted: "all", onLogits });
  sequence.close();
  return all;
}

function worst(a: ArrayLike<number>, b: ArrayLike<number>): number {
  expect(a.length).toBe(b.length);
  let max = 0;
  for (let i = 0; i < a.length; i++) max = Math.max(max, Number.isNaN(a[i]) ? Infinity : Math.abs(a[i] - b[i]));
  return max;
}

describe.each(Object.entries(USES))("%s", (name, use) => {
  const config = configOf(use);
  const ids = someIds(39, config.vocab, 5);
  const V = config.vocab;

  it("runs as it trains: prompt, extension and single rows", async () => {
    const expected = await trainingLogits(config, ids);
    const engine = await engineFor(checkpointOf(config));
    expect(worst(await prefillAll(engine, ids), expected)).toBeLessThan(2e-3);
    const sequence = begin(engine);
    const row = (t: number) => expected.subarray(t * V, (t + 1) * V);
    const first = await engine.prefill(sequence, ids.slice(0, 21), { wanted: "last" });
    expect(worst(first as Float32Array, row(20))).toBeLessThan(2e-3);
    const [decoded] = await engine.decode([{ sequence, id: ids[21] }]);
    expect(worst(decoded, row(21))).toBeLessThan(2e-3);
    const second = await engine.prefill(sequence, ids.slice(22, 36), { wanted: "last" });
    expect(worst(second as Float32Array, row(35))).toBeLessThan(2e-3);
    for (let t = 36; t < 39; t++) {
      const [logits] = await engine.decode([{ sequence, id: ids[t] }]);
      expect(worst(logits, row(t))).toBeLessThan(2e-3);
    }
    // what it costs: a state of one size, or a cache that grows
    if (STATELESS.includes(name)) expect(engine.cacheBytesPerToken).toBeGreaterThan(0);
    else {
      const { bytes } = sequence;
      await engine.decode([{ sequence, id: 3 }]);
      expect(sequence.bytes).toBe(bytes);
      expect(engine.cacheBytesPerToken).toBe(0);
      const floats = config.layers * config.kvHeads * config.headDim * config.headDim;
      if (name === "delta") expect(bytes).toBe(4 * floats);
    }
    sequence.close();
    await engine.close();
  });

  it("shows no row what comes later, nor what stands in another text", async () => {
    const before = await trainingLogits(config, ids);
    const changed = [...ids];
    changed[30] = (changed[30] + 1) % V;
    const after = await trainingLogits(config, changed);
    expect(worst(after.subarray(0, 30 * V), before.subarray(0, 30 * V))).toBe(0);
    expect(worst(after.subarray(30 * V), before.subarray(30 * V))).toBeGreaterThan(1e-2);
  });

  it("gives in a batch of packed texts what each text gives alone", async () => {
    // these know nothing of texts within a sequence
    if (name === "counting" || name === "with a memory and a state") return;
    const graph = buildModel(config, { batch: true, length: 16 });
    const weights = randomWeights(config, 1);
    const segment = await compile({ inputs: graph.inputs, outputs: { out: graph.logits } }, { weights, threads: 1 });
    const texts = [ids.slice(0, 9), ids.slice(9, 16), ids.slice(16, 18), ids.slice(18, 32)];
    const { out } = await segment.run(
      batchFeeds(config, {
        rows: 2,
        length: 16,
        ids: texts.flat(),
        documents: texts.flatMap((text, d) => text.map(() => d)),
        positions: texts.flatMap((text) => text.map((_, i) => i)),
        ...batchMemory([memoryOf(config), memoryOf(config)]),
      }),
    );
    await segment.release();
    let at = 0;
    for (const text of texts) {
      const alone = await trainingLogits(config, text);
      expect(worst((out.data as Float32Array).subarray(at, at + alone.length), alone)).toBeLessThan(1e-3);
      at += alone.length;
    }
  });

  it("goes back, goes two ways, is saved and opened, and decodes beside others", async () => {
    const engine = await engineFor(checkpointOf(config));
    const composed = engine.compose([]);
    const sequence = begin(engine);
    await engine.prefill(sequence, ids.slice(0, 20), { wanted: "none" });
    const step = async (s: typeof sequence, id: number) =>
      Float32Array.from((await engine.decode([{ sequence: s, id }]))[0]);
    const mark = sequence.snapshot();
    const copy = sequence.fork(engine.shape);
    const print = { model: "m", methods: "", precision: "float32", cache: "float32" };
    const file = Buffer.concat(encodeSequence(sequence, null, print));
    const right = await step(sequence, ids[20]);
    const next = await step(sequence, ids[21]);
    sequence.rollback(mark);
    expect(worst(await step(sequence, ids[20]), right)).toBe(0);
    await step(sequence, 2); // another way
    expect(worst(await step(copy, ids[20]), right)).toBe(0);
    const opened = decodeSequence(file, engine.pool, composed, engine.shape, print).sequence;
    expect(worst(await step(opened, ids[20]), right)).toBe(0);
    // both, and a third one at another place, in one step
    const other = begin(engine);
    await engine.prefill(other, ids.slice(0, 5), { wanted: "none" });
    const both = await engine.decode([
      { sequence: copy, id: ids[21] },
      { sequence: other, id: ids[5] },
      { sequence: opened, id: ids[21] },
    ]);
    expect(worst(both[0], next)).toBeLessThan(1e-4);
    expect(worst(both[2], next)).toBeLessThan(1e-4);
    expect(worst(both[1], next)).toBeGreaterThan(1e-2);
    for (const s of [sequence, copy, opened, other]) s.close();
    await engine.close();
  });

  it("leaves a sequence as it was when a prompt is stopped", async () => {
    const engine = await engineFor(checkpointOf(config));
    const sequence = begin(engine);
    await engine.prefill(sequence, ids.slice(0, 10), { wanted: "none" });
    const stop = new AbortController();
    const onProgress = () => stop.abort();
    await expect(
      engine.prefill(sequence, ids.slice(10, 20), { wanted: "last", signal: stop.signal, onProgress }),
    ).rejects.toThrow();
    const logits = await engine.prefill(sequence, ids.slice(10, 20), { wanted: "last" });
    const expected = (await trainingLogits(config, ids.slice(0, 20))).subarray(19 * V);
    expect(worst(logits as Float32Array, expected)).toBeLessThan(2e-3);
    sequence.close();
    await engine.close();
  });

  it("is exported to a file that a plain ONNX session runs", async () => {
    const bytes = await exportModel(config, randomWeights(config, 1));
    const session = await ort.InferenceSession.create(bytes, { logSeverityLevel: 3 });
    const feed = new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [ids.length]);
    const memory = modelFeeds(config, ids, ids.length, memoryOf(config)).memory;
    const more = memory && { memory: new ort.Tensor("float32", memory.data as Float32Array, [...memory.dims]) };
    const { logits } = await session.run({ ids: feed, ...more });
    expect(worst(logits.data as Float32Array, await trainingLogits(config, ids))).toBeLessThan(2e-3);
    await session.release();
  });
});

it.each(["key decay", "value decay", "delta with parts", "gated delta"])(
  "%s reads a long prompt piece by piece",
  async (name) => {
    const config = configOf(USES[name]);
    const ids = someIds(150, config.vocab, 7); // two whole pieces of 64 rows and a shorter one
    const engine = await engineFor(checkpointOf(config));
    expect(worst(await prefillAll(engine, ids), await trainingLogits(config, ids))).toBeLessThan(2e-3);
    await engine.close();
  },
);

describe("in other families", () => {
  it.each(["gemma3", "gpt2"] as const)("%s: windows, learned positions, grouped heads", async (family) => {
    const some = [
      "softmax",
      "squared",
      "key decay",
      "gated delta",
      "counting",
      "with a memory",
      "with a memory and a state",
    ];
    for (const name of some) {
      const config = configOf(USES[name], family);
      const ids = someIds(30, config.vocab, 9);
      const engine = await engineFor(checkpointOf(config));
      expect(worst(await prefillAll(engine, ids), await trainingLogits(config, ids))).toBeLessThan(5e-3);
      await engine.close();
    }
  });

  it("softmax as a mechanism is the model without one", async () => {
    const plain = randomConfig("llama");
    const ids = someIds(20, plain.vocab);
    const graph = buildModel(plain);
    const weights = randomWeights(plain, 1);
    const segment = await compile({ inputs: graph.inputs, outputs: { out: graph.logits } }, { weights, threads: 1 });
    const { out } = await segment.run(modelFeeds(plain, ids));
    await segment.release();
    const config = configOf(softmaxAttention());
    expect(worst(await trainingLogits(config, ids), out.data as Float32Array)).toBeLessThan(1e-4);
  });
});

describe("a model with a mechanism", () => {
  it("is written with its name, parameters and weights, and loaded again", async () => {
    const folder = await mkdtemp(join(tmpdir(), "fovea-mechanism-"));
    const config = configOf(gatedLinearAttention({ gate: "scalar", rank: 3 }));
    const source = checkpointOf(config);
    await convert({ ...source, weights: randomWeights(config, 1) }, join(folder, "m"), { type: "f32" });
    const json = JSON.parse(await readFile(join(folder, "m", "config.json"), "utf8"));
    expect(json.fovea_mechanism).toMatchObject({
      name: "gated-linear-attention",
      parameters: { gate: "scalar", rank: 3 },
    });
    expect(parseConfig(json).mechanism).toEqual(config.mechanism);
    await using model = await load(join(folder, "m"), { worker: false });
    const ids = someIds(12, config.vocab, 3);
    const logits = await model.logits(ids, { rows: "all" });
    expect(worst(logits, await trainingLogits(config, ids))).toBeLessThan(2e-3);
    await rm(folder, { recursive: true });
  });

  it("takes methods on heads, and refuses those that need attention rows or a cache", async () => {
    const engine = await engineFor(checkpointOf(configOf(deltaRule())));
    expect(() => engine.compose([snapkv()])).toThrow(/snapkv acts on cached keys, and this model has delta-rule/);
    expect(() => engine.compose([streamingLlm()])).toThrow(/delta-rule in its place/);
    const ids = someIds(8, engine.config.vocab);
    const sequence = engine.sequence(engine.compose([knockOut({ heads: [{ layer: 0, head: 1 }] })]));
    const logits = await engine.prefill(sequence, ids, { wanted: "last" });
    const plain = await prefillAll(engine, ids);
    expect(worst(logits as Float32Array, plain.subarray(7 * engine.config.vocab))).toBeGreaterThan(1e-2);
    sequence.close();
    await engine.close();
  });

  it("is refused under a name or parameters that are not known", () => {
    const json = { architectures: ["LlamaForCausalLM"], hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2 };
    const more = { intermediate_size: 8, vocab_size: 300, max_position_embeddings: 32 };
    const read = (fovea_mechanism: unknown) => parseConfig({ ...json, ...more, fovea_mechanism });
    expect(() => read({ name: "no-such-thing" })).toThrow(/no mechanism is called "no-such-thing"/);
    try {
      read({ name: "no-such-thing" });
    } catch (error) {
      expect((error as { hint: string }).hint).toMatch(/delta-rule, .*softmax/);
    }
    expect(() => read({ name: "delta-rule", parameters: { chunks: 3 } })).toThrow(/delta-rule.*chunks/);
    expect(() => read("delta-rule")).toThrow(/fovea_mechanism/);
    expect(() => mechanism({ name: "Not A Name", forward: ({ v }) => v })).toThrow(/name/);
  });
});
