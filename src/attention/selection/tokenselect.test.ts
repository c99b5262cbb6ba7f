import { existsSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { decodedLogits, meanNats, openStories, repeated, STORIES } from "../../../test/trained-stories.js";
import type { AttachedMethod } from "../../engine/hooks.js";
import { rotate } from "../../engine/rotary.js";
import { largest } from "../budget.js";
import { full } from "../full.js";
import { PlainLayer, type PlainRows } from "../plain.js";
import { maxDifference, normals, randomRows, sliceRows } from "../testing.js";
import { softVote } from "./soft-vote.js";
import { tokenselect } from "./tokenselect.js";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 8 };
const { heads, kvHeads, headDim } = SHAPE;
const PLAN = { inverse: Float32Array.from({ length: 4 }, (_, i) => 10000 ** (-i / 4)), multiplier: 1, dims: 8 };

async function decoded(layer: PlainLayer, rows: PlainRows, tokens: number, prompt: number): Promise<Float32Array> {
  await layer.step(sliceRows(rows, tokens, 0, prompt));
  const out: number[] = [];
  for (let t = prompt; t < tokens; t++) out.push(...(await layer.step(sliceRows(rows, tokens, t, t + 1))));
  return Float32Array.from(out);
}

/** A head's vector of an unrotated row, turned to a position. */
function turned(x: Float32Array, row: number, head: number, of: number, position: number): Float32Array {
  const at = (row * of + head) * headDim;
  const out = x.slice(at, at + headDim);
  rotate(out, 1, headDim, [position], PLAN);
  return out;
}

const dot = (a: Float32Array, b: Float32Array) => a.reduce((sum, x, i) => sum + x * b[i], 0);

/** Row t by the sheet's steps, from unrotated rows: the chosen tokens and the heads' outputs. */
function plainRow(rows: PlainRows, t: number, k: number, sinks: number, window: number) {
  const n = t + 1;
  const z = new Float32Array(n);
  for (let h = 0; h < heads; h++) {
    const q = turned(rows.q, t, h, heads, window);
    const logits = Array.from({ length: n }, (_, i) =>
      i < sinks || i >= n - window ? -1e9 : dot(q, turned(rows.k, i, h >> 1, kvHeads, 0)),
    );
    const max = Math.max(...logits);
    const weights = logits.map((x) => Math.exp(x - max));
    const total = weights.reduce((a, b) => a + b, 0);
    for (let i = 0; i < n; i++) z[i] += weights[i] / total;
  }
  const chosen = [...largest(z, k)];
  const read = [
    ...Array.from({ length: sinks }, (_, i) => i),
    ...chosen,
    ...Array.from({ length: window }, (_, i) => n - window + i),
  ];
  const out = new Float32Array(heads * headDim);
  for (let h = 0; h < heads; h++) {
    const q = turned(rows.q, t, h, heads, read.length - 1);
    const weights = read.map((i, rank) =>
      Math.exp(dot(q, turned(rows.k, i, h >> 1, kvHeads, rank)) / Math.sqrt(headDim)),
    );
    const total = weights.reduce((a, b) => a + b, 0);
    for (const [j, i] of read.entries())
      for (let d = 0; d < headDim; d++)
        out[h * headDim + d] += (weights[j] / total) * rows.v[(i * kvHeads + (h >> 1)) * headDim + d];
  }
  return { chosen, out };
}

describe("tokenselect", () => {
  const tokens = 90;
  const rows = randomRows(tokens, SHAPE, 31);
  const few = { tokens: 8, sinks: 3, window: 12, similarity: 2 } as const;

  it("votes by softmaxed scores: one head's large logits do not decide alone", () => {
    const logits = Float32Array.of(4, 3, 0, 0, 1, 1);
    const z = softVote(logits, 2, 3, 0, 3);
    expect(maxDifference(z, [0.876, 0.688, 0.436])).toBeLessThan(1.5e-3);
    expect([...largest(z, 1)]).toEqual([0]);
    // raw sums would tie tokens 0 and 1
    expect(logits[0] + logits[3]).toBe(logits[1] + logits[4]);
    // candidates only
    expect([...softVote(logits, 2, 3, 1, 2)]).toEqual([0, 2, 0]);
  });

  it("is full attention at ordinary positions while everything fits", async () => {
    const wanted = await decoded(new PlainLayer(SHAPE, [full()]), rows, tokens, 70);
    for (const positions of ["rank", "true"] as const) {
      const attached = tokenselect({ tokens: 75, sinks: 3, window: 12, positions });
      expect(maxDifference(await decoded(new PlainLayer(SHAPE, [attached]), rows, tokens, 70), wanted)).toBeLessThan(
        1e-5,
      );
    }
  });

  it("reads what a plain loop over the sheet's steps reads, turned to its ranks", async () => {
    const got = await decoded(new PlainLayer(SHAPE, [tokenselect(few)]), rows, tokens, 70);
    const width = heads * headDim;
    for (let t = 70; t < tokens; t++) {
      const { out } = plainRow(rows, t, few.tokens, few.sinks, few.window);
      expect(maxDifference(got.subarray((t - 70) * width, (t - 69) * width), out)).toBeLessThan(1e-4);
    }
  });

  it("turns queries no farther than what is read is long, wherever the row stands", async () => {
    const attached = tokenselect(few);
    const turns: number[] = [];
    const watch: AttachedMethod = {
      ...attached,
      hooks: {
        ...attached.hooks,
        select: (step) => {
          const rotate = (at: Int32Array) => {
            turns.push(...at);
            return step.rotate(at);
          };
          return attached.hooks.select?.(Object.create(step, { rotate: { value: rotate } })) ?? [{}];
        },
      },
    };
    await decoded(new PlainLayer(SHAPE, [watch]), rows, tokens, 70);
    // the vote at a distance of `window`, the reading behind all of sinks, chosen and newest tokens
    expect(new Set(turns)).toEqual(new Set([few.window, few.sinks + few.tokens + few.window - 1]));
  });

  it("leaves the prompt at true positions", async () => {
    const wanted = await new PlainLayer(SHAPE, [full()]).step(rows);
    expect(maxDifference(await new PlainLayer(SHAPE, [tokenselect(few)]).step(rows), wanted)).toBeLessThan(1e-5);
  });

  it("holds a choice as long as the query stays similar", async () => {
    const choices = async (similarity: number) => {
      const layer = new PlainLayer(SHAPE, [tokenselect({ ...few, similarity, positions: "true" })]);
      await layer.step(sliceRows(rows, tokens, 0, 70));
      const seen: number[][] = [];
      for (let t = 70; t < tokens; t++) {
        await layer.step(sliceRows(rows, tokens, t, t + 1));
        const choice = (layer.states[0] as Map<number, { positions: Int32Array }>).get(0);
        seen.push([...(choice?.positions ?? [])]);
      }
      return seen;
    };
    const always = await choices(2);
    const once = await choices(-1);
    expect(new Set(once.map(String)).size).toBe(1);
    expect(once[0]).toEqual(always[0]);
    expect(new Set(always.map(String)).size).toBeGreaterThan(5);
  });

  it("finds a key far beyond what it reads, where tokens at random do not", async () => {
    const n = 500;
    const direction = normals(8)(headDim);
    const planted = randomRows(n, SHAPE, 32);
    for (let kv = 0; kv < kvHeads; kv++)
      for (let d = 0; d < headDim; d++) {
        planted.k[(60 * kvHeads + kv) * headDim + d] = 5 * direction[d];
        planted.v[(60 * kvHeads + kv) * headDim + d] = 50;
      }
    for (let h = 0; h < heads; h++)
      for (let d = 0; d < headDim; d++) planted.q[((n - 1) * heads + h) * headDim + d] = 4 * direction[d];
    const last = async (pick?: number[]) => {
      const layer = new PlainLayer(SHAPE, [tokenselect({ ...few, positions: "true" })], { rotaryBase: null });
      if (pick)
        layer.composed.layer(0).select[0].hooks.select = (step) =>
          step.phase === "decode" ? [{ entries: { tokens: Int32Array.from(pick) } }] : [{}];
      return decoded(layer, planted, n, n - 1);
    };
    expect((await last())[0]).toBeGreaterThan(30);
    expect((await last([0, 1, 2, 33, 70, 140, 200, 260, 310, 350, 420, n - 1]))[0]).toBeLessThan(10);
  });

  it("refuses ranks in a model that does not rotate", () => {
    expect(() => new PlainLayer(SHAPE, [tokenselect()], { rotaryBase: null })).toThrow("cannot number tokens anew");
  });
});

describe.skipIf(!existsSync(STORIES))("tokenselect on a trained model", () => {
  it("goes on beyond the trained length as it began, where full attention loses", async () => {
    const stories = await openStories({ context: 2048 });
    const { ids, length } = repeated(stories.ids, 3);
    const losses = async (attached: AttachedMethod) => {
      const rows = await decodedLogits(stories.engine, [attached], ids, 1);
      expect(rows.every((row) => row.every(Number.isFinite))).toBe(true);
      return [0, 2].map((copy) =>
        meanNats(rows.slice(copy * length), ids.slice(2 + copy * length, (copy + 1) * length)),
      );
    };
    const dense = await losses(full());
    const own = await losses(tokenselect({ tokens: 64, sinks: 4, window: 128 }));
    await stories.close();
    expect(dense[1] - dense[0]).toBeGreaterThan(0.08);
    expect(own[1] - own[0]).toBeLessThan(0.04);
  });
});
