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

/** The names of a weight's codes and scales in the file, with what has to be known to read them. */
interface QuantizedValues {
  codes: string;
  scales: string;
  /** Per block what has to be added to scale * (code - zero point), [blocks, N]; undefined where nothing. */
  offsets?: string;
  bits: 4 | 8;
}

/** Writes a weight's codes and scales, once for all its uses. */
function quantizedValues(weight: Tensor, emitter: Emitter): QuantizedValues | undefined {
  const found = emitter.remember(`quantized ${weight.name}`, () => {
    const form = quantizedForm(weight, emitter);
    if (!form) return null;
    const name = weight.name ?? "weight";
    const [N, K] = form.shape;
    const blocks = blocksOf(K);
    const bits = form.kind === "q8_0" ? 8 : 4;
    const data = form.kind === "q8_0" ? unsignedCodes(form.codes) : form.codes;
    const codes = emitter.initializer(`${name}.codes`, "uint8", [N, blocks, (BLOCK * bits) / 8], data);
    const scales = emitter.initializer(`${name}.scales`, "float32", [N * blocks], form.scales);
    const offsets =
      form.kind === "q4" && form.mins
        ? emitter.initializer(`${name}.offsets`, "float32", [blocks, N], blockOffsets(form, form.mins))
        : undefined;
    return { codes, scales, offsets, bits } satisfies QuantizedValues;
  });
  return found ?? undefined;
}

/** MatMulNBits reads code c as c - 8, so a block with a minimum is off by min + 8 scale. Transposed: [blocks, N]. */
function blockOffsets(form: Q4Weight, mins: Float32Array): Float32Array {
  const [N, K] = form.shape;
  const blocks = blocksOf(K);
  const offsets = new Float32Array(blocks * N);
  for (let row = 0; row < N; row++) {
    for (let block = 0; block < blocks; block++) {
      const at = row * blocks + block;
      offsets[block * N + row] = mins[at] + 8 * form.scales[at];
    }
  }
  return offsets;
}

/**
 * x Wᵀ by MatMulNBits, where the weight is a parameter that is held in 8 or 4 bits; undefined where it is not. The
 * kernel quantises the activations to 8 bits per block too (accuracy level 4), which is what makes it fast.
 */
export function quantizedLinear({ inputs: [x, weight] }: Tensor, emitter: Emitter): string | undefined {
  const values = quantizedValues(weight, emitter);
  if (!values) return undefined;
  const [N, K] = weight.shape as number[];
  const product = emitter.node(
    "MatMulNBits",
    [emitter.value(x), values.codes, values.scales],
    { K, N, bits: values.bits, block_size: BLOCK, accuracy_level: 4 },
    MICROSOFT,
  );
  if (values.offsets === undefined) return product;
  const sums = blockSums(x, K, emitter); // [..., blocks]
  return emitter.node("Add", [product, emitter.node("MatMul", [sums, values.offsets])]);
}

/** Sums of x [..., K] over the blocks of its last axis: what the blocks' offsets are multiplied with. */
function blockSums(x: Tensor, K: number, emitter: Emitter): string {
  const blocks = blocksOf(K);
  let value = emitter.value(x);
  if (K % BLOCK !== 0) {
    const pads = [emitter.ints([0, blocks * BLOCK - K]), emitter.scalar(0, x.dtype), emitter.ints([-1])];
    value = emitter.node("Pad", [value, ...pads]);
  }
  const lead = x.shape.slice(0, -1).map(() => 0);
  const blocked = emitter.node("Reshape", [value, emitter.ints([...lead, blocks, BLOCK])]);
  return emitter.node("ReduceSum", [blocked, emitter.ints([-1])], { keepdims: 0 });
}

/**
 * Rows of a table [V, K] that is held in 8 or 4 bits, widened to float32; undefined where the table is not held so, or
 * its rows are no whole number of blocks.
 */
export function quantizedGather(node: Tensor, emitter: Emitter): string | undefined {
  const [table, indices] = node.inputs;
  if (emitter.standard || node.attrs.axis !== 0 || table.op !== "parameter" || table.rank !== 2) return undefined;
  const [V, K] = table.shape as number[];
  const value = emitter.weight(table);
  // A table of floats is not quantised for a look-up, which saves no time: only stored codes stay codes.
  if (!value || value.kind === "float" || K % BLOCK !== 0) return undefined;
  const values = quantizedValues(table, emitter);
  if (!values || values.offsets !== undefined) return undefined;
  const flatCodes = emitter.node("Reshape", [values.codes, emitter.ints([V, (K * values.bits) / 8])]);
  const flatScales = emitter.node("Reshape", [values.scales, emitter.ints([V, K / BLOCK])]);
  return emitter.node(
    "GatherBlockQuantized",
    [flatCodes, emitter.value(indices), flatScales],
    { bits: values.bits, block_size: BLOCK, gather_axis: 0, quantize_axis: 1 },
    MICROSOFT,
  );
}
