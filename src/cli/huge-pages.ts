import { spawn } from "node:child_process";
import { constants } from "node:os";

/** Commands that run a model long enough for it to pay. */
const RUNNING = ["ask", "generate", "score", "attention", "bench"];
/** glibc's settings: one heap for all threads, in huge pages. Other C libraries ignore them. */
const TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1";

/**
 * On Linux, runs the command line again in a process whose heap lies in huge pages, which only a process's start can
 * set, and resolves to its exit code: decoding reads all weights for every token, and with small pages a seventh of its
 * time went into finding them. Undefined where that is not wanted: on other systems, for short commands, and where
 * GLIBC_TUNABLES is set already (set it to the empty string to keep small pages).
 */
export function runInHugePages(args: readonly string[]): Promise<number> | undefined {
  const wanted = process.platform === "linux" && process.env.GLIBC_TUNABLES === undefined;
  if (!wanted || !RUNNING.includes(args[0]) || args.includes("--help") || args.includes("-h")) return undefined;
  const child = spawn(process.execPath, [...process.execArgv, ...process.argv.slice(1)], {
    stdio: "inherit",
    env: { ...process.env, GLIBC_TUNABLES: TUNABLES },
  });
  // a terminal signals both processes; anyone else only this one
  process.on("SIGINT", () => void (process.stdin.isTTY || child.kill("SIGINT")));
  process.on("SIGTERM", () => void child.kill("SIGTERM"));
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("exit", (code, signal) => resolve(code ?? 128 + (signal ? constants.signals[signal] : 0)));
  });
}
