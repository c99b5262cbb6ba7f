import { z } from "zod";
import type { KeysStep, ModelShape } from "../../engine/hooks.js";
import { FoveaError } from "../../error.js";
import { oncePerModel } from "../files.js";
import { method } from "../method.js";
import { readMethodTensors, tensorOf } from "../method-tensors.js";
import { projectOnto } from "./symmetric.js";

export const NAME = "compress-kv-heads";

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
  const { layers, headDim } = model;
  if (merge === 1) return [];
  const groups = groupsOf(merge, model);
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

/** How many heads are left. Throws unsupported where `merge` does not divide their number. */
export function groupsOf(merge: number, { kvHeads }: Pick<ModelShape, "kvHeads">): number {
  const groups = kvHeads / merge;
  if (Number.isInteger(groups)) return groups;
  throw new FoveaError("unsupported", `${NAME}: ${kvHeads} KV heads cannot be merged ${merge} by ${merge}`, {
    hint: "`merge` must divide the number of KV heads",
  });
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
