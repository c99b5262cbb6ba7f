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

/** What attention computes on its way. T queries, S keys, Hq query heads. */
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
 * head serves Hq / Hkv neighbouring query heads (arXiv:1706.03762, grouped queries arXiv:2305.13245). A query that may
 * see no key at all has no defined result. Throws ShapeError.
 */
export function attention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): AttentionResult {
  const { Hq, Hkv, D } = checkHeads(q, k, v);
  const group = Hq / Hkv;
  const [T, S, Dv] = [q.shape[0], k.shape[0], v.shape[2]];

  const queries = q.reshape([T, Hkv, group, D]).transpose(1, 2, 0, 3); // [Hkv, G, T, D]
  const keys = k.transpose(1, 2, 0).unsqueeze(1); // [Hkv, 1, D, S]
  const values = v.transpose(1, 0, 2).unsqueeze(1); // [Hkv, 1, S, Dv]

  let logits = queries
    .matmul(keys)
    .reshape([Hq, T, S])
    .mul(options.scale ?? 1 / Math.sqrt(D)); // [Hq, T, S]
  if (options.softcap) logits = logits.div(options.softcap).tanh().mul(options.softcap);
  if (options.bias) logits = logits.add(options.bias);
  const visible = visibility(q, k, options);
  if (visible) logits = visible.where(logits, Number.NEGATIVE_INFINITY);

  const pattern = options.sink ? softmaxWithSink(logits, options.sink) : logits.softmax(-1); // [Hq, T, S]
  const heads = pattern
    .reshape([Hkv, group, T, S])
    .matmul(values) // [Hkv, G, T, Dv]
    .transpose(2, 0, 1, 3)
    .reshape([T, Hq, Dv]);
  return { heads, logits, pattern };
}

function checkHeads(q: Tensor, k: Tensor, v: Tensor): { Hq: number; Hkv: number; D: number } {
  const fail = (problem: string): never => {
    throw new ShapeError("attention", problem, [q, k, v]);
  };
  if (q.rank !== 3 || k.rank !== 3 || v.rank !== 3) fail("q must be [T, Hq, D], k [S, Hkv, D], v [S, Hkv, Dv]");
  const [Hq, Hkv, D] = [q.shape[1], k.shape[1], q.shape[2]];
  if (typeof Hq !== "number" || typeof Hkv !== "number" || typeof D !== "number") {
    return fail("head counts and the head size must be numbers");
  }
  if (Hq % Hkv !== 0) fail(`${Hq} query heads are no multiple of ${Hkv} key heads`);
  if (!dimsAgree(D, k.shape[2])) fail("queries and keys have different head sizes");
  if (!dimsAgree(k.shape[0], v.shape[0]) || !dimsAgree(Hkv, v.shape[1])) fail("keys and values differ in number");
  return { Hq, Hkv, D };
}

/** Which keys each query sees: bool, broadcasts to [Hq, T, S]; undefined where all do. */
function visibility(q: Tensor, k: Tensor, { causal = true, window, mask }: AttentionOptions): Tensor | undefined {
  if (!causal) return mask;
  const positions = q
    .range(0)
    .add(k.size(0).sub(q.size(0)))
    .unsqueeze(1); // [T, 1]
  const keys = k.range(0).unsqueeze(0); // [1, S]
  let visible = keys.lessEqual(positions); // [T, S]
  if (window !== undefined) visible = visible.and(keys.greater(positions.sub(window)));
  return mask ? visible.and(mask) : visible;
}

function softmaxWithSink(logits: Tensor, sink: Tensor): Tensor {
  const [Hq, T, S]: readonly Dim[] = logits.shape;
  const column = sink.reshape([Hq, 1, 1]).expand([Hq, T, 1]);
  return concat([logits, column], 2).softmax(-1).slice({ axis: 2, start: 0, end: S }).withShape(logits.shape);
}
