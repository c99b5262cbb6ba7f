import { FoveaError } from "../error.js";
import {
  attention,
  causalMask,
  type Dim,
  input,
  multiplyDims,
  parameter,
  recompute,
  type Tensor,
  tap,
} from "../graph/index.js";

import { type Activation, boundMechanism, type ModelConfig } from "./config.js";
import type { MechanismInputs } from "./mechanism.js";
import { checkMemory, type Memory } from "./memory.js";
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
 * With a mechanism in attention's place there are no `logits.l` and `pattern.l`, and q and k are rotated only if it says so.
 *
 * Of the whole model: `embeddings` [T, d] (scaled, with learned positions), `final_norm` [T, d], `logits` [T, V].
 */
export interface ModelGraph {
  /** int64 [T] */
  readonly ids: Tensor;
  /**
   * Inputs by name: `ids`; `positions` (int64 [T], learned positions); `cos` and `sin` ([T, dims / 2], rotary);
   * `cos_local` and `sin_local` (local layers, Gemma 3); `memory` ([M, m], where the mechanism reads one). `modelFeeds`
   * makes their values.
   */
  readonly inputs: Readonly<Record<string, Tensor>>;
  readonly taps: ReadonlyMap<string, Tensor>;
  /** [T, V] */
  readonly logits: Tensor;
}

/** Options of `buildModel`. */
export interface BuildOptions {
  /**
   * Several sequences of one length at once, for training. `ids` and `documents` are int64 [B, T]; a row of `documents`
   * numbers the texts that are packed into a sequence, and a token attends within its own text only. Taps have B * T for
   * T, `logits.l` and `pattern.l` are [B, Hq, T, T]; positions, cos and sin are those of each token, [B * T, ...]; a memory
   * is that of each sequence, [B, M, m]. See `batchFeeds`. Default false.
   */
  readonly batch?: boolean;
  /** Layers compute their inner values again when gradients are taken, and keep only what enters them. Default false. */
  readonly recompute?: boolean;
  /** T as a number. Mechanisms with a state then go chunk by chunk. Default: any T, in one piece. */
  readonly length?: number;
  /**
   * A mechanism's state comes in and goes out: inputs `state.l.name` [1, ...], taps `new_state.l.name`. T is then at most
   * the mechanism's own number of rows. Default false: the state is empty at the beginning.
   */
  readonly state?: boolean;
  /** With `state`: T is 1, and a mechanism's form for one row is used where it has one. Default false. */
  readonly step?: boolean;
}

/** Builds the block structure of any family: the one definition of a model, cut at taps for inference. */
export function buildModel(config: ModelConfig, options: BuildOptions = {}): ModelGraph {
  const { batch = false } = options;
  const T: Dim = options.step ? 1 : (options.length ?? "T");
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

  const N: Dim = batch ? multiplyDims("B", T) : T; // rows of dense parts; below T stands for it
  const B: Dim = batch ? "B" : 1;
  const mechanism = boundMechanism(config);
  const ids = newInput("ids", batch ? ["B", T] : [T], "int64");
  const documents = batch ? newInput("documents", ["B", T], "int64") : undefined;
  const m = mechanism?.memory;
  const memory = m === undefined ? undefined : newInput("memory", batch ? ["B", "M", m] : ["M", m], "float32");
  const visible = maskOf(ids, documents);
  let x = weight("embed").gather(batch ? ids.reshape([N]) : ids); // [T, d]
  if (config.embeddingScale !== 1) x = x.mul(config.embeddingScale);
  if (config.learnedPositions) {
    const rows = newInput("positions", [N], "int64").add(config.learnedPositions.offset);
    x = x.add(weight("embed_positions").gather(rows));
  }
  x = tap(x, "embeddings", taps);

  const block = (l: number, entering: Tensor): Tensor => {
    const at = (name: string): string => `layers.${l}.${name}`;
    const named = (t: Tensor, name: string): Tensor => tap(t, `${name}.${l}`, taps);
    const x = named(entering, "residual");

    // attention
    const a = named(before ? norm(x, at("attn_norm")) : x.identity(), "attn_in");
    const project = (name: "q" | "k" | "v", count: number): Tensor => {
      let rows = linear(a, at(name)); // [T, count * D]
      if (name === "v" || qkNorm === "none") return rows.reshape([N, count, headDim]);
      if (qkNorm === "full") rows = rms(rows, at(`${name}_norm`));
      const split = rows.reshape([N, count, headDim]);
      return qkNorm === "head" ? rms(split, at(`${name}_norm`)) : split;
    };
    const q = named(project("q", heads), "q");
    const k = named(project("k", kvHeads), "k");
    const v = named(project("v", kvHeads), "v");
    const rotate = mechanism?.rotary === false ? (t: Tensor) => t : rotation(config, l, N, newInput);
    const qr = named(rotate(q), "q_rotated");
    const kr = named(rotate(k), "k_rotated");

    const sequences = (t: Tensor): Tensor => (batch ? t.reshape(["B", T, ...t.shape.slice(1)]) : t);
    const within = windowLayers[l] ? window : undefined;
    const mask = visible(within);
    const softmax = (): Tensor => {
      const seen = mask ? { causal: false, mask } : { window: within };
      const read = attention(sequences(qr), sequences(kr), sequences(v), { scale, softcap, ...seen });
      named(read.logits, "logits");
      named(read.pattern, "pattern");
      return read.heads;
    };
    const replaced = (): Tensor => {
      const perHead = (t: Tensor): Tensor => {
        const repeated = kvHeads < heads && t !== qr ? repeatHeads(t, kvHeads, heads, headDim) : t;
        return repeated.reshape([B, T, heads, headDim]).transpose(0, 2, 1, 3); // [B, H, T, D]
      };
      const own = mechanism as NonNullable<typeof mechanism>;
      const carried = (name: string, shape: readonly number[]): Tensor =>
        options.state ? newInput(`state.${l}.${name}`, [1, ...shape], "float32") : zeros(ids, batch, shape);
      const given: MechanismInputs = {
        q: perHead(qr),
        k: perHead(kr),
        v: perHead(v),
        x: a.reshape([B, T, config.width]),
        get mask() {
          return (mask ?? causalMask(a, a, 0, within).unsqueeze(0).unsqueeze(0)).cast("float32");
        },
        documents,
        get positions() {
          return newInput("positions", [N], "int64").reshape([B, T]);
        },
        weights: Object.fromEntries(Object.keys(own.weights).map((n) => [n, weight(at(`mechanism.${n}`))])),
        state: Object.fromEntries(Object.entries(own.state ?? {}).map(([n, shape]) => [n, carried(n, shape)])),
        scale,
        longest: options.state ? own.rows : config.maxPositions,
        memory: batch ? memory : memory?.unsqueeze(0), // [B, M, m]
      };
      const { out, state } = options.step ? own.step(given) : own.forward(given);
      for (const n of Object.keys(own.state ?? {})) tap(state[n], `new_state.${l}.${n}`, taps);
      return out.transpose(0, 2, 1, 3); // [B, T, H, D]
    };
    const read = mechanism ? replaced() : softmax();
    const out = named(batch || mechanism ? read.reshape([N, heads, headDim]) : read, "heads");
    let attended = linear(out.reshape([N, heads * headDim]), at("o"));
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
    return mid.add(named(mlp, "mlp_out"));
  };
  for (let l = 0; l < config.layers; l++) {
    x = options.recompute ? recompute([x], (entering) => block(l, entering)) : block(l, x);
  }

  x = tap(x, `residual.${config.layers}`, taps);
  x = tap(norm(x, "norm"), "final_norm", taps);
  let logits = x.linear(config.tiedEmbeddings ? weight("embed") : weight("head")); // [T, V]
  if (config.finalSoftcap !== undefined) logits = logits.div(config.finalSoftcap).tanh().mul(config.finalSoftcap);
  return { ids, inputs, taps, logits: tap(logits, "logits", taps) };
}

type NewInput = (name: string, shape: readonly (number | string)[], dtype: "float32" | "int64") => Tensor;

/** k or v [N, Hkv, D] with each head repeated for its query heads: [N, H, D]. */
function repeatHeads(t: Tensor, kvHeads: number, heads: number, headDim: number): Tensor {
  const [N] = t.shape;
  return t
    .unsqueeze(2)
    .expand([N, kvHeads, heads / kvHeads, headDim])
    .reshape([N, heads, headDim]);
}

/** An empty state [B, ...shape], or [1, ...shape] without a batch. */
function zeros(ids: Tensor, batch: boolean, shape: readonly number[]): Tensor {
  const one = (batch ? ids.slice({ axis: 1, start: 0, end: 1 }) : ids.slice({ axis: 0, start: 0, end: 1 })).mul(0);
  const B: Dim = batch ? "B" : 1;
  return one
    .cast("float32")
    .reshape([B, ...shape.map(() => 1)])
    .expand([B, ...shape]);
}

/** The mask of a batch, [B, 1, T, T], made once for each width of window; undefined where there is no batch. */
function maskOf(ids: Tensor, documents: Tensor | undefined): (window: number | undefined) => Tensor | undefined {
  if (!documents) return () => undefined;
  const own = documents.unsqueeze(2).equal(documents.unsqueeze(1)); // [B, T, T]
  const made = new Map<number | undefined, Tensor>();
  return (window) => {
    const mask = made.get(window) ?? own.and(causalMask(ids, ids, 1, window)).unsqueeze(1);
    made.set(window, mask);
    return mask;
  };
}

/** The rotary embedding of a layer's queries and keys; what has none passes through. */
function rotation(config: ModelConfig, layer: number, rows: Dim, newInput: NewInput): (x: Tensor) => Tensor {
  const { rotary } = config;
  if (!rotary) return (x) => x;
  const suffix = isLocal(config, layer) ? "_local" : "";
  const half = rotary.dims / 2;
  const cos = newInput(`cos${suffix}`, [rows, half], "float32");
  const sin = newInput(`sin${suffix}`, [rows, half], "float32");
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
 * @param memory what the model's mechanism reads beside the text, where it does
 * @throws FoveaError as `checkMemory`
 */
export function modelFeeds(
  config: ModelConfig,
  ids: readonly number[],
  length = ids.length,
  memory?: Memory,
): Record<string, ModelFeed> {
  const mechanism = boundMechanism(config);
  checkMemory(mechanism, memory);
  const positions = Array.from({ length: ids.length }, (_, i) => i);
  return {
    ids: { data: BigInt64Array.from(ids, BigInt), dims: [ids.length] },
    ...(memory && { memory: { data: memory.data, dims: [memory.rows, mechanism?.memory as number] } }),
    ...positionFeeds(config, positions, length),
  };
}

/** Sequences of one length, side by side: [B, T] in rows. */
export interface SequenceBatch {
  /** B */
  readonly rows: number;
  /** T */
  readonly length: number;
  /** [B * T] */
  readonly ids: ArrayLike<number>;
  /** [B * T] number of each token's text within its row. Default: one text a row. */
  readonly documents?: ArrayLike<number>;
  /** [B * T] Default: 0 ... T - 1 in every row. */
  readonly positions?: ArrayLike<number>;
  /** [B, M, m] what the mechanism reads beside each row; the texts packed into a row share it. */
  readonly memory?: { readonly data: Float32Array; readonly dims: readonly number[] };
}

/**
 * Values of all inputs of a batched model's graph. Throws FoveaError "bad-shape" for lists that are no [B, T], and as
 * `checkMemory`.
 * @param length as for `modelFeeds`; default T
 */
export function batchFeeds(
  config: ModelConfig,
  batch: SequenceBatch,
  length = batch.length,
): Record<string, ModelFeed> {
  const { rows, length: T, ids, documents, positions, memory } = batch;
  for (const [name, list] of Object.entries({ ids, documents, positions })) {
    if (list && list.length !== rows * T) {
      throw new FoveaError("bad-shape", `${list.length} ${name} are no [${rows}, ${T}]`);
    }
  }
  const mechanism = boundMechanism(config);
  const M = memory?.dims[1] ?? Number.NaN;
  checkMemory(mechanism, memory && { data: memory.data, rows: M }, rows);
  const int64 = (list: ArrayLike<number>): BigInt64Array => BigInt64Array.from(list as number[], BigInt);
  return {
    ids: { data: int64(ids), dims: [rows, T] },
    documents: { data: documents ? int64(documents) : new BigInt64Array(rows * T), dims: [rows, T] },
    ...(memory && { memory: { data: memory.data, dims: [rows, M, mechanism?.memory as number] } }),
    ...positionFeeds(config, positions ?? Array.from({ length: rows * T }, (_, i) => i % T), length),
  };
}

/** Values of the inputs that depend on positions: learned ones by number, rotated ones as tables of cosines and sines. */
export function positionFeeds(
  config: ModelConfig,
  positions: ArrayLike<number>,
  length: number,
): Record<string, ModelFeed> {
  const feeds: Record<string, ModelFeed> = {};
  const count = positions.length;
  if (config.learnedPositions || config.mechanism) {
    feeds.positions = { data: BigInt64Array.from(positions as number[], BigInt), dims: [count] };
  }
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
