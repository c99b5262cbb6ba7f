import type { Dim } from "../dims.js";
import type { DType } from "../dtype.js";
import { type Attributes, type OpRow, rows } from "../op.js";
import { needDType, ShapeError, type ShapeResult } from "../shape.js";
import type { Tensor } from "../tensor.js";

const FLOATS: readonly DType[] = ["float32", "float16"];
const NUMBERS: readonly DType[] = ["float32", "float16", "int64", "int32"];

/** The lowest finite numbers: -Infinity less itself is no number. */
const LOWEST: Partial<Record<DType, number>> = { float32: -3.4e38, float16: -65504 };

function reducedShape(tensor: Tensor, axes: readonly number[], keep: boolean): Dim[] {
  if (keep) return tensor.shape.map((dim, axis) => (axes.includes(axis) ? 1 : dim));
  return tensor.shape.filter((_, axis) => !axes.includes(axis));
}

/** Reduction over attributes.axes. */
function reduction(op: string, onnxType: string, allowed: readonly DType[] = NUMBERS): OpRow {
  return {
    shape: (inputs, { axes, keep }) => {
      needDType(op, inputs, allowed);
      return { shape: reducedShape(inputs[0], axes as number[], keep as boolean), dtype: inputs[0].dtype };
    },
    onnx: ({ inputs: [x], attrs }, emitter) => {
      const axes = attrs.axes as number[];
      // ONNX reads "no axes" as "all axes".
      if (axes.length === 0) return emitter.value(x);
      return emitter.node(onnxType, [emitter.value(x), emitter.ints(axes)], { keepdims: attrs.keep ? 1 : 0 });
    },
  };
}

/** Index of the extreme along attributes.axis. */
function argReduction(op: string, onnxType: string): OpRow {
  return {
    shape: (inputs, { axis, keep }) => {
      needDType(op, inputs, NUMBERS);
      return { shape: reducedShape(inputs[0], [axis as number], keep as boolean), dtype: "int64" };
    },
    onnx: ({ inputs: [x], attrs }, emitter) =>
      emitter.node(onnxType, [emitter.value(x)], { axis: attrs.axis as number, keepdims: attrs.keep ? 1 : 0 }),
  };
}

/** Softmax and its logarithm along attributes.axis. */
function alongAxis(op: string, onnxType: string): OpRow {
  return {
    shape: (inputs) => {
      needDType(op, inputs, FLOATS);
      return inputs[0];
    },
    onnx: ({ inputs: [x], attrs }, emitter) =>
      emitter.node(onnxType, [emitter.value(x)], { axis: attrs.axis as number }),
  };
}

/** Operations along axes. */
export const reductionOps = rows({
  sum: reduction("sum", "ReduceSum"),
  mean: reduction("mean", "ReduceMean", FLOATS),
  max: reduction("max", "ReduceMax"),
  min: reduction("min", "ReduceMin"),
  prod: reduction("prod", "ReduceProd"),
  logSumExp: {
    ...reduction("logSumExp", "ReduceLogSumExp", FLOATS),
    // The WebGPU kernel overflows on numbers above 88.
    avoid: (_, provider) => provider === "webgpu",
    plain: ({ inputs: [x], attrs }) => {
      const axes = attrs.axes as number[];
      if (axes.length === 0) return x;
      const top = x.max(axes, { keep: true }).maximum(LOWEST[x.dtype] ?? 0);
      const sum = x.sub(top).exp().sum(axes, { keep: true }).log().add(top);
      return attrs.keep ? sum : sum.squeeze(...axes);
    },
  },
  argmax: argReduction("argmax", "ArgMax"),
  argmin: argReduction("argmin", "ArgMin"),
  cumsum: {
    shape: (inputs) => {
      needDType("cumsum", inputs, NUMBERS);
      return inputs[0];
    },
    onnx: ({ inputs: [x], attrs }, emitter) =>
      emitter.node("CumSum", [emitter.value(x), emitter.scalar(attrs.axis as number, "int64")], {
        exclusive: attrs.exclusive ? 1 : 0,
        reverse: attrs.reverse ? 1 : 0,
      }),
  },
  softmax: alongAxis("softmax", "Softmax"),
  logSoftmax: alongAxis("logSoftmax", "LogSoftmax"),
  topk: {
    shape: (inputs, attributes) => topkShape(inputs[0], attributes),
    onnx: (node, emitter) => {
      const { k, axis, largest, output } = node.attrs;
      const inputs = [emitter.value(node.inputs[0]), emitter.dim(k as Dim, node)];
      const attributes = { axis: axis as number, largest: largest ? 1 : 0, sorted: 1 };
      const [values, indices] = emitter.nodes("TopK", inputs, attributes, { outputs: 2 });
      return output === "values" ? values : indices;
    },
  },
});

function topkShape(tensor: Tensor, { k, axis, output }: Attributes): ShapeResult {
  needDType("topk", [tensor], NUMBERS);
  const size = tensor.shape[axis as number];
  if (typeof k === "number" && typeof size === "number" && k > size) {
    throw new ShapeError("topk", `k = ${k} of ${size}`, [tensor]);
  }
  const shape = tensor.shape.with(axis as number, k as Dim);
  return { shape, dtype: output === "values" ? tensor.dtype : "int64" };
}
