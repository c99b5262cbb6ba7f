import type { OpRow } from "./op.js";
import { attentionOps } from "./ops/attention.js";
import { elementwiseOps } from "./ops/elementwise.js";
import { indexingOps } from "./ops/indexing.js";
import { layoutOps } from "./ops/layout.js";
import { leafOps } from "./ops/leaf.js";
import { lossOps } from "./ops/loss.js";
import { matmulOps } from "./ops/matmul.js";
import { normOps } from "./ops/norm.js";
import { recurrenceOps } from "./ops/recurrence.js";
import { reductionOps } from "./ops/reduction.js";

/** The name of an operation. */
export type OpName =
  | keyof typeof leafOps
  | keyof typeof elementwiseOps
  | keyof typeof reductionOps
  | keyof typeof layoutOps
  | keyof typeof indexingOps
  | keyof typeof matmulOps
  | keyof typeof normOps
  | keyof typeof lossOps
  | keyof typeof recurrenceOps
  | keyof typeof attentionOps;

/** The table of operations: to add one is to add a row to one of its parts. */
export const ops: Readonly<Record<OpName, OpRow>> = {
  ...leafOps,
  ...elementwiseOps,
  ...reductionOps,
  ...layoutOps,
  ...indexingOps,
  ...matmulOps,
  ...normOps,
  ...lossOps,
  ...recurrenceOps,
  ...attentionOps,
};
