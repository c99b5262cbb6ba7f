import { describe, expect, it } from "vitest";
import type { RotaryPlan } from "../../engine/hooks.js";
import { rotate } from "../../engine/rotary.js";
import { full } from "../full.js";
import { PlainLayer, type PlainRows } from "../plain.js";
import { maxDifference, normals, randomRows, sliceRows } from "../testing.js";
import { expectedAttention } from "./expected-attention.js";
import { averageRotation, expectedLogits, futureQueries, type QueryMoments } from "./future-queries.js";
import { snapkv } from "./snapkv.js";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 8 };
const { heads, kvHeads, headDim } = SHAPE;
const TOKENS = 70;
const PLAN: RotaryPlan = {
  inverse: Float32Array.from({ length: headDim / 2 }, (_, i) => 10000 ** ((-2 * i) / headDim)),
  multiplier: 1,
  dims: headDim,
};

/** Upper triangles of one head's queries [n, D], as the method sums them. */
function momentsOf(q: Float32Array, dim: number): QueryMoments {
  const moments = { count: q.length / dim, sum: new Float64Array(dim), outer: new Float64Array(dim * dim) };
  for (let t = 0; t < moments.count; t++)
    for (let i = 0; i < dim; i++) {
      moments.sum[i] += q[t * dim + i];
      for (let j = i; j < dim; j++) moments.outer[i * dim + j] += q[t * dim + i] * q[t * dim + j];
    }
  return moments;
}

/** Matrix of the mean rotation: its columns are unit vectors turned to each position, averaged. */
function rotationMatrix(first: number, count: number): number[][] {
  const columns = Array.from({ length: headDim }, (_, d) => {
    const sum = new Array<number>(headDim).fill(0);
    for (let p = first; p < first + count; p++) {
      const unit = new Float32Array(headDim);
      unit[d] = 1;
      rotate(unit, 1, headDim, [p], PLAN);
      for (let i = 0; i < headDim; i++) sum[i] += unit[i] / count;
    }
    return sum;
  });
  return columns.map((_, i) => columns.map((c) => c[i]));
}
const times = (a: number[][], b: number[][]) =>
  a.map((row) => b[0].map((_, j) => row.reduce((sum, x, k) => sum + x * b[k][j], 0)));
const transposed = (a: number[][]) => a[0].map((_, j) => a.map((row) => row[j]));

describe("expected-attention", () => {
  it("rotates mean and covariance by the average of rotations, as matrices do", () => {
    const q = normals(2)(40 * headDim).map((x, i) => x * (1 + (i % headDim)) + (i % 3));
    const moments = momentsOf(q, headDim);
    const mean = Array.from({ length: headDim }, (_, d) => moments.sum[d] / 40);
    const covariance = mean.map((a, i) =>
      mean.map((b, j) => {
        let sum = 0;
        for (let t = 0; t < 40; t++) sum += (q[t * headDim + i] - a) * (q[t * headDim + j] - b);
        return sum / 40;
      }),
    );
    const R = rotationMatrix(90, 20);
    const got = futureQueries(moments, 0, averageRotation(PLAN, 90, 20), true);
    expect(maxDifference(got.mean, times(R, transposed([mean])).flat())).toBeLessThan(1e-4);
    expect(maxDifference(got.covariance ?? [], times(times(R, covariance), transposed(R)).flat())).toBeLessThan(1e-3);
    // without a plan nothing turns; far ahead the fast channels average out
    expect([...futureQueries(moments, 0, averageRotation(null, 90, 20), false).mean]).toEqual(mean);
    expect(Math.abs(averageRotation(PLAN, 1000, 2000).cos[0])).toBeLessThan(0.01);
    expect(averageRotation(PLAN, 0, 3).cos[3]).toBeGreaterThan(0.99);
  });

  it("is the logarithm of the mean of exp(q.k) over normal queries", () => {
    const next = normals(4);
    const [dim, n] = [4, 200000];
    const q = next(n * dim);
    for (let t = 0; t < n; t++) {
      q[t * dim] = 0.8 * q[t * dim] + 0.4;
      q[t * dim + 1] = 0.5 * q[t * dim + 1] - 0.6 * q[t * dim];
    }
    const keys = next(5 * dim);
    const future = futureQueries(momentsOf(q, dim), 0, averageRotation(null, 0, 1), true);
    const logits = expectedLogits(keys, future, dim ** -0.5);
    const flat = expectedLogits(keys, { ...future, covariance: null }, dim ** -0.5);
    for (let k = 0; k < 5; k++) {
      let sum = 0;
      for (let t = 0; t < n; t++) {
        let dot = 0;
        for (let d = 0; d < dim; d++) dot += q[t * dim + d] * keys[k * dim + d];
        sum += Math.exp(dot * dim ** -0.5) / n;
      }
      expect(logits[k]).toBeCloseTo(Math.log(sum), 1);
      expect(Math.abs(logits[k] - Math.log(sum))).toBeLessThan(0.02);
      expect(flat[k]).toBeLessThan(logits[k]);
    }
  });

  it("keeps what the official steps keep, written as loops and matrices, from a prompt whole or in pieces", async () => {
    const rows = randomRows(TOKENS, SHAPE, 5);
    const [sinks, capacity, future, prompt] = [3, 20, 30, 60];
    for (const pieces of [[60], [25, 20, 15]]) {
      const layer = new PlainLayer(SHAPE, [expectedAttention({ sinks, capacity, future })]);
      let at = 0;
      for (const n of pieces) {
        await layer.step(sliceRows(rows, TOKENS, at, at + n), { firstRow: at, totalRows: prompt });
        at += n;
      }
      const R = rotationMatrix(prompt, future);
      for (let kv = 0; kv < kvHeads; kv++) {
        const scores = new Float64Array(prompt - sinks);
        for (const h of [2 * kv, 2 * kv + 1]) {
          const own = Float32Array.from({ length: (prompt - sinks) * headDim }, (_, i) => {
            const t = sinks + Math.floor(i / headDim);
            return rows.q[(t * heads + h) * headDim + (i % headDim)];
          });
          const moments = momentsOf(own, headDim);
          const m = Array.from(moments.sum, (x) => x / moments.count);
          const C = m.map((a, i) =>
            m.map((b, j) => moments.outer[Math.min(i, j) * headDim + Math.max(i, j)] / moments.count - a * b),
          );
          const mean = times(R, transposed([m])).flat();
          const covariance = times(times(R, C), transposed(R));
          const logits = Array.from(scores, (_, n) => {
            const k = rows.k.slice(((sinks + n) * kvHeads + kv) * headDim, ((sinks + n) * kvHeads + kv + 1) * headDim);
            rotate(k, 1, headDim, [sinks + n], PLAN);
            const linear = mean.reduce((sum, x, i) => sum + x * k[i], 0);
            const quadratic = covariance.flatMap((row, i) => row.map((x, j) => x * k[i] * k[j]));
            return linear / Math.sqrt(headDim) + quadratic.reduce((a, b) => a + b, 0) / headDim / 2;
          });
          const total = logits.reduce((sum, x) => sum + Math.exp(x), 0);
          for (const [n, x] of logits.entries()) {
            const v = rows.v.subarray(
              ((sinks + n) * kvHeads + kv) * headDim,
              ((sinks + n) * kvHeads + kv + 1) * headDim,
            );
            scores[n] += (Math.exp(x) / total) * Math.hypot(...v);
          }
        }
        const best = [...scores.keys()].sort((a, b) => scores[b] - scores[a]).slice(0, capacity - sinks);
        const wanted = [0, 1, 2, ...best.map((n) => n + sinks).sort((a, b) => a - b)];
        expect([...layer.positions(kv)]).toEqual(wanted);
      }
      // the sums are not kept, and nothing leaves later
      expect((layer.states[0] as Map<number, QueryMoments>).size).toBe(0);
      for (let t = prompt; t < TOKENS; t++) await layer.step(sliceRows(rows, TOKENS, t, t + 1));
      expect(layer.positions(0).length).toBe(capacity + TOKENS - prompt);
    }
  });

  it("keeps what queries look at throughout, wherever they stand, where snapkv goes by the last ones", async () => {
    const rows: PlainRows = randomRows(TOKENS, SHAPE, 6);
    for (let i = 0; i < rows.q.length; i++) rows.q[i] *= 0.3;
    // queries before the window look along the first channel, at the keys of tokens 20 to 24; the last ones do not
    for (let t = 0; t < TOKENS; t++)
      for (let h = 0; h < heads; h++) rows.q[(t * heads + h) * headDim] = t < 54 ? 3 : -3;
    for (let t = 20; t < 25; t++) for (let kv = 0; kv < kvHeads; kv++) rows.k[(t * kvHeads + kv) * headDim] = 8;
    const survivors = async (attached: ReturnType<typeof snapkv>) => {
      const layer = new PlainLayer(SHAPE, [attached], { rotaryBase: null });
      await layer.step(sliceRows(rows, TOKENS, 0, 60));
      return [20, 21, 22, 23, 24].filter((p) => layer.positions(0).includes(p)).length;
    };
    expect(await survivors(expectedAttention({ capacity: 14 }))).toBe(5);
    expect(await survivors(snapkv({ capacity: 14, window: 6, kernel: 1 }))).toBe(0);
  });

  it("is full attention with room for everything", async () => {
    const rows = randomRows(TOKENS, SHAPE, 7);
    const [a, b] = [full(), expectedAttention({ capacity: TOKENS })].map((m) => new PlainLayer(SHAPE, [m]));
    for (const [from, to] of [
      [0, 50],
      [50, 51],
      [51, TOKENS],
    ]) {
      const part = sliceRows(rows, TOKENS, from, to);
      expect(maxDifference(await b.step(part), await a.step(part))).toBeLessThan(1e-6);
    }
  });
});
