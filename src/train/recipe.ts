import { z } from "zod";
import { FoveaError } from "../error.js";
import { openCheckpoint, type Tokenizer } from "../models/index.js";
import type { Batch, DataSource } from "./batch.js";
import { trainTokenizer } from "./bpe.js";
import { texts } from "./data.js";
import { adamW, muon, type Optimizer, sgd } from "./optimizer.js";
import { constantSchedule, cosineSchedule, type Schedule, wsdSchedule } from "./schedule.js";
import { accuracy, copying, induction, recall, type Task } from "./tasks.js";
import type { Evaluator, TrainOptions } from "./train.js";
import { decoder, fineTune, type Trainable } from "./trainable.js";

const count = z.int().min(1);
const taskOptions = z.strictObject({
  pairs: count.optional(),
  keys: count.optional(),
  values: count.optional(),
  length: count.optional(),
  symbols: count.optional(),
});

/** A training run as data: what a recipe file holds. */
export const recipeSchema = z.strictObject({
  /** Sizes of a fresh decoder. */
  model: z
    .strictObject({
      layers: count.optional(),
      width: count.optional(),
      heads: count.optional(),
      kvHeads: count.optional(),
      headDim: count.optional(),
      mlp: count.optional(),
      positions: count.optional(),
      rotaryBase: z.number().positive().optional(),
      tied: z.boolean().optional(),
      spread: z.number().positive().optional(),
      mechanism: z
        .strictObject({ name: z.string(), parameters: z.record(z.string(), z.unknown()).default({}) })
        .optional(),
    })
    .optional(),
  /** Or a checkpoint to go on from: folder, .gguf file or hf:owner/name. */
  fineTune: z.string().min(1).optional(),
  /** Layers are computed again in the backward pass: less memory, a third more time. */
  recompute: z.boolean().default(false),
  /** Weights of it that train, e.g. ["layers.*.q", "embed"]. Default: all. */
  tensors: z.array(z.string().min(1)).min(1).optional(),
  /** Of a fresh decoder: trained on the data's files, or that of a checkpoint. */
  tokenizer: z
    .union([z.string().min(1), z.strictObject({ vocabulary: count, digits: z.enum(["apart", "together"]).optional() })])
    .optional(),
  data: z.union([
    z.strictObject({
      /** Text files, or .jsonl with a "text" in each line. */
      files: z.array(z.string().min(1)).min(1),
      /** Share of the documents that measures instead of training. */
      holdOut: z.number().min(0).max(0.5).default(0),
      positions: z.strictObject({ upTo: count }).optional(),
    }),
    taskOptions.extend({ task: z.enum(["recall", "induction", "copying"]) }),
  ]),
  rows: count.default(8),
  length: count.default(256),
  steps: count,
  accumulate: count.default(1),
  optimizer: z
    .union([
      z.strictObject({
        name: z.literal("adamw").default("adamw"),
        rate: z.number().positive().optional(),
        betas: z.tuple([z.number().min(0).max(1), z.number().min(0).max(1)]).optional(),
        eps: z.number().positive().optional(),
        weightDecay: z.number().min(0).optional(),
        clip: z.number().positive().optional(),
      }),
      z.strictObject({
        name: z.literal("muon"),
        rate: z.number().positive().optional(),
        momentum: z.number().min(0).max(1).optional(),
        betas: z.tuple([z.number().min(0).max(1), z.number().min(0).max(1)]).optional(),
        weightDecay: z.number().min(0).optional(),
        clip: z.number().positive().optional(),
      }),
      z.strictObject({
        name: z.literal("sgd"),
        rate: z.number().positive().optional(),
        momentum: z.number().min(0).max(1).optional(),
        weightDecay: z.number().min(0).optional(),
        clip: z.number().positive().optional(),
      }),
    ])
    .default({ name: "adamw" }),
  schedule: z
    .strictObject({
      name: z.enum(["constant", "cosine", "wsd"]),
      warmup: z.int().min(0).optional(),
      floor: z.number().min(0).max(1).optional(),
      decay: z.int().min(0).optional(),
    })
    .default({ name: "cosine" }),
  /** Steps between measurements on held-out data. Default: a tenth of the run. */
  evaluateEvery: count.optional(),
  saveEvery: count.optional(),
  logEvery: count.optional(),
  seed: z.int().min(0).default(1),
  folder: z.string().min(1).optional(),
});

export type Recipe = z.input<typeof recipeSchema>;

/**
 * A recipe as options of `train`. File names are relative to `base`.
 *
 * @param where what error messages call it
 * @throws FoveaError `bad-input` naming the field that is wrong; `not-found` for a file that is not there; and as
 *   `openCheckpoint`
 */
export async function readRecipe(recipe: unknown, where = "the recipe", base = "."): Promise<TrainOptions> {
  const parsed = recipeSchema.safeParse(recipe);
  if (!parsed.success) {
    const issue = deepest(parsed.error.issues[0]);
    throw new FoveaError("bad-input", `${where}: ${issue.path.join(".") || "it"}: ${issue.message}`, {
      hint: "docs/training.md lists a recipe's fields",
    });
  }
  const given = parsed.data;
  if ((given.model === undefined) === (given.fineTune === undefined))
    throw new FoveaError("bad-input", `${where} has ${given.model ? "both" : "neither"} "model" and "fineTune"`, {
      hint: "give the sizes of a fresh model, or a checkpoint to go on from",
    });
  const documents = "files" in given.data ? await readDocuments(given.data.files, base) : [];
  const model = await modelOf(given, documents, where, base);
  const { data, measure } = dataOf(given, documents, model.tokenizer);
  const { steps, accumulate, seed: _, logEvery, saveEvery, folder } = given;
  return {
    model,
    data,
    steps,
    accumulate,
    optimizer: optimizerOf(given.optimizer),
    schedule: scheduleOf(given.schedule, steps),
    ...(measure && { evaluate: { every: given.evaluateEvery ?? Math.max(1, Math.ceil(steps / 10)), measure } }),
    ...(logEvery !== undefined && { logEvery }),
    saveEvery: saveEvery ?? Math.max(1, Math.ceil(steps / 10)),
    ...(folder !== undefined && { folder: resolvePath(base, folder) }),
  };
}

type Parsed = z.output<typeof recipeSchema>;

async function modelOf(given: Parsed, documents: readonly string[], where: string, base: string): Promise<Trainable> {
  const { recompute } = given;
  if (given.fineTune !== undefined) {
    const name = /^(hf:|[a-z]+:\/\/)/.test(given.fineTune) ? given.fineTune : resolvePath(base, given.fineTune);
    return fineTune(await openCheckpoint(name), { tensors: given.tensors, recompute });
  }
  const { seed } = given;
  if ("task" in given.data) {
    const { vocabulary } = taskOf(given.data, given.rows, seed);
    return decoder({ ...given.model, vocabulary, seed, recompute });
  }
  const { tokenizer } = given;
  if (tokenizer === undefined)
    throw new FoveaError("bad-input", `${where}: a fresh model needs "tokenizer"`, {
      hint: 'for example "tokenizer": { "vocabulary": 2048 }, or the folder of a checkpoint',
    });
  if (typeof tokenizer === "string") {
    const checkpoint = await openCheckpoint(resolvePath(base, tokenizer));
    await checkpoint.close();
    return decoder({ ...given.model, tokenizer: checkpoint.tokenizer, seed, recompute });
  }
  return decoder({ ...given.model, tokenizer: trainTokenizer(documents, tokenizer), seed, recompute });
}

function taskOf(data: z.output<typeof taskOptions> & { task: string }, rows: number, seed: number): Task {
  const { task, ...options } = data;
  const make = { recall, induction, copying }[task as "recall"];
  return make({ ...options, rows, seed });
}

interface Data {
  readonly data: DataSource;
  readonly measure?: (model: Evaluator) => Promise<Record<string, number>>;
}

function dataOf(given: Parsed, documents: readonly string[], tokenizer: Tokenizer): Data {
  const { rows, length, seed, data } = given;
  if ("task" in data) {
    const task = taskOf(data, rows, seed);
    return {
      data: task,
      measure: async (model) => {
        const batch = task.heldOut(0);
        const { loss, predicted } = await model.evaluate(batch);
        return { held_out_loss: loss, accuracy: accuracy(batch, predicted) };
      },
    };
  }
  const { holdOut, positions } = data;
  const options = { tokenizer, rows, length, seed, holdOut, ...(positions && { positions }) };
  const source = texts(documents, options);
  if (holdOut === 0) return { data: source };
  const held = texts(documents, { ...options, heldOut: true });
  return {
    data: source,
    measure: async (model) => ({ held_out_loss: (await model.evaluate((await held.batch(0)) as Batch)).loss }),
  };
}

function optimizerOf({ name, ...settings }: Parsed["optimizer"]): Optimizer {
  if (name === "muon") return muon(settings);
  return name === "sgd" ? sgd(settings) : adamW(settings);
}

function scheduleOf({ name, ...options }: Parsed["schedule"], steps: number): Schedule {
  if (name === "constant") return constantSchedule(options);
  return name === "cosine" ? cosineSchedule({ steps, ...options }) : wsdSchedule({ steps, ...options });
}

/** Documents of text files; a .jsonl file holds one in each line. */
async function readDocuments(files: readonly string[], base: string): Promise<string[]> {
  const { readFile } = await import("node:fs/promises");
  const documents: string[] = [];
  for (const file of files) {
    const path = resolvePath(base, file);
    const text = await readFile(path, "utf8").catch((cause: unknown) => {
      throw new FoveaError("not-found", `cannot read the data file ${path}`, {
        cause,
        hint: "files of a recipe are named from the recipe's own folder",
      });
    });
    if (!file.endsWith(".jsonl")) documents.push(text);
    else
      for (const [i, line] of text.split("\n").entries()) {
        if (line.trim() === "") continue;
        documents.push(textOf(line, `${path}:${i + 1}`));
      }
  }
  return documents;
}

function textOf(line: string, where: string): string {
  try {
    const { text } = JSON.parse(line) as { text?: unknown };
    if (typeof text === "string") return text;
  } catch {
    // told below
  }
  throw new FoveaError("bad-file", `${where} is no JSON object with a "text"`);
}

function resolvePath(base: string, path: string): string {
  return /^([/\\]|[A-Za-z]:[/\\])/.test(path) ? path : `${base}/${path}`;
}

/** The most telling issue: inside a union the one that lies deepest. */
function deepest(issue: z.core.$ZodIssue): { path: readonly PropertyKey[]; message: string } {
  if (issue.code !== "invalid_union") return issue;
  const inner = issue.errors.flat().map((one) => ({ ...deepest(one), path: [...issue.path, ...deepest(one).path] }));
  return inner.sort((a, b) => b.path.length - a.path.length)[0] ?? issue;
}
