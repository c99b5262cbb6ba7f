import "../attention/linear/index.js";
import { FoveaError } from "../error.js";
import { missingWeight, type WeightSource } from "../graph/index.js";
import {
  boundMechanism,
  buildModel,
  type Checkpoint,
  canonicalTensors,
  type MechanismFactory,
  type MechanismUse,
  type ModelConfig,
  type ModelGraph,
  parseConfig,
  seededNormals,
  type Tokenizer,
  tinyTokenizer,
  useOf,
} from "../models/index.js";

/** A model that can be trained. */
export interface Trainable {
  readonly name: string;
  readonly config: ModelConfig;
  /** The whole model over a batch of sequences of this length, as `buildModel(config, { batch: true, length })` gives it. */
  build(length: number): ModelGraph;
  /** First values of all weights. */
  readonly weights: WeightSource;
  /** Names of the weights that train. */
  readonly trained: readonly string[];
  readonly tokenizer: Tokenizer;
  readonly chatTemplate?: string;
}

/** Sizes of `decoder`. */
export interface DecoderOptions {
  /** Default 2. */
  readonly layers?: number;
  /** Width d. Default 128. */
  readonly width?: number;
  /** Query heads. Default width / 32. */
  readonly heads?: number;
  /** Key-value heads. Default as many as query heads. */
  readonly kvHeads?: number;
  /** Width of a head. Default width / heads. */
  readonly headDim?: number;
  /** Width of the gated MLP. Default 3 * width. */
  readonly mlp?: number;
  /** Default: the tokenizer's size. */
  readonly vocabulary?: number;
  /** Default 4096. */
  readonly positions?: number;
  /** Base of the rotary embedding. Default 10000. */
  readonly rotaryBase?: number;
  /** The output matrix is the embedding's. Default true. */
  readonly tied?: boolean;
  /** Default: a small one of bytes and a few merges. */
  readonly tokenizer?: Tokenizer;
  readonly chatTemplate?: string;
  /** Layers are computed again in the backward pass: less memory for about a third more time. Default false. */
  readonly recompute?: boolean;
  /** What stands in the place of softmax attention. Default: softmax attention. */
  readonly mechanism?: MechanismUse | MechanismFactory;
  /** Deviation of the first weights of matrices; 1 / sqrt(width) suits small models. Default 0.02. */
  readonly spread?: number;
  /** Seed of the first weights. Default 1. */
  readonly seed?: number;
  readonly name?: string;
}

/** Spread of the first weights. */
const SPREAD = 0.02;

/**
 * A decoder of the Llama family with fresh weights: normal with deviation `spread` (embeddings 0.02), projections into the residual stream
 * divided by sqrt(2 L) (GPT-2's rule), norms 1.
 *
 * @throws FoveaError `bad-file` for sizes that do not fit together
 */
export function decoder(options: DecoderOptions = {}): Trainable {
  const { layers = 2, width = 128, tied = true, positions = 4096, rotaryBase = 10_000, seed = 1 } = options;
  const { vocabulary = options.tokenizer?.vocabSize ?? 384, name = "decoder" } = options;
  const { heads = Math.max(1, Math.round(width / 32)) } = options;
  const tokenizer = options.tokenizer ?? tinyTokenizer(Math.max(258, vocabulary));
  const mechanism = options.mechanism && useOf(options.mechanism);
  const config = parseConfig(
    {
      ...(mechanism && { fovea_mechanism: mechanism }),
      architectures: ["LlamaForCausalLM"],
      num_hidden_layers: layers,
      hidden_size: width,
      num_attention_heads: heads,
      num_key_value_heads: options.kvHeads ?? heads,
      head_dim: options.headDim ?? width / heads,
      intermediate_size: options.mlp ?? 3 * width,
      max_position_embeddings: positions,
      vocab_size: vocabulary,
      rope_theta: rotaryBase,
      rms_norm_eps: 1e-5,
      tie_word_embeddings: tied,
      bos_token_id: tokenizer.bos ?? 0,
      eos_token_id: tokenizer.eos ?? 1,
    },
    "the decoder",
  );
  return {
    name,
    config,
    build: (length) => batched(config, length, options.recompute),
    weights: freshWeights(config, seed, options.spread),
    trained: canonicalTensors(config).map((t) => t.name),
    tokenizer,
    ...(options.chatTemplate !== undefined && { chatTemplate: options.chatTemplate }),
  };
}

/** A model's graph over a batch: of any length, unless a mechanism goes chunk by chunk. */
function batched(config: ModelConfig, length: number, recompute = false): ModelGraph {
  return buildModel(config, { batch: true, recompute, ...(config.mechanism && { length }) });
}

/** First weights of a model that is to be trained, the same for a seed on every machine. */
export function freshWeights(config: ModelConfig, seed: number, spread = SPREAD): WeightSource {
  const tensors = new Map(canonicalTensors(config).map((t) => [t.name, t]));
  const into = spread / Math.sqrt(2 * config.layers);
  const own = boundMechanism(config)?.weights ?? {};
  return {
    get(name) {
      const tensor = tensors.get(name);
      if (!tensor) throw missingWeight(name);
      const data = new Float32Array(tensor.shape.reduce((a, b) => a * b, 1));
      const [, ownName] = /\.mechanism\.(.+)$/.exec(name) ?? [];
      const first = ownName === undefined ? undefined : own[ownName]?.first;
      if (tensor.norm) data.fill(1 - config.normOffset);
      else if (typeof first === "number") data.fill(first);
      else if (!name.endsWith(".bias")) {
        const next = seededNormals(`${seed}/${name}`);
        const deviation = /\.(o|down)$/.test(name) ? into : name.startsWith("embed") ? SPREAD : spread;
        for (let i = 0; i < data.length; i++) data[i] = deviation * next();
      }
      return { kind: "float", dtype: "float32", shape: tensor.shape, data };
    },
  };
}

/**
 * A loaded checkpoint to be trained further: all of its weights, or those whose canonical names match a pattern
 * (`layers.0.q`, `layers.*.mlp_norm`, `embed`; `*` stands for anything). The others stay as they are.
 *
 * @throws FoveaError `not-found` for a pattern that no weight matches
 */
export function fineTune(
  checkpoint: Pick<Checkpoint, "name" | "config" | "weights" | "tokenizer" | "chatTemplate">,
  options: { readonly tensors?: string | readonly string[]; readonly recompute?: boolean } = {},
): Trainable {
  const { config, weights, tokenizer, name, chatTemplate } = checkpoint;
  const names = canonicalTensors(config).map((t) => t.name);
  const patterns = options.tensors === undefined ? ["*"] : [options.tensors].flat();
  const chosen = new Set<string>();
  for (const pattern of patterns) {
    const escaped = pattern.replace(/[.+?^${}()|[\]\\]/g, "\\$&").replace(/\*/g, ".*");
    const matching = names.filter((n) => new RegExp(`^${escaped}$`).test(n));
    if (matching.length === 0)
      throw new FoveaError("not-found", `${name} has no weight ${JSON.stringify(pattern)}`, {
        hint: `its weights are called ${names.slice(0, 10).join(", ")}, ...; * stands for anything`,
      });
    for (const n of matching) chosen.add(n);
  }
  return {
    name,
    config,
    build: (length) => batched(config, length, options.recompute),
    weights,
    trained: names.filter((n) => chosen.has(n)),
    tokenizer,
    ...(chatTemplate !== undefined && { chatTemplate }),
  };
}
