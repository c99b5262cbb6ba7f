import { existsSync } from "node:fs";
import type { LoadOptions, Model } from "../engine/api.js";
import { FoveaError } from "../error.js";
import { EMBEDDED, embeddedUrl, type OpenOptions } from "../models/index.js";
import { readText } from "./files.js";
import type { Io } from "./io.js";
import { bytes, choice, flag, integer, integers, type OptionValues, text, UsageError } from "./options.js";
import { type ProgressLine, progressLine } from "./progress.js";

export const modelOption = {
  model: text("a folder, a .gguf or .safetensors file, or hf:owner/name", "model", {
    short: "m",
    fallbackText: "$FOVEA_MODEL, else nano",
  }),
};

export const loadOptions = {
  ...modelOption,
  attention: text('methods to attach, e.g. "streaming-llm(sinks=4,window=512)"', "methods", { short: "a" }),
  precision: choice("weights of the dense layers", ["float32", "int8", "int4"]),
  cache: choice("cached keys and values", ["float32", "int8"]),
  threads: integer("threads of dense layers and kernels", { min: 1, max: 1024, fallbackText: "all cores" }),
  memory: bytes("most bytes that weights, caches and work areas may take, e.g. 2GB"),
  context: integer("positions that a text may take", { min: 1, fallbackText: "the model's own" }),
  provider: choice("where the dense layers run", ["cpu", "webgpu", "cuda", "auto"]),
  cacheFolder: text("folder of downloaded models", "folder"),
  config: text("options from a file, such as fovea tune writes; those given here win", "file"),
};

export const promptOptions = {
  prompt: text("the text", "text", { short: "p" }),
  file: text("read the text from a file; - is stdin", "file", { short: "f" }),
  ids: integers("token ids instead of a text, e.g. 1,403,407", "ids", { min: 0 }),
};

export const jsonOption = { json: flag("print JSON") };

/** The model that -m names; without -m the one that $FOVEA_MODEL names, or the first embedded one that is there. */
export function modelName(given: string | undefined): string {
  if (given !== undefined && given.trim() === "") throw new UsageError("-m names no model");
  const named = given ?? (process.env.FOVEA_MODEL || undefined);
  const found = named ?? EMBEDDED.find((name) => existsSync(embeddedUrl(name)));
  if (found !== undefined) return found;
  throw new FoveaError("not-found", "no model was named and this installation has no embedded one", {
    hint: "name one with -m: a folder, a .gguf file or hf:owner/name",
  });
}

/** What `load` takes, from the command line. */
export function toLoadOptions(
  values: Omit<OptionValues<typeof loadOptions>, "config">,
  io: Io,
  progress: ProgressLine,
): LoadOptions {
  const { precision, cache, threads, memory, context, provider, cacheFolder } = values;
  return {
    ...(precision && { precision }),
    ...(cache && { cache }),
    ...(threads !== undefined && { threads }),
    ...(memory !== undefined && { memory }),
    ...(context !== undefined && { context }),
    ...(provider && { provider }),
    ...(cacheFolder && { cacheFolder }),
    signal: io.signal,
    onProgress: (step) => progress.report(step),
  };
}

/** What `openCheckpoint` takes, for commands that need no engine. */
export function openOptions(cacheFolder: string | undefined, io: Io, progress: ProgressLine): OpenOptions {
  return {
    ...(cacheFolder && { cacheFolder }),
    signal: io.signal,
    onProgress: (step) => progress.report({ stage: "download", ...step }),
  };
}

/** Loads the model that the options name, with its methods, hands it to `use` and closes it whatever happens. */
export async function withModel<T>(
  values: OptionValues<typeof loadOptions>,
  io: Io,
  use: (model: Model, progress: ProgressLine) => Promise<T>,
): Promise<T> {
  const progress = progressLine(io);
  const name = modelName(values.model);
  const { load, resolve } = await import("../index.js");
  // A mistake in the method string is better told before gigabytes are read.
  if (values.attention !== undefined) resolve(values.attention);
  try {
    const base = await load(name, toLoadOptions(values, io, progress));
    try {
      return await use(values.attention === undefined ? base : base.with(values.attention), progress);
    } finally {
      await base.close();
    }
  } finally {
    progress.clear();
  }
}

/** The prompt that the options give: a text or token ids. Exactly one of -p, --file and --ids. */
export async function readPrompt(values: OptionValues<typeof promptOptions>, io: Io): Promise<string | number[]> {
  const given = [values.prompt, values.file, values.ids].filter((value) => value !== undefined).length;
  if (given > 1) throw new UsageError("give one of -p, --file and --ids, not several");
  if (values.ids !== undefined) return values.ids;
  const prompt = values.prompt ?? (values.file === undefined ? undefined : await readInput(values.file, io));
  if (prompt === undefined) {
    throw new UsageError("no text was given", 'say -p "a text", --file notes.txt, --file - (stdin) or --ids 1,2,3');
  }
  if (prompt === "") throw new UsageError("the text is empty");
  return prompt;
}

async function readInput(file: string, io: Io): Promise<string> {
  return file === "-" ? io.input() : readText(file);
}
