import "../attention/linear/index.js";
import { parseMethods, printMethods } from "../attention/string.js";
import { boundMechanism, definitionOf, type MechanismUse, parameterCount, useMechanism } from "../models/index.js";
import { adamW } from "./optimizer.js";
import { cosineSchedule } from "./schedule.js";
import { accuracy, type Task } from "./tasks.js";
import { train } from "./train.js";
import { type DecoderOptions, decoder, type Trainable } from "./trainable.js";

/** One mechanism, trained on one task from one seed. */
export interface ComparedRun {
  /** The mechanism with those of its parameters that are no defaults. */
  readonly mechanism: string;
  readonly task: string;
  readonly seed: number;
  /** Share of the answers of held-out batches that the trained model gives. */
  readonly accuracy: number;
  /** Loss on them. */
  readonly loss: number;
  /** Accuracy after some of the steps. */
  readonly curve: readonly (readonly [step: number, accuracy: number])[];
  readonly parameters: number;
  /** Tokens trained on in a second. */
  readonly tokensPerSecond: number;
  /** Bytes that a sequence of the task's length leaves behind: states, or keys and values in float32. */
  readonly stateBytes: number;
}

export interface CompareOptions {
  readonly mechanisms: readonly MechanismUse[];
  /** Tasks by name, each for a seed. */
  readonly tasks: Readonly<Record<string, (seed: number) => Task>>;
  readonly steps: number;
  /** Default 1 and 2. */
  readonly seeds?: readonly number[];
  /** Sizes of the models; `mlp` is that of softmax attention, others get as many parameters. */
  readonly model?: Pick<DecoderOptions, "layers" | "width" | "heads" | "mlp">;
  /** Learning rate. Default 0.003. */
  readonly rate?: number;
  readonly threads?: number;
  /** Runs that are known already: they are not made again. */
  readonly known?: readonly ComparedRun[];
  /** Folder in which a run's checkpoints lie while it is under way. Default: none. */
  readonly folder?: string;
  readonly signal?: AbortSignal;
  readonly onRun?: (run: ComparedRun) => void | Promise<void>;
  readonly onProgress?: (text: string) => void;
}

/** Batches of 64 rows that accuracy is measured on, at the end and on the way. */
const HELD_OUT = 8;
const POINTS = 10;

/**
 * Trains every mechanism on every task under one budget: the same steps, batches, schedule and number of parameters (a
 * mechanism with weights of its own has a narrower MLP). Runs come in the order seed, task, mechanism, so that a
 * comparison that is stopped has measured all mechanisms alike.
 *
 * @throws FoveaError as `train`
 */
export async function compareMechanisms(options: CompareOptions): Promise<ComparedRun[]> {
  const { mechanisms, tasks, seeds = [1, 2], known = [], signal } = options;
  const runs: ComparedRun[] = [];
  for (const seed of seeds)
    for (const [taskName, make] of Object.entries(tasks))
      for (const use of mechanisms) {
        if (signal?.aborted) return runs;
        const mechanism = mechanismString(use);
        const found = known.find((r) => r.mechanism === mechanism && r.task === taskName && r.seed === seed);
        const run = found ?? (await oneRun(options, use, taskName, make(seed), seed));
        if (!run) return runs;
        runs.push(run);
        if (!found) await options.onRun?.(run);
      }
  return runs;
}

async function oneRun(
  options: CompareOptions,
  use: MechanismUse,
  taskName: string,
  task: Task,
  seed: number,
): Promise<ComparedRun | undefined> {
  const { steps, rate = 0.003, threads, folder, signal } = options;
  const mechanism = mechanismString(use);
  const model = equalModel(use, { ...options.model, vocabulary: task.vocabulary, seed });
  const held = Array.from({ length: HELD_OUT }, (_, i) => task.heldOut(i));
  const { length } = held[0];
  const trained = await train({
    model,
    data: task,
    steps,
    optimizer: adamW({ rate }),
    schedule: cosineSchedule({ steps, warmup: Math.min(50, Math.ceil(steps / 10)) }),
    logEvery: Number.POSITIVE_INFINITY,
    ...(threads !== undefined && { threads }),
    ...(folder !== undefined && { folder: `${folder}/${slug(`${mechanism} ${taskName} ${seed}`)}` }),
    ...(signal && { signal }),
    evaluate: {
      every: Math.max(1, Math.ceil(steps / POINTS)),
      async measure(trainer, step) {
        const batches = step === steps ? held : held.slice(0, 2);
        let [right, loss] = [0, 0];
        for (const batch of batches) {
          const result = await trainer.evaluate(batch);
          right += accuracy(batch, result.predicted) / batches.length;
          loss += result.loss / batches.length;
        }
        return { accuracy: right, held_out_loss: loss };
      },
    },
    onProgress: ({ step, loss, tokensPerSecond }) =>
      options.onProgress?.(
        `${mechanism}, ${taskName}, seed ${seed}: step ${step} / ${steps}  loss ${loss.toFixed(3)}  ${Math.round(tokensPerSecond)} tokens/s`,
      ),
  });
  if (!trained.finished) return undefined;
  const measured = trained.metrics.filter((m) => m.accuracy !== undefined);
  const last = measured[measured.length - 1];
  return {
    mechanism,
    task: taskName,
    seed,
    accuracy: last.accuracy as number,
    loss: last.held_out_loss as number,
    curve: measured.map((m) => [m.step, m.accuracy as number]),
    parameters: parameterCount(model.config),
    tokensPerSecond: last.tokens_per_second as number,
    stateBytes: stateBytes(model, length),
  };
}

/** A decoder with a mechanism and about as many parameters as the same decoder has with softmax attention. */
export function equalModel(use: MechanismUse, options: DecoderOptions): Trainable {
  const { layers = 2, width = 64, heads = Math.max(1, Math.round(width / 32)) } = options;
  const { mlp = 2 * width } = options;
  const sizes = { ...options, layers, width, heads, mlp };
  const budget = parameterCount(decoder(sizes).config);
  const more = parameterCount(decoder({ ...sizes, mechanism: use }).config) - budget;
  const narrower = Math.round(more / (3 * width * layers));
  return decoder({ ...sizes, mlp: Math.max(1, mlp - narrower), mechanism: use });
}

/** Bytes that a sequence of some tokens leaves behind in all layers: states, or keys and values in float32. */
export function stateBytes({ config }: Trainable, tokens: number): number {
  const bound = boundMechanism(config);
  if (bound?.state) return config.layers * bound.stateBytes;
  return config.layers * config.kvHeads * config.headDim * 2 * 4 * tokens;
}

/** Mechanisms from a string, `softmax+gated-linear-attention(gate=fixed)`. Throws FoveaError `bad-input`, `not-found`. */
export function parseMechanisms(text: string): MechanismUse[] {
  return parseMethods(text).map(({ name, params }) => useMechanism({ name, parameters: params }));
}

/** A mechanism as such a string: its name, and its parameters that are no defaults. */
export function mechanismString({ name, parameters }: MechanismUse): string {
  const defaults = (definitionOf(name).parameters?.parse({}) ?? {}) as Record<string, unknown>;
  const params = Object.fromEntries(
    Object.entries(parameters).filter(([key, value]) => JSON.stringify(value) !== JSON.stringify(defaults[key])),
  ) as Record<string, number | string | boolean>;
  return printMethods([{ name, params }]);
}

/** Mean, and half the width of its 95% interval over seeds (Student's t); no interval for one value. */
export function meanInterval(values: readonly number[]): { mean: number; half: number | undefined } {
  const n = values.length;
  const mean = values.reduce((a, b) => a + b, 0) / n;
  if (n < 2) return { mean, half: undefined };
  const variance = values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / (n - 1);
  return { mean, half: (T_95[n - 2] ?? 1.96) * Math.sqrt(variance / n) };
}

/** 97.5% quantiles of Student's t with 1, 2, ... degrees of freedom. */
const T_95 = [
  12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16, 2.145, 2.131, 2.12, 2.11,
  2.101, 2.093, 2.086, 2.08, 2.074, 2.069, 2.064, 2.06, 2.056, 2.052, 2.048, 2.045,
];

function slug(text: string): string {
  return text.replace(/[^A-Za-z0-9.]+/g, "-").replace(/-+$/, "");
}
