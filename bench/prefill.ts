/**
 * Prints where the time of a prefill goes on the 135M-parameter shape, for full attention and for sparse prefills: dense
 * parts (norms, projections, MLP, storing), selection (what the method computes to choose), attention over what is chosen.
 *
 *   npm run bench:prefill                                  4096 and 16384 tokens
 *   npm run bench:prefill -- --lengths 4096 --methods "full+moba(block=256)" --runs 3
 *
 * Seconds are those of the fastest run; CPU seconds are those of all threads, which other work on the machine changes
 * less. The columns of shares do not depend on how fast the machine is.
 */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { availableParallelism } from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import type { AttachedMethod } from "fovea";
import { load } from "fovea";
import { method, parseMethods, printMethods, resolve } from "fovea/attention";

const METHODS = [
  "full",
  "dhsa",
  "dhsa(boundaries=fixed)",
  "moba",
  "moba(block=256,top=5)",
  "star-attention",
  "star-attention(block=1/16,anchor=1/16)",
  "hip",
  "sale",
];

const root = fileURLToPath(new URL("..", import.meta.url));
const { values } = parseArgs({
  options: {
    lengths: { type: "string", default: "4096,16384" },
    methods: { type: "string", default: METHODS.join("+") },
    runs: { type: "string", default: "1" },
    threads: { type: "string", default: String(availableParallelism()) },
    json: { type: "boolean", default: false },
  },
});
const file = fileURLToPath(new URL("../out/bench-135m.gguf", import.meta.url));
if (!existsSync(file))
  spawnSync(process.execPath, ["scripts/run.mjs", "scripts/make-bench-model.ts", file], {
    cwd: root,
    stdio: "inherit",
  });

/** Milliseconds of one prefill: inside attention's hooks, and inside `select` there. */
interface Clock {
  attention: number;
  selection: number;
}

/** A method that reads the clock where attention begins and ends, and the method with its `select` timed. */
function timed(attached: readonly AttachedMethod[], clock: Clock): AttachedMethod[] {
  let begun = 0;
  const edges = method({
    name: "clock",
    activations: () => {
      begun = performance.now();
    },
    heads: () => {
      clock.attention += performance.now() - begun;
    },
  })();
  const watched = attached.map((one): AttachedMethod => {
    const { select } = one.hooks;
    if (!select) return one;
    const timedSelect: typeof select = async (step) => {
      const start = performance.now();
      try {
        return await select(step);
      } finally {
        clock.selection += performance.now() - start;
      }
    };
    return { ...one, hooks: { ...one.hooks, select: timedSelect } };
  });
  return [...watched, edges];
}

/** Ids that look like no text. */
function randomIds(count: number): number[] {
  let state = 1;
  return Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * 49152);
  });
}

await using model = await load(file, { worker: false, threads: Number(values.threads), context: 32768 });
const methods = parseMethods(values.methods).map((call) => printMethods([call]));
const rows: Record<string, number | string>[] = [];
console.log(
  ["tokens", "method", "tokens/s", "seconds", "CPU s", "dense", "selection", "attention", "against full"].join("\t"),
);
for (const length of values.lengths.split(",").map(Number)) {
  const ids = randomIds(length);
  let full = 0;
  for (const name of methods) {
    let best: { seconds: number; cpu: number; clock: Clock } | undefined;
    for (let run = 0; run < Number(values.runs); run++) {
      const clock: Clock = { attention: 0, selection: 0 };
      const start = performance.now();
      const before = process.cpuUsage();
      const reading = await model.read(ids, { attention: timed(resolve(name), clock) });
      const seconds = (performance.now() - start) / 1000;
      const { user, system } = process.cpuUsage(before);
      await reading.close();
      if (!best || seconds < best.seconds) best = { seconds, cpu: (user + system) / 1e6, clock };
    }
    if (!best) continue;
    const { seconds, cpu, clock } = best;
    if (name === "full") full = seconds;
    const share = (ms: number) => `${((100 * ms) / 1000 / seconds).toFixed(1)}%`;
    const row = {
      length,
      method: name,
      tokens_s: length / seconds,
      seconds,
      cpu_s: cpu,
      dense_s: seconds - clock.attention / 1000,
      selection_s: clock.selection / 1000,
      attention_s: (clock.attention - clock.selection) / 1000,
    };
    rows.push(row);
    console.log(
      [
        length,
        name,
        row.tokens_s.toFixed(0),
        seconds.toFixed(2),
        cpu.toFixed(1),
        share(1000 * row.dense_s),
        share(clock.selection),
        share(clock.attention - clock.selection),
        full ? `${(full / seconds).toFixed(2)}x` : "",
      ].join("\t"),
    );
  }
}
if (values.json) console.log(JSON.stringify(rows));
