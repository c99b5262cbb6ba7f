import { existsSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { decodedLogits, meanDivergence, openStories, STORIES } from "../../../test/trained-stories.js";
import type { AttachedMethod, AttentionStep, Part } from "../../engine/hooks.js";
import { rotate } from "../../engine/rotary.js";
import { largest } from "../budget.js";
import { full } from "../full.js";
import { PlainLayer, type PlainRows } from "../plain.js";
import { maxDifference, randomRows, sliceRows } from "../testing.js";
import { keptMass, sparq, sparqParts, sparseQueries } from "./sparq.js";
import { type ValueMeans, withMean } from "./value-means.js";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 8 };
const { heads, kvHeads, headDim } = SHAPE;
const TOKENS = 60;

/** The paper's steps for the last row of `rows` as loops over unrotated projections: [Hq, D], and each head's J. */
function plainSparq(rows: PlainRows, r: number, k: number, l: number) {
  const row = (x: Float32Array, count: number, t: number, h: number, turn: boolean) => {
    const own = x.slice((t * count + h) * headDim, (t * count + h + 1) * headDim);
    if (turn) rotate(own, 1, headDim, [t], PLAN);
    return own;
  };
  const n = rows.k.length / (kvHeads * headDim);
  const out = new Float32Array(heads * headDim);
  const chosen: number[][] = [];
  const alphas: number[] = [];
  for (let kv = 0; kv < kvHeads; kv++) {
    const group = heads / kvHeads;
    const q = Array.from({ length: group }, (_, g) => row(rows.q, heads, n - 1, kv * group + g, true));
    const K = Array.from({ length: n }, (_, t) => row(rows.k, kvHeads, t, kv, true));
    const V = Array.from({ length: n }, (_, t) => row(rows.v, kvHeads, t, kv, false));
    const a = Array.from({ length: headDim }, (_, d) => q.reduce((sum, x) => sum + Math.abs(x[d]), 0));
    const I = [...a.keys()].sort((x, y) => a[y] - a[x]).slice(0, r);
    const u = q.map((x) => {
      const l1 = x.reduce((sum, y) => sum + Math.abs(y), 0);
      const covered = I.reduce((sum, d) => sum + Math.abs(x[d]), 0);
      return K.map((y) => I.reduce((sum, d) => sum + x[d] * y[d], 0) / Math.sqrt(headDim * (covered / l1)));
    });
    const z = K.map((_, t) => (t >= n - 1 - l ? Number.MAX_VALUE : u.reduce((sum, x) => sum + x[t], 0)));
    const J = [...z.keys()].sort((x, y) => z[y] - z[x]).slice(0, k + 1);
    chosen.push([...J].sort((x, y) => x - y));
    for (let g = 0; g < group; g++) {
      const approximate = softmax(u[g]);
      const alpha = J.reduce((sum, t) => sum + approximate[t], 0);
      alphas.push(alpha);
      const weights = softmax(J.map((t) => q[g].reduce((sum, x, d) => sum + x * K[t][d], 0) / Math.sqrt(headDim)));
      for (let d = 0; d < headDim; d++) {
        const y = J.reduce((sum, t, i) => sum + weights[i] * V[t][d], 0);
        const mean = V.reduce((sum, v) => sum + v[d], 0) / n;
        out[(kv * group + g) * headDim + d] = alpha * y + (1 - alpha) * mean;
      }
    }
  }
  return { out, chosen, alphas };
}
const PLAN = {
  inverse: Float32Array.from({ length: headDim / 2 }, (_, i) => 10000 ** ((-2 * i) / headDim)),
  multiplier: 1,
  dims: headDim,
};
function softmax(x: number[]): number[] {
  const max = Math.max(...x);
  const weights = x.map((y) => Math.exp(y - max));
  const total = weights.reduce((a, b) => a + b, 0);
  return weights.map((w) => w / total);
}

/** A prompt and decoded rows; the outputs of the decoded ones, one after the other. */
async function decoded(attached: AttachedMethod, rows: PlainRows, prompt: number, shape = SHAPE) {
  const layer = new PlainLayer(shape, [attached]);
  await layer.step(sliceRows(rows, TOKENS, 0, prompt));
  const out: Float32Array[] = [];
  for (let t = prompt; t < TOKENS; t++) out.push(await layer.step(sliceRows(rows, TOKENS, t, t + 1)));
  return { out, layer };
}

describe("sparq", () => {
  it("is the sheet's example: q = (3, 0, -1, 0), one component", () => {
    const query = sparseQueries(Float32Array.of(3, 0, -1, 0), 1, 1, 1);
    const keys = [
      [1, 0, 0, 0],
      [0, 0, -2, 0],
      [0.5, 0, 0, 0],
    ];
    const u = Float32Array.from(keys, (k) => k.reduce((sum, x, d) => sum + x * query[d], 0) / 2);
    expect(maxDifference(u, [1.732, 0, 0.866])).toBeLessThan(1e-3);
    const chosen = largest(u, 1);
    expect([...chosen]).toEqual([0]);
    const alpha = keptMass(u, chosen);
    expect(alpha).toBeCloseTo(0.626, 3);
    const values = [7, -2, 4];
    const means: ValueMeans = { count: Int32Array.of(3), mean: Float32Array.of(3) };
    const out = withMean(
      { output: Float32Array.of(values[0]), lse: Float32Array.of(0) },
      Float32Array.of(alpha),
      means,
      1,
    );
    expect(out.output[0]).toBeCloseTo(0.626 * 7 + 0.374 * 3, 2);
    // y's own softmax sums to 1: the mass comes from the row that ranks
    expect(out.lse[0]).toBeCloseTo(-Math.log(alpha), 6);
  });

  it("chooses one set of components for a group, by the sum of |q|", () => {
    const q = Float32Array.of(3, 1, 0, 0, /* second head */ 0, 4, 1, 0);
    expect(sparseQueries(q, 2, 1, 1, () => 1)).toEqual(Float32Array.of(0, 1, 0, 0, 0, 4, 0, 0));
    expect(sparseQueries(q, 2, 2, 1, () => 1)).toEqual(Float32Array.of(3, 0, 0, 0, 0, 4, 0, 0));
  });

  it.each([
    [3, 9, 2],
    [8, 12, 0],
    [1, 5, 5],
  ])("equals the paper's steps as loops (r %i, k %i, l %i)", async (r, k, l) => {
    const rows = randomRows(TOKENS, SHAPE, 5);
    const attached = sparq({ components: r, tokens: k, local: l });
    const { out } = await decoded(attached, rows, 40);
    for (const [i, got] of out.entries())
      expect(maxDifference(got, plainSparq(sliceRows(rows, TOKENS, 0, 41 + i), r, k, l).out)).toBeLessThan(2e-6);
  });

  it("finds the true best keys and their true mass with all components, one query head a KV head", async () => {
    const shape = { heads: 2, kvHeads: 2, headDim };
    const rows = randomRows(TOKENS, shape, 6);
    let checked = 0;
    const watch: AttachedMethod = {
      name: "watch",
      spec: "watch",
      hooks: {
        select: async (step: AttentionStep) => {
          if (step.phase !== "decode") return [{}];
          const logits = await step.score();
          const parts = await sparqParts(
            { ...step, score: step.score, attend: step.attend, state: new Map() },
            { tokens: 7, components: headDim, local: 0, reallocate: false },
          );
          const [{ entries }] = parts as readonly Part[];
          for (const [kv, list] of (entries as readonly { tokens: Int32Array }[]).entries()) {
            const row = logits.subarray(kv * step.view.length(kv), (kv + 1) * step.view.length(kv));
            const best = largest(row.subarray(0, -1), 7);
            expect([...list.tokens]).toEqual([...best, row.length - 1]);
            const weights = softmax([...row]);
            const mass = [...list.tokens].reduce((sum, t) => sum + weights[t], 0);
            expect(keptMass(row, list.tokens)).toBeCloseTo(mass, 5);
            checked++;
          }
          return [{}];
        },
      },
    };
    await decoded(watch, rows, 50, shape);
    expect(checked).toBe(20);
  });

  it("keeps the mean of all values over prompt and steps, and of those left where something evicts", async () => {
    const rows = randomRows(TOKENS, SHAPE, 7);
    const { layer } = await decoded(sparq({ tokens: 8 }), rows, 30);
    const means = (layer.states[0] as Map<number, ValueMeans>).get(0) as ValueMeans;
    expect([...means.count]).toEqual([TOKENS, TOKENS]);
    const wanted = new Float64Array(kvHeads * headDim);
    for (const [i, x] of rows.v.entries()) wanted[i % wanted.length] += x / TOKENS;
    expect(maxDifference(means.mean, wanted)).toBeLessThan(1e-6);

    const evict: AttachedMethod = {
      name: "evict",
      spec: "evict",
      hooks: {
        retain: (step) => {
          const n = step.view.length(1);
          if (step.when === "after" && n > 20)
            step.keep(
              1,
              Int32Array.from({ length: 20 }, (_, i) => n - 20 + i),
            );
        },
      },
    };
    const both = new PlainLayer(SHAPE, [sparq({ tokens: 8 }), evict]);
    await both.step(sliceRows(rows, TOKENS, 0, 40));
    for (let t = 40; t < 45; t++) {
      await both.step(sliceRows(rows, TOKENS, t, t + 1));
      const left = (both.states[0] as Map<number, ValueMeans>).get(0) as ValueMeans;
      expect([...left.count]).toEqual([t + 1, 21]);
      const expected = new Float64Array(headDim);
      for (let s = t - 20; s <= t; s++)
        for (let d = 0; d < headDim; d++) expected[d] += rows.v[(s * kvHeads + 1) * headDim + d] / 21;
      expect(maxDifference(left.mean.subarray(headDim), expected)).toBeLessThan(1e-6);
    }
  });

  it("is full attention while k covers the text", async () => {
    const rows = randomRows(TOKENS, SHAPE, 8);
    const wanted = (await decoded(full(), rows, 40)).out;
    for (const attached of [sparq({ tokens: TOKENS, components: 1 }), sparq({ share: 1, components: 2 })]) {
      const { out } = await decoded(attached, rows, 40);
      for (const [i, row] of out.entries()) expect(maxDifference(row, wanted[i])).toBeLessThan(1e-5);
    }
    // with every component, alpha is 1 already where one key is missing that has no weight
    const near = (await decoded(sparq({ tokens: TOKENS - 2, components: headDim }), rows, TOKENS - 1)).out[0];
    expect(maxDifference(near, wanted[wanted.length - 1])).toBeLessThan(0.05);
  });
});

describe.skipIf(!existsSync(STORIES))("sparq on a trained model", () => {
  let stories: Awaited<ReturnType<typeof openStories>>;
  beforeAll(async () => {
    stories = await openStories();
  });
  afterAll(() => stories?.close());

  it("is nearer to full attention with the mean value, and with the coverage temperature", async () => {
    const { engine, ids } = stories;
    const wanted = await decodedLogits(engine, [], ids, 200);
    const divergence = async (attached: AttachedMethod) =>
      meanDivergence(wanted, await decodedLogits(engine, [attached], ids, 200));
    const scaled = (parameters: Parameters<typeof sparq>[0], scale: (coverage: number) => number): AttachedMethod => {
      const attached = sparq(parameters);
      const params = { tokens: 0, components: 0, local: 1 / 4, reallocate: true, ...parameters };
      const select = (step: AttentionStep) => sparqParts(step as AttentionStep<Map<number, ValueMeans>>, params, scale);
      return { ...attached, hooks: { ...attached.hooks, select } };
    };
    for (const [tokens, components] of [
      [40, 4],
      [12, 3],
    ]) {
      const own = await divergence(sparq({ tokens, components }));
      expect(own).toBeLessThan(0.9 * (await divergence(sparq({ tokens, components, reallocate: false }))));
      // logits divided by sqrt(r), as if the components were all there is
      expect(own).toBeLessThan(await divergence(scaled({ tokens, components }, () => Math.sqrt(8 / components))));
    }
    // and by sqrt(D): at heads of width 8 with fewer components than this, the flatter row happens to win
    const own = await divergence(sparq({ tokens: 40, components: 4 }));
    expect(own).toBeLessThan(await divergence(scaled({ tokens: 40, components: 4 }, () => 1)));
  });
});
