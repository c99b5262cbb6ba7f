import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { FoveaError } from "../error.js";
import { configJson, type ModelConfig, parseConfig } from "./config.js";
import { FAMILIES, type FamilyName } from "./families.js";
import { configFromGguf, ggufFromConfig } from "./gguf-config.js";
import { randomConfig } from "./random.js";

const LLAMA = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  hidden_size: 64,
  intermediate_size: 172,
  num_hidden_layers: 5,
  num_attention_heads: 8,
  num_key_value_heads: 4,
  vocab_size: 512,
  max_position_embeddings: 512,
  rms_norm_eps: 1e-5,
  hidden_act: "silu",
};

function refusal(json: unknown): FoveaError {
  try {
    parseConfig(json);
  } catch (error) {
    if (error instanceof FoveaError) return error;
    throw error;
  }
  throw new Error("it was accepted");
}

describe("parseConfig", () => {
  it("reads sizes and takes the library's defaults for the rest", () => {
    expect(parseConfig(LLAMA)).toMatchObject({
      family: "llama",
      layers: 5,
      headDim: 8,
      kvHeads: 4,
      tiedEmbeddings: false,
      rotary: { base: 10000, dims: 8, scaling: { type: "default" } },
      attention: { scale: 8 ** -0.5, qkNorm: "none", biasQKV: false },
      eos: [],
    });
  });

  it("takes rope_parameters, the newer form, for rope_theta and rope_scaling", () => {
    const rope_parameters = { rope_theta: 500000, rope_type: "linear", factor: 2 };
    expect(parseConfig({ ...LLAMA, rope_parameters }).rotary).toMatchObject({
      base: 500000,
      scaling: { type: "linear", factor: 2 },
    });
  });

  it("takes rope_parameters nested by layer type", () => {
    const rope_parameters = {
      full_attention: { rope_theta: 2000000, rope_type: "linear", factor: 8 },
      sliding_attention: { rope_theta: 20000, rope_type: "default" },
    };
    const json = { ...configJson(randomConfig("gemma3")), rope_parameters };
    expect(parseConfig(json).rotary).toMatchObject({
      base: 2000000,
      scaling: { type: "linear", factor: 8 },
      localBase: 20000,
      localScaling: { type: "default" },
    });
  });

  it("goes by model_type where no architecture is named", () => {
    const { architectures: _, ...rest } = LLAMA;
    expect(parseConfig({ ...rest, model_type: "mistral", sliding_window: 16 }).attention.window).toBe(16);
  });

  it("drops end tokens beyond the vocabulary", () => {
    expect(parseConfig({ ...LLAMA, bos_token_id: 50256, eos_token_id: [2, 50256] })).toMatchObject({ eos: [2] });
  });

  it.each([
    ["an unknown architecture", { architectures: ["RwkvForCausalLM"] }, "unknown-model", /"RwkvForCausalLM"/],
    ["a classifier", { architectures: ["LlamaForSequenceClassification"] }, "unknown-model", /LlamaForSequence/],
    ["an unknown model type", { architectures: null, model_type: "constructor" }, "unknown-model", /"constructor"/],
    ["neither", { architectures: null, model_type: null }, "unknown-model", /no architecture and no model type/],
    ["a missing size", { hidden_size: undefined }, "bad-file", /hidden_size is missing; expected an integer from 1/],
    [
      "a text for a size",
      { num_hidden_layers: "5" },
      "bad-file",
      /num_hidden_layers is string "5"; expected an integer/,
    ],
    ["a fraction", { num_hidden_layers: 5.5 }, "bad-file", /num_hidden_layers is number "5.5"/],
    ["a negative size", { vocab_size: -1 }, "bad-file", /vocab_size is number "-1"/],
    ["an absurd size", { num_hidden_layers: 1e9 }, "bad-file", /num_hidden_layers .* from 1 to 1024/],
    ["an absurd vocabulary", { vocab_size: 2 ** 40 }, "bad-file", /vocab_size/],
    [
      "heads that do not divide the width",
      { num_attention_heads: 7, num_key_value_heads: 7 },
      "bad-file",
      /hidden_size/,
    ],
    ["key heads that do not divide the heads", { num_key_value_heads: 3 }, "bad-file", /num_key_value_heads/],
    ["more key heads than heads", { num_key_value_heads: 16 }, "bad-file", /num_key_value_heads/],
    [
      "an unknown activation",
      { hidden_act: "snake" },
      "bad-file",
      /hidden_act is string "snake"; expected one of silu/,
    ],
    ["an activation that is a property", { hidden_act: "toString" }, "bad-file", /hidden_act/],
    ["a list for a flag", { tie_word_embeddings: [] }, "bad-file", /tie_word_embeddings/],
    ["a text for scaling", { rope_scaling: "yarn" }, "bad-file", /rope_scaling is string "yarn"; expected an object/],
    ["an unknown scaling", { rope_scaling: { type: "spiral" } }, "unsupported", /spiral/],
    ["a base of 0", { rope_theta: 0 }, "bad-file", /rope_theta/],
    ["an odd number of rotated dimensions", { partial_rotary_factor: 0.4 }, "unsupported", /3 of 8 dimensions/],
    ["quantised weights", { quantization_config: { bits: 4 } }, "unsupported", /quantization_config/],
    ["architectures that are no list", { architectures: "LlamaForCausalLM" }, "bad-file", /architectures/],
    ["an infinite epsilon", { rms_norm_eps: Number.POSITIVE_INFINITY }, "bad-file", /rms_norm_eps/],
  ])("refuses %s", (_, change, code, message) => {
    const error = refusal({ ...LLAMA, ...change });
    expect(error.code).toBe(code);
    expect(error.message).toMatch(message);
    if (code === "unknown-model") expect(error.hint).toMatch(/Llama .*Qwen3.*OPT/);
  });

  it.each([[null], [[]], ["text"], [7], [undefined]])("refuses %j as a whole", (json) => {
    expect(refusal(json).code).toBe("bad-file");
  });

  it("refuses a model too large for any machine", () => {
    const huge = {
      hidden_size: 2 ** 17,
      num_attention_heads: 1024,
      num_hidden_layers: 1024,
      intermediate_size: 2 ** 20,
    };
    expect(refusal({ ...LLAMA, ...huge }).code).toBe("too-large");
  });

  it.each([
    ["gpt2", { scale_attn_by_inverse_layer_idx: true }, /scale_attn_by_inverse_layer_idx/],
    ["gpt2", { add_cross_attention: true }, /add_cross_attention/],
    ["opt", { do_layer_norm_before: false }, /do_layer_norm_before/],
    ["opt", { word_embed_proj_dim: 32 }, /word_embed_proj_dim is 32; only hidden_size \(64\)/],
    ["gemma3", { use_bidirectional_attention: true }, /use_bidirectional_attention/],
    ["gemma2", { layer_types: ["sliding_attention"] }, /layer_types is a list of 1; expected a list of 3/],
    ["gemma2", { layer_types: ["chunked_attention", "full_attention", "full_attention"] }, /chunked_attention/],
  ] as const)("refuses a variant of %s that would run wrongly: %j", (family, change, message) => {
    expect(refusal({ ...configJson(randomConfig(family)), ...change }).message).toMatch(message);
  });

  it("null switches Gemma 2's caps off; only an absent key takes the default", () => {
    const json = configJson(randomConfig("gemma2"));
    const { attn_logit_softcapping: _, ...absent } = json;
    expect(parseConfig({ ...json, attn_logit_softcapping: null }).attention.softcap).toBeUndefined();
    expect(parseConfig(absent).attention.softcap).toBe(50);
  });
});

const families = Object.keys(FAMILIES) as FamilyName[];

describe.each(families)("%s", (family) => {
  it("is written and read again without loss", () => {
    const config = randomConfig(family);
    expect(parseConfig(configJson(config))).toEqual(config);
  });

  it("never does anything but parse or throw a FoveaError", () => {
    const json = configJson(randomConfig(family));
    const hostile = fc.oneof(
      fc.jsonValue(),
      fc.constantFrom<unknown>(
        0,
        -1,
        1e308,
        2 ** 31,
        2 ** 53,
        Number.NaN,
        "",
        "__proto__",
        [],
        {},
        null,
        undefined,
        true,
      ),
    );
    const changes = fc.dictionary(
      fc.constantFrom(...Object.keys(json), "rope_scaling", "text_config", "layer_types"),
      hostile,
    );
    fc.assert(
      fc.property(changes, (change) => {
        try {
          parseConfig({ ...json, ...change });
        } catch (error) {
          expect(error).toBeInstanceOf(FoveaError);
        }
      }),
      { numRuns: 200 },
    );
  });
});

/** What a GGUF reader hands over. */
function gguf(config: ModelConfig): { metadata: Record<string, unknown>; factors: Record<string, number[]> } {
  const written = ggufFromConfig(config);
  const names: Record<string, string> = {
    "rope_freqs.weight": "all",
    "rope_factors_short.weight": "short",
    "rope_factors_long.weight": "long",
  };
  return {
    metadata: Object.fromEntries([...written.metadata].map(([key, { value }]) => [key, value])),
    factors: Object.fromEntries([...written.factors].map(([name, list]) => [names[name], Array.from(list)])),
  };
}

/** What configFromGguf looks at of a file's tensors. */
function tensors(config: ModelConfig): Map<string, { shape: readonly number[] }> {
  const map = new Map<string, { shape: readonly number[] }>();
  map.set("token_embd.weight", { shape: [config.vocab, config.width] });
  if (!config.tiedEmbeddings) map.set("output.weight", { shape: [config.vocab, config.width] });
  if (config.attention.biasQKV) map.set("blk.0.attn_q.bias", { shape: [config.width] });
  if (config.attention.biasO) map.set("blk.0.attn_output.bias", { shape: [config.width] });
  return map;
}

describe.each(families.filter((name) => FAMILIES[name].gguf))("%s in GGUF", (family) => {
  const config: ModelConfig = { ...randomConfig(family), bos: undefined, eos: [] };

  it("is written and read again without loss", () => {
    const { metadata, factors } = gguf(config);
    expect(configFromGguf(metadata, tensors(config), factors)).toEqual(config);
  });

  it("never does anything but parse or throw a FoveaError", () => {
    const { metadata } = gguf(config);
    const hostile = fc.oneof(
      fc.jsonValue(),
      fc.constantFrom<unknown>(0, -1, 1e308, 2n ** 60n, Number.NaN, "", [], null),
    );
    fc.assert(
      fc.property(fc.dictionary(fc.constantFrom(...Object.keys(metadata)), hostile), (change) => {
        try {
          configFromGguf({ ...metadata, ...change }, tensors(config));
        } catch (error) {
          expect(error).toBeInstanceOf(FoveaError);
        }
      }),
      { numRuns: 200 },
    );
  });
});

describe("configFromGguf", () => {
  it("refuses an unknown architecture, naming the known families", () => {
    try {
      configFromGguf({ "general.architecture": "mamba" }, new Map());
      throw new Error("it was accepted");
    } catch (error) {
      expect(error).toMatchObject({ code: "unknown-model", message: expect.stringContaining('"mamba"') });
      expect((error as FoveaError).hint).toMatch(/Phi-3/);
    }
  });

  it("refuses mixtures of experts and OLMo 3, which share names with known families", () => {
    const llama = gguf(randomConfig("llama")).metadata;
    expect(() => configFromGguf({ ...llama, "llama.expert_count": 8 }, new Map())).toThrow(/expert/);
    const olmo = gguf(randomConfig("olmo2")).metadata;
    expect(() => configFromGguf({ ...olmo, "olmo2.attention.sliding_window": 4096 }, new Map())).toThrow(
      /sliding_window/,
    );
  });

  it("solves for Llama 3's scaling from its divisors", () => {
    const rope_scaling = {
      rope_type: "llama3",
      factor: 32,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 8192,
    };
    const config = randomConfig("llama", { headDim: 64, maxPositions: 131072 }, { rope_theta: 500000, rope_scaling });
    const { metadata, factors } = gguf(config);
    expect(configFromGguf(metadata, tensors(config), factors).rotary).toEqual(config.rotary);
  });

  it("keeps other divisors as they are, and config.json has a form for them", () => {
    const config = randomConfig("llama", { headDim: 8 });
    const { metadata } = gguf(config);
    const read = configFromGguf(metadata, tensors(config), { all: [1, 2, 3, 5] });
    expect(read.rotary?.scaling).toEqual({ type: "factors", factors: [1, 2, 3, 5] });
    expect(parseConfig(configJson(read)).rotary?.scaling).toMatchObject({ long: [1, 2, 3, 5], attention: 1 });
    expect(() => configFromGguf(metadata, tensors(config), { all: [1, 2] })).toThrow(/expected 4/);
  });
});

describe("ggufFromConfig", () => {
  it.each([
    ["opt", {}, {}, /no architecture for OPT/],
    ["llama", {}, { hidden_act: "relu" }, /activation relu/],
    ["llama", {}, { rope_scaling: { type: "dynamic", factor: 2 } }, /dynamic rotary scaling/],
    [
      "qwen2",
      {},
      { rope_scaling: { type: "longrope", short_factor: Array(8).fill(1), long_factor: Array(8).fill(2) } },
      /longrope/,
    ],
    ["gemma2", {}, { query_pre_attn_scalar: 100 }, /attention scale of 0.1/],
    ["gemma2", {}, { attn_logit_softcapping: null }, /soft-capping/],
  ] as const)("refuses what llama.cpp would run wrongly: %s with %j %j", (family, sizes, fields, message) => {
    expect(() => ggufFromConfig(randomConfig(family, sizes, fields))).toThrow(message);
  });
});
