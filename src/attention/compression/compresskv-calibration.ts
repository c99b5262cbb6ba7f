import type { Model, Reducer } from "../../engine/api.js";
import { aborted, FoveaError } from "../../error.js";
import type { Calibration } from "../calibration.js";
import type { HeadList } from "../heads/head-list.js";
import type { RetrievalCase } from "../heads/head-scores.js";
import { allHeads, toHeadList } from "../heads/search.js";
import { method } from "../method.js";
import type { HeadTable } from "../observers/head-table.js";
import { rowMean, summed } from "../observers/row-mean.js";
import type { HeadName } from "../string.js";
import { endsTurn, inPrompt } from "../turn.js";
import { chosenEntries, votingHeads } from "./compresskv.js";

/** A prompt that hides a needle and ends in the question for it. */
export interface NeedlePrompt {
  readonly ids: readonly number[];
  /** Tokens of the needle, [start, end). */
  readonly needle: readonly [start: number, end: number];
}

interface CalibrationOptions {
  /** The command that makes the file anew; a mismatch shows it. */
  readonly madeBy: string;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: { readonly done: number; readonly total: number }) => void;
}

/**
 * Semantic retrieval score: in each step that writes a token of the needle, the weight that a head puts on the whole
 * needle, once for each of its tokens that equals the written one; summed over the answer.
 */
export function semanticRetrievalScore({ ids, needle: [start, end], answer }: RetrievalCase): Reducer<HeadTable> {
  const needle = ids.slice(start, end);
  const rows: [number, number] = [answer - 1, ids.length - 1];
  const mean = rowMean("semantic-retrieval", { rows }, ({ weights, keys, position }) => {
    const matches = needle.filter((id) => id === ids[position + 1]).length;
    if (matches === 0) return 0;
    let mass = 0;
    for (let i = 0; i < keys.length; i++) if (keys[i] >= start && keys[i] < end) mass += weights[i];
    return matches * mass;
  });
  return summed(mean, rows[1] - rows[0]);
}

/**
 * Semantic retrieval heads of a model, best first, from prompts with needles: each is answered greedily, and counts where
 * more than half of the needle's words come back. Compare a list of the same prompts with another seed before trusting it.
 *
 * @param options.keep heads of each layer that the list holds; default 8
 * @throws FoveaError `not-found` where the model finds no needle
 */
export async function semanticRetrievalHeads(
  model: Model,
  prompts: readonly NeedlePrompt[],
  options: CalibrationOptions & { readonly keep?: number; readonly maxTokens?: number },
): Promise<HeadList> {
  const { shape } = model.info;
  const { keep = 8, maxTokens = 50, signal } = options;
  const sums = new Float64Array(shape.layers * shape.heads);
  let counted = 0;
  for (const [done, { ids, needle }] of prompts.entries()) {
    if (signal?.aborted) throw aborted(signal);
    const told = await model.generate(ids, { maxTokens, signal }).result;
    if (recall(model.tokenizer.decode(ids.slice(...needle)), told.text) > 0.5) {
      const found = { ids: [...ids, ...told.ids], needle, answer: ids.length };
      const { score } = await model.observe(found.ids, { score: semanticRetrievalScore(found) }, { signal });
      score.data.forEach((x, i) => {
        sums[i] += x;
      });
      counted++;
    }
    options.onProgress?.({ done: done + 1, total: prompts.length });
  }
  if (counted === 0)
    throw new FoveaError("not-found", `the model repeats none of the ${prompts.length} needles that it is asked for`, {
      hint: "shorter texts or plainer needles; a model that finds none has no heads to find",
    });
  const ranked = allHeads(shape)
    .map((head, i) => ({ ...head, value: sums[i] / counted }))
    .sort((a, b) => b.value - a.value || a.layer - b.layer || a.head - b.head);
  const rank = new Map<number, number>();
  const best = ranked.filter(({ layer }) => {
    rank.set(layer, (rank.get(layer) ?? 0) + 1);
    return (rank.get(layer) as number) <= keep;
  });
  return toHeadList(best, { model: shape, name: "semantic retrieval", keep: best.length, madeBy: options.madeBy });
}

/** ROUGE-1 recall: the share of a text's words that another one holds, each word as often as it stands there. */
export function recall(wanted: string, given: string): number {
  const words = (text: string): string[] => text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  const left = new Map<string, number>();
  for (const word of words(given)) left.set(word, (left.get(word) ?? 0) + 1);
  const all = words(wanted);
  const hits = all.filter((word) => {
    const n = left.get(word) ?? 0;
    left.set(word, n - 1);
    return n > 0;
  });
  return all.length > 0 ? hits.length / all.length : 0;
}

/** Prompts of a kind of task, for the layers' errors: each kind counts alike. */
export interface TaskPrompts {
  readonly task: string;
  readonly prompts: readonly (readonly number[])[];
}

/**
 * How much each layer's output changes when its cache is evicted, as weights [L] that sum to 1. Each prompt is answered
 * twice: in full, and with each layer reading only what CompressKV would keep; the second run measures a layer's output
 * against the first one's and passes the first one's on, so that errors do not add up through the layers.
 *
 * @param options.tokens what every layer keeps; default 32
 * @throws FoveaError `unsupported` for a model in a worker: load it with `worker: false`
 */
export async function evictionErrors(
  model: Model,
  tasks: readonly TaskPrompts[],
  options: CalibrationOptions & {
    readonly heads?: readonly HeadName[];
    readonly voters?: number;
    readonly tokens?: number;
    readonly maxTokens?: number;
  },
): Promise<Calibration> {
  const { shape } = model.info;
  const { tokens = 32, maxTokens = 32, signal, heads = [], voters = 4 } = options;
  const voting = votingHeads(heads, shape, voters);
  const mean = new Float64Array(shape.layers);
  const total = tasks.reduce((n, { prompts }) => n + prompts.length, 0);
  let done = 0;
  for (const { task, prompts } of tasks) {
    const errors = new Float64Array(shape.layers);
    for (const ids of prompts) {
      if (signal?.aborted) throw aborted(signal);
      const outputs = new Map<string, Float32Array>();
      const run = { maxTokens, ignoreEos: true, signal };
      await model.with(recordOutputs(outputs)).generate(ids, run).result;
      await model.with(measureErrors(outputs, voting, tokens, errors)).generate(ids, run).result;
      options.onProgress?.({ done: ++done, total });
    }
    const sum = errors.reduce((a, b) => a + b, 0);
    if (!(sum > 0))
      throw new FoveaError("bad-input", `nothing is evicted from the prompts of ${task}`, {
        hint: `give prompts of well over ${tokens} tokens`,
      });
    for (let l = 0; l < shape.layers; l++) mean[l] += errors[l] / sum / tasks.length;
  }
  return { model: shape.hash, method: "compresskv", layers: [...mean], madeBy: options.madeBy };
}

const outputKey = (layer: number, position: number): string => `${layer} ${position}`;

/** Keeps attention's output of every decoded row. */
function recordOutputs(outputs: Map<string, Float32Array>) {
  return method({
    name: "record-outputs",
    attnOut({ phase, layer, positions, x }) {
      if (phase === "decode") outputs.set(outputKey(layer, positions[0]), x.slice());
    },
  })();
}

/** Reads what would be kept, adds up relative errors of attention's output, and passes the full output on. */
function measureErrors(
  outputs: ReadonlyMap<string, Float32Array>,
  voting: readonly (readonly number[])[],
  tokens: number,
  errors: Float64Array,
) {
  const kept = new Map<number, { readonly entries: Int32Array; readonly prompt: number }>();
  return method({
    name: "measure-errors",
    async retain(step) {
      const prompt = step.view.length(0);
      if (step.when !== "after" || !inPrompt(step) || !endsTurn(step) || prompt <= tokens) return;
      const entries = await chosenEntries(step, voting[step.layer], tokens, { window: 8, kernel: 5 });
      kept.set(step.layer, { entries, prompt });
    },
    select(step) {
      const own = kept.get(step.layer);
      if (step.phase !== "decode" || !own) return [{}];
      const generated = step.view.length(0) - own.prompt;
      const all = Int32Array.from({ length: own.entries.length + generated }, (_, i) =>
        i < own.entries.length ? own.entries[i] : own.prompt + i - own.entries.length,
      );
      return [{ entries: { tokens: all } }];
    },
    attnOut({ phase, layer, positions, x }) {
      const full = phase === "decode" ? outputs.get(outputKey(layer, positions[0])) : undefined;
      if (!full) return;
      errors[layer] += relativeError(x, full);
      x.set(full);
    },
  })();
}

/** |x - wanted| / (|wanted| + 1e-5), by the norm of all numbers. */
function relativeError(x: Float32Array, wanted: Float32Array): number {
  let off = 0;
  let size = 0;
  for (let i = 0; i < x.length; i++) {
    off += (x[i] - wanted[i]) ** 2;
    size += wanted[i] ** 2;
  }
  return Math.sqrt(off) / (Math.sqrt(size) + 1e-5);
}
