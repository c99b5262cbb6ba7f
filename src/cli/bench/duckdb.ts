import { FoveaError } from "../../error.js";

/** A value of a query's result, as JSON has it. */
export type Cell = string | number | boolean | null | readonly Cell[] | { readonly [name: string]: Cell };

/** A query's result: its columns' names, and rows by name. */
export interface QueryResult {
  readonly columns: readonly string[];
  readonly rows: readonly Readonly<Record<string, Cell>>[];
}

/**
 * Runs a query by DuckDB over files of JSON lines or Parquet, together as the table `runs`.
 * @throws FoveaError `unsupported` where @duckdb/node-api is not installed, `bad-input` for what DuckDB refuses
 */
export async function queryFiles(files: readonly string[], sql: string): Promise<QueryResult> {
  const { DuckDBInstance } = await import("@duckdb/node-api").catch((cause: unknown) => {
    throw new FoveaError("unsupported", "queries and Parquet files are read by DuckDB, which is not installed", {
      hint: "npm install @duckdb/node-api",
      cause,
    });
  });
  const instance = await DuckDBInstance.create(":memory:");
  const connection = await instance.connect();
  try {
    const parts = files.map((file) => `SELECT * FROM ${reader(file)}('${file.replaceAll("'", "''")}')`);
    await connection.run(`CREATE VIEW runs AS ${parts.join(" UNION ALL BY NAME ")}`);
    const result = await connection.runAndReadAll(sql);
    const rows = result.getRowObjectsJson() as QueryResult["rows"];
    return { columns: result.columnNames(), rows: rows.map(withNumbers) };
  } catch (error) {
    if (error instanceof FoveaError) throw error;
    throw new FoveaError("bad-input", `DuckDB: ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    });
  } finally {
    connection.closeSync();
    instance.closeSync();
  }
}

function reader(file: string): string {
  return /\.parquet$/i.test(file) ? "read_parquet" : "read_json_auto";
}

/** Whole numbers of 64 bits come as text; those that fit are numbers here. */
function withNumbers(row: Readonly<Record<string, Cell>>): Record<string, Cell> {
  return Object.fromEntries(
    Object.entries(row).map(([name, value]) => {
      const whole = typeof value === "string" && /^-?\d{1,15}$/.test(value) && !TEXTS.has(name);
      return [name, whole ? Number(value) : value];
    }),
  );
}

/** Columns of records that hold texts, whatever they look like. */
const TEXTS = new Set(["reply", "expected", "commit", "model_hash", "model", "method", "spec", "task"]);
