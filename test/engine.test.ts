import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { resolve } from "../src/attention/index.js";
import type { Engine } from "../src/engine/engine.js";
import type { AttachedMethod, Hooks } from "../src/engine/hooks.js";
import { rotate } from "../src/engine/rotary.js";
import { FAMILIES, type FamilyName, randomConfig, randomWeights } from "../src/models/index.js";
import { checkpointOf, engineFor, randomCheckpoint, someIds } from "./random-checkpoint.js";
import { compileWhole, logitsOf } from "./whole-model.js";

const hook = (name: string, hooks: Hooks): AttachedMethod => ({ name, spec: name, hooks });

/** Logits of all rows of a prompt. */
async function allLogits(engine: Engine, ids: readonly number[], methods: readonly AttachedMethod[] = []) {
  const { vocab } = engine.config;
  const out = new Float32Array(ids.length * vocab);
  const sequence = engine.sequence(engine.compose(methods));
  await engine.prefill(sequence, ids, { wanted: "all", onLogits: (first, _n, data) => out.set(data, first * vocab) });
  sequence.close();
  return out;
}

function distance(a: Float32Array, b: Float32Array): number {
  expect(a.length).toBe(b.length);
  let most = 0;
  for (let i = 0; i < a.length; i++) most = Math.max(most, Math.abs(a[i] - b[i]));
  return most;
}

describe.each(Object.keys(FAMILIES) as FamilyName[])("%s: the engine against the uncut graph", (family) => {
  const config = randomConfig(family);
  const ids = someIds(70, config.vocab);
  let engine: Engine;
  let expected: Float32Array;
  beforeAll(async () => {
    const whole = await compileWhole(config, randomWeights(config, 1));
    expected = await logitsOf(whole, ids);
    await whole.segment.release();
    engine = await engineFor(checkpointOf(config));
  });
  afterAll(() => engine.close());

  test("a prompt, all rows", async () => {
    expect(distance(await allLogits(engine, ids), expected)).toBeLessThan(2e-3);
  });

  test("a prompt's last row, then pieces of one, three and thirty rows, then decode steps", async () => {
    const { vocab } = config;
    const row = (i: number) => expected.subarray(i * vocab, (i + 1) * vocab);
    const sequence = engine.sequence(engine.compose([]));
    let at = 0;
    for (const rows of [20, 1, 3, 30]) {
      const last = await engine.prefill(sequence, ids.slice(at, at + rows), { wanted: "last" });
      at += rows;
      expect(distance(last as Float32Array, row(at - 1))).toBeLessThan(2e-3);
    }
    for (; at < ids.length; at++) {
      const [logits] = await engine.decode([{ sequence, id: ids[at] }]);
      expect(distance(logits, row(at))).toBeLessThan(2e-3);
    }
    sequence.close();
    expect(engine.pool.bytesUsed).toBe(await baseline(engine));
  });
});

/** Bytes in use when no sequence is open. */
async function baseline(engine: Engine): Promise<number> {
  const sequence = engine.sequence(engine.compose([]));
  sequence.close();
  return engine.pool.bytesUsed;
}

describe("paths, threads and batches", () => {
  const checkpoint = randomCheckpoint("llama");
  const ids = someIds(90, checkpoint.config.vocab);
  const { vocab } = checkpoint.config;
  let engine: Engine;
  beforeAll(async () => {
    engine = await engineFor(checkpoint, { cache: "int8" });
  });
  afterAll(() => engine.close());

  /** Logits of decode steps behind a prompt. */
  async function decoded(on: Engine, methods: readonly AttachedMethod[], steps = 12) {
    const sequence = on.sequence(on.compose(methods));
    await on.prefill(sequence, ids.slice(0, ids.length - steps), { wanted: "none" });
    const out = new Float32Array(steps * vocab);
    for (let i = 0; i < steps; i++) {
      const [logits] = await on.decode([{ sequence, id: ids[ids.length - steps + i] }]);
      out.set(logits, i * vocab);
    }
    sequence.close();
    return out;
  }

  const identities: Record<string, Hooks> = {
    "row path": { scores: () => undefined },
    "pattern edit": { pattern: () => undefined },
    "selection of everything": { select: () => [{}] },
    "two disjoint parts": {
      select: ({ view }) => [{ entries: { ranges: [[0, 5]] } }, { entries: { ranges: [[5, view.length(0)]] } }],
    },
    "token lists": {
      select: ({ view }) => [
        { entries: { tokens: Int32Array.from({ length: Math.ceil(view.length(0) / 2) }, (_, i) => i * 2) } },
        { entries: { tokens: Int32Array.from({ length: Math.floor(view.length(0) / 2) }, (_, i) => i * 2 + 1) } },
      ],
    },
    "token lists per query head": {
      select: ({ view, model }) =>
        [0, 1].map((odd) => ({
          entries: Array.from({ length: model.heads }, (_, head) => {
            const first = (head + odd) % 2;
            const count = Math.max(0, Math.ceil((view.length(0) - first) / 2));
            return { tokens: Int32Array.from({ length: count }, (_, i) => i * 2 + first) };
          }),
        })),
    },
    "keys and values of the method's own": {
      select: async (step) => {
        if (step.phase !== "decode") return [{}];
        const all = (of: (head: number) => Float32Array) =>
          Float32Array.from(Array.from({ length: step.model.kvHeads }, (_, head) => [...of(head)]).flat());
        const { view } = step;
        return [await step.attendTo({ count: view.length(0), k: all(view.keys), v: all(view.values) })];
      },
    },
    "a ready partial result": { select: async (step) => [await step.attend({})] },
    "a bias of zeros": { bias: ({ view }) => ({ data: new Float32Array(view.length(0)), heads: 1, rows: 0 }) },
    "a constant bias": {
      bias: ({ view, model }) => ({
        data: new Float32Array(view.length(0) * model.heads).fill(1.5),
        heads: model.heads,
        rows: 0,
      }),
    },
    "graph path (softmax as a mechanism)": {
      mechanism: ({ q, k, v, mask, scale }) =>
        q.matmul(k.transpose()).mul(scale).add(mask.sub(1).mul(1e9)).softmax(-1).matmul(v),
    },
  };

  for (const [name, hooks] of Object.entries(identities))
    test(`${name}: prompt and decode as without hooks, on one int8 cache`, async () => {
      // attention's own outputs in the first layer agree to 1e-4; behind all layers the difference has grown
      const outputs: number[][] = [];
      const capture = () => {
        const rows: number[] = [];
        outputs.push(rows);
        return hook("capture", { layers: [0], heads: ({ heads }) => void rows.push(...heads) });
      };
      const method = hook(name, hooks);
      const plain = await allLogits(engine, ids, [capture()]);
      const scale = Math.max(...plain.map(Math.abs));
      expect(distance(await allLogits(engine, ids, [method, capture()]), plain) / scale).toBeLessThan(1e-3);
      const steps = await decoded(engine, [capture()]);
      expect(distance(await decoded(engine, [method, capture()]), steps) / scale).toBeLessThan(1e-3);
      expect(outputs[0].length).toBe(ids.length * engine.config.heads * engine.config.headDim);
      const [a, b, c, d] = outputs.map((rows) => Float32Array.from(rows));
      const size = Math.max(...a.map(Math.abs));
      expect(distance(b, a) / size).toBeLessThan(1e-4);
      expect(distance(d, c) / size).toBeLessThan(1e-4);
    });

  test("a rotated variant of the query at the rows' own positions is the query", async () => {
    let checked = 0;
    const method = hook("rotate", {
      select: (step) => {
        const again = step.rotate(step.positions);
        expect(distance(again, step.q.slice())).toBeLessThan(1e-6);
        checked++;
        return [{ query: again }];
      },
    });
    const plain = await decoded(engine, []);
    expect(distance(await decoded(engine, [method]), plain)).toBeLessThan(1e-3);
    expect(checked).toBeGreaterThan(12);
  });

  test("scoring and attending take the part's own queries: doubled ones double the logits", async () => {
    let checked = 0;
    const method = hook("double", {
      select: async (step) => {
        if (step.firstRow > 0) return [{}];
        const query = step.q.map((x) => 2 * x);
        const [once, twice] = [await step.score({}), await step.score({ query })];
        const seen = once.map((x) => (x === Number.NEGATIVE_INFINITY ? 0 : 1));
        const wanted = once.map((x, i) => (seen[i] ? 2 * x : 0));
        const size = Math.max(...wanted.map(Math.abs));
        expect(
          distance(
            twice.map((x, i) => (seen[i] ? x : 0)),
            wanted,
          ) / size,
        ).toBeLessThan(1e-3);
        expect(distance((await step.attend({ query })).lse, (await step.attend({})).lse)).toBeGreaterThan(1e-2);
        checked++;
        return [{}];
      },
    });
    await decoded(engine, [method], 3);
    // nobody asks for the last layer of this prompt
    expect(checked).toBe(4 * engine.config.layers - 1);
  });

  test("retain sees the plan that turned its queries", async () => {
    const projected = new Map<string, Float32Array>();
    let checked = 0;
    const method = hook("plan", {
      activations: ({ layer, positions, q }) => void projected.set(`${layer}.${positions[0]}`, q.slice()),
      retain: (step) => {
        const { plan, model, positions } = step;
        if (!plan) throw new Error("no plan");
        if (step.when === "before") return;
        const q = projected.get(`${step.layer}.${positions[0]}`) as Float32Array;
        rotate(q, model.heads, model.headDim, positions, plan);
        expect(distance(q, step.q.slice())).toBeLessThan(1e-5);
        checked++;
      },
    });
    await decoded(engine, [method], 3);
    expect(checked).toBe(4 * engine.config.layers);
  });

  test("edits at every tap reach the output, and undoing them restores it", async () => {
    const plain = await allLogits(engine, ids);
    const scale = (by: number) => (step: { x: Float32Array }) => {
      for (let i = 0; i < step.x.length; i++) step.x[i] *= by;
    };
    for (const tap of ["embeddings", "attnOut", "mlp", "mlpOut", "residual"] as const) {
      const moved = await allLogits(engine, ids, [hook("up", { [tap]: scale(1.5) })]);
      expect(distance(moved, plain)).toBeGreaterThan(0.01);
      const back = await allLogits(engine, ids, [hook("up", { [tap]: scale(2) }), hook("down", { [tap]: scale(0.5) })]);
      expect(distance(back, plain)).toBeLessThan(2e-3);
    }
    const heads = hook("heads", { heads: ({ heads }) => void heads.fill(0) });
    const attnOut = hook("attn_out", { attnOut: ({ x }) => void x.fill(0) });
    expect(distance(await allLogits(engine, ids, [heads]), await allLogits(engine, ids, [attnOut]))).toBeLessThan(2e-3);
  });

  test("taps are called with the model's widths, every row once a layer", async () => {
    const rows: Record<string, number> = {};
    const count =
      (name: string, width: number) => (step: { x: Float32Array; width: number; rows: number; layer: number }) => {
        expect(step.width).toBe(width);
        expect(step.x.length).toBe(width * step.rows);
        rows[`${name}.${step.layer}`] = (rows[`${name}.${step.layer}`] ?? 0) + step.rows;
      };
    const { layers, width, mlpWidth } = engine.config;
    await allLogits(engine, ids, [
      hook("count", {
        attnOut: count("attnOut", width),
        mlp: count("mlp", mlpWidth),
        mlpOut: count("mlpOut", width),
        residual: count("residual", width),
      }),
    ]);
    expect(Object.keys(rows).length).toBe(4 * layers + 1);
    expect(new Set(Object.values(rows))).toEqual(new Set([ids.length]));
  });

  test("the number of threads does not change a bit of attention, and logits by less than 1e-4", async () => {
    const two = await engineFor(checkpoint, { cache: "int8", threads: 2 });
    const a = await decoded(engine, []);
    const b = await decoded(two, []);
    expect(distance(a, b)).toBeLessThan(1e-4);
    await two.close();
  });

  test("batched is alone", async () => {
    const texts = [ids.slice(0, 30), ids.slice(7, 60), ids.slice(20, 24)];
    const alone: Float32Array[] = [];
    for (const text of texts) {
      const sequence = engine.sequence(engine.compose([]));
      await engine.prefill(sequence, text, { wanted: "none" });
      alone.push((await engine.decode([{ sequence, id: 3 }]))[0]);
      sequence.close();
    }
    const sequences = await Promise.all(
      texts.map(async (text) => {
        const sequence = engine.sequence(engine.compose([]));
        await engine.prefill(sequence, text, { wanted: "none" });
        return sequence;
      }),
    );
    const together = await engine.decode(sequences.map((sequence) => ({ sequence, id: 3 })));
    together.forEach((logits, i) => {
      expect(distance(logits, alone[i])).toBeLessThan(1e-4);
    });
    for (const sequence of sequences) sequence.close();
  });

  test("snapshot and rollback: what follows is what would have followed", async () => {
    const sequence = engine.sequence(engine.compose([]));
    await engine.prefill(sequence, ids.slice(0, 50), { wanted: "none" });
    const mark = sequence.snapshot();
    const first = (await engine.decode([{ sequence, id: 5 }]))[0].slice();
    await engine.prefill(sequence, ids.slice(0, 33), { wanted: "none" });
    sequence.rollback(mark);
    expect(sequence.length).toBe(50);
    expect(distance((await engine.decode([{ sequence, id: 5 }]))[0], first)).toBe(0);
    sequence.close();
  });

  test("an abort in the middle of a prompt leaves the sequence and the pool as they were", async () => {
    const before = await baseline(engine);
    const sequence = engine.sequence(engine.compose([]));
    const abort = new AbortController();
    const run = engine.prefill(sequence, ids, {
      wanted: "last",
      signal: abort.signal,
      onProgress: () => abort.abort(),
    });
    await expect(run).rejects.toMatchObject({ code: "aborted" });
    expect(sequence.length).toBe(0);
    sequence.close();
    expect(engine.pool.bytesUsed).toBe(before);
  });

  test("a prompt that cannot fit is refused with the figure, and a full cache mid-way leaves others alone", async () => {
    const small = await engineFor(checkpoint, { cache: "int8", memory: 40 * 2 ** 20, context: 2 ** 20 });
    const sequence = small.sequence(small.compose([]));
    await expect(small.prefill(sequence, someIds(200_000, vocab), { wanted: "none" })).rejects.toThrow(
      /need \d+(\.\d+)? MiB.*free/,
    );
    await small.prefill(sequence, ids, { wanted: "none" });
    expect(sequence.length).toBe(ids.length);
    sequence.close();
    await small.close();
  });
});

test("a text beyond the context is refused, unless a method or the caller allows it", async () => {
  const checkpoint = randomCheckpoint("llama", { maxPositions: 64 });
  const ids = someIds(65, checkpoint.config.vocab);
  const none = { wanted: "none" } as const;
  const engine = await engineFor(checkpoint);
  const sequence = engine.sequence(engine.compose([]));
  await expect(engine.prefill(sequence, ids, none)).rejects.toThrow(/65 tokens are more than the 64 positions/);
  await engine.prefill(sequence, ids.slice(0, 64), none);
  await expect(engine.decode([{ sequence, id: 1 }])).rejects.toMatchObject({ code: "too-large" });
  expect(sequence.length).toBe(64);
  const streaming = engine.sequence(engine.compose(resolve("streaming-llm(sinks=2,window=20)")));
  await engine.prefill(streaming, ids, none);
  for (const s of [sequence, streaming]) s.close();
  await engine.close();
  const wide = await engineFor(checkpoint, { context: 128 });
  await wide.prefill(wide.sequence(wide.compose([])), ids, none);
  await wide.close();
  await expect(engineFor(randomCheckpoint("gpt2"), { context: 4096 })).rejects.toThrow(/embeddings for 512 positions/);
});

test("int8 and int4 weights stay near float32", async () => {
  const checkpoint = randomCheckpoint("llama");
  const ids = someIds(40, checkpoint.config.vocab);
  const [float, int8, int4] = await Promise.all(
    (["float32", "int8", "int4"] as const).map(async (precision) => {
      const engine = await engineFor(checkpoint, { precision });
      const logits = await allLogits(engine, ids);
      await engine.close();
      return logits;
    }),
  );
  const rms = (a: Float32Array, b: Float32Array) => Math.sqrt(a.reduce((s, x, i) => s + (x - b[i]) ** 2, 0) / a.length);
  const spread = rms(float, new Float32Array(float.length));
  expect(rms(int8, float) / spread).toBeLessThan(0.1);
  expect(rms(int4, float) / spread).toBeGreaterThan(rms(int8, float) / spread);
  expect(rms(int4, float) / spread).toBeLessThan(1);
});
