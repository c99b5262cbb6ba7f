import { crossEntropy, type Dim, type Tensor } from "../graph/index.js";

/** What a loss may read: float32 [], made of the model's graph and of what a batch brings. */
export interface LossInputs {
  /** [B * T, V] */
  readonly logits: Tensor;
  /** int64 [B * T]; -1 where there is none. */
  readonly targets: Tensor;
  /** [B * T] */
  readonly weights: Tensor;
  /** Inner tensors of the model by name, e.g. "pattern.3" [B, Hq, T, T]. Throws not-found. */
  tap(name: string): Tensor;
  /** A float32 tensor that every batch brings under this name in `extras`; dimensions may be "B", "T", "B*T" or others. */
  extra(name: string, shape: readonly Dim[]): Tensor;
}

/** A loss: one number. With accumulation each micro-batch counts by its share of the weights. */
export type Loss = (inputs: LossInputs) => Tensor;

/** -log p of the next token, mean by weight. */
export const nextTokenLoss: Loss = ({ logits, targets, weights }) => crossEntropy(logits, targets, weights);

/**
 * KL(teacher || student) over the vocabulary, mean over rows by weight: teacher log-probabilities [N, V], student logits
 * [N, V], weights [N] -> []. `temperature` divides both sides' logits (the teacher's are given so divided).
 */
export function klLoss(teacher: Tensor, logits: Tensor, weights: Tensor, temperature = 1): Tensor {
  const student = (temperature === 1 ? logits : logits.div(temperature)).logSoftmax(-1);
  const rows = teacher.exp().mul(teacher.sub(student)).sum(-1); // [N]
  return weightedMean(rows, weights);
}

/**
 * Attention distillation: KL(teacher || student) of attention rows, mean over heads and over rows by weight. Patterns
 * [B, H, T, S]; weights [B, T]. Keys without weight in the teacher add nothing.
 */
export function attentionDistillationLoss(teacher: Tensor, student: Tensor, weights: Tensor): Tensor {
  const tiny = 1e-9;
  const terms = teacher.mul(teacher.add(tiny).log().sub(student.add(tiny).log()));
  return weightedMean(terms.sum(-1).mean(1), weights); // [B, T]
}

function weightedMean(values: Tensor, weights: Tensor): Tensor {
  const total = weights.sum();
  return values.mul(weights).sum().div(total.equal(0).where(1, total));
}
