import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { FoveaError } from "../../error.js";
import {
  type ComparedRun,
  type CompareOptions,
  compareMechanisms,
  copying,
  induction,
  meanInterval,
  mechanismString,
  parseMechanisms,
  recall,
} from "../../train/index.js";
import { svgBars } from "../bars.js";
import { command } from "../command.js";
import { readText, writeAtomic } from "../files.js";
import { formatBytes, formatCount, json, table } from "../format.js";
import { jsonOption } from "../model.js";
import { decimal, integer, text, textOr, UsageError } from "../options.js";
import { progressLine } from "../progress.js";

const TASKS = ["recall", "induction", "copying"] as const;
const EVERY =
  "softmax+linear-attention+gated-linear-attention+gated-linear-attention(gate=fixed)+delta-rule+gated-delta-rule";

export const compare = command({
  name: "compare",
  summary: "train mechanisms on small tasks under one budget, and compare them",
  about:
    "Trains a small decoder with each mechanism on each task, from several seeds, with the same steps, batches and number\n" +
    "of parameters, and measures the accuracy on batches that training never saw. Means over seeds, with 95% intervals.\n" +
    "With a folder every finished run is kept and Ctrl-C saves the one under way; the same command goes on. Mechanisms are\n" +
    "written as methods are: gated-linear-attention(gate=fixed)+delta-rule. docs/mechanisms.md describes them.",
  positionals: [],
  options: {
    mechanisms: textOr("mechanisms, joined by +", "mechanisms", EVERY),
    tasks: textOr("tasks, separated by commas: recall, induction, copying", "tasks", TASKS.join(",")),
    pairs: integer("key-value pairs of recall", { min: 1, fallback: 8 }),
    keys: integer("keys that recall draws from, and as many values", { min: 1, fallback: 64 }),
    length: integer("symbols of induction and copying", { min: 2, fallback: 16 }),
    steps: integer("steps of each run", { min: 1, fallback: 400 }),
    rows: integer("sequences in a batch", { min: 1, fallback: 64 }),
    seeds: integer("seeds: runs of each mechanism on each task", { min: 1, fallback: 3 }),
    layers: integer("layers", { min: 1, fallback: 2 }),
    width: integer("width", { min: 8, fallback: 64 }),
    heads: integer("heads", { min: 1, fallback: 2 }),
    rate: decimal("learning rate", { min: 0, fallbackText: "0.003" }),
    threads: integer("threads", { min: 1, fallbackText: "all cores" }),
    folder: text("where runs are kept, so that a stopped comparison goes on", "folder", { short: "o" }),
    plot: text("also draw the result", "file.svg"),
    ...jsonOption,
  },
  examples: [
    "fovea compare --tasks recall --folder runs/recall --plot recall.svg",
    'fovea compare --mechanisms "linear-attention(convolution=4)+delta-rule" --tasks recall --seeds 5',
  ],
  async run(values, _, io) {
    const mechanisms = parseMechanisms(values.mechanisms);
    const tasks = tasksOf(values);
    const { steps, layers, width, heads, rate = 0.003, threads } = values;
    const settings = {
      steps,
      layers,
      width,
      heads,
      rate,
      rows: values.rows,
      tasks: Object.values(tasks).map((t) => t(1).name),
    };
    const store = values.folder === undefined ? undefined : await openStore(values.folder, JSON.stringify(settings));
    const progress = progressLine(io);
    const seeds = Array.from({ length: values.seeds }, (_, i) => i + 1);
    const options: CompareOptions = {
      ...{ mechanisms, tasks, seeds, steps, rate, model: { layers, width, heads } },
      ...(threads !== undefined && { threads }),
      ...(store && { folder: values.folder, known: store.runs }),
      signal: io.signal,
      onRun: (run) => store?.add(run),
      onProgress: (line) => progress.note(line),
    };
    const runs = await compareMechanisms(options).finally(() => progress.clear());
    const names = mechanisms.map(mechanismString);
    const rows = summarise(runs, names, Object.keys(tasks));
    if (values.plot !== undefined && rows.length > 0)
      await writeAtomic(values.plot, draw(rows, names, Object.keys(tasks)));
    const wanted = names.length * Object.keys(tasks).length * seeds.length;
    if (values.json) io.out(json({ settings, runs, summary: rows }, io.outTty));
    else io.out(print(rows));
    if (runs.length === wanted) return 0;
    io.err(`stopped after ${runs.length} of ${wanted} runs${store ? "; the same command goes on" : ""}\n`);
    return 130;
  },
});

function tasksOf(values: {
  tasks: string;
  pairs: number;
  keys: number;
  length: number;
  rows: number;
}): CompareOptions["tasks"] {
  const { pairs, keys, length, rows } = values;
  const all: CompareOptions["tasks"] = {
    recall: (seed) => recall({ pairs, keys, values: keys, rows, seed }),
    induction: (seed) => induction({ length, rows, seed }),
    copying: (seed) => copying({ length, rows, seed }),
  };
  const names = values.tasks.split(",").map((name) => name.trim());
  const wrong = names.find((name) => !(name in all));
  if (wrong !== undefined) throw new UsageError(`there is no task "${wrong}"`, `the tasks are ${TASKS.join(", ")}`);
  return Object.fromEntries(names.map((name) => [name, all[name]]));
}

/** Finished runs in a folder: a file whose first line is the settings that they were made with. */
async function openStore(folder: string, settings: string) {
  await mkdir(folder, { recursive: true });
  const file = join(folder, "runs.jsonl");
  const found = await readText(file).catch((error: unknown) => {
    if (error instanceof FoveaError && error.code === "not-found") return "";
    throw error;
  });
  const [first, ...lines] = found.split("\n").filter(Boolean);
  if (first !== undefined && first !== settings)
    throw new FoveaError("mismatch", `${folder} holds a comparison with other settings`, {
      hint: `name another folder, or give the settings that it was made with: ${first}`,
    });
  const runs = lines.map((line) => JSON.parse(line) as ComparedRun);
  return {
    runs,
    async add(run: ComparedRun): Promise<void> {
      runs.push(run);
      await writeAtomic(file, `${[settings, ...runs.map((r) => JSON.stringify(r))].join("\n")}\n`);
    },
  };
}

/** One mechanism on one task, over seeds. */
interface Row {
  readonly task: string;
  readonly mechanism: string;
  readonly accuracy: number;
  /** Half the 95% interval. */
  readonly interval: number | null;
  readonly seeds: number;
  readonly parameters: number;
  readonly tokens_per_second: number;
  readonly state_bytes: number;
}

function summarise(runs: readonly ComparedRun[], names: readonly string[], tasks: readonly string[]): Row[] {
  return tasks.flatMap((task) =>
    names.flatMap((mechanism): Row[] => {
      const own = runs.filter((run) => run.task === task && run.mechanism === mechanism);
      if (own.length === 0) return [];
      const { mean, half = null } = meanInterval(own.map((run) => run.accuracy));
      const [{ parameters, stateBytes }] = own;
      const speed = meanInterval(own.map((run) => run.tokensPerSecond)).mean;
      return [
        {
          ...{ task, mechanism, accuracy: mean, interval: half, seeds: own.length, parameters },
          tokens_per_second: Math.round(speed),
          state_bytes: stateBytes,
        },
      ];
    }),
  );
}

function print(rows: readonly Row[]): string {
  const percent = (x: number) => (100 * x).toFixed(1);
  return table(
    ["task", "mechanism", "accuracy %", "+-", "seeds", "parameters", "tokens/s", "state"],
    rows.map((r) => [
      r.task,
      r.mechanism,
      percent(r.accuracy),
      r.interval === null ? "" : percent(r.interval),
      String(r.seeds),
      formatCount(r.parameters),
      String(r.tokens_per_second),
      formatBytes(r.state_bytes),
    ]),
    [2, 3, 4, 5, 6, 7],
  );
}

function draw(rows: readonly Row[], names: readonly string[], tasks: readonly string[]): string {
  const series = names.map((name) => {
    const own = rows.filter((row) => row.mechanism === name);
    const [first] = own;
    const notes = first
      ? [
          `${formatCount(first.parameters)} parameters, ${formatBytes(first.state_bytes)} of state`,
          `${first.tokens_per_second} tokens/s`,
        ]
      : [];
    const bars = tasks.map((task) => {
      const row = own.find((r) => r.task === task);
      return row && { value: row.accuracy, ...(row.interval !== null && { half: row.interval }) };
    });
    return { name, notes, bars };
  });
  return svgBars("Mechanisms under one budget", "accuracy", tasks, series);
}
