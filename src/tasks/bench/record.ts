import { FoveaError } from "../../error.js";

/** Whether methods acted before the question was known (several questions share one reading), or with it. */
export const MODES = ["query-agnostic", "query-aware"] as const;
export type Mode = (typeof MODES)[number];

/** One question of one case under one method and budget: a line of a runs file. */
export interface BenchRecord {
  readonly model: string;
  /** The method as it was named: "full", "random", "recent", or the method string without its budget. */
  readonly method: string;
  /** The canonical method string that ran, its budget solved. */
  readonly spec: string;
  /** Share of the tokens asked for, measured over all layers and heads; null for methods without a budget. */
  readonly budget: number | null;
  /** What the budget bounds: tokens read in a step, or tokens kept. */
  readonly budget_of: "read" | "keep" | null;
  /** False where the method's least setting is above the budget. */
  readonly budget_met: boolean;
  /** Tokens of prompt and reply together that the case was made for. */
  readonly length: number;
  readonly task: string;
  readonly case: number;
  /** Cases of one document depend on one another. */
  readonly document: number;
  readonly seed: number;
  readonly mode: Mode;
  /** From 0 to 1, by the task's metric. */
  readonly correct: number;
  readonly exact: number;
  /** What the task measures of the reply beside its score, by name. */
  readonly figures?: Readonly<Record<string, number>>;
  /** Share of the evidence's tokens read, and of those still stored, at the answer's first token; null where unknown. */
  readonly coverage: number | null;
  readonly coverage_kept: number | null;
  /** KL divergence of full attention's distribution to this one, in nats: the answer's first token, and the mean over it. */
  readonly kl: number;
  readonly kl_answer: number;
  readonly ms_per_token: number | null;
  readonly prefill_s: number;
  readonly cache_bytes: number;
  /** Most bytes of the cache while the text was read. */
  readonly peak_bytes: number;
  /** Resident bytes of the process after the text was read. */
  readonly resident_bytes: number | null;
  /** Per layer and query head, dense layers, sinks and windows included. */
  readonly tokens_read: number;
  /** What choosing them took, in tokens: a scored key is half of one, the bounds of a page one. */
  readonly tokens_scored: number;
  /** Per layer and KV head. */
  readonly tokens_kept: number;
  /** `tokens_read` and `tokens_kept` as shares of the text at that row: what budgets mean. */
  readonly read_share: number;
  readonly keep_share: number;
  /** Tokens of the text at the answer's first token. */
  readonly depth: number;
  readonly reply: string;
  readonly expected: string;
  readonly model_hash: string;
  readonly commit: string;
  readonly precision: string;
  readonly cache_type: string;
  readonly threads: number;
  /** Weights that know nothing: accuracy means nothing, speed does. */
  readonly speed_only: boolean;
}

/** What tells records apart: a run goes on with the keys that its file lacks. */
export function recordKey(
  r: Pick<
    BenchRecord,
    "model_hash" | "precision" | "cache_type" | "method" | "budget" | "length" | "task" | "seed" | "case" | "mode"
  >,
): string {
  return [r.model_hash, r.precision, r.cache_type, r.method, r.budget, r.length, r.task, r.seed, r.case, r.mode].join(
    "|",
  );
}

/**
 * The records of a runs file's text. A last line that was cut short is left out.
 * @throws FoveaError `bad-file` naming the line that is no record
 */
export function parseRecords(text: string, source = "the records"): BenchRecord[] {
  const lines = text.split("\n");
  const last = lines.findLastIndex((line) => line.trim() !== "");
  return lines.flatMap((line, i): BenchRecord[] => {
    if (line.trim() === "") return [];
    try {
      const record = JSON.parse(line) as BenchRecord;
      if (typeof record.method === "string" && typeof record.correct === "number") return [record];
    } catch {
      if (i === last && i > 0) return [];
    }
    throw new FoveaError("bad-file", `${source}: line ${i + 1} is no record of a benchmark`, {
      hint: "a runs file has a JSON object in each line, as fovea bench -o writes it",
    });
  });
}
