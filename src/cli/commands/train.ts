import { readFile } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { FoveaError } from "../../error.js";
import { readRecipe, type Trained, type TrainOptions, train } from "../../train/index.js";
import { command } from "../command.js";
import { readText } from "../files.js";
import { formatNumber, json } from "../format.js";
import type { Io } from "../io.js";
import { jsonOption } from "../model.js";
import { integer, text, UsageError } from "../options.js";
import { progressLine } from "../progress.js";

export const trainCommand = command({
  name: "train",
  summary: "train a model, or a checkpoint further, as a recipe says",
  about:
    "A recipe is a JSON file, or a JavaScript module whose default export is the recipe, the options of train(), or a\n" +
    "function that returns either. Checkpoints and metrics go to the recipe's folder; a run that was stopped (Ctrl-C\n" +
    "saves) goes on from its newest checkpoint when the command is given again. A checkpoint is an ordinary model folder:\n" +
    "fovea generate -m run/step-0001000. docs/training.md lists a recipe's fields.",
  positionals: [{ name: "recipe", help: "a .json file, or a .js or .mjs module" }],
  options: {
    folder: text("where checkpoints and metrics go, instead of the recipe's folder", "folder", { short: "o" }),
    steps: integer("steps of the run, instead of the recipe's", { min: 1 }),
    threads: integer("threads", { min: 1, fallbackText: "all cores" }),
    ...jsonOption,
  },
  examples: ["fovea train recipe.json --folder runs/first", "fovea train recipe.json --steps 2000 --json"],
  async run({ folder, steps, threads, json: asJson }, [recipe], io) {
    const read = await readOptions(recipe, steps);
    const options: TrainOptions = { ...read, ...(folder !== undefined && { folder }), ...(threads && { threads }) };
    if (options.folder === undefined)
      throw new UsageError("where do checkpoints go? the recipe names no folder", "name one with --folder runs/first");
    const trained = await run(options, io);
    const last = trained.metrics.at(-1);
    if (asJson) {
      const { step, finished } = trained;
      io.out(json({ folder: options.folder, step, finished, metrics: last ?? null }, io.outTty));
    } else
      io.out(
        trained.finished
          ? `trained ${trained.step} steps, loss ${formatNumber(last?.loss ?? 0)}: ${options.folder}\n`
          : `stopped at step ${trained.step} of ${options.steps}, saved in ${options.folder}; the same command goes on\n`,
      );
    return trained.finished ? 0 : 130;
  },
});

async function run(options: TrainOptions, io: Io): Promise<Trained> {
  const progress = progressLine(io);
  let shown = 0;
  try {
    return await train({
      ...options,
      signal: io.signal,
      onProgress: ({ step, steps, loss, tokensPerSecond, secondsLeft }) => {
        if (Date.now() - shown < 200 && step < steps) return;
        shown = Date.now();
        const left = secondsLeft < 90 ? `${Math.round(secondsLeft)} s` : `${Math.round(secondsLeft / 60)} min`;
        progress.note(
          `step ${step} / ${steps}  loss ${loss.toFixed(4)}  ${Math.round(tokensPerSecond)} tokens/s  ${left} left`,
        );
      },
      onMetric: ({ step, loss, ...more }) => {
        const measured = Object.entries(more).filter(([key]) => !QUIET.has(key));
        if (measured.length === 0) return;
        progress.clear();
        io.err(
          `step ${step}: loss ${loss?.toFixed(4)}, ${measured.map(([k, v]) => `${k} ${v?.toFixed(4)}`).join(", ")}\n`,
        );
      },
    });
  } finally {
    progress.clear();
  }
}

/** Metrics that the progress line shows, or that only plots need. */
const QUIET = new Set(["norm", "rate", "tokens", "tokens_per_second"]);

async function readOptions(file: string, steps: number | undefined): Promise<TrainOptions> {
  const base = dirname(resolve(file));
  let value: unknown;
  if (/\.[cm]?js$/.test(file)) {
    await readFile(file).catch((cause: unknown) => {
      throw new FoveaError("not-found", `there is no recipe ${file}`, { cause });
    });
    const module = (await import(pathToFileURL(resolve(file)).href)) as { default?: unknown };
    value = typeof module.default === "function" ? await (module.default as () => unknown)() : module.default;
    if (isOptions(value)) return { ...value, ...(steps !== undefined && { steps }) };
  } else {
    const text = await readText(file);
    try {
      value = JSON.parse(text);
    } catch (cause) {
      throw new FoveaError("bad-file", `${file} is no JSON: ${(cause as Error).message}`, { cause });
    }
  }
  const withSteps = steps !== undefined && typeof value === "object" ? { ...value, steps } : value;
  return readRecipe(withSteps, file, base);
}

function isOptions(value: unknown): value is TrainOptions {
  const data = (value as { data?: { batch?: unknown } } | undefined)?.data;
  return typeof data?.batch === "function";
}
