import { Tensor } from "./tensor.js";

/**
 * -log p(target) of each row: logits [..., V], targets int64 [...] -> [...]. The gradient, softmax - onehot, is computed
 * without the onehot. Targets from -V to -1 count from the end, so that rows without a target may hold -1 and weigh 0.
 * Throws ShapeError.
 */
export function tokenLosses(logits: Tensor, targets: Tensor): Tensor {
  return new Tensor("crossEntropy", [logits, targets]);
}

/**
 * The mean of -log p(target) over rows, weighted: logits [N, V], targets int64 [N], weights [N] -> []. A row of weight 0
 * is left out; its target may be -1. If all weights are 0 the loss is 0. Without weights all rows count alike.
 */
export function crossEntropy(logits: Tensor, targets: Tensor, weights?: Tensor): Tensor {
  const losses = tokenLosses(logits, targets); // [N]
  if (!weights) return losses.mean();
  const total = weights.sum();
  return losses.mul(weights).sum().div(total.equal(0).where(1, total));
}
