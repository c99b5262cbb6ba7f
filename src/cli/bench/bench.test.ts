import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type BenchRecord, summarise } from "../../tasks/index.js";
import { bench } from "../commands/bench.js";
import { readRecords } from "../commands/bench-compare.js";
import type { Io } from "../io.js";
import { queryFiles } from "./duckdb.js";
import { plotsOf } from "./plots.js";
import { fraction, printRows } from "./report.js";

const record = (more: Partial<BenchRecord>): BenchRecord => ({
  model: "m",
  method: "full",
  spec: "full",
  budget: null,
  budget_of: null,
  budget_met: true,
  length: 1024,
  task: "needle/single",
  case: 0,
  document: 0,
  seed: 1,
  mode: "query-agnostic",
  correct: 1,
  exact: 1,
  coverage: 1,
  coverage_kept: 1,
  kl: 0,
  kl_answer: 0,
  ms_per_token: 2,
  prefill_s: 0.5,
  cache_bytes: 4096,
  peak_bytes: 8192,
  resident_bytes: 1e9,
  tokens_read: 1000,
  tokens_scored: 0,
  tokens_kept: 1000,
  read_share: 1,
  keep_share: 1,
  depth: 1000,
  reply: "00123",
  expected: "00123",
  model_hash: "00",
  commit: "123",
  precision: "int8",
  cache_type: "int8",
  threads: 2,
  speed_only: false,
  ...more,
});
const RECORDS = [0, 1, 2, 3].flatMap((i) => [
  record({ case: i, document: i }),
  record({
    case: i,
    document: i,
    method: "quest",
    spec: "quest(tokens=128)",
    budget: 1 / 8,
    budget_of: "read",
    correct: i % 2,
    coverage: 0.5,
    kl: 0.25,
    read_share: 0.124,
    tokens_read: 124,
  }),
]);

const SIX = { id: "1", question: "How many?", answers: [{ text: "six", answer_start: 6 }] };

describe("tables of bench", () => {
  it("say what was measured", () => {
    const text = printRows(summarise(RECORDS), [{ model: "m", method: "x", budget: 1 / 8, reason: "why" }]);
    expect(text).toContain("m, needle/single, 1024 tokens, query-agnostic, int8 weights, int8 cache\n");
    const line = text.split("\n").find((l) => l.startsWith("quest")) ?? "";
    expect(line.split(/ {2,}/).slice(0, 6)).toEqual(["quest", "read 1/8", "12.4", "100.0", "4", "50.0"]);
    expect(line).toContain("-50.0");
    expect(text).toContain("not run: x at 1/8 on m: why");
  });

  it("show what a task measures beside its score", () => {
    const more = RECORDS.map((r, i) => ({ ...r, figures: { meteor: i % 2 === 0 ? 0.5 : 0.25, words: 12 + i } }));
    const rows = summarise(more);
    expect(rows.map((row) => row.figures)).toEqual([
      { meteor: 0.5, words: 15 },
      { meteor: 0.25, words: 16 },
    ]);
    const table = printRows(rows).split("\n\n")[1].trimEnd();
    expect(table.split("\n").map((line) => line.trim().split(/ {2,}/))).toMatchObject([
      ["method", "budget", "meteor", "words"],
      expect.anything(),
      ["full", "0.500", "15.0"],
      ["quest", "read 1/8", "0.250", "16.0"],
    ]);
    expect(printRows(summarise(more.map((r) => ({ ...r, speed_only: true }))))).not.toContain("meteor");
  });

  it("show no accuracy for random weights", () => {
    const text = printRows(summarise(RECORDS.map((r) => ({ ...r, speed_only: true }))));
    expect(text).toContain("speed only");
    expect(text.split("\n").find((l) => l.startsWith("quest"))).toMatch(
      /quest +read 1\/8 +12\.4 +100\.0 +4 +- +- +- +- /,
    );
  });

  it("name shares as fractions where they are", () => {
    expect([1 / 8, 0.25, 0.3, 1 / 3].map(fraction)).toEqual(["1/8", "1/4", "0.3", "1/3"]);
  });

  it("are drawn as accuracy against what was read and against length, and time against length", () => {
    const rows = summarise([...RECORDS, ...RECORDS.map((r) => ({ ...r, length: 4096 }))]);
    const plots = plotsOf(rows);
    expect(Object.keys(plots)).toEqual(["accuracy-budget", "accuracy-length", "time-length", "prefill-length"]);
    for (const svg of Object.values(plots)) expect(svg).toMatch(/^<svg [\s\S]*<\/svg>\n$/);
    expect(plots["accuracy-length"]).toContain("quest 1/8");
    // random weights have no accuracy to draw
    expect(Object.keys(plotsOf(rows.map((r) => ({ ...r, speed_only: true }))))).toEqual([
      "time-length",
      "prefill-length",
    ]);
  });
});

const duckdb = await import("@duckdb/node-api").catch(() => undefined);

describe("files of records", () => {
  let folder: string;
  let file: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "fovea-bench-"));
    file = join(folder, "it's.jsonl");
    await writeFile(file, RECORDS.map((r) => `${JSON.stringify(r)}\n`).join(""));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  it("are read without DuckDB where they are lines of JSON", async () => {
    expect(await readRecords([file, file])).toEqual([...RECORDS, ...RECORDS]);
    await expect(readRecords([join(folder, "none.jsonl")])).rejects.toThrow("there is no such file");
    await writeFile(join(folder, "bad.jsonl"), '{"a":1}\n{"b":2}\n');
    await expect(readRecords([join(folder, "bad.jsonl")])).rejects.toThrow(/bad\.jsonl: line 1 is no record/);
  });

  it.skipIf(!duckdb)("are queried by DuckDB", async () => {
    const { columns, rows } = await queryFiles(
      [file],
      "SELECT method, avg(correct) AS accuracy, count(*) AS n FROM runs GROUP BY method ORDER BY method",
    );
    expect(columns).toEqual(["method", "accuracy", "n"]);
    expect(rows).toEqual([
      { method: "full", accuracy: 1, n: 4 },
      { method: "quest", accuracy: 0.5, n: 4 },
    ]);
    await expect(queryFiles([file], "SELECT nothing FROM runs")).rejects.toThrow("DuckDB: ");
  });

  it.skipIf(!duckdb)("may be Parquet, and read back the same", async () => {
    const parquet = join(folder, "runs.parquet");
    await queryFiles([file], `COPY (SELECT * FROM runs) TO '${parquet.replaceAll("'", "''")}' (FORMAT parquet)`);
    expect((await readFile(parquet)).subarray(0, 4).toString()).toBe("PAR1");
    const back = await readRecords([parquet]);
    expect(summarise(back)).toEqual(summarise(RECORDS));
  });
});

describe("fovea bench with files of questions", () => {
  const squad = { data: [{ paragraphs: [{ context: "It is six.", qas: [SIX] }] }] };
  const hotpot = [
    { question: "How many?", answer: "six", supporting_facts: [["A", 0]], context: [["A", ["It is six."]]] },
  ];
  const io = (): Io => ({
    ...{ out: () => {}, err: () => {}, input: async () => "", outTty: false, errTty: false, columns: 80, color: 0 },
    signal: new AbortController().signal,
  });
  let folder = "";
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "fovea-bench-"));
    await writeFile(join(folder, "squad.json"), JSON.stringify(squad));
    await writeFile(join(folder, "hotpot.json"), JSON.stringify(hotpot));
  });
  afterAll(() => rm(folder, { recursive: true }));
  // the tasks are looked up before the methods, and those before a model is opened
  const run = (tasks: string, ...files: string[]) =>
    bench.run(["--methods", "no-such-method", "--tasks", tasks, ...files], io());

  it("has their tasks", async () => {
    const files = ["--squad", join(folder, "squad.json"), "--hotpot", join(folder, "hotpot.json")];
    for (const name of ["questions-set/squad", "questions-set/hotpot", "questions-set", "ruler"])
      await expect(run(name, ...files), name).rejects.toThrow("no-such-method");
    await expect(run("questions-set/hotpot", ...files.slice(0, 2))).rejects.toThrow("come from a file");
    await expect(run("questions-set")).rejects.toThrow("come from a file");
  });

  it("says what is wrong with one", async () => {
    await expect(run("questions-set", "--squad", join(folder, "hotpot.json"))).rejects.toThrow("has no data");
    await expect(run("questions-set", "--squad", join(folder, "none.json"))).rejects.toThrow("no such file");
  });
});
