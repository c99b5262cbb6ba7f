import { compile, type Segment, type WeightSource } from "../src/graph/index.js";
import { buildModel, type ModelConfig, modelFeeds } from "../src/models/index.js";

/** A model compiled whole, from ids to logits: the graph without the engine. */
export interface WholeModel {
  readonly config: ModelConfig;
  readonly segment: Segment;
}

/** Compiles the uncut graph of a model with float32 weights. */
export async function compileWhole(config: ModelConfig, weights: WeightSource): Promise<WholeModel> {
  const { inputs, logits } = buildModel(config);
  const segment = await compile({ inputs, outputs: { logits } }, { weights, precision: "float32", threads: 1 });
  return { config, segment };
}

/** Logits of every position, [T, V] flat. */
export async function logitsOf({ config, segment }: WholeModel, ids: readonly number[]): Promise<Float32Array> {
  const { logits } = await segment.run(modelFeeds(config, ids));
  return logits.data as Float32Array;
}

/** Log-probabilities of every next token, one array of V per position. */
export async function logProbabilities(model: WholeModel, ids: readonly number[]): Promise<Float64Array[]> {
  const logits = await logitsOf(model, ids);
  const { vocab } = model.config;
  return ids.map((_, t) => logSoftmax(logits.subarray(t * vocab, (t + 1) * vocab)));
}

/** In float64, with the largest subtracted first. */
export function logSoftmax(logits: Float32Array | Float64Array): Float64Array {
  let largest = Number.NEGATIVE_INFINITY;
  for (const x of logits) largest = Math.max(largest, x);
  let sum = 0;
  for (const x of logits) sum += Math.exp(x - largest);
  return Float64Array.from(logits, (x) => x - largest - Math.log(sum));
}

/** The tokens that follow the most likely way. */
export async function greedy(model: WholeModel, ids: readonly number[], count: number): Promise<number[]> {
  const all = [...ids];
  for (let i = 0; i < count; i++) {
    const logits = (await logitsOf(model, all)).subarray(-model.config.vocab);
    all.push(logits.indexOf(Math.max(...logits)));
  }
  return all.slice(ids.length);
}
