import { FoveaError } from "../error.js";
import type { Memory } from "../models/index.js";
import type { AttentionShape, BlockAttention } from "./block-attention.js";
import type { Cache } from "./cache.js";
import type { Composed, LayerHooks } from "./compose.js";
import { addBiases, combineSelections } from "./compose.js";
import type { FusedAttention } from "./fused-attention.js";
import type { KeyView, LogBias, ModelShape, Near, Part, Partial, Phase, RotaryPlan, Rows } from "./hooks.js";
import { isPartial } from "./hooks.js";
import { FloatKeys, floatKeysOfCache, type KeySource, keptKeys, ownKeys, type QueryRows } from "./key-source.js";
import type { MechanismRunner, ModelMechanism } from "./mechanism.js";
import { NearKeys } from "./near-keys.js";
import { cacheView, PagedKeys } from "./paged-keys.js";
import { RotaryTable, rotate } from "./rotary.js";
import { withoutBlocks } from "./row-ranges.js";
import type { CarriedState } from "./sequence.js";
import {
  type AttentionFields,
  BoundAttentionStep,
  BoundRetainStep,
  boundStep,
  type RetainFields,
  type StepBase,
} from "./steps.js";

/** What attention needs of a sequence. */
export interface AttentionSequence {
  readonly cache: Cache;
  readonly composed: Composed;
  readonly states: unknown[];
  /** Rotary tables per layer, chosen when the sequence began. */
  readonly tables?: readonly (RotaryTable | null)[];
  readonly rotaryLength: number;
  carried: (CarriedState | undefined)[];
  /** What the model's mechanism reads beside the text. */
  readonly memory?: Memory | undefined;
  /** Which of some parallel streams it is. */
  readonly stream: number;
}

/** Rows on their way through a layer: unrotated projections and absolute positions. q is rotated in place. */
export interface LayerRows {
  readonly phase: Phase;
  readonly rows: number;
  /** Where these rows stand in the prompt or extension that they are a piece of, and its length. Default: all of it. */
  readonly firstRow?: number;
  readonly totalRows?: number;
  readonly positions: Int32Array;
  readonly q: Float32Array; // [T, Hq, D]
  readonly k: Float32Array; // [T, Hkv, D]
  readonly v: Float32Array; // [T, Hkv, Dv]
  /** The block's normed input, where the model has a mechanism of its own. */
  readonly x?: Float32Array; // [T, d]
}

/** From this many rows on, an extension reads the cache out and runs as a graph; below, kernels run on the pages. */
const GRAPH_ROWS = 24;
/** Bytes that a block's logits may take. */
const BLOCK_BYTES = 48 << 20;
/** Rows that are selected for at once where keys are listed by blocks of rows and no rows of logits are made. */
const LISTED_ROWS = 4096;

/**
 * Everything between a layer's projections and its output projection: activations, position, cache, retain, select,
 * scores, pattern, weighted sum, heads. Without hooks it is one fused operator (prompt) or one kernel call (decode).
 */
export class AttentionRunner {
  readonly #shapes: readonly AttentionShape[];
  readonly #blocks: BlockAttention;
  readonly #fused: FusedAttention;
  readonly #mechanisms: MechanismRunner;
  /** What the model has in softmax attention's place. */
  readonly #own: ModelMechanism | undefined;
  readonly #model: ModelShape;
  readonly #scratch = new Scratch();
  /** Tables of plans that methods bring, kept as long as the plan is. */
  readonly #customTables = new WeakMap<RotaryPlan, RotaryTable>();

  constructor(
    model: ModelShape,
    shapes: readonly AttentionShape[],
    blocks: BlockAttention,
    fused: FusedAttention,
    mechanisms: MechanismRunner,
    own?: ModelMechanism,
  ) {
    this.#own = own;
    this.#model = model;
    this.#shapes = shapes;
    this.#blocks = blocks;
    this.#fused = fused;
    this.#mechanisms = mechanisms;
  }

  /** True when a decode step of this layer needs no hook: then `decodePlain` does all of it without a promise. */
  plain(layer: number, sequence: AttentionSequence): boolean {
    return !this.#own && !sequence.composed.layer(layer).attention;
  }

  /** One row of one sequence, no hooks: rotate, append, attend. */
  decodePlain(
    layer: number,
    sequence: AttentionSequence,
    position: number,
    q: Float32Array,
    k: Float32Array,
    v: Float32Array,
    out: Float32Array,
  ): void {
    const shape = this.#shapes[layer];
    const table = sequence.tables?.[layer];
    if (table) {
      const at = [position];
      rotate(q, shape.heads, shape.keyDim, at, table.plan, table);
      rotate(k, shape.kvHeads, shape.keyDim, at, table.plan, table);
    }
    const cache = sequence.cache.layer(layer);
    cache.append(k, v, 1);
    const { window } = shape;
    const entries =
      window && cache.length(0) > window ? windowEntries(cache, shape.kvHeads, position, window) : undefined;
    cache.attend({ q, rows: 1, scale: shape.scale, softcap: shape.softcap, entries }, out);
  }

  /**
   * Rows of one sequence through a layer's attention; heads' outputs go to `out` [T, Hq, Dv]. Only rows [from, T) are
   * attended (the last layer of a prompt needs its last row only); all are stored.
   */
  async run(layer: number, sequence: AttentionSequence, input: LayerRows, out: Float32Array, from = 0): Promise<void> {
    const shape = this.#shapes[layer];
    const all = sequence.composed.layer(layer);
    const hooks = sequence.stream > 0 && all.observe.length > 0 ? { ...all, observe: NO_METHODS } : all;
    const { phase, rows, positions, q, k, v } = input;
    const cache = sequence.cache.layer(layer);
    const { firstRow = 0, totalRows = rows } = input;
    const base: StepBase = { layer, phase, rows, positions, firstRow, totalRows, model: this.#model };
    for (const { index, hooks: h } of hooks.activations)
      h.activations?.(boundStep(base, { q, k, v }, sequence.states, index));

    const own = this.#own;
    const x = input.x ?? NO_QUERIES;
    if (own?.bound.state) {
      await own.advance(layer, sequence, { rows, positions, q, k, v, x }, out);
      for (const { index, hooks: h } of hooks.heads) h.heads?.(boundStep(base, { heads: out }, sequence.states, index));
      return;
    }

    // positions
    const turnedOnce = hooks.select.length === 0 && !hooks.position;
    const unrotated = turnedOnce ? q : rows === 1 ? this.#scratch.copy(q) : q.slice();
    const table = sequence.tables?.[layer];
    let plan = table?.plan ?? null;
    let queryAt: ArrayLike<number> = positions;
    let keyAt: ArrayLike<number> = positions;
    let custom = false;
    let near: Near | undefined;
    if (hooks.position) {
      const { index, hooks: h } = hooks.position;
      const result = h.position?.(
        boundStep(base, { plan, length: sequence.rotaryLength, stream: sequence.stream }, sequence.states, index),
      );
      if (result) {
        near = result.near;
        custom = result.plan !== undefined && result.plan !== plan;
        plan = result.plan ?? plan;
        queryAt = result.query ?? positions;
        keyAt = result.key ?? positions;
      }
    }
    const tableUsed = custom && plan ? this.#customTable(plan) : (table ?? undefined);
    const turn = (x: Float32Array, heads: number, at: ArrayLike<number>) => {
      if (!plan || own?.bound.rotary === false) return;
      rotate(x, heads, shape.keyDim, at, plan, tableUsed);
    };
    turn(q, shape.heads, queryAt);
    turn(k, shape.kvHeads, keyAt);
    scaleQueries(q, shape.heads * shape.keyDim, positions, plan);
    if (near && hooks.keys.length > 0)
      throw new FoveaError(
        "unsupported",
        `${hooks.keys[0].name} edits keys where they stand, and near ones are turned`,
        {
          hint: "attach it without a method that reads near keys at other positions, such as self-extend",
        },
      );
    for (const { index, hooks: h } of hooks.keys) h.keys?.(boundStep(base, { k, v }, sequence.states, index));
    const rotateAt = (at: Int32Array, first: number, count: number) => {
      const width = shape.heads * shape.keyDim;
      const x = unrotated.slice(first * width, (first + count) * width);
      turn(x, shape.heads, at);
      scaleQueries(x, width, positions.subarray(first, first + count), plan);
      return x;
    };

    await this.#retain(hooks, sequence, base, shape, "before", { plan, view: () => cacheView(cache) });

    // where the keys lie
    const mechanism = hooks.mechanism?.hooks.mechanism;
    const lying = near ? NearKeys.farShape(shape, near) : shape;
    const nearer = this.#nearer(shape, near, plan, positions, rotateAt, mechanism !== undefined || own !== undefined);
    const stored = () =>
      near && rows > 1 ? floatKeysOfCache(lying, this.#blocks, cache) : new PagedKeys(lying, cache, rows);
    const paged = rows === 1 ? cache : undefined;
    let source: KeySource;
    const prompt = phase === "prompt";
    const byGraph = prompt || rows >= GRAPH_ROWS || (near !== undefined && rows > 1);
    if (prompt) source = nearer(this.#promptKeys(lying, k, v, rows, positions));
    else if (byGraph) source = nearer(floatKeysOfCache(lying, this.#blocks, cache, { k, v, positions }));
    else {
      cache.append(k, v, rows);
      source = nearer(stored(), paged);
    }

    if (from >= rows) {
      // nobody asks for this layer's outputs
    } else if (own) await own.attend(layer, shape, source.view, { q, x, positions, from }, sequence.memory, out);
    else if (mechanism) await this.#mechanisms.run(mechanism, shape, source.view, { q, positions, from }, out);
    else if (prompt && from === 0 && !hooks.promptReads && !near) await this.#fused.run(shape, q, k, v, rows, out);
    else
      await this.#blocksOf(
        hooks,
        sequence,
        base,
        shape,
        source,
        { q, rows, positions },
        rotateAt,
        from,
        out,
        byGraph,
        cache,
      );

    for (const { index, hooks: h } of hooks.heads) {
      h.heads?.(boundStep(base, { heads: out }, sequence.states, index));
    }

    // a prompt's entries are chosen in float32, before they are stored; later ones where they lie
    if (prompt && hooks.retain.length > 0) {
      const kept: (Int32Array | undefined)[] = [];
      let left: KeySource | undefined = source;
      const leftKeys = () => (left ??= nearer(keptKeys(lying, this.#blocks, source.view, kept)));
      await this.#retain(hooks, sequence, base, shape, "after", {
        plan,
        view: () => leftKeys().view,
        source: leftKeys,
        q,
        keep: (head, entries) => {
          const before = kept[head];
          kept[head] = before ? Int32Array.from(entries, (i) => before[i]) : entries;
          left = undefined;
        },
      });
      if (kept.length > 0) cache.appendSelected(k, v, rows, kept);
      else cache.append(k, v, rows);
      return;
    }
    if (byGraph) cache.append(k, v, rows);
    if (hooks.retain.length > 0)
      await this.#retain(hooks, sequence, base, shape, "after", {
        plan,
        view: () => cacheView(cache),
        source: () => nearer(stored(), paged),
        q,
      });
  }

  /** Wraps keys so that near ones are read at other positions, where a method wants that. */
  #nearer(
    shape: AttentionShape,
    near: Near | undefined,
    plan: RotaryPlan | null,
    positions: Int32Array,
    rotateAt: (at: Int32Array, first: number, count: number) => Float32Array,
    replaced: boolean,
  ): (far: KeySource, cache?: ReturnType<Cache["layer"]>) => KeySource {
    if (!near || !plan) return (far) => far;
    if (replaced)
      throw new FoveaError(
        "unsupported",
        "near keys at other positions need softmax attention, which is replaced here",
        {
          hint: "give the two methods different `layers`",
        },
      );
    const queries = rotateAt(positions, 0, positions.length);
    const options = { shape, blocks: this.#blocks, near, plan, queries, first: positions[0] };
    return (far, cache) => new NearKeys(far, { ...options, ...(cache && { cache }) });
  }

  #customTable(plan: RotaryPlan): RotaryTable {
    const found = this.#customTables.get(plan) ?? new RotaryTable(plan);
    this.#customTables.set(plan, found);
    return found;
  }

  #promptKeys(shape: AttentionShape, k: Float32Array, v: Float32Array, rows: number, positions: Int32Array): FloatKeys {
    return new FloatKeys(
      shape,
      this.#blocks,
      { data: k, keys: rows, layout: "tokens" },
      { data: v, keys: rows, layout: "tokens" },
      Float32Array.from(positions.subarray(0, rows)),
    );
  }

  async #blocksOf(
    hooks: LayerHooks,
    sequence: AttentionSequence,
    base: StepBase,
    shape: AttentionShape,
    source: KeySource,
    all: QueryRows,
    rotateAt: (at: Int32Array, first: number, count: number) => Float32Array,
    from: number,
    out: Float32Array,
    byGraph: boolean,
    cache: ReturnType<Cache["layer"]>,
  ): Promise<void> {
    const perRow = Math.max(1, source.keys) * shape.heads * 4;
    const { rowBlock } = hooks;
    const most = hooks.byBlocks && source.attendBlocks ? LISTED_ROWS : Math.min(512, Math.floor(BLOCK_BYTES / perRow));
    const size = byGraph ? Math.max(1, Math.floor(most / rowBlock)) * rowBlock : all.rows;
    const width = shape.heads * shape.keyDim;
    const wide = shape.heads * shape.valueDim;
    for (let first = from; first < all.rows; first += size) {
      const count = Math.min(size, all.rows - first);
      const query: QueryRows = {
        q: count === all.rows ? all.q : all.q.subarray(first * width, (first + count) * width),
        rows: count,
        positions: count === all.rows ? all.positions : all.positions.subarray(first, first + count),
      };
      const block: StepBase = {
        layer: base.layer,
        phase: base.phase,
        rows: count,
        positions: query.positions,
        firstRow: base.firstRow + first,
        totalRows: base.totalRows,
        model: base.model,
      };
      const fields: AttentionFields = {
        q: query.q,
        scale: shape.scale,
        view: source.view,
        cache: base.phase === "prompt" ? null : cache,
        rotate: (at) => rotateAt(at, first, count),
        logits: (part) => source.logits(ownQueries(query, part), withoutBlocks(part, count, source.keys, shape)),
        attend: (part) => attendPart(source, shape, ownQueries(query, part), part),
        attendTo: (own) => ownKeys(shape, this.#blocks, own).attend(own.query ? { ...query, q: own.query } : query, {}),
        products: (a, b, options) =>
          this.#blocks.gathered.products(a, b, shape.heads, { dim: shape.keyDim, ...options }),
      };
      const target = count === all.rows ? out : out.subarray(first * wide, (first + count) * wide);
      await attendWithHooks(hooks, sequence.states, block, fields, shape, source, query, target, this.#scratch);
    }
  }

  async #retain(
    hooks: LayerHooks,
    sequence: AttentionSequence,
    base: StepBase,
    shape: AttentionShape,
    when: "before" | "after",
    keys: {
      readonly plan: RotaryPlan | null;
      readonly view: () => KeyView;
      readonly source?: () => KeySource;
      readonly q?: Float32Array;
      readonly keep?: (kvHead: number, entries: Int32Array) => void;
    },
  ): Promise<void> {
    const cache = sequence.cache.layer(base.layer);
    const width = shape.heads * shape.keyDim;
    const { q, source, keep } = keys;
    for (const { index, hooks: h } of hooks.retain) {
      const fields: RetainFields = {
        when,
        // each method sees what the one before left
        view: keys.view(),
        scale: shape.scale,
        plan: keys.plan,
        queryRows: q ? base.rows : 0,
        q: q ?? NO_QUERIES,
        weights: async (n) => {
          if (!q || !source)
            throw new FoveaError("bad-input", "weights are asked for before the step's rows have attended");
          const count = Math.min(n, base.rows);
          const query: QueryRows = {
            q: q.subarray((base.rows - count) * width, base.rows * width),
            rows: count,
            positions: base.positions.subarray(base.rows - count, base.rows),
          };
          const entries = source();
          const logits = await entries.logits(query, {});
          softmaxRows({ data: logits, heads: shape.heads, rows: count, keys: entries.keys });
          return logits;
        },
        keep: keep ?? ((head, entries) => cache.keep(head, entries)),
      };
      await h.retain?.(new BoundRetainStep(base, fields, sequence.states, index));
    }
  }
}

/** A query scale that depends on the position (log-n scaling) multiplies the rotated queries. */
function scaleQueries(q: Float32Array, width: number, positions: ArrayLike<number>, plan: RotaryPlan | null): void {
  const scale = plan?.queryScale;
  if (!scale) return;
  for (let t = 0; t < positions.length; t++) {
    const factor = scale(positions[t]);
    for (let i = t * width; i < (t + 1) * width; i++) q[i] *= factor;
  }
}

/** Entries within the window, per KV head: [first, length) where the positions allow it. */
function windowEntries(cache: ReturnType<Cache["layer"]>, kvHeads: number, position: number, window: number) {
  return Array.from({ length: kvHeads }, (_, h) => {
    const positions = cache.positions(h);
    let first = Math.max(0, positions.length - window);
    while (first < positions.length && position - positions[first] >= window) first++;
    return { ranges: [[first, positions.length]] as [number, number][] };
  });
}

/**
 * Attention of one block under hooks: select gives parts; then either parts are attended and merged (kernel path), or
 * rows of logits are assembled, edited, normalised, edited and summed (row path).
 */
async function attendWithHooks(
  hooks: LayerHooks,
  states: unknown[],
  block: StepBase,
  fields: AttentionFields,
  shape: AttentionShape,
  source: KeySource,
  query: QueryRows,
  out: Float32Array,
  scratch: Scratch,
): Promise<void> {
  const bind = (index: number) => new BoundAttentionStep(block, fields, states, index);
  const selections: (readonly (Part | Partial)[])[] = [];
  for (const { index, hooks: h } of hooks.select) if (h.select) selections.push(await h.select(bind(index)));
  const parts = combineSelections(selections, source.view, shape, query.positions);
  let bias: LogBias | undefined;
  for (const { index, hooks: h } of hooks.bias) {
    const more = h.bias?.(bind(index));
    if (more) bias = bias ? addBiases(bias, more, shape) : more;
  }
  const withBias = (part: Part): Part =>
    bias ? { ...part, bias: part.bias ? addBiases(part.bias, bias, shape) : bias } : part;

  if (hooks.scores.length + hooks.pattern.length + hooks.observe.length === 0) {
    const sums = scratch.sums(query.rows * shape.heads);
    for (const [i, part] of parts.entries()) {
      const lse = i === 0 ? sums[0] : sums[1];
      const output = i === 0 ? out : scratch.output(query.rows * shape.heads * shape.valueDim);
      if (isPartial(part)) {
        output.set(part.output);
        lse.set(part.lse);
      } else if (part.blocks) {
        const needed = parts.length > 1 ? lse : undefined;
        await listedInto(source, shape, ownQueries(query, part), withBias(part), output, needed);
      } else await source.attendInto(ownQueries(query, part), withBias(part), output, lse);
      if (i > 0) mergeInto({ output: out, lse: sums[0] }, { output, lse }, shape.valueDim);
    }
    if (parts.length === 0) out.fill(0);
    return;
  }

  const rows: Rows = {
    data: new Float32Array(shape.heads * query.rows * source.keys).fill(Number.NEGATIVE_INFINITY),
    heads: shape.heads,
    rows: query.rows,
    keys: source.keys,
  };
  for (const part of parts) {
    if (isPartial(part))
      throw new FoveaError("unsupported", "a ready partial result has no rows of weights to edit or observe", {
        hint: "use the selecting method without methods or observers that need rows",
      });
    const plain = withoutBlocks(withBias(part), query.rows, source.keys, shape);
    const logits = await source.logits(ownQueries(query, part), plain);
    for (let i = 0; i < logits.length; i++) if (logits[i] > rows.data[i]) rows.data[i] = logits[i];
  }
  for (const { index, hooks: h } of hooks.scores) h.scores?.(bind(index), rows);
  softmaxRows(rows);
  for (const { index, hooks: h } of hooks.pattern) h.pattern?.(bind(index), rows);
  for (const { index, hooks: h } of hooks.observe)
    await h.observe?.(
      boundStep(block, { weights: rows, keyPositions: (head: number) => source.view.positions(head) }, states, index),
    );
  out.set(await source.sum(rows.data, query.rows));
}

/** A part that lists keys by blocks of rows, over gathered keys where they can be gathered. */
async function listedInto(
  source: KeySource,
  shape: AttentionShape,
  query: QueryRows,
  part: Part,
  output: Float32Array,
  lse?: Float32Array,
): Promise<void> {
  if (source.attendBlocks) return source.attendBlocks(query, part, output, lse);
  const plain = withoutBlocks(part, query.rows, source.keys, shape);
  await source.attendInto(query, plain, output, lse ?? new Float32Array(query.rows * shape.heads));
}

async function attendPart(source: KeySource, shape: AttentionShape, query: QueryRows, part: Part): Promise<Partial> {
  if (!part.blocks) return source.attend(query, part);
  const output = new Float32Array(query.rows * shape.heads * shape.valueDim);
  const lse = new Float32Array(query.rows * shape.heads);
  await listedInto(source, shape, query, part, output, lse);
  return { output, lse };
}

/** The queries that a part is read with: its own, or the step's. */
function ownQueries(query: QueryRows, { query: q }: Part): QueryRows {
  return q ? { ...query, q } : query;
}

/** Softmax of each row in place; a row of -Infinity becomes zeros. */
export function softmaxRows({ data, heads, rows, keys }: Rows): void {
  for (let r = 0, at = 0; r < heads * rows; r++, at += keys) {
    let max = Number.NEGATIVE_INFINITY;
    for (let i = at; i < at + keys; i++) if (data[i] > max) max = data[i];
    if (max === Number.NEGATIVE_INFINITY) {
      data.fill(0, at, at + keys);
      continue;
    }
    let sum = 0;
    for (let i = at; i < at + keys; i++) sum += data[i] = Math.exp(data[i] - max);
    for (let i = at; i < at + keys; i++) data[i] /= sum;
  }
}

/** Merges one partial result into another, exactly, by their log-sum-exp. */
export function mergeInto({ output, lse }: Partial, next: Partial, valueDim: number): void {
  for (let i = 0; i < lse.length; i++) {
    const b = next.lse[i];
    if (b === Number.NEGATIVE_INFINITY) continue;
    const a = lse[i];
    const max = Math.max(a, b);
    const wa = Math.exp(a - max);
    const wb = Math.exp(b - max);
    const sum = wa + wb;
    for (let d = i * valueDim; d < (i + 1) * valueDim; d++) output[d] = (output[d] * wa + next.output[d] * wb) / sum;
    lse[i] = max + Math.log(sum);
  }
}

/** Work arrays of one runner, reused from step to step: steps never overlap. */
class Scratch {
  #output = new Float32Array(0);
  #copy = new Float32Array(0);
  #sums: [Float32Array, Float32Array] = [new Float32Array(0), new Float32Array(0)];

  output(size: number): Float32Array {
    if (this.#output.length !== size) this.#output = new Float32Array(size);
    return this.#output;
  }

  /** A copy that holds until the next one is asked for. */
  copy(x: Float32Array): Float32Array {
    if (this.#copy.length < x.length) this.#copy = new Float32Array(x.length);
    this.#copy.set(x);
    return this.#copy.length === x.length ? this.#copy : this.#copy.subarray(0, x.length);
  }

  sums(size: number): [Float32Array, Float32Array] {
    if (this.#sums[0].length !== size) this.#sums = [new Float32Array(size), new Float32Array(size)];
    return this.#sums;
  }
}

const NO_QUERIES = new Float32Array(0);
const NO_METHODS: LayerHooks["observe"] = [];
