import { existsSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { engineFor, randomCheckpoint, someIds } from "../../../test/random-checkpoint.js";
import { repeated, STORIES, STORY } from "../../../test/trained-stories.js";
import type { Model } from "../../engine/api.js";
import type { Engine } from "../../engine/engine.js";
import type { AttachedMethod, Hooks, ModelShape, RotaryPlan } from "../../engine/hooks.js";
import { rotate } from "../../engine/rotary.js";
import { load } from "../../load.js";
import { resolve } from "../catalog.js";
import { full } from "../full.js";
import { entropy } from "../observers/reducers.js";
import { PlainLayer } from "../plain.js";
import { streamingLlm } from "../streaming/streaming-llm.js";
import { maxDifference, randomRows, sliceRows } from "../testing.js";
import { entropyAbf } from "./entropy-abf.js";
import { evenBases, harpe, headPlan, searchBases } from "./harpe.js";
import { logScale } from "./plans.js";
import { ropeScaling, scaledPlan } from "./rope-scaling.js";
import { selfExtend } from "./self-extend.js";
import { extrema, waveform } from "./waveform.js";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 8 };

function plainPlan(base: number, dims: number): RotaryPlan {
  const inverse = Float32Array.from({ length: dims / 2 }, (_, i) => base ** ((-2 * i) / dims));
  return { inverse, multiplier: 1, dims, base };
}

function hook(name: string, hooks: Hooks): AttachedMethod {
  return { name, spec: name, hooks };
}

/** Logits of a prompt's rows and of the decoded rows after it. */
async function logits(engine: Engine, methods: AttachedMethod[], ids: readonly number[], prompt: number) {
  const { vocab } = engine.config;
  const out = new Float32Array(ids.length * vocab);
  const sequence = engine.sequence(engine.compose(methods));
  const onLogits = (first: number, _n: number, data: Float32Array) => out.set(data, first * vocab);
  await engine.prefill(sequence, ids.slice(0, prompt), { wanted: "all", onLogits, reserve: ids.length - prompt });
  for (let i = prompt; i < ids.length; i++) out.set((await engine.decode([{ sequence, id: ids[i] }]))[0], i * vocab);
  sequence.close();
  return out;
}

describe("rope-scaling", () => {
  const sizes = { maxPositions: 256 };
  const ids = someIds(90, 384);
  let plain: Engine;
  beforeAll(async () => {
    plain = await engineFor(randomCheckpoint("llama", sizes));
  });
  afterAll(() => plain.close());

  it.each([
    ["linear", { factor: 3 }, "linear,factor=3"],
    ["yarn", { factor: 4, original_max_position_embeddings: 64 }, "yarn,factor=4,original=64"],
    [
      "llama3",
      { factor: 8, original_max_position_embeddings: 64, low_freq_factor: 1, high_freq_factor: 4 },
      "llama3,factor=8,original=64",
    ],
    [
      "longrope",
      {
        factor: 4,
        original_max_position_embeddings: 64,
        short_factor: [1, 1, 1, 1, 1, 1, 1, 1],
        long_factor: [1, 1.5, 2, 3, 4, 5, 6, 7],
      },
      "longrope,factor=4,original=64,long=[1,1.5,2,3,4,5,6,7]",
    ],
  ])("%s attached is %s in the config", async (type, fields, parameters) => {
    const rope_scaling = { rope_type: type, ...fields };
    const engine = await engineFor(randomCheckpoint("llama", sizes, { rope_scaling }));
    const wanted = await logits(engine, [], ids, 80);
    await engine.close();
    const methods = resolve(`rope-scaling(type=${parameters})`);
    expect(maxDifference(await logits(plain, methods, ids, 80), wanted)).toBeLessThan(1e-4);
    expect(maxDifference(await logits(plain, [], ids, 80), wanted)).toBeGreaterThan(1e-2);
  });

  it("dynamic follows the length that a sequence begins with", async () => {
    const rope_scaling = { rope_type: "dynamic", factor: 2 };
    const long = someIds(70, 384);
    const engine = await engineFor(randomCheckpoint("llama", { maxPositions: 48 }, { rope_scaling }), { context: 256 });
    const wanted = await logits(engine, [], long, 60);
    await engine.close();
    const methods = resolve("rope-scaling(type=dynamic,factor=2,original=48)");
    expect(maxDifference(await logits(plain, methods, long, 60), wanted)).toBeLessThan(1e-4);
    // within the trained length nothing changes
    const short = long.slice(0, 40);
    expect(maxDifference(await logits(plain, methods, short, 30), await logits(plain, [], short, 30))).toBe(0);
  });

  const model = { maxPositions: 4096 } as ModelShape;
  const scaled = (plan: RotaryPlan, values: Record<string, unknown>, length = 0) =>
    scaledPlan(plan, { ...DEFAULTS, ...values } as Parameters<typeof scaledPlan>[1], model, length);
  const DEFAULTS = { factor: 4, betaFast: 32, betaSlow: 1, truncate: true, low: 1, high: 4, short: 1, partial: 1 };

  it("changes nothing at factor 1, of whatever plan", () => {
    const own = {
      ...plainPlan(10000, 128),
      multiplier: 1.25,
      inverse: plainPlan(10000, 128).inverse.map((f) => f / 3),
    };
    for (const type of ["linear", "ntk", "dynamic", "yarn", "llama3", "longrope", "proportional", "factors"]) {
      const plan = scaled(own, { type, factor: 1, long: 1 }, 4096);
      for (const [i, f] of plan.inverse.entries()) expect(f / own.inverse[i]).toBeCloseTo(1, 6);
      expect(plan.multiplier).toBe(1.25);
    }
  });

  it("has the sheet's numbers: NTK's base, YaRN's ramp and factor, proportional's resting pairs", () => {
    const own = plainPlan(10000, 128);
    const ntk = scaled(own, { type: "ntk" });
    expect(ntk.inverse[10]).toBeCloseTo(40889.94 ** (-20 / 128), 6);
    const yarn = scaled(own, { type: "yarn" });
    const ratio = [20, 21, 30, 40, 46].map((i) => yarn.inverse[i] / own.inverse[i]);
    for (const [i, wanted] of [1, 0.971154, 0.711538, 0.423077, 0.25].entries())
      expect(ratio[i]).toBeCloseTo(wanted, 5);
    expect(yarn.multiplier).toBeCloseTo(1.138629, 6);
    const half = scaled(own, { type: "proportional", partial: 0.5, factor: 1 });
    expect([...half.inverse.subarray(32)].every((f) => f === 0)).toBe(true);
    expect([...half.inverse.subarray(0, 32)]).toEqual([...own.inverse.subarray(0, 32)]);
  });

  it("linear by s is the plain rotation at s times smaller positions", () => {
    const own = plainPlan(10000, 8);
    const [x, y] = [randomRows(1, SHAPE, 8).q, randomRows(1, SHAPE, 8).q];
    rotate(x, 4, 8, [84], scaled(own, { type: "linear", factor: 4 }));
    rotate(y, 4, 8, [21], own);
    expect(maxDifference(x, y)).toBeLessThan(1e-6);
  });

  it("yarn's factor on cos and sin is its square on logits", async () => {
    const rows = randomRows(12, SHAPE, 9);
    const scores = async (attention?: number) => {
      let seen = new Float32Array(0);
      const look = hook("look", {
        select: async (step) => {
          seen = new Float32Array(await step.score());
          return [{}];
        },
      });
      const attached = ropeScaling({ type: "yarn", factor: 4, original: 64, attention });
      await new PlainLayer(SHAPE, [attached, look]).step(rows);
      return seen.map((s) => (Number.isFinite(s) ? s : 0));
    };
    const att = 0.1 * Math.log(4) + 1;
    expect(
      maxDifference(
        await scores(),
        (await scores(1)).map((s) => att * att * s),
      ),
    ).toBeLessThan(1e-5);
  });

  it("alibi: without content a head's weights fall by exp(-slope) a token, in the prompt and while decoding", async () => {
    const tokens = 12;
    const shape = { heads: 8, kvHeads: 2, headDim: 4 };
    const rows = randomRows(tokens, shape);
    rows.q.fill(0);
    const layer = new PlainLayer(shape, [ropeScaling({ type: "alibi" })]);
    const got = [await layer.step(sliceRows(rows, tokens, 0, 9))];
    for (let t = 9; t < tokens; t++) got.push(await layer.step(sliceRows(rows, tokens, t, t + 1)));
    for (const [t, head] of [
      [3, 0],
      [8, 7],
      [10, 3],
    ]) {
      const slope = 2 ** -(head + 1);
      const weights = Array.from({ length: t + 1 }, (_, j) => Math.exp(-slope * (t - j)));
      const total = weights.reduce((a, b) => a + b);
      const kv = Math.floor(head / 4);
      const wanted = weights.reduce((sum, w, j) => sum + (w / total) * rows.v[(j * 2 + kv) * 4 + 1], 0);
      const out = t < 9 ? got[0].subarray(t * 32) : got[t - 8];
      expect(out[head * 4 + 1]).toBeCloseTo(wanted, 5);
    }
    // not rotated: queries and keys that agree do so at every distance
    const same = randomRows(2, shape);
    const logit: number[] = [];
    const look = hook("look", {
      select: async (step) => {
        logit.push(...(await step.score()));
        return [{}];
      },
    });
    same.q.set(same.q.subarray(0, 32), 32);
    same.k.set(same.k.subarray(0, 8), 8);
    await new PlainLayer(shape, [ropeScaling({ type: "alibi" }), look]).step(same);
    expect(logit[2]).toBeCloseTo(logit[3], 6);
  });

  it("refuses what it cannot do", () => {
    expect(() => new PlainLayer(SHAPE, [ropeScaling()], { rotaryBase: null })).toThrow(/changes rotary positions/);
    expect(() => new PlainLayer(SHAPE, [ropeScaling({ type: "longrope" })])).toThrow(/needs the divisors/);
    expect(() => new PlainLayer(SHAPE, [ropeScaling({ type: "llama3", low: 4, high: 2 })])).toThrow(/more than low/);
    expect(() => scaled(plainPlan(10000, 8), { type: "factors", long: [1, 2] })).toThrow(/2 divisors.*4 pairs/);
    expect(() => new PlainLayer(SHAPE, [ropeScaling(), selfExtend()])).toThrow(
      /rope-scaling and self-extend cannot act together in layer 0: each sets how positions enter/,
    );
  });
});

describe("entropy-abf", () => {
  it("scales queries by 1, 1, 1.0833, 1.1667 at 0, 4095, 8191, 16383 for c = 4096", () => {
    const wanted = [1, 1, 1.0833, 1.1667];
    for (const [i, p] of [0, 4095, 8191, 16383].entries()) expect(logScale(p, 4096)).toBeCloseTo(wanted[i], 4);
  });

  it("is full attention with the model's base up to the trained length, and in the first layers", async () => {
    const rows = randomRows(30, SHAPE);
    const wanted = await new PlainLayer(SHAPE, [full()]).step(rows);
    const run = (method: AttachedMethod) => new PlainLayer(SHAPE, [method]).step(rows);
    const own = { base: "own", exemptLayers: 0 } as const;
    expect(maxDifference(await run(entropyAbf({ ...own, trained: 30 })), wanted)).toBe(0);
    expect(maxDifference(await run(entropyAbf({ base: "own", trained: 4 })), wanted)).toBe(0);
    expect(maxDifference(await run(entropyAbf({ ...own, trained: 4 })), wanted)).toBeGreaterThan(1e-2);
  });

  it("scales logits by the query's position, whatever was evicted, with the rotation of the new base", async () => {
    const tokens = 40;
    const rows = randomRows(tokens, SHAPE);
    const queries = async (...methods: AttachedMethod[]) => {
      const seen: Float32Array[] = [];
      const look = hook("look", {
        select: (step) => {
          seen.push(step.q.slice());
          return [{}];
        },
      });
      const layer = new PlainLayer(SHAPE, [...methods, look]);
      await layer.step(sliceRows(rows, tokens, 0, 30));
      for (let t = 30; t < tokens; t++) await layer.step(sliceRows(rows, tokens, t, t + 1));
      return seen.at(-1) as Float32Array;
    };
    const attached = entropyAbf({ base: 50000, trained: 8, exemptLayers: 0 });
    const all = await queries(attached);
    const evicted = await queries(attached, streamingLlm({ sinks: 2, window: 6, positions: "true" }));
    expect(maxDifference(all, evicted)).toBe(0);
    const wanted = rows.q.slice(39 * 32);
    rotate(wanted, 4, 8, [39], plainPlan(50000, 8));
    const lambda = Math.log(40) / Math.log(8);
    expect(
      maxDifference(
        all,
        wanted.map((x) => x * lambda),
      ),
    ).toBeLessThan(1e-6);
  });
});

describe("harpe", () => {
  it("is plain rotary where all bases are equal, and depends on distance only where they are not", async () => {
    const rows = randomRows(20, SHAPE);
    const equal = await new PlainLayer(SHAPE, [harpe({ min: 50000, max: 50000, strategy: "ascending" })]).step(rows);
    expect(maxDifference(equal, await new PlainLayer(SHAPE, [full()], { rotaryBase: 50000 }).step(rows))).toBe(0);
    const plan = headPlan(plainPlan(10000, 8), [1000, "own", 30000]);
    const [q, k] = [randomRows(1, { heads: 3, kvHeads: 3, headDim: 8 }).q, randomRows(2, SHAPE, 5).q.slice(0, 24)];
    const products = (at: number, from: number) => {
      const [x, y] = [q.slice(), k.slice()];
      rotate(x, 3, 8, [at], plan);
      rotate(y, 3, 8, [from], plan);
      return [0, 1, 2].map((h) => x.subarray(h * 8, h * 8 + 8).reduce((s, a, d) => s + a * y[h * 8 + d], 0));
    };
    for (const [h, p] of products(50, 20).entries()) expect(p).toBeCloseTo(products(130, 100)[h], 4);
    // each head as if the whole model had its base
    for (const [h, base] of [1000, 10000, 30000].entries()) {
      const [x, y] = [q.slice(h * 8, h * 8 + 8), k.slice(h * 8, h * 8 + 8)];
      rotate(x, 1, 8, [50], plainPlan(base, 8));
      rotate(y, 1, 8, [20], plainPlan(base, 8));
      expect(products(50, 20)[h]).toBeCloseTo(
        x.reduce((s, a, d) => s + a * y[d], 0),
        5,
      );
    }
  });

  it("moves with the heads: bases and projections exchanged together give the outputs exchanged", async () => {
    const rows = randomRows(16, SHAPE);
    const swap = (x: Float32Array, heads: number) => {
      const size = (heads / 2) * 8;
      return x.map((_, i) => x[i - (i % (2 * size)) + ((i + size) % (2 * size))]);
    };
    const swapped = { q: swap(rows.q, 4), k: swap(rows.k, 2), v: swap(rows.v, 2) };
    const range = { min: 1000, max: 200000 };
    const up = await new PlainLayer(SHAPE, [harpe({ ...range, strategy: "ascending" })]).step(rows);
    const both = await new PlainLayer(SHAPE, [harpe({ ...range, strategy: "descending" })]).step(swapped);
    expect(maxDifference(swap(both, 4), up)).toBe(0);
    const alone = await new PlainLayer(SHAPE, [harpe({ ...range, strategy: "descending" })]).step(rows);
    expect(maxDifference(alone, up)).toBeGreaterThan(1e-2);
  });

  it("spreads bases evenly and finds distinct ones on the grid", () => {
    expect(evenBases(1e6, 5e6, 8)[1]).toBeCloseTo(1571428.57, 1);
    expect(evenBases(1e6, 5e6, 8).at(-1)).toBe(5e6);
    for (const distance of ["nearest", "all"] as const) {
      const found = searchBases({ dims: 64, count: 6, min: 1e6, max: 2e6, stride: 5e4, distance });
      expect(found[0]).toBe(1e6);
      expect(new Set(found).size).toBe(6);
      for (const base of found) expect((base - 1e6) % 5e4).toBe(0);
    }
    expect(() => searchBases({ dims: 64, count: 9, min: 10, max: 20, stride: 5 })).toThrow(/2 bases lie between/);
    expect(() => resolve("harpe(min=2000,max=1000)")[0].hooks.position?.(step(plainPlan(10000, 8)))).toThrow(
      /at least min/,
    );
  });

  it("finds a waveform's envelope: peaks that nothing after them exceeds, valleys the other way round", () => {
    expect(waveform(10000, 128, 0, 1)[0]).toBeCloseTo(Math.sqrt(128), 10);
    expect(waveform(10000, 128, 1, 2)[0]).toBeCloseTo(10.977, 3);
    expect(waveform(20000, 128, 1, 2)[0]).toBeCloseTo(10.997, 3);
    const { peaks, valleys } = extrema(10000, 128);
    const wave = waveform(10000, 128, 1000, 4090);
    expect(peaks.length).toBeGreaterThan(1);
    for (const p of peaks) {
      const after = wave.subarray(p - 1000, p - 500);
      expect(wave[p - 1000]).toBe(Math.max(...after));
    }
    for (const p of valleys) {
      const before = wave.subarray(Math.max(0, p - 1499), p - 999);
      expect(wave[p - 1000]).toBe(Math.min(...before));
    }
    expect([...valleys]).toEqual([...valleys].sort((a, b) => a - b));
  });
});

function step(plan: RotaryPlan) {
  const model = { kvHeads: 2, maxPositions: 512 } as ModelShape;
  const at = { layer: 0, phase: "decode", rows: 1, positions: Int32Array.of(0), firstRow: 0, totalRows: 1 } as const;
  return { ...at, model, plan, length: 1, stream: 0, state: undefined };
}

/** Self-Extend's relative position, as the paper has it. */
function relative(i: number, j: number, group: number, window: number): number {
  if (i - j < window) return i - j;
  return Math.floor(i / group) - Math.floor(j / group) + window - Math.floor(window / group);
}

describe("self-extend", () => {
  it("places keys as the sheet's tables have it", () => {
    const placed = (i: number, group: number, window: number) => {
      const { positions: _, ...rest } = step(plainPlan(10000, 8));
      const positions = Int32Array.from({ length: i + 1 }, (_, j) => j);
      const result = selfExtend({ group, window }).hooks.position?.({ ...rest, rows: i + 1, positions });
      const { key, query, near } = result as Required<NonNullable<typeof result>>;
      return [...positions].map((j) => (i - j < near.window ? i - j : query[i] - key[j]));
    };
    expect(placed(11, 2, 4)).toEqual([7, 7, 6, 6, 5, 5, 4, 4, 3, 2, 1, 0]);
    expect(placed(15, 4, 4)).toEqual([6, 6, 6, 6, 5, 5, 5, 5, 4, 4, 4, 4, 3, 2, 1, 0]);
    const far = placed(300, 8, 40);
    expect(Math.max(...far)).toBeLessThanOrEqual(40 + (301 - 40) / 8 + 1);
    expect(far.every((r, j) => j === 0 || r <= far[j - 1])).toBe(true);
    expect(far).toEqual(far.map((_, j) => relative(300, j, 8, 40)));
  });

  it("is full attention with groups of one, and while everything is near", async () => {
    const rows = randomRows(40, SHAPE);
    const wanted = await new PlainLayer(SHAPE, [full()]).step(rows);
    const run = (method: AttachedMethod) => new PlainLayer(SHAPE, [method]).step(rows);
    expect(maxDifference(await run(selfExtend({ group: 1, window: 4 })), wanted)).toBe(0);
    expect(maxDifference(await run(selfExtend({ group: 4, window: 40 })), wanted)).toBeLessThan(1e-5);
    expect(maxDifference(await run(selfExtend({ group: 4, window: 8 })), wanted)).toBeGreaterThan(1e-2);
  });

  // windows of the model's own and soft-capped logits in gemma2; partial rotation in gpt-neox
  it.each([
    ["llama", "float32", 3, 20],
    ["llama", "int8", 4, 6],
    ["gemma2", "float32", 2, 4],
    ["gpt-neox", "float32", 5, 7],
  ] as const)(
    "%s, cache %s: equals the paper's formula in prompts, turns and decoding (G %i, W %i)",
    async (...setting) => {
      const [family, cache, group, window] = setting;
      const checkpoint = randomCheckpoint(family, { maxPositions: 128 });
      const { heads, kvHeads, headDim, attention, layers } = checkpoint.config;
      const engine = await engineFor(checkpoint, { cache });
      const plans: RotaryPlan[] = [];
      const seen = Array.from({ length: layers }, () => ({
        q: [] as number[],
        k: [] as number[],
        v: [] as number[],
        out: [] as number[],
      }));
      const spy = hook("spy", {
        activations: ({ q, k, v, layer }) => {
          seen[layer].q.push(...q);
          seen[layer].k.push(...k);
          seen[layer].v.push(...v);
        },
        heads: ({ heads: out, layer }) => void seen[layer].out.push(...out),
      });
      const attached = selfExtend({ group, window });
      const { position } = attached.hooks;
      const watched = {
        ...attached,
        hooks: {
          ...attached.hooks,
          position: (s: Parameters<NonNullable<typeof position>>[0]) => {
            if (s.plan) plans[s.layer] = s.plan;
            return position?.(s);
          },
        },
      };
      const ids = someIds(96, 384);
      const sequence = engine.sequence(engine.compose([watched, spy]));
      let at = 0;
      for (const rows of [40, 5, 1, 30])
        await engine.prefill(sequence, ids.slice(at, (at += rows)), { wanted: "none" });
      for (; at < ids.length; at++) await engine.decode([{ sequence, id: ids[at] }]);
      sequence.close();
      await engine.close();
      const turned = (x: readonly number[], t: number, h: number, of: number, by: number, plan: RotaryPlan) => {
        const y = Float32Array.from(x.slice((t * of + h) * headDim, (t * of + h + 1) * headDim));
        rotate(y, 1, headDim, [by], plan);
        return y;
      };
      let worst = 0;
      for (let layer = 0; layer < layers; layer++) {
        const { q, k, v, out } = seen[layer];
        const own = attention.windowLayers[layer] ? (attention.window ?? ids.length) : ids.length;
        for (let i = 20; i < ids.length; i += 5)
          for (let h = 0; h < heads; h++) {
            const kv = Math.floor((h * kvHeads) / heads);
            const keys = Array.from({ length: i + 1 }, (_, j) => j).filter((j) => i - j < own);
            const weights = keys.map((j) => {
              const x = turned(q, i, h, heads, relative(i, j, group, window), plans[layer]);
              const y = turned(k, j, kv, kvHeads, 0, plans[layer]);
              const logit = x.reduce((s, a, d) => s + a * y[d], 0) * attention.scale;
              return Math.exp(attention.softcap ? attention.softcap * Math.tanh(logit / attention.softcap) : logit);
            });
            const total = weights.reduce((a, b) => a + b);
            for (let d = 0; d < headDim; d++) {
              const wanted = keys.reduce(
                (s, j, n) => s + (weights[n] / total) * v[(j * kvHeads + kv) * headDim + d],
                0,
              );
              worst = Math.max(worst, Math.abs(out[(i * heads + h) * headDim + d] - wanted));
            }
          }
      }
      expect(worst).toBeLessThan(cache === "int8" ? 0.1 : 1e-4);
    },
  );

  it("composes with a selection, an eviction and reading rows; the plain layer agrees with the engine's parts", async () => {
    const checkpoint = randomCheckpoint("llama", { layers: 1, maxPositions: 128 });
    const { heads, kvHeads, headDim } = checkpoint.config;
    const engine = await engineFor(checkpoint);
    const taken = { q: [] as number[], k: [] as number[], v: [] as number[], out: [] as number[] };
    const spy = hook("spy", {
      activations: ({ q, k, v }) => {
        taken.q.push(...q);
        taken.k.push(...k);
        taken.v.push(...v);
      },
      heads: ({ heads: out }) => void taken.out.push(...out),
    });
    // every third entry and the newest, chosen anew at each step
    const third = hook("third", {
      select: ({ view, rows }) => {
        const n = view.length(0);
        const tokens = Int32Array.from({ length: n }, (_, i) => i).filter((i) => i % 3 === 0 || i >= n - rows);
        return [{ entries: { tokens } }];
      },
    });
    const evict = streamingLlm({ sinks: 3, window: 30, positions: "true" });
    const rowwise = hook("rows", { scores: () => undefined });
    for (const methods of [[third], [evict], [evict, third], [third, rowwise], [evict, third, rowwise]]) {
      for (const list of Object.values(taken)) list.length = 0;
      const all = [selfExtend({ group: 3, window: 12 }), ...methods];
      const sequence = engine.sequence(engine.compose([...all, spy]));
      const ids = someIds(80, 384);
      await engine.prefill(sequence, ids.slice(0, 60), { wanted: "none" });
      await engine.prefill(sequence, ids.slice(60, 64), { wanted: "none" });
      for (const id of ids.slice(64)) await engine.decode([{ sequence, id }]);
      sequence.close();
      const plain = new PlainLayer({ heads, kvHeads, headDim }, all, { blockRows: 60 });
      const f32 = (x: number[], n: number, from: number, to: number) =>
        Float32Array.from(x.slice((x.length / n) * from, (x.length / n) * to));
      const wanted: number[] = [];
      for (const [from, to] of [[0, 60], [60, 64], ...Array.from({ length: 16 }, (_, i) => [64 + i, 65 + i])]) {
        const cut = (x: number[]) => f32(x, 80, from, to);
        wanted.push(...(await plain.step({ q: cut(taken.q), k: cut(taken.k), v: cut(taken.v) })));
      }
      // of a prompt without readers of rows only the last row is attended in the last layer
      const from = (methods.includes(rowwise) ? 0 : 59) * heads * headDim;
      expect(maxDifference(taken.out.slice(from), wanted.slice(from))).toBeLessThan(1e-4);
    }
    await engine.close();
  });

  it("refuses a method that brings queries of its own", async () => {
    const engine = await engineFor(randomCheckpoint("llama", { layers: 1 }));
    const sequence = engine.sequence(
      engine.compose([selfExtend({ group: 2, window: 4 }), streamingLlm({ window: 8 })]),
    );
    await expect(engine.prefill(sequence, someIds(30, 384), { wanted: "last" })).rejects.toThrow(/queries of its own/);
    sequence.close();
    await engine.close();
  });
});

describe.skipIf(!existsSync(STORIES))("positions on a trained model, up to three times its length", () => {
  let model: Model;
  let ids: readonly number[];
  let length = 0;
  beforeAll(async () => {
    const options = { worker: false, precision: "float32", cache: "float32", context: 4096, threads: 1 } as const;
    model = await load(STORIES, options);
    // four copies; the first lies within the 512 positions that were trained
    ({ ids, length } = repeated(model.prompt(STORY).ids, 4));
  });
  afterAll(() => model?.close());

  /** Nats a token in the first copy and in the last of `copies`. */
  async function losses(attention: string, copies = 4): Promise<[number, number]> {
    const { tokens } = await model.with(attention).score(ids.slice(0, copies * length + 1));
    const mean = (copy: number) =>
      tokens
        .slice(-length * (copies - copy))
        .slice(0, length)
        .reduce((sum, t) => sum - t.logprob, 0) / length;
    return [mean(0), mean(copies - 1)];
  }

  it("yarn and dynamic hold where plain rotation loses; linear costs more than yarn", async () => {
    const [near, far] = await losses("full");
    expect(far - near).toBeGreaterThan(0.2);
    const yarn = await losses("rope-scaling(type=yarn,factor=2)");
    expect(yarn[1] - yarn[0]).toBeLessThan(0.1);
    expect(yarn[1]).toBeLessThan(far - 0.1);
    // chosen for the length that the text has, with nothing beside it
    expect((await losses("rope-scaling(type=dynamic,factor=1)"))[1]).toBeLessThan(far - 0.05);
    expect((await losses("rope-scaling(type=linear,factor=2)"))[1]).toBeGreaterThan(yarn[1] + 0.5);
  });

  it("self-extend stays where the text began", async () => {
    const [near, far] = await losses("self-extend(group=8,window=128)", 3);
    expect(Math.abs(far - near)).toBeLessThan(0.05);
    expect(far).toBeLessThan((await losses("full", 3))[1] - 0.05);
  });

  it("entropy-abf lets entropy grow less behind its exempt layers", async () => {
    const rise = async (attention: string) => {
      const of = async (copies: number) => {
        const end = copies * length;
        const { nats } = await model
          .with(attention)
          .observe(ids.slice(0, end), { nats: entropy({ rows: { from: end - 64 } }) });
        return Array.from({ length: nats.layers }, (_, layer) =>
          Array.from({ length: nats.heads }, (_, head) => nats.at({ layer, head })).reduce((a, b) => a + b, 0),
        );
      };
      const [short, long] = [await of(1), await of(3)];
      return long.map((x, l) => x - short[l]);
    };
    const [plain, scaled] = [await rise("full"), await rise("entropy-abf(base=own)")];
    for (const layer of [0, 1]) expect(scaled[layer]).toBeCloseTo(plain[layer], 4);
    for (const layer of [2, 3, 4]) expect(scaled[layer]).toBeLessThan(plain[layer]);
  });

  it("harpe without training makes even a short text worse", async () => {
    for (const strategy of ["search", "ascending"])
      expect((await losses(`harpe(strategy=${strategy})`, 1))[0]).toBeGreaterThan((await losses("full", 1))[0] + 0.5);
  });
});
