import { FoveaError } from "../error.js";
import type { ModelConfig } from "./config.js";
import { finish } from "./config.js";
import { FAMILIES, familyByGguf, knownFamilies } from "./families.js";
import { Fields, LIMITS } from "./fields.js";
import type { GgufValue } from "./gguf.js";
import { longropeAttention, type RotaryConfig, type RotaryScaling, yarnAttention } from "./rotary.js";
import type { TensorInfo } from "./tensor-file.js";

const FACTOR = { min: 1e-6, max: 1e6 };

/** Divisors of rotary frequencies that a GGUF file holds as tensors. */
export interface RotaryFactors {
  /** `rope_freqs.weight` */
  readonly all?: readonly number[];
  /** `rope_factors_short.weight` */
  readonly short?: readonly number[];
  /** `rope_factors_long.weight` */
  readonly long?: readonly number[];
}

/**
 * The model's shape from GGUF metadata.
 * @param tensors the file's tensors: whether the head is tied, which biases there are and the size of the vocabulary are
 *   told by them
 * @param factors the values of the rotary factor tensors, where the file has them
 * @throws FoveaError "unknown-model" naming the known families, "bad-file" naming the field
 */
export function configFromGguf(
  metadata: Readonly<Record<string, unknown>>,
  tensors: ReadonlyMap<string, Pick<TensorInfo, "shape">>,
  factors: RotaryFactors = {},
  where = "GGUF metadata",
): ModelConfig {
  const f = new Fields(metadata, where);
  const arch = f.string("general.architecture");
  const family = familyByGguf(arch);
  if (!family) {
    throw new FoveaError(
      "unknown-model",
      `${where} names the architecture ${JSON.stringify(arch)}, which is no known family`,
      {
        hint: `Known families: ${knownFamilies()}.`,
      },
    );
  }
  const key = (name: string): string => `${arch}.${name}`;
  const { traits } = family;
  const width = f.int(key("embedding_length"), LIMITS.width);
  const heads = f.int(key("attention.head_count"), LIMITS.heads);
  const kvHeads = f.int(key("attention.head_count_kv"), { min: 1, max: heads }, heads);
  if (heads % kvHeads !== 0) throw f.wrong(key("attention.head_count_kv"), `a divisor of ${heads}`, kvHeads);
  const headDim =
    f.optionalInt(key("attention.key_length"), LIMITS.headDim) ??
    (width % heads === 0 && width / heads <= LIMITS.headDim.max ? width / heads : undefined);
  if (headDim === undefined) throw f.wrong(key("embedding_length"), `a multiple of ${heads} heads`, width);
  if (f.int(key("attention.value_length"), LIMITS.headDim, headDim) !== headDim) {
    throw new FoveaError("unsupported", `${where}: keys of ${headDim} and values of another length per head`);
  }
  const layers = f.int(key("block_count"), LIMITS.layers);
  const maxPositions = f.int(key("context_length"), LIMITS.positions);
  if (f.int(key("expert_count"), { min: 0 }, 0) !== 0) {
    throw new FoveaError("unsupported", `${where}: ${key("expert_count")} is not 0; mixtures of experts are not run`);
  }
  const shape = tensors.get("token_embd.weight")?.shape;
  const vocab = f.int(key("vocab_size"), LIMITS.vocab, shape?.[0] ?? listLength(metadata["tokenizer.ggml.tokens"]));
  const has = (name: string): boolean => tensors.has(name);
  const eps = traits.norm === "rms" ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon";
  const base: ModelConfig = {
    family: family.name,
    architecture: family.architectures[0],
    layers,
    width,
    heads,
    kvHeads,
    headDim,
    mlpWidth: f.int(key("feed_forward_length"), LIMITS.mlpWidth),
    // The embedding table is what is really there; some files pad it beyond the vocabulary they name.
    vocab: shape?.[0] !== undefined ? Math.max(1, shape[0]) : vocab,
    maxPositions,
    norm: traits.norm,
    normEps: f.number(key(eps), LIMITS.eps),
    normOffset: traits.normOffset,
    activation: family.activation,
    gated: traits.gated,
    mlpBias: traits.biases || has("blk.0.ffn_down.bias"),
    tiedEmbeddings: !has("output.weight"),
    embeddingScale: traits.scaledEmbeddings ? Math.sqrt(width) : 1,
    rotary: traits.learnedPositions
      ? null
      : rotaryFromGguf(f, arch, { headDim, layers, maxPositions, rotaryBase: family.defaults.rotaryBase, factors }),
    learnedPositions: traits.learnedPositions,
    attention: {
      scale: headDim ** -0.5,
      windowLayers: Array.from({ length: layers }, () => false),
      qkNorm: traits.qkNorm,
      biasQKV: has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias"),
      biasO: has("blk.0.attn_output.bias"),
    },
    blockNorms: traits.blockNorms,
    parallelResidual: false,
    bos: f.optionalInt("tokenizer.ggml.bos_token_id", LIMITS.token),
    eos: endTokens(f, vocab),
  };
  return finish(family.readGguf ? family.readGguf(f, base) : base, where);
}

/** Tokens that end a text or a turn. */
function endTokens(f: Fields, vocab: number): number[] {
  const names = ["eos_token_id", "eot_token_id", "eom_token_id"];
  const ids = names.map((name) => f.optionalInt(`tokenizer.ggml.${name}`, LIMITS.token));
  return [...new Set(ids.filter((id) => id !== undefined && id < vocab))] as number[];
}

function listLength(value: unknown): number | undefined {
  return Array.isArray(value) ? value.length : undefined;
}

function rotaryFromGguf(
  f: Fields,
  arch: string,
  model: { headDim: number; layers: number; maxPositions: number; rotaryBase?: number; factors: RotaryFactors },
): RotaryConfig {
  const key = (name: string): string => `${arch}.rope.${name}`;
  const { headDim, factors } = model;
  const dims = f.int(key("dimension_count"), { min: 2, max: headDim }, headDim);
  if (dims % 2 !== 0) throw f.wrong(key("dimension_count"), "an even number", dims);
  const base = f.number(key("freq_base"), LIMITS.base, model.rotaryBase ?? 10000);
  const half = dims / 2;
  for (const [name, list] of Object.entries(factors)) {
    if (list.length !== half || !list.every((x: number) => x >= 1e-6 && x <= 1e6)) {
      throw new FoveaError(
        "bad-file",
        `${f.where}: ${name} rotary factors are ${list.length}; expected ${half} positive ones`,
      );
    }
  }
  const type = f.optionalString(key("scaling.type"));
  const original = f.int(key("scaling.original_context_length"), LIMITS.positions, model.maxPositions);
  const attention = f.optionalNumber(key("scaling.attn_factor"), FACTOR);
  const scaling = (): RotaryScaling => {
    if (factors.short && factors.long) {
      const scale = model.maxPositions / original;
      return {
        type: "longrope",
        short: factors.short,
        long: factors.long,
        original,
        attention: attention ?? longropeAttention(scale, original),
      };
    }
    if (factors.all) return asLlama3(base, dims, factors.all) ?? { type: "factors", factors: factors.all };
    // Files of 2023 say scale_linear and no type.
    const factor = f.number(
      key("scaling.factor"),
      { min: 0, max: 1e6 },
      f.number(key("scale_linear"), { min: 0, max: 1e6 }, 0),
    );
    if (factor === 0 || factor === 1 || type === "none") return { type: "default" };
    if (type === "yarn") {
      return {
        type: "yarn",
        factor,
        original,
        betaFast: f.number(key("scaling.yarn_beta_fast"), FACTOR, 32),
        betaSlow: f.number(key("scaling.yarn_beta_slow"), FACTOR, 1),
        truncate: true,
        // llama.cpp multiplies this factor by YaRN's own.
        attention: (attention ?? 1) * yarnAttention(factor),
      };
    }
    if (type === undefined || type === "linear") return { type: "linear", factor };
    throw new FoveaError("unsupported", `${f.where}: the rotary scaling type ${JSON.stringify(type)} is not known`);
  };
  return { base, dims, interleaved: false, scaling: scaling() };
}

/**
 * Recognises the divisors of Llama 3's scaling, so that they go back into config.json under their own name. Its low and
 * high frequency factors are 1 and 4 in every published model; the rest is solved for.
 */
function asLlama3(base: number, dims: number, factors: readonly number[]): RotaryScaling | undefined {
  const factor = Math.max(...factors);
  const between = factors.findIndex((x) => x > 1.001 && x < factor * 0.999);
  if (between === -1) return undefined;
  const smooth = (1 / factors[between] - 1 / factor) / (1 - 1 / factor);
  const original = Math.round(2 * Math.PI * base ** ((2 * between) / dims) * (3 * smooth + 1));
  const scaling = { type: "llama3", factor, original, lowFrequency: 1, highFrequency: 4 } as const;
  const expected = llama3Factors(base, dims, scaling);
  return expected.every((x, i) => Math.abs(x - factors[i]) <= 1e-4 * x) ? scaling : undefined;
}

/** Llama 3's scaling as divisors of the frequencies, [dims / 2]. */
function llama3Factors(base: number, dims: number, scaling: Extract<RotaryScaling, { type: "llama3" }>): number[] {
  return Array.from({ length: dims / 2 }, (_, i) => {
    const wavelength = 2 * Math.PI * base ** ((2 * i) / dims);
    if (wavelength < scaling.original / scaling.highFrequency) return 1;
    if (wavelength > scaling.original / scaling.lowFrequency) return scaling.factor;
    const range = scaling.highFrequency - scaling.lowFrequency;
    const smooth = (scaling.original / wavelength - scaling.lowFrequency) / range;
    return 1 / ((1 - smooth) / scaling.factor + smooth);
  });
}

/** What a GGUF file of a model says besides its tokenizer: metadata, and the rotary factors that stand as tensors. */
export interface GgufDescription {
  readonly metadata: Map<string, GgufValue>;
  readonly factors: Map<string, Float32Array>;
}

/**
 * The metadata that `configFromGguf` and llama.cpp read back.
 * @throws FoveaError "unsupported" where llama.cpp has no such family, or no form for a mechanism of the model
 */
export function ggufFromConfig(config: ModelConfig): GgufDescription {
  const family = FAMILIES[config.family];
  const arch = family.gguf;
  if (arch === undefined) {
    throw new FoveaError(
      "unsupported",
      `llama.cpp has no architecture for ${family.title}, so no GGUF file can hold it`,
      {
        hint: "Convert to a safetensors folder instead.",
      },
    );
  }
  if (config.mechanism) {
    throw new FoveaError("unsupported", `llama.cpp has no attention called ${config.mechanism.name}`, {
      hint: "Convert to a safetensors folder, or export to ONNX, instead.",
    });
  }
  checkForm(config, family.title);
  const metadata = new Map<string, GgufValue>();
  const factors = new Map<string, Float32Array>();
  const u32 = (name: string, value: number): unknown => metadata.set(`${arch}.${name}`, { type: "u32", value });
  const f32 = (name: string, value: number): unknown => metadata.set(`${arch}.${name}`, { type: "f32", value });
  metadata.set("general.architecture", { type: "string", value: arch });
  u32("block_count", config.layers);
  u32("context_length", Math.min(config.maxPositions, 2 ** 31 - 1));
  u32("embedding_length", config.width);
  u32("feed_forward_length", config.mlpWidth);
  u32("attention.head_count", config.heads);
  u32("attention.head_count_kv", config.kvHeads);
  u32("attention.key_length", config.headDim);
  u32("attention.value_length", config.headDim);
  u32("vocab_size", config.vocab);
  f32(config.norm === "rms" ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon", config.normEps);
  if (config.rotary) writeRotary(config.rotary, config, arch, metadata, factors);
  const extra: Record<string, unknown> = {};
  family.writeGguf?.(config, extra);
  for (const [name, value] of Object.entries(extra)) metadata.set(name, typed(name, value));
  return { metadata, factors };
}

/** Refuses what llama.cpp would run differently. */
function checkForm(config: ModelConfig, title: string): void {
  const family = FAMILIES[config.family];
  const refuse = (what: string): never => {
    throw new FoveaError("unsupported", `llama.cpp runs ${title} without ${what}, so a GGUF file would run wrongly`, {
      hint: "Convert to a safetensors folder instead.",
    });
  };
  const alike = new Set([family.activation, family.activation === "gelu" ? "gelu-tanh" : "gelu"]);
  if (family.activation.startsWith("gelu") ? !alike.has(config.activation) : config.activation !== family.activation) {
    refuse(`the activation ${config.activation}`);
  }
  const fixed = config.family === "gemma2" ? 46 : config.family === "gemma3" ? 62 : 0;
  const size = config.layers === fixed ? Math.floor(config.width / config.heads) : config.headDim;
  if (Math.abs(config.attention.scale - size ** -0.5) > 1e-6 * config.attention.scale) {
    refuse(`an attention scale of ${config.attention.scale}`);
  }
  if (config.family === "gemma2" && (config.attention.softcap === undefined || config.finalSoftcap === undefined)) {
    refuse("switching soft-capping off");
  }
  if (
    !config.family.startsWith("gemma") &&
    (config.attention.softcap !== undefined || config.finalSoftcap !== undefined)
  ) {
    refuse("soft-capping");
  }
  const narrow = config.heads * config.headDim !== config.width;
  if (narrow && ["phi3", "gpt-neox", "gpt2", "olmo2"].includes(config.family)) refuse("heads of their own width");
}

function typed(name: string, value: unknown): GgufValue {
  if (typeof value === "boolean") return { type: "bool", value };
  if (typeof value === "number" && name.endsWith("sliding_window")) return { type: "u32", value };
  if (typeof value === "number") return { type: "f32", value };
  if (Array.isArray(value)) return { type: "array", of: "bool", value: value as boolean[] };
  throw new FoveaError("internal", `${name}: no GGUF form for this value`);
}

function writeRotary(
  rotary: RotaryConfig,
  config: ModelConfig,
  arch: string,
  metadata: Map<string, GgufValue>,
  factors: Map<string, Float32Array>,
): void {
  const { scaling } = rotary;
  const f32 = (name: string, value: number): unknown => metadata.set(`${arch}.rope.${name}`, { type: "f32", value });
  const u32 = (name: string, value: number): unknown => metadata.set(`${arch}.rope.${name}`, { type: "u32", value });
  const type = (value: string): unknown => metadata.set(`${arch}.rope.scaling.type`, { type: "string", value });
  const refuse = (): never => {
    throw new FoveaError(
      "unsupported",
      `llama.cpp has no form for ${scaling.type} rotary scaling in ${FAMILIES[config.family].title}`,
      {
        hint: "Convert to a safetensors folder instead.",
      },
    );
  };
  u32("dimension_count", rotary.dims);
  f32("freq_base", rotary.base);
  switch (scaling.type) {
    case "default":
      return;
    case "linear":
      type("linear");
      f32("scaling.factor", scaling.factor);
      return;
    case "yarn":
      if (!scaling.truncate) refuse();
      type("yarn");
      f32("scaling.factor", scaling.factor);
      u32("scaling.original_context_length", scaling.original);
      f32("scaling.attn_factor", scaling.attention / yarnAttention(scaling.factor));
      f32("scaling.yarn_beta_fast", scaling.betaFast);
      f32("scaling.yarn_beta_slow", scaling.betaSlow);
      return;
    case "llama3":
    case "factors":
      if (config.family !== "llama") refuse();
      factors.set(
        "rope_freqs.weight",
        Float32Array.from(
          scaling.type === "llama3" ? llama3Factors(rotary.base, rotary.dims, scaling) : scaling.factors,
        ),
      );
      return;
    case "longrope":
      if (config.family !== "phi3" && config.family !== "llama") refuse();
      type("longrope");
      u32("scaling.original_context_length", scaling.original);
      f32("scaling.attn_factor", scaling.attention);
      factors.set("rope_factors_long.weight", Float32Array.from(scaling.long));
      factors.set("rope_factors_short.weight", Float32Array.from(scaling.short));
      return;
    default:
      refuse();
  }
}
