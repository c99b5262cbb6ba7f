import { z } from "zod";
import type { Model } from "../../engine/api.js";
import type { KeysStep, ModelShape } from "../../engine/hooks.js";
import { aborted, FoveaError } from "../../error.js";
import { oncePerModel } from "../files.js";
import { method } from "../method.js";
import { type MethodTensors, readMethodTensors, tensorOf } from "../method-tensors.js";
import { addOuter, firstColumns, mirror, projectOnto, symmetricEigen } from "./symmetric.js";

const NAME = "compress-kv-heads";

const parameters = z.object({
  merge: z.int().min(1).default(2).describe("neighbouring KV heads that become one of the same width (t)"),
  basis: z
    .string()
    .min(1)
    .optional()
    .describe(
      "principal directions of the model's caches, a file that kvHeadBases writes; default: heads are averaged",
    ),
});

/** Bases of the groups of a layer, [groups][t * D, D]. */
interface LayerBases {
  readonly keys: readonly Float32Array[];
  readonly values: readonly Float32Array[];
}

/**
 * Compresses t KV heads into one: their keys, side by side, are projected on the D directions that hold most of them in
 * a calibration text, and their values likewise. Queries are projected too, so a score is that of the projected keys:
 * q_i E_i . (k E) = q_i . (k E E_i^T). The right side is what is computed here, on keys after rotation.
 */
export const compressKvHeads = method({
  name: NAME,
  family: "compression",
  does: "Merges neighbouring key-value heads into one by the principal directions of their cached keys and values.",
  paper: {
    title: "Effectively Compress KV Heads for LLM",
    venue: "arXiv 2406.07056, 2024",
    url: "https://arxiv.org/abs/2406.07056",
  },
  needs: "directions of the model's caches, once (`kvHeadBases`); the paper fine-tunes afterwards",
  cost: "2 t D^2 multiplications per merged head and stored token; cache bytes are not saved yet",
  facts: "a sheet made from the abstract and published summaries, the rest inferred; no official code was found",
  deviations: [
    "the cache holds the keys and values that the merged head stands for, at full size: what is computed is exact, memory is not saved yet",
    "no fine-tuning: the training-free form",
    "without a file heads are averaged, which is the paper's weaker baseline",
  ],
  exact: { merge: 1 },
  trials: [{ parameters: { merge: 2 }, uniform: true }],
  status: "experimental",
  measured:
    "not yet measured on nano. stories260K, five texts of 200 tokens, half of the KV heads: 2.68 nats a token with the caches' " +
    "directions, 4.18 with averaged heads, 1.02 in full",
  parameters,
  scope: "layers",
  hooks: ["activations"],
  check: (model, params) => void basesOf(params, model),
  create(params) {
    const bases = oncePerModel((model) => basesOf(params, model));
    return {
      keys(step) {
        const own = bases(step.model)[step.layer];
        if (own) mergeHeads(step, own, params.merge);
      },
    };
  },
});

/** Bases of each layer; none at merge 1. */
function basesOf({ merge, basis }: z.output<typeof parameters>, model: ModelShape): (LayerBases | undefined)[] {
  const { layers, kvHeads, headDim } = model;
  if (merge === 1) return [];
  const groups = kvHeads / merge;
  if (!Number.isInteger(groups))
    throw new FoveaError("unsupported", `${NAME}: ${kvHeads} KV heads cannot be merged ${merge} by ${merge}`, {
      hint: "`merge` must divide the number of KV heads",
    });
  const size = merge * headDim * headDim;
  if (basis === undefined) {
    const mean = Array.from({ length: groups }, () => meanBasis(merge, headDim));
    return Array.from({ length: layers }, () => ({ keys: mean, values: mean }));
  }
  const file = readMethodTensors(basis, NAME, model);
  const split = (name: string) => {
    const data = tensorOf(file, name, [groups, merge * headDim, headDim]);
    return Array.from({ length: groups }, (_, g) => data.subarray(g * size, (g + 1) * size));
  };
  return Array.from({ length: layers }, (_, l) => ({ keys: split(`keys.${l}`), values: split(`values.${l}`) }));
}

/** The basis [t * D, D] that averages heads: I / sqrt(t) for each of them. */
export function meanBasis(merge: number, headDim: number): Float32Array {
  const basis = new Float32Array(merge * headDim * headDim);
  for (let i = 0; i < merge * headDim; i++) basis[i * headDim + (i % headDim)] = 1 / Math.sqrt(merge);
  return basis;
}

function mergeHeads({ k, v, rows, model }: KeysStep, { keys, values }: LayerBases, merge: number): void {
  const { kvHeads, headDim } = model;
  const width = merge * headDim;
  for (let t = 0; t < rows; t++)
    for (let g = 0; g < kvHeads / merge; g++) {
      const at = t * kvHeads * headDim + g * width; // heads of a group lie side by side
      projectOnto(k.subarray(at, at + width), keys[g], headDim);
      projectOnto(v.subarray(at, at + width), values[g], headDim);
    }
}

/** Bases, and the share of each group's energy that they hold. */
export interface KvHeadBases {
  readonly file: MethodTensors;
  /** [L, groups] of keys and of values: sums of the kept eigenvalues over all. */
  readonly kept: { readonly keys: Float32Array; readonly values: Float32Array };
}

/**
 * Principal directions of groups of KV heads on calibration texts (uncentred, keys after rotation): use texts as long as
 * those that will be read, since a basis of near positions fails at far ones.
 *
 * @example
 * const { file } = await kvHeadBases(model, texts, { merge: 2, madeBy: "node calibrate.mjs" });
 * await writeFile("bases.safetensors", await encodeMethodTensors(file));
 *
 * @throws FoveaError `unsupported` for a model in a worker (load it with `worker: false`) or a number that does not divide
 */
export async function kvHeadBases(
  model: Model,
  texts: readonly (string | readonly number[])[],
  options: { readonly merge: number; readonly madeBy: string; readonly signal?: AbortSignal },
): Promise<KvHeadBases> {
  const { merge, madeBy, signal } = options;
  const { shape } = model.info;
  basesOf({ merge }, shape);
  const groups = shape.kvHeads / merge;
  const width = merge * shape.headDim;
  const zeros = () => Array.from({ length: shape.layers * groups }, () => new Float64Array(width * width));
  const sums = { keys: zeros(), values: zeros() };
  const watched = model.with(watchCaches(sums, groups, width));
  for (const text of texts) {
    if (signal?.aborted) throw aborted(signal);
    await watched.logits(text, { signal });
  }
  const tensors = new Map<string, { shape: number[]; data: Float32Array }>();
  const kept = { keys: new Float32Array(shape.layers * groups), values: new Float32Array(shape.layers * groups) };
  for (const name of ["keys", "values"] as const)
    for (let l = 0; l < shape.layers; l++) {
      const data = new Float32Array(groups * width * shape.headDim);
      for (let g = 0; g < groups; g++) {
        const { values, vectors } = symmetricEigen(mirror(sums[name][l * groups + g]));
        data.set(firstColumns(vectors, shape.headDim), g * width * shape.headDim);
        const share = values.subarray(0, shape.headDim).reduce((a, b) => a + b, 0);
        kept[name][l * groups + g] = share / values.reduce((a, b) => a + b, 0);
      }
      tensors.set(`${name}.${l}`, { shape: [groups, width, shape.headDim], data });
    }
  return { file: { model: shape.hash, method: NAME, madeBy, tensors }, kept };
}

/** Adds up the products of each group's keys and values, and changes nothing. */
function watchCaches(sums: Record<"keys" | "values", Float64Array[]>, groups: number, width: number) {
  return method({
    name: "watch-caches",
    keys({ layer, rows, k, v }) {
      for (let t = 0; t < rows; t++)
        for (let g = 0; g < groups; g++) {
          const at = (t * groups + g) * width;
          addOuter(sums.keys[layer * groups + g], k.subarray(at, at + width));
          addOuter(sums.values[layer * groups + g], v.subarray(at, at + width));
        }
    },
  })();
}
