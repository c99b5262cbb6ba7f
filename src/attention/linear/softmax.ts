import { mechanism } from "../../models/index.js";

/** Softmax attention, as a mechanism: what a model has anyway, for comparisons. */
export const softmaxAttention = mechanism({
  name: "softmax",
  does: "Softmax attention over all keys.",
  forward: ({ q, k, v, mask, scale }) => {
    const logits = q.matmul(k.transpose()).mul(scale); // [B, H, T, S]
    return mask.greater(0).where(logits, Number.NEGATIVE_INFINITY).softmax(-1).matmul(v);
  },
});
