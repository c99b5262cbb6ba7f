import { FoveaError } from "../error.js";
import { toFloats, type WeightSource } from "../graph/index.js";
import { convert, type ExportOptions, exportModel, type ModelConfig } from "../models/index.js";
import type { Batch, DataSource } from "./batch.js";
import { loadCheckpoint, type Resumed, saveCheckpoint } from "./checkpoint.js";
import type { Loss } from "./losses.js";
import { type Metric, MetricsFile } from "./metrics.js";
import { adamW, type Optimizer } from "./optimizer.js";
import { constantSchedule, type Schedule } from "./schedule.js";
import { TrainingStep } from "./step.js";
import type { Trainable } from "./trainable.js";

/** Where a run stands. */
export interface TrainingProgress {
  /** Steps taken. */
  readonly step: number;
  readonly steps: number;
  readonly loss: number;
  readonly tokensPerSecond: number;
  readonly secondsLeft: number;
}

/** Options of `train`. */
export interface TrainOptions {
  readonly model: Trainable;
  readonly data: DataSource;
  /** Steps of the run, those before a stop included. */
  readonly steps: number;
  /** Default `adamW()`. */
  readonly optimizer?: Optimizer;
  /** Factor on the optimiser's rate at each step. Default: the full rate. */
  readonly schedule?: Schedule;
  /** Default `nextTokenLoss`. */
  readonly loss?: Loss;
  /** Batches whose gradients add up to one step. Default 1. */
  readonly accumulate?: number;
  /** Folder of checkpoints and metrics; a run that was stopped goes on from its newest checkpoint. Default: none. */
  readonly folder?: string;
  /** Steps between checkpoints. Default: only at the end and when stopped. */
  readonly saveEvery?: number;
  /** Steps between lines of metrics. Default 10. */
  readonly logEvery?: number;
  /** Measures something more, e.g. accuracy on held-out data, every `every` steps and at the end. */
  readonly evaluate?: {
    readonly every: number;
    measure(trainer: Evaluator, step: number): Promise<Readonly<Record<string, number>>>;
  };
  /** Default: the machine's cores. */
  readonly threads?: number;
  /** When it fires, the run saves a checkpoint (with a folder) and ends. */
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: TrainingProgress) => void;
  readonly onMetric?: (metric: Metric) => void;
}

/** The model as it is, for measuring during a run. */
export interface Evaluator {
  /** The loss of a batch, and the most likely token of each row [B * T]. */
  evaluate(batch: Batch): Promise<{ loss: number; predicted: Int32Array }>;
}

/** A trained model. */
export interface Trained {
  readonly config: ModelConfig;
  readonly weights: WeightSource;
  /** Steps taken. */
  readonly step: number;
  /** False where the signal ended the run early. */
  readonly finished: boolean;
  readonly metrics: readonly Metric[];
  /** Writes a folder in Hugging Face's layout, or a `.gguf` file; `overwrite` replaces one that is there. */
  save(path: string, options?: { overwrite?: boolean }): Promise<void>;
  /** Writes an ONNX file with the ids in and the logits out. */
  export(file: string, options?: ExportOptions): Promise<void>;
}

/** Milliseconds after which the event loop gets its turn between steps. */
const BREATH = 50;

/**
 * Trains a model: one session run a step, forward, gradients and update. It runs in the calling thread, which it blocks
 * for a step at a time.
 *
 * @example
 * const trained = await train({ model: decoder({ layers: 2 }), data: recall({ pairs: 8 }), steps: 500 });
 * await trained.save("./model");
 *
 * @throws FoveaError `bad-input`, `bad-shape` for data that does not fit the model; `mismatch` where the folder holds
 *   another run; `bad-input` when the loss is no number any more
 */
export async function train(options: TrainOptions): Promise<Trained> {
  const { model, data, steps, optimizer = adamW(), schedule = constantSchedule(), signal, folder } = options;
  const { accumulate = 1, logEvery = 10, saveEvery = Number.POSITIVE_INFINITY } = options;
  for (const [name, value] of Object.entries({ steps, accumulate, logEvery, saveEvery }))
    if (!(value >= 1)) throw new FoveaError("bad-input", `${name} is ${value}; expected a whole number of at least 1`);
  if (data.vocabulary > model.config.vocab)
    throw new FoveaError("bad-input", `${data.name} has ${data.vocabulary} tokens, the model ${model.config.vocab}`, {
      hint: "give the model the vocabulary of the data's tokenizer",
    });
  const run = describe(options, optimizer, accumulate);
  const resumed = folder === undefined ? undefined : await loadCheckpoint(folder, model, run);
  const step = await firstStep(model, optimizer, options, resumed);
  const log = folder === undefined ? undefined : await openMetrics(folder, resumed);
  const metrics: Metric[] = [];
  const note = async (metric: Metric): Promise<void> => {
    metrics.push(metric);
    options.onMetric?.(metric);
    await log?.write(metric);
  };
  let { step: taken, tokens } = resumed?.state ?? { step: 0, tokens: 0 };
  const save = async (): Promise<void> => {
    if (folder !== undefined)
      await saveCheckpoint(folder, model, step.weights, step.values, { step: taken, tokens, run });
  };
  const pace = new Pace();
  let saved = taken;
  let breath = performance.now();
  try {
    while (taken < steps && !signal?.aborted) {
      const batches: Batch[] = [];
      for (let i = 0; i < accumulate; i++) batches.push(await data.batch(taken * accumulate + i));
      const rate = optimizer.rate * schedule(taken);
      const { loss, norm } = await step.run(batches, rate, taken + 1);
      taken++;
      if (!Number.isFinite(loss) || !Number.isFinite(norm))
        throw new FoveaError("bad-input", `the loss is ${loss} and the gradients' norm ${norm} at step ${taken}`, {
          hint: "a smaller learning rate, a longer warm-up or stronger clipping keeps it finite; the last checkpoint is whole",
        });
      const count = batches.reduce((sum, b) => sum + b.rows * b.length, 0);
      tokens += count;
      pace.add(count);
      const { every = Number.POSITIVE_INFINITY, measure } = options.evaluate ?? {};
      const measured = measure && (taken % every === 0 || taken === steps) ? await measure(step, taken) : undefined;
      if (measured || taken % logEvery === 0 || taken === steps)
        await note({ step: taken, loss, norm, rate, tokens, tokens_per_second: Math.round(pace.rate), ...measured });
      options.onProgress?.({
        step: taken,
        steps,
        loss,
        tokensPerSecond: pace.rate,
        secondsLeft: ((steps - taken) * count) / Math.max(1e-9, pace.rate),
      });
      if (taken - saved >= saveEvery) {
        await save();
        saved = taken;
      }
      if (performance.now() - breath > BREATH) {
        await new Promise((resolve) => setTimeout(resolve, 0));
        breath = performance.now();
      }
    }
    if (saved < taken) await save();
  } finally {
    await step.release();
  }
  return result(model, step.weights, taken, taken >= steps, metrics);
}

async function firstStep(
  model: Trainable,
  optimizer: Optimizer,
  { loss, threads }: TrainOptions,
  resumed: Resumed | undefined,
): Promise<TrainingStep> {
  const { config, weights, trained } = model;
  await weights.prefetch?.(trained);
  const first = (name: string): Float32Array | undefined => {
    const kept = resumed?.values.get(name);
    if (kept || !trained.includes(name)) return kept;
    return toFloats(weights.get(name));
  };
  return new TrainingStep(
    { config, build: (length) => model.build(length), weights, trained, optimizer, loss, threads },
    first,
  );
}

async function openMetrics(folder: string, resumed: Resumed | undefined): Promise<MetricsFile> {
  const { mkdir } = await import("node:fs/promises");
  await mkdir(folder, { recursive: true });
  return MetricsFile.open(`${folder}/metrics.jsonl`, resumed?.state.step ?? 0);
}

/** What must not change when a run goes on. */
function describe({ model, data }: TrainOptions, optimizer: Optimizer, accumulate: number): string {
  const { name, rate, betas, clip } = optimizer;
  return JSON.stringify({
    data: data.name,
    optimizer: { name, rate, betas, clip },
    accumulate,
    trained: model.trained.length,
    vocabulary: model.config.vocab,
  });
}

/** Tokens per second over the last half minute. */
class Pace {
  #times: [time: number, tokens: number][] = [[performance.now(), 0]];

  add(tokens: number): void {
    const now = performance.now();
    this.#times.push([now, tokens]);
    while (this.#times.length > 2 && now - this.#times[0][0] > 30_000) this.#times.shift();
  }

  get rate(): number {
    const [[first], ...rest] = this.#times;
    const last = this.#times[this.#times.length - 1][0];
    return rest.reduce((sum, [, n]) => sum + n, 0) / Math.max(1e-9, (last - first) / 1000);
  }
}

function result(
  { config, tokenizer, chatTemplate, name }: Trainable,
  weights: WeightSource,
  step: number,
  finished: boolean,
  metrics: readonly Metric[],
): Trained {
  return {
    config,
    weights,
    step,
    finished,
    metrics,
    save: async (path, { overwrite = false } = {}) => {
      await convert({ name, config, weights, tokenizer, chatTemplate }, path, { type: "f32", overwrite });
    },
    export: async (file, exportOptions) => {
      const { rename, writeFile } = await import("node:fs/promises");
      const temporary = `${file}.${process.pid}.tmp`;
      await writeFile(temporary, await exportModel(config, weights, exportOptions));
      await rename(temporary, file);
    },
  };
}
