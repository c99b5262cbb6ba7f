// Measures methods at budgets on a model and writes the table of docs/benchmarks.md between accuracy:begin and accuracy:end:
//
//   npm run build && npm run bench:accuracy -- [--runs out/accuracy.jsonl] [any option of fovea bench]
//
// It runs `fovea bench`, so a stopped run goes on.
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { dirname } from "node:path";
import { promisify } from "node:util";
import type { BenchRow, Skipped } from "fovea/tasks";
import { writeSection } from "./document.js";

// attnrank is left out: it orders passages by a retriever's scores, and these tasks have none
const METHODS = [
  "quest,tidaldecode,lessismore,tokenselect,sparq,magicpig,qada,longheads,hip,moba",
  "lserve(heads=models/nano/methods/retrieval.json),duoattention(heads=models/nano/methods/retrieval.json)",
  "h2o,snapkv,tova,ada-kv,expected-attention,compresskv,gemfilter",
  "dhsa,sale,star-attention,chai,shared-attention,compress-kv-heads,mha2mla",
].join();
const DEFAULTS = {
  "--model": "nano",
  "--methods": METHODS,
  "--share": "1/4,1/8,1/16",
  "--length": "4k",
  "--tasks": "documents/single",
};

const given = process.argv.slice(2);
const at = given.indexOf("--runs");
const [, runs = "out/accuracy.jsonl"] = at < 0 ? [] : given.splice(at, 2);
for (const [name, value] of Object.entries(DEFAULTS)) if (!given.includes(name)) given.push(name, value);

await mkdir(dirname(runs), { recursive: true });
if (!existsSync("dist/cli/main.js")) throw new Error("npm run build first");
const { stdout } = await promisify(execFile)(
  process.execPath,
  ["dist/cli/main.js", "bench", ...given, "-o", runs, "--json"],
  { maxBuffer: 1 << 28 },
);
const { rows, skipped } = JSON.parse(stdout) as { rows: BenchRow[]; skipped: Skipped[] };

const percent = (x: number | null) => (x === null ? "" : (100 * x).toFixed(1));
const cells = (row: BenchRow) => [
  `\`${row.method}\``,
  String(row.cases),
  row.budget === null ? "" : `1/${Math.round(1 / row.budget)}${row.budget_met ? "" : " missed"}`,
  percent(row.read_share),
  row.tokens_scored.toFixed(0),
  percent(row.keep_share),
  row.speed_only ? "speed only" : `${percent(row.accuracy)} (${row.interval.map(percent).join(" to ")})`,
  row.speed_only || row.change_interval === null ? "" : row.change_interval.map(percent).join(" to "),
  percent(row.coverage),
  row.kl_answer.toFixed(3),
  row.ms_per_token?.toFixed(2) ?? "",
  row.prefill_s.toFixed(2),
  (row.cache_bytes / 2 ** 20).toFixed(2),
  (row.peak_bytes / 2 ** 20).toFixed(2),
];
const head = [
  "method",
  "cases",
  "budget",
  "read %",
  "to choose",
  "kept %",
  "accuracy % (95%)",
  "change",
  "coverage %",
  "KL",
  "ms/token",
  "prefill s",
  "cache MiB",
  "peak MiB",
];
const line = (list: readonly string[]) => `| ${list.join(" | ")} |`;

const groups = new Map<string, BenchRow[]>();
for (const row of rows) {
  const title = `${row.task}, ${row.length} tokens, ${row.mode}`;
  groups.set(title, [...(groups.get(title) ?? []), row]);
}
const parts = [...groups].map(([title, own]) => {
  const [first] = own;
  const about = `${first.model}, ${first.precision} weights, ${first.cache_type} cache, ${first.threads} threads, ${first.seeds} seeds, commit ${first.commit}`;
  return [
    `**${title}** (${about})`,
    "",
    line(head),
    line(head.map(() => "---")),
    ...own.map((row) => line(cells(row))),
  ].join("\n");
});
const left = skipped.map(
  ({ method, budget, reason }) => `Not run: \`${method}\` at ${budget ?? "its defaults"}: ${reason}`,
);
await writeSection("accuracy", [...parts, ...left].join("\n\n"));
