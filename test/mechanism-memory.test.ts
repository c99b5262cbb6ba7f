import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import ort from "onnxruntime-node";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { softmaxAttention } from "../src/attention/linear/index.js";
import { attribute } from "../src/context/index.js";
import { compile, crossEntropy, gradients, input, type Tensor } from "../src/graph/index.js";
import { load } from "../src/load.js";
import {
  batchFeeds,
  buildModel,
  type MechanismUse,
  type Memory,
  type ModelConfig,
  mechanism,
  randomConfig,
  randomWeights,
} from "../src/models/index.js";
import {
  accuracy,
  type Batch,
  compareMechanisms,
  decoder,
  mechanismString,
  recall,
  type Task,
  train,
} from "../src/train/index.js";
import { batchMemory, crossAttention, crossState, memoryOf } from "./cross-attention.js";
import { checkpointOf, engineFor, someIds } from "./random-checkpoint.js";

const configOf = (use: MechanismUse): ModelConfig => ({ ...randomConfig("llama"), mechanism: use });
const furthest = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  expect(a.length).toBe(b.length);
  return Math.max(...Array.from(a, (x, i) => Math.abs(x - b[i])));
};

/** Logits [B, T, V] by the graph that trains. */
async function logitsOf(config: ModelConfig, rows: readonly number[][], memories: readonly (Memory | undefined)[]) {
  const [{ length }] = rows;
  const graph = buildModel(config, { batch: true, length });
  const weights = randomWeights(config, 1);
  const segment = await compile({ inputs: graph.inputs, outputs: { out: graph.logits } }, { weights, threads: 1 });
  const batch = { rows: rows.length, length, ids: rows.flat(), ...batchMemory(memories) };
  const { out } = await segment.run(batchFeeds(config, batch));
  await segment.release();
  return out.data as Float32Array;
}

describe.each([
  ["over cached keys", crossAttention()],
  ["from state to state", crossState()],
])("a memory, %s", (_, use) => {
  const config = configOf(use);
  const ids = someIds(12, config.vocab, 5);
  const [one, other] = [memoryOf(config, 5, 1), memoryOf(config, 5, 2)];

  it("is read by every row, by each sequence of a batch its own", async () => {
    const first = await logitsOf(config, [ids], [one]);
    const second = await logitsOf(config, [ids], [other]);
    const V = config.vocab;
    for (let t = 0; t < ids.length; t++)
      expect(furthest(first.subarray(t * V, (t + 1) * V), second.subarray(t * V, (t + 1) * V))).toBeGreaterThan(1e-2);
    const both = await logitsOf(config, [ids, ids], [other, one]);
    expect(furthest(both, [...second, ...first])).toBeLessThan(1e-3);
  });

  it("is a set: its rows in another order are the same memory", async () => {
    const { data, rows } = one as Memory;
    const m = data.length / rows;
    const turned = { data: Float32Array.from([...data.subarray(m), ...data.subarray(0, m)]), rows };
    expect(furthest(await logitsOf(config, [ids], [turned]), await logitsOf(config, [ids], [one]))).toBeLessThan(1e-3);
  });

  it("is a sequence's own while several decode together, and a copy of what was given", async () => {
    const engine = await engineFor(checkpointOf(config));
    const V = config.vocab;
    const given = memoryOf(config, 3, 7) as Memory;
    const memories = [one, other, memoryOf(config, 3, 7)];
    const sequences = [one, other, given].map((memory) => engine.sequence(engine.compose([]), memory));
    given.data.fill(9);
    for (const sequence of sequences) await engine.prefill(sequence, ids.slice(0, 11), { wanted: "none" });
    const rows = await engine.decode(sequences.map((sequence) => ({ sequence, id: ids[11] })));
    for (const [i, row] of rows.entries()) {
      const alone = await logitsOf(config, [ids], [memories[i]]);
      expect(furthest(row, alone.subarray(11 * V))).toBeLessThan(2e-3);
    }
    const bytes = sequences.map((s) => s.bytes);
    expect(bytes[0] - bytes[2]).toBe((one as Memory).data.byteLength - given.data.byteLength);
    for (const sequence of sequences) sequence.close();
    await engine.close();
  });

  it.each([false, true])("has the gradients of finite differences (recomputed: %s)", async (recompute) => {
    const graph = buildModel(config, { batch: true, length: ids.length, recompute });
    const [rows] = graph.logits.shape;
    const targets = input("targets", [rows], "int64");
    const counts = input("counts", [rows]);
    const loss = crossEntropy(graph.logits, targets, counts);
    const weight = [...parameters(loss)].find((p) => p.name === "layers.1.mechanism.memory_k") as Tensor;
    const wanted = { memory: graph.inputs.memory, weight };
    const slopes = gradients(loss, Object.values(wanted));
    const weights = randomWeights(config, 1);
    const segment = await compile(
      {
        inputs: { ...graph.inputs, targets, counts, weight },
        outputs: { loss, "slope memory": slopes[0], "slope weight": slopes[1] },
      },
      { weights, threads: 1 },
    );
    const value = weights.get("layers.1.mechanism.memory_k");
    if (value.kind !== "float") throw new Error("random weights are floats");
    const feeds: Record<string, { data: Float32Array | BigInt64Array; dims: readonly number[] }> = {
      ...batchFeeds(config, { rows: 2, length: 12, ids: [...ids, ...ids], ...batchMemory([one, other]) }),
      targets: { data: BigInt64Array.from([...ids.slice(1), 0, ...ids.slice(1), 0], BigInt), dims: [24] },
      counts: { data: new Float32Array(24).fill(1), dims: [24] },
      weight: { data: Float32Array.from(value.data as Float32Array), dims: value.shape },
    };
    const names = segment.inputNames;
    const run = () => segment.run(Object.fromEntries(names.map((n) => [n, feeds[n]])));
    const out = await run();
    for (const name of ["memory", "weight"] as const) {
      const { data } = feeds[name] as { data: Float32Array };
      const slope = Float32Array.from(out[`slope ${name}`].data as Float32Array);
      const largest = Math.max(...slope.map(Math.abs));
      expect(largest).toBeGreaterThan(1e-3);
      for (const i of [0, 3, 11, data.length - 1, slope.findIndex((x) => Math.abs(x) === largest)]) {
        const [step, old] = [2e-2, data[i]];
        const at = async (x: number) => {
          data[i] = x;
          return Number((await run()).loss.data[0]);
        };
        const measured = ((await at(old + step)) - (await at(old - step))) / (2 * step);
        data[i] = old;
        expect(Math.abs(slope[i] - measured) / largest).toBeLessThan(0.03);
      }
    }
    await segment.release();
  });

  it("that is missing or no memory of this model is refused", async () => {
    const engine = await engineFor(checkpointOf(config));
    const begin = (memory?: unknown) => () => engine.sequence(engine.compose([]), memory as Memory);
    const { data } = one as Memory;
    expect(begin()).toThrow(/reads a memory, and none was given/);
    expect(begin({ data, rows: 4 })).toThrow(new RegExp(`${data.length} numbers are no memory of 4 rows`));
    expect(begin({ data: new Float32Array(0), rows: 0 })).toThrow(/0 rows/);
    expect(begin({ data: [...data], rows: 5 })).toThrow(/Float32Array/);
    await expect(logitsOf(config, [ids, ids], [one])).rejects.toThrow(/no memory of 5 rows/);
    await engine.close();
    const checkpoint = checkpointOf(config);
    await expect(attribute(checkpoint, { prompt: "a", answer: "b" })).rejects.toMatchObject({ code: "unsupported" });
  });
});

/** All parameters that a tensor depends on. */
function parameters(tensor: Tensor, seen = new Set<Tensor>()): Set<Tensor> {
  if (!seen.has(tensor)) {
    seen.add(tensor);
    for (const from of tensor.inputs) parameters(from, seen);
  }
  return new Set([...seen].filter((t) => t.op === "parameter"));
}

it("one row of memory is added whole, whatever is asked", async () => {
  const shape = { B: 1, H: 2, T: 3, D: 2, m: 4 };
  const make = (name: string, dims: number[]) => input(name, dims);
  const inputs = {
    q: make("q", [1, shape.H, shape.T, shape.D]),
    v: make("v", [1, shape.H, shape.T, shape.D]),
    memory: make("memory", [1, 1, shape.m]),
    memory_k: make("memory_k", [4, shape.m]),
    memory_v: make("memory_v", [4, shape.m]),
    sum: make("sum", [1, shape.H, 1, shape.D]),
  };
  const result = crossState.definition.forward(
    { ...inputs, weights: inputs, state: inputs, scale: 1 } as never,
    { width: 4 } as never,
  ) as { out: Tensor };
  const segment = await compile({ inputs, outputs: { out: result.out } }, { threads: 1 });
  const of = (t: Tensor, value: (i: number) => number) => {
    const dims = t.shape as number[];
    const size = dims.reduce((a, b) => a * b, 1);
    return { data: Float32Array.from({ length: size }, (_, i) => value(i)), dims };
  };
  const { out } = await segment.run({
    q: of(inputs.q, (i) => i - 5),
    v: of(inputs.v, () => 0),
    memory: of(inputs.memory, (i) => [1, 2, 0, -1][i]),
    memory_k: of(inputs.memory_k, (i) => i),
    memory_v: of(inputs.memory_v, (i) => (i % 4 === Math.floor(i / 4) ? 10 : 0)),
    sum: of(inputs.sum, () => 0),
  });
  // 10 times the memory, of heads (1, 2) and (0, -1), in each of three rows
  expect([...(out.data as Float32Array)]).toEqual([10, 20, 10, 20, 10, 20, 0, -10, 0, -10, 0, -10]);
  await segment.release();
});

it("a mechanism without one is given none, and a width must be one", () => {
  let seen: unknown = "nothing";
  const plain = mechanism({
    name: "plain-memory-test",
    forward: (inputs) => {
      seen = inputs.memory;
      return inputs.v;
    },
  });
  buildModel(configOf(plain()));
  expect(seen).toBeUndefined();
  const odd = mechanism({ name: "odd-memory-test", memory: () => 0, forward: ({ v }) => v });
  expect(() => buildModel(configOf(odd()))).toThrow(/declares a memory of width 0/);
});

const [KEYS, ROWS, WIDTH] = [16, 6, 32];

/** A memory of key-value pairs, a text of its keys: after each the model is to say the key's value. */
function lookUp(seed: number): Task {
  const make = (stream: number): Batch => {
    const rows = 32;
    const ids = new Int32Array(rows * ROWS);
    const targets = new Int32Array(rows * ROWS);
    const memory = new Float32Array(rows * ROWS * WIDTH);
    for (let r = 0; r < rows; r++) {
      const numbers = someIds(40, 2 ** 20, stream * rows + r + 1);
      const keys = [...new Set(numbers.map((x) => x % KEYS))].slice(0, ROWS);
      keys.forEach((key, i) => {
        const value = KEYS + (numbers[20 + i] % KEYS);
        const t = r * ROWS + i;
        ids[t] = key;
        targets[t] = value;
        // the pairs lie in another order than the text's
        const place = (r * ROWS + ((i + 1 + (stream % 5)) % ROWS)) * WIDTH;
        memory[place + key] = 3;
        memory[place + value] = 3;
      });
    }
    const weights = new Float32Array(rows * ROWS).fill(1);
    const extras = { memory: { data: memory, dims: [rows, ROWS, WIDTH] } };
    return { rows, length: ROWS, ids, targets, weights, extras };
  };
  return {
    name: `look-up(${seed})`,
    vocabulary: 2 * KEYS,
    batch: (step) => make(seed * 5000 + 2 * step),
    heldOut: (index) => make(seed * 5000 + 2 * index + 1),
  };
}

describe("a model that reads a memory", () => {
  const data = lookUp(1);
  const held = data.heldOut(0);
  const memories = held.extras?.memory ?? { data: new Float32Array(0), dims: [] };
  const length = ROWS;
  const memory = (row: number): Memory => ({
    data: memories.data.slice(row * ROWS * WIDTH, (row + 1) * ROWS * WIDTH),
    rows: ROWS,
  });
  const ids = (row: number): number[] => [...held.ids.subarray(row * length, (row + 1) * length)];
  let folder = "";
  let predicted: Int32Array = new Int32Array(0);
  let elsewhere = 0;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "fovea-memory-"));
    const trained = await train({
      model: decoder({ mechanism: crossAttention(), layers: 1, width: WIDTH, heads: 2, vocabulary: 2 * KEYS }),
      data,
      steps: 200,
      accumulate: 2,
      threads: 1,
      evaluate: {
        every: 1000,
        async measure(model) {
          ({ predicted } = await model.evaluate(held));
          const { data: all, dims } = memories;
          const shift = ROWS * WIDTH;
          const turned = Float32Array.from([...all.subarray(shift), ...all.subarray(0, shift)]);
          const wrong = await model.evaluate({ ...held, extras: { memory: { data: turned, dims } } });
          elsewhere = accuracy(held, wrong.predicted);
          return {};
        },
      },
    });
    await trained.save(join(folder, "model"));
    await trained.export(join(folder, "model.onnx"));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  it("learns what stands nowhere else", () => {
    expect(accuracy(held, predicted)).toBeGreaterThan(0.9);
    expect(elsewhere).toBeLessThan(0.5); // with the next row's memory
  });

  it("runs as it trained, in the library and as an exported file", async () => {
    await using model = await load(join(folder, "model"), { worker: false });
    const session = await ort.InferenceSession.create(join(folder, "model.onnx"), { logSeverityLevel: 3 });
    expect(session.inputNames.toSorted()).toEqual(["ids", "memory"]);
    for (const row of [0, 7]) {
      const logits = await model.logits(ids(row), { rows: "all", memory: memory(row) });
      const V = model.config.vocab;
      const best = Array.from({ length }, (_, t) => argmax(logits.subarray(t * V, (t + 1) * V)));
      expect(best).toEqual([...predicted.subarray(row * length, (row + 1) * length)]);
      const { logits: exported } = await session.run({
        ids: new ort.Tensor("int64", BigInt64Array.from(ids(row), BigInt), [length]),
        memory: new ort.Tensor("float32", memory(row).data, [ROWS, WIDTH]),
      });
      expect(furthest(exported.data as Float32Array, logits)).toBeLessThan(1e-3);
    }
    await session.release();
  });

  it("answers, scores and reads with one, and goes on with the one that was read with", async () => {
    await using model = await load(join(folder, "model"), { worker: false });
    const key = ids(3)[5];
    const text = ids(3).slice(0, 5);
    const answer = async (row: number) =>
      (await model.generate([...text, key], { maxTokens: 1, memory: memory(row), ignoreEos: true }).result).ids[0];
    expect(await answer(3)).toBe(predicted[3 * length + 5]);
    const reading = await model.read(text, { memory: memory(3) });
    const fork = await reading.fork();
    await fork.extend([key]);
    expect((await fork.generate([], { maxTokens: 1, ignoreEos: true }).result).ids).toEqual([await answer(3)]);
    const whole = await model.score([...text, key, 3], { memory: memory(3) });
    const rest = await reading.score([key, 3]);
    expect(rest.tokens[1].logprob).toBeCloseTo(whole.tokens[6].logprob, 4);
    expect((await model.score([...text, key, 3], { memory: memory(4) })).logprob).not.toBeCloseTo(whole.logprob, 2);

    const file = join(folder, "kept.cache");
    await reading.save(file);
    const opened = await model.open(file);
    expect((await opened.score([key, 3])).tokens).toEqual(rest.tokens);
    await (await model.open(file, { memory: memory(3) })).close();
    await expect(model.open(file, { memory: memory(4) })).rejects.toMatchObject({ code: "mismatch" });

    await expect(model.read(text)).rejects.toMatchObject({ code: "bad-input", message: /reads a memory/ });
    const narrow = { data: new Float32Array(ROWS * 5), rows: ROWS };
    await expect(model.read(text, { memory: narrow })).rejects.toMatchObject({ code: "bad-shape" });
    const again = { memory: memory(3), maxTokens: 1 };
    await expect(reading.generate([key], again).result).rejects.toMatchObject({ message: /which has its own/ });
    for (const r of [reading, fork, opened]) await r.close();
  });

  it("does not train on batches without one, nor is one given to a model that reads none", async () => {
    const model = decoder({ mechanism: crossAttention(), layers: 1, width: WIDTH, heads: 2, vocabulary: 128 });
    await expect(train({ model, data: recall({ pairs: 2, rows: 2 }), steps: 1, threads: 1 })).rejects.toMatchObject({
      code: "bad-input",
    });
    for (const worker of [true, false]) {
      await using tiny = await load("models/tiny", { worker });
      await expect(tiny.read("a", { memory: memory(0) })).rejects.toMatchObject({
        code: "bad-input",
        message: /softmax|attention reads none/,
      });
    }
  });

  it("is compared with others on a task that brings one", async () => {
    const runs = await compareMechanisms({
      mechanisms: [softmaxAttention(), crossAttention()],
      tasks: { "look-up": lookUp },
      ...{ steps: 60, seeds: [1], threads: 1, model: { layers: 1, width: WIDTH, heads: 2 } },
    });
    const [plain, reads] = runs;
    expect(reads.mechanism).toBe(mechanismString(crossAttention()));
    expect(plain.accuracy).toBeLessThan(0.2); // a guess among 16
    expect(reads.accuracy).toBeGreaterThan(2 * plain.accuracy);
  });
});

function argmax(row: ArrayLike<number>): number {
  return Array.from(row).reduce((best, x, i, all) => (x > all[best] ? i : best), 0);
}
