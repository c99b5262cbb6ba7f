import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { AttachedMethod, AttentionStep } from "../../engine/hooks.js";
import { rotate } from "../../engine/rotary.js";
import { largest } from "../budget.js";
import { full } from "../full.js";
import { PlainLayer, type PlainRows, plainProducts } from "../plain.js";
import { maxDifference, normals, randomRows, sliceRows } from "../testing.js";
import {
  addToTables,
  collisionProbability,
  collisions,
  emptyTables,
  hashCodes,
  hyperplanes,
  manyCodes,
} from "./hash-tables.js";
import type { HashedKeys } from "./hashed-keys.js";
import { magicpig } from "./magicpig.js";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 8 };
const { heads, kvHeads, headDim } = SHAPE;
const TOKENS = 80;

const dot = (a: ArrayLike<number>, b: ArrayLike<number>) => Array.from(a).reduce((sum, x, i) => sum + x * b[i], 0);
const norm = (a: ArrayLike<number>) => Math.sqrt(dot(a, a));

/** Indices by brute force: codes compared table by table. */
function sharedTables(a: Uint16Array, b: Uint16Array): number {
  return a.reduce((n, code, t) => n + (code === b[t] ? 1 : 0), 0);
}

async function decoded(attached: AttachedMethod, rows: PlainRows, prompt: number, shape = SHAPE, tokens = TOKENS) {
  const layer = new PlainLayer(shape, [attached]);
  await layer.step(sliceRows(rows, tokens, 0, prompt));
  const out: Float32Array[] = [];
  for (let t = prompt; t < tokens; t++) out.push(await layer.step(sliceRows(rows, tokens, t, t + 1)));
  return { out, layer };
}

describe("hash tables", () => {
  it("knows the probability of two collisions", () => {
    const u = (cosine: number, bits: number, tables: number) => collisionProbability(cosine, bits, tables);
    for (const [cosine, wanted] of [
      [0, 0.0097],
      [0.3, 0.214],
      [0.5, 0.736],
      [0.8, 1.0],
    ])
      expect(u(cosine, 10, 150)).toBeCloseTo(wanted, 3);
    expect(u(0, 4, 20)).toBeCloseTo(0.358, 3);
    expect(u(0.5, 4, 20)).toBeCloseTo(0.927, 3);
    expect(u(0, 1, 2)).toBeCloseTo(0.25, 9);
    // rounding beyond 1 is no NaN
    expect(u(1.0000001, 10, 150)).toBe(1);
    expect(u(-1.0000001, 10, 150)).toBe(0);
  });

  it("samples with that probability: 2000 draws of the planes, and two hits, not one", () => {
    const next = normals(3);
    const draws = 2000;
    const [bits, tables, dim] = [4, 12, 6];
    const q = next(dim);
    for (const lean of [-0.3, 0, 0.4]) {
      const k = next(dim).map((x, d) => x + lean * q[d]);
      const u = collisionProbability(dot(q, k) / (norm(q) * norm(k)), bits, tables);
      let hits = 0;
      let once = 0;
      for (let seed = 0; seed < draws; seed++) {
        const planes = hyperplanes(tables, bits, dim, 977 * seed + 1);
        const shared = sharedTables(hashCodes(q, planes, bits), hashCodes(k, planes, bits));
        if (shared >= 2) hits++;
        if (shared >= 1) once++;
      }
      const sigma = Math.sqrt((u * (1 - u)) / draws);
      expect(Math.abs(hits / draws - u)).toBeLessThan(4 * sigma);
      expect(once / draws - u).toBeGreaterThan(4 * sigma);
    }
  });

  it("finds what shares two codes, whether vectors come together or in parts", () => {
    fc.assert(
      fc.property(
        fc.array(fc.array(fc.nat(3), { minLength: 5, maxLength: 5 }), { maxLength: 30 }),
        fc.array(fc.nat(3), { minLength: 5, maxLength: 5 }),
        fc.nat(30),
        (vectors, query, cut) => {
          const codesOf = (list: number[][]) =>
            Uint16Array.from({ length: 5 * list.length }, (_, i) => list[i % list.length][Math.floor(i / list.length)]);
          const whole = addToTables(emptyTables(5, 2), codesOf(vectors));
          const parts = addToTables(
            addToTables(emptyTables(5, 2), codesOf(vectors.slice(0, cut))),
            codesOf(vectors.slice(cut)),
          );
          expect(parts).toEqual(whole);
          const q = Uint16Array.from(query);
          const wanted = vectors.flatMap((v, i) => (sharedTables(Uint16Array.from(v), q) >= 2 ? [i] : []));
          expect([...collisions(whole, q)]).toEqual(wanted);
        },
      ),
    );
  });

  it("hashes many vectors as it does one", async () => {
    const model = new PlainLayer({ heads: 6, kvHeads: 2, headDim: 8 }, []).model;
    const next = normals(5);
    const vectors = [next(8 * 11), next(8 * 7)];
    const [bits, tables] = [3, 5];
    const planes = hyperplanes(tables, bits, 8, 1);
    const products: AttentionStep["products"] = async (a, b, options) => plainProducts(a, b, 6, options);
    const codes = await manyCodes({ model, products }, planes, bits, vectors);
    for (const [kv, x] of vectors.entries()) {
      const n = x.length / 8;
      for (let i = 0; i < n; i++) {
        const wanted = hashCodes(x.subarray(i * 8, (i + 1) * 8), planes, bits);
        expect([...wanted]).toEqual(Array.from({ length: tables }, (_, t) => codes[kv][t * n + i]));
      }
    }
  });

  it("gives an unbiased sum of weights, which it is not without dividing by the probability", () => {
    const next = normals(8);
    const [bits, tables, dim, n] = [4, 16, 8, 60];
    const q = next(dim);
    const keys = Array.from({ length: n }, () => next(dim));
    const weight = keys.map((k) => Math.exp(dot(q, k) / Math.sqrt(dim)));
    const total = weight.reduce((a, b) => a + b, 0);
    const u = keys.map((k) => collisionProbability(dot(q, k) / (norm(q) * norm(k)), bits, tables));
    let corrected = 0;
    let plain = 0;
    const draws = 1500;
    for (let seed = 0; seed < draws; seed++) {
      const planes = hyperplanes(tables, bits, dim, 31 * seed + 5);
      const code = hashCodes(q, planes, bits);
      for (const [i, k] of keys.entries())
        if (sharedTables(code, hashCodes(k, planes, bits)) >= 2) {
          corrected += weight[i] / u[i] / total / draws;
          plain += weight[i] / total / draws;
        }
    }
    expect(corrected).toBeGreaterThan(0.97);
    expect(corrected).toBeLessThan(1.03);
    expect(plain).toBeLessThan(0.85);
  });
});

describe("magicpig", () => {
  const small = { bits: 3, tables: 12, sinks: 2, window: 10, denseLayers: 0, batch: 6 };

  it("equals its definition as loops: sample by codes, log-weights, one softmax with the static tokens", async () => {
    const rows = randomRows(TOKENS, SHAPE, 4);
    const { out, layer } = await decoded(magicpig(small), rows, 50);
    const planes = hyperplanes(small.tables, small.bits, headDim, 0);
    const plan = {
      inverse: Float32Array.from({ length: headDim / 2 }, (_, i) => 10000 ** ((-2 * i) / headDim)),
      multiplier: 1,
      dims: headDim,
    };
    const row = (x: Float32Array, count: number, t: number, h: number, turn = true) => {
      const own = x.slice((t * count + h) * headDim, (t * count + h + 1) * headDim);
      if (turn) rotate(own, 1, headDim, [t], plan);
      return own;
    };
    let sampled = 0;
    // the first decoded row hashes entries 2..40 of 51; batches of six follow, and the centre stays
    for (const t of [50, 55, 57, 79]) {
      const end = 41 + 6 * Math.floor((t - 50) / 6);
      for (let h = 0; h < heads; h++) {
        const kv = Math.floor(h / 2);
        const K = Array.from({ length: t + 1 }, (_, s) => row(rows.k, kvHeads, s, kv));
        const q = row(rows.q, heads, t, h);
        const centre = Array.from({ length: headDim }, (_, d) => K.slice(2, 41).reduce((sum, k) => sum + k[d] / 39, 0));
        const code = hashCodes(q, planes, small.bits);
        const logits = K.map((k, s) => {
          const logit = dot(q, k) / Math.sqrt(headDim);
          if (s < 2 || s >= end) return logit;
          const c = k.map((x, d) => x - centre[d]);
          if (sharedTables(code, hashCodes(c, planes, small.bits)) < 2) return Number.NEGATIVE_INFINITY;
          sampled++;
          return (
            logit - Math.log(collisionProbability(dot(q, c) / (norm(q) * norm(c)), small.bits, small.tables) + 1e-4)
          );
        });
        const weights = logits.map((x) => Math.exp(x - Math.max(...logits)));
        const total = weights.reduce((a, b) => a + b, 0);
        const wanted = Array.from({ length: headDim }, (_, d) =>
          weights.reduce((sum, w, s) => sum + (w / total) * rows.v[(s * kvHeads + kv) * headDim + d], 0),
        );
        expect(maxDifference(out[t - 50].subarray(h * headDim, (h + 1) * headDim), wanted)).toBeLessThan(2e-5);
      }
    }
    expect(sampled).toBeGreaterThan(50);
    const [hashed] = (layer.states[0] as Map<number, HashedKeys[]>).get(0) as HashedKeys[];
    expect([...hashed.positions]).toEqual(Array.from({ length: 63 }, (_, i) => i + 2));
    expect([hashed.centred, hashed.tables.count, hashed.norms.length]).toEqual([39, 63, 63]);
  });

  it("is full attention while sinks and window cover the text, in dense layers, and with sure collisions", async () => {
    const rows = randomRows(TOKENS, SHAPE, 5);
    const wanted = (await decoded(full(), rows, 60)).out;
    const differences = async (parameters: Parameters<typeof magicpig>[0]) => {
      const { out } = await decoded(magicpig(parameters), rows, 60);
      return Math.max(...out.map((row, i) => maxDifference(row, wanted[i])));
    };
    expect(await differences({ ...small, window: TOKENS })).toBeLessThan(1e-5);
    expect(await differences({ ...small, denseLayers: [0] })).toBe(0);
    // a single bit, many tables: every key of an angle away from the opposite is sampled, with u near 1
    expect(await differences({ ...small, bits: 1, tables: 400 })).toBeLessThan(2e-3);
    expect(await differences(small)).toBeGreaterThan(1e-2);
  });

  it("does not see a shift of all keys, which changes no weight", async () => {
    const rows = randomRows(TOKENS, SHAPE, 11);
    const shifted = { ...rows, k: rows.k.map((x, i) => x + [3, -2, 1, 0, 2, -1, 0, 4][i % headDim]) };
    const run = async (of: PlainRows) => {
      const layer = new PlainLayer(SHAPE, [magicpig(small)], { rotaryBase: null });
      await layer.step(sliceRows(of, TOKENS, 0, TOKENS - 1));
      return layer.step(sliceRows(of, TOKENS, TOKENS - 1, TOKENS));
    };
    expect(maxDifference(await run(shifted), await run(rows))).toBeLessThan(1e-4);
  });

  it("errs less with more tables", async () => {
    const rows = randomRows(TOKENS, SHAPE, 12);
    const wanted = (await decoded(full(), rows, 60)).out;
    const error = async (tables: number) => {
      let sum = 0;
      for (let seed = 0; seed < 4; seed++) {
        const { out } = await decoded(magicpig({ ...small, bits: 4, tables, seed }), rows, 60);
        for (const [i, row] of out.entries()) sum += norm(row.map((x, d) => x - wanted[i][d]));
      }
      return sum;
    };
    const [few, more, many] = [await error(6), await error(30), await error(150)];
    expect(more).toBeLessThan(few);
    expect(many).toBeLessThan(0.8 * more);
  });

  it("is the same for the same seed, another for another", async () => {
    const rows = randomRows(TOKENS, SHAPE, 6);
    const [a, b, c] = await Promise.all([1, 1, 2].map(async (seed) => decoded(magicpig({ ...small, seed }), rows, 70)));
    for (const [i, row] of a.out.entries()) expect(maxDifference(row, b.out[i])).toBe(0);
    expect(Math.max(...a.out.map((row, i) => maxDifference(row, c.out[i])))).toBeGreaterThan(1e-3);
  });

  it("hashes keys less their mean: keys in a narrow cone do not all collide", async () => {
    const rows = randomRows(TOKENS, SHAPE, 7);
    for (let i = 0; i < rows.k.length; i += headDim) rows.k[i] += 40;
    const attached = magicpig({ ...small, bits: 6, tables: 12 });
    const layer = new PlainLayer(SHAPE, [attached], { rotaryBase: null });
    await layer.step(sliceRows(rows, TOKENS, 0, TOKENS - 1));
    await layer.step(sliceRows(rows, TOKENS, TOKENS - 1, TOKENS));
    const hashed = (layer.states[0] as Map<number, HashedKeys[]>).get(0) as HashedKeys[];
    const planes = hyperplanes(12, 6, headDim, 0);
    const code = hashCodes(Float32Array.of(1, 0.5, 0, 0, 0, 0, 0, 0), planes, 6);
    const share = (h: HashedKeys) => collisions(h.tables, code).length / h.norms.length;
    expect(hashed[0].centre[0]).toBeGreaterThan(39);
    expect(share(hashed[0])).toBeLessThan(0.6);
    const uncentred = Array.from({ length: 67 }, (_, s) =>
      rows.k.subarray((s + 2) * kvHeads * headDim).slice(0, headDim),
    );
    const all = uncentred.filter((k) => sharedTables(code, hashCodes(k, planes, 6)) >= 2).length / 67;
    expect(all).toBeGreaterThan(0.95);
  });

  it("takes the keys anew where another method evicts", async () => {
    const rows = randomRows(TOKENS, SHAPE, 9);
    const evict: AttachedMethod = {
      name: "evict",
      spec: "evict",
      hooks: {
        retain: (step) => {
          const n = step.view.length(0);
          if (step.when === "after" && step.positions[0] === 65)
            step.keep(
              0,
              Int32Array.from({ length: 30 }, (_, i) => n - 60 + 2 * i),
            );
        },
      },
    };
    const layer = new PlainLayer(SHAPE, [magicpig(small), evict]);
    await layer.step(sliceRows(rows, TOKENS, 0, 60));
    for (let t = 60; t < 68; t++) await layer.step(sliceRows(rows, TOKENS, t, t + 1));
    const hashed = (layer.states[0] as Map<number, HashedKeys[]>).get(0) as HashedKeys[];
    expect([...hashed[0].positions]).toEqual([...layer.positions(0).subarray(2, 2 + hashed[0].positions.length)]);
    expect(hashed[0].tables.count).toBeLessThan(30);
    expect(hashed[1].tables.count).toBeGreaterThan(45);
  });

  it("is nearer to full attention than the best keys of the same number where a head looks everywhere", async () => {
    const shape = { heads: 1, kvHeads: 1, headDim: 16 };
    const tokens = 601;
    const error = async (sharpness: number) => {
      let sampling = 0;
      let topK = 0;
      for (let seed = 0; seed < 6; seed++) {
        const rows = randomRows(tokens, shape, 40 + seed);
        // values that go with keys: the best keys say nothing of what the others hold
        rows.v.set(rows.k);
        for (let i = 600 * 16; i < rows.q.length; i++) rows.q[i] *= sharpness;
        const run = async (attached: AttachedMethod) => {
          const layer = new PlainLayer(shape, [attached], { rotaryBase: null });
          await layer.step(sliceRows(rows, tokens, 0, 600));
          return { out: await layer.step(sliceRows(rows, tokens, 600, 601)), layer };
        };
        const wanted = (await run(full())).out;
        const parameters = { bits: 6, tables: 40, sinks: 0, window: 1, denseLayers: 0, seed };
        const pig = await run(magicpig(parameters));
        const hashed = (pig.layer.states[0] as Map<number, HashedKeys[]>).get(0) as HashedKeys[];
        const code = hashCodes(rows.q.subarray(600 * 16), hyperplanes(40, 6, 16, seed), 6);
        const count = collisions(hashed[0].tables, code).length;
        expect(count).toBeGreaterThan(10);
        expect(count).toBeLessThan(300);
        const best: AttachedMethod = {
          name: "best",
          spec: "best",
          hooks: {
            select: async (step: AttentionStep) =>
              step.phase === "decode" ? [{ entries: { tokens: largest(await step.score(), count + 1) } }] : [{}],
          },
        };
        const distance = (x: Float32Array) => norm(x.map((y, i) => y - wanted[i])) / norm(wanted) / 6;
        sampling += distance(pig.out);
        topK += distance((await run(best)).out);
      }
      return { sampling, topK };
    };
    const flat = await error(0.5);
    const peaked = await error(6);
    expect(flat.sampling).toBeLessThan(flat.topK);
    expect(peaked.topK).toBeLessThan(peaked.sampling + 0.05);
    expect(peaked.topK).toBeLessThan(flat.topK / 3);
  });
});
