import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { engineFor, randomCheckpoint, someIds } from "../../../test/random-checkpoint.js";
import type { Engine } from "../../engine/engine.js";
import type { AttachedMethod, Hooks } from "../../engine/hooks.js";
import { load } from "../../load.js";
import { resolve } from "../catalog.js";
import { maxDifference } from "../testing.js";
import { attentionBuckets, fuseStreams } from "./attention-buckets.js";
import { bucketBases } from "./bucket-bases.js";
import { extrema } from "./waveform.js";

const PROMPT = 40;

function hook(name: string, hooks: Hooks): AttachedMethod {
  return { name, spec: name, hooks };
}

/** Logits of a prompt's rows and of the decoded rows after it. */
async function logits(engine: Engine, methods: AttachedMethod[], ids: readonly number[], pieceRows?: number) {
  const { vocab } = engine.config;
  const out = new Float32Array(ids.length * vocab);
  const sequence = engine.sequence(engine.compose(methods));
  const onLogits = (first: number, rows: number, data: Float32Array) =>
    out.set(data.subarray(0, rows * vocab), first * vocab);
  await engine.prefill(sequence, ids.slice(0, PROMPT), { wanted: "all", onLogits, ...(pieceRows && { pieceRows }) });
  for (let i = PROMPT; i < ids.length; i++) out.set((await engine.decode([{ sequence, id: ids[i] }]))[0], i * vocab);
  for (const other of sequence.others) expect(other.ids).toEqual(sequence.ids);
  sequence.close();
  return out;
}

describe("fusion", () => {
  const fused = (list: number[][], confidence?: "logit" | "probability") => {
    const into = new Float32Array(list[0].length);
    fuseStreams(
      list.map((z) => Float32Array.from(z)),
      into,
      confidence,
    );
    return [...into];
  };

  it("weighs by the softmax of the largest logits: [2, 0] and [0, 4]", () => {
    const [a, b] = fused([
      [2, 0],
      [0, 4],
    ]);
    expect(a).toBeCloseTo(0.2384, 4);
    expect(b).toBeCloseTo(3.5232, 4);
    for (const confidence of ["logit", "probability"] as const)
      expect(
        maxDifference(
          fused(
            [
              [3, 1],
              [3, 1],
              [3, 1],
            ],
            confidence,
          ),
          [3, 1],
        ),
      ).toBeLessThan(1e-6);
  });

  it("by probability does not favour a stream for larger logits throughout", () => {
    const streams = [
      [1, 0],
      [11, 10],
    ];
    expect(maxDifference(fused(streams, "probability"), [6, 5])).toBeLessThan(1e-5);
    expect(fused(streams, "logit")[0]).toBeGreaterThan(10.9);
  });
});

describe("attention-buckets", () => {
  const ids = someIds(60, 384);
  let engine: Engine;
  beforeAll(async () => {
    engine = await engineFor(randomCheckpoint("llama"));
  });
  afterAll(() => engine.close());

  it("is the models of its bases, fused row by row, however the prompt is cut", async () => {
    const { vocab } = engine.config;
    const each: Float32Array[] = [];
    for (const rope_theta of [10000, 14000, 25000]) {
      const one = await engineFor(randomCheckpoint("llama", {}, { rope_theta }));
      each.push(await logits(one, [], ids));
      await one.close();
    }
    const wanted = new Float32Array(each[0].length);
    for (let r = 0; r < ids.length; r++) {
      const row = (x: Float32Array) => x.subarray(r * vocab, (r + 1) * vocab);
      fuseStreams(each.map(row), row(wanted));
    }
    const buckets = attentionBuckets({ bases: ["own", 14000, 25000] });
    expect(maxDifference(await logits(engine, [buckets], ids), wanted)).toBeLessThan(1e-4);
    expect(maxDifference(await logits(engine, [buckets], ids, 7), wanted)).toBeLessThan(1e-4);
    for (const one of each) expect(maxDifference(one, wanted)).toBeGreaterThan(1e-2);
  });

  it("is the model itself with one base of its own, or several", async () => {
    const wanted = await logits(engine, [], ids);
    expect(maxDifference(await logits(engine, [attentionBuckets({ bases: ["own"] })], ids), wanted)).toBe(0);
    expect(
      maxDifference(await logits(engine, [attentionBuckets({ bases: ["own", "own"] })], ids), wanted),
    ).toBeLessThan(1e-5);
  });

  it("edits the fused row once, shows observers the first stream, and lets other hooks act in every stream", async () => {
    let edits = 0;
    const seen: number[] = [];
    const spy = hook("spy", {
      logits: ({ logits: row }) => {
        edits++;
        row[0] = 123;
      },
      observe: ({ positions, layer }) => void (layer === 0 && seen.push(...positions)),
    });
    const buckets = attentionBuckets({ bases: ["own", 20000] });
    const out = await logits(engine, [buckets, spy], ids);
    expect(edits).toBe(ids.length);
    expect(seen).toEqual(ids.map((_, i) => i));
    for (let r = 0; r < ids.length; r++) expect(out[r * engine.config.vocab]).toBe(123);
    const evicting = [buckets, ...resolve("snapkv(capacity=12,window=4)")];
    const sequence = engine.sequence(engine.compose(evicting));
    await engine.prefill(sequence, ids, { wanted: "last" });
    for (const one of [sequence, ...sequence.others]) expect(one.cache.layer(0).length(0)).toBe(12);
    sequence.close();
  });

  it("draws one token for all streams; a saved reading goes on as the original", async () => {
    const folder = await mkdtemp(join(tmpdir(), "fovea-buckets-"));
    await using model = await load("models/tiny", { worker: false, precision: "float32", cache: "float32" });
    const buckets = model.with("attention-buckets(bases=[own,20000,30000])");
    const text = "the keeper is Ada. the cook is Tom. the keeper is";
    const told = await buckets.generate(text, { maxTokens: 12, ignoreEos: true }).result;
    await using reading = await buckets.read(text);
    await using plain = await model.read(text);
    expect(reading.bytes / plain.bytes).toBeCloseTo(3, 1);
    await reading.save(join(folder, "saved"));
    await using opened = await buckets.open(join(folder, "saved"));
    expect((await opened.generate("", { maxTokens: 12, ignoreEos: true }).result).ids).toEqual(told.ids);
    expect((await reading.generate("", { maxTokens: 12, ignoreEos: true }).result).ids).toEqual(told.ids);
    await expect(model.open(join(folder, "saved"))).rejects.toThrow(/made with methods/);
    await rm(folder, { recursive: true });
  });

  it("is refused beside other positions and other streams", () => {
    const compose = (methods: string) => () => engine.compose(resolve(methods));
    expect(compose("attention-buckets+harpe")).toThrow(/each sets how positions enter/);
    expect(compose("attention-buckets(layers=0)+attention-buckets(layers=1)")).toThrow(
      /in parallel streams of its own/,
    );
  });
});

describe("the search for bases", () => {
  it("starts from the pair that covers one another best and goes on with distinct ones of the grid", () => {
    const grid = { dims: 64, min: 10000, max: 16000, step: 500 };
    const pairs = (a: number, b: number) => {
      const [x, y] = [extrema(a, 64), extrema(b, 64)];
      const near = (p: readonly number[], v: readonly number[]) =>
        p.reduce((n, at) => n + v.filter((other) => Math.abs(other - at) <= 3).length, 0);
      return near(x.peaks, y.valleys) + near(x.valleys, y.peaks);
    };
    const all = Array.from({ length: 13 }, (_, i) => 10000 + i * 500);
    const most = Math.max(...all.flatMap((a) => all.filter((b) => b > a).map((b) => pairs(a, b))));
    const [first, second] = bucketBases({ ...grid, count: 2 });
    expect(pairs(first, second)).toBe(most);
    const found = bucketBases({ ...grid, count: 5 });
    expect(new Set(found).size).toBe(5);
    expect(found).toEqual(expect.arrayContaining([first, second]));
    for (const base of found) expect(all).toContain(base);
    expect(() => bucketBases({ ...grid, count: 14 })).toThrow(/14 bases of the 13 between/);
  });
});
