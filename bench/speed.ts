/**
 * Measures speed against llama.cpp on the 135M-parameter shape and writes the tables into docs/benchmarks.md.
 *
 *   npm run bench:speed                       all depths: about half an hour on two idle cores
 *   npm run bench:speed -- --depths 512,2k    some depths; other options of `fovea bench speed` work too
 */
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { cpus } from "node:os";
import { fileURLToPath } from "node:url";
import type { SpeedReport } from "../src/cli/commands/bench-speed.js";
import { DEEP, type Ratio, type Row } from "../src/cli/speed/measure.js";
import { writeSection } from "./document.js";

const root = fileURLToPath(new URL("..", import.meta.url));
const model = fileURLToPath(new URL("../out/bench-135m.gguf", import.meta.url));
const METHODS = "full,streaming-llm(sinks=4,window=512)";

if (!existsSync(model)) node("scripts/run.mjs", "scripts/make-bench-model.ts", model);

const given = process.argv.slice(2);
const defaults = ["--depths", "512,2k,8k,16k", "--methods", METHODS, "--threads", String(cpus().length)];
const report = JSON.parse(
  node("dist/cli/main.js", "bench", "speed", "-m", model, "--against", "llama.cpp", ...defaults, ...given, "--json"),
) as SpeedReport;
const commit = execFileSync("git", ["rev-parse", "--short", "HEAD"], { cwd: root, encoding: "utf8" }).trim();

await writeSection(hasAvx512() ? "speed" : "speed-avx2", describe(report));
console.log(describe(report));

/** Whether the processor has AVX-512, which both engines have kernels for; true where the machine does not say. */
function hasAvx512(): boolean {
  const file = "/proc/cpuinfo";
  return !existsSync(file) || /\bavx512f\b/.test(readFileSync(file, "utf8"));
}

function node(...args: string[]): string {
  const { status, stdout } = spawnSync(process.execPath, args, {
    cwd: root,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
    maxBuffer: 1 << 28,
  });
  if (status !== 0) process.exit(status ?? 1);
  return stdout;
}

function describe({ date, cpu, threads, node: version, decode_tokens, rows, ratios, attach_ms }: SpeedReport): string {
  const attach = Object.entries(attach_ms).map(([method, ms]) => `\`${method}\` ${ms.toFixed(1)} ms`);
  return [
    `${date.slice(0, 10)}, ${cpu}${hasAvx512() ? "" : " without AVX-512"}, ${threads} threads, Node ${version.slice(1)}, commit ${commit}. Llama shape of 135M`,
    "parameters (30 layers, width 576, 9 query and 3 key-value heads), random Q8_0 weights, the same file in both engines,",
    `one process, engines in turns after a warm-up, ${decode_tokens} tokens generated in a run. Medians; smallest and largest run in`,
    `brackets; depths from ${DEEP} on run once.`,
    "",
    markdown(
      ["depth", "engine", "attention", "prefill, tokens/s", "decode, tokens/s", "cache, MB"],
      rows.map((row) => [
        String(row.depth),
        row.engine,
        row.method,
        withRange(row.prefill_tps, row.prefill_range, row),
        withRange(row.decode_tps, row.decode_range, row),
        (row.cache_bytes / 1e6).toFixed(1),
      ]),
    ),
    "",
    "Against llama.cpp's best setting for each figure (above 1: Fovea is faster; cache: Fovea's bytes over llama.cpp's):",
    "",
    markdown(
      ["depth", "attention", "prefill", "decode", "cache / f16", "cache / q8_0"],
      ratios.map((ratio: Ratio) => [
        String(ratio.depth),
        ratio.method,
        ratio.prefill.toFixed(2),
        ratio.decode.toFixed(2),
        ratio.cache_f16.toFixed(2),
        ratio.cache_q8_0.toFixed(2),
      ]),
    ),
    "",
    `Attaching a method to the loaded model: ${attach.join(", ")}.`,
  ].join("\n");
}

function withRange(median: number, [low, high]: readonly [number, number], { runs }: Row): string {
  return runs > 1 ? `${median.toFixed(1)} (${low.toFixed(1)}-${high.toFixed(1)})` : median.toFixed(1);
}

function markdown(head: readonly string[], rows: readonly (readonly string[])[]): string {
  return [head, head.map(() => "---"), ...rows].map((row) => `| ${row.join(" | ")} |`).join("\n");
}
