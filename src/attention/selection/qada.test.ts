import { existsSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { decodedLogits, openStories, STORIES } from "../../../test/trained-stories.js";
import type { AttachedMethod, AttentionStep, RowRanges } from "../../engine/hooks.js";
import { rangesOf } from "../../engine/row-ranges.js";
import { full } from "../full.js";
import { method } from "../method.js";
import { PlainLayer, type PlainRows } from "../plain.js";
import { streamingLlm } from "../streaming/streaming-llm.js";
import { maxDifference, normals, randomRows, sliceRows } from "../testing.js";
import { addKeys, farLogMass, farModel, type KeyMoments, nearShare, noMoments } from "./key-moments.js";
import { qada } from "./qada.js";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 8 };
const TOKENS = 80;

const blocksOf = (parts: readonly object[] = []) => (parts[0] as { blocks?: RowRanges } | undefined)?.blocks;
const logSumExp = (x: number[]) => {
  const max = Math.max(...x);
  return max + Math.log(x.reduce((sum, y) => sum + Math.exp(y - max), 0));
};

async function run(methods: AttachedMethod[], rows: PlainRows, prompt: number, sizes?: number[]) {
  const layer = new PlainLayer(SHAPE, methods);
  await layer.step(sliceRows(rows, TOKENS, 0, prompt));
  const out: Float32Array[] = [];
  let at = prompt;
  for (const n of sizes ?? Array<number>(TOKENS - prompt).fill(1))
    out.push(await layer.step(sliceRows(rows, TOKENS, at, (at += n))));
  return { out, layer };
}
const worst = (a: Float32Array[], b: Float32Array[]) => Math.max(...a.map((row, i) => maxDifference(row, b[i])));

describe("the mass of far keys from their moments", () => {
  it("is 100 e^0.5 for a hundred keys of mean 0 and variance 1, and p is 0.710 beside near keys of log-mass 6", () => {
    const model = { mean: Float64Array.of(0), covariance: Float64Array.of(1) };
    const mass = farLogMass([1], model, 100, 1);
    expect(Math.exp(mass)).toBeCloseTo(164.9, 1);
    expect(nearShare(6, mass)).toBeCloseTo(0.71, 3);
    // in log space nothing overflows
    expect(nearShare(2000, 1000)).toBe(1);
    expect(nearShare(1000, 2000)).toBe(0);
  });

  it("is the truth for normal keys to 0.05, and not with another scale, without the count, or with a planted key", () => {
    const [dim, n] = [16, 12000];
    const next = normals(4);
    const keys = next(dim * n);
    for (let i = 0; i < keys.length; i++) keys[i] = keys[i] * (0.6 + (i % dim) / dim) + 0.3;
    const moments = noMoments(dim);
    addKeys(moments, keys.subarray(0, 5000 * dim));
    addKeys(moments, keys.subarray(5000 * dim));
    expect(moments.count).toBe(n);
    const model = farModel(moments);
    const scale = dim ** -0.5;
    for (let trial = 0; trial < 5; trial++) {
      const q = next(dim);
      const logits = Array.from({ length: n }, (_, i) => {
        let dot = 0;
        for (let d = 0; d < dim; d++) dot += q[d] * keys[i * dim + d];
        return dot * scale;
      });
      const truth = logSumExp(logits);
      const quadratic = 2 * farLogMass(q, { ...model, mean: model.mean.map(() => 0) }, 1, scale);
      expect(quadratic).toBeGreaterThan(0.3);
      const mass = farLogMass(q, model, n, scale);
      expect(Math.abs(mass - truth)).toBeLessThan(0.05);
      // D instead of 2 D in the quadratic term
      expect(Math.abs(mass + quadratic / 2 - truth)).toBeGreaterThan(0.1);
      expect(Math.abs(mass - Math.log(n) - truth)).toBeGreaterThan(0.1);
      // a needle lies in the tail, which two moments do not know: the truth is larger
      const needle = Array.from(q, (x) => 8 * x);
      const planted = logSumExp([...logits, needle.reduce((sum, x, d) => sum + x * q[d], 0) * scale]);
      expect(planted).toBeGreaterThan(mass + 0.5);
    }
  });
});

describe("qada", () => {
  it("is full attention for tau above 1, sinks and window for tau 0, and either without far keys", async () => {
    const rows = randomRows(TOKENS, SHAPE, 5);
    for (const sizes of [undefined, [3, 7, 1, 9]]) {
      const dense = (await run([full()], rows, 60, sizes)).out;
      const near = (
        await run([streamingLlm({ sinks: 3, window: 9, positions: "true", prompt: "dense" })], rows, 60, sizes)
      ).out;
      const all = await run([qada({ sinks: 3, window: 9, tau: 2 })], rows, 60, sizes);
      expect(worst(all.out, dense)).toBeLessThan(1e-5);
      // the moments know every key as soon as a row may leave it out
      const local = await run([qada({ sinks: 3, window: 9, tau: 0, batch: 1 })], rows, 60, sizes);
      if (!sizes) expect(worst(local.out, near)).toBeLessThan(1e-5);
      expect(worst(local.out, dense)).toBeGreaterThan(1e-2);
      const covered = await run([qada({ sinks: 3, window: TOKENS, tau: 0 })], rows, 60, sizes);
      expect(worst(covered.out, dense)).toBeLessThan(1e-5);
    }
  });

  it("decides by the definition, row by row and head by head, in steps of one and of several rows", async () => {
    const rows = randomRows(TOKENS, SHAPE, 6);
    const [sinks, window, tau] = [2, 10, 0.12];
    for (const sizes of [Array<number>(20).fill(1), [6, 14]]) {
      const watched: { position: number; local: boolean[] }[] = [];
      const attached = qada({ sinks, window, tau, batch: 1 });
      const watch: AttachedMethod = {
        ...attached,
        hooks: {
          ...attached.hooks,
          select: async (step) => {
            const parts = await attached.hooks.select?.(step);
            const blocks = blocksOf(parts);
            if (step.phase === "prompt" || !blocks) return parts ?? [];
            const logits = await step.score();
            const length = step.view.length(0);
            for (const [t, position] of step.positions.entries()) {
              const local = Array.from({ length: 4 }, (_, h) => rangesOf(blocks, t, h, 4).length > 1);
              watched.push({ position, local });
              // moments as of the step's first row; near mass from exact logits
              for (let h = 0; h < 4; h++) {
                const kv = Math.floor(h / 2);
                const row = Array.from(logits.subarray((h * step.rows + t) * length, (h * step.rows + t + 1) * length));
                const near = row.filter((_, s) => s <= position && (s < sinks || position - s < window));
                const moments = noMoments(8);
                const far = step.positions[0] - window + 1;
                addKeys(moments, step.view.keys(kv).subarray(sinks * 8, far * 8));
                const q = step.q.subarray((t * 4 + h) * 8, (t * 4 + h + 1) * 8);
                const mass = farLogMass(q, farModel(moments), position - window + 1 - sinks, step.scale);
                expect(local[h]).toBe(nearShare(logSumExp(near), mass) >= tau);
              }
            }
            return parts ?? [];
          },
        },
      };
      await run([watch], rows, 60, sizes);
      const flat = watched.flatMap(({ local }) => local);
      expect(flat.length).toBe(80);
      expect(flat.filter(Boolean).length).toBeGreaterThan(5);
      expect(flat.filter((x) => !x).length).toBeGreaterThan(5);
    }
  });

  it("counts moments without sinks and near keys, whose outliers would ruin them", async () => {
    const rows = randomRows(TOKENS, SHAPE, 7);
    for (let i = 0; i < 2 * SHAPE.kvHeads * 8; i++) rows.k[i] *= 100;
    const { layer } = await run([qada({ sinks: 2, window: 10, batch: 5 })], rows, 60);
    const [moments] = (layer.states[0] as Map<number, KeyMoments[]>).get(0) as KeyMoments[];
    // the last batch of five ended before the last row's far keys did
    expect(moments.count).toBeGreaterThan(63);
    expect(moments.count).toBeLessThanOrEqual(68);
    for (const x of farModel(moments).mean) expect(Math.abs(x)).toBeLessThan(1);
  });

  it("begins anew where another method evicts", async () => {
    const rows = randomRows(TOKENS, SHAPE, 8);
    const evict = method({
      name: "evict",
      retain: (step) => {
        const n = step.view.length(0);
        if (step.when === "after" && n > 40)
          step.keep(
            0,
            Int32Array.from({ length: 40 }, (_, i) => n - 40 + i),
          );
      },
    })();
    const { layer, out } = await run([qada({ sinks: 2, window: 10, batch: 5, tau: 0.5 }), evict], rows, 60);
    const moments = (layer.states[0] as Map<number, KeyMoments[]>).get(0) as KeyMoments[];
    expect(moments[0].count).toBeLessThanOrEqual(31);
    expect(moments[1].count).toBeGreaterThan(60);
    for (const row of out) expect(row.every(Number.isFinite)).toBe(true);
  });
});

describe.skipIf(!existsSync(STORIES))("qada on a trained model", () => {
  it("foretells where near keys hold more of the mass, for queries of which two moments can tell", async () => {
    const { engine, ids, close } = await openStories();
    const [sinks, window] = [4, 64];
    const shares: { truth: number; foretold: number; spread: number }[] = [];
    const watch: AttachedMethod = {
      name: "watch",
      spec: "watch",
      hooks: {
        select: async (step: AttentionStep) => {
          if (step.phase !== "decode") return [{}];
          const { heads, kvHeads, headDim } = step.model;
          const logits = await step.score();
          const n = logits.length / heads;
          for (let h = 0; h < heads; h++) {
            const row = [...logits.subarray(h * n, (h + 1) * n)];
            const near = logSumExp(row.filter((_, s) => s < sinks || s >= n - window));
            const moments = noMoments(headDim);
            const keys = step.view.keys(Math.floor((h * kvHeads) / heads));
            addKeys(moments, keys.subarray(sinks * headDim, (n - window) * headDim));
            const q = step.q.subarray(h * headDim, (h + 1) * headDim);
            const model = farModel(moments);
            const mass = farLogMass(q, model, n - window - sinks, step.scale);
            const truth = Math.exp(near - logSumExp(row));
            const spread = 2 * farLogMass(q, { ...model, mean: model.mean.map(() => 0) }, 1, step.scale); // q'Cq / D
            shares.push({ truth, foretold: nearShare(near, mass), spread });
          }
          return [{}];
        },
      },
    };
    await decodedLogits(engine, [watch], ids, ids.length - 60);
    await close();
    const of = (list: typeof shares) =>
      correlation(
        list.map(({ truth }) => truth),
        list.map(({ foretold }) => foretold),
      );
    const moderate = shares.filter(({ spread }) => spread < 4);
    expect(moderate.length).toBeGreaterThan(20);
    expect(of(moderate)).toBeGreaterThan(0.9);
    // most queries of this model are longer, and of those the moments foretell nothing
    expect(of(shares)).toBeLessThan(0.3);
  });
});

function correlation(a: readonly number[], b: readonly number[]): number {
  const mean = (x: readonly number[]) => x.reduce((sum, y) => sum + y, 0) / x.length;
  const [ma, mb] = [mean(a), mean(b)];
  const sum = (x: readonly number[], mx: number, y: readonly number[], my: number) =>
    x.reduce((total, v, i) => total + (v - mx) * (y[i] - my), 0);
  return sum(a, ma, b, mb) / Math.sqrt(sum(a, ma, a, ma) * sum(b, mb, b, mb));
}
