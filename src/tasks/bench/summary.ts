import { Random } from "../documents/random.js";
import type { BenchRecord } from "./record.js";

/** What all cases of a row agree in. */
const ABOUT = [
  ...(["model", "method", "budget", "budget_of", "length", "task", "mode"] as const),
  ...(["model_hash", "commit", "precision", "cache_type", "threads", "speed_only"] as const),
] as const;

/** What a row gives the mean of, over the cases that have it; null where none has. */
const MEANS = [
  ...(["coverage", "coverage_kept", "kl", "kl_answer", "ms_per_token", "prefill_s"] as const),
  ...(["cache_bytes", "peak_bytes", "resident_bytes", "tokens_read", "tokens_scored", "tokens_kept"] as const),
  ...(["read_share", "keep_share"] as const),
] as const;

/** Means over the cases of one method at one budget, length, task and mode. */
export interface BenchRow extends Pick<BenchRecord, (typeof ABOUT | typeof MEANS)[number] | "budget_met"> {
  readonly cases: number;
  readonly seeds: number;
  readonly accuracy: number;
  /** 95% interval of the accuracy, over documents. */
  readonly interval: readonly [number, number];
  /** Accuracy minus that of full attention on the same cases, with its paired 95% interval; null without such cases. */
  readonly change: number | null;
  readonly change_interval: readonly [number, number] | null;
  /** Means of the task's further figures, by name. */
  readonly figures: Readonly<Record<string, number>>;
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
  const means = MEANS.map((name) => [name, mean(group.map((r) => r[name]).filter((x) => x !== null))]);
  return {
    ...(Object.fromEntries(ABOUT.map((name) => [name, first[name]])) as Pick<BenchRecord, (typeof ABOUT)[number]>),
    ...(Object.fromEntries(means) as Pick<BenchRecord, (typeof MEANS)[number]>),
    budget_met: group.every((r) => r.budget_met),
    cases: group.length,
    seeds: new Set(group.map((r) => r.seed)).size,
    accuracy: mean(group.map((r) => r.correct)) ?? 0,
    interval: bootstrap(accuracies),
    change: mean(changes.map((c) => c.value)),
    change_interval: changes.length > 0 ? bootstrap(changes) : null,
    figures: meanFigures(group),
  };
}

function meanFigures(group: readonly BenchRecord[]): Record<string, number> {
  const names = new Set(group.flatMap((r) => Object.keys(r.figures ?? {})));
  const of = (name: string) => mean(group.map((r) => r.figures?.[name]).filter((x) => x !== undefined)) ?? 0;
  return Object.fromEntries([...names].map((name) => [name, of(name)]));
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
