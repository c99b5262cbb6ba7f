import { FoveaError } from "../error.js";
import type { WeightSource } from "../graph/index.js";
import { convert, openCheckpoint, openSafetensors, writeSafetensors } from "../models/index.js";
import type { Trainable } from "./trainable.js";

/** What a checkpoint says about the run, beside the weights. */
export interface RunState {
  /** Steps that were taken. */
  readonly step: number;
  /** Tokens that were read in them. */
  readonly tokens: number;
  /** What must be the same for a run to go on: optimiser, data, seed and the like, as text. */
  readonly run: string;
}

const STATE = "training.json";
const MOMENTS = "training.safetensors";
const NAME = /^step-(\d+)$/;

/**
 * Writes `folder/step-N`: the model as a folder of Hugging Face's layout, which any program loads, and beside it the
 * optimiser's state. It is written under another name and renamed when it is whole; then older ones are removed.
 */
export async function saveCheckpoint(
  folder: string,
  model: Trainable,
  weights: WeightSource,
  values: ReadonlyMap<string, { readonly data: Float32Array; readonly dims: readonly number[] }>,
  state: RunState,
  keep = 2,
): Promise<string> {
  const { mkdir, rename, rm, writeFile } = await import("node:fs/promises");
  await mkdir(folder, { recursive: true });
  const path = `${folder}/step-${String(state.step).padStart(7, "0")}`;
  const temporary = `${path}.${process.pid}.tmp`;
  try {
    const { config, tokenizer, chatTemplate, name } = model;
    await convert({ name, config, weights, tokenizer, chatTemplate }, temporary, { type: "f32" });
    const trained = new Set(model.trained);
    const moments = [...values].filter(([key]) => !trained.has(key));
    await writeSafetensors(
      `${temporary}/${MOMENTS}`,
      moments.map(([key, { data, dims }]) => ({ name: key, dtype: "F32", shape: dims, data })),
    );
    await writeFile(`${temporary}/${STATE}`, `${JSON.stringify({ format: "fovea-training", ...state }, null, 1)}\n`);
    await rm(path, { recursive: true, force: true });
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    throw error;
  }
  const older = (await checkpoints(folder)).slice(0, -keep);
  for (const { path: old } of older) await rm(old, { recursive: true, force: true });
  return path;
}

/** Checkpoints of a run, oldest first. Only whole ones have such a name. */
export async function checkpoints(folder: string): Promise<{ readonly step: number; readonly path: string }[]> {
  const { readdir } = await import("node:fs/promises");
  const names = await readdir(folder).catch(() => [] as string[]);
  return names
    .flatMap((name) => {
      const step = NAME.exec(name)?.[1];
      return step === undefined ? [] : [{ step: Number(step), path: `${folder}/${name}` }];
    })
    .sort((a, b) => a.step - b.step);
}

/** A run as it was when a checkpoint was written. */
export interface Resumed {
  readonly state: RunState;
  /** Trained parameters and the optimiser's state by name. */
  readonly values: ReadonlyMap<string, Float32Array>;
}

/**
 * The newest checkpoint of a run, or undefined where there is none. Half-written ones of a run that was killed are
 * removed.
 *
 * @throws FoveaError `mismatch` where the checkpoint is of another run, `bad-file` for a damaged one
 */
export async function loadCheckpoint(folder: string, model: Trainable, run: string): Promise<Resumed | undefined> {
  const { readdir, readFile, rm } = await import("node:fs/promises");
  const left = (await readdir(folder).catch(() => [] as string[])).filter((name) => /^step-\d+\.\d+\./.test(name));
  for (const name of left) await rm(`${folder}/${name}`, { recursive: true, force: true });
  const newest = (await checkpoints(folder)).at(-1);
  if (!newest) return undefined;
  const state = parseState(await readFile(`${newest.path}/${STATE}`, "utf8").catch(() => ""), newest.path);
  if (state.run !== run) {
    const differing = difference(state.run, run);
    throw new FoveaError("mismatch", `${newest.path} is of another run: ${differing}`, {
      hint: "train into another folder, or remove this one to begin anew",
    });
  }
  const values = new Map<string, Float32Array>();
  const checkpoint = await openCheckpoint(newest.path);
  try {
    await checkpoint.weights.prefetch?.(model.trained);
    for (const name of model.trained) {
      const value = checkpoint.weights.get(name);
      if (value.kind !== "float" || !(value.data instanceof Float32Array))
        throw new FoveaError("bad-file", `${newest.path}: ${name} is no float32 tensor`);
      values.set(name, value.data.slice());
    }
  } finally {
    await checkpoint.close();
  }
  const moments = await openSafetensors(`${newest.path}/${MOMENTS}`);
  try {
    for (const name of moments.tensors.keys()) values.set(name, await moments.read(name));
  } finally {
    await moments.close();
  }
  return { state, values };
}

function parseState(text: string, path: string): RunState {
  try {
    const { format, step, tokens, run } = JSON.parse(text) as Record<string, unknown>;
    if (
      format === "fovea-training" &&
      typeof step === "number" &&
      typeof tokens === "number" &&
      typeof run === "string"
    )
      return { step, tokens, run };
  } catch {
    // told below
  }
  throw new FoveaError("bad-file", `${path}/${STATE} is missing or damaged`, {
    hint: "remove this checkpoint folder to go on from the one before it",
  });
}

/** The first thing in which two runs differ, in words. */
function difference(before: string, now: string): string {
  const [a, b] = [before, now].map((text) => JSON.parse(text) as Record<string, unknown>);
  const key = Object.keys({ ...a, ...b }).find((k) => JSON.stringify(a[k]) !== JSON.stringify(b[k]));
  return key === undefined ? "it differs" : `${key} was ${JSON.stringify(a[key])} and is now ${JSON.stringify(b[key])}`;
}
