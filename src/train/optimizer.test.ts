import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { compile, input, parameter, type Tensor, toFloats } from "../graph/index.js";
import { seededNormals } from "../models/index.js";
import type { Batch } from "./batch.js";
import { readMetrics } from "./metrics.js";
import { adamW, muon, type Optimizer, orthogonal } from "./optimizer.js";
import { readRecipe } from "./recipe.js";
import { cosineSchedule } from "./schedule.js";
import { TrainingStep } from "./step.js";
import { counting } from "./testing.js";
import { train } from "./train.js";
import { decoder, freshWeights } from "./trainable.js";

const small = () => decoder({ layers: 1, width: 32, heads: 2, vocabulary: 300 });

function normals(size: number, seed: string): Float32Array {
  return Float32Array.from({ length: size }, seededNormals(seed));
}

async function orthogonalOf(data: Float32Array, rows: number, columns: number): Promise<Float32Array> {
  const matrix = input("matrix", [rows, columns]);
  const segment = await compile({ inputs: { matrix }, outputs: { out: orthogonal(matrix) } }, { threads: 1 });
  const { out } = await segment.run({ matrix: { data, dims: [rows, columns] } });
  await segment.release();
  return out.data as Float32Array;
}

function transposed(data: ArrayLike<number>, rows: number, columns: number): Float32Array {
  return Float32Array.from({ length: rows * columns }, (_, i) => data[(i % rows) * columns + Math.floor(i / rows)]);
}

/** a [n, k] times the transpose of b [m, k]: [n, m], in float64. */
function timesTransposed(a: ArrayLike<number>, b: ArrayLike<number>, k: number): Float64Array {
  const [n, m] = [a.length / k, b.length / k];
  return Float64Array.from({ length: n * m }, (_, i) => {
    let sum = 0;
    for (let c = 0; c < k; c++) sum += a[Math.floor(i / m) * k + c] * b[(i % m) * k + c];
    return sum;
  });
}

/** Singular values of a matrix [rows, columns] with rows <= columns: Jacobi's rotations on its product with itself. */
function singularValues(data: ArrayLike<number>, rows: number, columns: number): number[] {
  const s = timesTransposed(data, data, columns);
  const at = (i: number, j: number): number => i * rows + j;
  for (let sweep = 0; sweep < 12; sweep++)
    for (let p = 0; p < rows; p++)
      for (let q = p + 1; q < rows; q++) {
        const angle = 0.5 * Math.atan2(2 * s[at(p, q)], s[at(q, q)] - s[at(p, p)]);
        const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
        for (const [step, flip] of [
          [rows, 1],
          [1, rows],
        ])
          for (let i = 0; i < rows; i++) {
            const [a, b] = [p * flip + i * step, q * flip + i * step];
            [s[a], s[b]] = [cos * s[a] - sin * s[b], sin * s[a] + cos * s[b]];
          }
      }
  return Array.from({ length: rows }, (_, i) => Math.sqrt(Math.max(0, s[at(i, i)])));
}

const furthest = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  expect(a.length).toBe(b.length);
  return Math.max(...Array.from(a, (x, i) => Math.abs(x - b[i])));
};

describe("orthogonal", () => {
  it("the oracle finds the singular values of a matrix that has them by construction", () => {
    // rotations of diag(3, 2)
    const [c, s] = [Math.cos(0.3), Math.sin(0.3)];
    const found = singularValues([3 * c, -3 * s, 0, 2 * s, 2 * c, 0], 2, 3).toSorted((a, b) => a - b);
    expect(found[0]).toBeCloseTo(2, 9);
    expect(found[1]).toBeCloseTo(3, 9);
  });

  it.each([
    [16, 48],
    [48, 16],
    [24, 24],
    [1, 7],
  ])("brings the singular values of a random [%i, %i] near 1 and turns no direction", async (rows, columns) => {
    for (const scale of [1, 1e-4, 1e3]) {
      const matrix = normals(rows * columns, `${rows} ${columns}`).map((x) => x * scale);
      const out = await orthogonalOf(matrix, rows, columns);
      const wide = rows <= columns;
      const [n, k] = wide ? [rows, columns] : [columns, rows];
      const a = wide ? matrix : transposed(matrix, rows, columns);
      const b = wide ? out : transposed(out, rows, columns);
      for (const value of singularValues(b, n, k)) {
        expect(value).toBeGreaterThan(0.65);
        expect(value).toBeLessThan(1.25);
      }
      // U S V^T becomes U S' V^T: then out * matrix^T = U S' S U^T, which is symmetric and has a positive trace
      const product = timesTransposed(b, a, k).map((x) => x / scale);
      expect(furthest(product, transposed(product, n, n))).toBeLessThan(2e-3);
      const trace = Array.from({ length: n }, (_, i) => product[i * n + i]).reduce((x, y) => x + y);
      expect(trace).toBeGreaterThan(0);
    }
  });

  it("of the transpose is the transpose", async () => {
    const matrix = normals(12 * 20, "law");
    const out = await orthogonalOf(matrix, 12, 20);
    const turned = await orthogonalOf(transposed(matrix, 12, 20), 20, 12);
    expect(furthest(turned, transposed(out, 12, 20))).toBeLessThan(1e-6);
  });

  it("of nothing is nothing", async () => {
    expect([...(await orthogonalOf(new Float32Array(6), 2, 3))]).toEqual([0, 0, 0, 0, 0, 0]);
  });
});

/** A parameter's values and state after steps on given gradients. */
async function moved(optimizer: Optimizer, name: string, dims: readonly number[], gradients: readonly Float32Array[]) {
  const p = parameter(name, dims);
  const g = input("g", dims);
  const slots = optimizer.slots.map((slot) => input(slot, dims));
  const scalars = { rate: input("rate", []), correction1: input("c1", []), correction2: input("c2", []) };
  const { value, state } = optimizer.update(p, g, slots, scalars);
  const inputs: Record<string, Tensor> = { p, g, rate: scalars.rate, c1: scalars.correction1, c2: scalars.correction2 };
  for (const [i, slot] of slots.entries()) inputs[`s${i}`] = slot;
  const outputs = { value, ...Object.fromEntries(state.map((s, i) => [`new s${i}`, s])) };
  const segment = await compile({ inputs, outputs }, { threads: 1 });
  const size = dims.reduce((a, b) => a * b, 1);
  let now = normals(size, name);
  let kept = slots.map(() => new Float32Array(size));
  const [b1, b2] = optimizer.betas;
  for (const [t, data] of gradients.entries()) {
    const one = (x: number) => ({ data: Float32Array.of(x), dims: [] });
    const known = {
      p: { data: now, dims },
      g: { data, dims },
      ...{ rate: one(0.01 * (t + 1)), c1: one(1 - b1 ** (t + 1)), c2: one(1 - b2 ** (t + 1)) },
      ...Object.fromEntries(kept.map((s, i) => [`s${i}`, { data: s, dims }])),
    };
    const out = await segment.run(
      Object.fromEntries(segment.inputNames.map((n) => [n, known[n as keyof typeof known]])),
    );
    now = Float32Array.from(out.value.data as Float32Array);
    kept = kept.map((_, i) => Float32Array.from(out[`new s${i}`].data as Float32Array));
  }
  await segment.release();
  return { value: now, state: kept };
}

describe("muon", () => {
  it("moves embeddings and vectors exactly as AdamW does", async () => {
    const options = { betas: [0.8, 0.9] as const, weightDecay: 0.3, decays: () => true };
    for (const [name, dims] of [
      ["embed", [6, 4]],
      ["embed_positions", [3, 4]],
      ["layers.0.attn_norm", [8]],
      ["layers.0.q.bias", [8]],
    ] as const) {
      const size = dims.reduce((a: number, b) => a * b, 1);
      const gradients = [0, 1, 2].map((t) => normals(size, `g${t}`));
      expect(await moved(muon(options), name, dims, gradients)).toEqual(
        await moved(adamW(options), name, dims, gradients),
      );
    }
  });

  it("moves a matrix by its averaged gradient made orthogonal, and decays it", async () => {
    const dims = [6, 10];
    const gradients = [0, 1, 2].map((t) => normals(60, `g${t}`));
    const { value } = await moved(muon({ momentum: 0.9, weightDecay: 0.2 }), "layers.0.up", dims, gradients);
    let [mean, p] = [new Float64Array(60), Float64Array.from(normals(60, "layers.0.up"))];
    for (const [t, g] of gradients.entries()) {
      mean = mean.map((m, i) => 0.9 * m + g[i]);
      const turned = await orthogonalOf(
        Float32Array.from(mean, (m, i) => 0.9 * m + g[i]),
        6,
        10,
      );
      p = p.map((x, i) => x - 0.01 * (t + 1) * (0.2 * Math.sqrt(10) * turned[i] + 0.2 * x));
    }
    expect(furthest(value, p)).toBeLessThan(1e-5);
  });

  it("clips as AdamW does and gives the model's embeddings and norms the same first step", async () => {
    const batch = counting({ rows: 2, length: 12 }).batch(0) as Batch;
    const stepped = async (optimizer: Optimizer) => {
      const model = small();
      const first = (name: string) => (model.trained.includes(name) ? toFloats(model.weights.get(name)) : undefined);
      const step = new TrainingStep({ ...model, optimizer, threads: 1 }, first);
      const { norm } = await step.run([batch], 0.01, 1);
      const values = new Map([...step.values].map(([name, { data }]) => [name, data.slice()]));
      await step.release();
      return { norm, values };
    };
    const [a, b] = [await stepped(adamW({ clip: 0.5 })), await stepped(muon({ clip: 0.5 }))];
    expect(b.norm).toBe(a.norm);
    for (const name of ["embed", "norm", "layers.0.attn_norm", "layers.0.mlp_norm"])
      expect(b.values.get(name)).toEqual(a.values.get(name));
    expect(b.values.get("layers.0.q")).not.toEqual(a.values.get("layers.0.q"));
  });

  it("trains, and goes on after a stop with the same losses and weights, bit for bit", async () => {
    const folder = await mkdtemp(join(tmpdir(), "fovea-muon-"));
    const options = {
      model: small(),
      data: counting({ rows: 4, length: 16 }),
      steps: 60,
      optimizer: muon({ rate: 1e-2 }),
      schedule: cosineSchedule({ steps: 60, warmup: 3 }),
      logEvery: 1,
      threads: 2,
    };
    const whole = await train({ ...options, folder: join(folder, "whole") });
    const stop = new AbortController();
    const onProgress = ({ step }: { step: number }) => step === 17 && stop.abort();
    await train({ ...options, folder: join(folder, "part"), signal: stop.signal, onProgress });
    const rest = await train({ ...options, folder: join(folder, "part") });
    const losses = async (name: string) =>
      (await readMetrics(join(folder, name, "metrics.jsonl"))).map((m) => m.loss as number);
    const all = await losses("whole");
    expect(all.length).toBe(60);
    expect(await losses("part")).toEqual(all);
    expect(all.at(-1)).toBeLessThan(all[0] - 2);
    for (const name of ["embed", "layers.0.q", "norm"])
      expect(toFloats(rest.weights.get(name))).toEqual(toFloats(whole.weights.get(name)));
    await expect(train({ ...options, folder: join(folder, "part"), optimizer: adamW() })).rejects.toThrow(
      /another run: optimizer was/,
    );
    await rm(folder, { recursive: true, force: true });
  });

  it("is a recipe's optimizer", async () => {
    const recipe = { model: { layers: 1, width: 16, spread: 0.1 }, data: { task: "copying" }, steps: 1 };
    const optimizer = { name: "muon", rate: 0.02, momentum: 0.8, betas: [0.8, 0.9], weightDecay: 0, clip: 2 };
    const read = await readRecipe({ ...recipe, optimizer });
    expect(read.optimizer).toMatchObject({ name: "muon", rate: 0.02, betas: [0.8, 0.9], clip: 2 });
    const gradients = [normals(12, "g0"), normals(12, "g1")];
    expect(await moved(read.optimizer as Optimizer, "layers.0.q", [3, 4], gradients)).toEqual(
      await moved(muon({ momentum: 0.8, weightDecay: 0 }), "layers.0.q", [3, 4], gradients),
    );
    expect(deviation(toFloats(read.model.weights.get("layers.0.up")))).toBeCloseTo(0.1, 1);
    await expect(readRecipe({ ...recipe, optimizer: { name: "muon", eps: 1 } })).rejects.toThrow(/eps/);
  });
});

function deviation(data: Float32Array): number {
  return Math.sqrt(data.reduce((sum, x) => sum + x * x, 0) / data.length);
}

describe("first weights", () => {
  it("spread as asked: matrices so, those into the residual stream less, embeddings never", () => {
    const { config } = decoder({ layers: 2, width: 64, heads: 2, vocabulary: 300 });
    for (const [spread, given] of [
      [0.02, undefined],
      [0.125, 0.125],
    ] as const) {
      const weights = freshWeights(config, 1, given);
      const of = (name: string): number => deviation(toFloats(weights.get(name)));
      for (const name of ["layers.0.q", "layers.1.up"]) expect(of(name) / spread).toBeCloseTo(1, 1);
      for (const name of ["layers.0.o", "layers.1.down"]) expect((of(name) / spread) * 2).toBeCloseTo(1, 1);
      expect(of("embed") / 0.02).toBeCloseTo(1, 1);
      expect(new Set(toFloats(weights.get("norm")))).toEqual(new Set([1]));
    }
  });
});
