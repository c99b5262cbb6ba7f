import type { BenchRow, Skipped } from "../../tasks/index.js";
import { formatBytes, formatNumber, table } from "../format.js";

const HEAD = [
  "method",
  "budget",
  "read",
  "kept",
  "cases",
  "accuracy",
  "95%",
  "change",
  "95%",
  "coverage",
  "KL",
  "ms/token",
  "prefill s",
  "cache",
  "peak",
  "read tokens",
  "to choose",
];
/** All but the method's name are flushed right. */
const RIGHT = HEAD.map((_, i) => i).slice(1);

/** Rows as tables, one for each model, task, length and mode. */
export function printRows(rows: readonly BenchRow[], skipped: readonly Skipped[] = []): string {
  const groups = new Map<string, BenchRow[]>();
  for (const row of rows) {
    const title = `${row.model}, ${row.task}, ${row.length} tokens, ${row.mode}, ${row.precision} weights, ${row.cache_type} cache`;
    groups.set(title, [...(groups.get(title) ?? []), row]);
  }
  const parts = [...groups].map(([title, own]) => {
    const speedOnly = own.some((row) => row.speed_only) ? " (random weights: speed only)" : "";
    return `${title}${speedOnly}\n${table(HEAD, own.map(cells), RIGHT)}${speedOnly === "" ? figures(own) : ""}`;
  });
  const left = skipped.map(
    ({ model, method, budget, reason }) =>
      `not run: ${method}${budget === null ? "" : ` at ${fraction(budget)}`} on ${model}: ${reason}\n`,
  );
  return [...parts, ...(left.length > 0 ? [left.join("")] : [])].join("\n");
}

/** What the task measures beside accuracy, in a table of its own; "" where it measures nothing more. */
function figures(rows: readonly BenchRow[]): string {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row.figures)))];
  if (names.length === 0) return "";
  const cell = (value: number | undefined) => (value === undefined ? "" : value.toFixed(value < 10 ? 3 : 1));
  const body = rows.map((row) => [row.method, budget(row), ...names.map((name) => cell(row.figures[name]))]);
  const head = ["method", "budget", ...names];
  const right = head.map((_, i) => i).slice(1);
  return `\n${table(head, body, right)}`;
}

const budget = (row: BenchRow) =>
  row.budget === null ? "" : `${row.budget_of} ${fraction(row.budget)}${row.budget_met ? "" : " missed"}`;

function cells(row: BenchRow): string[] {
  const said = row.speed_only ? () => "-" : (text: string) => text;
  return [
    row.method,
    budget(row),
    percent(row.read_share),
    percent(row.keep_share),
    String(row.cases),
    said(percent(row.accuracy)),
    said(interval(row.interval)),
    said(row.change === null ? "" : percent(row.change, true)),
    said(row.change_interval === null ? "" : interval(row.change_interval, true)),
    row.coverage === null ? "" : percent(row.coverage),
    small(row.kl),
    row.ms_per_token === null ? "" : formatNumber(row.ms_per_token),
    formatNumber(row.prefill_s),
    formatBytes(Math.round(row.cache_bytes)),
    formatBytes(Math.round(row.peak_bytes)),
    formatNumber(row.tokens_read),
    formatNumber(row.tokens_scored),
  ];
}

/** 0.125 -> "1/8"; what is no fraction of one stays a number. */
export function fraction(share: number): string {
  const whole = 1 / share;
  return Math.abs(whole - Math.round(whole)) < 1e-9 && whole > 1.5 ? `1/${Math.round(whole)}` : String(share);
}

function percent(share: number, sign = false): string {
  const text = (100 * share).toFixed(1);
  return sign && share > 0 ? `+${text}` : text;
}

function interval([low, high]: readonly [number, number], sign = false): string {
  return `${percent(low, sign)}..${percent(high, sign)}`;
}

function small(value: number): string {
  return value === 0 ? "0" : value < 0.001 ? value.toExponential(0) : value.toFixed(3);
}
