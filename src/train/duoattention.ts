import type { HeadList } from "../attention/index.js";
import { FoveaError } from "../error.js";
import {
  attention,
  causalMask,
  parameter,
  substitute,
  type Tensor,
  toFloats,
  type WeightSource,
} from "../graph/index.js";
import { buildModel, type Checkpoint, type ModelConfig, type ModelGraph } from "../models/index.js";
import type { DataSource } from "./batch.js";
import type { Loss } from "./losses.js";
import { adamW, type Optimizer } from "./optimizer.js";
import type { Schedule } from "./schedule.js";
import { type TrainingProgress, train } from "./train.js";
import type { Trainable } from "./trainable.js";

/** Name of the trained tensor, [L, Hkv]. */
const GATES = "gates";

/** Sinks and window of the streaming side of the mixture. */
export interface StreamingMask {
  /** First tokens. Default 128. */
  readonly sinks?: number;
  /** Newest tokens, the row's own included. Default 256. */
  readonly window?: number;
}

/** Options of `optimiseGates`. */
export interface GateOptions extends StreamingMask {
  readonly model: Pick<Checkpoint, "name" | "config" | "weights" | "tokenizer" | "hash">;
  /** Texts with weight on what only far reading can tell; see `passkeys`. */
  readonly data: DataSource;
  /** Default 2000. */
  readonly steps?: number;
  /** Default 0.02. */
  readonly rate?: number;
  /** Weight of the mean gate in the loss (lambda). Default 0.05. */
  readonly l1?: number;
  /** The command that makes the list anew; a model that it does not fit shows it. */
  readonly madeBy: string;
  readonly threads?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: TrainingProgress) => void;
}

/** Gates of a model. */
export interface Gates {
  /** [L, Hkv], between 0 (streaming) and 1 (all keys needed). */
  readonly gates: Float32Array;
  /** All heads, those of the largest gates first, with gates as scores: what `duoattention(heads=...)` reads. */
  readonly list: HeadList;
}

/**
 * DuoAttention's gates (ICLR 2025): the model stays as it is; each KV head's output becomes
 * gate * full + (1 - gate) * streaming, and the gates fall as far as the last hidden states of the weighted tokens allow:
 * mean squared difference from the model's own + l1 * mean gate. AdamW without decay, warm-up over the first fifth of the
 * steps, decay over the last; gates are kept within 0 and 1.
 *
 * @throws FoveaError as `train`; `unsupported` for a model without softmax attention
 */
export async function optimiseGates(options: GateOptions): Promise<Gates> {
  const { model, data, steps = 2000, rate = 0.02, l1 = 0.05, threads, signal, onProgress, madeBy } = options;
  const trained = await train({
    ...{ model: gateTrainable(model, options), data, steps, optimizer: withinBounds(rate), loss: gateLoss(l1) },
    ...{ schedule: trapezoid(steps), threads, signal, onProgress },
  });
  const gates = toFloats(trained.weights.get(GATES));
  return { gates, list: gateList(gates, model, madeBy) };
}

/** The mixture as a trainable model: its gates alone train, from 1 or from `first` [L, Hkv]. */
export function gateTrainable(
  { name, config, weights, tokenizer }: Pick<GateOptions["model"], "name" | "config" | "weights" | "tokenizer">,
  mask: StreamingMask = {},
  first?: Float32Array,
): Trainable {
  if (config.mechanism)
    throw new FoveaError(
      "unsupported",
      `gates mix softmax attention; ${name} has ${config.mechanism.name} in its place`,
    );
  const shape = [config.layers, config.kvHeads];
  const ones = first ?? new Float32Array(shape[0] * shape[1]).fill(1);
  const source: WeightSource = {
    get: (key) => (key === GATES ? { kind: "float", dtype: "float32", shape, data: ones } : weights.get(key)),
    prefetch: async (keys) => weights.prefetch?.(keys.filter((key) => key !== GATES)),
  };
  const graph = gateGraph(config, mask);
  return { name, config, tokenizer, weights: source, trained: [GATES], build: () => graph };
}

/** mean over weighted tokens of mean_D (H - H_mixed)^2 on the last hidden states, and l1 * mean |gate|. */
export function gateLoss(l1: number): Loss {
  return ({ tap, weights }) => {
    const off = tap("reference").sub(tap("final_norm")).square().mean(-1); // [N]
    const total = weights.sum();
    const distance = off.mul(weights).sum().div(total.equal(0).where(1, total));
    return distance.add(tap(GATES).abs().mean().mul(l1));
  };
}

/**
 * Two passes over the same weights: the model's own, and one in which every layer's heads are mixed. As in the paper's
 * code the full side of the mixture is the first pass's output, so that no layer answers for the errors of another.
 */
function gateGraph(config: ModelConfig, mask: StreamingMask): ModelGraph {
  const own = buildModel(config, { batch: true });
  const at = (name: string): Tensor => own.taps.get(name) as Tensor;
  const gates = parameter(GATES, [config.layers, config.kvHeads]);
  const { heads, kvHeads, headDim } = config;
  const sequences = (t: Tensor): Tensor => t.reshape(["B", "T", ...t.shape.slice(1)]);
  let residual = at("residual.0");
  for (let l = 0; l < config.layers; l++) {
    const entering = new Map([[at(`residual.${l}`), residual]]);
    const names = { q: at(`q_rotated.${l}`), k: at(`k_rotated.${l}`), v: at(`v.${l}`) };
    const { q, k, v } = substitute(names, { tensors: entering });
    const { scale, softcap } = config.attention;
    const visible = streamingVisible(own, config, l, mask);
    const read = attention(sequences(q), sequences(k), sequences(v), { scale, softcap, causal: false, mask: visible });
    const full = at(`heads.${l}`).stopGradient(); // [N, Hq, D]
    const streamed = read.heads.reshape([full.shape[0], heads, headDim]);
    const gate = gates
      .at(l)
      .reshape([kvHeads, 1])
      .expand([kvHeads, heads / kvHeads])
      .reshape([1, heads, 1]);
    const mixed = streamed.add(gate.mul(full.sub(streamed)));
    const tensors = new Map([...entering, [at(`heads.${l}`), mixed]]);
    residual = substitute({ out: at(`residual.${l + 1}`) }, { tensors }).out;
  }
  const tensors = new Map([[at(`residual.${config.layers}`), residual]]);
  const { norm, logits } = substitute({ norm: at("final_norm"), logits: own.logits }, { tensors });
  const taps = new Map([...own.taps, ["reference", at("final_norm").stopGradient()], [GATES, gates]] as const);
  taps.set("final_norm", norm);
  return { ...own, taps, logits };
}

/** Which keys a streaming head sees, [B, 1, T, T]: the first tokens and the newest of the row's own text. */
function streamingVisible(
  { ids, inputs }: ModelGraph,
  config: ModelConfig,
  layer: number,
  mask: StreamingMask,
): Tensor {
  const { sinks = 128, window = 256 } = mask;
  const { windowLayers, window: own } = config.attention;
  const near = causalMask(ids, ids, 1, window);
  const first = causalMask(ids, ids, 1, windowLayers[layer] ? own : undefined).and(
    ids.range(1).less(sinks).unsqueeze(0),
  );
  const within = windowLayers[layer] && own !== undefined ? near.and(causalMask(ids, ids, 1, own)) : near;
  const { documents } = inputs;
  return documents.unsqueeze(2).equal(documents.unsqueeze(1)).and(within.or(first)).unsqueeze(1);
}

/** AdamW without decay or clipping, whose values stay within 0 and 1. */
function withinBounds(rate: number): Optimizer {
  const plain = adamW({ rate, betas: [0.9, 0.999], weightDecay: 0, clip: Number.POSITIVE_INFINITY });
  return {
    ...plain,
    name: "adamw within 0 and 1",
    update(...args) {
      const { value, state } = plain.update(...args);
      return { value: value.clip(0, 1), state };
    },
  };
}

/** Up from a tenth over the first fifth of the steps, down to a tenth over the last. */
function trapezoid(steps: number): Schedule {
  const fifth = Math.max(1, steps / 5);
  return (step) => Math.max(0.1, Math.min(1, step / fifth, (steps - 1 - step) / fifth));
}

/** All query heads, those of the largest gates first; heads of a group have their KV head's gate. */
function gateList(
  gates: Float32Array,
  { config, hash }: Pick<GateOptions["model"], "config" | "hash">,
  madeBy: string,
) {
  const { heads, kvHeads } = config;
  const group = heads / kvHeads;
  const order = [...gates.keys()].sort((a, b) => gates[b] - gates[a] || a - b);
  const ranked = order.flatMap((i) => {
    const layer = Math.floor(i / kvHeads);
    return Array.from({ length: group }, (_, g) => ({ layer, head: (i % kvHeads) * group + g, gate: gates[i] }));
  });
  return {
    ...{ model: hash, name: "retrieval gates", madeBy },
    heads: ranked.map(({ layer, head }) => ({ layer, head })),
    scores: ranked.map(({ gate }) => gate),
  } satisfies HeadList;
}
