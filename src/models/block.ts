import { attention, input, parameter, type Tensor, tap } from "../graph/index.js";
import type { Activation, ModelConfig } from "./config.js";
import { canonicalTensors } from "./names.js";
import { rotaryCosSin, rotaryTable } from "./rotary.js";

/**
 * A model as a graph of tensors, from token ids to logits, with its taps.
 *
 * Taps of layer l (`name.l`; T tokens, d width, Hq and Hkv heads of D):
 * - `residual` [T, d]: the stream entering the layer; `residual.L` leaves the last one
 * - `attn_in` [T, d]: what the projections read
 * - `q` [T, Hq, D], `k`, `v` [T, Hkv, D]: after bias and q/k norm, before rotary
 * - `q_rotated`, `k_rotated`: after rotary (the same as q and k where there is none)
 * - `logits` [Hq, T, T]: scaled, soft-capped and masked (-Infinity); `pattern`: their softmax
 * - `heads` [T, Hq, D]: attention's output per head, before the output projection
 * - `attn_out` [T, d]: what attention adds to the stream (after its post norm, where there is one)
 * - `mid` [T, d]: the stream after that
 * - `mlp_in` [T, d]; `mlp_gate` [T, mlpWidth]: the neurons, as the down projection reads them
 * - `mlp_out` [T, d]: what the MLP adds to the stream
 *
 * Of the whole model: `embeddings` [T, d] (scaled, with learned positions), `final_norm` [T, d], `logits` [T, V].
 */
export interface ModelGraph {
  /** int64 [T] */
  readonly ids: Tensor;
  /**
   * Inputs by name: `ids`; `positions` (int64 [T], learned positions); `cos` and `sin` ([T, dims / 2], rotary);
   * `cos_local` and `sin_local` (local layers, Gemma 3). `modelFeeds` makes their values.
   */
  readonly inputs: Readonly<Record<string, Tensor>>;
  readonly taps: ReadonlyMap<string, Tensor>;
  /** [T, V] */
  readonly logits: Tensor;
}

/** Builds the block structure of any family: the one definition of a model, cut at taps for inference. */
export function buildModel(config: ModelConfig): ModelGraph {
  const taps = new Map<string, Tensor>();
  const inputs: Record<string, Tensor> = {};
  const newInput = (name: string, shape: readonly (number | string)[], dtype: "float32" | "int64"): Tensor => {
    inputs[name] ??= input(name, shape, dtype);
    return inputs[name];
  };
  const weights = new Map<string, Tensor>();
  for (const { name, shape } of canonicalTensors(config)) weights.set(name, parameter(name, shape));
  const weight = (name: string): Tensor => weights.get(name) as Tensor;
  const linear = (x: Tensor, name: string): Tensor => x.linear(weight(name), weights.get(`${name}.bias`));
  const norm = (x: Tensor, name: string): Tensor =>
    config.norm === "rms"
      ? rms(x, name)
      : x.layerNorm(weight(name), weights.get(`${name}.bias`), { eps: config.normEps });
  const rms = (x: Tensor, name: string): Tensor =>
    x.rmsNorm(weight(name), { eps: config.normEps, offset: config.normOffset });

  const { heads, kvHeads, headDim, blockNorms } = config;
  const { scale, softcap, window, windowLayers, qkNorm } = config.attention;
  const before = blockNorms !== "post";
  const after = blockNorms !== "pre";

  const ids = newInput("ids", ["T"], "int64");
  let x = weight("embed").gather(ids); // [T, d]
  if (config.embeddingScale !== 1) x = x.mul(config.embeddingScale);
  if (config.learnedPositions) {
    const rows = newInput("positions", ["T"], "int64").add(config.learnedPositions.offset);
    x = x.add(weight("embed_positions").gather(rows));
  }
  x = tap(x, "embeddings", taps);

  for (let l = 0; l < config.layers; l++) {
    const at = (name: string): string => `layers.${l}.${name}`;
    const named = (t: Tensor, name: string): Tensor => tap(t, `${name}.${l}`, taps);
    x = named(x, "residual");

    // attention
    const a = named(before ? norm(x, at("attn_norm")) : x.identity(), "attn_in");
    const project = (name: "q" | "k" | "v", count: number): Tensor => {
      let rows = linear(a, at(name)); // [T, count * D]
      if (name === "v" || qkNorm === "none") return rows.reshape(["T", count, headDim]);
      if (qkNorm === "full") rows = rms(rows, at(`${name}_norm`));
      const split = rows.reshape(["T", count, headDim]);
      return qkNorm === "head" ? rms(split, at(`${name}_norm`)) : split;
    };
    const q = named(project("q", heads), "q");
    const k = named(project("k", kvHeads), "k");
    const v = named(project("v", kvHeads), "v");
    const rotate = rotation(config, l, newInput);
    const qr = named(rotate(q), "q_rotated");
    const kr = named(rotate(k), "k_rotated");

    const read = attention(qr, kr, v, { scale, softcap, window: windowLayers[l] ? window : undefined });
    named(read.logits, "logits");
    named(read.pattern, "pattern");
    const out = named(read.heads, "heads");
    let attended = linear(out.reshape(["T", heads * headDim]), at("o"));
    if (after) attended = norm(attended, at("post_attn_norm"));
    const mid = named(x.add(named(attended, "attn_out")), "mid");

    // MLP
    const source = config.parallelResidual ? x : mid;
    const m = named(before ? norm(source, at("mlp_norm")) : source.identity(), "mlp_in");
    const neurons = config.gated
      ? activate(linear(m, at("gate")), config.activation).mul(linear(m, at("up")))
      : activate(linear(m, at("up")), config.activation);
    let mlp = linear(named(neurons, "mlp_gate"), at("down"));
    if (after) mlp = norm(mlp, at("post_mlp_norm"));
    x = mid.add(named(mlp, "mlp_out"));
  }

  x = tap(x, `residual.${config.layers}`, taps);
  x = tap(norm(x, "norm"), "final_norm", taps);
  let logits = x.linear(config.tiedEmbeddings ? weight("embed") : weight("head")); // [T, V]
  if (config.finalSoftcap !== undefined) logits = logits.div(config.finalSoftcap).tanh().mul(config.finalSoftcap);
  return { ids, inputs, taps, logits: tap(logits, "logits", taps) };
}

type NewInput = (name: string, shape: readonly (number | string)[], dtype: "float32" | "int64") => Tensor;

/** The rotary embedding of a layer's queries and keys; what has none passes through. */
function rotation(config: ModelConfig, layer: number, newInput: NewInput): (x: Tensor) => Tensor {
  const { rotary } = config;
  if (!rotary) return (x) => x;
  const suffix = isLocal(config, layer) ? "_local" : "";
  const half = rotary.dims / 2;
  const cos = newInput(`cos${suffix}`, ["T", half], "float32");
  const sin = newInput(`sin${suffix}`, ["T", half], "float32");
  return (x) => x.rotary(cos, sin, { dims: rotary.dims });
}

function isLocal({ rotary }: ModelConfig, layer: number): boolean {
  return rotary?.localBase !== undefined && rotary.localLayers?.[layer] === true;
}

function activate(x: Tensor, activation: Activation): Tensor {
  switch (activation) {
    case "silu":
      return x.silu();
    case "relu":
      return x.relu();
    case "gelu":
      return x.gelu();
    case "gelu-tanh":
      return x.gelu({ approximate: "tanh" });
  }
}

/** A value for an input of a model's graph. */
export interface ModelFeed {
  readonly data: Float32Array | BigInt64Array;
  readonly dims: readonly number[];
}

/**
 * Values of all inputs of a model's graph for a run over these tokens from the beginning.
 * @param length tokens of the sequence when it is as long as it gets (for scalings that depend on it); default: these
 */
export function modelFeeds(
  config: ModelConfig,
  ids: readonly number[],
  length = ids.length,
): Record<string, ModelFeed> {
  const count = ids.length;
  const feeds: Record<string, ModelFeed> = { ids: { data: BigInt64Array.from(ids, BigInt), dims: [count] } };
  const positions = Array.from({ length: count }, (_, i) => i);
  if (config.learnedPositions) feeds.positions = { data: BigInt64Array.from(positions, BigInt), dims: [count] };
  const { rotary } = config;
  if (!rotary) return feeds;
  const dims = [count, rotary.dims / 2];
  for (const local of [false, true]) {
    const layer = Array.from({ length: config.layers }, (_, l) => l).find((l) => isLocal(config, l) === local);
    if (layer === undefined) continue;
    const { cos, sin } = rotaryCosSin(rotaryTable(rotary, layer, length), positions);
    feeds[local ? "cos_local" : "cos"] = { data: cos, dims };
    feeds[local ? "sin_local" : "sin"] = { data: sin, dims };
  }
  return feeds;
}
