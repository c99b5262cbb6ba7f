import { fileURLToPath } from "node:url";
import type { BenchRecord, BenchRow, Mode, Skipped } from "../../tasks/index.js";
import { runningCommit } from "../bench/commit.js";
import { writePlots } from "../bench/plots.js";
import { printRows } from "../bench/report.js";
import { openStore } from "../bench/store.js";
import { type Command, command } from "../command.js";
import { readText } from "../files.js";
import { json } from "../format.js";
import type { Io } from "../io.js";
import { jsonOption, loadOptions, modelName, toLoadOptions } from "../model.js";
import {
  choice,
  flag,
  integer,
  integers,
  methodList,
  type OptionValues,
  text,
  textOr,
  UsageError,
} from "../options.js";
import { bar, type ProgressLine, progressLine } from "../progress.js";
import { benchCompare } from "./bench-compare.js";
import { benchSpeed } from "./bench-speed.js";

const { attention: _, model: _model, config: _config, ...base } = loadOptions;

const options = {
  model: text("models, separated by commas: folders, files, hf:owner/name", "models", {
    short: "m",
    fallbackText: "$FOVEA_MODEL, else nano",
  }),
  methods: methodList("methods, separated by commas; $ stands where a budget goes if the method is not to choose", [
    "full",
  ]),
  share: text("budgets: shares of the text that may be read or kept, e.g. 1/4,1/8", "shares"),
  length: integers("tokens of prompt and reply together, e.g. 1k,4k", "n,n,...", { min: 64, fallbackText: "1k" }),
  tasks: textOr(
    "tasks, families of them, ruler or all, separated by commas",
    "tasks",
    "documents/single,needle/single",
  ),
  cases: integer("questions for each task, length, method and budget", { min: 1, fallback: 200 }),
  seeds: integer("seeds that the cases come from", { min: 1, fallback: 3 }),
  mode: choice("methods act before the question is known, or with it", ["query-agnostic", "query-aware", "both"], {
    fallbackText: "query-agnostic",
  }),
  out: text("file of records: what is in it is not run again", "runs.jsonl", { short: "o" }),
  plots: text("also draw accuracy and time as SVG", "folder"),
  noControls: flag("leave out random pages and the newest tokens"),
  noPrefix: flag("do not give the model the beginning of a reply"),
  maxTokens: integer("most tokens of a reply", { min: 1, fallbackText: "what the task says" }),
  loogle: text("LooGLE's .jsonl file: adds the tasks loogle-set/...", "file"),
  nolima: text("NoLiMa's needle set (.json): adds the tasks nolima-set/...", "file"),
  squad: text("questions in SQuAD's form (.json, .jsonl): adds the task questions-set/squad", "file"),
  hotpot: text("questions in HotpotQA's form (.json): adds the task questions-set/hotpot", "file"),
  filler: text("folder of prose that things are hidden in", "folder", { fallbackText: "the package's own" }),
  ...base,
  ...jsonOption,
};

type Values = OptionValues<typeof options>;

const accuracy = command({
  name: "bench",
  summary: "measure methods: accuracy, coverage, agreement, time and memory at budgets and lengths; or speed",
  about:
    "fovea bench puts the same questions over documents with known answers to every method at every budget, and prints\n" +
    "accuracy, the share of the evidence that was read, divergence from full attention, time, cache and tokens read. A\n" +
    "budget is what is measured over all layers and heads. Full attention, random pages and the newest tokens are in every\n" +
    "table. docs/benchmark.md says what each figure means and lists the tasks.\n\n" +
    "fovea bench speed      tokens per second and cache size at given depths; against llama.cpp\n" +
    "fovea bench compare    records of several runs in one table, or a query over them",
  positionals: [],
  options,
  examples: [
    "fovea bench -m nano --methods quest,tidaldecode,snapkv --share 1/8 --length 1k,4k -o runs.jsonl",
    "fovea bench --tasks needle,facts --methods snapkv --share 1/4,1/8 --mode query-aware --plots plots",
    "fovea bench speed --depths 512,8k --against llama.cpp",
  ],
  async run(values, _positionals, io) {
    const { rows, skipped } = await benchModels(values, io);
    const drawn = values.plots === undefined ? [] : await writePlots(values.plots, rows);
    if (values.json) io.out(json({ rows, skipped, plots: drawn }, io.outTty));
    else io.out(printRows(rows, skipped));
  },
});

const PARTS: ReadonlyMap<string, Command> = new Map([
  ["speed", benchSpeed],
  ["compare", benchCompare],
]);

/** `fovea bench`, and its parts by the word that follows. */
export const bench: Command = {
  ...accuracy,
  run(args, io) {
    const [first, ...rest] = args;
    const part = first === undefined ? undefined : PARTS.get(first);
    if (part) return part.run(rest, io);
    if (first !== undefined && !first.startsWith("-"))
      throw new UsageError(
        `fovea bench measures speed or compares runs, if a word follows; not "${first}"`,
        "fovea bench --methods ... measures accuracy; fovea bench speed; fovea bench compare runs.jsonl",
      );
    return accuracy.run(args, io);
  },
};

async function benchModels(
  values: Values,
  io: Io,
): Promise<{ rows: readonly BenchRow[]; skipped: readonly Skipped[] }> {
  const { load, resolve } = await import("../../index.js");
  const tasks = await import("../../tasks/index.js");
  const chosen = tasks.tasksByName(names(values.tasks), await catalogWith(values));
  const budgets = shares(values.share);
  for (const method of values.methods) if (!method.includes("$")) resolve(method);
  const store = await openStore(values.out);
  const texts = await tasks.loadFiller(
    values.filler ?? fileURLToPath(new URL("../../../data/filler", import.meta.url)),
  );
  // a folder that marks no text as held out is meant to be used
  const marked = texts.some((text) => text.split === "held-out");
  const filler = marked ? texts : texts.map((text) => ({ ...text, split: "held-out" as const }));
  const commit = await runningCommit();
  const progress = progressLine(io);
  const skipped: Skipped[] = [];
  const records: BenchRecord[] = [];
  try {
    for (const given of values.model === undefined ? [undefined] : names(values.model)) {
      const model = await load(
        modelName(given),
        toLoadOptions({ ...values, model: given, attention: undefined }, io, progress),
      );
      try {
        const result = await tasks.runBench({
          models: [model],
          methods: values.methods,
          budgets,
          lengths: values.length ?? [1024],
          tasks: chosen,
          filler,
          cases: values.cases,
          seeds: values.seeds,
          modes: modesOf(values.mode),
          controls: !values.noControls,
          prefix: !values.noPrefix,
          ...(values.maxTokens !== undefined && { maxTokens: values.maxTokens }),
          known: store.known,
          commit,
          resident: () => process.memoryUsage.rss(),
          signal: io.signal,
          onRecord: store.add,
          onProgress: (step) => draw(progress, step),
        });
        skipped.push(...result.skipped);
        records.push(...result.records.slice(store.known.length));
      } finally {
        await model.close();
      }
    }
  } catch (error) {
    if (io.signal.aborted && values.out !== undefined) {
      progress.clear();
      io.err(`${store.count()} records are in ${values.out}; the same command goes on\n`);
    }
    throw error;
  } finally {
    progress.clear();
  }
  return { rows: tasks.summarise([...store.known, ...records]), skipped };
}

function draw(progress: ProgressLine, { done, total, label }: { done: number; total: number; label: string }): void {
  progress.note(`${bar(done, total)} ${done} / ${total} ${label}`);
}

async function catalogWith({ loogle, nolima, squad, hotpot }: Values) {
  const { taskCatalog, loogleTasks, nolimaTasks, squadTask, hotpotTask } = await import("../../tasks/index.js");
  const more = [
    ...(loogle === undefined ? [] : loogleTasks(await readText(loogle))),
    ...(nolima === undefined ? [] : nolimaTasks(await readText(nolima))),
    ...(squad === undefined ? [] : [squadTask(await readText(squad))]),
    ...(hotpot === undefined ? [] : [hotpotTask(await readText(hotpot))]),
  ];
  return new Map([...taskCatalog, ...more.map((task) => [task.name, task] as const)]);
}

const names = (given: string) =>
  given
    .split(",")
    .map((name) => name.trim())
    .filter((name) => name !== "");

const modesOf = (mode: Values["mode"]): Mode[] =>
  mode === "both" ? ["query-agnostic", "query-aware"] : [mode ?? "query-agnostic"];

/** "1/8,0.25" -> [0.125, 0.25]. */
function shares(given: string | undefined): number[] {
  return names(given ?? "").map((word) => {
    const [over, under = "1"] = word.split("/");
    const share = Number(over) / Number(under);
    if (over.trim() !== "" && share > 0 && share < 1) return share;
    throw new UsageError(`--share takes shares of the text between 0 and 1, such as 1/8 or 0.1, got "${word}"`);
  });
}
