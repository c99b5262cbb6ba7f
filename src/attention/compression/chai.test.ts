import { existsSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { load } from "../../load.js";
import { printCalibration } from "../calibration.js";
import { full } from "../full.js";
import { method } from "../method.js";
import { PlainLayer } from "../plain.js";
import { maxDifference, normals, randomRows, sliceRows } from "../testing.js";
import { chai, layerClusters } from "./chai.js";
import { clusterCounts, clusterHeads, cosineDistances, elbow, inertia } from "./head-clusters.js";

const STORIES = new URL("../../../../shared/checkpoints/stories260K", import.meta.url).pathname;
const SHAPE = { heads: 4, kvHeads: 4, headDim: 8 };

describe("clusters of heads", () => {
  it("are the sheet's: (1, 0), (0.9, 0.1) and (0, 1) in two clusters are {0, 1} and {2}", () => {
    const distances = cosineDistances(Float32Array.of(1, 0, 0.9, 0.1, 0, 1), 3);
    expect(distances[1]).toBeCloseTo(1 - 0.9 / Math.hypot(0.9, 0.1), 6);
    expect([...clusterHeads(distances, 2)]).toEqual([0, 0, 2]);
    expect([...clusterHeads(distances, 3)]).toEqual([0, 1, 2]);
    expect([...clusterHeads(distances, 1)]).toEqual([0, 0, 0]);
  });

  it("join by the average of distances, not by the nearest members", () => {
    // on a line: 0, 1, 2.1, 3.2, 9, 10: single linkage would chain the first four before 9 and 10
    const at = [0, 1, 2.1, 3.4, 9, 9.9];
    const distances = Float64Array.from(at.flatMap((a) => at.map((b) => Math.abs(a - b))));
    expect([...clusterHeads(distances, 2)]).toEqual([0, 0, 0, 0, 4, 4]);
    expect([...clusterHeads(distances, 3)]).toEqual([0, 0, 2, 2, 4, 4]);
  });

  it("k-means by products alone: two far pairs have an error of their own spread", () => {
    const points = [
      [0, 0],
      [0, 2],
      [10, 0],
      [10, 4],
    ];
    const gram = Float64Array.from(points.flatMap((a) => points.map((b) => a[0] * b[0] + a[1] * b[1])));
    expect(inertia(gram, 1)).toBeCloseTo(100 + 2.25 + 0.25 + 2.25 + 6.25, 6);
    expect(inertia(gram, 2)).toBeCloseTo(2 + 8, 6);
    expect(inertia(gram, 4)).toBeCloseTo(0, 6);
  });

  it("end where the error stops falling", () => {
    expect(elbow([10, 1, 0.5, 0.2, 0], 0.1)).toBe(2);
    expect(elbow([8, 6, 4, 2, 0], 0.1)).toBe(5); // no elbow: all heads stay
    expect(elbow([0, 0, 0], 0.1)).toBe(1);
  });
});

describe("chai", () => {
  const tokens = 40;
  const rows = randomRows(tokens, SHAPE, 31);
  const run = async (attached: ReturnType<typeof chai>, sizes: readonly number[], of = rows) => {
    const layer = new PlainLayer(SHAPE, [attached], { blockRows: 9 });
    const out: number[] = [];
    let at = 0;
    for (const n of sizes) out.push(...(await layer.step(sliceRows(of, tokens, at, (at += n)))));
    return out;
  };

  it("is full attention with as many clusters as heads, in the probe's rows, and in texts that end there", async () => {
    const wanted = await new PlainLayer(SHAPE, [full()]).step(rows);
    expect(maxDifference(await run(chai({ clusters: 4, first: 0 }), [tokens]), wanted)).toBeLessThan(1e-6);
    const got = await run(chai({ clusters: 1, first: 0 }), [tokens]);
    expect(maxDifference(got.slice(0, 5 * 32), wanted.subarray(0, 5 * 32))).toBeLessThan(1e-6);
    expect(maxDifference(got.slice(5 * 32), wanted.subarray(5 * 32))).toBeGreaterThan(1e-2);
  });

  it("changes nothing by joining two heads with the same queries and keys", async () => {
    const twin = { q: rows.q.slice(), k: rows.k.slice(), v: rows.v };
    for (let t = 0; t < tokens; t++)
      for (const x of [twin.q, twin.k]) x.copyWithin((t * 4 + 2) * 8, t * 4 * 8, (t * 4 + 1) * 8);
    const wanted = await new PlainLayer(SHAPE, [full()]).step(twin);
    expect(maxDifference(await run(chai({ clusters: 3, first: 0 }), [tokens], twin), wanted)).toBeLessThan(1e-6);
    expect(maxDifference(await run(chai({ clusters: 2, first: 0 }), [tokens], twin), wanted)).toBeGreaterThan(1e-2);
  });

  it("gives the same whether the probe comes at once, in pieces or token by token", async () => {
    const attached = chai({ clusters: 2, first: 0 });
    const wanted = await run(attached, [tokens]);
    for (const sizes of [[3, 37], [2, 1, 1, 36], new Array<number>(tokens).fill(1), [30, 1, 1, 8]])
      expect(maxDifference(await run(attached, sizes), wanted)).toBeLessThan(1e-5);
  });

  it("takes the cluster's weights with each head's own values", async () => {
    const seen: Float32Array[] = [];
    const watch = method({ name: "watch", observe: (step) => void seen.push(step.weights.data.slice()) });
    const layer = new PlainLayer(SHAPE, [chai({ clusters: 1, first: 0 }), watch()]);
    const out = await layer.step(rows);
    const row = 30;
    const weights = (head: number) =>
      seen[0].subarray((head * tokens + row) * tokens, (head * tokens + row + 1) * tokens);
    for (const head of [1, 2, 3]) expect([...weights(head)]).toEqual([...weights(0)]);
    const wanted = Array.from({ length: 8 }, (_, d) =>
      weights(0).reduce((sum, w, s) => sum + w * rows.v[(s * 4 + 3) * 8 + d], 0),
    );
    expect(maxDifference(out.subarray((row * 4 + 3) * 8, (row * 4 + 4) * 8), wanted)).toBeLessThan(1e-5);
  });

  it("is LLaMA-7B's shipped setting by default, and takes a number for each layer", () => {
    const model = { layers: 32, heads: 32 } as Parameters<typeof layerClusters>[1];
    const shipped = layerClusters({ clusters: 1 / 8, first: 18 / 32, probe: 5 }, model);
    expect(shipped).toEqual(Array.from({ length: 32 }, (_, l) => (l < 18 ? 32 : 4)));
    expect(layerClusters({ clusters: [2, 99], first: 0, probe: 5 }, { ...model, layers: 2 })).toEqual([2, 32]);
    expect(() => new PlainLayer(SHAPE, [chai({ clusters: [1, 2] })])).toThrow(/2 numbers.*1 layers/);
  });
});

describe.skipIf(!existsSync(STORIES))("chai on stories260K", () => {
  it("loses the more the fewer clusters there are; finds a number for each layer", async () => {
    const model = await load(STORIES, { worker: false, precision: "float32", cache: "float32", threads: 2 });
    const told = await model.generate("Once upon a time", { maxTokens: 120, temperature: 0.7, seed: 3 }).result;
    const text = `Once upon a time${told.text}`;
    const found = await clusterCounts(model, [text], { madeBy: "the test" });
    expect(found.layers.length).toBe(5);
    for (const c of found.layers) expect(c).toBeGreaterThanOrEqual(1);
    expect(printCalibration(found)).toContain('"method": "chai"');
    const nats = async (attention: string) => -(await model.with(attention).score(text)).logprob;
    const dense = await nats("full");
    const six = await nats("chai(clusters=6,first=0)");
    const two = await nats("chai(clusters=2,first=0)");
    expect(six).toBeGreaterThan(dense);
    expect(two).toBeGreaterThan(six);
    // four clusters by lot: each head either stands for itself or takes the weights of one that does
    const byLot = (seed: number) => {
      const next = normals(seed);
      const standsFor = Array.from({ length: 5 }, () => {
        const order = [...next(8).entries()].sort((a, b) => a[1] - b[1]).map(([h]) => h);
        return Array.from({ length: 8 }, (_, h) => order[order.indexOf(h) % 4]);
      });
      return method({
        name: "by-lot",
        pattern({ layer, positions }, { data, heads, rows, keys }) {
          for (let t = 0; t < rows; t++)
            for (let h = 0; h < heads && positions[t] >= 5; h++) {
              const from = (standsFor[layer][h] * rows + t) * keys;
              data.copyWithin((h * rows + t) * keys, from, from + keys);
            }
        },
      })();
    };
    let lot = 0;
    for (const seed of [1, 2, 3, 4]) lot -= (await model.with(byLot(seed)).score(text)).logprob / 4;
    expect(await nats("chai(clusters=4,first=0)")).toBeLessThan(lot);
    await model.close();
  });
});
