import { addDims, type Dim, dimsAgree, isUnknown, unknownDim } from "../dims.js";
import type { DType } from "../dtype.js";
import type { Emitter } from "../emit.js";
import { type Attributes, rows } from "../op.js";
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
  einsum: {
    shape: (inputs, { equation }) => {
      const dtype = sameDType("einsum", inputs);
      needDType("einsum", inputs, FLOATS);
      return { shape: einsumShape(equation as string, inputs), dtype };
    },
    onnx: ({ inputs, attrs }, emitter) =>
      emitter.node(
        "Einsum",
        inputs.map((tensor) => emitter.value(tensor)),
        { equation: attrs.equation as string },
      ),
  },
  conv: {
    shape: (inputs, attributes) => {
      const [x, weight, bias] = inputs;
      const dtype = sameDType("conv", inputs);
      needDType("conv", inputs, FLOATS);
      const groups = attributes.groups as number;
      const channels = weight.shape[1];
      if (x.rank < 3 || weight.rank !== x.rank || typeof channels !== "number") {
        throw new ShapeError("conv", "x must be [N, C, ...size] and the weight [M, C / groups, ...kernel]", inputs);
      }
      needSameDim("conv", "channels", x.shape[1], channels * groups, inputs);
      if (bias && (bias.rank !== 1 || !dimsAgree(bias.shape[0], weight.shape[0]))) {
        throw new ShapeError("conv", `the bias must be [${weight.shape[0]}]`, inputs);
      }
      const sizes = x.shape.slice(2).map((size, i) => convSize(size, weight.shape[i + 2], attributes, i, inputs));
      return { shape: [x.shape[0], weight.shape[0], ...sizes], dtype };
    },
    onnx: ({ inputs, attrs }, emitter) => {
      const axes = inputs[0].rank - 2;
      const list = (value: unknown, otherwise: number): number[] =>
        (value as number[] | undefined) ?? new Array<number>(axes).fill(otherwise);
      return emitter.node(
        "Conv",
        inputs.map((tensor) => emitter.value(tensor)),
        {
          strides: list(attrs.strides, 1),
          dilations: list(attrs.dilations, 1),
          pads: [...list(attrs.before, 0), ...list(attrs.after, 0)],
          group: attrs.groups as number,
        },
      );
    },
    plain: convolution,
  },
});

/** The list that a convolution was given for its axes, or its default. */
function perAxis(node: Tensor, name: string, otherwise: number): readonly number[] {
  return (node.attrs[name] as number[] | undefined) ?? new Array<number>(node.inputs[0].rank - 2).fill(otherwise);
}

/** A sum over the places of the kernel: each is one product of the input, moved by as much, with a slice of the weight. */
function convolution(node: Tensor): Tensor {
  const [x, weight, bias] = node.inputs;
  const axes = x.rank - 2;
  const groups = node.attrs.groups as number;
  const [strides, dilations] = [perAxis(node, "strides", 1), perAxis(node, "dilations", 1)];
  const kernel = weight.shape.slice(2) as number[];
  const [M, C] = [weight.shape[0] as number, weight.shape[1] as number]; // C of one group
  let padded = x;
  for (let i = 0; i < axes; i++) {
    const [before, after] = [perAxis(node, "before", 0)[i], perAxis(node, "after", 0)[i]];
    if (before > 0 || after > 0) padded = padded.pad({ axis: i + 2, before, after });
  }
  let sum: Tensor | undefined;
  for (const place of placesOf(kernel)) {
    let moved = padded;
    let part = weight;
    for (let i = 0; i < axes; i++) {
      const start = place[i] * dilations[i];
      const rest = (kernel[i] - 1) * dilations[i] - start;
      moved = moved.slice({ axis: i + 2, start, end: rest === 0 ? undefined : -rest, step: strides[i] });
      part = part.at(place[i], 2);
    }
    const size = moved.shape.slice(2);
    const rows = moved.reshape([x.shape[0], groups, C, -1]); // [N, G, C, places]
    const product = part
      .reshape([groups, M / groups, C])
      .matmul(rows)
      .reshape([x.shape[0], M, ...size]);
    sum = sum ? sum.add(product) : product;
  }
  const result = sum ?? padded;
  return bias ? result.add(bias.reshape([M, ...new Array<number>(axes).fill(1)])) : result;
}

/** All index lists of a kernel. */
function placesOf(sizes: readonly number[]): number[][] {
  return sizes.reduce<number[][]>(
    (places, size) => places.flatMap((place) => Array.from({ length: size }, (_, i) => [...place, i])),
    [[]],
  );
}

/** The size of a convolved axis. */
function convSize(size: Dim, kernel: Dim, attributes: Attributes, i: number, inputs: readonly Tensor[]): Dim {
  const at = (name: string, otherwise: number): number => (attributes[name] as number[] | undefined)?.[i] ?? otherwise;
  if (typeof kernel !== "number") throw new ShapeError("conv", "the kernel's sizes must be numbers", inputs);
  const reach = (kernel - 1) * at("dilations", 1) + 1;
  const room = addDims(size, at("before", 0) + at("after", 0) - reach);
  const stride = at("strides", 1);
  if (typeof room === "number") {
    if (room < 0) throw new ShapeError("conv", `a kernel that reaches over ${reach} does not fit`, inputs);
    return Math.floor(room / stride) + 1;
  }
  return stride === 1 && !isUnknown(size) ? addDims(room, 1) : unknownDim();
}

function einsumShape(equation: string, inputs: readonly Tensor[]): Dim[] {
  const match = /^([a-zA-Z]*(?:,[a-zA-Z]*)*)->([a-zA-Z]*)$/.exec(equation);
  const terms = match?.[1].split(",");
  if (!match || !terms || terms.length !== inputs.length) {
    throw new ShapeError(
      "einsum",
      `"${equation}" is not an equation such as "td,sd->ts" with one term per tensor`,
      inputs,
    );
  }
  const sizes = new Map<string, Dim>();
  terms.forEach((letters, i) => {
    const { shape, rank } = inputs[i];
    if (letters.length !== rank)
      throw new ShapeError("einsum", `"${letters}" names ${letters.length} axes`, [inputs[i]]);
    [...letters].forEach((letter, axis) => {
      const known = sizes.get(letter);
      if (known !== undefined) needSameDim("einsum", `axis ${letter}`, known, shape[axis], inputs);
      if (known === undefined || isUnknown(known)) sizes.set(letter, shape[axis]);
    });
  });
  return [...match[2]].map((letter) => {
    const size = sizes.get(letter);
    if (size === undefined) throw new ShapeError("einsum", `${letter} of the result stands in no term`, inputs);
    return size;
  });
}

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
  const name = `${weight.name}.transposed`;
  return emitter.remember(name, () => {
    const [N, K] = weight.shape as number[];
    return emitter.initializer(name, "float32", [K, N], transpose(toFloats(value), N, K));
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
