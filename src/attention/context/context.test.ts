import { existsSync, readFileSync } from "node:fs";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { checkpointOf, engineFor, randomCheckpoint, someIds } from "../../../test/random-checkpoint.js";
import { STORIES, STORY } from "../../../test/trained-stories.js";
import type { Model } from "../../engine/api.js";
import type { Engine } from "../../engine/engine.js";
import type { AttachedMethod, ModelShape, ObserveStep } from "../../engine/hooks.js";
import { load } from "../../load.js";
import { openCheckpoint, randomConfig, randomWeights } from "../../models/index.js";
import { resolve } from "../catalog.js";
import { spanMass } from "../observers/reducers.js";
import { maxDifference, normals } from "../testing.js";
import { attentionOrder, attnrank, slotProfile } from "./attnrank.js";
import { basinDepth, basinProfile, itemAttention, itemShares } from "./basin.js";
import { chosenTokens, gemfilter } from "./gemfilter.js";

/** What a prompt becomes. */
async function becomes(engine: Engine, methods: AttachedMethod[], ids: readonly number[]): Promise<readonly number[]> {
  const sequence = engine.sequence(engine.compose(methods));
  try {
    return await engine.prompt(sequence, ids);
  } finally {
    sequence.close();
  }
}

describe("a probe", () => {
  it.each(["llama", "gemma2", "gpt2"] as const)("%s: reads the last row as an observer sees it", async (family) => {
    const checkpoint = randomCheckpoint(family);
    const engine = await engineFor(checkpoint);
    const { heads, attention, layers } = checkpoint.config;
    const ids = someIds(50, 384);
    const seen: Float32Array[] = [];
    const observer: AttachedMethod = {
      name: "observer",
      spec: "",
      hooks: {
        observe: ({ layer, weights: { data, rows, keys } }) => {
          seen[layer] = new Float32Array(heads * keys);
          for (let h = 0; h < heads; h++)
            seen[layer].set(data.subarray((h * rows + rows - 1) * keys, (h * rows + rows) * keys), h * keys);
        },
      },
    };
    const sequence = engine.sequence(engine.compose([observer]));
    await engine.prefill(sequence, ids, { wanted: "none" });
    sequence.close();
    const before = engine.pool.bytesUsed;
    const { lastRow, residual } = await engine.probe(ids, { layers: 1, lastRow: [layers - 1, 1] });
    expect(engine.pool.bytesUsed).toBe(before);
    expect(residual.length).toBe(50 * checkpoint.config.width);
    for (const [i, layer] of [layers - 1, 1].entries()) {
      const { products, weights } = lastRow[i];
      expect(maxDifference(weights, seen[layer])).toBeLessThan(1e-5);
      const window = attention.windowLayers[layer] ? (attention.window ?? 50) : 50;
      for (let h = 0; h < heads; h++) {
        const logits = [...products.subarray(h * 50 + 50 - window, (h + 1) * 50)].map((x) => {
          const { scale, softcap } = attention;
          return softcap ? softcap * Math.tanh((x * scale) / softcap) : x * scale;
        });
        const max = Math.max(...logits);
        const total = logits.reduce((sum, x) => sum + Math.exp(x - max), 0);
        const wanted = logits.map((x) => Math.exp(x - max) / total);
        expect(maxDifference(wanted, weights.subarray(h * 50 + 50 - window, (h + 1) * 50))).toBeLessThan(1e-5);
      }
    }
    await engine.close();
  });
});

describe("gemfilter", () => {
  const config = randomConfig("llama", { layers: 4 });
  const ids = someIds(120, config.vocab);
  let engine: Engine;
  beforeAll(async () => {
    engine = await engineFor(checkpointOf(config));
  });
  afterAll(() => engine.close());

  it("averages over five tokens, zeros beyond the ends counted, and keeps the largest in order", () => {
    const scores = Float32Array.of(0, 0, 0, 10, 0, 1, 0, 0);
    const free = { kernel: 5, first: 0, last: 0 };
    expect([...chosenTokens(scores, 3, free)]).toEqual([3, 4, 5]);
    // smoothed: 0, 2, 2, 2.2, 2.2, 2.2, .2, .2
    expect([...chosenTokens(scores, 5, free)]).toEqual([1, 2, 3, 4, 5]);
    expect([...chosenTokens(scores, 1, { ...free, kernel: 1 })]).toEqual([3]);
    expect([...chosenTokens(scores, 3, { kernel: 5, first: 1, last: 1 })]).toEqual([0, 3, 7]);
    expect([...chosenTokens(scores, 99, free)]).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
  });

  it("leaves a prompt within the budget as it is, and else keeps tokens of it in their order", async () => {
    expect(await becomes(engine, [gemfilter({ tokens: 120 })], ids)).toBe(ids);
    const kept = await becomes(engine, [gemfilter({ tokens: 30, layer: 2 })], ids);
    expect(kept.length).toBe(30);
    let at = -1;
    for (const id of kept) {
      at = ids.indexOf(id, at + 1);
      expect(at).toBeGreaterThanOrEqual(0);
    }
    const share = await becomes(engine, resolve("gemfilter(tokens=1/4,layer=2)"), ids);
    expect(share).toEqual(kept);
  });

  it("chooses by the sum over heads of the last token's products at its layer", async () => {
    const { lastRow } = await engine.probe(ids, { lastRow: [2] });
    const sums = new Float32Array(120);
    for (let i = 0; i < lastRow[0].products.length; i++) sums[i % 120] += lastRow[0].products[i];
    const smooth = Array.from(sums, (_, j) => {
      let sum = 0;
      for (let d = -2; d <= 2; d++) sum += sums[j + d] ?? 0;
      return sum / 5;
    });
    const best = smooth.map((_, i) => i).sort((a, b) => smooth[b] - smooth[a]);
    const wanted = best.slice(0, 20).sort((a, b) => a - b);
    const kept = await becomes(engine, [gemfilter({ tokens: 20, layer: 2 })], ids);
    expect(kept).toEqual(wanted.map((i) => ids[i]));
  });

  it("depends on the layers up to its own only", async () => {
    const weights = randomWeights(config, 1);
    const changed = async (layer: number) => {
      const get = (name: string) => {
        const value = weights.get(name);
        if (!name.startsWith(`layers.${layer}.`) || value.kind !== "float") return value;
        return { ...value, data: value.data.map((x, i) => x * (1 + 0.5 * Math.sin(i))) } as typeof value;
      };
      const other = await engineFor({ ...checkpointOf(config), weights: { get } } as ReturnType<typeof checkpointOf>);
      const kept = await becomes(other, [gemfilter({ tokens: 20, layer: 1 })], ids);
      await other.close();
      return kept;
    };
    const kept = await becomes(engine, [gemfilter({ tokens: 20, layer: 1 })], ids);
    expect(await changed(2)).toEqual(kept);
    expect(await changed(3)).toEqual(kept);
    expect(await changed(1)).not.toEqual(kept);
    expect(await changed(0)).not.toEqual(kept);
  });

  it("gives the whole model a fresh prompt, and methods of other hooks act on that", async () => {
    const kept = await becomes(engine, [gemfilter({ tokens: 40, layer: 1 })], ids);
    const logits = async (methods: AttachedMethod[], prompt: readonly number[]) => {
      const sequence = engine.sequence(engine.compose(methods));
      const last = await engine.prefill(sequence, await engine.prompt(sequence, prompt), { wanted: "last" });
      expect(sequence.length).toBe(40);
      sequence.close();
      return last as Float32Array;
    };
    for (const more of ["", "self-extend(group=2,window=8)", "snapkv(capacity=16,window=4)"]) {
      const rest = resolve(more);
      const both = await logits([...resolve("gemfilter(tokens=40,layer=1)"), ...rest], ids);
      expect(maxDifference(both, await logits(rest, kept))).toBe(0);
    }
  });

  it("keeps the passage that the question asks for by the layer that retrieves, by no earlier one and not by lot", async () => {
    const tiny = await openCheckpoint("models/tiny");
    const reader = await engineFor(tiny);
    const report = readFileSync("examples/harbour.txt", "utf8");
    const encode = (text: string) => tiny.tokenizer.encode(text, { special: false }).ids;
    const needle = encode(" Ada Moreau");
    const holds = (ids: readonly number[]) => ids.some((_, i) => needle.every((id, j) => ids[i + j] === id));
    const prompt = encode(`${report}\nThe keeper of the north light is`);
    const by = (layer: number) => becomes(reader, [gemfilter({ tokens: 80, layer })], prompt);
    expect(holds(await by(1))).toBe(true);
    expect(holds(await by(0))).toBe(false);
    const lots = Array.from({ length: 20 }, (_, seed) => normals(seed)(prompt.length)).map((scores) =>
      [...chosenTokens(scores, 80, { kernel: 5, first: 0, last: 0 })].map((i) => prompt[i]),
    );
    expect(lots.filter(holds).length).toBeLessThan(10);
    await reader.close();
    await tiny.close();
  });

  it("refuses a layer that the model does not have", () => {
    expect(() => engine.compose([gemfilter({ layer: 4 })])).toThrow(/layer is 4; the model has layers 0 to 3/);
  });
});

describe("attnrank", () => {
  it("pairs slots by attention with items by relevance: the sheet's example and limits", () => {
    const P = [0.3, 0.1, 0.08, 0.12, 0.4];
    expect(attentionOrder([0.2, 0.9, 0.5, 0.7, 0.1], P)).toEqual([3, 0, 4, 2, 1]);
    const relevance = [0.4, 0.9, 0.1, 0.6];
    expect(attentionOrder(relevance, [4, 3, 2, 1])).toEqual([1, 3, 0, 2]);
    expect(attentionOrder(relevance, [1, 2, 3, 4])).toEqual([2, 0, 3, 1]);
    expect(attentionOrder(relevance, [4, 3, 2, 1], true)).toEqual([2, 0, 3, 1]);
    expect(attentionOrder(relevance, [1, 1, 1, 1])).toEqual([1, 3, 0, 2]);
    expect(attentionOrder([5], [1])).toEqual([0]);
    // stable: equal relevance keeps its order
    expect(attentionOrder([1, 1, 1], [3, 2, 1])).toEqual([0, 1, 2]);
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(4), fc.nat(4)), { maxLength: 12 }), (items) => {
        const order = attentionOrder(
          items.map(([r]) => r),
          items.map(([, p]) => p),
        );
        expect([...order].sort((a, b) => a - b)).toEqual(items.map((_, i) => i));
      }),
    );
  });

  it("interpolates a profile over relative positions", () => {
    expect(slotProfile([1, 0, 1], 5)).toEqual([1, 0.5, 0, 0.5, 1]);
    expect(slotProfile([2, 4], 3)).toEqual([2, 3, 4]);
    expect(slotProfile([2, 4, 9], 1)).toEqual([2]);
  });

  const at = (methods: AttachedMethod[], ids: readonly number[]) =>
    methods[0].hooks.context?.({ ids, state: undefined } as never) as readonly number[];

  it("moves items of any length and leaves what stands between them", () => {
    const ids = Array.from({ length: 20 }, (_, i) => i);
    const items = [
      [2, 4],
      [5, 9],
      [10, 13],
    ];
    const moved = at([attnrank({ items, relevance: [0.1, 0.5, 0.9], profile: [3, 1, 2] })], ids);
    expect(moved).toEqual([0, 1, 10, 11, 12, 4, 2, 3, 9, 5, 6, 7, 8, 13, 14, 15, 16, 17, 18, 19]);
    const kept = at([attnrank({ items, relevance: [3, 2, 1], profile: [3, 2, 1] })], ids);
    expect(kept).toEqual(ids);
    expect(at(resolve("attnrank(items=[[2,4],[5,9]],relevance=[0.1,0.5],profile=[1,0.5])"), ids).slice(0, 9)).toEqual([
      0, 1, 5, 6, 7, 8, 4, 2, 3,
    ]);
  });

  it("refuses items that overlap, lack a score or reach beyond the prompt", () => {
    const model = {} as ModelShape;
    const check = (method: AttachedMethod) => () => method.check?.(model);
    expect(check(attnrank({ items: [[0, 3]], relevance: [1, 2], profile: [1] }))).toThrow(/1 items and 2 relevance/);
    expect(
      check(
        attnrank({
          items: [
            [0, 3],
            [2, 4],
          ],
          relevance: [1, 2],
          profile: [1],
        }),
      ),
    ).toThrow(/before the one ahead/);
    expect(() => at([attnrank({ items: [[0, 9]], relevance: [1], profile: [1] })], [1, 2])).toThrow(
      /ends at 9.*2 tokens/,
    );
    expect(() => attnrank({ items: [[3, 3]], relevance: [1], profile: [1] })).toThrow(/start below end/);
  });
});

describe("an attention basin", () => {
  const TEXT = "Notes follow. the keeper is Ada. the cook is Tom. the mate is Eve. the keeper is";
  let model: Model;
  beforeAll(async () => {
    model = await load("models/tiny", { worker: false, precision: "float32", cache: "float32" });
  });
  afterAll(() => model.close());

  it("is measured so that items and the rest of the prompt make up each layer's row", async () => {
    const { ids } = model.prompt(TEXT);
    const n = ids.length;
    const spans = [
      [0, 3],
      [3, 8],
      [8, n - 2],
      [n - 2, n],
    ] as const;
    const { all, one } = await model.observe([...ids], { all: itemAttention(spans), one: spanMass([3, 8]) });
    for (let l = 0; l < all.layers; l++) {
      const row = all.data.subarray(l * 4, l * 4 + 4);
      expect(row.reduce((a, b) => a + b)).toBeCloseTo(1, 5);
      const heads = Array.from({ length: one.heads }, (_, head) => one.at({ layer: l, head }));
      expect(row[1]).toBeCloseTo(heads.reduce((a, b) => a + b) / heads.length, 5);
    }
    const last = await model.observe([...ids], { last: itemAttention(spans, { layers: [-1], reduce: "mean" }) });
    expect(last.last.data[0]).toBeNaN();
    expect(last.last.data.at(-3)).toBeCloseTo((all.data.at(-3) as number) / 5, 6);
    const profile = await basinProfile(model, [
      { ids, items: spans },
      { ids: ids.slice(0, n - 1), items: spans },
    ]);
    expect(profile.reduce((a, b) => a + b)).toBeCloseTo(1, 6);
    expect(profile).not.toEqual(itemShares(all));
  });

  it("is flat where attention is: by length for sums, equal for means, and then no order changes", () => {
    const shape = { layers: 1, heads: 2, kvHeads: 1 } as ModelShape;
    const step = {
      layer: 0,
      rows: 1,
      positions: Int32Array.of(9),
      model: shape,
      weights: { data: new Float32Array(20).fill(0.1), heads: 2, rows: 1, keys: 10 },
      keyPositions: () => Int32Array.from({ length: 10 }, (_, i) => i),
    } as unknown as ObserveStep;
    const measure = (reduce: "sum" | "mean") => {
      const run = itemAttention(
        [
          [1, 3],
          [3, 7],
          [7, 9],
        ],
        { reduce },
      ).start(shape, 10);
      run.observe(step);
      return itemShares(run.finish());
    };
    for (const [i, x] of [0.25, 0.5, 0.25].entries()) expect(measure("sum")[i]).toBeCloseTo(x, 6);
    for (const x of measure("mean")) expect(x).toBeCloseTo(1 / 3, 6);
    expect(attentionOrder([3, 2, 1], [1 / 3, 1 / 3, 1 / 3])).toEqual([0, 1, 2]);
    expect(basinDepth([0.4, 0.1, 0.1, 0.4])).toBeCloseTo(4, 10);
    expect(basinDepth([0.5, 0.5])).toBeNaN();
  });

  it("refuses prompts that do not fit together", async () => {
    const { ids } = model.prompt(TEXT);
    const prompts = [
      {
        ids,
        items: [
          [0, 2],
          [2, 4],
        ] as const,
      },
      { ids, items: [[0, 2]] as const },
    ];
    await expect(basinProfile(model, prompts)).rejects.toThrow(/1 items among prompts of 2/);
    await expect(basinProfile(model, [])).rejects.toThrow(/no calibration prompt/);
    expect(() => itemAttention([])).toThrow(/no item to measure/);
  });
});

describe.skipIf(!existsSync(STORIES))("an attention basin of a trained model", () => {
  it("is the model's, not the prompts': two halves of a calibration agree", async () => {
    await using model = await load(STORIES, { worker: false, precision: "float32", cache: "float32", threads: 1 });
    const sentences = STORY.split(/(?<=\.) /).slice(1, 13);
    const next = normals(21);
    const profile = () =>
      basinProfile(
        model,
        Array.from({ length: 16 }, () => {
          const order = [...next(sentences.length).entries()].sort((a, b) => a[1] - b[1]).map(([i]) => sentences[i]);
          const items = order.slice(0, 8);
          const prompt = model.prompt(`Once upon a time there was a dog. ${items.join(" ")} Then`);
          return { ids: prompt.ids, items: items.map((item) => prompt.span(item)) };
        }),
      );
    expect(spearman(await profile(), await profile())).toBeGreaterThan(0.9);
  });
});

/** Rank correlation of lists without ties. */
function spearman(a: readonly number[], b: readonly number[]): number {
  const ranks = (x: readonly number[]) => x.map((y) => x.filter((other) => other < y).length);
  const [ra, rb] = [ranks(a), ranks(b)];
  const n = a.length;
  return 1 - (6 * ra.reduce((sum, r, i) => sum + (r - rb[i]) ** 2, 0)) / (n * (n * n - 1));
}
