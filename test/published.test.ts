import { describe, expect, it } from "vitest";
import { floatWeight, type WeightSource } from "../src/graph/index.js";
import {
  buildModel,
  canonicalTensors,
  configJson,
  type ModelConfig,
  parameterCount,
  parseConfig,
  rotaryTable,
} from "../src/models/index.js";
import { PUBLISHED, published } from "./published-configs.js";
import { compileWhole, logitsOf } from "./whole-model.js";

describe.each(PUBLISHED)("$name", ({ config: json, parameters }) => {
  const config = parseConfig(json);

  it("has the published number of parameters", () => {
    expect(parameterCount(config)).toBe(parameters);
  });

  it("survives being written and read again", () => {
    expect(parseConfig(configJson(config))).toEqual(config);
  });

  it("builds at full shape", () => {
    const { heads, kvHeads, headDim, width, vocab, layers, mlpWidth } = config;
    const graph = buildModel(config);
    expect(graph.logits.shape).toEqual(["T", vocab]);
    for (const l of [0, layers - 1]) {
      const shape = (tap: string): unknown => graph.taps.get(`${tap}.${l}`)?.shape;
      for (const tap of ["residual", "attn_in", "attn_out", "mid", "mlp_in", "mlp_out"]) {
        expect(shape(tap), tap).toEqual(["T", width]);
      }
      for (const tap of ["q", "q_rotated", "heads"]) expect(shape(tap), tap).toEqual(["T", heads, headDim]);
      for (const tap of ["k", "v", "k_rotated"]) expect(shape(tap), tap).toEqual(["T", kvHeads, headDim]);
      for (const tap of ["logits", "pattern"]) expect(shape(tap), tap).toEqual([heads, "T", "T"]);
      expect(shape("mlp_gate")).toEqual(["T", mlpWidth]);
    }
    for (const tap of ["embeddings", "final_norm", `residual.${layers}`]) {
      expect(graph.taps.get(tap)?.shape, tap).toEqual(["T", width]);
    }
  });
});

describe("what published configs say", () => {
  const parse = (name: string): ModelConfig => parseConfig(published(name));

  it("Llama 3.2: frequencies beyond the original length are divided by 32", () => {
    const { rotary } = parse("Llama-3.2-1B");
    expect(rotary).toMatchObject({ base: 500000, dims: 64, scaling: { type: "llama3", factor: 32, original: 8192 } });
    if (rotary) expect(rotaryTable(rotary, 0).inverse[31]).toBeCloseTo(500000 ** (-62 / 64) / 32, 12);
  });

  it("Mistral: a window in every layer", () => {
    const { attention, layers } = parse("Mistral-7B-v0.1");
    expect(attention.window).toBe(4096);
    expect(attention.windowLayers).toEqual(Array(layers).fill(true));
  });

  it("Qwen2.5: biases on q, k, v only, and the window is switched off", () => {
    const { attention } = parse("Qwen2.5-0.5B");
    expect(attention).toMatchObject({ biasQKV: true, biasO: false });
    expect(attention.window).toBeUndefined();
  });

  it("Qwen3: heads wider than width / heads, and norms per head", () => {
    expect(parse("Qwen3-0.6B")).toMatchObject({ headDim: 128, attention: { qkNorm: "head", biasQKV: false } });
  });

  it("Gemma 2: every other layer slides, beginning with the first; caps and scale", () => {
    const { attention, finalSoftcap, embeddingScale, tiedEmbeddings } = parse("gemma-2-2b");
    expect(attention.windowLayers.slice(0, 4)).toEqual([true, false, true, false]);
    expect(attention).toMatchObject({ softcap: 50, window: 4096, scale: 1 / 16 });
    expect([finalSoftcap, embeddingScale, tiedEmbeddings]).toEqual([30, 48, true]);
  });

  it("Gemma 3: five sliding layers to one global, each kind with its own base", () => {
    const { attention, rotary, finalSoftcap } = parse("gemma-3-1b-pt");
    expect(attention.windowLayers.slice(0, 7)).toEqual([true, true, true, true, true, false, true]);
    expect(attention.softcap).toBeUndefined();
    expect(finalSoftcap).toBeUndefined();
    expect(rotary).toMatchObject({ base: 1e6, localBase: 10000, localLayers: attention.windowLayers });
  });

  it("Gemma 3 4B: the language model of a multimodal checkpoint, with its library's defaults", () => {
    const config = parse("(its language model)");
    expect(config).toMatchObject({ heads: 8, kvHeads: 4, headDim: 256, vocab: 262208, eos: [1, 106] });
    expect(config.rotary).toMatchObject({ scaling: { type: "linear", factor: 8 }, localScaling: { type: "default" } });
  });

  it("Phi-3 128k: longrope with its factor on cos and sin", () => {
    expect(parse("Phi-3-mini-128k-instruct").rotary?.scaling).toMatchObject({
      type: "longrope",
      original: 4096,
      attention: expect.closeTo(1.190238, 6),
    });
  });

  it("Pythia: a quarter of each head rotates, and the residual is parallel", () => {
    expect(parse("pythia-160m")).toMatchObject({ rotary: { dims: 16 }, parallelResidual: true, activation: "gelu" });
  });

  it("OPT: 2050 rows of positions", () => {
    const positions = canonicalTensors(parse("opt-125m")).find(({ name }) => name === "embed_positions");
    expect(positions?.shape).toEqual([2050, 768]);
  });
});

describe("small ones run at full width", () => {
  it.each(["SmolLM2-135M", "gpt2", "pythia-160m", "opt-125m"])("%s, one layer", async (name) => {
    const full = parseConfig(published(name));
    const config: ModelConfig = {
      ...full,
      layers: 1,
      attention: { ...full.attention, windowLayers: full.attention.windowLayers.slice(0, 1) },
    };
    const model = await compileWhole(config, noise(config));
    const logits = await logitsOf(model, [5, 3, 11]);
    await model.segment.release();
    expect(logits.length).toBe(3 * config.vocab);
    expect(logits.every(Number.isFinite)).toBe(true);
    const [low, high] = logits.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [0, 0]);
    expect(high - low).toBeGreaterThan(0.1);
  });
});

/** Cheap small numbers for every weight; ones for norms. */
function noise(config: ModelConfig): WeightSource {
  const tensors = new Map(canonicalTensors(config).map((tensor) => [tensor.name, tensor]));
  return {
    get(name) {
      const { shape, norm } = tensors.get(name) ?? { shape: [], norm: false };
      const data = new Float32Array(shape.reduce((a, b) => a * b, 1));
      let state = name.length + 1;
      for (let i = 0; i < data.length; i++) {
        state = (Math.imul(state, 1664525) + 1013904223) | 0;
        data[i] = norm ? 1 : state * 5e-11;
      }
      return floatWeight(shape, data);
    },
  };
}
