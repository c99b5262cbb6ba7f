import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { AttachedMethod } from "../../engine/hooks.js";
import { full } from "../full.js";
import { method } from "../method.js";
import { PlainLayer, type PlainRows } from "../plain.js";
import { maxDifference, randomRows, sliceRows } from "../testing.js";
import { adaKv, adaptiveEntries } from "./ada-kv.js";
import { snapkv } from "./snapkv.js";
import { meanWeights, tova } from "./tova.js";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 8 };
const { kvHeads } = SHAPE;
const TOKENS = 60;

async function feed(layer: PlainLayer, rows: PlainRows, sizes: number[]): Promise<Float32Array[]> {
  const out: Float32Array[] = [];
  let at = 0;
  for (const n of sizes) out.push(await layer.step(sliceRows(rows, TOKENS, at, (at += n))));
  return out;
}
const ones = (n: number) => Array<number>(n).fill(1);

describe("tova", () => {
  it("takes the mean over heads", () => {
    const weights = Float32Array.of(0.1, 0.6, 0.3, /* head 1 */ 0.5, 0.2, 0.3);
    expect(maxDifference(meanWeights(weights, 2, 0, 2), [0.3, 0.4, 0.3])).toBeLessThan(1e-7);
    expect(maxDifference(meanWeights(weights, 2, 1, 2), [0.5, 0.2, 0.3])).toBeLessThan(1e-7);
  });

  it("drops what the newest token looks at least, one token a step, as a plain loop over its weights does", async () => {
    const rows = randomRows(TOKENS, SHAPE, 3);
    let last: { positions: number[]; mean: number[] } | undefined;
    const watch = method({
      name: "watch",
      observe: (step) => {
        const { data, heads, rows: count, keys } = step.weights;
        const at = (h: number) => (h * count + count - 1) * keys;
        last = {
          positions: [...step.keyPositions(0)],
          mean: Array.from({ length: keys }, (_, s) => {
            let sum = 0;
            for (let h = 0; h < heads; h++) sum += data[at(h) + s] / heads;
            return sum;
          }),
        };
      },
    })();
    const layer = new PlainLayer(SHAPE, [tova({ capacity: 12 }), watch]);
    let at = 0;
    const gone = new Set<number>();
    for (const n of [30, ...ones(10), 5, ...ones(15)]) {
      await layer.step(sliceRows(rows, TOKENS, at, (at += n)));
      const { positions, mean } = last as { positions: number[]; mean: number[] };
      const newest = positions.length - 1;
      const best = positions
        .map((p, i) => ({ p, score: i === newest ? 2 : mean[i] }))
        .sort((a, b) => b.score - a.score)
        .slice(0, 12)
        .map(({ p }) => p)
        .sort((a, b) => a - b);
      for (let kv = 0; kv < kvHeads; kv++) expect([...layer.positions(kv)]).toEqual(best);
      for (const p of best) expect(gone.has(p)).toBe(false);
      for (const p of positions) if (!best.includes(p)) gone.add(p);
    }
    expect(gone.size).toBe(TOKENS - 12);
  });

  it("goes by each head's own queries where heads hold different tokens, and keeps a share of the prompt", async () => {
    const rows = randomRows(TOKENS, SHAPE, 4);
    const uneven = method({
      name: "uneven",
      retain: (step) => {
        if (step.when === "after" && step.phase === "prompt")
          step.keep(
            1,
            Int32Array.from({ length: 25 }, (_, i) => i + 15),
          );
      },
    })();
    const layer = new PlainLayer(SHAPE, [uneven, tova({ capacity: 1 / 2 })]);
    await feed(layer, rows, [40, ...ones(8)]);
    expect([layer.positions(0).length, layer.positions(1).length]).toEqual([20, 20]);
    expect([...layer.positions(0)]).not.toEqual([...layer.positions(1)]);
    for (let kv = 0; kv < kvHeads; kv++) expect(layer.positions(kv).at(-1)).toBe(47);
  });
});

describe("ada-kv", () => {
  it("gives the head that looks at many places more, and no head less than its safeguard", () => {
    const wide = Float32Array.of(0.5, 0.4, 0.45, 0.35, 0.3, 0.2);
    const narrow = Float32Array.of(0.9, 0.01, 0.02, 0.03, 0.01, 0.01);
    expect(adaptiveEntries([wide, narrow], 3, 0).map((x) => [...x])).toEqual([[0, 1, 2, 3, 4], [0]]);
    expect(adaptiveEntries([wide, narrow], 3, 0.7).map((x) => [...x])).toEqual([
      [0, 1, 2, 3],
      [0, 3],
    ]);
    expect(adaptiveEntries([wide, narrow], 3, 1).map((x) => [...x])).toEqual([
      [0, 1, 2],
      [0, 2, 3],
    ]);
  });

  it("spends the whole budget, keeps every safeguard, and leaves out nothing better than what it keeps", () => {
    fc.assert(
      fc.property(
        fc.array(fc.array(fc.integer({ min: 0, max: 50 }), { minLength: 12, maxLength: 12 }), {
          minLength: 1,
          maxLength: 4,
        }),
        fc.nat(12),
        fc.double({ min: 0, max: 1, noNaN: true }),
        (lists, average, safeguard) => {
          const scores = lists.map((x) => Float32Array.from(x));
          const chosen = adaptiveEntries(scores, average, safeguard);
          expect(chosen.reduce((n, x) => n + x.length, 0)).toBe(average * scores.length);
          const least = Math.floor(safeguard * average);
          const missed: number[] = [];
          const beyond: number[] = [];
          for (const [h, list] of chosen.entries()) {
            expect(list.length).toBeGreaterThanOrEqual(least);
            const kept = [...list].map((i) => scores[h][i]).sort((a, b) => b - a);
            beyond.push(...kept.slice(least));
            missed.push(...scores[h].filter((_, i) => !list.includes(i)));
          }
          if (beyond.length > 0 && missed.length > 0)
            expect(Math.min(...beyond)).toBeGreaterThanOrEqual(Math.max(...missed));
        },
      ),
    );
  });

  it("is snapkv where the safeguard is everything, and frees the rest under one budget where it is nothing", async () => {
    const rows = randomRows(TOKENS, SHAPE, 5);
    // the second KV head's queries look at one place, the first one's everywhere
    for (let t = 0; t < TOKENS; t++) for (let i = 2 * 8; i < 4 * 8; i++) rows.q[t * 32 + i] *= 6;
    for (let i = 0; i < rows.q.length; i++) if (i % 32 < 16) rows.q[i] *= 0.2;
    const kept = async (attached: AttachedMethod) => {
      const layer = new PlainLayer(SHAPE, [attached]);
      await feed(layer, rows, [50, 1, 1]);
      return [[...layer.positions(0)], [...layer.positions(1)]];
    };
    const common = { capacity: 18, window: 6, kernel: 3 };
    const snap = await kept(snapkv(common));
    expect(await kept(adaKv({ ...common, safeguard: 1 }))).toEqual(snap);
    const adaptive = await kept(adaKv({ ...common, safeguard: 0.2 }));
    expect(adaptive[0].length + adaptive[1].length).toBe(snap[0].length + snap[1].length);
    expect(adaptive[0].length).not.toBe(adaptive[1].length);
    for (const list of adaptive) {
      expect(list.length).toBeGreaterThanOrEqual(6 + 2 + 2);
      expect(list.slice(-8)).toEqual([44, 45, 46, 47, 48, 49, 50, 51]);
    }
  });
});

it("tova and ada-kv are full attention with room for everything", async () => {
  const rows = randomRows(TOKENS, SHAPE, 6);
  const sizes = [40, ...ones(10), 10];
  const wanted = await feed(new PlainLayer(SHAPE, [full()]), rows, sizes);
  for (const attached of [tova({ capacity: TOKENS }), adaKv({ capacity: TOKENS })]) {
    const got = await feed(new PlainLayer(SHAPE, [attached]), rows, sizes);
    for (const [i, row] of got.entries()) expect(maxDifference(row, wanted[i])).toBeLessThan(1e-5);
  }
});
