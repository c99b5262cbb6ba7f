import { dimsAgree } from "../dims.js";
import { rows } from "../op.js";
import { needDType, ShapeError } from "../shape.js";

/** Losses that have a gradient of their own. */
export const lossOps = rows({
  crossEntropy: {
    shape: (inputs) => {
      const [logits, targets] = inputs;
      needDType("crossEntropy", [logits], ["float32", "float16"]);
      needDType("crossEntropy", [targets], ["int64", "int32"]);
      const shape = logits.shape.slice(0, -1);
      if (targets.rank !== shape.length || !shape.every((dim, i) => dimsAgree(dim, targets.shape[i]))) {
        throw new ShapeError("crossEntropy", "logits must be [..., V] and targets [...]", inputs);
      }
      return { shape, dtype: logits.dtype };
    },
    plain: ({ inputs: [logits, targets] }) =>
      logits.logSoftmax(-1).gatherElements(targets.unsqueeze(-1), -1).squeeze(-1).neg(),
  },
});
