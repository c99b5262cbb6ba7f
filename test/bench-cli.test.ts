import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { appendFile, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { BenchRow } from "../src/tasks/index.js";

const root = fileURLToPath(new URL("..", import.meta.url));
const main = join(root, "dist", "cli", "main.js");

function fovea(
  args: readonly string[],
  onTick?: (kill: () => void) => void,
): Promise<{ code: number | null; out: string; err: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [main, ...args], { cwd: root });
    let [out, err] = ["", ""];
    child.stdout.setEncoding("utf8").on("data", (chunk: string) => {
      out += chunk;
    });
    child.stderr.setEncoding("utf8").on("data", (chunk: string) => {
      err += chunk;
    });
    const timer = onTick && setInterval(() => onTick(() => child.kill("SIGINT")), 50);
    child.on("error", reject);
    child.on("close", (code) => {
      clearInterval(timer);
      resolve({ code, out, err });
    });
  });
}

const FIELDS =
  "model method budget length task cases accuracy coverage kl ms_per_token prefill_s cache_bytes tokens_read mode model_hash commit precision threads".split(
    " ",
  );
const SMALL = ["bench", "-m", "tiny", "--tasks", "documents/pairs", "--length", "400", "--max-tokens", "8"];
const METHODS = ["--methods", "snapkv(window=8)", "--share", "1/4"];

describe.skipIf(!existsSync(main))("fovea bench", () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "fovea-bench-cli-"));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  it("measures, keeps records, draws, and goes on from them", async () => {
    const runs = join(folder, "runs.jsonl");
    const args = [...SMALL, ...METHODS, "--cases", "4", "--seeds", "2", "-o", runs, "--json"];
    const first = await fovea([...args, "--plots", join(folder, "plots")]);
    expect([first.code, first.err]).toEqual([0, ""]);
    const { rows } = JSON.parse(first.out) as { rows: BenchRow[] };
    expect(rows.map((r) => r.method)).toEqual(["full", "random-kept", "recent", "snapkv(window=8)"]);
    for (const row of rows) {
      expect(Object.keys(row)).toEqual(expect.arrayContaining(FIELDS));
      expect(row).toMatchObject({ cases: 4, seeds: 2, length: 400, task: "documents/pairs", mode: "query-agnostic" });
    }
    expect((await readdir(join(folder, "plots"))).sort()).toContain("time-length.svg");
    const records = await readFile(runs, "utf8");
    expect(records.trim().split("\n").length).toBe(16);

    // nothing is run again; a line that was cut short is
    await appendFile(runs, '{"cut');
    const again = await fovea(args);
    expect(JSON.parse(again.out)).toMatchObject({ rows });
    expect(await readFile(runs, "utf8")).toBe(records);

    const table = await fovea(["bench", "compare", runs]);
    expect([table.code, table.err]).toEqual([0, ""]);
    expect(table.out).toContain("snapkv(window=8)");
    const compared = await fovea(["bench", "compare", runs, "--json"]);
    expect((JSON.parse(compared.out) as { rows: unknown }).rows).toEqual(rows);
  });

  it("keeps what it has on Ctrl-C, and goes on", async () => {
    const runs = join(folder, "stopped.jsonl");
    const args = [...SMALL, "--cases", "40", "--seeds", "1", "-o", runs];
    let killed = false;
    const stopped = await fovea(args, (kill) => {
      if (!killed && existsSync(runs)) kill();
      killed ||= existsSync(runs);
    });
    expect(stopped.code).toBe(130);
    expect(stopped.err).toContain("the same command goes on");
    const kept = (await readFile(runs, "utf8")).trim().split("\n").length;
    expect(kept).toBeLessThan(40);
    const ended = await fovea([...args, "--json"]);
    expect((JSON.parse(ended.out) as { rows: BenchRow[] }).rows).toMatchObject([{ method: "full", cases: 40 }]);
  });

  it("says what is wrong", async () => {
    const of = async (...args: string[]) => (await fovea([...SMALL, ...args])).err;
    expect(await of("--tasks", "neddle")).toContain('there is no task "neddle"');
    expect(await of("--share", "8")).toContain("--share takes shares");
    expect(await of("--methods", "snapvk")).toContain("unknown method");
    expect((await fovea(["bench", "sped"])).err).toContain("fovea bench measures speed");
    expect((await fovea(["bench", "compare"])).err).toContain("needs <runs>");
    expect((await fovea(["bench", "speed", "--help"])).out).toContain("usage: fovea bench speed");
  });
});
