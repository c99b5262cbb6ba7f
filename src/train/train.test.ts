import { spawn } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { toFloats } from "../graph/index.js";
import { load } from "../load.js";
import { openCheckpoint } from "../models/index.js";
import type { Batch, DataSource } from "./batch.js";
import { checkpoints } from "./checkpoint.js";
import { attentionDistillationLoss, klLoss } from "./losses.js";
import { readMetrics } from "./metrics.js";
import { adamW, sgd } from "./optimizer.js";
import { constantSchedule, cosineSchedule, wsdSchedule } from "./schedule.js";
import { TrainingStep } from "./step.js";
import { counting } from "./testing.js";
import { train } from "./train.js";
import { decoder, fineTune } from "./trainable.js";

const small = (seed = 1, recompute = false) =>
  decoder({ layers: 1, width: 32, heads: 2, vocabulary: 300, seed, recompute });

let folder = "";
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "fovea-train-"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

describe("schedules", () => {
  const at = (schedule: (step: number) => number, ...steps: number[]) => steps.map((s) => +schedule(s).toFixed(4));

  it("warm up, stay, and fall", () => {
    expect(at(constantSchedule({ warmup: 4 }), 0, 1, 3, 4, 99)).toEqual([0.25, 0.5, 1, 1, 1]);
    expect(at(cosineSchedule({ steps: 11, floor: 0.2 }), 0, 5, 10, 50)).toEqual([1, 0.6, 0.2, 0.2]);
    expect(at(cosineSchedule({ steps: 13, warmup: 2, floor: 0 }), 0, 1, 2, 7, 12)).toEqual([0.5, 1, 1, 0.5, 0]);
    expect(at(wsdSchedule({ steps: 10, warmup: 2, decay: 4 }), 0, 1, 2, 6, 7, 8, 9)).toEqual([
      0.5, 1, 1, 1, 0.75, 0.5, 0.25,
    ]);
    expect(() => wsdSchedule({ steps: 3, warmup: 2, decay: 4 })).toThrow(/no room for 6/);
  });
});

/** Gradients by the step itself: SGD without momentum at rate 1 moves a weight by its gradient. */
async function gradientsOf(batches: readonly Batch[], names: readonly string[], recompute = false) {
  const model = small(1, recompute);
  const options = {
    ...model,
    optimizer: sgd({ rate: 1, momentum: 0, clip: Number.POSITIVE_INFINITY }),
  };
  const step = new TrainingStep({ ...options, threads: 1 }, first(model));
  const before = new Map(names.map((n) => [n, step.values.get(n)?.data.slice() as Float32Array]));
  const { loss, norm } = await step.run(batches, 1, 1);
  const moved = new Map(
    names.map((n) => [n, before.get(n)?.map((x, i) => x - (step.values.get(n)?.data[i] as number)) as Float32Array]),
  );
  await step.release();
  return { loss, norm, moved };
}

/** First values of the parameters; the optimiser's state begins at zero. */
const first = (model: ReturnType<typeof small>) => (name: string) =>
  model.trained.includes(name) ? toFloats(model.weights.get(name)) : undefined;

const NAMES = ["embed", "layers.0.q", "layers.0.down", "layers.0.attn_norm", "norm"];
const furthest = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Math.max(...Array.from(a, (x, i) => Math.abs(x - b[i])));

describe("a step", () => {
  it("is AdamW and SGD as their papers have them, clipped by the norm of all gradients", async () => {
    const data = counting({ rows: 2, length: 12 });
    const batches = [data.batch(0), data.batch(1), data.batch(2)] as Batch[];
    const rates = [0.01, 0.02, 0.005];
    for (const kind of ["adamw", "sgd"] as const) {
      const clip = 0.5;
      const optimizer =
        kind === "adamw"
          ? adamW({ rate: 1, betas: [0.8, 0.9], eps: 1e-6, weightDecay: 0.3, clip })
          : sgd({ rate: 1, momentum: 0.7, weightDecay: 0.3, clip });
      const model = small();
      const make = (o: typeof optimizer) => new TrainingStep({ ...model, optimizer: o, threads: 1 }, first(model));
      const step = make(optimizer);
      // the oracle: gradients of a step that moves by them, the formulas in float64
      const plain = make(sgd({ rate: 1, momentum: 0, clip: Number.POSITIVE_INFINITY }));
      const state = new Map(
        model.trained.map((n) => [n, { m: 0, v: 0 } as unknown as { m: Float64Array; v: Float64Array }]),
      );
      for (const [n] of state) {
        const size = step.values.get(n)?.data.length as number;
        state.set(n, { m: new Float64Array(size), v: new Float64Array(size) });
      }
      for (const [t, batch] of batches.entries()) {
        const before = new Map(
          model.trained.map((n) => [n, Float64Array.from(step.values.get(n)?.data as Float32Array)]),
        );
        for (const n of model.trained) plain.values.get(n)?.data.set(before.get(n) as Float64Array);
        const { norm } = await plain.run([batch], 1, 1);
        const factor = Math.min(1, clip / (norm + 1e-6));
        expect(factor).toBeLessThan(1);
        const result = await step.run([batch], rates[t], t + 1);
        expect(result.norm).toBeCloseTo(norm, 4);
        for (const n of ["embed", "layers.0.q", "layers.0.mlp_norm"]) {
          const old = before.get(n) as Float64Array;
          const moved = plain.values.get(n)?.data as Float32Array;
          const { m, v } = state.get(n) as { m: Float64Array; v: Float64Array };
          const decay = n === "layers.0.q" ? 0.3 : 0;
          const wanted = old.map((p, i) => {
            const g = (p - moved[i]) * factor;
            if (kind === "sgd") {
              m[i] = 0.7 * m[i] + g + decay * p;
              return p - rates[t] * m[i];
            }
            m[i] = 0.8 * m[i] + 0.2 * g;
            v[i] = 0.9 * v[i] + 0.1 * g * g;
            const [mean, square] = [m[i] / (1 - 0.8 ** (t + 1)), v[i] / (1 - 0.9 ** (t + 1))];
            return p - rates[t] * (mean / (Math.sqrt(square) + 1e-6) + decay * p);
          });
          expect(furthest(step.values.get(n)?.data as Float32Array, wanted)).toBeLessThan(3e-4 * rates[t] * 10);
        }
      }
      await step.release();
      await plain.release();
    }
  });

  it("adds gradients of parts up to those of the whole, by weight", async () => {
    const data = counting({ rows: 4, length: 12, ragged: true });
    const whole = data.batch(0) as Batch;
    const part = (from: number, to: number): Batch => ({
      rows: to - from,
      length: 12,
      ids: whole.ids.slice(from * 12, to * 12),
      targets: whole.targets.slice(from * 12, to * 12),
      weights: whole.weights.slice(from * 12, to * 12),
    });
    const one = await gradientsOf([whole], NAMES);
    const three = await gradientsOf([part(0, 1), part(1, 3), part(3, 4)], NAMES);
    expect(three.loss).toBeCloseTo(one.loss, 5);
    expect(three.norm).toBeCloseTo(one.norm, 4);
    for (const n of NAMES) expect(furthest(one.moved.get(n) ?? [], three.moved.get(n) ?? [])).toBeLessThan(1e-5);
  });

  it("is the same when layers are computed again in the backward pass", async () => {
    const batch = counting({ rows: 2, length: 12 }).batch(0) as Batch;
    const [kept, again] = [await gradientsOf([batch], NAMES), await gradientsOf([batch], NAMES, true)];
    expect(again.loss).toBe(kept.loss);
    for (const n of NAMES) expect(furthest(kept.moved.get(n) ?? [], again.moved.get(n) ?? [])).toBeLessThan(1e-6);
  });

  it("learns nothing from targets of weight 0, nor across packed texts", async () => {
    const batch = counting({ rows: 2, length: 12 }).batch(0) as Batch;
    const weights = batch.weights.map((w, i) => (i % 12 < 6 ? w : 0));
    const documents = Int32Array.from(batch.ids, (_, i) => (i % 12 < 6 ? 0 : 1));
    const a = await gradientsOf([{ ...batch, weights, documents }], NAMES);
    const changed = { ...batch, weights, documents, ids: batch.ids.map((id, i) => (i % 12 < 6 ? id : 77)) };
    const b = await gradientsOf([{ ...changed, targets: batch.targets.map((t, i) => (i % 12 < 6 ? t : 5)) }], NAMES);
    expect(b.loss).toBe(a.loss);
    for (const n of NAMES) expect(furthest(a.moved.get(n) ?? [], b.moved.get(n) ?? [])).toBeLessThan(1e-6);
    const all = await gradientsOf([batch], NAMES);
    expect(furthest(a.moved.get("layers.0.q") ?? [], all.moved.get("layers.0.q") ?? [])).toBeGreaterThan(1e-5);
  });

  it("gives the same bits on repeated tokens, run after run", async () => {
    const batch = counting({ rows: 8, length: 32 }).batch(0) as Batch;
    const same = {
      ...batch,
      ids: batch.ids.map((id) => id % 3),
      targets: batch.targets.map((t) => Math.max(-1, t % 3)),
    };
    const first = await gradientsOf([same], ["embed"]);
    for (let i = 0; i < 5; i++) expect((await gradientsOf([same], ["embed"])).moved).toEqual(first.moved);
  });
});

describe("train", () => {
  it("learns, reports, and writes a model that the engine loads and exports", async () => {
    const seen: number[] = [];
    const trained = await train({
      model: small(),
      data: counting({ rows: 8, length: 16 }),
      steps: 150,
      optimizer: adamW({ rate: 1e-2 }),
      schedule: cosineSchedule({ steps: 150, warmup: 10 }),
      evaluate: {
        every: 75,
        measure: async (e) => ({
          held_out: (await e.evaluate(counting({ rows: 4, length: 16, seed: 9 }).batch(0) as Batch)).loss,
        }),
      },
      onProgress: ({ step }) => seen.push(step),
    });
    expect(seen.length).toBe(150);
    const losses = trained.metrics.map((m) => m.loss as number);
    expect(losses[0]).toBeGreaterThan(2);
    expect(losses.at(-1)).toBeLessThan(0.7);
    expect(trained.metrics.filter((m) => m.held_out !== undefined).map((m) => m.step)).toEqual([75, 150]);
    expect(trained.metrics.at(-1)?.held_out).toBeLessThan(0.7);
    await trained.save(join(folder, "model"));
    await trained.export(join(folder, "model.onnx"));
    expect((await readFile(join(folder, "model.onnx"))).length).toBeGreaterThan(10_000);
    await using model = await load(join(folder, "model"), { worker: false, threads: 1 });
    const { ids } = await model.generate([40, 41, 42, 43, 44, 45], { maxTokens: 4, ignoreEos: true }).result;
    expect(ids).toEqual([46, 47, 48, 49]);
  });

  it("goes on after a stop with the same losses, bit for bit", async () => {
    const options = {
      model: small(),
      data: counting({ rows: 4, length: 16 }),
      steps: 24,
      optimizer: adamW({ rate: 1e-2 }),
      schedule: cosineSchedule({ steps: 24, warmup: 3 }),
      logEvery: 1,
      threads: 2,
    };
    const whole = await train({ ...options, folder: join(folder, "whole") });
    const stop = new AbortController();
    const part = await train({
      ...options,
      folder: join(folder, "part"),
      signal: stop.signal,
      onProgress: ({ step }) => step === 11 && stop.abort(),
    });
    expect([part.finished, part.step]).toEqual([false, 11]);
    const rest = await train({ ...options, folder: join(folder, "part") });
    expect([rest.finished, rest.step]).toEqual([true, 24]);
    const losses = async (name: string) =>
      (await readMetrics(join(folder, name, "metrics.jsonl"))).map((m) => [m.step, m.loss]);
    expect(await losses("part")).toEqual(await losses("whole"));
    expect((await losses("whole")).length).toBe(24);
    for (const name of rest.config ? NAMES : [])
      expect(toFloats(rest.weights.get(name))).toEqual(toFloats(whole.weights.get(name)));
    await expect(train({ ...options, folder: join(folder, "part"), optimizer: sgd() })).rejects.toThrow(
      /another run: optimizer was/,
    );
  });

  it("goes on after a kill at any moment", async () => {
    const script = join(process.cwd(), "src/train/testing-run.mjs");
    const whole = join(folder, "whole");
    const killed = join(folder, "killed");
    await finished(spawn(process.execPath, [script, whole], { stdio: "ignore" }));
    // killed when it has come some steps further, at whatever it is doing then: stepping, writing metrics or a checkpoint
    const lines = async () => (await readMetrics(join(killed, "metrics.jsonl"))).length;
    for (const [i, target] of [10, 40, 70, 110, 150].entries()) {
      const child = spawn(process.execPath, [script, killed], { stdio: "ignore" });
      const ended = finished(child);
      let over = false;
      ended.then(() => {
        over = true;
      });
      while (!over && (await lines()) < target) await new Promise((resolve) => setTimeout(resolve, 1));
      await new Promise((resolve) => setTimeout(resolve, 3 * i));
      expect(over).toBe(false);
      child.kill("SIGKILL");
      await ended;
    }
    expect(await finished(spawn(process.execPath, [script, killed], { stdio: "ignore" }))).toBe(0);
    const losses = async (f: string) => (await readMetrics(join(f, "metrics.jsonl"))).map((m) => [m.step, m.loss]);
    expect(await losses(killed)).toEqual(await losses(whole));
    expect((await checkpoints(killed)).at(-1)?.step).toBe(200);
  }, 120_000);

  it("trains a named set of tensors and leaves the others alone", async () => {
    await using checkpoint = Object.assign(await openCheckpoint("models/tiny"), {
      async [Symbol.asyncDispose]() {
        await checkpoint.close();
      },
    });
    const model = fineTune(checkpoint, { tensors: "layers.*.o" });
    const source = counting({ rows: 2, length: 8 });
    const trained = await train({ model, data: source, steps: 3, optimizer: adamW({ rate: 1e-3 }) });
    expect(toFloats(trained.weights.get("embed"))).toEqual(toFloats(checkpoint.weights.get("embed")));
    expect(toFloats(trained.weights.get("layers.0.o"))).not.toEqual(toFloats(checkpoint.weights.get("layers.0.o")));
    expect(() => fineTune(checkpoint, { tensors: ["layers.*.router"] })).toThrow(/no weight "layers/);
  });

  it("learns from a teacher: KL of the vocabulary and of a layer's attention", async () => {
    const model = small();
    const source = counting({ rows: 2, length: 8 });
    const V = model.config.vocab;
    // the teacher is sure of token 7, and reads the first token only
    const sure = Float32Array.from({ length: 16 * V }, (_, i) => Math.log(i % V === 7 ? 0.9 : 0.1 / (V - 1)));
    const first = Float32Array.from({ length: 2 * 2 * 64 }, (_, i) => (i % 8 === 0 ? 1 : 0));
    const data: DataSource = {
      ...source,
      batch: (s) => ({
        ...(source.batch(s) as Batch),
        extras: { teacher: { data: sure, dims: [16, V] }, pattern: { data: first, dims: [2, 2, 8, 8] } },
      }),
    };
    const trained = await train({
      model,
      data,
      steps: 60,
      optimizer: adamW({ rate: 1e-2 }),
      logEvery: 1,
      loss: ({ logits, weights, tap, extra }) =>
        klLoss(extra("teacher", logits.shape), logits, weights).add(
          attentionDistillationLoss(
            extra("pattern", tap("pattern.0").shape),
            tap("pattern.0"),
            weights.reshape(["B", "T"]),
          ),
        ),
    });
    const losses = trained.metrics.map((m) => m.loss as number);
    expect(losses[0]).toBeGreaterThan(3);
    expect(losses.at(-1)).toBeLessThan(0.3);
    await expect(
      train({
        model,
        data: source,
        steps: 1,
        loss: ({ logits, weights, extra }) => klLoss(extra("teacher", logits.shape), logits, weights),
      }),
    ).rejects.toThrow(/extra teacher/);
  });

  it("says in words what does not fit", async () => {
    const data = counting({ rows: 1, length: 8 });
    const bad = (batch: Partial<Batch>): DataSource => ({
      ...data,
      batch: (s) => ({ ...(data.batch(s) as Batch), ...batch }),
    });
    const model = small();
    await expect(train({ model, data: { ...data, vocabulary: 5000 }, steps: 1 })).rejects.toThrow(
      /5000 tokens, the model 300/,
    );
    await expect(train({ model, data, steps: 0 })).rejects.toThrow(/steps is 0/);
    await expect(train({ model, data: bad({ targets: new Int32Array(3) }), steps: 1 })).rejects.toThrow(/3 targets/);
    await expect(train({ model, data: bad({ targets: new Int32Array(8).fill(301) }), steps: 1 })).rejects.toThrow(
      /token 301/,
    );
    await expect(
      train({ model, data, steps: 30, optimizer: sgd({ rate: 1e30, clip: Number.POSITIVE_INFINITY }) }),
    ).rejects.toThrow(/the loss is/);
  });
});

function finished(child: ReturnType<typeof spawn>): Promise<number | null> {
  return new Promise((resolve) => child.on("exit", (code) => resolve(code)));
}
