import { existsSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { attentionRows, entropy, method, received, sinkRate, spanMass, streamingLlm } from "../src/attention/index.js";
import type { Model } from "../src/engine/api.js";
import { load } from "../src/load.js";

// 260K parameters, trained on stories at 512 tokens: small, but its attention was learnt, not made up
const STORIES = new URL("../../shared/checkpoints/stories260K", import.meta.url).pathname;
const TRAINED = 512;
const STARTS = ["Once upon a time", "One day", "There was a", "Tom and Lily", "A little dog", "The big bear"];

describe.skipIf(!existsSync(STORIES))("methods on a trained model", () => {
  let model: Model;
  /** Ten times the trained length: stories that the model tells one after another. */
  let stream: number[];
  let short: number[];

  beforeAll(async () => {
    model = await load(STORIES, { worker: false, precision: "float32", cache: "float32", context: 8192 });
    const stories = await Promise.all(
      Array.from({ length: 24 }, async (_, i) => {
        const start = STARTS[i % STARTS.length];
        const told = await model.generate(start, { maxTokens: 260, temperature: 0.7, seed: i + 1 }).result;
        return start + told.text;
      }),
    );
    stream = model.prompt(stories.join("\n")).ids.slice(0, 10 * TRAINED);
    expect(stream.length).toBe(10 * TRAINED);
    short = stream.slice(0, 200);
  });
  afterAll(async () => {
    await model?.close();
  });

  /** Mean negative log-probability of tokens [from, to) of the stream, as a prompt. */
  async function loss(attention: string, ranges: readonly (readonly [number, number])[]): Promise<number[]> {
    const { tokens } = await model.with(attention).score(stream);
    return ranges.map(([from, to]) => tokens.slice(from, to).reduce((sum, t) => sum - t.logprob, 0) / (to - from));
  }

  it("is dense attention while the budget covers the text: prompt rows and decoded tokens", async () => {
    const wanted = await model.logits(short, { rows: "all" });
    const text = await model.generate(short, { maxTokens: 40 }).result;
    for (const attention of [
      "full",
      "streaming-llm(sinks=4,window=236)",
      "streaming-llm(sinks=0,window=240,positions=true)",
      "streaming-llm(sinks=4,window=236,prompt=masked)",
      "streaming-llm(sinks=4,window=236,prompt=dense)",
      "h2o(heavy=120,recent=120)",
      "h2o(heavy=240,recent=0,variant=mask)",
      "snapkv(capacity=240)",
    ]) {
      const attached = model.with(attention);
      const got = await attached.logits(short, { rows: "all" });
      let worst = 0;
      for (let i = 0; i < wanted.length; i++) worst = Math.max(worst, Math.abs(got[i] - wanted[i]));
      // logits reach 10; 1e-5 of that is what two orders of summation differ by
      expect(worst, attention).toBeLessThan(1e-4);
      expect((await attached.generate(short, { maxTokens: 40 }).result).ids, attention).toEqual(text.ids);
    }
  });

  it("goes on at ten times the trained length with sinks and window, where dense attention breaks down", async () => {
    const first = [64, TRAINED] as const;
    const last = [9 * TRAINED, 10 * TRAINED] as const;
    const [denseFirst, denseLast] = await loss("full", [first, last]);
    expect(denseLast - denseFirst).toBeGreaterThan(3);
    const windows = await loss(
      "streaming-llm(sinks=4,window=252)",
      Array.from({ length: 9 }, (_, i) => [(i + 1) * 512, (i + 2) * 512] as const),
    );
    for (const nats of windows) expect(Math.abs(nats - windows[0])).toBeLessThan(0.35);
    // positions of the text itself pass the trained length, sinks or not
    const [, byTrue] = await loss("streaming-llm(sinks=4,window=252,positions=true)", [first, last]);
    expect(byTrue - windows[8]).toBeGreaterThan(3);
  });

  it("does not need sinks in a model that has none: the paper's collapse at sinks=0 is not seen here", async () => {
    const { sinks } = await model.observe(stream.slice(0, 64), { sinks: sinkRate() });
    expect(sinks.rate).toBe(0);
    const ranges = [[9 * TRAINED, 10 * TRAINED]] as const;
    const [without] = await loss("streaming-llm(sinks=0,window=256)", ranges);
    const [withSinks] = await loss("streaming-llm(sinks=4,window=252)", ranges);
    expect(Math.abs(without - withSinks)).toBeLessThan(0.05);
  });

  it("holds a constant cache over a long stream, evicting for real", async () => {
    const bytes: number[] = [];
    const reading = await model.with("streaming-llm(sinks=4,window=60)").read(stream.slice(0, 128));
    for (let at = 128; at < 1408; at += 128) {
      await reading.extend(stream.slice(at, at + 128));
      bytes.push(reading.bytes);
    }
    expect(Math.max(...bytes)).toBeLessThanOrEqual(1.05 * bytes[0]);
    const { cache_bytes, ids } = await reading.generate(stream.slice(1408, 1409), { maxTokens: 400, ignoreEos: true })
      .result;
    expect(ids.length).toBe(400);
    expect(cache_bytes).toBeLessThan(1.5 * bytes[0]);
    await reading.close();
    const dense = await model.read(stream.slice(0, 1408));
    expect(dense.bytes).toBeGreaterThan(10 * bytes[0]);
    await dense.close();
  });

  it("never reads an evicted token again", async () => {
    const read = new Map<string, Set<number>>();
    const watch = method({
      name: "watch",
      observe: (step) => {
        if (step.phase !== "decode") return;
        for (let kv = 0; kv < step.model.kvHeads; kv++) {
          const positions = step.keyPositions(kv);
          const now = new Set(positions);
          const key = `${step.layer}.${kv}`;
          const before = read.get(key);
          // the new token is the only one that was not there before
          if (before) expect([...now].filter((p) => !before.has(p))).toEqual([step.positions[0]]);
          read.set(key, now);
        }
      },
    });
    for (const attention of [
      "streaming-llm(sinks=2,window=30)",
      "h2o(heavy=16,recent=16)",
      "snapkv(capacity=32,window=8)",
    ]) {
      read.clear();
      await model.with(attention, watch()).generate(short, { maxTokens: 40, ignoreEos: true }).result;
      expect(read.size).toBe(20);
    }
  });

  it("keeps the tokens that the last rows look at most (snapkv), and those that all rows do (h2o)", async () => {
    const layer = 2;
    const at = { layer, head: 0 };
    const kept = new Map<string, Set<number>>();
    const watch = (name: string) =>
      method({
        name: "watch",
        observe: (step) => {
          if (step.phase === "decode" && step.layer === layer && !kept.has(name))
            kept.set(name, new Set(step.keyPositions(0)));
        },
      })();
    const first = { layers: [layer] };
    await model
      .with(`snapkv(capacity=40,window=8,kernel=1,layers=${layer})`, watch("snapkv"))
      .generate(short, { maxTokens: 2 }).result;
    await model.with(`h2o(heavy=32,recent=8,layers=${layer})`, watch("h2o")).generate(short, { maxTokens: 2 }).result;
    const { late, all } = await model.observe(short, {
      late: received({ ...first, rows: { from: 192 } }),
      all: received(first),
    });
    for (const [name, sums] of [
      ["snapkv", late],
      ["h2o", all],
    ] as const) {
      const group = [sums.at(at), sums.at({ layer, head: 1 })];
      const score = Float32Array.from({ length: 192 }, (_, s) => group[0][s] + group[1][s]);
      const best = [...score.keys()].sort((a, b) => score[b] - score[a]).slice(0, 32);
      const left = kept.get(name) ?? new Set();
      expect(best.filter((p) => !left.has(p))).toEqual([]);
      for (let p = 192; p < 200; p++) expect(left.has(p)).toBe(true);
      expect(left.size).toBe(41);
    }
  });

  it("observes exact rows and reduces them while they stream", async () => {
    const results = await model.observe(short, {
      rows: attentionRows({ layer: 1, head: 3, rows: "all" }),
      mass: spanMass([10, 20]),
      sums: received(),
      nats: entropy(),
      sinks: sinkRate(),
    });
    const map = await model.attention(short, { layer: 1, head: 3 });
    // layers that nobody looks at may run in another path, whose sums differ in the last bits
    for (let i = 0; i < map.data.length; i++) expect(Math.abs(results.rows.data[i] - map.data[i])).toBeLessThan(1e-5);
    const n = short.length;
    let mass = 0;
    const columns = new Float64Array(n);
    for (let t = 0; t < n; t++) {
      const row = map.data.subarray(t * n, (t + 1) * n);
      expect(row.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 5);
      for (let s = t + 1; s < n; s++) expect(row[s]).toBe(0);
      for (let s = 0; s < n; s++) columns[s] += row[s];
      if (t === n - 1) for (let s = 10; s < 20; s++) mass += row[s];
    }
    const at = { layer: 1, head: 3 };
    expect(results.mass.at(at)).toBeCloseTo(mass, 5);
    for (let s = 0; s < n; s++) expect(results.sums.at(at)[s]).toBeCloseTo(columns[s], 3);
    expect(results.nats.at(at)).toBeGreaterThan(0);
    expect(results.sinks.at(at)).toBeCloseTo(columns[0] / n, 5);
    expect(results.sinks.data.length).toBe(40);
  });

  it("shows 0 in a map for what a sparse method does not read", async () => {
    const sparse = model.with(streamingLlm({ sinks: 2, window: 10 }));
    const map = await sparse.attention(short, { layer: 3, head: 2 });
    for (const t of [5, 50, 199])
      for (let s = 0; s < 200; s++) {
        const read = s <= t && (s < 2 || t - s < 10);
        expect(map.data[t * 200 + s] > 0).toBe(read);
      }
  });

  it("attaches in milliseconds", async () => {
    await model.logits(short.slice(0, 8));
    const start = performance.now();
    const attached = model.with("streaming-llm(sinks=4,window=16)+snapkv(capacity=64)");
    await attached.logits(short.slice(0, 8));
    expect(performance.now() - start).toBeLessThan(500);
  });
});
