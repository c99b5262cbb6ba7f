import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { FoveaError } from "../../error.js";
import type { Filler, Tried, Tuned } from "../../tasks/index.js";
import { openStore } from "../bench/store.js";
import { command } from "../command.js";
import { readText, writeAtomic } from "../files.js";
import { formatBytes, formatNumber, json, table } from "../format.js";
import type { Io } from "../io.js";
import { jsonOption, loadOptions, modelName, toLoadOptions } from "../model.js";
import { choice, decimal, integer, methodList, type OptionValues, text, textOr } from "../options.js";
import { svgPlot } from "../plot.js";
import { bar, progressLine } from "../progress.js";

const { attention: _, config: _config, ...base } = loadOptions;

const options = {
  ...base,
  docs: text("folder of your own texts (.txt, .md): needles are planted into them", "folder", {
    fallbackText: "the package's own prose",
  }),
  goal: choice("what is to become less: time for a token, or the cache", ["speed", "memory"], {
    fallbackText: "speed",
  }),
  keep: decimal("share of full attention's accuracy that must be kept", { min: 0.01, max: 1, fallbackText: "0.99" }),
  allow: decimal("what is not the goal, cache or time, may grow by this factor", { min: 0.01, fallbackText: "1.03" }),
  length: integer("tokens of a text with its question", { min: 256, fallback: 4096 }),
  minutes: decimal("time after which nothing new is begun", { min: 0.01, fallbackText: "20" }),
  methods: methodList("methods to try, separated by commas", []),
  tasks: textOr("tasks that settings are judged by, as in fovea bench", "tasks", "documents/single"),
  cases: integer("questions for each task that the recommendation rests on", { min: 1, fallback: 100 }),
  screen: integer("questions for each task that a setting is tried with first", { min: 1, fallback: 12 }),
  out: textOr("folder of what is found; a search that was stopped goes on there", "folder", "tuned", { short: "o" }),
  ...jsonOption,
};

type Values = OptionValues<typeof options>;

export const tuneCommand = command({
  name: "tune",
  summary: "find the method and the budget that save most on your own text and keep the answers",
  about:
    "Plants needles with known answers into your text and searches methods and budgets for the setting that takes least time\n" +
    "for a token (or least cache) and still answers as full attention does. The cache is int8 unless --cache says otherwise,\n" +
    "for full attention too. Writes recommendation.json, config.json, which generate, ask and other commands take with\n" +
    "--config, front.svg and runs.jsonl.",
  positionals: [],
  options,
  examples: [
    "fovea tune --docs ./handbook --goal speed --length 16k --minutes 30",
    "fovea tune -m ./model --goal memory --keep 0.95 --methods snapkv,h2o,tova -o tuned",
    'fovea ask report.txt "Who signs the orders?" --config tuned/config.json',
  ],
  async run(values, _positionals, io) {
    const tuned = await search(values, io);
    const files = await write(values, tuned);
    if (values.json) io.out(json({ ...tuned, files }, io.outTty));
    else io.out(describe(tuned, files));
    return 0;
  },
});

async function search(values: Values, io: Io): Promise<Tuned> {
  const { load, resolve } = await import("../../index.js");
  const tasks = await import("../../tasks/index.js");
  const chosen = tasks.tasksByName(values.tasks.split(",").map((name) => name.trim()));
  const methods = values.methods.length > 0 ? values.methods : undefined;
  for (const method of methods ?? []) if (!method.includes("$")) resolve(method);
  const texts = values.docs === undefined ? await ownProse() : await readTexts(values.docs);
  const store = await openStore(join(values.out, "runs.jsonl"));
  const progress = progressLine(io);
  const model = await load(
    modelName(values.model),
    toLoadOptions({ ...values, attention: undefined, cache: values.cache ?? "int8" }, io, progress),
  );
  const { hash } = model.info.shape;
  const other = store.known.find((r) => r.model_hash !== hash || r.length !== values.length);
  try {
    if (other !== undefined)
      throw new FoveaError("bad-input", `${values.out} holds a search of ${other.model} at ${other.length} tokens`, {
        hint: "name another folder with --out, or remove this one",
      });
    return await tasks.tune({
      ...{ model, texts, tasks: chosen, length: values.length, cases: values.cases, screen: values.screen },
      ...{ goal: values.goal ?? "speed", keep: values.keep ?? 0.99, time: (values.minutes ?? 20) * 60_000 },
      ...(methods && { methods }),
      ...(values.allow !== undefined && { allow: values.allow }),
      ...{ known: store.known, onRecord: store.add, signal: io.signal },
      onProgress: ({ done, total, label }) => progress.note(`${bar(done, total)} ${label}`),
    });
  } catch (error) {
    progress.clear();
    if (io.signal.aborted) io.err(`${store.count()} records are in ${values.out}; the same command goes on\n`);
    throw error;
  } finally {
    progress.clear();
    await model.close();
  }
}

async function ownProse(): Promise<Filler[]> {
  const { loadFiller } = await import("../../tasks/index.js");
  return loadFiller(fileURLToPath(new URL("../../../data/filler", import.meta.url)));
}

/** The texts of a folder and its folders, as prose to plant needles in. */
async function readTexts(folder: string): Promise<Filler[]> {
  const { filler } = await import("../../tasks/index.js");
  let names: string[];
  try {
    names = (await readdir(folder, { recursive: true })).filter((name) => /\.(txt|md)$/i.test(name)).sort();
  } catch (cause) {
    throw new FoveaError("not-found", `--docs: cannot read the folder ${folder}`, { cause });
  }
  const texts: Filler[] = [];
  for (const name of names) {
    const found = await readText(join(folder, name));
    try {
      texts.push(filler(name, found, "held-out"));
    } catch (error) {
      // a file without a sentence is no prose
      if (!(error instanceof FoveaError)) throw error;
    }
  }
  if (texts.length > 0) return texts;
  throw new FoveaError("bad-input", `--docs: ${folder} holds no .txt or .md file with a sentence in it`);
}

async function write({ out, cache, precision }: Values, tuned: Tuned): Promise<string[]> {
  const files: Record<string, string> = {
    "recommendation.json": `${JSON.stringify(tuned, undefined, 2)}\n`,
    "front.svg": front(tuned),
  };
  if (tuned.best !== undefined) {
    const config = { attention: tuned.best.method, cache: cache ?? "int8", ...(precision && { precision }) };
    files["config.json"] = `${JSON.stringify(config, undefined, 2)}\n`;
  }
  const paths: string[] = [];
  for (const [name, content] of Object.entries(files)) {
    await writeAtomic(join(out, name), content);
    paths.push(join(out, name));
  }
  return paths;
}

/** Time against cache: settings that hold on the front, others that hold, those that do not. */
function front({ full, tried, length }: Tuned): string {
  const point = (one: Tried) => [one.cache_bytes / 1e6, one.ms_per_token] as const;
  const of = (wanted: (one: Tried) => boolean) =>
    tried
      .filter(wanted)
      .map(point)
      .sort((a, b) => a[0] - b[0]);
  return svgPlot(
    [
      { name: "full attention", points: [point(full)] },
      { name: "keep, best", points: of((one) => one.front) },
      ...tried
        .filter((one) => !one.front)
        .map((one) => ({ name: `${one.holds ? "keeps" : "loses"}: ${one.method}`, points: [point(one)] })),
    ].slice(0, 18),
    { title: `What keeps the answers at ${length} tokens`, x: "cache, MB", y: "milliseconds a token", dots: true },
  );
}

function describe(tuned: Tuned, files: readonly string[]): string {
  const { best, full, tried, goal, keep, judged_by, stopped } = tuned;
  const rows = [full, ...tried].map((one) => [
    one.method,
    String(one.cases),
    `${(100 * one.accuracy).toFixed(1)}%`,
    `${(100 * one.kept).toFixed(1)}%`,
    formatNumber(one.ms_per_token),
    formatBytes(one.cache_bytes),
    formatNumber(one.tokens_read),
    one.method === "full" ? "" : one.front ? "best" : one.holds ? "keeps" : "loses",
  ]);
  const heads = ["setting", "questions", "right", "kept", "ms/token", "cache", "tokens read", ""];
  const said = judged_by === "accuracy" ? "right answers" : "replies that are full attention's own";
  const advice =
    best === undefined
      ? `Nothing that was tried keeps ${100 * keep}% of the ${said} and saves ${goal === "speed" ? "time without a larger cache" : "cache without more time"}.`
      : [
          `Use ${best.method}`,
          `It keeps ${(100 * best.kept).toFixed(1)}% of the ${said} (${best.cases} questions), is ${formatNumber(best.speedup)} times as fast`,
          `a token and holds a cache of 1/${formatNumber(best.shrink)} of full attention's (${formatBytes(best.cache_bytes)}).`,
        ].join("\n");
  const weak =
    judged_by === "agreement"
      ? `\nFull attention answers ${(100 * full.accuracy).toFixed(0)}% of the questions, too few to judge by: this compares replies only.`
      : "";
  const missing = tuned.skipped.map(({ method, reason }) => `\ncould not run ${method}: ${reason}`).join("");
  const short = stopped ? "\nThe time ended the search; the same command with more --minutes goes on." : "";
  return `${table(heads, rows, [1, 2, 3, 4, 5, 6])}\n${advice}${weak}${short}${missing}\n\nwrote ${files.join(", ")}\n`;
}
