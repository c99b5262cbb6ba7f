import type { Model } from "../../engine/api.js";
import { aborted } from "../../error.js";
import { method } from "../method.js";
import type { MethodTensors } from "../method-tensors.js";
import { groupsOf, NAME } from "./compress-kv-heads.js";
import { addOuter, firstColumns, mirror, symmetricEigen } from "./symmetric.js";

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
  const groups = groupsOf(merge, shape);
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
