import { existsSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { meanNats, openStories, repeated, STORIES } from "../../../test/trained-stories.js";
import type { AttachedMethod, AttentionStep } from "../../engine/hooks.js";
import { rotate } from "../../engine/rotary.js";
import { full } from "../full.js";
import { PlainLayer, type PlainRows } from "../plain.js";
import { maxDifference, normals, randomRows, sliceRows } from "../testing.js";
import { chunkVectors } from "./chunk-vectors.js";
import { longheads } from "./longheads.js";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 8 };
const { heads, kvHeads, headDim } = SHAPE;
const TOKENS = 90;
const PLAN = {
  inverse: Float32Array.from({ length: headDim / 2 }, (_, i) => 10000 ** ((-2 * i) / headDim)),
  multiplier: 1,
  dims: headDim,
};
const ones = (n: number) => Array<number>(n).fill(1);

async function run(attached: AttachedMethod, rows: PlainRows, sizes: number[], blockRows?: number) {
  const layer = new PlainLayer(SHAPE, [attached], { blockRows });
  const out = new Float32Array(TOKENS * heads * headDim);
  let at = 0;
  for (const n of sizes) {
    out.set(await layer.step(sliceRows(rows, TOKENS, at, at + n)), at * heads * headDim);
    at += n;
  }
  return out;
}

const turned = (x: Float32Array, at: number) => {
  const y = x.slice();
  rotate(y, 1, headDim, [at], PLAN);
  return y;
};
const dot = (a: ArrayLike<number>, b: ArrayLike<number>) => Array.from(a).reduce((sum, x, i) => sum + x * b[i], 0);
function softmax(x: number[]): number[] {
  const weights = x.map((y) => Math.exp(y - Math.max(...x)));
  const total = weights.reduce((a, b) => a + b, 0);
  return weights.map((w) => w / total);
}

/** The method as the paper has it: unrotated keys, gathered and rotated anew at their ranks. Also the chunks chosen. */
function plainLongheads(rows: PlainRows, t: number, w: number, length: number, begin: number) {
  const row = (x: Float32Array, count: number, s: number, h: number) =>
    x.slice((s * count + h) * headDim, (s * count + h + 1) * headDim);
  const n = Math.floor(length / w);
  const g = Math.floor(t / w);
  const out = new Float32Array(heads * headDim);
  const picked: number[][] = [];
  for (let kv = 0; kv < kvHeads; kv++) {
    const mean = (s: number) =>
      Float32Array.from(
        { length: headDim },
        (_, d) => (row(rows.q, heads, s, 2 * kv)[d] + row(rows.q, heads, s, 2 * kv + 1)[d]) / 2,
      );
    let chunks = Array.from({ length: g + 1 }, (_, c) => c);
    if (t >= begin && g >= n) {
      const score = (c: number) => {
        const at = Array.from({ length: w }, (_, i) => i);
        const k = at.map((i) => turned(row(rows.k, kvHeads, c * w + i, kv), i));
        const o = at.map((i) => {
          const p = softmax(k.map((y) => dot(turned(mean(c * w + i), i), y) / Math.sqrt(headDim)));
          return Array.from({ length: headDim }, (_, d) =>
            p.reduce((sum, x, j) => sum + x * row(rows.v, kvHeads, c * w + j, kv)[d], 0),
          );
        });
        const middle = Array.from({ length: headDim }, (_, d) => o.reduce((sum, x) => sum + x[d] / w, 0));
        const p = softmax(k.map((y) => dot(middle, y) / Math.sqrt(headDim)));
        const r = Array.from({ length: headDim }, (_, d) => p.reduce((sum, x, j) => sum + x * k[j][d], 0));
        return dot(mean(t), r);
      };
      const middle = chunks.slice(1, g - 1).sort((a, b) => score(b) - score(a));
      chunks = [0, ...middle.slice(0, n - 3).sort((a, b) => a - b), g - 1, g];
      picked.push(chunks);
    }
    const keys = chunks.flatMap((c) => Array.from({ length: w }, (_, i) => c * w + i)).filter((s) => s <= t);
    for (let h = 2 * kv; h < 2 * kv + 2; h++) {
      const q = turned(row(rows.q, heads, t, h), (chunks.length - 1) * w + (t % w));
      const p = softmax(keys.map((s, j) => dot(q, turned(row(rows.k, kvHeads, s, kv), j)) / Math.sqrt(headDim)));
      for (let d = 0; d < headDim; d++)
        out[h * headDim + d] = p.reduce((sum, x, j) => sum + x * row(rows.v, kvHeads, keys[j], kv)[d], 0);
    }
  }
  return { out, picked };
}

describe("longheads", () => {
  it.each([
    [8, 40, 48],
    [5, 15, 0],
    [6, 30, 61],
  ])("equals gathered keys rotated at their ranks (chunk %i, length %i, begin %i)", async (chunk, length, begin) => {
    const rows = randomRows(TOKENS, SHAPE, 4);
    const attached = longheads({ chunk, length, begin });
    const choices = new Set<string>();
    for (const [sizes, blockRows] of [
      [[TOKENS], undefined],
      [[70, ...ones(20)], 13],
      [[33, 1, 20, ...ones(36)], undefined],
    ] as const) {
      const out = await run(attached, rows, [...sizes], blockRows);
      for (const t of [3, 14, 30, 47, 55, 64, 75, 79, 80, 89]) {
        const { out: wanted, picked } = plainLongheads(rows, t, chunk, length, begin);
        const at = t * heads * headDim;
        expect(maxDifference(out.subarray(at, at + wanted.length), wanted)).toBeLessThan(2e-5);
        for (const [kv, list] of picked.entries()) choices.add(`${t}.${kv}:${list}`);
      }
    }
    if (length / chunk > 3) {
      // heads choose for themselves
      const perHead = [0, 1].map((kv) => [...choices].filter((c) => c.includes(`.${kv}:`)).map((c) => c.split(":")[1]));
      expect(perHead[0].some((list, i) => list !== perHead[1][i])).toBe(true);
    }
  });

  it("is full attention before `begin` and while all chunks fit", async () => {
    const rows = randomRows(TOKENS, SHAPE, 5);
    const wanted = await run(full(), rows, [70, ...ones(20)]);
    for (const attached of [
      longheads({ chunk: 8, length: 24, begin: TOKENS }),
      longheads({ chunk: 9, length: TOKENS + 9, begin: 0 }),
    ])
      expect(maxDifference(await run(attached, rows, [70, ...ones(20)]), wanted)).toBeLessThan(1e-5);
    expect(
      maxDifference(await run(longheads({ chunk: 8, length: 24, begin: 0 }), rows, [TOKENS]), wanted),
    ).toBeGreaterThan(1e-2);
  });

  it("summarises a chunk of one token again and again by that token's key", () => {
    const next = normals(6);
    const [q, k, v] = [next(2 * headDim), next(2 * headDim), next(2 * headDim)];
    const again = (x: Float32Array) => Float32Array.from({ length: 7 * x.length }, (_, i) => x[i % x.length]);
    expect(maxDifference(chunkVectors(again(q), again(k), again(v), { kvHeads: 2, headDim }, null), k)).toBeLessThan(
      1e-6,
    );
  });

  it("never puts a query farther from a key than the length it was given", async () => {
    const rows = randomRows(TOKENS, SHAPE, 7);
    const attached = longheads({ chunk: 5, length: 20, begin: 0 });
    const far: number[] = [];
    const watch: AttachedMethod = {
      ...attached,
      hooks: {
        ...attached.hooks,
        select: (step: AttentionStep) => {
          const rotated = Object.create(step, {
            rotate: {
              value: (at: Int32Array) => {
                if (at.some((p) => p !== 0)) far.push(...at.map((p, t) => p - step.positions[t]));
                return step.rotate(at);
              },
            },
          });
          return attached.hooks.select?.(rotated) ?? [];
        },
      },
    };
    await run(watch, rows, [TOKENS]);
    // queries move towards the keys only, and a chunk's own place and rank differ by whole chunks
    expect(Math.max(...far)).toBeLessThanOrEqual(0);
    expect(Math.min(...far)).toBeLessThan(-60);
    for (const by of far) expect(Math.abs(by % 5)).toBe(0);
  });

  it("finds a passage in the middle by its chunk's vector, where any other chunk in its place would not do", async () => {
    const next = normals(8);
    const rows: PlainRows = randomRows(TOKENS, SHAPE, 9);
    for (const x of [rows.q, rows.k]) for (let i = 0; i < x.length; i++) x[i] *= 0.3;
    // chunk 4 (tokens 40-49) holds keys and values along one direction; the last token asks for it
    const direction = next(headDim);
    for (let t = 40; t < 50; t++)
      for (let i = 0; i < kvHeads * headDim; i++) {
        rows.k[t * kvHeads * headDim + i] += 2 * direction[i % headDim];
        rows.v[t * kvHeads * headDim + i] = direction[i % headDim];
      }
    for (let i = 0; i < heads * headDim; i++) rows.q[(TOKENS - 1) * heads * headDim + i] += 4 * direction[i % headDim];
    const attached = longheads({ chunk: 10, length: 40, begin: 0 });
    const layer = new PlainLayer(SHAPE, [attached]);
    await layer.step(sliceRows(rows, TOKENS, 0, TOKENS - 1));
    const vectors = (layer.states[0] as Map<number, { vectors: Float32Array }>).get(0)?.vectors as Float32Array;
    const score = (c: number) =>
      dot(direction, vectors.subarray(c * kvHeads * headDim, c * kvHeads * headDim + headDim));
    for (const c of [1, 2, 3, 5, 6]) expect(score(4)).toBeGreaterThan(score(c));
    const { picked } = plainLongheads(rows, TOKENS - 1, 10, 40, 0);
    for (const list of picked) expect(list).toEqual([0, 4, 7, 8]);
  });

  it("refuses models without rotation and lengths of fewer than three chunks", () => {
    expect(() => new PlainLayer(SHAPE, [longheads()], { rotaryBase: null })).toThrow(/rotary/);
    expect(() => new PlainLayer(SHAPE, [longheads({ chunk: 16, length: 40 })])).toThrow(/3 chunks/);
  });
});

describe.skipIf(!existsSync(STORIES))("longheads on a trained model", () => {
  let stories: Awaited<ReturnType<typeof openStories>>;
  beforeAll(async () => {
    stories = await openStories({ context: 2048 });
  });
  afterAll(() => stories?.close());

  async function promptLogits(methods: AttachedMethod[], ids: readonly number[]): Promise<Float32Array[]> {
    const { engine } = stories;
    const rows: Float32Array[] = [];
    const sequence = engine.sequence(engine.compose(methods));
    await engine.prefill(sequence, ids, {
      wanted: "all",
      onLogits: (first, count, data) => {
        const vocab = engine.shape.vocab;
        for (let i = 0; i < count; i++) rows[first + i] = data.slice(i * vocab, (i + 1) * vocab);
      },
    });
    sequence.close();
    return rows;
  }

  it("lets heads read different chunks beside the first and the newest two", async () => {
    const [chunk, length] = [16, 96];
    const overlaps: number[] = [];
    const watch: AttachedMethod = {
      name: "watch",
      spec: "watch",
      hooks: {
        observe: ({ positions, weights: { data, heads: count, rows, keys } }) => {
          const own = Math.floor(positions[rows - 1] / chunk);
          if (own < length / chunk) return;
          const read = Array.from({ length: count / 2 }, (_, kv) => {
            const row = data.subarray((2 * kv * rows + rows - 1) * keys, (2 * kv * rows + rows) * keys);
            return new Set(Array.from(row.keys()).flatMap((s) => (row[s] > 0 ? [Math.floor(s / chunk)] : [])));
          });
          for (const chunks of read) {
            expect([0, own - 1, own].every((c) => chunks.has(c))).toBe(true);
            expect(chunks.size).toBe(length / chunk);
          }
          for (const [i, a] of read.entries())
            for (const b of read.slice(i + 1))
              overlaps.push([...a].filter((c) => c > 0 && c < own - 1 && b.has(c)).length / 3);
        },
      },
    };
    await promptLogits([longheads({ chunk, length, begin: length }), watch], stories.ids);
    expect(overlaps.length).toBeGreaterThan(20);
    expect(overlaps.reduce((a, b) => a + b, 0) / overlaps.length).toBeLessThan(0.7);
  });

  it("goes on at almost three times the trained length as it began, where full attention loses", async () => {
    const { ids, length } = repeated(stories.ids, 4);
    const losses = async (attached: AttachedMethod) => {
      const rows = await promptLogits([attached], ids);
      return [0, 3].map((copy) =>
        meanNats(rows.slice(copy * length), ids.slice(1 + copy * length, 1 + (copy + 1) * length)),
      );
    };
    const dense = await losses(full());
    const own = await losses(longheads({ chunk: 32, length: 256, begin: 256 }));
    expect(dense[1] - dense[0]).toBeGreaterThan(0.2);
    expect(own[1] - own[0]).toBeLessThan(0.1);
  });
});
