/**
 * Trains the delta rule and plain linear attention on associative recall, with states of one size and as many parameters,
 * and writes the table into docs/benchmarks.md. Fails when the delta rule is not better beyond the seeds' spread.
 *
 *   npm run bench:mechanisms                     ten seeds, ten minutes on two cores
 *   npm run bench:mechanisms -- --seeds 5 --steps 600 --heads 4
 */
import { execFileSync } from "node:child_process";
import { cpus } from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { deltaRule, linearAttention } from "fovea/attention";
import { type ComparedRun, compareMechanisms, meanInterval, mechanismString, recall } from "fovea/train";
import { writeSection } from "./document.js";

const root = fileURLToPath(new URL("..", import.meta.url));
const { values } = parseArgs({
  options: {
    seeds: { type: "string", default: "10" },
    steps: { type: "string", default: "300" },
    heads: { type: "string", default: "2" },
    "dry-run": { type: "boolean", default: false },
  },
});
const steps = Number(values.steps);
const seeds = Array.from({ length: Number(values.seeds) }, (_, i) => i + 1);
const MODEL = { layers: 2, width: 64, heads: Number(values.heads) };
/** Seeds on which heads and steps were chosen; the others are new to that choice. */
const CHOSEN_ON = 5;
const TASK = { pairs: 8, keys: 64, values: 64, rows: 64 };

// the same parts around the state, so that only what is written into it differs
const parts = { convolution: 4, output: "norm" } as const;
const mechanisms = [linearAttention({ ...parts, feature: "identity", normaliser: false }), deltaRule(parts)];
const names = mechanisms.map(mechanismString);
// before the runs, which are made with the code as it is now
const commit = execFileSync("git", ["rev-parse", "--short", "HEAD"], { cwd: root, encoding: "utf8" }).trim();
const runs = await compareMechanisms({
  mechanisms,
  tasks: { recall: (seed) => recall({ ...TASK, seed }) },
  ...{ steps, seeds, model: MODEL, threads: 1 },
  onRun: ({ mechanism, seed, accuracy }) => console.error(`${mechanism}, seed ${seed}: ${accuracy.toFixed(3)}`),
});

const of = (name: string): ComparedRun[] => runs.filter((run) => run.mechanism === name);
const percent = (x: number): string => (100 * x).toFixed(1);
const spread = (list: readonly number[]): string => {
  const { mean, half = 0 } = meanInterval(list);
  return `${percent(mean)} ± ${percent(half)}`;
};
const [linear, delta] = names.map(of);
const gains = delta.map((run, i) => run.accuracy - linear[i].accuracy);
const added = values.heads === "2" && values.steps === "300" ? gains.slice(CHOSEN_ON) : [];
const text = [
  `${new Date().toISOString().slice(0, 10)}, ${cpus()[0].model.trim()}, Node ${process.versions.node}, commit ${commit}. Two layers, width`,
  `${MODEL.width}, ${MODEL.heads} heads of ${MODEL.width / MODEL.heads}; ${TASK.pairs} pairs of ${TASK.keys} keys and ${TASK.values} values, ${steps} steps of ${TASK.rows} sequences. Accuracy in % on`,
  `held-out sequences: mean over ${seeds.length} seeds with its 95% interval (Student's t); the gain is taken seed by seed.`,
  "",
  "| mechanism | accuracy | gain | parameters | state, bytes |",
  "| --- | --- | --- | --- | --- |",
  ...[linear, delta].map((own) => {
    const gain = own === delta ? spread(gains) : "";
    const accuracy = spread(own.map((run) => run.accuracy));
    return `| \`${own[0].mechanism}\` | ${accuracy} | ${gain} | ${own[0].parameters} | ${own[0].stateBytes} |`;
  }),
  ...(added.length > 1
    ? [
        "",
        `Seeds ${CHOSEN_ON + 1} to ${seeds.length} were added after heads and steps had been chosen on seeds 1 to ${CHOSEN_ON}. Gain over seeds ${CHOSEN_ON + 1} to ${seeds.length} alone:`,
        `${spread(added)}; over seeds 1 to ${CHOSEN_ON}: ${spread(gains.slice(0, CHOSEN_ON))}.`,
      ]
    : []),
].join("\n");
console.log(text);
if (!values["dry-run"]) await writeSection("mechanisms", text);
const { mean, half = Number.POSITIVE_INFINITY } = meanInterval(gains);
if (mean - half <= 0) {
  console.error("the delta rule is not better beyond the spread of seeds");
  process.exitCode = 1;
}
