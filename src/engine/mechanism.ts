import {
  type CompileOptions,
  type Feed,
  type GraphCut,
  input,
  parameter,
  type Segment,
  type Tensor,
} from "../graph/index.js";
import {
  type BoundMechanism,
  boundMechanism,
  buildModel,
  type Memory,
  type ModelConfig,
  type ModelGraph,
  positionFeeds,
} from "../models/index.js";
import type { AttentionShape } from "./block-attention.js";
import type { Hooks, KeyView } from "./hooks.js";
import { type Cut, splitMemory } from "./memory-split.js";
import { SegmentCache } from "./segment-cache.js";
import { reached } from "./segments.js";
import type { CarriedState } from "./sequence.js";

type Mechanism = NonNullable<Hooks["mechanism"]>;

/** Rows that look at keys: q [T, Hq, D] and their positions; rows [from, T) are wanted. */
interface LookingRows {
  readonly q: Float32Array;
  readonly positions: Int32Array;
  readonly from: number;
}

/** Runs mechanisms that methods bring: attention written over graph tensors, compiled once per mechanism and shape. */
export class MechanismRunner {
  readonly #options: CompileOptions;
  readonly #segments = new Map<Mechanism, SegmentCache>();

  constructor(options: CompileOptions) {
    this.#options = options;
  }

  /** Rows against all keys of the view; writes [rows, Hq, Dv] to `out`. */
  async run(
    mechanism: Mechanism,
    shape: AttentionShape,
    view: KeyView,
    rows: LookingRows,
    out: Float32Array,
  ): Promise<void> {
    let segments = this.#segments.get(mechanism);
    if (!segments) {
      segments = new SegmentCache(this.#options);
      this.#segments.set(mechanism, segments);
    }
    const key = [shape.heads, shape.kvHeads, shape.keyDim, shape.valueDim, shape.scale].join("|");
    const segment = await segments.get(key, () => mechanismGraph(mechanism, shape));
    await runOverKeys(segment, shape, view, rows, {}, out);
  }

  async release(): Promise<void> {
    for (const segments of this.#segments.values()) await segments.release();
    this.#segments.clear();
  }
}

/** Rows on their way through a layer: projections before rotation, and the block's normed input x [T, d]. */
export interface MechanismRows {
  readonly rows: number;
  readonly positions: Int32Array;
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
  readonly x: Float32Array;
}

/** What a mechanism with a state needs of a sequence. */
export interface CarryingSequence {
  carried: (CarriedState | undefined)[];
  readonly rotaryLength: number;
  readonly memory?: Memory | undefined;
}

/**
 * Runs the mechanism that a model was made with, from the definition that also trains and exports: over cached keys where
 * it has no state of its own, else from state to state, without a cache.
 */
export class ModelMechanism {
  readonly bound: BoundMechanism;
  readonly #config: ModelConfig;
  readonly #segments: SegmentCache;
  /** The model's graph over one row, over a whole piece of rows, and over any number of them. */
  readonly #graphs = new Map<number | undefined, ModelGraph>();
  /** By segment: what it makes of the memory alone. */
  readonly #alone = new Map<string, Cut>();
  /** By memory and segment: what was made of it, as long as a sequence holds it. */
  readonly #made = new WeakMap<Memory, Map<string, Promise<Record<string, Feed>>>>();

  private constructor(bound: BoundMechanism, config: ModelConfig, options: CompileOptions) {
    this.bound = bound;
    this.#config = config;
    this.#segments = new SegmentCache(options, { weights: options.weights, precision: options.precision });
  }

  /** The mechanism of a model; undefined where it has softmax attention. */
  static of(config: ModelConfig, options: CompileOptions): ModelMechanism | undefined {
    const bound = boundMechanism(config);
    return bound && new ModelMechanism(bound, config, options);
  }

  /** Without a state: rows, rotated where the mechanism wants it, against all keys of the view. */
  async attend(
    layer: number,
    shape: AttentionShape,
    view: KeyView,
    rows: LookingRows & { readonly x: Float32Array },
    memory: Memory | undefined,
    out: Float32Array,
  ): Promise<void> {
    const { width } = this.#config;
    const segment = await this.#segment(`${layer}`, () => this.#overKeys(layer, shape));
    const positions = rows.positions.subarray(rows.from);
    const more: Record<string, Feed> = {
      x: { data: rows.x.subarray(rows.from * width), dims: [positions.length, width] },
      positions: { data: BigInt64Array.from(positions, BigInt), dims: [positions.length] },
      ...(memory && (await this.#memoryFeeds(`${layer}`, memory))),
    };
    await runOverKeys(segment, shape, view, rows, more, out);
  }

  /** With a state: rows of one sequence, whose state goes on. Heads' outputs [T, Hq, D] go to `out`. */
  async advance(layer: number, sequence: CarryingSequence, all: MechanismRows, out: Float32Array): Promise<void> {
    const { heads, headDim } = this.#config;
    const wide = heads * headDim;
    const size = this.bound.rows;
    let state = sequence.carried[layer] ?? this.#empty();
    for (let first = 0; first < all.rows; first += size) {
      const count = Math.min(size, all.rows - first);
      const known = count === 1 || count === size ? count : undefined;
      const key = `${layer}|${known}`;
      const segment = await this.#segment(key, () => this.#fromState(layer, known));
      const read = sequence.memory && (await this.#memoryFeeds(key, sequence.memory));
      const feeds = this.#feeds(segment, layer, all, first, count, state, sequence.rotaryLength, read);
      const heads_ = out.subarray(first * wide, (first + count) * wide);
      const made = await segment.run(feeds, { heads: { data: heads_, dims: [count, heads, headDim] } });
      state = Object.fromEntries(
        Object.keys(state).map((name) => [name, made[`new_state.${name}`].data as Float32Array]),
      );
    }
    sequence.carried[layer] = state;
  }

  async release(): Promise<void> {
    await this.#segments.release();
  }

  #empty(): CarriedState {
    const size = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);
    return Object.fromEntries(
      Object.entries(this.bound.state ?? {}).map(([name, shape]) => [name, new Float32Array(size(shape))]),
    );
  }

  #feeds(
    segment: Segment,
    layer: number,
    all: MechanismRows,
    first: number,
    count: number,
    state: CarriedState,
    rotaryLength: number,
    read: Readonly<Record<string, Feed>> | undefined,
  ): Record<string, Feed> {
    const { heads, kvHeads, headDim, width } = this.#config;
    const part = (data: Float32Array, ...tail: number[]): Feed => {
      const size = tail.reduce((a, b) => a * b, 1);
      return { data: data.subarray(first * size, (first + count) * size), dims: [count, ...tail] };
    };
    const known: Record<string, Feed> = {
      q: part(all.q, heads, headDim),
      k: part(all.k, kvHeads, headDim),
      v: part(all.v, kvHeads, headDim),
      x: part(all.x, width),
      ...read,
    };
    for (const [name, shape] of Object.entries(this.bound.state ?? {}))
      known[`state.${layer}.${name}`] = { data: state[name], dims: [1, ...shape] };
    if (segment.inputNames.some((name) => !(name in known)))
      Object.assign(known, positionFeeds(this.#config, all.positions.subarray(first, first + count), rotaryLength));
    return Object.fromEntries(segment.inputNames.map((name) => [name, known[name]]));
  }

  /** A graph over rows, but for what it makes of the memory alone. */
  #segment(key: string, build: () => Cut): Promise<Segment> {
    return this.#segments.get(key, () => {
      const cut = build();
      const split = splitMemory(cut);
      if (!split) return cut;
      this.#alone.set(key, split.alone);
      return narrowed(split.rest);
    });
  }

  /** What the segment of this key reads of a memory; it must have been compiled. */
  async #memoryFeeds(key: string, memory: Memory): Promise<Record<string, Feed>> {
    const feeds = { memory: { data: memory.data, dims: [memory.rows, this.bound.memory as number] } };
    const alone = this.#alone.get(key);
    if (!alone) return feeds;
    const known = this.#made.get(memory) ?? new Map<string, Promise<Record<string, Feed>>>();
    this.#made.set(memory, known);
    const found = known.get(key) ?? this.#segments.get(`${key}|memory`, () => alone).then((s) => s.run(feeds));
    known.set(key, found);
    found.catch(() => known.delete(key));
    return { ...feeds, ...(await found) };
  }

  /** From a layer's projections and state to its heads and the state after them. */
  #fromState(layer: number, rows: number | undefined): Cut {
    const graph = this.#graphs.get(rows) ?? buildModel(this.#config, { state: true, length: rows, step: rows === 1 });
    this.#graphs.set(rows, graph);
    const at = (name: string) => graph.taps.get(name) as Tensor;
    const tap = (name: string) => at(`${name}.${layer}`);
    const states = Object.keys(this.bound.state ?? {});
    const outputs = {
      heads: tap("heads"),
      ...Object.fromEntries(states.map((name) => [`new_state.${name}`, at(`new_state.${layer}.${name}`)])),
    };
    return cutAt({ ...graph.inputs, q: tap("q"), k: tap("k"), v: tap("v"), x: tap("attn_in") }, outputs);
  }

  #overKeys(layer: number, shape: AttentionShape): Cut {
    const { bound } = this;
    const inputs = {
      ...keyInputs(shape),
      x: input("x", ["T", this.#config.width]),
      positions: input("positions", ["T"], "int64"),
      ...(bound.memory !== undefined && { memory: input("memory", ["M", bound.memory]) }),
    };
    const { q, k, v, mask } = perQueryHead(inputs, shape);
    const weights = Object.entries(bound.weights).map(
      ([name, weight]) => [name, parameter(`layers.${layer}.mechanism.${name}`, weight.shape)] as const,
    );
    const { out } = bound.forward({
      q: q.unsqueeze(0),
      k: k.unsqueeze(0),
      v: v.unsqueeze(0),
      mask: mask.unsqueeze(0),
      x: inputs.x.unsqueeze(0),
      positions: inputs.positions.unsqueeze(0),
      documents: undefined,
      weights: Object.fromEntries(weights),
      state: {},
      scale: shape.scale,
      longest: this.#config.maxPositions,
      memory: inputs.memory?.unsqueeze(0), // [1, M, m]
    });
    return cutAt(inputs, { out: out.squeeze(0) });
  }
}

function cutAt(inputs: Readonly<Record<string, Tensor>>, outputs: Readonly<Record<string, Tensor>>): Cut {
  return narrowed({ inputs, outputs });
}

/** A cut with those of the inputs that the outputs depend on. */
function narrowed({ inputs, outputs }: Cut): Cut {
  const given = Object.entries(inputs);
  const used = reached(Object.values(outputs), new Set(given.map(([, tensor]) => tensor)));
  return { inputs: Object.fromEntries(given.filter(([, tensor]) => used.has(tensor))), outputs };
}

/** Runs a mechanism on some rows and the keys of a view. */
async function runOverKeys(
  segment: Segment,
  shape: AttentionShape,
  view: KeyView,
  { q, positions, from }: LookingRows,
  more: Readonly<Record<string, Feed>>,
  out: Float32Array,
): Promise<void> {
  const { heads, kvHeads, keyDim, valueDim } = shape;
  const rows = positions.length - from;
  const keys = Math.max(...Array.from({ length: kvHeads }, (_, h) => view.length(h)));
  const k = new Float32Array(kvHeads * keys * keyDim);
  const v = new Float32Array(kvHeads * keys * valueDim);
  const mask = new Float32Array(kvHeads * rows * keys);
  for (let h = 0; h < kvHeads; h++) {
    k.set(view.keys(h), h * keys * keyDim);
    v.set(view.values(h), h * keys * valueDim);
    const at = view.positions(h);
    for (let r = 0; r < rows; r++)
      for (let i = 0; i < at.length; i++) {
        const distance = positions[from + r] - at[i];
        if (distance >= 0 && distance < (shape.window ?? Number.POSITIVE_INFINITY)) mask[(h * rows + r) * keys + i] = 1;
      }
  }
  const swapped = new Float32Array(heads * rows * keyDim);
  for (let r = 0; r < rows; r++)
    for (let h = 0; h < heads; h++)
      swapped.set(
        q.subarray(((from + r) * heads + h) * keyDim, ((from + r) * heads + h + 1) * keyDim),
        (h * rows + r) * keyDim,
      );
  const known: Record<string, Feed> = {
    q: { data: swapped, dims: [heads, rows, keyDim] },
    k: { data: k, dims: [kvHeads, keys, keyDim] },
    v: { data: v, dims: [kvHeads, keys, valueDim] },
    mask: { data: mask, dims: [kvHeads, rows, keys] },
    ...more,
  };
  const result = await segment.run(Object.fromEntries(segment.inputNames.map((name) => [name, known[name]])));
  const data = result.out.data as Float32Array;
  for (let r = 0; r < rows; r++)
    for (let h = 0; h < heads; h++)
      out.set(
        data.subarray((h * rows + r) * valueDim, (h * rows + r + 1) * valueDim),
        ((from + r) * heads + h) * valueDim,
      );
}

function keyInputs({ heads, kvHeads, keyDim, valueDim }: AttentionShape) {
  return {
    q: input("q", [heads, "T", keyDim]),
    k: input("k", [kvHeads, "S", keyDim]),
    v: input("v", [kvHeads, "S", valueDim]),
    mask: input("mask", [kvHeads, "T", "S"]),
  };
}

/** Each key-value head once for each of its query heads, so that a mechanism need not know of groups. */
function perQueryHead(inputs: ReturnType<typeof keyInputs>, { heads, kvHeads, keyDim, valueDim }: AttentionShape) {
  const groups = heads / kvHeads;
  const repeat = (t: typeof inputs.k, dims: readonly [string, string | number]) => {
    if (groups === 1) return t;
    const repeated = t.unsqueeze(1).expand([kvHeads, groups, ...dims]);
    return repeated.reshape([heads, ...dims]);
  };
  return {
    q: inputs.q,
    k: repeat(inputs.k, ["S", keyDim]),
    v: repeat(inputs.v, ["S", valueDim]),
    mask: repeat(inputs.mask, ["T", "S"]),
  };
}

/** A method's mechanism between inputs and output. */
function mechanismGraph(mechanism: Mechanism, shape: AttentionShape): GraphCut {
  const inputs = keyInputs(shape);
  return cutAt(inputs, { out: mechanism({ ...perQueryHead(inputs, shape), scale: shape.scale }) });
}
