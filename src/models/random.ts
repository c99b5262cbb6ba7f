import type { WeightSource, WeightValue } from "../graph/index.js";
import { missingWeight } from "../graph/index.js";
import { type ModelConfig, parseConfig } from "./config.js";
import { FAMILIES, type FamilyName } from "./families.js";
import { canonicalTensors } from "./names.js";

/** Sizes of a random model; what is left out is tiny. */
export interface RandomSizes {
  layers?: number;
  width?: number;
  heads?: number;
  kvHeads?: number;
  headDim?: number;
  mlpWidth?: number;
  vocab?: number;
  maxPositions?: number;
}

/**
 * What a tiny random model of the family has in its config.json beside the sizes. Windows and caps are small, so that
 * they matter on a short text.
 */
const SMALL: Readonly<Record<FamilyName, { sizes?: RandomSizes; fields?: Record<string, unknown> }>> = {
  llama: {},
  qwen2: { fields: { rope_theta: 1000000, tie_word_embeddings: true } },
  qwen3: { sizes: { headDim: 32 }, fields: { rope_theta: 1000000, tie_word_embeddings: true } },
  gemma2: {
    sizes: { headDim: 32 },
    fields: { query_pre_attn_scalar: 32, sliding_window: 6, attn_logit_softcapping: 3, final_logit_softcapping: 8 },
  },
  gemma3: { sizes: { layers: 7, headDim: 32 }, fields: { query_pre_attn_scalar: 32, sliding_window: 6 } },
  phi3: {},
  gpt2: { sizes: { kvHeads: 4 } },
  "gpt-neox": { sizes: { kvHeads: 4 }, fields: { rotary_pct: 0.5 } },
  olmo2: { fields: { rope_theta: 500000 } },
  opt: { sizes: { kvHeads: 4 } },
};

/**
 * The config of a random model of a family: tiny unless sizes say otherwise.
 * @param fields fields of config.json to add or replace, e.g. `{ rope_scaling: { rope_type: "linear", factor: 4 } }`
 * @throws FoveaError as `parseConfig` does
 */
export function randomConfig(
  family: FamilyName,
  sizes: RandomSizes = {},
  fields: Record<string, unknown> = {},
): ModelConfig {
  const { keys, architectures } = FAMILIES[family];
  const small = SMALL[family];
  const size = {
    layers: 3,
    width: 64,
    heads: 4,
    kvHeads: 2,
    mlpWidth: 128,
    vocab: 384,
    maxPositions: 512,
    ...small.sizes,
    ...sizes,
  };
  const json: Record<string, unknown> = {
    architectures: [architectures[0]],
    [keys.layers]: size.layers,
    [keys.width]: size.width,
    [keys.heads]: size.heads,
    [keys.mlpWidth]: size.mlpWidth,
    [keys.maxPositions]: size.maxPositions,
    vocab_size: size.vocab,
    bos_token_id: 0,
    eos_token_id: 1,
  };
  if (keys.kvHeads) json[keys.kvHeads] = size.kvHeads;
  if (keys.headDim) json[keys.headDim] = size.headDim ?? size.width / size.heads;
  return parseConfig({ ...json, ...small.fields, ...fields }, `the config of a random ${family} model`);
}

/**
 * Random weights of a model, the same for the same config and seed on every machine. They are scaled so that mechanisms
 * matter: attention logits spread by some 2.5, every branch adds as much to the residual stream as is in it, norms and
 * biases vary, and the output's entropy lies well below ln V. (With the customary 0.02 a model without its rotary
 * embeddings gives nearly the same output, so a test on it proves little.)
 */
export function randomWeights(config: ModelConfig, seed = 1): WeightSource {
  const shapes = new Map(canonicalTensors(config).map((tensor) => [tensor.name, tensor]));
  return {
    get(name): WeightValue {
      const tensor = shapes.get(name) ?? (name === "head" && config.tiedEmbeddings ? shapes.get("embed") : undefined);
      if (!tensor) throw missingWeight(name);
      const [rows, columns = 1] = tensor.shape;
      const { mean, spread } = distribution(config, tensor.name, tensor.norm, columns);
      const next = seededNormals(`${seed}/${tensor.name}`);
      const data = new Float32Array(rows * columns);
      for (let i = 0; i < data.length; i++) data[i] = mean + spread * next();
      return { kind: "float", dtype: "float32", shape: tensor.shape, data };
    },
  };
}

/** Mean and spread of a tensor's values, by its part in the model. */
function distribution(
  config: ModelConfig,
  name: string,
  norm: boolean,
  columns: number,
): { mean: number; spread: number } {
  const kind = name.replace(/^layers\.\d+\./, "");
  if (norm) {
    const gain = kind === "q_norm" || kind === "k_norm" ? 1.6 : 1;
    return { mean: gain - config.normOffset, spread: 0.3 };
  }
  if (kind.endsWith(".bias")) return { mean: 0, spread: 0.3 };
  const fan = columns ** -0.5;
  switch (kind) {
    case "embed":
      // Scaled up, the embedding drowns the branches, and a tied head then only repeats the last token.
      if (config.embeddingScale !== 1) return { mean: 0, spread: 2 * fan };
      return { mean: 0, spread: config.tiedEmbeddings ? 3 * fan : 1 };
    case "embed_positions":
      return { mean: 0, spread: config.tiedEmbeddings ? 3 * fan : 1 };
    case "head":
      return { mean: 0, spread: 3 * fan };
    case "q":
    case "k":
      return { mean: 0, spread: 1.6 * fan };
    default:
      return { mean: 0, spread: 1.5 * fan };
  }
}

/** Nearly normal numbers (sums of twelve uniform ones: exact arithmetic, so equal on every machine). */
export function seededNormals(key: string): () => number {
  let state = 0x811c9dc5;
  for (let i = 0; i < key.length; i++) state = Math.imul(state ^ key.charCodeAt(i), 0x01000193);
  const uniform = (): number => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  return () => {
    let sum = -6;
    for (let i = 0; i < 12; i++) sum += uniform();
    return sum;
  };
}
