export type { Batch, DataSource } from "./batch.js";
export { type TokenizerFiles, type TokenizerOptions, trainTokenizer, trainTokenizerFiles } from "./bpe.js";
export { checkpoints, type RunState } from "./checkpoint.js";
export {
  type ComparedRun,
  type CompareOptions,
  compareMechanisms,
  equalModel,
  meanInterval,
  mechanismString,
  parseMechanisms,
  stateBytes,
} from "./compare.js";
export { generated, type PackingOptions, permutation, type TokenDocument, texts } from "./data.js";
export { type GateOptions, type Gates, optimiseGates } from "./duoattention.js";
export { attentionDistillationLoss, klLoss, type Loss, type LossInputs, nextTokenLoss } from "./losses.js";
export { type Metric, readMetrics } from "./metrics.js";
export { adamW, type DecayRule, decayMatrices, muon, type Optimizer, orthogonal, sgd } from "./optimizer.js";
export { type PasskeyOptions, passkeys } from "./passkeys.js";
export { type Recipe, readRecipe, recipeSchema } from "./recipe.js";
export { constantSchedule, cosineSchedule, type Schedule, type ScheduleOptions, wsdSchedule } from "./schedule.js";
export { type StepResult, TrainingStep } from "./step.js";
export { accuracy, copying, induction, recall, type Task } from "./tasks.js";
export { type Evaluator, type Trained, type TrainingProgress, type TrainOptions, train } from "./train.js";
export { type DecoderOptions, decoder, fineTune, freshWeights, type Trainable } from "./trainable.js";
