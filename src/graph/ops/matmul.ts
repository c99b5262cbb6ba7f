import { dimsAgree } from "../dims.js";
import type { DType } from "../dtype.js";
import type { Emitter } from "../emit.js";
import { rows } from "../op.js";
import { broadcast, needDType, needSameDim, ShapeError, sameDType } from "../shape.js";
import type { Tensor } from "../tensor.js";
import { toFloats } from "../weights.js";
import { quantizedLinear } from "./quantized.js";

const FLOATS: readonly DType[] = ["float32", "float16"];

/** Matrix products. */
export const matmulOps = rows({
  matmul: {
    shape: (inputs) => {
      const [a, b] = inputs;
      const dtype = sameDType("matmul", inputs);
      needDType("matmul", inputs, [...FLOATS, "int64", "int32"]);
      if (a.rank < 2 || b.rank < 2) throw new ShapeError("matmul", "both need at least two dimensions", inputs);
      needSameDim("matmul", "inner dimensions", a.shape[a.rank - 1], b.shape[b.rank - 2], inputs);
      const batch = broadcast("matmul", inputs, 2);
      return { shape: [...batch, a.shape[a.rank - 2], b.shape[b.rank - 1]], dtype };
    },
    onnx: ({ inputs: [a, b] }, emitter) => emitter.node("MatMul", [emitter.value(a), emitter.value(b)]),
  },
  linear: {
    shape: (inputs) => {
      const [x, weight, bias] = inputs;
      const dtype = sameDType("linear", inputs);
      needDType("linear", inputs, FLOATS);
      if (x.rank < 1 || weight.rank !== 2) {
        throw new ShapeError("linear", "x must be [..., K] and the weight [N, K]", inputs);
      }
      const [N, K] = weight.shape;
      needSameDim("linear", "last dimension of x and of the weight", x.shape[x.rank - 1], K, inputs);
      if (bias && (bias.rank !== 1 || !dimsAgree(bias.shape[0], N))) {
        throw new ShapeError("linear", `the bias must be [${N}]`, inputs);
      }
      return { shape: [...x.shape.slice(0, -1), N], dtype };
    },
    onnx: (node, emitter) => {
      const quantized = quantizedLinear(node, emitter);
      if (quantized === undefined) return floatLinear(node, emitter);
      const bias = node.inputs[2];
      return bias ? emitter.node("Add", [quantized, emitter.value(bias)]) : quantized;
    },
    plain: ({ inputs: [x, weight, bias] }) => {
      const product = x.matmul(weight.transpose());
      return bias ? product.add(bias) : product;
    },
  },
});

/** x Wᵀ + b in floats: Gemm reads the weight as it lies, so a two-dimensional x needs no transposed copy. */
function floatLinear({ inputs: [x, weight, bias] }: Tensor, emitter: Emitter): string {
  if (x.rank === 2) {
    const inputs = [emitter.value(x), emitter.value(weight)];
    if (bias) inputs.push(emitter.value(bias));
    return emitter.node("Gemm", inputs, { transB: 1 });
  }
  const product = emitter.node("MatMul", [emitter.value(x), transposed(weight, emitter)]);
  return bias ? emitter.node("Add", [product, emitter.value(bias)]) : product;
}

function transposed(weight: Tensor, emitter: Emitter): string {
  const value = weight.dtype === "float32" ? emitter.weight(weight) : undefined;
  if (!value) return emitter.node("Transpose", [emitter.value(weight)], { perm: [1, 0] });
  return emitter.once(`${weight.name}.transposed`, "float32", () => {
    const [N, K] = weight.shape as number[];
    return { data: transpose(toFloats(value), N, K), shape: [K, N] };
  });
}

/** [N, K] to [K, N], in tiles so that both sides stay in the processor's cache. */
function transpose(data: Float32Array, N: number, K: number): Float32Array {
  const result = new Float32Array(N * K);
  const tile = 32;
  for (let top = 0; top < N; top += tile) {
    const bottom = Math.min(N, top + tile);
    for (let left = 0; left < K; left += tile) {
      const right = Math.min(K, left + tile);
      for (let n = top; n < bottom; n++) for (let k = left; k < right; k++) result[k * N + n] = data[n * K + k];
    }
  }
  return result;
}
