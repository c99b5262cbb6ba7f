export { type AttentionOptions, type AttentionResult, attention, causalMask } from "./attention.js";
export { type CompileOptions, compile, exportOnnx } from "./compile.js";
export { addDims, type Dim, dimsAgree, formatShape, multiplyDims, subtractDims } from "./dims.js";
export { type DType, halfToFloat, halvesToFloats, type TensorData, toHalf } from "./dtype.js";
export type { EmitOptions, GraphCut, Port, Precision } from "./emit.js";
export { GraphFunction, graphFunction, type Substitution, substitute } from "./function.js";
export { type GradientOptions, gradients } from "./gradients.js";
export { crossEntropy, tokenLosses } from "./losses.js";
export type { Attributes, AttributeValue, Gradient, GradientRule, OpRow } from "./op.js";
export { type OpName, ops } from "./ops.js";
export { recompute } from "./recompute.js";
export { loadRuntime, type Provider, type RealProvider, type Runtime, type RuntimeTensor } from "./runtime.js";
export { type ScanOptions, scan } from "./scan.js";
export { type Feed, type Fetches, Segment } from "./segment.js";
export { ShapeError } from "./shape.js";
export {
  type ConvOptions,
  concat,
  constant,
  einsum,
  type GroupQueryAttentionOptions,
  input,
  type NestedNumbers,
  parameter,
  type ReduceOptions,
  type SliceOptions,
  stack,
  Tensor,
  type TensorLike,
  tap,
  zerosLike,
} from "./tensor.js";
export {
  blocksOf,
  type FloatWeight,
  floatWeight,
  missingWeight,
  type Q4Weight,
  type Q8Weight,
  quantizeQ4,
  quantizeQ8,
  toFloats,
  type WeightSource,
  type WeightValue,
  weightsFrom,
} from "./weights.js";
