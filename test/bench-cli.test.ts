import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { appendFile, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { BenchRow, Tuned } from "../src/tasks/index.js";

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

describe.skipIf(!existsSync(main))("fovea tune", () => {
  let folder: string;
  const docs = () => join(folder, "docs");
  const tuned = () => join(folder, "tuned");
  const args = (...more: string[]) => {
    const small = ["-m", "tiny", "--tasks", "needle/single", "--length", "400", "--screen", "4", "--cases", "8"];
    return ["tune", ...small, "--docs", docs(), "-o", tuned(), "--json", ...more];
  };
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "fovea-tune-cli-"));
    await mkdir(join(docs(), "deep"), { recursive: true });
    await writeFile(join(docs(), "deep", "notes.md"), "# Notes\n\nIt rained. Nobody minded, since the work was done.");
    await writeFile(join(docs(), "empty.txt"), "");
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  it("finds a setting that keeps what is asked for, and writes a config that other commands take", async () => {
    const found = await fovea(
      args("--goal", "memory", "--methods", "streaming-llm,snapkv", "--keep", "0.01", "--allow", "1000"),
    );
    expect([found.code, found.err]).toEqual([0, ""]);
    const { best, full, tried, judged_by, stopped } = JSON.parse(found.out) as Tuned;
    expect([judged_by, stopped, full.method, full.shrink]).toEqual(["agreement", false, "full", 1]);
    // at a hundredth of the replies anything that agrees once will do: the least cache wins
    expect(best?.holds).toBe(true);
    expect(best?.cases).toBe(8);
    expect(best?.shrink).toBeGreaterThan(2);
    expect(full.kept).toBe(1);
    for (const one of tried) expect(one.holds).toBe(one.kept >= 0.01);
    const config = JSON.parse(await readFile(join(tuned(), "config.json"), "utf8")) as Record<string, string>;
    expect(config).toEqual({ attention: best?.method, cache: "int8" });
    const base = ["score", "-m", "tiny", "-p", "one two three", "--json"];
    const taken = await fovea([...base, "--config", join(tuned(), "config.json")]);
    expect([taken.code, taken.err]).toEqual([0, ""]);
    const given = await fovea([...base, "--attention", config.attention, "--cache", "int8"]);
    expect(taken.out).toBe(given.out);
    const won = await fovea([...base, "--attention", "full", "--config", join(tuned(), "config.json")]);
    expect(won.out).not.toBe(taken.out.replace(config.attention, "full"));

    // nothing is measured again, so the same is found in no time
    const again = await fovea(
      args("--goal", "memory", "--methods", "streaming-llm,snapkv", "--keep", "0.01", "--allow", "1000"),
    );
    expect((JSON.parse(again.out) as Tuned).best).toEqual(best);
  });

  it("recommends nothing where nothing saves and keeps", async () => {
    const found = await fovea(args("--goal", "memory", "--methods", "full", "-o", join(folder, "nothing")));
    expect([found.code, found.err]).toEqual([0, ""]);
    expect((JSON.parse(found.out) as Tuned).best).toBeUndefined();
  });

  it("says what it cannot use", async () => {
    const other = await fovea([...args(), "--length", "500"]);
    expect([other.code, other.err]).toEqual([1, expect.stringMatching(/holds a search of .* at 400 tokens/)]);
    const nowhere = await fovea(["tune", "-m", "tiny", "--docs", join(folder, "none"), "-o", join(folder, "x")]);
    expect([nowhere.code, nowhere.err]).toEqual([1, expect.stringContaining("cannot read the folder")]);
    const config = join(folder, "bad.json");
    for (const [content, message] of [
      ["{", "is no JSON"],
      ["[]", "is no object"],
      ['{"speed": 9}', 'sets "speed", which this command does not take'],
      ['{"attention": {}}', 'gives "attention" no text'],
      ['{"cache": "int9"}', "--cache is one of float32, int8"],
    ]) {
      await writeFile(config, content);
      const bad = await fovea(["score", "-m", "tiny", "-p", "one", "--config", config]);
      expect(bad.err).toContain(message);
      expect(bad.code).not.toBe(0);
    }
  });
});
