import type { BenchRecord } from "../../tasks/index.js";
import { queryFiles } from "../bench/duckdb.js";
import { writePlots } from "../bench/plots.js";
import { printRows } from "../bench/report.js";
import { command } from "../command.js";
import { readText } from "../files.js";
import { json, table } from "../format.js";
import { jsonOption } from "../model.js";
import { text } from "../options.js";

export const benchCompare = command({
  name: "bench compare",
  summary: "put the records of benchmark runs into one table, or query them",
  about:
    "Reads the records of one or more runs of fovea bench, JSON lines or Parquet, and sums them up in one table; the same\n" +
    "method's records of several files count together. With --sql any query over the table `runs` is answered, by DuckDB,\n" +
    "which reads Parquet too and must be installed for both: npm install @duckdb/node-api.",
  positionals: [{ name: "runs", help: "files of records: .jsonl or .parquet", many: true }],
  options: {
    sql: text("a query over the table runs", "query"),
    plots: text("also draw accuracy and time as SVG", "folder"),
    ...jsonOption,
  },
  examples: [
    "fovea bench compare before.jsonl after.jsonl",
    'fovea bench compare runs.jsonl --sql "SELECT method, avg(correct) FROM runs GROUP BY method"',
  ],
  async run({ sql, plots, json: asJson }, files, io) {
    if (sql !== undefined) {
      const { columns, rows } = await queryFiles(files, sql);
      if (asJson) io.out(json(rows, io.outTty));
      else
        io.out(
          table(
            columns,
            rows.map((row) => columns.map((name) => cell(row[name]))),
          ),
        );
      return;
    }
    const { summarise } = await import("../../tasks/index.js");
    const rows = summarise(await readRecords(files));
    const drawn = plots === undefined ? [] : await writePlots(plots, rows);
    if (asJson) io.out(json({ rows, plots: drawn }, io.outTty));
    else io.out(printRows(rows));
  },
});

function cell(value: unknown): string {
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : value.toPrecision(5);
  return value === null ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** The records of several files, in their order. */
export async function readRecords(files: readonly string[]): Promise<BenchRecord[]> {
  const { parseRecords } = await import("../../tasks/index.js");
  const all: BenchRecord[] = [];
  for (const file of files) {
    if (/\.parquet$/i.test(file))
      all.push(...((await queryFiles([file], "SELECT * FROM runs")).rows as unknown as BenchRecord[]));
    else all.push(...parseRecords(await readText(file), file));
  }
  return all;
}
