import { dimsAgree } from "../dims.js";
import type { DType } from "../dtype.js";
import type { Emitter } from "../emit.js";
import { rows } from "../op.js";
import { needDType, ShapeError, sameDType } from "../shape.js";
import type { Tensor } from "../tensor.js";
import { quantizedGather } from "./quantized.js";

const INDICES: readonly DType[] = ["int64", "int32"];

function emit(opType: string, node: Tensor, emitter: Emitter, reduction?: string): string {
  const inputs = node.inputs.map((tensor) => emitter.value(tensor));
  return emitter.node(opType, inputs, { axis: node.attrs.axis as number, reduction });
}

/** Operations that read or write at indices. */
export const indexingOps = rows({
  gather: {
    shape: ([x, indices], attributes) => {
      needDType("gather", [indices], INDICES);
      const axis = attributes.axis as number;
      return { shape: [...x.shape.slice(0, axis), ...indices.shape, ...x.shape.slice(axis + 1)], dtype: x.dtype };
    },
    onnx: (node, emitter) => quantizedGather(node, emitter) ?? emit("Gather", node, emitter),
  },
  gatherElements: {
    shape: ([x, indices], attributes) => {
      needDType("gatherElements", [indices], INDICES);
      if (indices.rank !== x.rank) {
        throw new ShapeError("gatherElements", "the indices must have as many dimensions as the tensor", [x, indices]);
      }
      for (let i = 0; i < x.rank; i++) {
        const [have, want] = [x.shape[i], indices.shape[i]];
        if (i !== attributes.axis && typeof have === "number" && typeof want === "number" && want > have) {
          throw new ShapeError("gatherElements", `${want} indices along axis ${i} of size ${have}`, [x, indices]);
        }
      }
      return { shape: indices.shape, dtype: x.dtype };
    },
    onnx: (node, emitter) => emit("GatherElements", node, emitter),
  },
  scatterElements: {
    shape: ([x, indices, updates]) => {
      needDType("scatterElements", [indices], INDICES);
      sameDType("scatterElements", [x, updates]);
      if (indices.rank !== updates.rank || indices.shape.some((dim, i) => !dimsAgree(dim, updates.shape[i]))) {
        throw new ShapeError("scatterElements", "indices and updates must have one shape", [x, indices, updates]);
      }
      if (indices.rank !== x.rank) {
        throw new ShapeError("scatterElements", "the indices must have as many dimensions as the tensor", [x, indices]);
      }
      return x;
    },
    onnx: (node, emitter) => {
      const { reduction } = node.attrs;
      return emit("ScatterElements", node, emitter, reduction === "none" ? undefined : (reduction as string));
    },
  },
});
