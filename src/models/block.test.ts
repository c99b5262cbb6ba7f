import { describe, expect, it } from "vitest";
import { compile, type Segment, toFloats } from "../graph/index.js";
import { batchFeeds, buildModel, modelFeeds } from "./block.js";
import { FAMILIES, type FamilyName } from "./families.js";
import { randomConfig, randomWeights } from "./random.js";
import { tinyTokenizer } from "./tiny-tokenizer.js";

type Values = Record<string, { data: Float32Array; dims: readonly number[] }>;

async function run(segment: Segment, feeds: Parameters<Segment["run"]>[0]): Promise<Values> {
  return (await segment.run(feeds)) as unknown as Values;
}

function worst(a: Float32Array, b: Float32Array): number {
  expect(a.length).toBe(b.length);
  return a.reduce((max, x, i) => Math.max(max, Math.abs(x - b[i])), 0);
}

const ids = [5, 17, 3, 250, 99, 17, 3, 8, 41];

describe.each(Object.keys(FAMILIES) as FamilyName[])("%s", (family) => {
  const config = randomConfig(family);
  const weights = randomWeights(config, 2);
  const graph = buildModel(config);
  const feeds = modelFeeds(config, ids);

  it("gives in a batch of packed texts what each text gives alone", async () => {
    const alone = await compile({ inputs: graph.inputs, outputs: { logits: graph.logits } }, { weights, threads: 1 });
    const batched = buildModel(config, { batch: true });
    expect(batched.taps.get("pattern.0")?.shape).toEqual(["B", config.heads, "T", "T"]);
    const both = await compile({ inputs: batched.inputs, outputs: { l: batched.logits } }, { weights, threads: 1 });
    const texts = [ids, [4, 9, 2, 8], [7, 7, 60, 5, 1, 2, 3, 4, 90], [33, 12, 200, 6]]; // two a row, 13 tokens
    const row = (...list: number[][]) => ({
      ids: list.flat(),
      documents: list.flatMap((t, d) => t.map(() => 3 * d)),
      positions: list.flatMap((t) => t.map((_, i) => i)),
    });
    const [a, b] = [row(texts[0], texts[1]), row(texts[2], texts[3])];
    const batch = { rows: 2, length: 13, ids: [...a.ids, ...b.ids] };
    const places = { documents: [...a.documents, ...b.documents], positions: [...a.positions, ...b.positions] };
    const { l } = await run(both, batchFeeds(config, { ...batch, ...places }));
    let at = 0;
    for (const text of texts) {
      const { logits } = await run(alone, modelFeeds(config, text, 13));
      const size = logits.data.length;
      expect(worst(l.data.subarray(at, at + size), logits.data)).toBeLessThan(1e-4);
      at += size;
    }
    // without document numbers the second text of a row reads the first one too
    const { l: mixed } = await run(both, batchFeeds(config, { ...batch, positions: places.positions }));
    expect(worst(mixed.data, l.data)).toBeGreaterThan(1e-2);
    await alone.release();
    await both.release();
  });

  it("gives the same logits whole and cut at heads and residual", async () => {
    const whole = await compile({ inputs: graph.inputs, outputs: { logits: graph.logits } }, { weights, threads: 1 });
    const { logits } = await run(whole, feeds);
    await whole.release();

    const tap = (name: string) => graph.taps.get(name) ?? graph.logits;
    let state: Values = {};
    for (let l = 0; l <= config.layers; l++) {
      // From the heads of the layer before to the projections of this one ...
      const inputs = l === 0 ? graph.inputs : { x_in: tap(`residual.${l - 1}`), h: tap(`heads.${l - 1}`) };
      const outputs =
        l === config.layers
          ? { logits: graph.logits }
          : { x: tap(`residual.${l}`), q: tap(`q.${l}`), k: tap(`k.${l}`), v: tap(`v.${l}`) };
      const used = l === 0 ? { ids: graph.ids, ...("positions" in inputs && { positions: inputs.positions }) } : inputs;
      const dense = await compile({ inputs: used, outputs }, { weights, threads: 1 });
      const dims = (dense.inputNames as string[]).map((name) => [name, l === 0 ? feeds[name] : state[name]] as const);
      const next = await run(dense, Object.fromEntries(dims));
      await dense.release();
      if (l === config.layers) {
        expect(worst(next.logits.data, logits.data)).toBeLessThan(1e-4);
        return;
      }
      // ... and from there through rotary and attention to its heads.
      const { cos, sin, cos_local, sin_local } = graph.inputs;
      const rotary = config.rotary ? { cos, sin, ...(cos_local && { cos_local, sin_local }) } : {};
      const cut = { q: tap(`q.${l}`), k: tap(`k.${l}`), v: tap(`v.${l}`), ...rotary };
      const attention = await compile({ inputs: cut, outputs: { h: tap(`heads.${l}`) } }, { weights, threads: 1 });
      const fed = attention.inputNames.map((name) => [name, next[name] ?? feeds[name]] as const);
      state = { x_in: next.x, ...(await run(attention, Object.fromEntries(fed))) };
      await attention.release();
    }
  });

  it("has taps that fit together", async () => {
    const names = [
      "residual.0",
      "mid.0",
      "mlp_out.0",
      "residual.1",
      "attn_out.0",
      "pattern.1",
      "logits.1",
      "embeddings",
    ];
    const outputs = Object.fromEntries(names.map((name) => [name, graph.taps.get(name) ?? graph.logits]));
    const segment = await compile({ inputs: graph.inputs, outputs }, { weights, threads: 1 });
    const at = await run(segment, feeds);
    await segment.release();
    const sum = (a: string, b: string): Float32Array => at[a].data.map((x, i) => x + at[b].data[i]);
    expect(worst(at["mid.0"].data, sum("residual.0", "attn_out.0"))).toBeLessThan(1e-5);
    expect(worst(at["residual.1"].data, sum("mid.0", "mlp_out.0"))).toBeLessThan(1e-5);
    expect(worst(at["residual.0"].data, at.embeddings.data)).toBe(0);
    const T = ids.length;
    for (let row = 0; row < config.heads * T; row++) {
      const i = row % T;
      const pattern = at["pattern.1"].data.subarray(row * T, (row + 1) * T);
      expect(pattern.reduce((a, b) => a + b)).toBeCloseTo(1, 5);
      const window = config.attention.windowLayers[1] ? (config.attention.window ?? T) : T;
      for (let j = 0; j < T; j++) {
        const hidden = j > i || i - j >= window;
        expect(at["logits.1"].data[row * T + j] === Number.NEGATIVE_INFINITY).toBe(hidden);
        if (hidden) expect(pattern[j]).toBe(0);
      }
    }
  });
});

describe("random models", () => {
  it("are the same for the same seed, on every machine", () => {
    const config = randomConfig("llama");
    const first = (seed: number, name: string): number[] =>
      Array.from(toFloats(randomWeights(config, seed).get(name)).subarray(0, 3));
    expect(first(1, "layers.0.q")).toEqual(first(1, "layers.0.q"));
    expect(first(1, "layers.0.q")).not.toEqual(first(2, "layers.0.q"));
    expect(first(1, "layers.0.q")).not.toEqual(first(1, "layers.0.k"));
    expect(first(1, "layers.0.q")).toEqual([-0.04493839293718338, 0.21809858083724976, -0.09186149388551712]);
  });

  it("have a tokenizer that takes any text apart and puts it together", () => {
    const tokenizer = tinyTokenizer(384);
    expect(tokenizer.vocabSize).toBe(384);
    for (const text of ["The cat went down to the water.", "Grüße, 世界 🌍", "\n\t  x"]) {
      expect(tokenizer.decode(tokenizer.encode(text).ids)).toBe(text);
    }
    expect(tokenizer.encode("the water").ids.length).toBeLessThan(7);
  });
});
