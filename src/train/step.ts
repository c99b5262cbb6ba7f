import { FoveaError } from "../error.js";
import { compile, gradients, input, type Segment, type Tensor, type WeightSource } from "../graph/index.js";
import { batchFeeds, boundMechanism, type ModelConfig, type ModelGraph } from "../models/index.js";
import type { Batch } from "./batch.js";
import { type Loss, nextTokenLoss } from "./losses.js";
import { clipFactor, globalNorm, type Optimizer } from "./optimizer.js";

/** A number array with its sizes, as segments are fed. */
interface Value {
  readonly data: Float32Array;
  readonly dims: readonly number[];
}

/** What a training step is built of. */
export interface StepOptions {
  readonly config: ModelConfig;
  /** The whole model over a batch of sequences of this length. */
  build(length: number): ModelGraph;
  /** Values of the parameters that do not train. */
  readonly weights: WeightSource;
  /** Names of those that do. */
  readonly trained: readonly string[];
  readonly optimizer: Optimizer;
  readonly loss?: Loss;
  readonly threads?: number;
}

/** What one step of training did. */
export interface StepResult {
  /** Mean over the batch before the step's update. */
  readonly loss: number;
  /** Norm of all gradients together, before clipping. */
  readonly norm: number;
}

/**
 * A training step as graphs: forward, gradients and update in one session run. Parameters and the optimiser's state lie
 * in two sets of arrays; a run reads one and writes the other, since ONNX Runtime may write an output before the last
 * operation that reads the input in its place.
 */
export class TrainingStep {
  readonly #options: StepOptions;
  /** Else an extra of that name is a loss's own. */
  readonly #readsMemory: boolean;
  readonly #parameters: readonly string[];
  readonly #plans = new Map<ModelGraph, Plan>();
  readonly #graphs = new Map<number, ModelGraph>();
  readonly #scalars = {
    rate: input("rate", []),
    correction1: input("correction1", []),
    correction2: input("correction2", []),
    share: input("share", []),
  };
  #now: Map<string, Value>;
  #next: Map<string, Value>;
  #sums: [Map<string, Value>, Map<string, Value>] | undefined;
  readonly #segments = new Map<string, Promise<Segment>>();

  /** `values`: first values of the trained parameters and, when training goes on, of the optimiser's state. */
  constructor(options: StepOptions, values: (name: string) => Float32Array | undefined) {
    this.#options = options;
    this.#readsMemory = boundMechanism(options.config)?.memory !== undefined;
    const { parameters, slots } = this.#plan(options.build(1));
    this.#parameters = parameters.map((p) => p.name as string);
    const first = (t: Tensor): Value => {
      const dims = t.shape as number[];
      const size = dims.reduce((a, b) => a * b, 1);
      const given = values(t.name as string);
      if (given && given.length !== size)
        throw new FoveaError("bad-shape", `${t.name}: ${given.length} values were given for [${dims.join(", ")}]`);
      return { data: given ? given.slice() : new Float32Array(size), dims };
    };
    this.#now = new Map([...parameters, ...slots.flat()].map((t) => [t.name as string, first(t)]));
    this.#next = emptyLike(this.#now);
  }

  /** The graph for sequences of a length, and what belongs to it; one for all lengths where the model's graph is. */
  #plan(graph: ModelGraph): Plan {
    const known = this.#plans.get(graph);
    if (known) return known;
    const { trained, optimizer, loss: lossOf = nextTokenLoss } = this.#options;
    const [rows] = graph.logits.shape;
    const targets = input("targets", [rows], "int64");
    const weights = input("weights", [rows]);
    const loss = lossOf({
      logits: graph.logits,
      targets,
      weights,
      tap(name) {
        const found = graph.taps.get(name);
        if (!found) throw new FoveaError("not-found", `a loss asks for ${name}, which the model does not have`);
        return found;
      },
      extra: (name, shape) => input(`extra ${name}`, shape),
    });
    const reached = parametersOf([loss]);
    const parameters = trained.map((name) => {
      const tensor = reached.get(name);
      if (!tensor)
        throw new FoveaError("bad-input", `the loss does not depend on the weight ${name}, which is to be trained`, {
          hint: `weights that it depends on: ${[...reached.keys()].slice(0, 12).join(", ")}, ...`,
        });
      return tensor;
    });
    const slots = parameters.map((p) => optimizer.slots.map((slot) => input(`${slot}/${p.name}`, p.shape as number[])));
    const plan = { key: `${this.#plans.size}`, graph, targets, weights, loss, parameters, slots };
    this.#plans.set(graph, plan);
    return plan;
  }

  #planFor({ length }: Batch): Plan {
    let graph = this.#graphs.get(length);
    if (!graph) {
      graph = this.#options.build(length);
      // graphs that hold for any length are one
      const same = [...this.#graphs.values()].find((g) => g.logits.shape[0] === graph?.logits.shape[0]);
      graph = same ?? graph;
      this.#graphs.set(length, graph);
    }
    return this.#plan(graph);
  }

  /** Names and present values of everything that changes: parameters and the optimiser's state. */
  get values(): ReadonlyMap<string, Value> {
    return this.#now;
  }

  /** The present weights of the whole model, those that do not train included. */
  get weights(): WeightSource {
    const { weights } = this.#options;
    return {
      get: (name) => {
        const own = this.#now.get(name);
        return own ? { kind: "float", dtype: "float32", shape: own.dims, data: own.data } : weights.get(name);
      },
      prefetch: async (names) => weights.prefetch?.(names.filter((name) => !this.#now.has(name))),
    };
  }

  /**
   * One step on a batch, or on several whose gradients add up as if they were one.
   * @param rate learning rate
   * @param count number of this step, from 1
   */
  async run(batches: readonly Batch[], rate: number, count: number): Promise<StepResult> {
    const [b1, b2] = this.#options.optimizer.betas;
    const scalars = {
      rate: scalar(rate),
      correction1: scalar(1 - b1 ** count),
      correction2: scalar(1 - b2 ** count),
    };
    const totals = batches.map((batch) => batch.weights.reduce((a, b) => a + b, 0));
    const total = totals.reduce((a, b) => a + b, 0);
    const shares = totals.map((t) => (total > 0 ? t / total : 1 / batches.length));
    if (batches.length === 1) {
      const plan = this.#planFor(batches[0]);
      const segment = await this.#segment(`step ${plan.key}`, () => this.#stepCut(plan));
      const out = await segment.run(
        this.#feeds(segment, batches[0], { ...scalars, share: scalar(1) }),
        this.#targetsOf(segment),
      );
      this.#swap();
      return { loss: numberOf(out.loss), norm: numberOf(out["gradient norm"]) };
    }
    this.#sums ??= this.#newSums();
    let [from, to] = this.#sums;
    for (const { data } of from.values()) data.fill(0);
    let loss = 0;
    for (const [i, batch] of batches.entries()) {
      const plan = this.#planFor(batch);
      const adding = await this.#segment(`add ${plan.key}`, () => this.#addCut(plan));
      const feeds = this.#feeds(adding, batch, { share: scalar(shares[i]), ...Object.fromEntries(from) });
      const out = await adding.run(feeds, Object.fromEntries([...to].map(([name, v]) => [`new ${name}`, v])));
      loss += numberOf(out.loss) * shares[i];
      [from, to] = [to, from];
    }
    const updating = await this.#segment("update", () => this.#updateCut([...this.#plans.values()][0]));
    const feeds = { ...scalars, ...Object.fromEntries([...this.#now, ...from]) };
    const known = Object.fromEntries(updating.inputNames.map((name) => [name, feeds[name as keyof typeof feeds]]));
    const out = await updating.run(known, this.#targetsOf(updating));
    this.#swap();
    return { loss, norm: numberOf(out["gradient norm"]) };
  }

  /** Without training: the loss of a batch and the most likely token of each row [B * T]. */
  async evaluate(batch: Batch): Promise<{ loss: number; predicted: Int32Array }> {
    const plan = this.#planFor(batch);
    const segment = await this.#segment(`evaluate ${plan.key}`, () => ({
      inputs: inputsOf(plan, false),
      outputs: { loss: plan.loss, predicted: plan.graph.logits.argmax(-1).cast("int32") },
    }));
    const out = await segment.run(this.#feeds(segment, batch, {}));
    return { loss: numberOf(out.loss), predicted: out.predicted.data as Int32Array };
  }

  async release(): Promise<void> {
    for (const segment of this.#segments.values()) await (await segment).release();
    this.#segments.clear();
  }

  #segment(key: string, cut: () => Parameters<typeof compile>[0]): Promise<Segment> {
    let made = this.#segments.get(key);
    if (!made) {
      const { weights, threads } = this.#options;
      // a run's activations are gigabytes: freed memory is kept for the next run, which needs the same
      made = compile(cut(), { weights, threads, precision: "float32", arena: true, memoryPattern: true });
      this.#segments.set(key, made);
    }
    return made;
  }

  #stepCut(plan: Plan) {
    const gradient = gradients(plan.loss.mul(this.#scalars.share), plan.parameters);
    const { norm, outputs } = this.#updates(plan, gradient);
    return {
      inputs: { ...inputsOf(plan, true), ...this.#scalars },
      outputs: { loss: plan.loss, "gradient norm": norm, ...outputs },
    };
  }

  #addCut(plan: Plan) {
    const gradient = gradients(plan.loss.mul(this.#scalars.share), plan.parameters);
    const sums = sumInputs(plan);
    const outputs = plan.parameters.map((p, i) => [`new g/${p.name}`, sums[i].add(gradient[i])] as const);
    const inputs = { ...inputsOf(plan, false), ...named(sums), share: this.#scalars.share };
    return { inputs, outputs: { loss: plan.loss, ...Object.fromEntries(outputs) } };
  }

  #updateCut(plan: Plan) {
    const sums = sumInputs(plan);
    const { norm, outputs } = this.#updates(plan, sums);
    const { share: _, ...scalars } = this.#scalars;
    const inputs = { ...named(plan.parameters), ...named(plan.slots.flat()), ...named(sums), ...scalars };
    return { inputs, outputs: { "gradient norm": norm, ...outputs } };
  }

  #updates(
    { parameters, slots }: Plan,
    gradient: readonly Tensor[],
  ): { norm: Tensor; outputs: Record<string, Tensor> } {
    const { optimizer } = this.#options;
    const norm = globalNorm(gradient);
    const factor = optimizer.clip === undefined ? undefined : clipFactor(norm, optimizer.clip);
    const outputs: Record<string, Tensor> = {};
    for (const [i, p] of parameters.entries()) {
      const g = factor ? gradient[i].mul(factor) : gradient[i];
      const { value, state } = optimizer.update(p, g, slots[i], this.#scalars);
      outputs[`new ${p.name}`] = value;
      for (const [s, slot] of slots[i].entries()) outputs[`new ${slot.name}`] = state[s];
    }
    return { norm, outputs };
  }

  /** The inputs that a segment has, by name. */
  #feeds(segment: Segment, batch: Batch, more: Record<string, Value>): Parameters<Segment["run"]>[0] {
    const { config } = this.#options;
    const { rows, length, targets, weights } = batch;
    const n = rows * length;
    if (targets.length !== n || weights.length !== n)
      throw new FoveaError(
        "bad-shape",
        `a batch has ${targets.length} targets and ${weights.length} weights for ${n} tokens`,
      );
    const wrong = targets.find((id) => id >= config.vocab);
    if (wrong !== undefined)
      throw new FoveaError("bad-input", `a batch has token ${wrong}; the vocabulary has ${config.vocab}`);
    const feeds = {
      ...batchFeeds(config, { ...batch, ...(this.#readsMemory && { memory: batch.extras?.memory }) }),
      targets: { data: BigInt64Array.from(targets, BigInt), dims: [n] },
      weights: { data: weights, dims: [n] },
      ...Object.fromEntries(Object.entries(batch.extras ?? {}).map(([name, value]) => [`extra ${name}`, value])),
      ...Object.fromEntries(this.#now),
      ...more,
    };
    return Object.fromEntries(segment.inputNames.map((name) => [name, feeds[name as keyof typeof feeds]]));
  }

  #targetsOf(segment: Segment): Record<string, Value> {
    const into = [...this.#next].map(([name, value]) => [`new ${name}`, value] as const);
    return Object.fromEntries(into.filter(([name]) => segment.outputNames.includes(name)));
  }

  #newSums(): [Map<string, Value>, Map<string, Value>] {
    const zero = (): Map<string, Value> =>
      emptyLike(new Map(this.#parameters.map((name) => [`g/${name}`, this.#now.get(name) as Value])));
    return [zero(), zero()];
  }

  #swap(): void {
    [this.#now, this.#next] = [this.#next, this.#now];
  }
}

/** A model's graph with its loss, and what trains in it. */
interface Plan {
  readonly key: string;
  readonly graph: ModelGraph;
  readonly targets: Tensor;
  readonly weights: Tensor;
  readonly loss: Tensor;
  readonly parameters: readonly Tensor[];
  /** The optimiser's state of each parameter. */
  readonly slots: readonly (readonly Tensor[])[];
}

/** Everything that a run is fed with, but for scalars. */
function inputsOf({ graph, targets, weights, parameters, slots }: Plan, withSlots: boolean): Record<string, Tensor> {
  return { ...graph.inputs, targets, weights, ...named(parameters), ...(withSlots ? named(slots.flat()) : {}) };
}

/** Sums of gradients over batches. */
function sumInputs({ parameters }: Plan): Tensor[] {
  return parameters.map((p) => input(`g/${p.name}`, p.shape as number[]));
}

/** The parameters that tensors depend on, by name. */
export function parametersOf(outputs: readonly Tensor[]): Map<string, Tensor> {
  const found = new Map<string, Tensor>();
  const seen = new Set<Tensor>(outputs);
  const open = [...outputs];
  for (let tensor = open.pop(); tensor; tensor = open.pop()) {
    if (tensor.op === "parameter") found.set(tensor.name as string, tensor);
    for (const from of tensor.inputs)
      if (!seen.has(from)) {
        seen.add(from);
        open.push(from);
      }
  }
  return found;
}

function named(tensors: readonly Tensor[]): Record<string, Tensor> {
  return Object.fromEntries(tensors.map((t) => [t.name as string, t]));
}

function emptyLike(values: ReadonlyMap<string, Value>): Map<string, Value> {
  return new Map([...values].map(([name, { data, dims }]) => [name, { data: new Float32Array(data.length), dims }]));
}

function scalar(value: number): Value {
  return { data: Float32Array.of(value), dims: [] };
}

function numberOf(tensor: { data: unknown }): number {
  return (tensor.data as Float32Array)[0];
}
