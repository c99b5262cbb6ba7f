import { Random } from "../documents/random.js";
import type { BenchRecord, Mode } from "./record.js";

/** Means over the cases of one method at one budget, length, task and mode. */
export interface BenchRow {
  readonly model: string;
  readonly method: string;
  readonly budget: number | null;
  readonly budget_of: BenchRecord["budget_of"];
  readonly budget_met: boolean;
  readonly length: number;
  readonly task: string;
  readonly mode: Mode;
  readonly cases: number;
  readonly seeds: number;
  readonly accuracy: number;
  /** 95% interval of the accuracy, over documents. */
  readonly interval: readonly [number, number];
  /** Accuracy minus that of full attention on the same cases, with its paired 95% interval; null without such cases. */
  readonly change: number | null;
  readonly change_interval: readonly [number, number] | null;
  readonly coverage: number | null;
  readonly coverage_kept: number | null;
  readonly kl: number;
  readonly kl_answer: number;
  readonly ms_per_token: number | null;
  readonly prefill_s: number;
  readonly cache_bytes: number;
  readonly peak_bytes: number;
  readonly resident_bytes: number | null;
  readonly tokens_read: number;
  readonly tokens_scored: number;
  readonly tokens_kept: number;
  /** `tokens_read` and `tokens_kept` as shares of the text. */
  readonly read_share: number;
  readonly keep_share: number;
  readonly model_hash: string;
  readonly commit: string;
  readonly precision: string;
  readonly cache_type: string;
  readonly threads: number;
  readonly speed_only: boolean;
}

/** Records as rows, in the order in which their groups first occur. */
export function summarise(records: readonly BenchRecord[]): BenchRow[] {
  const groups = groupBy(records, (r) => JSON.stringify([about(r), r.method, r.budget]));
  const full = groupBy(
    records.filter((r) => r.method === "full"),
    (r) => about(r),
  );
  return [...groups.values()].map((group) => row(group, full.get(about(group[0])) ?? []));
}

/** What rows must share to be compared case by case. */
function about(r: BenchRecord): string {
  return JSON.stringify([r.model, r.model_hash, r.precision, r.cache_type, r.length, r.task, r.mode]);
}

function row(group: readonly BenchRecord[], full: readonly BenchRecord[]): BenchRow {
  const [first] = group;
  const of = (r: BenchRecord) => `${r.seed} ${r.case}`;
  const dense = new Map(full.map((r) => [of(r), r.correct]));
  const paired = group.filter((r) => dense.has(of(r)));
  const cluster = (r: BenchRecord) => `${r.seed} ${r.document}`;
  const changes = paired.map((r) => ({ cluster: cluster(r), value: r.correct - (dense.get(of(r)) ?? 0) }));
  const accuracies = group.map((r) => ({ cluster: cluster(r), value: r.correct }));
  const average = (pick: (r: BenchRecord) => number | null) => mean(group.map(pick).filter((x) => x !== null));
  const sure = (pick: (r: BenchRecord) => number) => mean(group.map(pick)) ?? 0;
  return {
    ...pickAbout(first),
    budget_met: group.every((r) => r.budget_met),
    cases: group.length,
    seeds: new Set(group.map((r) => r.seed)).size,
    accuracy: sure((r) => r.correct),
    interval: bootstrap(accuracies),
    change: mean(changes.map((c) => c.value)),
    change_interval: changes.length > 0 ? bootstrap(changes) : null,
    coverage: average((r) => r.coverage),
    coverage_kept: average((r) => r.coverage_kept),
    kl: sure((r) => r.kl),
    kl_answer: sure((r) => r.kl_answer),
    ms_per_token: average((r) => r.ms_per_token),
    prefill_s: sure((r) => r.prefill_s),
    cache_bytes: sure((r) => r.cache_bytes),
    peak_bytes: sure((r) => r.peak_bytes),
    resident_bytes: average((r) => r.resident_bytes),
    tokens_read: sure((r) => r.tokens_read),
    tokens_scored: sure((r) => r.tokens_scored),
    tokens_kept: sure((r) => r.tokens_kept),
    read_share: sure((r) => r.read_share),
    keep_share: sure((r) => r.keep_share),
  };
}

function pickAbout(r: BenchRecord) {
  const { model, method, budget, budget_of, length, task, mode } = r;
  const { model_hash, commit, precision, cache_type, threads, speed_only } = r;
  return {
    model,
    method,
    budget,
    budget_of,
    length,
    task,
    mode,
    model_hash,
    commit,
    precision,
    cache_type,
    threads,
    speed_only,
  };
}

function mean(values: readonly number[]): number | null {
  return values.length === 0 ? null : values.reduce((a, b) => a + b, 0) / values.length;
}

function groupBy<T>(list: readonly T[], key: (one: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const one of list) {
    const name = key(one);
    const group = groups.get(name);
    if (group) group.push(one);
    else groups.set(name, [one]);
  }
  return groups;
}

/**
 * 95% interval of a mean by drawing clusters with replacement: questions about one document depend on one another. The
 * same values give the same interval.
 */
export function bootstrap(
  values: readonly { readonly cluster: string; readonly value: number }[],
  draws = 1000,
): readonly [number, number] {
  const clusters = [...groupBy(values, (v) => v.cluster).values()].map((group) => ({
    sum: group.reduce((n, v) => n + v.value, 0),
    count: group.length,
  }));
  const random = new Random("bootstrap");
  const means = Float64Array.from({ length: draws }, () => {
    let [sum, count] = [0, 0];
    for (let i = 0; i < clusters.length; i++) {
      const one = random.pick(clusters);
      sum += one.sum;
      count += one.count;
    }
    return sum / count;
  }).sort();
  return [means[Math.floor(0.025 * draws)], means[Math.ceil(0.975 * draws) - 1]];
}
