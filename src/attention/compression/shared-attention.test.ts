import { existsSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { engineFor, randomCheckpoint, someIds } from "../../../test/random-checkpoint.js";
import type { Model } from "../../engine/api.js";
import type { AttachedMethod } from "../../engine/hooks.js";
import { load } from "../../load.js";
import type { Checkpoint } from "../../models/index.js";
import { method } from "../method.js";
import { maxDifference } from "../testing.js";
import { bestSpan, layerSimilarity } from "./layer-similarity.js";
import { sharedAttention, sharingLayers } from "./shared-attention.js";

const STORIES = new URL("../../../../shared/checkpoints/stories260K", import.meta.url).pathname;
const random = randomCheckpoint("llama", { layers: 4, heads: 4, kvHeads: 2 });
const ids = someIds(40, random.config.vocab);

/** Logits of the last prompt row and of three decoded ones, and the weights of every layer. */
async function run(checkpoint: Checkpoint, methods: AttachedMethod[]) {
  const weights: number[][] = [];
  const watch = method({
    name: "watch",
    observe: (step) => {
      weights[step.layer] = [...(weights[step.layer] ?? []), ...step.weights.data];
    },
  });
  const engine = await engineFor(checkpoint);
  const sequence = engine.sequence(engine.compose([...methods, watch()]));
  const logits: number[] = [];
  await engine.prefill(sequence, ids.slice(0, 37), {
    wanted: "last",
    onLogits: (_f, _r, data) => logits.push(...data),
  });
  for (const id of ids.slice(37)) logits.push(...(await engine.decode([{ sequence, id }]))[0]);
  sequence.close();
  await engine.close();
  return { logits, weights };
}

describe("shared-attention", () => {
  it("takes the weights of the layer before the span, bit for bit, in the prompt and while decoding", async () => {
    const plain = await run(random, []);
    const shared = await run(random, [sharedAttention({ sharing: [2, 3] })]);
    expect(shared.weights[2]).toEqual(shared.weights[1]);
    expect(shared.weights[3]).toEqual(shared.weights[1]);
    expect(shared.weights[1]).toEqual(plain.weights[1]);
    expect(maxDifference(plain.weights[2], plain.weights[1])).toBeGreaterThan(1e-3);
    expect(maxDifference(shared.logits, plain.logits)).toBeGreaterThan(1e-3);
    const apart = await run(random, [sharedAttention({ sharing: [1, 3] })]);
    expect(apart.weights[1]).toEqual(apart.weights[0]);
    expect(apart.weights[3]).toEqual(apart.weights[2]);
    expect(maxDifference(apart.weights[2], apart.weights[1])).toBeGreaterThan(1e-3);
  });

  it("changes nothing without a span, and where the layer would have the same weights anyway", async () => {
    const plain = await run(random, []);
    expect((await run(random, [sharedAttention({ sharing: [] })])).logits).toEqual(plain.logits);
    // layer 0 adds nothing to the stream, and layer 1 has its norm, queries and keys
    const { weights } = random;
    const twin = {
      ...random,
      weights: {
        get: (name: string) => {
          const found = weights.get(name.replace(/^layers\.1\.(attn_norm|q|k)$/, "layers.0.$1"));
          if (/^layers\.0\.(o|down)$/.test(name) && found.kind === "float")
            return { ...found, dtype: "float32" as const, data: new Float32Array(found.data.length) };
          return found;
        },
      },
    };
    const wanted = await run(twin, []);
    const got = await run(twin, [sharedAttention({ sharing: [1] })]);
    expect(maxDifference(got.logits, wanted.logits)).toBeLessThan(1e-6);
    expect(maxDifference(plain.logits, wanted.logits)).toBeGreaterThan(1e-3);
  });

  it("scales the paper's span, and refuses the first layer and those that are not there", async () => {
    expect([...sharingLayers("late", { layers: 32 })]).toEqual([23, 24, 25, 26]);
    expect([...sharingLayers("late", { layers: 5 })]).toEqual([4]);
    expect([...sharingLayers("late", { layers: 1 })]).toEqual([]);
    expect(() => sharingLayers([4], { layers: 4 })).toThrow(/layer 4 does not exist/);
    expect(() => sharedAttention({ sharing: [0] })).toThrow(/sharing/);
    await expect(run(random, [sharedAttention({ sharing: [2], layers: [2, 3] })])).rejects.toThrow(
      /not in the one before/,
    );
  });
});

describe("similarity of layers", () => {
  it("chooses the span that is most like the layer before it", () => {
    // prettier-ignore
    const data = Float32Array.of(1, 0.1, 0.2, 0.3, 0.1, 1, 0.5, 0.4, 0.2, 0.5, 1, 0.9, 0.3, 0.4, 0.9, 1);
    expect(bestSpan({ layers: 4, data }, 1)).toEqual([3, 3]);
    expect(bestSpan({ layers: 4, data }, 2)).toEqual([2, 3]);
    expect(bestSpan({ layers: 4, data }, 3)).toEqual([1, 3]);
    expect(() => bestSpan({ layers: 4, data }, 4)).toThrow(/span of 4 layers/);
  });
});

describe.skipIf(!existsSync(STORIES))("shared-attention on stories260K", () => {
  let model: Model;
  beforeAll(async () => {
    model = await load(STORIES, { worker: false, precision: "float32", cache: "float32", threads: 2 });
  });
  afterAll(() => model?.close());

  it("costs something in every layer, in the last less than in the first, as the paper has it", async () => {
    const lost: number[] = [];
    for (const [i, start] of ["Once upon a time", "One day", "The big bear"].entries()) {
      const told = await model.generate(start, { maxTokens: 160, temperature: 0.7, seed: i + 3 }).result;
      const text = start + told.text;
      const dense = -(await model.score(text)).logprob;
      for (let l = 1; l < model.info.shape.layers; l++)
        lost[l - 1] =
          (lost[l - 1] ?? 0) - (await model.with(`shared-attention(sharing=${l})`).score(text)).logprob - dense;
      const { alike } = await model.observe(text, { alike: layerSimilarity() });
      for (let l = 0; l < alike.layers; l++) expect(alike.data[l * alike.layers + l]).toBeCloseTo(1, 4);
      // likeness does not foretell it here: layers 0 and 1 are the most alike, and sharing them costs the most
      expect(bestSpan(alike, 1)).toEqual([1, 1]);
    }
    expect(Math.min(...lost)).toBeGreaterThan(0);
    expect(lost[lost.length - 1]).toBeLessThan(lost[0]);
  });
});
