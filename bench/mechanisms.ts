/**
 * Trains the delta rule and plain linear attention on associative recall, with states of one size and as many parameters,
 * and writes the table into docs/benchmarks.md. Fails when the delta rule is not better beyond the seeds' spread.
 *
 *   npm run bench:mechanisms                     five seeds, a few minutes on two cores
 *   npm run bench:mechanisms -- --seeds 10 --steps 600
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
    seeds: { type: "string", default: "5" },
    steps: { type: "string", default: "300" },
    "dry-run": { type: "boolean", default: false },
  },
});
const steps = Number(values.steps);
const seeds = Array.from({ length: Number(values.seeds) }, (_, i) => i + 1);
const MODEL = { layers: 2, width: 64, heads: 4 };
const TASK = { pairs: 8, keys: 64, values: 64, rows: 64 };

// the same parts around the state, so that only the write differs
const parts = { convolution: 4, output: "norm" } as const;
const mechanisms = [
  linearAttention({ ...parts, feature: "identity", normaliser: false }),
  linearAttention({ ...parts, feature: "elu", normaliser: false }),
  deltaRule(parts),
];
const names = mechanisms.map(mechanismString);
const runs = await compareMechanisms({
  mechanisms,
  tasks: { recall: (seed) => recall({ ...TASK, seed }) },
  ...{ steps, seeds, model: MODEL },
  onRun: ({ mechanism, seed, accuracy }) => console.error(`${mechanism}, seed ${seed}: ${accuracy.toFixed(3)}`),
});

const of = (name: string): ComparedRun[] => runs.filter((run) => run.mechanism === name);
const delta = of(names[2]);
const percent = (x: number): string => (100 * x).toFixed(1);
const spread = (list: readonly number[]): string => {
  const { mean, half = 0 } = meanInterval(list);
  return `${percent(mean)} ± ${percent(half)}`;
};
const gains = names.slice(0, 2).map((name) => of(name).map((run, i) => delta[i].accuracy - run.accuracy));
const commit = execFileSync("git", ["rev-parse", "--short", "HEAD"], { cwd: root, encoding: "utf8" }).trim();
const text = [
  `${new Date().toISOString().slice(0, 10)}, ${cpus()[0].model.trim()}, Node ${process.versions.node}, commit ${commit}. Two layers, width`,
  `${MODEL.width}, ${MODEL.heads} heads of ${MODEL.width / MODEL.heads}; ${TASK.pairs} pairs of ${TASK.keys} keys and ${TASK.values} values, ${steps} steps of ${TASK.rows} sequences. Accuracy in % on`,
  `held-out sequences: mean over ${seeds.length} seeds with its 95% interval (Student's t), and the delta rule's gain, seed by seed.`,
  "",
  "| mechanism | accuracy | the delta rule's gain | parameters | state, bytes |",
  "| --- | --- | --- | --- | --- |",
  ...names.map((name, i) => {
    const own = of(name);
    const gain = i < 2 ? spread(gains[i]) : "";
    return `| \`${name}\` | ${spread(own.map((r) => r.accuracy))} | ${gain} | ${own[0].parameters} | ${own[0].stateBytes} |`;
  }),
].join("\n");
console.log(text);
if (!values["dry-run"]) await writeSection("mechanisms", text);
for (const [i, list] of gains.entries()) {
  const { mean, half = Number.POSITIVE_INFINITY } = meanInterval(list);
  if (mean - half > 0) continue;
  console.error(`the delta rule is not better than ${names[i]} beyond the spread of seeds`);
  process.exitCode = 1;
}
