export * from "./bench/index.js";
export { taskCatalog, tasksByName } from "./catalog.js";
export * from "./documents/index.js";
export { type LoogleDocument, parseLoogle } from "./loogle/load.js";
export { loogleTasks } from "./loogle/tasks.js";
export {
  bleu,
  cleanReply,
  cloze,
  contains,
  exact,
  meteor,
  type OrderDistance,
  type Overlap,
  onlyLabel,
  orderDistance,
  recall,
  rouge,
  rougeL,
} from "./metrics.js";
export { baseScore, effectiveLength, nolimaTasks } from "./nolima/nolima.js";
export { type Passage, type PassageQuestion, type PassageSet, parseHotpot, parseSquad } from "./questions/load.js";
export { hotpotTask, squadTask } from "./questions/tasks.js";
export { frequencies } from "./ruler/counting.js";
export { RULER_BAR, weightedMean } from "./ruler/score.js";
export {
  type CaseOptions,
  caseTokens,
  largestCase,
  type Metric,
  type Task,
  type TaskCase,
  type TaskQuestion,
} from "./task.js";
export { CANDIDATES, GOALS, type Goal, type Tried, type Tuned, type TuneOptions, tune } from "./tune/tune.js";
