import { FoveaError } from "../error.js";
import type { Activation, ModelConfig } from "./config.js";
import { type Fields, LIMITS, layerTypes } from "./fields.js";

export type FamilyName =
  | "llama"
  | "qwen2"
  | "qwen3"
  | "gemma2"
  | "gemma3"
  | "phi3"
  | "gpt2"
  | "gpt-neox"
  | "olmo2"
  | "opt";

/** What config.json calls the sizes. A key that is absent means that the family has no such field. */
export interface ConfigKeys {
  readonly layers: string;
  readonly width: string;
  readonly heads: string;
  readonly kvHeads?: string;
  readonly headDim?: string;
  readonly mlpWidth: string;
  readonly maxPositions: string;
  readonly normEps?: string;
  readonly activation: string;
}

/** What the family's library assumes where config.json says nothing. */
export interface FamilyDefaults {
  readonly activation: string;
  readonly normEps: number;
  readonly tied: boolean;
  readonly heads?: number;
  readonly kvHeads?: number;
  readonly headDim?: number;
  readonly vocab?: number;
  /** mlpWidth as a multiple of width. */
  readonly mlpRatio?: number;
  readonly maxPositions?: number;
  readonly rotaryBase?: number;
  readonly rotaryPartial?: number;
  readonly rotaryBaseKey?: string;
  readonly rotaryPartialKey?: string;
  /** Base of the window layers' rotary embeddings, where they have their own. */
  readonly localBase?: number;
}

/** How the family's block differs from others'. */
export interface FamilyTraits {
  readonly norm: "rms" | "layer";
  readonly normOffset: 0 | 1;
  readonly gated: boolean;
  readonly blockNorms: "pre" | "pre-post" | "post";
  readonly qkNorm: "none" | "head" | "full";
  /** Biases of all linear layers, unless the config says otherwise. */
  readonly biases: boolean;
  readonly biasQKV?: boolean;
  /** Embeddings are multiplied by sqrt(width). */
  readonly scaledEmbeddings?: boolean;
  readonly learnedPositions: null | { readonly offset: number };
}

/**
 * A tensor of a file: `stem` plus ".weight" or ".bias" holds the canonical tensors `parts`, one after the other along
 * the output dimension unless `split` says otherwise.
 */
export interface TensorRow {
  readonly stem: string;
  readonly parts: readonly string[];
  /** "heads": the parts alternate head by head (GPT-NeoX). */
  readonly split?: "heads";
  /** The file holds [in, out] (GPT-2's Conv1D). */
  readonly transposed?: true;
  /** Rows of a head stand in interleaved rotary order (llama.cpp's llama). */
  readonly interleaved?: true;
}

/** Names of tensors in one file format. */
export interface TensorNames {
  /** Before `model` and `layer` stems when writing; reading tries the others too. */
  readonly prefixes: readonly string[];
  /** Tensors of the whole model, under the prefix. */
  readonly model: readonly TensorRow[];
  /** Tensors outside the prefix. */
  readonly outside: readonly TensorRow[];
  /** Prefix of a layer, "{l}" standing for its index, under `prefix`. */
  readonly layer: string;
  readonly layers: readonly TensorRow[];
  /** What files add to norm weights. */
  readonly normShift?: 1;
}

/** One model family: everything that is not common to all. To add a family is to add a row of `FAMILIES`. */
export interface Family {
  readonly name: FamilyName;
  /** For people. */
  readonly title: string;
  readonly architectures: readonly string[];
  /** model_type in config.json, in the order of `architectures`. */
  readonly modelTypes: readonly string[];
  /** llama.cpp's name of the architecture; absent where llama.cpp has none. */
  readonly gguf?: string;
  readonly keys: ConfigKeys;
  readonly defaults: FamilyDefaults;
  readonly traits: FamilyTraits;
  readonly hf: TensorNames;
  readonly ggufTensors?: TensorNames;
  /** Small differences: from config.json, over what is common. */
  readonly read?: (f: Fields, config: ModelConfig) => ModelConfig;
  /** The same differences, into config.json. */
  readonly write?: (config: ModelConfig, json: Record<string, unknown>) => void;
  /** The same from and into GGUF metadata, whose keys carry the architecture's prefix. */
  readonly readGguf?: (f: Fields, config: ModelConfig) => ModelConfig;
  readonly writeGguf?: (config: ModelConfig, metadata: Record<string, unknown>) => void;
  /** Activation where the file does not say (GGUF never does). */
  readonly activation: Activation;
}

// ---- what most families share ----

const KEYS: ConfigKeys = {
  layers: "num_hidden_layers",
  width: "hidden_size",
  heads: "num_attention_heads",
  kvHeads: "num_key_value_heads",
  headDim: "head_dim",
  mlpWidth: "intermediate_size",
  maxPositions: "max_position_embeddings",
  normEps: "rms_norm_eps",
  activation: "hidden_act",
};

const TRAITS: FamilyTraits = {
  norm: "rms",
  normOffset: 0,
  gated: true,
  blockNorms: "pre",
  qkNorm: "none",
  biases: false,
  learnedPositions: null,
};

const one = (stem: string, part: string): TensorRow => ({ stem, parts: [part] });
const ATTENTION = [
  one("self_attn.q_proj", "q"),
  one("self_attn.k_proj", "k"),
  one("self_attn.v_proj", "v"),
  one("self_attn.o_proj", "o"),
];
const QK_NORM = [one("self_attn.q_norm", "q_norm"), one("self_attn.k_norm", "k_norm")];
const MLP = [one("mlp.gate_proj", "gate"), one("mlp.up_proj", "up"), one("mlp.down_proj", "down")];
const PRE_NORMS = [one("input_layernorm", "attn_norm"), one("post_attention_layernorm", "mlp_norm")];
const ALL_NORMS = [
  one("input_layernorm", "attn_norm"),
  one("post_attention_layernorm", "post_attn_norm"),
  one("pre_feedforward_layernorm", "mlp_norm"),
  one("post_feedforward_layernorm", "post_mlp_norm"),
];

function hfNames(layers: readonly TensorRow[], prefixes: readonly string[] = ["model.", ""]): TensorNames {
  return {
    prefixes,
    model: [one("embed_tokens", "embed"), one("norm", "norm")],
    outside: [one("lm_head", "head")],
    layer: "layers.{l}.",
    layers,
  };
}

const GGUF_LAYER = [
  one("attn_norm", "attn_norm"),
  one("attn_q", "q"),
  one("attn_k", "k"),
  one("attn_v", "v"),
  one("attn_output", "o"),
  one("attn_q_norm", "q_norm"),
  one("attn_k_norm", "k_norm"),
  one("post_attention_norm", "post_attn_norm"),
  one("ffn_norm", "mlp_norm"),
  one("ffn_gate", "gate"),
  one("ffn_up", "up"),
  one("ffn_down", "down"),
  one("post_ffw_norm", "post_mlp_norm"),
];
const GGUF: TensorNames = {
  prefixes: [""],
  model: [one("token_embd", "embed"), one("position_embd", "embed_positions"), one("output_norm", "norm")],
  outside: [one("output", "head")],
  layer: "blk.{l}.",
  layers: GGUF_LAYER,
};

/** The common GGUF names with some rows of a layer replaced: the row takes the place of those of its parts. */
function ggufWith(rows: readonly TensorRow[], more: Partial<TensorNames> = {}): TensorNames {
  const replaced = new Set(rows.flatMap((row) => row.parts));
  return { ...GGUF, layers: [...GGUF_LAYER.filter((row) => !replaced.has(row.parts[0])), ...rows], ...more };
}
const GGUF_FUSED_QKV: TensorRow = { stem: "attn_qkv", parts: ["q", "k", "v"] };

// ---- differences ----

function attentionWith(config: ModelConfig, attention: Partial<ModelConfig["attention"]>): ModelConfig {
  return { ...config, attention: { ...config.attention, ...attention } };
}

/** `attention_bias` puts biases on all four projections. */
function readAttentionBias(f: Fields, config: ModelConfig, fallback = false): ModelConfig {
  const bias = f.bool("attention_bias", fallback);
  return attentionWith(config, { biasQKV: bias, biasO: bias });
}

function writeAttentionBias(config: ModelConfig, json: Record<string, unknown>): void {
  json.attention_bias = config.attention.biasQKV;
}

const WINDOW = LIMITS.positions;

/** A window in all layers (Mistral, Phi-3), where `sliding_window` is set. */
function readWindowEverywhere(f: Fields, config: ModelConfig): ModelConfig {
  const window = f.optionalInt("sliding_window", WINDOW);
  if (window === undefined) return config;
  const windowLayers = layerTypes(f, config.layers) ?? Array.from({ length: config.layers }, () => true);
  return attentionWith(config, { window, windowLayers });
}

function writeWindowEverywhere(config: ModelConfig, json: Record<string, unknown>): void {
  json.sliding_window = config.attention.window ?? null;
}

/** Qwen: a window in the layers from `max_window_layers` on, and only when `use_sliding_window` says so. */
function readQwenWindow(f: Fields, config: ModelConfig): ModelConfig {
  if (!f.bool("use_sliding_window", false)) return config;
  const window = f.int("sliding_window", WINDOW, 4096);
  const from = f.int("max_window_layers", { min: 0, max: 2 ** 31 }, 28);
  const windowLayers = layerTypes(f, config.layers) ?? Array.from({ length: config.layers }, (_, l) => l >= from);
  return attentionWith(config, windowLayers.includes(true) ? { window, windowLayers } : {});
}

function writeQwenWindow(config: ModelConfig, json: Record<string, unknown>): void {
  const { window, windowLayers } = config.attention;
  json.use_sliding_window = window !== undefined;
  if (window === undefined) return;
  json.sliding_window = window;
  json.layer_types = layerTypeNames(windowLayers);
}

function layerTypeNames(windowLayers: readonly boolean[]): string[] {
  return windowLayers.map((sliding) => (sliding ? "sliding_attention" : "full_attention"));
}

function cap(f: Fields, key: string, fallback: number | undefined): number | undefined {
  // null switches a cap off; only an absent key takes the default.
  return f.given(key) ? f.optionalNumber(key, LIMITS.cap) : fallback;
}

/** Gemma: the scale from `query_pre_attn_scalar`, caps, and windows in all but every n-th layer. */
function readGemma(
  f: Fields,
  config: ModelConfig,
  { caps, every }: { caps: readonly [number | undefined, number | undefined]; every: number },
): ModelConfig {
  if (f.bool("use_bidirectional_attention", false)) {
    throw new FoveaError("unsupported", `${f.where}: use_bidirectional_attention is true; only causal models are read`);
  }
  const pattern = f.int("sliding_window_pattern", { min: 1, max: 1024 }, every);
  const windowLayers =
    layerTypes(f, config.layers) ?? Array.from({ length: config.layers }, (_, l) => (l + 1) % pattern !== 0);
  const biased = readAttentionBias(f, config);
  const rotary = config.rotary && { ...config.rotary, localLayers: config.rotary.localLayers && windowLayers };
  return attentionWith(
    { ...biased, rotary, finalSoftcap: cap(f, "final_logit_softcapping", caps[1]) },
    {
      scale: f.number("query_pre_attn_scalar", { min: 1e-3, max: 1e6 }, 256) ** -0.5,
      softcap: cap(f, "attn_logit_softcapping", caps[0]),
      window: windowLayers.includes(true) ? f.int("sliding_window", WINDOW, 4096) : undefined,
      windowLayers,
    },
  );
}

function writeGemma(config: ModelConfig, json: Record<string, unknown>): void {
  writeAttentionBias(config, json);
  json.hidden_act = json.hidden_activation;
  json.query_pre_attn_scalar = cleanInverseSquare(config.attention.scale);
  json.attn_logit_softcapping = config.attention.softcap ?? null;
  json.final_logit_softcapping = config.finalSoftcap ?? null;
  if (config.attention.window !== undefined) json.sliding_window = config.attention.window;
  json.layer_types = layerTypeNames(config.attention.windowLayers);
}

/** scale^-2, without the rounding error of a whole number's square root. */
function cleanInverseSquare(scale: number): number {
  const value = scale ** -2;
  return Math.abs(value - Math.round(value)) < 1e-6 * value ? Math.round(value) : value;
}

/** Windows from GGUF metadata: all but every n-th layer. */
function readGgufWindow(f: Fields, config: ModelConfig, every: number, fallback?: number): ModelConfig {
  const arch = f.string("general.architecture");
  const size = f.optionalInt(`${arch}.attention.sliding_window`, { min: 0, max: 2 ** 31 }) ?? fallback ?? 0;
  if (size === 0) return config;
  const listed = f.raw(`${arch}.attention.sliding_window_pattern`);
  const pattern = typeof listed === "number" ? listed : every;
  const windowLayers =
    Array.isArray(listed) && listed.length === config.layers && listed.every((on) => typeof on === "boolean")
      ? (listed as boolean[])
      : Array.from({ length: config.layers }, (_, l) => pattern === 0 || (l + 1) % pattern !== 0);
  if (!windowLayers.includes(true)) return config;
  const rotary = config.rotary && { ...config.rotary, localLayers: config.rotary.localLayers && windowLayers };
  return attentionWith({ ...config, rotary }, { window: size, windowLayers });
}

/** The period n when all but every n-th layer (0: all) read a window. */
function windowPeriod(windowLayers: readonly boolean[]): number | undefined {
  const first = windowLayers.indexOf(false);
  if (first === -1) return 0;
  return windowLayers.every((on, l) => on === ((l + 1) % (first + 1) !== 0)) ? first + 1 : undefined;
}

function writeGgufWindow(config: ModelConfig, metadata: Record<string, unknown>, arch: string, every: number): void {
  const { window, windowLayers } = config.attention;
  if (window === undefined) return;
  const period = windowPeriod(windowLayers);
  const fits = period === every || (every !== 0 && windowLayers.every((on, l) => on === ((l + 1) % every !== 0)));
  metadata[`${arch}.attention.sliding_window`] = window;
  if (!fits) metadata[`${arch}.attention.sliding_window_pattern`] = [...windowLayers];
}

const refuse = (f: Fields, key: string, value: unknown, expected: unknown): never => {
  throw new FoveaError("unsupported", `${f.where}: ${key} is ${String(value)}; only ${String(expected)} can be run`);
};

// ---- the table ----

const LLAMA: Family = {
  name: "llama",
  title: "Llama (with Mistral, SmolLM, TinyLlama)",
  architectures: ["LlamaForCausalLM", "MistralForCausalLM", "LlamaModel", "MistralModel"],
  modelTypes: ["llama", "mistral", "llama", "mistral"],
  gguf: "llama",
  keys: KEYS,
  defaults: { activation: "silu", normEps: 1e-6, tied: false, maxPositions: 2048 },
  traits: TRAITS,
  activation: "silu",
  hf: hfNames([...PRE_NORMS, ...ATTENTION, ...MLP]),
  ggufTensors: ggufWith([
    { stem: "attn_q", parts: ["q"], interleaved: true },
    { stem: "attn_k", parts: ["k"], interleaved: true },
  ]),
  read: (f, config) => {
    const biased = { ...readAttentionBias(f, config), mlpBias: f.bool("mlp_bias", false) };
    return config.architecture.startsWith("Mistral") ? readWindowEverywhere(f, biased) : biased;
  },
  write: (config, json) => {
    writeAttentionBias(config, json);
    json.mlp_bias = config.mlpBias;
    if (json.model_type === "mistral") writeWindowEverywhere(config, json);
  },
  readGguf: (f, config) => {
    const windowed = readGgufWindow(f, config, 0);
    return windowed.attention.window === undefined ? windowed : { ...windowed, architecture: "MistralForCausalLM" };
  },
  // llama.cpp reads no window for this architecture: it agrees up to the window's length.
  writeGguf: (config, metadata) => writeGgufWindow(config, metadata, "llama", 0),
};

const QWEN2: Family = {
  name: "qwen2",
  title: "Qwen2 and Qwen2.5",
  architectures: ["Qwen2ForCausalLM", "Qwen2Model"],
  modelTypes: ["qwen2", "qwen2"],
  gguf: "qwen2",
  keys: { ...KEYS },
  defaults: { activation: "silu", normEps: 1e-6, tied: false, maxPositions: 32768 },
  traits: { ...TRAITS, biasQKV: true },
  activation: "silu",
  hf: hfNames([...PRE_NORMS, ...ATTENTION, ...MLP]),
  ggufTensors: GGUF,
  read: readQwenWindow,
  write: writeQwenWindow,
  readGguf: (f, config) => readGgufWindow(f, config, 0),
  writeGguf: (config, metadata) => writeGgufWindow(config, metadata, "qwen2", 0),
};

const QWEN3: Family = {
  ...QWEN2,
  name: "qwen3",
  title: "Qwen3",
  architectures: ["Qwen3ForCausalLM", "Qwen3Model"],
  modelTypes: ["qwen3", "qwen3"],
  gguf: "qwen3",
  defaults: { ...QWEN2.defaults, headDim: 128 },
  traits: { ...TRAITS, qkNorm: "head" },
  hf: hfNames([...PRE_NORMS, ...ATTENTION, ...QK_NORM, ...MLP]),
  read: (f, config) => readQwenWindow(f, readAttentionBias(f, config)),
  write: (config, json) => {
    writeAttentionBias(config, json);
    writeQwenWindow(config, json);
  },
  writeGguf: (config, metadata) => writeGgufWindow(config, metadata, "qwen3", 0),
};

const GEMMA_KEYS = { ...KEYS, activation: "hidden_activation" };
const GEMMA_TRAITS: FamilyTraits = { ...TRAITS, normOffset: 1, blockNorms: "pre-post", scaledEmbeddings: true };
const GEMMA_GGUF: TensorNames = { ...GGUF, normShift: 1 };

const GEMMA2: Family = {
  name: "gemma2",
  title: "Gemma 2",
  architectures: ["Gemma2ForCausalLM", "Gemma2Model"],
  modelTypes: ["gemma2", "gemma2"],
  gguf: "gemma2",
  keys: GEMMA_KEYS,
  defaults: {
    activation: "gelu_pytorch_tanh",
    normEps: 1e-6,
    tied: true,
    heads: 8,
    kvHeads: 4,
    headDim: 256,
    vocab: 256000,
    maxPositions: 8192,
  },
  traits: GEMMA_TRAITS,
  activation: "gelu-tanh",
  hf: hfNames([...ALL_NORMS, ...ATTENTION, ...MLP]),
  ggufTensors: GEMMA_GGUF,
  read: (f, config) => readGemma(f, config, { caps: [50, 30], every: 2 }),
  write: writeGemma,
  readGguf: (f, config) => {
    const caps = attentionWith(config, { softcap: f.number("gemma2.attn_logit_softcapping", LIMITS.cap, 50) });
    const capped = { ...caps, finalSoftcap: f.number("gemma2.final_logit_softcapping", LIMITS.cap, 30) };
    return readGgufWindow(f, gemmaGgufScale(capped, 46), 2, 4096);
  },
  writeGguf: (config, metadata) => {
    if (config.attention.softcap !== undefined) metadata["gemma2.attn_logit_softcapping"] = config.attention.softcap;
    if (config.finalSoftcap !== undefined) metadata["gemma2.final_logit_softcapping"] = config.finalSoftcap;
    writeGgufWindow(config, metadata, "gemma2", 2);
  },
};

/** GGUF does not carry Gemma's scale; llama.cpp takes 1/sqrt(headDim), except for the 27B models, told by their layers. */
function gemmaGgufScale(config: ModelConfig, layersOf27B: number): ModelConfig {
  const size = config.layers === layersOf27B ? Math.floor(config.width / config.heads) : config.headDim;
  return attentionWith(config, { scale: size ** -0.5 });
}

const GEMMA3: Family = {
  ...GEMMA2,
  name: "gemma3",
  title: "Gemma 3 (text)",
  architectures: ["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration", "Gemma3TextModel"],
  modelTypes: ["gemma3_text", "gemma3", "gemma3_text"],
  gguf: "gemma3",
  defaults: { ...GEMMA2.defaults, vocab: 262208, maxPositions: 131072, rotaryBase: 1e6, localBase: 10000 },
  traits: { ...GEMMA_TRAITS, qkNorm: "head" },
  hf: hfNames(
    [...ALL_NORMS, ...ATTENTION, ...QK_NORM, ...MLP],
    ["model.", "language_model.model.", "model.language_model.", ""],
  ),
  read: (f, config) => ({
    ...readGemma(f, config, { caps: [undefined, undefined], every: 6 }),
    // The text part of a multimodal checkpoint is written as what it is.
    architecture: "Gemma3ForCausalLM",
  }),
  readGguf: (f, config) => {
    const rotary = config.rotary && {
      ...config.rotary,
      localBase: f.number("gemma3.rope.freq_base_swa", LIMITS.base, 10000),
      localScaling: { type: "default" } as const,
      localLayers: config.attention.windowLayers,
    };
    const finalSoftcap = f.optionalNumber("gemma3.final_logit_softcapping", LIMITS.cap);
    return readGgufWindow(f, gemmaGgufScale({ ...config, rotary, finalSoftcap }, 62), 6);
  },
  writeGguf: (config, metadata) => {
    if (config.finalSoftcap !== undefined) metadata["gemma3.final_logit_softcapping"] = config.finalSoftcap;
    if (config.rotary?.localBase !== undefined) metadata["gemma3.rope.freq_base_swa"] = config.rotary.localBase;
    writeGgufWindow(config, metadata, "gemma3", 6);
  },
};

const PHI3: Family = {
  name: "phi3",
  title: "Phi-3",
  architectures: ["Phi3ForCausalLM", "Phi3Model"],
  modelTypes: ["phi3", "phi3"],
  gguf: "phi3",
  keys: { ...KEYS, headDim: undefined },
  defaults: { activation: "silu", normEps: 1e-5, tied: false, maxPositions: 4096 },
  traits: TRAITS,
  activation: "silu",
  hf: hfNames([
    ...PRE_NORMS,
    { stem: "self_attn.qkv_proj", parts: ["q", "k", "v"] },
    one("self_attn.o_proj", "o"),
    { stem: "mlp.gate_up_proj", parts: ["gate", "up"] },
    one("mlp.down_proj", "down"),
  ]),
  ggufTensors: ggufWith([GGUF_FUSED_QKV, { stem: "ffn_up", parts: ["gate", "up"] }]),
  read: (f, config) => readWindowEverywhere(f, readAttentionBias(f, config)),
  write: (config, json) => {
    writeAttentionBias(config, json);
    writeWindowEverywhere(config, json);
  },
  readGguf: (f, config) => readGgufWindow(f, config, 0),
  // llama.cpp reads this window but does not apply it: it agrees up to the window's length.
  writeGguf: (config, metadata) => writeGgufWindow(config, metadata, "phi3", 0),
};

const LAYER_NORM: FamilyTraits = { ...TRAITS, norm: "layer", gated: false, biases: true };

const GPT2: Family = {
  name: "gpt2",
  title: "GPT-2",
  architectures: ["GPT2LMHeadModel", "GPT2Model"],
  modelTypes: ["gpt2", "gpt2"],
  gguf: "gpt2",
  keys: {
    layers: "n_layer",
    width: "n_embd",
    heads: "n_head",
    mlpWidth: "n_inner",
    maxPositions: "n_positions",
    normEps: "layer_norm_epsilon",
    activation: "activation_function",
  },
  defaults: { activation: "gelu_new", normEps: 1e-5, tied: true, mlpRatio: 4, maxPositions: 1024 },
  traits: { ...LAYER_NORM, learnedPositions: { offset: 0 } },
  activation: "gelu-tanh",
  hf: {
    prefixes: ["transformer.", ""],
    model: [one("wte", "embed"), one("wpe", "embed_positions"), one("ln_f", "norm")],
    outside: [one("lm_head", "head")],
    layer: "h.{l}.",
    layers: [
      one("ln_1", "attn_norm"),
      one("ln_2", "mlp_norm"),
      { stem: "attn.c_attn", parts: ["q", "k", "v"], transposed: true },
      { stem: "attn.c_proj", parts: ["o"], transposed: true },
      { stem: "mlp.c_fc", parts: ["up"], transposed: true },
      { stem: "mlp.c_proj", parts: ["down"], transposed: true },
    ],
  },
  ggufTensors: ggufWith([GGUF_FUSED_QKV]),
  read: (f, config) => {
    if (f.bool("scale_attn_by_inverse_layer_idx", false)) refuse(f, "scale_attn_by_inverse_layer_idx", true, false);
    if (f.bool("add_cross_attention", false)) refuse(f, "add_cross_attention", true, false);
    return f.bool("scale_attn_weights", true) ? config : attentionWith(config, { scale: 1 });
  },
  write: (config, json) => {
    if (config.attention.scale === 1 && config.headDim !== 1) json.scale_attn_weights = false;
  },
};

const NEOX: Family = {
  name: "gpt-neox",
  title: "GPT-NeoX (Pythia)",
  architectures: ["GPTNeoXForCausalLM", "GPTNeoXModel"],
  modelTypes: ["gpt_neox", "gpt_neox"],
  gguf: "gptneox",
  keys: { ...KEYS, kvHeads: undefined, headDim: undefined, normEps: "layer_norm_eps" },
  defaults: {
    activation: "gelu",
    normEps: 1e-5,
    tied: false,
    maxPositions: 2048,
    rotaryPartial: 0.25,
    rotaryPartialKey: "rotary_pct",
    rotaryBaseKey: "rotary_emb_base",
  },
  traits: LAYER_NORM,
  activation: "gelu",
  hf: {
    prefixes: ["gpt_neox.", ""],
    model: [one("embed_in", "embed"), one("final_layer_norm", "norm")],
    outside: [one("embed_out", "head")],
    layer: "layers.{l}.",
    layers: [
      ...PRE_NORMS,
      { stem: "attention.query_key_value", parts: ["q", "k", "v"], split: "heads" },
      one("attention.dense", "o"),
      one("mlp.dense_h_to_4h", "up"),
      one("mlp.dense_4h_to_h", "down"),
    ],
  },
  ggufTensors: ggufWith([GGUF_FUSED_QKV]),
  read: (f, config) => ({
    ...readAttentionBias(f, config, true),
    parallelResidual: f.bool("use_parallel_residual", true),
  }),
  write: (config, json) => {
    writeAttentionBias(config, json);
    json.use_parallel_residual = config.parallelResidual;
    // Its own default is 0.25, so it is always said.
    json.rotary_pct = config.rotary ? config.rotary.dims / config.headDim : 1;
  },
  readGguf: (f, config) => ({ ...config, parallelResidual: f.bool("gptneox.use_parallel_residual", true) }),
  writeGguf: (config, metadata) => {
    metadata["gptneox.use_parallel_residual"] = config.parallelResidual;
  },
};

const OLMO2: Family = {
  name: "olmo2",
  title: "OLMo 2",
  architectures: ["Olmo2ForCausalLM", "Olmo2Model"],
  modelTypes: ["olmo2", "olmo2"],
  gguf: "olmo2",
  keys: { ...KEYS, headDim: undefined },
  defaults: { activation: "silu", normEps: 1e-5, tied: false, maxPositions: 2048 },
  traits: { ...TRAITS, blockNorms: "post", qkNorm: "full" },
  activation: "silu",
  hf: hfNames([
    one("post_attention_layernorm", "post_attn_norm"),
    one("post_feedforward_layernorm", "post_mlp_norm"),
    ...ATTENTION,
    ...QK_NORM,
    ...MLP,
  ]),
  ggufTensors: GGUF,
  read: (f, config) => readAttentionBias(f, config),
  write: writeAttentionBias,
  readGguf: (f, config) => {
    // The same architecture name holds OLMo 3, whose windows and scaling differ by layer.
    const window = f.int("olmo2.attention.sliding_window", { min: 0, max: 2 ** 31 }, 0);
    return window === 0 ? config : refuse(f, "olmo2.attention.sliding_window", window, 0);
  },
};

const OPT: Family = {
  name: "opt",
  title: "OPT",
  architectures: ["OPTForCausalLM", "OPTModel"],
  modelTypes: ["opt", "opt"],
  keys: {
    layers: "num_hidden_layers",
    width: "hidden_size",
    heads: "num_attention_heads",
    mlpWidth: "ffn_dim",
    maxPositions: "max_position_embeddings",
    activation: "activation_function",
  },
  defaults: { activation: "relu", normEps: 1e-5, tied: true, maxPositions: 2048 },
  traits: { ...LAYER_NORM, learnedPositions: { offset: 2 } },
  activation: "relu",
  hf: {
    prefixes: ["model.decoder.", "decoder.", ""],
    model: [one("embed_tokens", "embed"), one("embed_positions", "embed_positions"), one("final_layer_norm", "norm")],
    outside: [one("lm_head", "head")],
    layer: "layers.{l}.",
    layers: [
      one("self_attn_layer_norm", "attn_norm"),
      one("final_layer_norm", "mlp_norm"),
      one("self_attn.q_proj", "q"),
      one("self_attn.k_proj", "k"),
      one("self_attn.v_proj", "v"),
      one("self_attn.out_proj", "o"),
      one("fc1", "up"),
      one("fc2", "down"),
    ],
  },
  read: (f, config) => {
    if (!f.bool("do_layer_norm_before", true)) refuse(f, "do_layer_norm_before", false, true);
    if (!f.bool("layer_norm_elementwise_affine", true)) refuse(f, "layer_norm_elementwise_affine", false, true);
    if (f.bool("_remove_final_layer_norm", false)) refuse(f, "_remove_final_layer_norm", true, false);
    const projected = f.int("word_embed_proj_dim", LIMITS.width, config.width);
    if (projected !== config.width) refuse(f, "word_embed_proj_dim", projected, `hidden_size (${config.width})`);
    const biases = f.bool("enable_bias", true);
    return { ...attentionWith(config, { biasQKV: biases, biasO: biases }), mlpBias: biases };
  },
  write: (config, json) => {
    json.do_layer_norm_before = true;
    json.word_embed_proj_dim = config.width;
    json.enable_bias = config.mlpBias;
  },
};

/** All families by name. */
export const FAMILIES: Readonly<Record<FamilyName, Family>> = {
  llama: LLAMA,
  qwen2: QWEN2,
  qwen3: QWEN3,
  gemma2: GEMMA2,
  gemma3: GEMMA3,
  phi3: PHI3,
  gpt2: GPT2,
  "gpt-neox": NEOX,
  olmo2: OLMO2,
  opt: OPT,
};

/** The family of an architecture as config.json names it. */
export function familyByArchitecture(architecture: string): Family | undefined {
  return Object.values(FAMILIES).find((family) => family.architectures.includes(architecture));
}

/** The family of an architecture as GGUF names it. */
export function familyByGguf(architecture: string): Family | undefined {
  return Object.values(FAMILIES).find((family) => family.gguf === architecture);
}

/** The families for an error message. */
export function knownFamilies(): string {
  return Object.values(FAMILIES)
    .map((family) => family.title)
    .join(", ");
}
