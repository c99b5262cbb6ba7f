import { type Dim, dimsAgree } from "./dims.js";
import { ShapeError } from "./shape.js";
import { concat, type Tensor } from "./tensor.js";

/** Options of `attention`. */
export interface AttentionOptions {
  /** A query sees only keys at its own position and before (default true). The last query stands at the last key. */
  causal?: boolean;
  /** Default 1 / sqrt(D). */
  scale?: number;
  /** Logits become softcap * tanh(logits / softcap), after scaling. */
  softcap?: number;
  /** With `causal`: how many keys a query sees at most, its own included. */
  window?: number;
  /** Added to the logits, after the soft-cap; broadcasts to [Hq, T, S]. -Infinity hides a key. */
  bias?: Tensor;
  /** bool, broadcasts to [Hq, T, S]: which keys a query may see, besides the causal rule. */
  mask?: Tensor;
  /** One logit per head [Hq] that takes part in the softmax and has no value (an attention sink). */
  sink?: Tensor;
}

/** What attention computes on its way. T queries, S keys, Hq query heads; in a batch of B sequences B stands in front. */
export interface AttentionResult {
  /** Weighted values per head [T, Hq, Dv]. */
  heads: Tensor;
  /** Scaled, capped, biased and masked logits [Hq, T, S]. */
  logits: Tensor;
  /** Softmax of the logits [Hq, T, S]. */
  pattern: Tensor;
}

/**
 * The definition of attention, out of plain operations: q [T, Hq, D], k [S, Hkv, D], v [S, Hkv, Dv], where each key
 * head serves Hq / Hkv neighbouring query heads (arXiv:1706.03762, grouped queries arXiv:2305.13245). A batch of
 * sequences has one axis more in front, of all tensors and of masks and biases. A query that may see no key at all has no
 * defined result. Throws ShapeError.
 */
export function attention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): AttentionResult {
  const { Hq, Hkv, D } = checkHeads(q, k, v);
  const group = Hq / Hkv;
  const batch = q.shape.slice(0, -3);
  const b = batch.length;
  const at = (...axes: number[]): number[] => [...batch.keys(), ...axes.map((axis) => axis + b)];
  const [T, S, Dv] = [q.shape[b], k.shape[b], v.shape[b + 2]];

  // one key head per query head needs no axis of groups
  const grouped = group > 1;
  const queries = grouped
    ? q.reshape([...batch, T, Hkv, group, D]).transpose(...at(1, 2, 0, 3)) // [Hkv, G, T, D]
    : q.transpose(...at(1, 0, 2)); // [Hq, T, D]
  const keyed = k.transpose(...at(1, 2, 0)); // [Hkv, D, S]
  const valued = v.transpose(...at(1, 0, 2)); // [Hkv, S, Dv]
  const keys = grouped ? keyed.unsqueeze(b + 1) : keyed;
  const values = grouped ? valued.unsqueeze(b + 1) : valued;

  let logits = queries.mul(options.scale ?? 1 / Math.sqrt(D)).matmul(keys); // [Hq, T, S]
  if (grouped) logits = logits.reshape([...batch, Hq, T, S]);
  if (options.softcap) logits = logits.div(options.softcap).tanh().mul(options.softcap);
  if (options.bias) logits = logits.add(options.bias);
  const visible = visibility(q, k, options);
  // added, not chosen: a choice by a mask that broadcasts over heads takes many times as long as an addition
  if (visible) logits = logits.add(visible.where(0, Number.NEGATIVE_INFINITY));

  const pattern = options.sink ? softmaxWithSink(logits, options.sink) : logits.softmax(-1); // [Hq, T, S]
  const weighted = grouped
    ? pattern
        .reshape([...batch, Hkv, group, T, S])
        .matmul(values)
        .transpose(...at(2, 0, 1, 3)) // [T, Hkv, G, Dv]
    : pattern.matmul(values).transpose(...at(1, 0, 2)); // [T, Hq, Dv]
  const heads = grouped ? weighted.reshape([...batch, T, Hq, Dv]) : weighted;
  return { heads, logits, pattern };
}

function checkHeads(q: Tensor, k: Tensor, v: Tensor): { Hq: number; Hkv: number; D: number } {
  const fail = (problem: string): never => {
    throw new ShapeError("attention", problem, [q, k, v]);
  };
  const b = q.rank - 3;
  if (b < 0 || b > 1 || k.rank !== q.rank || v.rank !== q.rank) {
    fail("q must be [T, Hq, D], k [S, Hkv, D], v [S, Hkv, Dv], or all of them batches of such");
  }
  const [Hq, Hkv, D] = [q.shape[b + 1], k.shape[b + 1], q.shape[b + 2]];
  if (typeof Hq !== "number" || typeof Hkv !== "number" || typeof D !== "number") {
    return fail("head counts and the head size must be numbers");
  }
  if (Hq % Hkv !== 0) fail(`${Hq} query heads are no multiple of ${Hkv} key heads`);
  if (!dimsAgree(D, k.shape[b + 2])) fail("queries and keys have different head sizes");
  if (!dimsAgree(k.shape[b], v.shape[b]) || !dimsAgree(Hkv, v.shape[b + 1])) fail("keys and values differ in number");
  if (b > 0 && !(dimsAgree(q.shape[0], k.shape[0]) && dimsAgree(q.shape[0], v.shape[0]))) fail("the batches differ");
  return { Hq, Hkv, D };
}

/** Which keys each query sees: bool, broadcasts to [Hq, T, S]; undefined where all do. */
function visibility(q: Tensor, k: Tensor, { causal = true, window, mask }: AttentionOptions): Tensor | undefined {
  if (!causal) return mask;
  const visible = causalMask(q, k, q.rank - 3, window);
  return mask ? visible.and(mask) : visible;
}

/** bool [T, S]: keys at a query's own position and before, at most `window` of them. `axis`: that of T and of S. */
export function causalMask(q: Tensor, k: Tensor, axis: number, window?: number): Tensor {
  const positions = q
    .range(axis)
    .add(k.size(axis).sub(q.size(axis)))
    .unsqueeze(1); // [T, 1]
  const keys = k.range(axis).unsqueeze(0); // [1, S]
  const visible = keys.lessEqual(positions); // [T, S]
  return window === undefined ? visible : visible.and(keys.greater(positions.sub(window)));
}

function softmaxWithSink(logits: Tensor, sink: Tensor): Tensor {
  const batch = logits.shape.slice(0, -3);
  const [Hq, T, S]: readonly Dim[] = logits.shape.slice(-3);
  const column = sink.reshape([Hq, 1, 1]).expand([...batch, Hq, T, 1]);
  return concat([logits, column], -1).softmax(-1).slice({ axis: -1, start: 0, end: S }).withShape(logits.shape);
}
