export { deltaRule, gatedDeltaRule } from "./delta-rule.js";
export { gatedLinearAttention } from "./gated-linear-attention.js";
export { type GatedResult, type GatedState, gatedState, unitInverse, withNormaliser } from "./gated-state.js";
export { linearAttention } from "./linear-attention.js";
export { softmaxAttention } from "./softmax.js";
