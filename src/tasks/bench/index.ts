export { type Budgeted, type BudgetKind, budgeted, type Solved, solveBudget } from "./budget.js";
export { klDivergence } from "./kl.js";
export { type BenchPrompt, PromptFormat } from "./prompt.js";
export { type BenchRecord, MODES, type Mode, parseRecords, recordKey } from "./record.js";
export {
  type BenchOptions,
  type BenchProgress,
  type BenchResult,
  knowsNothing,
  runBench,
  type Skipped,
} from "./run.js";
export { type BenchRow, bootstrap, summarise } from "./summary.js";
