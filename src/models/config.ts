import { FoveaError } from "../error.js";
import { FAMILIES, type Family, type FamilyName, familyByArchitecture, knownFamilies } from "./families.js";
import { Fields, LIMITS } from "./fields.js";
import { BoundMechanism, type MechanismUse, useMechanism } from "./mechanism.js";
import { canonicalTensors } from "./names.js";
import { parseScaling, type RotaryConfig, type RotaryScaling, scalingJson } from "./rotary.js";

export type Activation = "silu" | "gelu" | "gelu-tanh" | "relu";

/** A model's shape and mechanisms, the same for every family and file format. */
export interface ModelConfig {
  readonly family: FamilyName;
  /** The name the checkpoint goes by in Hugging Face's config.json, e.g. "MistralForCausalLM". */
  readonly architecture: string;
  readonly layers: number;
  readonly width: number;
  readonly heads: number;
  /** Key-value heads; query head h reads key-value head floor(h / (heads / kvHeads)). */
  readonly kvHeads: number;
  readonly headDim: number;
  readonly mlpWidth: number;
  readonly vocab: number;
  readonly maxPositions: number;
  readonly norm: "rms" | "layer";
  readonly normEps: number;
  /** 1: norms multiply by weight + 1 (Gemma). */
  readonly normOffset: 0 | 1;
  readonly activation: Activation;
  /** down(activation(gate(x)) * up(x)) rather than down(activation(up(x))). */
  readonly gated: boolean;
  readonly mlpBias: boolean;
  readonly tiedEmbeddings: boolean;
  /** Factor on the token embeddings. */
  readonly embeddingScale: number;
  readonly rotary: RotaryConfig | null;
  /** A table of maxPositions + offset learned position embeddings; position p is row p + offset. */
  readonly learnedPositions: null | { readonly offset: number };
  readonly attention: AttentionConfig;
  /** Logits become cap * tanh(logits / cap). */
  readonly finalSoftcap?: number;
  /** Where norms stand: before attention and MLP, before and after, or after only. */
  readonly blockNorms: "pre" | "pre-post" | "post";
  /** Attention and MLP read the same residual and are added to it together. */
  readonly parallelResidual: boolean;
  readonly bos?: number;
  readonly eos: readonly number[];
  /** What stands in the place of softmax attention, in every layer. */
  readonly mechanism?: MechanismUse;
}

export interface AttentionConfig {
  /** Factor on q.k. */
  readonly scale: number;
  /** Attention logits become cap * tanh(logits / cap), after the scale. */
  readonly softcap?: number;
  /** In window layers query i reads keys j with i - j < window. */
  readonly window?: number;
  /** [layers] Which layers read a window only. */
  readonly windowLayers: readonly boolean[];
  /** RMS norm of q and k: none, per head, or over all heads together; before rotary. */
  readonly qkNorm: "none" | "head" | "full";
  readonly biasQKV: boolean;
  readonly biasO: boolean;
}

/** Names of activations in config.json. */
const ACTIVATIONS: Readonly<Record<string, Activation>> = {
  silu: "silu",
  swish: "silu",
  gelu: "gelu",
  gelu_new: "gelu-tanh",
  gelu_fast: "gelu-tanh",
  gelu_pytorch_tanh: "gelu-tanh",
  relu: "relu",
};

/**
 * Reads a Hugging Face config.json, already parsed.
 * @param json the object of the file; a config that holds its language model in `text_config` is read there
 * @param where what error messages call it
 * @throws FoveaError "unknown-model" naming the known families; "bad-file" naming the field, what was given and what was
 *   expected; "unsupported" for a variant that would run wrongly
 */
export function parseConfig(json: unknown, where = "config.json"): ModelConfig {
  const outer = new Fields(json, where);
  const family = hfFamily(outer);
  const text = outer.object("text_config");
  const f = text && !outer.has(family.keys.layers) ? text : outer;
  if (outer.has("quantization_config") || f.has("quantization_config")) {
    throw new FoveaError(
      "unsupported",
      `${where}: the weights are quantised by another library (quantization_config)`,
      {
        hint: "Take the original checkpoint, or a GGUF file.",
      },
    );
  }
  const named = family.modelTypes.indexOf(outer.optionalString("model_type") ?? "");
  const architecture = architectures(outer)[0] || family.architectures[Math.max(0, named)];
  const keys = family.keys;
  const layers = f.int(keys.layers, LIMITS.layers);
  const width = f.int(keys.width, LIMITS.width);
  const heads = f.int(keys.heads, LIMITS.heads, family.defaults.heads);
  const kvHeads = keys.kvHeads ? f.int(keys.kvHeads, { min: 1, max: heads }, family.defaults.kvHeads ?? heads) : heads;
  if (heads % kvHeads !== 0)
    throw f.wrong(keys.kvHeads ?? keys.heads, `a divisor of ${heads} (${keys.heads})`, kvHeads);
  const headDim =
    (keys.headDim ? f.optionalInt(keys.headDim, LIMITS.headDim) : undefined) ??
    family.defaults.headDim ??
    dividedHeads(f, family, width, heads);
  const mlpWidth = f.int(keys.mlpWidth, LIMITS.mlpWidth, family.defaults.mlpRatio && family.defaults.mlpRatio * width);
  const maxPositions = f.int(keys.maxPositions, LIMITS.positions, family.defaults.maxPositions);
  const vocab = f.int("vocab_size", LIMITS.vocab, family.defaults.vocab);
  const activation = f.choice(keys.activation, ACTIVATIONS, family.defaults.activation);
  const base = {
    family: family.name,
    architecture,
    layers,
    width,
    heads,
    kvHeads,
    headDim,
    mlpWidth,
    vocab,
    maxPositions,
    norm: family.traits.norm,
    normEps: keys.normEps ? f.number(keys.normEps, LIMITS.eps, family.defaults.normEps) : family.defaults.normEps,
    normOffset: family.traits.normOffset,
    activation,
    gated: family.traits.gated,
    mlpBias: family.traits.biases,
    tiedEmbeddings: f.bool("tie_word_embeddings", outer.bool("tie_word_embeddings", family.defaults.tied)),
    embeddingScale: family.traits.scaledEmbeddings ? Math.sqrt(width) : 1,
    rotary: family.traits.learnedPositions ? null : parseRotary(f, family, { headDim, maxPositions, layers }),
    learnedPositions: family.traits.learnedPositions,
    attention: {
      scale: headDim ** -0.5,
      windowLayers: Array.from({ length: layers }, () => false),
      qkNorm: family.traits.qkNorm,
      biasQKV: family.traits.biases || family.traits.biasQKV === true,
      biasO: family.traits.biases,
    },
    blockNorms: family.traits.blockNorms,
    parallelResidual: false,
    bos: inside(f.optionalInt("bos_token_id", LIMITS.token) ?? outer.optionalInt("bos_token_id", LIMITS.token), vocab),
    // A token beyond the vocabulary (some shrunken checkpoints keep the large model's) can never be generated.
    eos: (f.has("eos_token_id") ? f : outer).ints("eos_token_id", LIMITS.token).filter((id) => id < vocab),
  } satisfies ModelConfig;
  const config = family.read ? family.read(f, base) : base;
  const mechanism = parseMechanism(outer);
  return finish(mechanism ? { ...config, mechanism } : config, where);
}

/** The mechanism that a config.json names under "fovea_mechanism". */
function parseMechanism(f: Fields): MechanismUse | undefined {
  const given = f.raw("fovea_mechanism");
  if (given === undefined || given === null) return undefined;
  const { name, parameters = {} } = given as { name?: unknown; parameters?: Record<string, unknown> };
  if (typeof name !== "string") throw f.wrong("fovea_mechanism", "an object with a name and parameters", given);
  return useMechanism({ name, parameters });
}

/** A config's mechanism, bound to its sizes; undefined where it has none. */
export function boundMechanism(config: ModelConfig): BoundMechanism | undefined {
  const { mechanism, width, heads, kvHeads, headDim } = config;
  return mechanism && new BoundMechanism(mechanism, { width, heads, kvHeads, headDim });
}

function inside(token: number | undefined, vocab: number): number | undefined {
  return token !== undefined && token < vocab ? token : undefined;
}

function dividedHeads(f: Fields, family: Family, width: number, heads: number): number {
  if (width % heads !== 0) throw f.wrong(family.keys.width, `a multiple of ${heads} (${family.keys.heads})`, width);
  const headDim = width / heads;
  if (headDim <= LIMITS.headDim.max) return headDim;
  throw f.wrong(family.keys.heads, `at least ${width / LIMITS.headDim.max} heads for width ${width}`, heads);
}

function architectures(f: Fields): string[] {
  const value = f.raw("architectures");
  if (value === undefined) return [];
  if (Array.isArray(value) && value.every((name) => typeof name === "string")) return value;
  throw f.wrong("architectures", "a list of names", value);
}

/** The family of a config.json: by architecture where one is named, else by model_type. */
function hfFamily(f: Fields): Family {
  const [architecture] = architectures(f);
  const modelType = f.optionalString("model_type");
  const family = architecture
    ? familyByArchitecture(architecture)
    : Object.values(FAMILIES).find((row) => modelType !== undefined && row.modelTypes.includes(modelType));
  if (family) return family;
  const given = architecture
    ? `the architecture ${JSON.stringify(architecture)}`
    : modelType
      ? `the model type ${JSON.stringify(modelType)}`
      : "no architecture and no model type";
  throw new FoveaError("unknown-model", `${f.where} names ${given}, which is no known family`, {
    hint: `Known families: ${knownFamilies()}.`,
  });
}

/** The rotary part of a config.json, in its older form (rope_theta, rope_scaling) or newer (rope_parameters). */
function parseRotary(
  f: Fields,
  family: Family,
  { headDim, maxPositions, layers }: { headDim: number; maxPositions: number; layers: number },
): RotaryConfig {
  const parameters = f.object("rope_parameters");
  const nested = parameters?.object("full_attention");
  const main = nested ?? parameters;
  const partialKey = family.defaults.rotaryPartialKey;
  const partial =
    main?.optionalNumber("partial_rotary_factor", { min: 0, max: 1 }) ??
    f.optionalNumber("partial_rotary_factor", { min: 0, max: 1 }) ??
    (partialKey ? f.optionalNumber(partialKey, { min: 0, max: 1 }) : undefined) ??
    family.defaults.rotaryPartial ??
    1;
  const scalingFields = main ?? f.object("rope_scaling");
  const proportional = scalingFields?.optionalString("rope_type") === "proportional";
  const dims = proportional ? headDim : Math.floor(headDim * partial);
  if (dims < 2 || dims % 2 !== 0) {
    throw new FoveaError(
      "unsupported",
      `${f.where}: ${dims} of ${headDim} dimensions of a head rotate; expected an even number`,
    );
  }
  const baseKey = family.defaults.rotaryBaseKey;
  const base =
    main?.optionalNumber("rope_theta", LIMITS.base) ??
    f.optionalNumber("rope_theta", LIMITS.base) ??
    (baseKey ? f.optionalNumber(baseKey, LIMITS.base) : undefined) ??
    family.defaults.rotaryBase ??
    10000;
  const context = {
    dims,
    maxPositions,
    original: f.optionalInt("original_max_position_embeddings", LIMITS.positions),
    phi: family.name === "phi3",
  };
  const scaling = parseScaling(scalingFields, context);
  if (scaling.type === "dynamic" && dims < 4) throw f.wrong("rope_scaling", "at least 4 rotated dimensions", dims);
  const rotary: RotaryConfig = { base, dims, interleaved: false, scaling };
  if (family.defaults.localBase === undefined) return rotary;
  const local = nested && parameters?.object("sliding_attention");
  return {
    ...rotary,
    localBase:
      local?.optionalNumber("rope_theta", LIMITS.base) ??
      f.number("rope_local_base_freq", LIMITS.base, family.defaults.localBase),
    localScaling: parseScaling(local, context) satisfies RotaryScaling,
    localLayers: Array.from({ length: layers }, () => false),
  };
}

/** Checks that hold for every family and every source. */
export function finish(config: ModelConfig, where: string): ModelConfig {
  const { attention, layers } = config;
  if (attention.windowLayers.length !== layers) {
    throw new FoveaError(
      "bad-file",
      `${where}: layer_types lists ${attention.windowLayers.length} layers; expected ${layers}`,
    );
  }
  if (attention.windowLayers.includes(true) && attention.window === undefined) {
    throw new FoveaError("bad-file", `${where}: sliding_window is missing, but some layers are sliding`);
  }
  const parameters = parameterCount(config);
  if (parameters > MAX_PARAMETERS) {
    throw new FoveaError(
      "too-large",
      `${where} describes a model of ${parameters} parameters; expected at most ${MAX_PARAMETERS}`,
    );
  }
  return config;
}

const MAX_PARAMETERS = 2 ** 42;

/** Number of weights of the model; tied embeddings count once. */
export function parameterCount(config: ModelConfig): number {
  return canonicalTensors(config).reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
}

/**
 * The config.json of a model: `parseConfig` gives the same config back.
 * @throws FoveaError "unsupported" where config.json has no form for it
 */
export function configJson(config: ModelConfig): Record<string, unknown> {
  const family = FAMILIES[config.family];
  const keys = family.keys;
  const json: Record<string, unknown> = {
    architectures: [config.architecture],
    model_type:
      family.modelTypes[Math.max(0, family.architectures.indexOf(config.architecture))] ?? family.modelTypes[0],
    [keys.layers]: config.layers,
    [keys.width]: config.width,
    [keys.heads]: config.heads,
    [keys.mlpWidth]: config.mlpWidth,
    vocab_size: config.vocab,
    [keys.maxPositions]: config.maxPositions,
    [keys.activation]: activationName(config.activation),
    tie_word_embeddings: config.tiedEmbeddings,
    bos_token_id: config.bos ?? null,
    eos_token_id: config.eos.length === 1 ? config.eos[0] : config.eos.length ? [...config.eos] : null,
    torch_dtype: "float32",
  };
  if (keys.kvHeads) json[keys.kvHeads] = config.kvHeads;
  if (keys.headDim) json[keys.headDim] = config.headDim;
  if (keys.normEps) json[keys.normEps] = config.normEps;
  const { rotary } = config;
  if (rotary) {
    const baseKey = family.defaults.rotaryBaseKey ?? "rope_theta";
    json[baseKey] = rotary.base;
    if (rotary.dims !== config.headDim) {
      json[family.defaults.rotaryPartialKey ?? "partial_rotary_factor"] = rotary.dims / config.headDim;
    }
    const scaling = scalingJson(rotary.scaling, rotary.dims);
    if (scaling) json.rope_scaling = scaling;
    if (scaling && family.name === "phi3" && "original" in rotary.scaling) {
      json.original_max_position_embeddings = rotary.scaling.original;
    }
    if (rotary.localBase !== undefined) json.rope_local_base_freq = rotary.localBase;
    if (rotary.localScaling && rotary.localScaling.type !== "default") {
      throw new FoveaError("unsupported", "config.json has no form here for a scaling of the local layers");
    }
  }
  family.write?.(config, json);
  if (config.mechanism) json.fovea_mechanism = config.mechanism;
  return json;
}

function activationName(activation: Activation): string {
  return { silu: "silu", gelu: "gelu", "gelu-tanh": "gelu_pytorch_tanh", relu: "relu" }[activation];
}
