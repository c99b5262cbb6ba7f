import { FoveaError } from "../../error.js";
import { type Dim, formatShape, productOfDims } from "../dims.js";
import type { DType, TensorData } from "../dtype.js";
import { type Attributes, rows } from "../op.js";
import type { ShapeResult } from "../shape.js";

function declared(attributes: Attributes): ShapeResult {
  return { shape: attributes.shape as readonly Dim[], dtype: attributes.dtype as DType };
}

/** Tensors that are not computed. They are written where they are used. */
export const leafOps = rows({
  input: {
    shape: (_, attributes) => {
      checkSizes("input", attributes);
      return declared(attributes);
    },
  },
  parameter: {
    shape: (_, attributes) => {
      checkSizes("parameter", attributes);
      return declared(attributes);
    },
  },
  constant: {
    shape: (_, attributes) => {
      const { shape, dtype } = declared(attributes);
      const { length } = attributes.data as TensorData;
      if (productOfDims(shape) !== length) {
        throw new FoveaError("bad-shape", `constant: ${length} numbers do not fill ${formatShape(shape)}`);
      }
      return { shape, dtype };
    },
  },
});

function checkSizes(op: string, attributes: Attributes): void {
  const { shape } = declared(attributes);
  for (const dim of shape) {
    if (typeof dim === "number" ? !Number.isInteger(dim) || dim < 0 : op === "parameter" || !/[A-Za-z_?]/.test(dim)) {
      throw new FoveaError(
        "bad-shape",
        `${op} "${attributes.name}": ${JSON.stringify(dim)} in ${formatShape(shape)} is no size`,
        {
          hint:
            op === "parameter"
              ? "a parameter's dimensions are numbers"
              : 'a dimension is a number or a name such as "T"',
        },
      );
    }
  }
}
