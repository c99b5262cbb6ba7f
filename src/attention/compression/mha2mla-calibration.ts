import type { Model } from "../../engine/api.js";
import { aborted, FoveaError } from "../../error.js";
import { toFloats } from "../../graph/index.js";
import type { Checkpoint, ModelConfig } from "../../models/index.js";
import { method } from "../method.js";
import type { MethodTensors } from "../method-tensors.js";
import { NAME } from "./mha2mla.js";
import { choosePairs, pairsKept } from "./rotary-pairs.js";
import { addOuter, firstColumns, mirror, symmetricEigen } from "./symmetric.js";

/** Options of `latentBases`. */
export interface LatentOptions {
  /** Dimensions of a head that keep their position, or their share below 1. Default 1/8. */
  readonly rotary?: number;
  /** How pairs are chosen; "2-norm" (the default) needs `texts`. */
  readonly pairs?: "2-norm" | "uniform" | "high" | "low";
  /** Calibration texts. */
  readonly texts?: readonly (string | readonly number[])[];
  /** The command that makes the file anew. */
  readonly madeBy: string;
  readonly signal?: AbortSignal;
}

/**
 * MHA2MLA's choice of rotary pairs and its joint basis of plain keys and values: the left singular vectors of
 * [W_kc; W_v], all of them, so that one file serves every rank.
 *
 * @example
 * const file = await latentBases(model, checkpoint, { texts, madeBy: "node calibrate.mjs" });
 * await writeFile("latent.safetensors", await encodeMethodTensors(file));
 * model.with("mha2mla(basis=latent.safetensors,rank=16)");
 *
 * @param model the checkpoint, loaded with `worker: false`
 * @throws FoveaError `unsupported` for models without rotation or with norms on keys; `bad-input` for another model
 */
export async function latentBases(
  model: Model,
  checkpoint: Pick<Checkpoint, "config" | "weights" | "hash">,
  options: LatentOptions,
): Promise<MethodTensors> {
  const { rotary = 1 / 8, pairs = "2-norm", texts = [], madeBy, signal } = options;
  const { config, weights, hash } = checkpoint;
  if (hash !== model.info.shape.hash)
    throw new FoveaError("bad-input", "the model was loaded from another checkpoint than the one given");
  const half = checkedHalf(config);
  const { layers, kvHeads } = config;
  if (pairs === "2-norm" && texts.length === 0)
    throw new FoveaError("bad-input", "pairs are chosen by 2-norm on texts, and none is given", {
      hint: 'give `texts`, or pairs: "uniform"',
    });
  const scores = pairs === "2-norm" ? await pairScores(model, texts, half, signal) : undefined;
  const tensors = new Map<string, { shape: number[]; data: Float32Array }>();
  for (let l = 0; l < layers; l++) {
    if (signal?.aborted) throw aborted(signal);
    const kept = Array.from({ length: kvHeads }, (_, h) =>
      scores
        ? largestPairs(scores.subarray((l * kvHeads + h) * half, (l * kvHeads + h + 1) * half), pairsKept(half, rotary))
        : choosePairs(half, { rotary, pairs: pairs as "uniform" }),
    );
    const plain = plainPlaces(kept, half, config.headDim);
    const names = [`layers.${l}.k`, `layers.${l}.v`, `layers.${l}.k.bias`, `layers.${l}.v.bias`];
    const has = config.attention.biasQKV;
    await weights.prefetch?.(has ? names : names.slice(0, 2));
    const [wk, wv] = names.slice(0, 2).map((name) => toFloats(weights.get(name)));
    const rows = stackedRows(wk, wv, plain, config.width);
    const bias = has ? biasOf(toFloats(weights.get(names[2])), toFloats(weights.get(names[3])), plain) : undefined;
    const n = rows.length;
    const { vectors } = symmetricEigen(gram(rows));
    const columns = Math.min(n, config.width);
    tensors.set(`pairs.${l}`, { shape: [kvHeads, kept[0].length], data: Float32Array.from(kept.flat()) });
    tensors.set(`plain.${l}`, { shape: [plain.length], data: Float32Array.from(plain) });
    tensors.set(`basis.${l}`, { shape: [n, columns], data: firstColumns(vectors, columns) });
    tensors.set(`bias.${l}`, { shape: [n], data: bias ?? new Float32Array(n) });
  }
  return { model: hash, method: NAME, madeBy, tensors };
}

function checkedHalf({ rotary, attention, family }: ModelConfig): number {
  if (!rotary || rotary.dims % 2 !== 0)
    throw new FoveaError("unsupported", `${family} does not rotate keys: there is nothing to choose`);
  if (attention.qkNorm !== "none")
    throw new FoveaError("unsupported", `${family} norms its keys, so they are no linear map of the layer's input`, {
      hint: "compress-kv-heads works on caches and takes such models",
    });
  return rotary.dims / 2;
}

/** Of each pair of each KV head: mean norm of its queries, summed over the group, times that of its keys: [L, Hkv, half]. */
async function pairScores(
  model: Model,
  texts: readonly (string | readonly number[])[],
  half: number,
  signal: AbortSignal | undefined,
): Promise<Float32Array> {
  const { layers, heads, kvHeads, headDim } = model.info.shape;
  const [uq, uk] = [new Float64Array(layers * kvHeads * half), new Float64Array(layers * kvHeads * half)];
  const add = (sums: Float64Array, x: Float32Array, count: number, rows: number, layer: number) => {
    for (let t = 0; t < rows; t++)
      for (let h = 0; h < count; h++) {
        const to = (layer * kvHeads + Math.floor((h * kvHeads) / count)) * half;
        const at = (t * count + h) * headDim;
        for (let i = 0; i < half; i++) sums[to + i] += Math.hypot(x[at + i], x[at + half + i]);
      }
  };
  const watch = method({
    name: "watch-pairs",
    activations({ layer, rows, q, k }) {
      add(uq, q, heads, rows, layer);
      add(uk, k, kvHeads, rows, layer);
    },
  });
  const watched = model.with(watch());
  for (const text of texts) {
    if (signal?.aborted) throw aborted(signal);
    await watched.logits(text, { signal });
  }
  return rankingScores(uq, uk);
}

/** u^q u^k of each pair. Sums over tokens rank as means do. */
export function rankingScores(uq: ArrayLike<number>, uk: ArrayLike<number>): Float32Array {
  return Float32Array.from(uq, (x, i) => x * uk[i]);
}

/** The `count` best pairs, ascending. */
export function largestPairs(scores: Float32Array, count: number): number[] {
  const order = Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a] || a - b);
  return order.slice(0, count).sort((a, b) => a - b);
}

/** Places of the keys that have no position, in k [Hkv * D]. */
function plainPlaces(kept: readonly (readonly number[])[], half: number, headDim: number): number[] {
  return kept.flatMap((pairs, h) =>
    Array.from({ length: headDim }, (_, d) => d)
      .filter((d) => d >= 2 * half || !pairs.includes(d % half))
      .map((d) => h * headDim + d),
  );
}

/** Rows of [W_kc; W_v], each [d]. */
function stackedRows(wk: Float32Array, wv: Float32Array, plain: readonly number[], width: number): Float32Array[] {
  const row = (w: Float32Array, at: number) => w.subarray(at * width, (at + 1) * width);
  return [...plain.map((at) => row(wk, at)), ...Array.from({ length: wv.length / width }, (_, at) => row(wv, at))];
}

function biasOf(bk: Float32Array, bv: Float32Array, plain: readonly number[]): Float32Array {
  return Float32Array.from([...plain.map((at) => bk[at]), ...bv]);
}

/** W W^T of rows [n][d]. */
export function gram(rows: readonly Float32Array[]): Float64Array {
  const n = rows.length;
  const sums = new Float64Array(n * n);
  const column = new Float64Array(n);
  for (let d = 0; d < rows[0].length; d++) {
    for (let i = 0; i < n; i++) column[i] = rows[i][d];
    addOuter(sums, column);
  }
  return mirror(sums);
}
