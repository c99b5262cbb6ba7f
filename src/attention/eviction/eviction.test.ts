import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { budgetTokens, largest } from "../budget.js";
import { full } from "../full.js";
import { method } from "../method.js";
import { PlainLayer, type PlainRows } from "../plain.js";
import { maxDifference, normals, randomRows, sliceRows } from "../testing.js";
import { h2o } from "./h2o.js";
import { keptByScore } from "./heavy-hitters.js";
import { pool, snapEntries, snapkv, windowScores } from "./snapkv.js";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 8 };
const { heads, kvHeads, headDim } = SHAPE;

/** Attaches beside a method and copies every row of weights: [row][head][key position]. */
function recorder() {
  const rows: Float64Array[][] = [];
  const attached = method({
    name: "recorder",
    observe: (step) => {
      for (let t = 0; t < step.rows; t++) {
        const perHead = Array.from({ length: step.weights.heads }, (_, h) => {
          const row = new Float64Array(step.positions[t] + 1);
          const positions = step.keyPositions(Math.floor(h / (step.weights.heads / step.model.kvHeads)));
          const at = (h * step.rows + t) * step.weights.keys;
          for (const [i, p] of positions.entries()) if (p < row.length) row[p] = step.weights.data[at + i];
          return row;
        });
        rows[step.positions[t]] = perHead;
      }
    },
  })();
  return { rows, attached };
}

async function run(layer: PlainLayer, rows: PlainRows, tokens: number, sizes: number[]): Promise<Float32Array> {
  const out = new Float32Array(tokens * heads * headDim);
  let at = 0;
  for (const n of sizes) {
    out.set(await layer.step(sliceRows(rows, tokens, at, at + n)), at * heads * headDim);
    at += n;
  }
  return out;
}
const ones = (n: number) => Array<number>(n).fill(1);

describe("budgets and the largest", () => {
  it("counts tokens or shares", () => {
    expect(budgetTokens(512, 100)).toBe(512);
    expect(budgetTokens(1 / 8, 100)).toBe(12);
    expect(budgetTokens(0.1, 5)).toBe(1);
    expect(budgetTokens(0, 5)).toBe(0);
  });

  it("picks the largest, lower index first among equals, ascending", () => {
    expect([...largest(Float32Array.of(1, 3, 2, 3, 3), 2)]).toEqual([1, 3]);
    expect([...largest(Float32Array.of(1, 3, 2), 5)]).toEqual([0, 1, 2]);
    expect([...largest(Float32Array.of(9, 1, 2, 0), 1, 1, 4)]).toEqual([2]);
    fc.assert(
      fc.property(fc.array(fc.integer({ min: -4, max: 4 }), { maxLength: 40 }), fc.nat(45), (values, count) => {
        const wanted = values
          .map((v, i) => ({ v, i }))
          .sort((a, b) => b.v - a.v || a.i - b.i)
          .slice(0, count)
          .map(({ i }) => i)
          .sort((a, b) => a - b);
        expect([...largest(Float32Array.from(values), count)]).toEqual(wanted);
      }),
    );
  });
});

describe("h2o", () => {
  it("keeps {1, 2} of three tokens with scores 0.2, 1.1, 0.4 at heavy 1, recent 1", () => {
    expect([...keptByScore(Float32Array.of(0.2, 1.1, 0.4), 1, 1)]).toEqual([1, 2]);
    expect([...keptByScore(Float32Array.of(0.2, 1.1, 0.4), 0, 1)]).toEqual([2]);
    expect([...keptByScore(Float32Array.of(0.2, 1.1, 0.4), 2, 0)]).toEqual([1, 2]);
    expect([...keptByScore(Float32Array.of(0.2, 1.1), 5, 5)]).toEqual([0, 1]);
  });

  it("evicts as a plain loop over summed weights does, in prompt, extension and decoding", async () => {
    const tokens = 60;
    const rows = randomRows(tokens, SHAPE, 11);
    const { rows: weights, attached } = recorder();
    const layer = new PlainLayer(SHAPE, [h2o({ heavy: 5, recent: 4 }), attached], { blockRows: 7 });
    let at = 0;
    const scores = Array.from({ length: kvHeads }, () => new Map<number, number>());
    for (const n of [20, ...ones(15), 9, ...ones(16)]) {
      await layer.step(sliceRows(rows, tokens, at, at + n));
      for (let t = at; t < at + n; t++)
        for (let kv = 0; kv < kvHeads; kv++) {
          const own = scores[kv];
          if (!own.has(t)) own.set(t, 0);
          for (const p of [...own.keys()])
            for (let g = 0; g < heads / kvHeads; g++) own.set(p, (own.get(p) ?? 0) + (weights[t][kv * 2 + g][p] ?? 0));
        }
      at += n;
      for (let kv = 0; kv < kvHeads; kv++) {
        const own = [...scores[kv]].sort((a, b) => a[0] - b[0]);
        if (own.length > 9) {
          const heavy = own
            .slice(0, -4)
            .sort((a, b) => b[1] - a[1])
            .slice(0, 5);
          scores[kv] = new Map([...heavy, ...own.slice(-4)].sort((a, b) => a[0] - b[0]));
        }
        expect([...layer.positions(kv)]).toEqual([...scores[kv].keys()]);
      }
    }
  });

  it("never reads an evicted token again, even one that later queries point at", async () => {
    const tokens = 40;
    const rows = randomRows(tokens, SHAPE, 12);
    // token 3's key points away from every early query, then queries turn to it
    for (let h = 0; h < kvHeads; h++)
      for (let d = 0; d < headDim; d++) rows.k[(3 * kvHeads + h) * headDim + d] = d === 7 ? 30 : 0;
    for (let t = 0; t < tokens; t++)
      for (let h = 0; h < heads; h++) rows.q[(t * heads + h) * headDim + 7] = t < 20 ? -5 : 5;
    const { rows: weights, attached } = recorder();
    const layer = new PlainLayer(SHAPE, [h2o({ heavy: 4, recent: 4 }), attached]);
    const gone = Array.from({ length: kvHeads }, () => new Set<number>());
    await run(layer, rows, tokens, [12]);
    for (let t = 12; t < tokens; t++) {
      for (let kv = 0; kv < kvHeads; kv++)
        for (let p = 0; p < t; p++) if (!layer.positions(kv).includes(p)) gone[kv].add(p);
      await layer.step(sliceRows(rows, tokens, t, t + 1));
      for (let h = 0; h < heads; h++) for (const p of gone[Math.floor(h / 2)]) expect(weights[t][h][p]).toBe(0);
    }
    expect(gone[0].has(3) && gone[1].has(3)).toBe(true);
    const dense = recorder();
    await run(new PlainLayer(SHAPE, [dense.attached]), rows, tokens, [tokens]);
    expect(dense.rows[39][0][3]).toBeGreaterThan(0.9);
  });

  it("simulates by a mask as the definition over whole matrices does", async () => {
    const tokens = 30;
    const shape = { heads: 2, kvHeads: 2, headDim: 8 };
    const rows = randomRows(tokens, shape, 13);
    const dense = recorder();
    await new PlainLayer(shape, [dense.attached]).step(rows);
    const [h, w] = [4, 3];
    for (const blockRows of [100, 8]) {
      const masked = recorder();
      await new PlainLayer(shape, [h2o({ heavy: h, recent: w, variant: "mask" }), masked.attached], { blockRows }).step(
        rows,
      );
      for (let head = 0; head < 2; head++) {
        const p = dense.rows.map((r) => r[head]);
        let scores = new Float64Array(tokens);
        for (let t = 0; t < h; t++) for (const [j, x] of p[t].entries()) scores[j] += x;
        for (let t = 0; t < tokens; t++) {
          let heavy = new Set(Array.from({ length: t + 1 }, (_, j) => j));
          if (t >= h) {
            const order = [...scores.keys()].sort((a, b) => scores[b] - scores[a] || a - b);
            heavy = new Set([...order.slice(0, h - 1), t]);
            for (const [j, x] of p[t].entries()) scores[j] += x;
            scores = scores.map((x, j) => (heavy.has(j) ? x : 0));
          }
          const visible = p[t].map((x, j) => (heavy.has(j) || t - j <= w ? x : 0));
          const total = visible.reduce((a, b) => a + b, 0);
          expect(
            maxDifference(
              masked.rows[t][head],
              visible.map((x) => x / total),
            ),
          ).toBeLessThan(1e-5);
        }
      }
    }
  });

  it("gives a decoded row what the prompt's row got, in the simulation", async () => {
    const tokens = 25;
    const rows = randomRows(tokens, SHAPE, 14);
    const attached = h2o({ heavy: 3, recent: 2, variant: "mask" });
    const whole = await new PlainLayer(SHAPE, [attached]).step(rows);
    const stepped = await run(new PlainLayer(SHAPE, [attached]), rows, tokens, [10, ...ones(10), 5]);
    expect(maxDifference(whole, stepped)).toBeLessThan(1e-6);
  });
});

describe("snapkv", () => {
  it("pools with zero padding counted", () => {
    const close = (x: Float32Array, wanted: number[]) => expect(maxDifference(x, wanted)).toBeLessThan(1e-7);
    close(pool(Float32Array.of(0, 0, 1, 0, 0), 5, "avg"), [0.2, 0.2, 0.2, 0.2, 0.2]);
    close(pool(Float32Array.of(1, 0, 0, 0, 0), 5, "avg"), [0.2, 0.2, 0.2, 0, 0]);
    close(pool(Float32Array.of(1, 0, 0, 0, 3), 3, "max"), [1, 1, 0, 3, 3]);
    close(pool(Float32Array.of(1, 2), 5, "avg"), [0.6, 0.6]);
    close(pool(Float32Array.of(1, 2), 1, "avg"), [1, 2]);
  });

  it("keeps the best and the window", () => {
    expect([...snapEntries(Float32Array.of(0.1, 0.9, 0.2, 0.8), 6, 2, 4)]).toEqual([1, 3, 4, 5]);
    expect([...snapEntries(Float32Array.of(0.1, 0.9, 0.2, 0.8), 6, 2, 1)]).toEqual([5]);
  });

  it("keeps per head what a plain count over the window's rows gives, once", async () => {
    const tokens = 50;
    const rows = randomRows(tokens, SHAPE, 15);
    const dense = recorder();
    await new PlainLayer(SHAPE, [dense.attached]).step(sliceRows(rows, tokens, 0, 40));
    const layer = new PlainLayer(SHAPE, [snapkv({ capacity: 12, window: 6, kernel: 3 })]);
    await layer.step(sliceRows(rows, tokens, 0, 40));
    const kept: number[][] = [];
    for (let kv = 0; kv < kvHeads; kv++) {
      const pooled = Array.from({ length: 34 }, (_, j) => {
        let sum = 0;
        for (const head of [2 * kv, 2 * kv + 1])
          for (let at = Math.max(0, j - 1); at <= Math.min(33, j + 1); at++)
            for (let t = 34; t < 40; t++) sum += dense.rows[t][head][at] / 3 / 2;
        return sum;
      });
      const order = [...pooled.keys()].sort((a, b) => pooled[b] - pooled[a]).slice(0, 6);
      kept[kv] = [...order, 34, 35, 36, 37, 38, 39].sort((a, b) => a - b);
      expect([...layer.positions(kv)]).toEqual(kept[kv]);
    }
    for (let t = 40; t < 50; t++) await layer.step(sliceRows(rows, tokens, t, t + 1));
    expect([...layer.positions(0)]).toEqual([...kept[0], ...Array.from({ length: 10 }, (_, i) => 40 + i)]);
  });

  it("sums over the window only, where h2o sums over all queries and so ranks early tokens higher", async () => {
    // every row spreads its weight evenly over what it sees
    const tokens = 12;
    const weights = new Float32Array(tokens * tokens);
    for (let t = 0; t < tokens; t++) weights.fill(1 / (t + 1), t * tokens, t * tokens + t + 1);
    const window = windowScores(weights.slice((tokens - 2) * tokens), 0, 2, tokens);
    expect(new Set(window).size).toBe(1);
    const sums = Array.from({ length: tokens }, (_, s) =>
      weights.reduce((sum, x, i) => sum + (i % tokens === s ? x : 0), 0),
    );
    for (let s = 1; s < tokens; s++) expect(sums[s]).toBeLessThan(sums[s - 1]);
    expect([...keptByScore(Float32Array.from(sums), 3, 2)]).toEqual([0, 1, 2, 10, 11]);
  });

  it("keeps the fact that the end of the prompt asks for, and not when the question stands at the start", async () => {
    const survives = async (questionAt: "start" | "end") => {
      const tokens = 200;
      const next = normals(21);
      const rows: PlainRows = {
        q: next(tokens * heads * headDim).map((x) => x * 0.3),
        k: next(tokens * kvHeads * headDim),
        v: next(tokens * kvHeads * headDim),
      };
      // no rotation: the question's queries and the fact's keys share a direction, which nothing else looks along
      for (let i = 0; i < rows.q.length; i += headDim) rows.q[i] = 0;
      const question = questionAt === "end" ? [184, 200] : [0, 16];
      for (let t = 90; t < 95; t++) for (let h = 0; h < kvHeads; h++) rows.k[(t * kvHeads + h) * headDim] = 12;
      for (let t = question[0]; t < question[1]; t++)
        for (let h = 0; h < heads; h++) rows.q[(t * heads + h) * headDim] = 3;
      const layer = new PlainLayer(SHAPE, [snapkv({ capacity: 0.1, window: 12 })], { rotaryBase: null });
      await layer.step(rows);
      return [90, 91, 92, 93, 94].filter((p) => layer.positions(0).includes(p)).length;
    };
    expect(await survives("end")).toBe(5);
    expect(await survives("start")).toBeLessThan(3);
  });
});

describe("h2o and snapkv with room for everything", () => {
  it("are full attention", async () => {
    const tokens = 40;
    const rows = randomRows(tokens, SHAPE, 16);
    const wanted = await new PlainLayer(SHAPE, [full()]).step(rows);
    for (const attached of [
      h2o({ heavy: 20, recent: 20 }),
      h2o({ heavy: 40, recent: 0, variant: "mask" }),
      h2o({ heavy: 0, recent: 39, variant: "mask" }),
      snapkv({ capacity: 40 }),
    ]) {
      const got = await run(new PlainLayer(SHAPE, [attached], { blockRows: 16 }), rows, tokens, [25, ...ones(10), 5]);
      expect(maxDifference(got, wanted)).toBeLessThan(1e-5);
    }
  });

  it("limit themselves to the heads of a scope", async () => {
    const tokens = 40;
    const rows = randomRows(tokens, SHAPE, 17);
    for (const attached of [
      h2o.from({
        heavy: 4,
        recent: 4,
        heads: [
          { layer: 0, head: 0 },
          { layer: -1, head: 1 },
        ],
      }),
      snapkv.from({
        capacity: 8,
        window: 4,
        heads: [
          { layer: 0, head: 0 },
          { layer: 0, head: 1 },
        ],
      }),
    ]) {
      const layer = new PlainLayer(SHAPE, [attached]);
      await layer.step(rows);
      expect([layer.positions(0).length, layer.positions(1).length]).toEqual([8, 40]);
    }
  });
});
