import { checkAbort, FoveaError } from "../error.js";
import type { CompileOptions } from "../graph/index.js";
import {
  boundMechanism,
  buildModel,
  type Checkpoint,
  checkMemory,
  type Memory,
  type ModelConfig,
  rotaryBase,
  rotaryTable,
} from "../models/index.js";
import type { LoadOptions, Progress } from "./api.js";
import { AttentionRunner, type LayerRows } from "./attention.js";
import { type AttentionShape, BlockAttention } from "./block-attention.js";
import { CachePool } from "./cache.js";
import { type Composed, compose, type MethodHooks } from "./compose.js";
import { Embedding } from "./embedding.js";
import { FusedAttention } from "./fused-attention.js";
import type {
  AttachedMethod,
  ModelShape,
  Phase,
  Probed,
  ProbeOptions,
  RetainStep,
  RotaryPlan,
  TapStep,
} from "./hooks.js";
import { MechanismRunner, ModelMechanism } from "./mechanism.js";
import { RotaryTable } from "./rotary.js";
import { type Link, Segments, type Stop } from "./segments.js";
import { Sequence } from "./sequence.js";
import { Turns } from "./turns.js";

/** Rows of a prompt that pass a dense segment at once. */
const CHUNK = 1024;
/** Rows that a prompt handles layer by layer; longer ones go in pieces of this size. */
const PIECE = 16384;
/** Bytes of logits at a time. */
const LOGITS_BYTES = 16 << 20;

/** Arrays with their sizes, by tap. */
type Arrays = Record<string, { data: Float32Array; dims: readonly number[] }>;

/** Which rows' logits a prefill gives. */
export type Wanted = "none" | "last" | "all";

export interface PrefillOptions {
  readonly wanted: Wanted;
  /** Called with consecutive rows' logits [n, V], in order, when `wanted` is "all". The array is valid during the call. */
  readonly onLogits?: (firstRow: number, rows: number, logits: Float32Array) => void;
  /** Tokens that will be generated afterwards: memory is checked for them too. Default 0. */
  readonly reserve?: number;
  /** Most rows of a piece. Default PIECE; tests take fewer. */
  readonly pieceRows?: number;
  /** Layers to run (probes stop early); default all. */
  readonly layers?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: Progress) => void;
}

/** A model that runs: segments, attention, cache pool. It knows token ids, not texts. */
export class Engine {
  readonly config: ModelConfig;
  readonly shape: ModelShape;
  readonly pool: CachePool;
  readonly weightBytes: number;
  readonly memoryLimit: number;
  readonly cacheBytesPerToken: number;
  /** Positions that may be used without a method that handles more. */
  readonly context: number;
  readonly #segments: Segments;
  readonly #attention: AttentionRunner;
  readonly #blocks: BlockAttention;
  readonly #fused: FusedAttention;
  readonly #mechanisms: MechanismRunner;
  /** What the model has in softmax attention's place. */
  readonly #own: ModelMechanism | undefined;
  readonly #embedding: Embedding;
  readonly #turns = new Turns();
  readonly #tables = new Map<string, readonly (RotaryTable | null)[]>();
  #decodeBuffers:
    | {
        rows: number;
        q: Float32Array;
        k: Float32Array;
        v: Float32Array;
        input: Float32Array;
        heads: Float32Array;
        x: [Float32Array, Float32Array];
        /** Per segment without stops its run on these arrays; the last one's writes `logits`. */
        runs: ((() => Promise<void>) | undefined)[];
        logits?: Float32Array;
      }
    | undefined;

  private constructor(fields: {
    config: ModelConfig;
    shape: ModelShape;
    pool: CachePool;
    weightBytes: number;
    memoryLimit: number;
    context: number;
    compileOptions: CompileOptions;
    embedding: Embedding;
    shapes: readonly AttentionShape[];
  }) {
    const { config, compileOptions } = fields;
    this.config = config;
    this.shape = fields.shape;
    this.pool = fields.pool;
    this.weightBytes = fields.weightBytes;
    this.memoryLimit = fields.memoryLimit;
    this.context = fields.context;
    this.#embedding = fields.embedding;
    this.#segments = new Segments(buildModel(config), config, compileOptions);
    this.#blocks = new BlockAttention(compileOptions);
    this.#fused = new FusedAttention(compileOptions);
    this.#mechanisms = new MechanismRunner(compileOptions);
    this.#own = ModelMechanism.of(config, compileOptions);
    this.#attention = new AttentionRunner(
      this.shape,
      fields.shapes,
      this.#blocks,
      this.#fused,
      this.#mechanisms,
      this.#own,
    );
    this.cacheBytesPerToken = bytesPerToken(config, fields.pool.type);
  }

  /** Prepares an open checkpoint: compiles every segment, sets the cache's pool up. */
  static async create(
    checkpoint: Checkpoint,
    options: LoadOptions & { threads: number; memory: number; precision: "float32" | "int8" | "int4" },
  ): Promise<Engine> {
    const { config } = checkpoint;
    const bound = boundMechanism(config);
    const shape: ModelShape = {
      layers: config.layers,
      width: config.width,
      heads: config.heads,
      kvHeads: config.kvHeads,
      headDim: config.headDim,
      mlpWidth: config.mlpWidth,
      vocab: config.vocab,
      maxPositions: config.maxPositions,
      hash: checkpoint.hash,
      rotary: config.rotary !== null,
      ...(bound && {
        mechanism: {
          name: bound.name,
          state: bound.state !== undefined,
          ...(bound.memory !== undefined && { memory: bound.memory }),
        },
      }),
    };
    const shapes = Array.from(
      { length: config.layers },
      (_, l): AttentionShape => ({
        heads: config.heads,
        kvHeads: config.kvHeads,
        keyDim: config.headDim,
        valueDim: config.headDim,
        scale: config.attention.scale,
        softcap: config.attention.softcap,
        window: config.attention.windowLayers[l] ? config.attention.window : undefined,
      }),
    );
    const weightBytes = estimateWeightBytes(config, options.precision);
    const limit =
      options.memory - weightBytes - workBytes(config, Math.min(CHUNK, config.maxPositions), options.threads);
    if (limit <= 0)
      throw new FoveaError(
        "out-of-memory",
        `the model's weights need ${megabytes(weightBytes)} as ${options.precision}; the limit is ${megabytes(options.memory)}`,
        { hint: "raise the memory limit, or load with a smaller precision" },
      );
    const pool = new CachePool({
      layers: shapes.map((s) => ({ kvHeads: s.kvHeads, keyDim: s.keyDim, valueDim: s.valueDim })),
      type: options.cache ?? "int8",
      threads: options.threads,
      limitBytes: limit,
      // long enough that a processor does not go to sleep between a layer's parts, which takes longer to undo
      spin: 60,
    });
    const embedding = await Embedding.create(config, checkpoint.weights);
    const engine = new Engine({
      config,
      shape,
      pool,
      weightBytes,
      memoryLimit: options.memory,
      context: contextOf(config, options.context),
      embedding,
      shapes,
      compileOptions: {
        weights: checkpoint.weights,
        precision: options.precision,
        provider: options.provider ?? "cpu",
        threads: options.threads,
      },
    });
    for (let l = 0; l <= config.layers; l++) {
      checkAbort(options.signal);
      await engine.#segments.get(l);
      options.onProgress?.({ stage: "compile", done: l + 1, total: config.layers + 1 });
    }
    return engine;
  }

  compose(methods: readonly AttachedMethod[]): Composed {
    return compose(methods, this.shape);
  }

  /**
   * An empty sequence under composed methods, with the memory that the model's mechanism reads.
   *
   * @throws FoveaError `bad-input`, `bad-shape` as `checkMemory`
   */
  sequence(composed: Composed, memory?: Memory): Sequence {
    checkMemory(this.shape.mechanism, memory);
    // a copy: whoever gave it may write into it
    const own = memory && { data: memory.data.slice(), rows: memory.rows };
    const others = Array.from({ length: (composed.streams?.count ?? 1) - 1 }, (_, i) => {
      return new Sequence(this.pool.create(), composed, this.shape, { memory: own, stream: i + 1 });
    });
    return new Sequence(this.pool.create(), composed, this.shape, { memory: own, others });
  }

  /**
   * Runs rows through the model onto a sequence. Gives the last row's logits [V] (null unless wanted). On an error or an
   * abort the sequence is as it was before.
   */
  async prefill(sequence: Sequence, ids: readonly number[], options: PrefillOptions): Promise<Float32Array | null> {
    if (ids.length === 0) throw new FoveaError("bad-input", "there is no token to run; expected at least one");
    this.#checkRoom(sequence, ids.length, options.reserve ?? 0);
    const mark = sequence.snapshot();
    try {
      let logits: Float32Array | null = null;
      const total = ids.length;
      // pieces of like size: methods look at the last rows of the last one
      const { rowBlock } = sequence.composed;
      const most = Math.min(options.pieceRows ?? PIECE, this.#fusedRows(sequence, options.wanted));
      const even = Math.ceil(total / Math.ceil(total / most));
      const size = Math.ceil(even / rowBlock) * rowBlock;
      for (let first = 0; first < total; first += size) {
        const piece = ids.slice(first, first + size);
        const last = first + piece.length === total;
        const wanted = options.wanted === "all" ? "all" : last ? options.wanted : "none";
        const run = sequence.others.length > 0 ? this.#streams : this.#piece;
        logits = await run.call(this, sequence, piece, first, total, { ...options, wanted });
      }
      sequence.forget(mark);
      return logits;
    } catch (error) {
      sequence.rollback(mark);
      throw error;
    }
  }

  /**
   * One token each for several sequences, through the dense segments together. Logits [V] each, in an array of the
   * sequence's, valid until its next step.
   */
  decode(items: readonly { readonly sequence: Sequence; readonly id: number }[]): Promise<Float32Array[]> {
    return this.#turns.take(async () => {
      if (items.every(({ sequence }) => sequence.others.length === 0)) return this.#decode(items);
      const streams = items.map(({ sequence, id }) => [sequence, ...sequence.others].map((s) => ({ sequence: s, id })));
      const rows = await this.#decode(streams.flat());
      let at = 0;
      return streams.map((own) => {
        const logits = rows.slice(at, (at += own.length));
        const [{ sequence }] = own;
        if (own.length === 1) return logits[0];
        sequence.fused ??= new Float32Array(this.config.vocab);
        return this.#fuse(sequence, logits, sequence.fused, sequence.length - 1, "decode");
      });
    });
  }

  /** How many of these sequences certainly have room for one more token, and the error for the rest, where there are some. */
  fitting(sequences: readonly Sequence[]): { fits: number; error?: FoveaError } {
    const { layers, kvHeads, headDim } = this.config;
    const step = this.#own?.bound.state ? 0 : layers * kvHeads * (16 * headDim * 8 + 256);
    const free = this.pool.limitBytes - this.pool.bytesUsed;
    let taken = 0;
    const late = sequences.findIndex(({ others }) => {
      taken += step * (1 + others.length);
      return step > 0 && taken > free;
    });
    if (late < 0) return { fits: sequences.length };
    return {
      fits: late,
      error: new FoveaError(
        "out-of-memory",
        `the cache is full: ${megabytes(this.pool.bytesUsed)} of ${megabytes(this.pool.limitBytes)} are in use and a token may need ${megabytes(step)}`,
        { hint: "raise the memory limit, generate fewer tokens, or use a method that keeps fewer entries" },
      ),
    };
  }

  /** The ids that a new sequence's prompt becomes under its methods' context hooks, in the order of the methods. */
  async prompt(sequence: Sequence, ids: readonly number[]): Promise<readonly number[]> {
    const { states, memory } = sequence;
    let prompt = ids;
    for (const { index, hooks } of sequence.composed.context)
      prompt =
        (await hooks.context?.({
          ids: prompt,
          model: this.shape,
          probe: (probeIds, options) => this.probe(probeIds, { ...options, ...(memory && { memory }) }),
          get state() {
            return states[index];
          },
          set state(value) {
            states[index] = value;
          },
        })) ?? prompt;
    return prompt;
  }

  /**
   * Runs token ids without methods through the first `layers` layers (default all): the residual stream behind them, and
   * the last row of attention in the layers asked for. Nothing of it is kept.
   */
  async probe(ids: readonly number[], options: ProbeOptions & { memory?: Memory } = {}): Promise<Probed> {
    const { layers = this.config.layers, lastRow = [] } = options;
    const rows = new Map<number, Probed["lastRow"][number]>();
    const ran = Math.min(this.config.layers, Math.max(layers + 1, ...lastRow.map((l) => l + 1)));
    let residual: Float32Array = new Float32Array(0);
    const sequence = this.sequence(
      this.compose([
        {
          name: "probe",
          spec: "",
          hooks: {
            layers: [layers],
            residual: ({ x, firstRow, totalRows, width }) => {
              if (residual.length === 0) residual = new Float32Array(totalRows * width);
              residual.set(x, firstRow * width);
            },
          },
        },
        ...(lastRow.length > 0 ? [lastRowReader(lastRow, rows)] : []),
      ]),
      options.memory,
    );
    try {
      await this.prefill(sequence, ids, { wanted: "none", layers: ran });
      return { residual, lastRow: lastRow.map((l) => rows.get(l) as Probed["lastRow"][number]) };
    } finally {
      sequence.close();
    }
  }

  async close(): Promise<void> {
    await this.#turns.take(async () => {
      await this.#segments.release();
      await this.#blocks.release();
      await this.#fused.release();
      await this.#mechanisms.release();
      await this.#own?.release();
    });
    this.pool.close();
  }

  #checkRoom(sequence: Sequence, rows: number, reserve: number): void {
    const length = sequence.length + rows;
    const limit = this.limit(sequence.composed);
    if (length > limit)
      throw new FoveaError(
        "too-large",
        `${length} tokens are more than the ${limit} positions of the model's context`,
        {
          hint: this.config.learnedPositions
            ? "shorten the text: this model has no embeddings for further positions"
            : "shorten the text, attach a method for longer texts (streaming-llm), or raise the option `context`",
        },
      );
    const piece = Math.min(rows, PIECE);
    const work = workBytes(this.config, piece, 1);
    const cache = Math.max(0, rows + reserve) * this.cacheBytesPerToken * (1 + sequence.others.length);
    const free = this.pool.limitBytes - this.pool.bytesUsed;
    if (work + cache > free)
      throw new FoveaError(
        "out-of-memory",
        `${rows} tokens (and ${reserve} to generate) need ${megabytes(work + cache)}: ${megabytes(cache)} of cache and ` +
          `${megabytes(work)} of work areas; ${megabytes(Math.max(0, free))} are free under the limit of ${megabytes(this.memoryLimit)}`,
        { hint: "raise the memory limit, shorten the text, or use a method that keeps fewer entries" },
      );
  }

  #setRotary(sequence: Sequence, length: number): void {
    if (sequence.tables) return;
    sequence.rotaryLength ||= length;
    sequence.tables = this.#rotary(sequence.rotaryLength);
  }

  /** Rotary tables for a sequence of some length; only dynamic scaling and LongRoPE depend on it. */
  #rotary(length: number): readonly (RotaryTable | null)[] {
    const { rotary, layers } = this.config;
    const plans = Array.from({ length: layers }, (_, l) =>
      rotary ? rotaryPlan(rotaryTable(rotary, l, length), rotaryBase(rotary, l)) : null,
    );
    const key = plans
      .map((p) => (p ? `${p.inverse[1] ?? p.inverse[0]}:${p.inverse.at(-1)}:${p.multiplier}` : "-"))
      .join("|");
    let tables = this.#tables.get(key);
    if (!tables) {
      const made = new Map<string, RotaryTable>();
      tables = plans.map((plan) => {
        if (!plan) return null;
        const id = `${plan.multiplier}:${plan.inverse.join(",")}`;
        const table = made.get(id) ?? new RotaryTable(plan);
        made.set(id, table);
        return table;
      });
      this.#tables.set(key, tables);
    }
    return tables;
  }

  async #piece(
    sequence: Sequence,
    ids: readonly number[],
    offset: number,
    total: number,
    options: PrefillOptions,
  ): Promise<Float32Array | null> {
    const { layers, width, heads, kvHeads, headDim } = this.config;
    const rows = ids.length;
    const phase: Phase = sequence.length === 0 ? "prompt" : rows === 1 ? "decode" : "extend";
    const start = sequence.length;
    const positions = Int32Array.from({ length: rows }, (_, i) => start + i);
    this.#setRotary(sequence, start + total + (options.reserve ?? 0));
    sequence.ids.push(...ids);
    const { composed } = sequence;
    const edit = (
      hook: MethodHooks[] | readonly MethodHooks[],
      name: TapHook,
      layer: number,
      x: Float32Array,
      first: number,
      count: number,
    ) => this.#edit(hook, name, sequence, { layer, phase, positions, first, count, offset, total }, x);

    let x: Float32Array = this.#embedding.rows(ids, positions);
    let next: Float32Array = new Float32Array(rows * width);
    edit(composed.embeddings, "embeddings", 0, x, 0, rows);
    const q = new Float32Array(rows * heads * headDim);
    const k = new Float32Array(rows * kvHeads * headDim);
    const v = new Float32Array(rows * kvHeads * headDim);
    const normed = new Float32Array(this.#own ? rows * width : 0);
    const out = new Float32Array(rows * heads * headDim);
    const wide = heads * headDim;
    const narrow = kvHeads * headDim;
    const ran = Math.min(layers, options.layers ?? layers);
    for (let layer = 0; layer < ran; layer++) {
      const stops = this.#stops(layer, [composed]);
      for (let first = 0; first < rows; first += CHUNK) {
        checkAbort(options.signal);
        const count = Math.min(CHUNK, rows - first);
        const to = first + count;
        await this.#turns.take(() =>
          this.#segment(
            layer,
            stops,
            count,
            { residual: x.subarray(first * width, to * width), heads: out.subarray(first * wide, to * wide) },
            {
              residual: next.subarray(first * width, to * width),
              q: q.subarray(first * wide, to * wide),
              k: k.subarray(first * narrow, to * narrow),
              v: v.subarray(first * narrow, to * narrow),
              ...(this.#own && { attn_in: normed.subarray(first * width, to * width) }),
            },
            (stop, data) => edit(hooksOf(composed, stop), TAP_HOOKS[stop.tap], stop.layer, data, first, count),
          ),
        );
      }
      if (layer > 0) [x, next] = [next, x];
      checkAbort(options.signal);
      const here = composed.layer(layer);
      const last = layer === layers - 1;
      const all =
        !last || options.wanted === "all" || here.everyRow || here.heads.length > 0 || tailHooks(composed, layers);
      const reads = phase === "prompt" ? here.promptReads : here.reads;
      const from = all ? 0 : options.wanted === "none" && !reads ? rows : blockStart(rows - 1, here.rowBlock);
      const input: LayerRows = { phase, rows, positions, firstRow: offset, totalRows: total, q, k, v, x: normed };
      await this.#turns.take(() => this.#attention.run(layer, sequence, input, out, from));
      options.onProgress?.({ stage: "prompt", done: Math.round(offset + (rows * (layer + 1)) / layers), total });
    }
    if (ran < layers) return null;
    const all = options.wanted === "all" || tailHooks(composed, layers);
    if (options.wanted === "none" && !all) return null;
    return this.#logitsOf(sequence, { phase, positions, rows, offset, total }, x, out, all ? 0 : rows - 1, options);
  }

  /** The last segment, from the last layer's heads to logits, in tiles of rows. */
  async #logitsOf(
    sequence: Sequence,
    at: { phase: Phase; positions: Int32Array; rows: number; offset: number; total: number },
    x: Float32Array,
    heads: Float32Array,
    from: number,
    options: PrefillOptions,
  ): Promise<Float32Array | null> {
    const { layers, width, vocab } = this.config;
    const wide = this.config.heads * this.config.headDim;
    const { composed } = sequence;
    const stops = this.#stops(layers, [composed]);
    const tile = Math.max(1, Math.min(CHUNK, Math.floor(LOGITS_BYTES / (4 * vocab))));
    const logits = new Float32Array(Math.min(tile, at.rows - from) * vocab);
    let last: Float32Array | null = null;
    for (let first = from; first < at.rows; first += tile) {
      checkAbort(options.signal);
      const count = Math.min(tile, at.rows - first);
      const here = logits.subarray(0, count * vocab);
      await this.#turns.take(() =>
        this.#segment(
          layers,
          stops,
          count,
          {
            residual: x.subarray(first * width, (first + count) * width),
            heads: heads.subarray(first * wide, (first + count) * wide),
          },
          { logits: here },
          (stop, data) =>
            this.#edit(
              hooksOf(composed, stop),
              TAP_HOOKS[stop.tap],
              sequence,
              { layer: stop.layer, ...at, first, count },
              data,
            ),
        ),
      );
      if (options.wanted === "all") {
        for (let r = 0; r < count; r++)
          this.#editLogits(sequence, here.subarray(r * vocab, (r + 1) * vocab), at.positions[first + r], at.phase);
        options.onLogits?.(at.offset + first, count, here);
      }
      if (first + count === at.rows) last = here.slice((count - 1) * vocab);
    }
    if (last && options.wanted === "last") this.#editLogits(sequence, last, at.positions[at.rows - 1], at.phase);
    return last;
  }

  async #decode(items: readonly { readonly sequence: Sequence; readonly id: number }[]): Promise<Float32Array[]> {
    const { layers, width, heads, kvHeads, headDim, vocab } = this.config;
    const rows = items.length;
    const wide = heads * headDim;
    const narrow = kvHeads * headDim;
    const phase: Phase = "decode";
    const positions = items.map(({ sequence }) => Int32Array.of(sequence.length));
    const flat = positions.map((p) => p[0]);
    for (const { sequence } of items) {
      this.#checkPosition(sequence);
      this.#setRotary(sequence, sequence.length + 1);
    }
    let buffers = this.#decodeBuffers;
    if (buffers?.rows !== rows)
      buffers = this.#decodeBuffers = {
        rows,
        q: new Float32Array(rows * wide),
        k: new Float32Array(rows * narrow),
        v: new Float32Array(rows * narrow),
        input: new Float32Array(this.#own ? rows * width : 0),
        heads: new Float32Array(rows * wide),
        x: [new Float32Array(rows * width), new Float32Array(rows * width)],
        runs: [],
      };
    const { q, k, v } = buffers;
    let [x, next] = buffers.x;
    x.set(
      this.#embedding.rows(
        items.map((i) => i.id),
        flat,
      ),
    );
    const composed = items.map((i) => i.sequence.composed);
    const edit = (hooks: (c: Composed) => readonly MethodHooks[], name: TapHook, layer: number, data: Float32Array) => {
      const size = data.length / rows;
      items.forEach(({ sequence }, i) => {
        const step = { layer, phase, positions: positions[i], first: 0, count: 1, offset: 0, total: 1 };
        this.#edit(hooks(sequence.composed), name, sequence, step, data.subarray(i * size, (i + 1) * size));
      });
    };
    edit((c) => c.embeddings, "embeddings", 0, x);
    const onStop = (stop: Stop, data: Float32Array) =>
      edit((c) => hooksOf(c, stop), TAP_HOOKS[stop.tap], stop.layer, data);
    const { runs, heads: ofHeads } = buffers;
    const advance = async (index: number, into: Record<string, Float32Array>) => {
      const stops = this.#stops(index, composed);
      const from = { residual: x, heads: ofHeads };
      if (stops.length > 0) return this.#segment(index, stops, rows, from, into, onStop);
      // the same arrays at every step
      runs[index] ??= await this.#bind(index, rows, from, into);
      return runs[index]?.();
    };
    for (let layer = 0; layer < layers; layer++) {
      await advance(layer, { residual: next, q, k, v, ...(this.#own && { attn_in: buffers.input }) });
      if (layer > 0) [x, next] = [next, x];
      for (let i = 0; i < rows; i++) {
        const { sequence } = items[i];
        const part = <A extends Float32Array>(a: A, n: number) => (rows === 1 ? a : a.subarray(i * n, (i + 1) * n));
        const out = part(buffers.heads, wide);
        if (this.#attention.plain(layer, sequence))
          this.#attention.decodePlain(layer, sequence, flat[i], part(q, wide), part(k, narrow), part(v, narrow), out);
        else
          await this.#attention.run(
            layer,
            sequence,
            // one literal: copying objects here took a tenth of a token's time
            {
              phase,
              rows: 1,
              positions: positions[i],
              q: part(q, wide),
              k: part(k, narrow),
              v: part(v, narrow),
              x: part(buffers.input, width),
            },
            out,
          );
      }
    }
    // one sequence's logits go straight into its own array
    for (const { sequence } of items) sequence.logits ??= new Float32Array(vocab);
    const shared = rows > 1 ? (buffers.logits ?? new Float32Array(rows * vocab)) : undefined;
    const logits = shared ?? (items[0].sequence.logits as Float32Array);
    if (buffers.logits !== logits) {
      buffers.logits = logits;
      runs[layers] = undefined;
    }
    await advance(layers, { logits });
    return items.map(({ sequence, id }, i) => {
      sequence.ids.push(id);
      const own = sequence.logits as Float32Array;
      if (rows > 1) own.set(logits.subarray(i * vocab, (i + 1) * vocab));
      this.#editLogits(sequence, own, flat[i], phase);
      return own;
    });
  }

  /** Tokens that a sequence under these methods may hold. */
  limit(composed: Composed): number {
    return composed.beyondContext ? Number.POSITIVE_INFINITY : this.context;
  }

  #checkPosition(sequence: Sequence): void {
    const limit = this.limit(sequence.composed);
    if (sequence.length >= limit)
      throw new FoveaError("too-large", `the sequence fills the ${limit} positions of the model's context`);
  }

  /** Runs the links of one dense segment on some rows, hooks at its stops, results into the arrays given. */
  async #segment(
    index: number,
    stops: readonly Stop[],
    rows: number,
    from: { residual: Float32Array; heads: Float32Array },
    into: Record<string, Float32Array>,
    onStop: (stop: Stop, data: Float32Array) => void,
  ): Promise<void> {
    const links = await this.#segments.get(index, stops);
    // the residual entering layer 0 is known before anything runs: its hook acts on it at once
    if (index === 0 && stops.length > 0) onStop(stops[0], from.residual);
    const known = this.#known(index, rows, from);
    for (const link of links) {
      const { segment, outputs, stop } = link;
      const { feeds, fetches } = arraysOf(link, index, rows, known, into);
      await segment.run(feeds, fetches);
      if (stop) {
        for (const name of outputs) known[name] = fetches[name];
        onStop(stop, known[`${stop.tap}.${stop.layer}`].data);
      }
    }
  }

  /** The run of a segment without stops on the same arrays, again and again. */
  async #bind(
    index: number,
    rows: number,
    from: { residual: Float32Array; heads: Float32Array },
    into: Record<string, Float32Array>,
  ): Promise<() => Promise<void>> {
    const [link] = await this.#segments.get(index);
    const { feeds, fetches } = arraysOf(link, index, rows, this.#known(index, rows, from), into);
    return link.segment.bind(feeds, fetches);
  }

  /** What segment `index` begins with: residual [rows, d] and, behind a layer, its heads' outputs [rows, Hq, D]. */
  #known(index: number, rows: number, from: { residual: Float32Array; heads: Float32Array }): Arrays {
    const { width, heads, headDim } = this.config;
    const before = Math.max(0, index - 1);
    return {
      [`residual.${before}`]: { data: from.residual, dims: [rows, width] },
      ...(index > 0 && { [`heads.${before}`]: { data: from.heads, dims: [rows, heads, headDim] } }),
    };
  }

  /** Where the hooks of any of these methods need segment `index` cut. */
  #stops(index: number, composed: readonly Composed[]): readonly Stop[] {
    if (composed.every((c) => c.methods.length === 0)) return NO_STOPS;
    const stops: Stop[] = [];
    const add = (tap: Stop["tap"], layer: number) => {
      if (composed.some((c) => hooksOf(c, { tap, layer }).length > 0)) stops.push({ tap, layer });
    };
    if (index > 0) for (const tap of ["attn_out", "mlp_gate", "mlp_out"] as const) add(tap, index - 1);
    add("residual", index);
    return stops;
  }

  #edit(
    hooks: readonly MethodHooks[],
    name: TapHook,
    sequence: Sequence,
    at: {
      layer: number;
      phase: Phase;
      positions: Int32Array;
      first: number;
      count: number;
      offset: number;
      total: number;
    },
    x: Float32Array,
  ): void {
    for (const { index, hooks: h } of hooks) {
      const { states } = sequence;
      const step: TapStep = {
        layer: at.layer,
        phase: at.phase,
        rows: at.count,
        positions: at.positions.subarray(at.first, at.first + at.count),
        firstRow: at.offset + at.first,
        totalRows: at.total,
        model: this.shape,
        x,
        width: x.length / at.count,
        get state() {
          return states[index];
        },
        set state(value) {
          states[index] = value;
        },
      };
      h[name]?.(step);
    }
  }

  /** Rows of a piece whose logits of all streams are held at once. */
  #fusedRows(sequence: Sequence, wanted: Wanted): number {
    if (sequence.others.length === 0 || wanted !== "all") return PIECE;
    return Math.max(1, Math.floor((4 * LOGITS_BYTES) / (4 * this.config.vocab * (1 + sequence.others.length))));
  }

  /** A piece of a prompt in every stream, one after the other, and the rows of logits made one. */
  async #streams(
    sequence: Sequence,
    ids: readonly number[],
    offset: number,
    total: number,
    options: PrefillOptions,
  ): Promise<Float32Array | null> {
    const { vocab } = this.config;
    const streams = [sequence, ...sequence.others];
    const start = sequence.length;
    const phase: Phase = start === 0 ? "prompt" : ids.length === 1 ? "decode" : "extend";
    const all = options.wanted === "all" ? streams.map(() => new Float32Array(ids.length * vocab)) : [];
    const lasts: Float32Array[] = [];
    for (const [i, stream] of streams.entries()) {
      const last = await this.#piece(stream, ids, offset, total, {
        ...options,
        onLogits: (first, rows, data) => all[i].set(data.subarray(0, rows * vocab), (first - offset) * vocab),
        onProgress: ({ done, ...rest }) =>
          options.onProgress?.({
            ...rest,
            done: Math.round(offset + (i * ids.length + done - offset) / streams.length),
          }),
      });
      if (last) lasts.push(last);
    }
    if (options.wanted === "none") return null;
    if (options.wanted === "last")
      return this.#fuse(sequence, lasts, new Float32Array(vocab), start + ids.length - 1, phase);
    const fused = new Float32Array(ids.length * vocab);
    const row = (data: Float32Array, r: number) => data.subarray(r * vocab, (r + 1) * vocab);
    for (let r = 0; r < ids.length; r++) {
      const own = all.map((data) => row(data, r));
      this.#fuse(sequence, own, row(fused, r), start + r, phase);
    }
    options.onLogits?.(offset, ids.length, fused);
    return row(fused, ids.length - 1).slice();
  }

  /** One row of logits of all streams', edited as the row of a single sequence is. */
  #fuse(
    sequence: Sequence,
    logits: readonly Float32Array[],
    into: Float32Array,
    position: number,
    phase: Phase,
  ): Float32Array {
    sequence.composed.streams?.fuse(logits, into);
    this.#runLogitsHooks(sequence, into, position, phase);
    return into;
  }

  /** Edits a row of logits, unless it is one of several streams': then the fused row is edited. */
  #editLogits(sequence: Sequence, logits: Float32Array, position: number, phase: Phase): void {
    if (!sequence.composed.streams) this.#runLogitsHooks(sequence, logits, position, phase);
  }

  #runLogitsHooks(sequence: Sequence, logits: Float32Array, position: number, phase: Phase): void {
    const { states } = sequence;
    for (const { index, hooks } of sequence.composed.logits)
      hooks.logits?.({
        layer: this.config.layers,
        phase,
        rows: 1,
        positions: Int32Array.of(position),
        firstRow: 0,
        totalRows: 1,
        model: this.shape,
        logits,
        ids: sequence.ids,
        get state() {
          return states[index];
        },
        set state(value) {
          states[index] = value;
        },
      });
  }
}

/** Reads the last row of attention in some layers, where the rows have attended: prompts run as without it. */
function lastRowReader(layers: readonly number[], into: Map<number, Probed["lastRow"][number]>): AttachedMethod {
  return {
    name: "last row",
    spec: "",
    hooks: {
      layers,
      async retain(step) {
        if (step.when !== "after" || step.firstRow + step.rows < step.totalRows) return;
        into.set(step.layer, { products: lastProducts(step), weights: await step.weights(1) });
      },
    },
  };
}

/** q.k of the step's last row: [Hq, S]. */
function lastProducts({ q, queryRows, view, model }: RetainStep): Float32Array {
  const { heads, kvHeads, headDim } = model;
  const keys = view.length(0);
  const products = new Float32Array(heads * keys);
  for (let kv = 0; kv < kvHeads; kv++) {
    const k = view.keys(kv);
    for (let h = (kv * heads) / kvHeads; h < ((kv + 1) * heads) / kvHeads; h++) {
      const row = q.subarray(((queryRows - 1) * heads + h) * headDim);
      for (let i = 0, at = 0; i < keys; i++) {
        let dot = 0;
        for (let d = 0; d < headDim; d++, at++) dot += row[d] * k[at];
        products[h * keys + i] = dot;
      }
    }
  }
  return products;
}

type TapHook = "embeddings" | "attnOut" | "mlp" | "mlpOut" | "residual";
const TAP_HOOKS = { attn_out: "attnOut", mlp_gate: "mlp", mlp_out: "mlpOut", residual: "residual" } as const;
const NO_STOPS: readonly Stop[] = [];

function hooksOf(composed: Composed, stop: Stop): readonly MethodHooks[] {
  return composed.layer(stop.layer)[TAP_HOOKS[stop.tap]];
}

/** Hooks behind the last layer's attention that want to see every row. */
function tailHooks(composed: Composed, layers: number): boolean {
  const last = composed.layer(layers - 1);
  return last.attnOut.length + last.mlp.length + last.mlpOut.length + composed.layer(layers).residual.length > 0;
}

/** The first row of the block of rows that a row lies in. */
function blockStart(row: number, rowBlock: number): number {
  return row - (row % rowBlock);
}

function rotaryPlan(table: { inverse: Float32Array; multiplier: number }, base: number): RotaryPlan {
  return { inverse: table.inverse, multiplier: table.multiplier, dims: table.inverse.length * 2, base };
}

function megabytes(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0)} MiB`;
}

/** The context asked for, within what the model has positions for. */
function contextOf(config: ModelConfig, asked: number | undefined): number {
  if (asked === undefined) return config.maxPositions;
  if (!Number.isInteger(asked) || asked < 1)
    throw new FoveaError("bad-input", `context is ${asked}; expected a whole number of at least 1`);
  if (config.learnedPositions && asked > config.maxPositions)
    throw new FoveaError(
      "unsupported",
      `a context of ${asked} was asked for; the model has embeddings for ${config.maxPositions} positions`,
    );
  return asked;
}

/** Bytes of weights in the dense segments and the embedding table. */
function estimateWeightBytes(config: ModelConfig, precision: "float32" | "int8" | "int4"): number {
  const per = { float32: 4, int8: 1.125, int4: 0.625 }[precision];
  const { width, heads, kvHeads, headDim, mlpWidth, vocab, layers, gated } = config;
  const layer = width * headDim * (2 * heads + 2 * kvHeads) + width * mlpWidth * (gated ? 3 : 2);
  return Math.ceil(per * (layers * layer + 2 * vocab * width));
}

/**
 * Bytes of cache that one token takes in all layers, page bounds and page tables included; none where a mechanism carries
 * a state of fixed size instead.
 */
export function bytesPerToken(config: ModelConfig, type: "float32" | "int8"): number {
  const { layers, kvHeads, headDim } = config;
  if (boundMechanism(config)?.state) return 0;
  const perHead = type === "float32" ? 8 * headDim : headDim * (1 + 4 / 16) + headDim + 4;
  return layers * kvHeads * (perHead + 12 / 16);
}

/** Bytes of activations that a prompt of some rows needs at once: projections, residuals, fused attention, one chunk's MLP. */
function workBytes(config: ModelConfig, rows: number, threads: number): number {
  const { width, heads, kvHeads, headDim, mlpWidth, vocab } = config;
  const perRow = 2 * width + 5 * heads * headDim + 4 * kvHeads * headDim;
  const chunk = Math.min(rows, CHUNK) * (3 * mlpWidth + 4 * width);
  return 4 * (rows * perRow + chunk + vocab) + LOGITS_BYTES + threads * (1 << 20);
}

/** What a link of segment `index` reads of what is known, and where it writes: into the arrays given, else into new ones. */
function arraysOf(
  { inputs, outputs, tails }: Link,
  index: number,
  rows: number,
  known: Readonly<Arrays>,
  into: Readonly<Record<string, Float32Array>>,
): { feeds: Arrays; fetches: Arrays } {
  const feeds: Arrays = {};
  for (const name of inputs) feeds[name] = known[name];
  const fetches: Arrays = {};
  outputs.forEach((name, i) => {
    const target = into[name === `residual.${index}` ? "residual" : name];
    const size = tails[i].reduce((a, b) => a * b, rows);
    fetches[name] = { data: target ?? new Float32Array(size), dims: [rows, ...tails[i]] };
  });
  return { feeds, fetches };
}
