import { existsSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { engineFor, randomCheckpoint, someIds } from "../../../test/random-checkpoint.js";
import type { Model } from "../../engine/api.js";
import type { RotaryPlan } from "../../engine/hooks.js";
import { toFloats } from "../../graph/index.js";
import { load } from "../../load.js";
import { type Checkpoint, openCheckpoint } from "../../models/index.js";
import { full } from "../full.js";
import { method } from "../method.js";
import { encodeMethodTensors, parseMethodTensors } from "../method-tensors.js";
import { PlainLayer } from "../plain.js";
import { selfExtend } from "../positions/self-extend.js";
import { maxDifference, normals, randomRows } from "../testing.js";
import { compressKvHeads, meanBasis } from "./compress-kv-heads.js";
import { kvHeadBases } from "./compress-kv-heads-calibration.js";
import { mha2mla } from "./mha2mla.js";
import { gram, largestPairs, latentBases, rankingScores } from "./mha2mla-calibration.js";
import { choosePairs, partialPlan } from "./rotary-pairs.js";
import { addOuter, firstColumns, mirror, projectOnto, symmetricEigen } from "./symmetric.js";

const STORIES = new URL("../../../../shared/checkpoints/stories260K", import.meta.url).pathname;
const SHAPE = { heads: 4, kvHeads: 2, headDim: 8 };
const next = normals(11);
/** rows [n][d] */
const matrix = (n: number, d: number) => Array.from({ length: n }, () => next(d));
const squares = (x: ArrayLike<number>) => Array.from(x).reduce((sum, v) => sum + v * v, 0);

/** Squared error of rows, each column of which is projected on `count` directions. */
function projectionError(rows: readonly Float32Array[], basis: Float32Array, columns: number, count: number): number {
  let error = 0;
  for (let d = 0; d < rows[0].length; d++) {
    const x = Float32Array.from(rows, (r) => r[d]);
    const y = x.slice();
    projectOnto(y, basis, columns, count);
    error += squares(x.map((v, i) => v - y[i]));
  }
  return error;
}

describe("symmetric matrices", () => {
  it("have the eigenvalues of small ones worked out by hand", () => {
    const { values, vectors } = symmetricEigen(Float64Array.of(2, 1, 1, 2));
    expect([...values].map((x) => +x.toFixed(9))).toEqual([3, 1]);
    expect(Math.abs(vectors[0] + vectors[2])).toBeCloseTo(Math.SQRT2, 9);
    expect([...symmetricEigen(Float64Array.of(1, 0, 0, 0, 5, 0, 0, 0, 3)).values]).toEqual([5, 3, 1]);
  });

  it("are their vectors times their values, the vectors orthogonal", () => {
    const n = 24;
    const a = gram(matrix(n, 40));
    const { values, vectors } = symmetricEigen(a);
    for (let i = 0; i < n; i++)
      for (let j = 0; j < n; j++) {
        let [product, back] = [0, 0];
        for (let c = 0; c < n; c++) {
          product += vectors[c * n + i] * vectors[c * n + j];
          back += vectors[i * n + c] * values[c] * vectors[j * n + c];
        }
        expect(product).toBeCloseTo(i === j ? 1 : 0, 9);
        expect(back).toBeCloseTo(a[i * n + j], 7);
      }
  });

  it("truncate with the error of the eigenvalues dropped (Eckart-Young), jointly no worse than split", () => {
    const [k, v] = [matrix(10, 12), matrix(10, 12)];
    const joint = [...k, ...v];
    const best = symmetricEigen(gram(joint));
    const columns = 12;
    for (const r of [2, 6, 10]) {
      const dropped = best.values.subarray(r).reduce((a, b) => a + Math.max(0, b), 0);
      const error = projectionError(joint, firstColumns(best.vectors, columns), columns, r);
      expect(error).toBeCloseTo(dropped, 3);
      const split = [k, v].map((m) => projectionError(m, firstColumns(symmetricEigen(gram(m)).vectors, 10), 10, r / 2));
      expect(error).toBeLessThanOrEqual(split[0] + split[1] + 1e-6);
    }
  });
});

describe("the hook of keys", () => {
  it("edits rotated keys before they are stored: doubled keys are doubled queries, in prompt, turn and step", async () => {
    const random = randomCheckpoint("llama", { layers: 2, heads: 4, kvHeads: 2 });
    const ids = someIds(60, random.config.vocab);
    const double = (x: Float32Array) => x.set(x.map((value) => 2 * value));
    const keys = method({ name: "keys", keys: ({ k }) => double(k) })();
    const queries = method({ name: "queries", activations: ({ q }) => double(q) })();
    const engine = await engineFor(random);
    const logits = async (attached: typeof keys) => {
      const sequence = engine.sequence(engine.compose([attached]));
      const out: number[] = [];
      const keep = { wanted: "last" as const, onLogits: (_f: number, _r: number, x: Float32Array) => out.push(...x) };
      await engine.prefill(sequence, ids.slice(0, 25), keep);
      await engine.prefill(sequence, ids.slice(25, 55), keep);
      await engine.prefill(sequence, ids.slice(55, 58), keep);
      for (const id of ids.slice(58)) out.push(...(await engine.decode([{ sequence, id }]))[0]);
      sequence.close();
      return out;
    };
    const [got, wanted, plain] = [await logits(keys), await logits(queries), await logits(full())];
    expect(maxDifference(got, wanted)).toBeLessThan(1e-4);
    expect(maxDifference(got, plain)).toBeGreaterThan(1e-3);
    const near = engine.sequence(engine.compose([keys, selfExtend({ window: 8, group: 2 })]));
    await expect(engine.prefill(near, ids.slice(0, 30), { wanted: "last" })).rejects.toThrow(/near ones are turned/);
    near.close();
    await engine.close();
  });
});

describe("compress-kv-heads", () => {
  it("is the sheet's example: keys (1, 1) and (2, 2) of two heads of width 1 are exact in one", () => {
    const sums = new Float64Array(4);
    addOuter(sums, [1, 1]);
    addOuter(sums, [2, 2]);
    const basis = firstColumns(symmetricEigen(mirror(sums)).vectors, 1);
    expect(Math.abs(basis[0])).toBeCloseTo(Math.SQRT1_2, 6);
    const stored = 1 * basis[0] + 1 * basis[1]; // k'
    expect(Math.abs(stored)).toBeCloseTo(Math.SQRT2, 6);
    expect(3 * basis[0] * stored).toBeCloseTo(3, 6); // q'_1 k', with q_1 = 3
    const row = Float32Array.of(2, 2);
    projectOnto(row, basis, 1);
    expect(3 * row[0]).toBeCloseTo(6, 5);
  });

  it("is full attention where it merges nothing, and where the heads of a group are the same", async () => {
    const rows = randomRows(30, SHAPE, 41);
    const dense = await new PlainLayer(SHAPE, [full()]).step(rows);
    expect(maxDifference(await new PlainLayer(SHAPE, [compressKvHeads({ merge: 1 })]).step(rows), dense)).toBe(0);
    const merged = await new PlainLayer(SHAPE, [compressKvHeads()]).step(rows);
    expect(maxDifference(merged, dense)).toBeGreaterThan(1e-2);
    const same = { ...rows, k: rows.k.slice(), v: rows.v.slice() };
    for (const x of [same.k, same.v]) for (let t = 0; t < 30; t++) x.copyWithin((t * 2 + 1) * 8, t * 16, t * 16 + 8);
    const wanted = await new PlainLayer(SHAPE, [full()]).step(same);
    expect(maxDifference(await new PlainLayer(SHAPE, [compressKvHeads()]).step(same), wanted)).toBeLessThan(1e-5);
  });

  it("without a file averages the heads of a group, after rotation", async () => {
    const rows = randomRows(20, SHAPE, 42);
    const averaged = { ...rows, k: rows.k.slice(), v: rows.v.slice() };
    for (const x of [averaged.k, averaged.v])
      for (let t = 0; t < 20; t++)
        for (let d = 0; d < 8; d++) x[t * 16 + d] = x[t * 16 + 8 + d] = (x[t * 16 + d] + x[t * 16 + 8 + d]) / 2;
    const wanted = await new PlainLayer(SHAPE, [full()]).step(averaged);
    expect(maxDifference(await new PlainLayer(SHAPE, [compressKvHeads()]).step(rows), wanted)).toBeLessThan(1e-5);
  });

  it("scores as projected queries on projected keys do, and sums as projected values", () => {
    const basis = firstColumns(symmetricEigen(gram(matrix(16, 30))).vectors, 8);
    const [q, cat] = [next(8), next(16)];
    const stored = Array.from({ length: 8 }, (_, c) => cat.reduce((s, x, i) => s + x * basis[i * 8 + c], 0));
    const turned = (head: number) =>
      stored.map((_, c) => q.reduce((s, x, d) => s + x * basis[(head * 8 + d) * 8 + c], 0));
    const back = cat.slice();
    projectOnto(back, basis, 8);
    for (const head of [0, 1]) {
      const latent = turned(head).reduce((s, x, c) => s + x * stored[c], 0);
      const explicit = q.reduce((s, x, d) => s + x * back[head * 8 + d], 0);
      expect(latent).toBeCloseTo(explicit, 5);
    }
    // all directions lose nothing
    const whole = cat.slice();
    projectOnto(whole, firstColumns(symmetricEigen(gram(matrix(16, 30))).vectors, 16), 16);
    expect(maxDifference(whole, cat)).toBeLessThan(1e-5);
    expect(meanBasis(2, 1)).toEqual(Float32Array.of(Math.SQRT1_2, Math.SQRT1_2));
  });

  it("refuses numbers that do not divide the heads", () => {
    expect(() => new PlainLayer(SHAPE, [compressKvHeads({ merge: 3 })])).toThrow(/2 KV heads cannot be merged 3 by 3/);
  });
});

describe("mha2mla", () => {
  const plan: RotaryPlan = { inverse: Float32Array.of(1, 0.5, 0.25, 0.125), multiplier: 1, dims: 8 };

  it("ranks pairs by the product of their norms: u^q = (1, 3), u^k = (2, 1) keeps the second", () => {
    expect([...rankingScores([1, 3], [2, 1])]).toEqual([2, 3]);
    expect(largestPairs(rankingScores([1, 3], [2, 1]), 1)).toEqual([1]);
  });

  it("keeps the frequencies of the pairs that stay, whatever their place", () => {
    expect(choosePairs(4, { rotary: 4, pairs: "high" })).toEqual([0, 1]);
    expect(choosePairs(4, { rotary: 4, pairs: "low" })).toEqual([2, 3]);
    expect(choosePairs(4, { rotary: 1 / 2, pairs: "uniform" })).toEqual([0, 2]);
    expect(choosePairs(4, { rotary: 1e9, pairs: "uniform" })).toEqual([0, 1, 2, 3]);
    const { inverse, groups } = partialPlan(plan, [
      [0, 2],
      [1, 3],
    ]);
    expect([...inverse]).toEqual([1, 0, 0.25, 0, 0, 0.5, 0, 0.125]);
    expect(groups).toBe(2);
  });

  it("equals attention with rotation left out of the other pairs", async () => {
    const rows = randomRows(25, SHAPE, 43);
    const got = await new PlainLayer(SHAPE, [mha2mla({ rotary: 4, pairs: "high" })]).step(rows);
    const own = method({
      name: "partial",
      position: ({ plan: given }) =>
        given ? { plan: { ...given, inverse: given.inverse.map((x, i) => (i < 2 ? x : 0)) } } : undefined,
    });
    const wanted = await new PlainLayer(SHAPE, [own()]).step(rows);
    expect(maxDifference(got, wanted)).toBeLessThan(1e-6);
    expect(maxDifference(got, await new PlainLayer(SHAPE, [full()]).step(rows))).toBeGreaterThan(1e-2);
  });

  it("refuses a rank without a basis, and models without rotation", () => {
    expect(() => new PlainLayer(SHAPE, [mha2mla({ rank: 4 })])).toThrow(/needs the basis/);
    expect(() => new PlainLayer(SHAPE, [mha2mla()], { rotaryBase: null })).toThrow(/rotary positions/);
  });
});

describe.skipIf(!existsSync(STORIES))("low rank on stories260K", () => {
  let model: Model;
  let checkpoint: Checkpoint;
  let folder = "";
  let texts: string[];
  beforeAll(async () => {
    checkpoint = await openCheckpoint(STORIES);
    model = await load(STORIES, { worker: false, precision: "float32", cache: "float32", threads: 2 });
    folder = await mkdtemp(join(tmpdir(), "fovea-low-rank-"));
    texts = [];
    for (const [i, start] of ["Once upon a time", "One day", "There was a"].entries()) {
      const told = await model.generate(start, { maxTokens: 200, temperature: 0.7, seed: i + 1 }).result;
      texts.push(start + told.text);
    }
  });
  afterAll(async () => {
    await model?.close();
    await checkpoint?.close();
    await rm(folder, { recursive: true, force: true });
  });
  const nats = async (attention: string) => {
    const { logprob, tokens } = await model.with(attention).score(texts[2]);
    return -logprob / tokens.length;
  };

  it("compress-kv-heads: directions of the caches beat averaged heads, as the paper claims", async () => {
    const { file, kept } = await kvHeadBases(model, texts.slice(0, 2), { merge: 2, madeBy: "the test" });
    for (const share of [...kept.keys, ...kept.values]) {
      expect(share).toBeGreaterThan(0.5);
      expect(share).toBeLessThanOrEqual(1);
    }
    const path = join(folder, "bases.safetensors");
    await writeFile(path, await encodeMethodTensors(file));
    const dense = await nats("full");
    const mean = await nats("compress-kv-heads(merge=2)");
    const svd = await nats(`compress-kv-heads(merge=2,basis="${path}")`);
    expect(svd).toBeLessThan(mean);
    expect(svd).toBeGreaterThan(dense);
    // directions of the projections' weights, which know nothing of what texts do with them
    const { shape } = model.info;
    const tensors = new Map<string, { shape: number[]; data: Float32Array }>();
    for (let l = 0; l < shape.layers; l++)
      for (const [name, from] of [
        ["keys", "k"],
        ["values", "v"],
      ]) {
        const weight = toFloats(checkpoint.weights.get(`layers.${l}.${from}`)); // [Hkv D, d]
        const data = [0, 1].flatMap((g) => {
          const rows = Array.from({ length: 16 }, (_, i) => weight.subarray((g * 16 + i) * 64, (g * 16 + i + 1) * 64));
          return [...firstColumns(symmetricEigen(gram(rows)).vectors, 8)];
        });
        tensors.set(`${name}.${l}`, { shape: [2, 16, 8], data: Float32Array.from(data) });
      }
    const weights = join(folder, "weights.safetensors");
    await writeFile(weights, await encodeMethodTensors({ ...file, tensors }));
    expect(svd).toBeLessThan(await nats(`compress-kv-heads(merge=2,basis="${weights}")`));
    const bytes = await encodeMethodTensors({ ...file, model: "another" });
    const other = join(folder, "other.safetensors");
    await writeFile(other, bytes);
    await expect(nats(`compress-kv-heads(merge=2,basis="${other}")`)).rejects.toThrow(
      /made for the checkpoint another/,
    );
    expect(() => parseMethodTensors(bytes, "mha2mla")).toThrow(/made for compress-kv-heads/);
    await expect(nats("compress-kv-heads(basis=nowhere.safetensors)")).rejects.toThrow(/no calibration nowhere/);
  });

  it("mha2mla: all positions and the full rank change nothing; less rank costs more; 2-norm beats the lowest pairs", async () => {
    const write = async (rotary: number) => {
      const path = join(folder, `latent-${rotary}.safetensors`);
      const found = await latentBases(model, checkpoint, { texts: texts.slice(0, 2), madeBy: "the test", rotary });
      await writeFile(path, await encodeMethodTensors(found));
      return path;
    };
    const dense = await nats("full");
    expect(await nats(`mha2mla(basis="${await write(8)}")`)).toBeCloseTo(dense, 4);
    const path = await write(4);
    const norm = await nats(`mha2mla(basis="${path}")`);
    const ranks = [];
    for (const rank of [11, 6, 3]) ranks.push(await nats(`mha2mla(basis="${path}",rank=${rank})`));
    expect(norm).toBeGreaterThan(dense);
    expect(ranks[2]).toBeGreaterThan(ranks[0]);
    expect(norm).toBeLessThan(await nats("mha2mla(rotary=4,pairs=low)"));
    // the paper's order, 2-norm before uniform, is not this model's: it has four pairs a head
    expect(await nats("mha2mla(rotary=4)")).toBeLessThan(norm);
    await expect(nats(`mha2mla(basis="${path}",rank=99)`)).rejects.toThrow(/at most|has/);
  });
});
