/**
 * Fuzzes the parsers for as long as is wanted:
 *
 *   node scripts/run.mjs scripts/fuzz.ts [--minutes 10] [--seed 1] [--target gguf]
 *
 * The cases run in a child process with little memory; when it dies or falls silent, its last case is named and the
 * next one goes on. The exit code is 1 when anything was found.
 */
import { spawn } from "node:child_process";
import { parseArgs } from "node:util";
import { runCase, targets } from "../test/fuzzing.js";

const SILENCE = 120_000;

const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "10" },
    seed: { type: "string", default: String(Date.now() % 1_000_000_007) },
    target: { type: "string" },
    child: { type: "boolean", default: false },
  },
});

/** Runs cases until killed; says which one it is at, and what it found. */
async function work(first: number): Promise<void> {
  const list = (await targets()).filter(({ name }) => values.target === undefined || name === values.target);
  if (list.length === 0) throw new Error(`no target ${values.target}`);
  for (let seed = first; ; seed++) {
    for (const target of list) {
      process.stdout.write(`${JSON.stringify({ seed, target: target.name })}\n`);
      const problem = await runCase(target, seed);
      if (problem) process.stdout.write(`${JSON.stringify({ problem })}\n`);
    }
    // Lets the garbage that waits for the event loop go.
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Watches over the child; gives the seed to go on with. */
function watch(first: number, until: number, found: (problem: string) => void): Promise<number> {
  return new Promise((resolve) => {
    const args = ["--max-old-space-size=1024", process.argv[1].replace(/fuzz\.ts$/, "run.mjs"), process.argv[1]];
    const more = values.target === undefined ? [] : ["--target", values.target];
    const child = spawn(process.execPath, [...args, "--child", "--seed", String(first), ...more]);
    let at = { seed: first, target: "start" };
    let errors = "";
    let rest = "";
    let timer: NodeJS.Timeout | undefined;
    const alive = (): void => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        found(`${at.target}, seed ${at.seed}: no end after ${SILENCE / 1000} s`);
        child.kill("SIGKILL");
      }, SILENCE);
    };
    const end = setTimeout(() => child.kill("SIGTERM"), Math.max(0, until - Date.now()));
    child.stdout.on("data", (data: Buffer) => {
      alive();
      const lines = (rest + data).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        const message = JSON.parse(line) as { seed: number; target: string; problem?: string };
        if (message.problem !== undefined) found(message.problem);
        else at = message;
      }
    });
    child.stderr.on("data", (data: Buffer) => {
      errors = (errors + data).slice(-2000);
    });
    child.on("exit", (code, signal) => {
      clearTimeout(timer);
      clearTimeout(end);
      if (signal !== "SIGTERM" && signal !== "SIGKILL") {
        found(`${at.target}, seed ${at.seed}: the process died (${signal ?? code})\n${errors}`);
      }
      resolve(at.seed + 1);
    });
    alive();
  });
}

if (values.child) await work(Number(values.seed));
else {
  const until = Date.now() + Number(values.minutes) * 60_000;
  const first = Number(values.seed);
  let seed = first;
  let problems = 0;
  console.log(`fuzzing for ${values.minutes} minutes from seed ${seed}`);
  while (Date.now() < until && problems < 50) {
    seed = await watch(seed, until, (problem) => {
      problems++;
      console.log(problem);
    });
  }
  console.log(`${seed - first} rounds, ${problems} problems`);
  process.exitCode = problems > 0 ? 1 : 0;
}
