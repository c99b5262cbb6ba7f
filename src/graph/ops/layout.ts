import {
  addDims,
  type Dim,
  dimsAgree,
  formatShape,
  isUnknown,
  multiplyDims,
  productOfDims,
  subtractDims,
  unknownDim,
} from "../dims.js";
import type { Emitter } from "../emit.js";
import { rows } from "../op.js";
import { broadcast, ShapeError, sameDType } from "../shape.js";
import type { Tensor } from "../tensor.js";

const TO_END = Number.MAX_SAFE_INTEGER;

/** Operations that move elements and compute nothing. */
export const layoutOps = rows({
  transpose: {
    shape: ([x], { permutation }) => {
      const order = permutation as number[];
      if (order.length !== x.rank || [...order].sort((a, b) => a - b).some((axis, i) => axis !== i)) {
        throw new ShapeError("transpose", `(${order}) is no permutation of the axes`, [x]);
      }
      return { shape: order.map((axis) => x.shape[axis]), dtype: x.dtype };
    },
    onnx: ({ inputs: [x], attrs }, emitter) =>
      emitter.node("Transpose", [emitter.value(x)], { perm: attrs.permutation as number[] }),
  },
  reshape: {
    shape: ([x], attributes) => {
      const shape = attributes.shape as Dim[];
      const [from, to] = [productOfDims(x.shape), productOfDims(shape)];
      const open = [...x.shape, ...shape].some(isUnknown);
      if (from !== to && !open) {
        throw new ShapeError("reshape", `${from} elements do not fill ${formatShape(shape)}`, [x]);
      }
      return { shape, dtype: x.dtype };
    },
    onnx: (node, emitter) => {
      const [x] = node.inputs;
      return emitter.node("Reshape", [emitter.value(x), reshapeTarget(node, x, emitter)], {
        allowzero: node.shape.includes(0) ? 1 : undefined,
      });
    },
  },
  unsqueeze: {
    shape: ([x], { axes }) => {
      const shape = [...x.shape];
      for (const axis of axes as number[]) shape.splice(axis, 0, 1);
      return { shape, dtype: x.dtype };
    },
    onnx: ({ inputs: [x], attrs }, emitter) =>
      emitter.node("Unsqueeze", [emitter.value(x), emitter.ints(attrs.axes as number[])]),
  },
  squeeze: {
    shape: ([x], attributes) => {
      const axes = attributes.axes as number[];
      for (const axis of axes) {
        if (!dimsAgree(x.shape[axis], 1)) throw new ShapeError("squeeze", `axis ${axis} is not of size 1`, [x]);
      }
      return { shape: x.shape.filter((_, axis) => !axes.includes(axis)), dtype: x.dtype };
    },
    onnx: ({ inputs: [x], attrs }, emitter) => {
      const axes = attrs.axes as number[];
      return axes.length === 0 ? emitter.value(x) : emitter.node("Squeeze", [emitter.value(x), emitter.ints(axes)]);
    },
  },
  slice: {
    shape: ([x], { axis, start, end, step }) => {
      const place = axis as number;
      const size = sliceSize(x, x.shape[place], start as Dim | undefined, end as Dim | undefined, step as number);
      return { shape: x.shape.with(place, size), dtype: x.dtype };
    },
    onnx: (node, emitter) => {
      const { axis, start, end, step } = node.attrs;
      const forward = (step as number) > 0;
      const place = (dim: Dim | undefined, otherwise: number): string => emitter.dim(dim ?? otherwise, node);
      return emitter.node("Slice", [
        emitter.value(node.inputs[0]),
        place(start as Dim | undefined, forward ? 0 : TO_END),
        place(end as Dim | undefined, forward ? TO_END : -TO_END),
        emitter.ints([axis as number]),
        emitter.ints([step as number]),
      ]);
    },
  },
  // (g, x) -> zeros of x's shape with g where a slice of x, of step 1, would be taken.
  unslice: {
    shape: ([g, x]) => ({ shape: x.shape, dtype: g.dtype }),
    onnx: emitUnslice,
  },
  concat: {
    shape: (inputs, attributes) => {
      const axis = attributes.axis as number;
      const dtype = sameDType("concat", inputs);
      const shape = [...inputs[0].shape];
      for (const other of inputs.slice(1)) {
        const fits =
          other.rank === shape.length && shape.every((dim, i) => i === axis || dimsAgree(dim, other.shape[i]));
        if (!fits) throw new ShapeError("concat", `dimensions other than axis ${axis} differ`, inputs);
        for (let i = 0; i < shape.length; i++) if (i !== axis && isUnknown(shape[i])) shape[i] = other.shape[i];
        shape[axis] =
          isUnknown(shape[axis]) || isUnknown(other.shape[axis])
            ? unknownDim()
            : addDims(shape[axis], other.shape[axis]);
      }
      return { shape, dtype };
    },
    onnx: (node, emitter) =>
      emitter.node(
        "Concat",
        node.inputs.map((tensor) => emitter.value(tensor)),
        { axis: node.attrs.axis as number },
      ),
  },
  // (joined, part, part, ...) -> one of the parts that were joined; the parts are there for their sizes.
  splitLike: {
    shape: ([joined, ...parts], { index }) => ({ shape: parts[index as number].shape, dtype: joined.dtype }),
    onnx: ({ inputs: [joined, ...parts], attrs }, emitter) => {
      const axis = attrs.axis as number;
      const sizes = parts.every(({ shape }) => typeof shape[axis] === "number")
        ? emitter.ints(parts.map(({ shape }) => shape[axis] as number))
        : emitter.node(
            "Concat",
            parts.map((part) => emitter.dimOf(part, axis)),
            { axis: 0 },
          );
      const results = emitter.nodes("Split", [emitter.value(joined), sizes], { axis }, { outputs: parts.length });
      return results[attrs.index as number];
    },
  },
  expand: {
    // With a second input the shape is that of a tensor, which is known at run time even where nothing names it.
    shape: ([x], attributes) => {
      const shape = attributes.shape as Dim[];
      const skip = shape.length - x.rank;
      if (skip < 0 || x.shape.some((dim, i) => dim !== 1 && !dimsAgree(dim, shape[i + skip]))) {
        throw new ShapeError("expand", `cannot be broadcast to ${formatShape(shape)}`, [x]);
      }
      return { shape, dtype: x.dtype };
    },
    onnx: (node, emitter) => emitter.node("Expand", [emitter.value(node.inputs[0]), targetShape(node, emitter)]),
  },
  // (g, x) -> sums of g over the axes that x would be broadcast along, in x's shape.
  sumLike: {
    shape: ([g, x]) => {
      broadcast("sumLike", [g, x]);
      return { shape: x.shape, dtype: g.dtype };
    },
    onnx: ({ inputs: [g, x] }, emitter) => {
      const extra = g.rank - x.rank;
      let sum = emitter.value(g);
      const front = Array.from({ length: extra }, (_, axis) => axis);
      if (extra > 0) sum = emitter.node("ReduceSum", [sum, emitter.ints(front)], { keepdims: 0 });
      const differ = emitter.node("Not", [
        emitter.node("Equal", [emitter.node("Shape", [sum]), emitter.node("Shape", [emitter.value(x)])]),
      ]);
      const axes = emitter.node("Reshape", [emitter.node("NonZero", [differ]), emitter.ints([-1])]);
      return emitter.node("ReduceSum", [sum, axes], { keepdims: 1, noop_with_empty_axes: 1 });
    },
  },
  tile: {
    shape: ([x], attributes) => {
      const repeats = attributes.repeats as number[];
      if (repeats.length !== x.rank) throw new ShapeError("tile", `${repeats.length} repeats for ${x.rank} axes`, [x]);
      return { shape: x.shape.map((dim, i) => multiplyDims(dim, repeats[i])), dtype: x.dtype };
    },
    onnx: ({ inputs: [x], attrs }, emitter) =>
      emitter.node("Tile", [emitter.value(x), emitter.ints(attrs.repeats as number[])]),
  },
  pad: {
    shape: ([x], { axis, before, after }) => {
      const place = axis as number;
      const size = x.shape[place];
      const padded = isUnknown(size) ? unknownDim() : addDims(size, (before as number) + (after as number));
      return { shape: x.shape.with(place, padded), dtype: x.dtype };
    },
    onnx: ({ inputs: [x], attrs }, emitter) =>
      emitter.node("Pad", [
        emitter.value(x),
        emitter.ints([attrs.before as number, attrs.after as number]),
        emitter.scalar(attrs.value as number, x.dtype),
        emitter.ints([attrs.axis as number]),
      ]),
  },
  triangle: {
    shape: ([x]) => {
      if (x.rank < 2) throw new ShapeError("triangle", "fewer than two axes", [x]);
      return x;
    },
    onnx: ({ inputs: [x], attrs }, emitter) =>
      emitter.node("Trilu", [emitter.value(x), emitter.scalar(attrs.k as number, "int64")], {
        upper: attrs.upper ? 1 : 0,
      }),
  },
  range: {
    shape: ([x], { axis }) => ({ shape: [x.shape[axis as number]], dtype: "int64" }),
    onnx: ({ inputs: [x], attrs }, emitter) => {
      const count = emitter.asScalar(emitter.dimOf(x, attrs.axis as number));
      return emitter.node("Range", [emitter.scalar(0, "int64"), count, emitter.scalar(1, "int64")]);
    },
  },
  size: {
    shape: () => ({ shape: [], dtype: "int64" }),
    onnx: ({ inputs: [x], attrs }, emitter) => emitter.asScalar(emitter.dimOf(x, attrs.axis as number)),
  },
});

/** The target of ONNX's Reshape: 0 copies a dimension, -1 computes one; only where neither is enough, nodes do. */
function reshapeTarget(node: Tensor, x: Tensor, emitter: Emitter): string {
  const shape = node.shape;
  if (shape.includes(0)) return targetShape(node, emitter);
  const target = shape.map((dim, i) => (typeof dim === "number" ? dim : dim === x.shape[i] ? 0 : -1));
  const open = target.filter((dim) => dim === -1).length;
  return open <= 1 ? emitter.ints(target) : targetShape(node, emitter);
}

/** The shape that a node is to have, at run time: its second input's, where it has one. */
function targetShape(node: Tensor, emitter: Emitter): string {
  const like = node.inputs[1];
  if (!like || node.shape.every((dim) => typeof dim === "number")) return emitter.shape(node.shape, node);
  return emitter.node("Shape", [emitter.value(like)]);
}

/** Zeros before and after a slice's gradient, as many as the slice left out. */
function emitUnslice(node: Tensor, emitter: Emitter): string {
  const [g, x] = node.inputs;
  const axis = node.attrs.axis as number;
  const start = (node.attrs.start as Dim | undefined) ?? 0;
  const [size, taken] = [x.shape[axis], g.shape[axis]];
  let pads: string;
  if (typeof size === "number" && typeof taken === "number" && typeof start === "number") {
    const before = Math.min(size, Math.max(0, start < 0 ? start + size : start));
    pads = emitter.ints([before, size - before - taken]);
  } else {
    const total = emitter.dimOf(x, axis);
    const place = emitter.dim(start, node);
    const before = typeof start === "number" && start < 0 ? emitter.node("Add", [total, place]) : place;
    const rest = emitter.node("Sub", [emitter.node("Sub", [total, before]), emitter.dimOf(g, axis)]);
    pads = emitter.node("Concat", [before, rest], { axis: 0 });
  }
  return emitter.node("Pad", [emitter.value(g), pads, emitter.scalar(0, g.dtype), emitter.ints([axis])]);
}

function sliceSize(x: Tensor, size: Dim, start: Dim | undefined, end: Dim | undefined, step: number): Dim {
  if (!Number.isInteger(step) || step === 0) throw new ShapeError("slice", `step ${step}`, [x]);
  if (typeof size === "number" && typeof (start ?? 0) === "number" && typeof (end ?? 0) === "number") {
    return countTaken(size, start as number | undefined, end as number | undefined, step);
  }
  if (step !== 1 || isUnknown(size)) return unknownDim();
  const place = (at: Dim): Dim => (typeof at === "number" && at < 0 ? addDims(size, at) : at);
  return subtractDims(end === undefined ? size : place(end), place(start ?? 0));
}

/** How many elements a slice of a known size takes; places outside are moved to the ends. */
function countTaken(size: number, start: number | undefined, end: number | undefined, step: number): number {
  const low = step > 0 ? 0 : -1;
  const high = step > 0 ? size : size - 1;
  const place = (at: number): number => Math.min(high, Math.max(low, at < 0 ? at + size : at));
  const from = start === undefined ? (step > 0 ? low : high) : place(start);
  const to = end === undefined ? (step > 0 ? high : low) : place(end);
  return Math.max(0, Math.ceil((to - from) / step));
}
