import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { BenchRow } from "../../tasks/index.js";
import { writeAtomic } from "../files.js";
import { type Series, svgPlot } from "../plot.js";

/** Writes accuracy against budget and against length, and time against length, as SVG into a folder. Gives their paths. */
export async function writePlots(folder: string, rows: readonly BenchRow[]): Promise<string[]> {
  await mkdir(folder, { recursive: true });
  const written: string[] = [];
  for (const [name, svg] of Object.entries(plotsOf(rows))) {
    const file = join(folder, `${name}.svg`);
    await writeAtomic(file, svg);
    written.push(file);
  }
  return written;
}

/** The plots by name; those with nothing to show are left out. Points are means over tasks. */
export function plotsOf(rows: readonly BenchRow[]): Record<string, string> {
  const plots: Record<string, string> = {};
  const add = (name: string, series: readonly Series[], options: Parameters<typeof svgPlot>[1]) => {
    if (series.some((s) => s.points.length > 0)) plots[name] = svgPlot(series, options);
  };
  const known = rows.filter((row) => !row.speed_only);
  const accuracy = (row: BenchRow) => 100 * row.accuracy;
  add("accuracy-budget", byBudget(known), {
    title: "Accuracy against budget",
    x: "share of the text read or kept, as measured",
    y: "accuracy %",
    logX: true,
  });
  add("accuracy-length", byLength(known, accuracy), {
    title: "Accuracy against length",
    x: "tokens",
    y: "accuracy %",
    logX: true,
  });
  add(
    "time-length",
    byLength(rows, (row) => row.ms_per_token),
    {
      title: "Time of a token against length",
      x: "tokens",
      y: "ms per token",
      logX: true,
    },
  );
  add(
    "prefill-length",
    byLength(rows, (row) => row.prefill_s),
    {
      title: "Time of reading against length",
      x: "tokens",
      y: "seconds",
      logX: true,
      logY: true,
    },
  );
  return plots;
}

/** A line for each method, over the shares that it read (or kept); full attention is the point at 1. */
function byBudget(rows: readonly BenchRow[]): Series[] {
  return lines(
    rows,
    (row) => row.method,
    (row) => String(row.budget),
    (row) => (row.budget_of === "keep" ? row.keep_share : row.read_share),
    (row) => 100 * row.accuracy,
  );
}

/** A line for each method at each budget, over lengths. */
function byLength(rows: readonly BenchRow[], y: (row: BenchRow) => number | null): Series[] {
  return lines(
    rows,
    (row) => (row.budget === null ? row.method : `${row.method} 1/${+(1 / row.budget).toFixed(1)}`),
    (row) => String(row.length),
    (row) => row.length,
    y,
  );
}

/** Rows as lines: those of one line and place become one point, at their means. */
function lines(
  rows: readonly BenchRow[],
  line: (row: BenchRow) => string,
  place: (row: BenchRow) => string,
  x: (row: BenchRow) => number,
  y: (row: BenchRow) => number | null,
): Series[] {
  const several = new Set(rows.map((row) => row.model)).size > 1;
  const groups = new Map<string, Map<string, { x: number[]; y: number[] }>>();
  for (const row of rows) {
    const value = y(row);
    if (value === null) continue;
    const name = several ? `${line(row)}, ${row.model}` : line(row);
    const places = groups.get(name) ?? new Map<string, { x: number[]; y: number[] }>();
    const point = places.get(place(row)) ?? { x: [], y: [] };
    point.x.push(x(row));
    point.y.push(value);
    places.set(place(row), point);
    groups.set(name, places);
  }
  const mean = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;
  return [...groups].map(([name, places]) => ({
    name,
    points: [...places.values()].map((p) => [mean(p.x), mean(p.y)] as const).sort((a, b) => a[0] - b[0]),
  }));
}
