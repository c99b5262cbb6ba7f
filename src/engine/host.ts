import { checkAbort, FoveaError } from "../error.js";
import type { Checkpoint, Memory } from "../models/index.js";
import type {
  GenerateOptions,
  GenerateResult,
  LoadOptions,
  Measured,
  MeasureOptions,
  ModelInfo,
  Progress,
  ScoreResult,
} from "./api.js";
import type { Composed } from "./compose.js";
import { Decoder } from "./decoder.js";
import { Engine } from "./engine.js";
import type { AttachedMethod, ObserveStep } from "./hooks.js";
import { measureAnswer } from "./measure.js";
import { checkSampling, logSumExp, Random, sample } from "./sampling.js";
import { decodeSequence, encodeSequence, type Fingerprint, type Sequence } from "./sequence.js";
import { StopText } from "./stop-text.js";

/** Methods as they reach the engine: strings resolve in the engine's thread, objects only where it is the caller's. */
export type MethodList = readonly (string | AttachedMethod)[];
/** Turns strings into methods: the catalog's `resolve`, handed in because the engine knows no method. */
export type ResolveMethods = (methods: MethodList) => Promise<AttachedMethod[]>;

/** Observed rows on their way to a reducer: all heads, or the one asked for. */
export interface ObservedRows {
  readonly layer: number;
  readonly phase: ObserveStep["phase"];
  readonly rows: number;
  readonly firstRow: number;
  readonly totalRows: number;
  readonly positions: Int32Array;
  readonly keys: number;
  readonly heads: number;
  readonly data: Float32Array; // [heads, rows, keys]
  readonly keyPositions: readonly Int32Array[]; // per KV head
}

/** What the host can be asked: arguments, what it says meanwhile, and the answer. */
export interface Operations {
  info: { args: { methods: MethodList }; event: never; result: ModelInfo };
  generate: {
    args: {
      ids: readonly number[];
      reading?: number;
      methods: MethodList;
      options: Omit<GenerateOptions, "signal" | "onProgress" | "memory">;
      memory?: Memory | undefined;
    };
    event: { piece: { id: number; text: string } } | { progress: Progress };
    result: GenerateResult;
  };
  score: {
    args: { ids: readonly number[]; reading?: number; methods: MethodList; memory?: Memory | undefined };
    event: { progress: Progress };
    result: ScoreResult;
  };
  measure: {
    args: { ids: readonly number[]; reading: number; options: Omit<MeasureOptions, "signal"> };
    event: never;
    result: Measured;
  };
  logits: {
    args: { ids: readonly number[]; rows: "last" | "all"; methods: MethodList; memory?: Memory | undefined };
    event: never;
    result: Float32Array;
  };
  read: {
    args: { ids: readonly number[]; methods: MethodList; memory?: Memory | undefined };
    event: { progress: Progress };
    result: ReadingInfo;
  };
  extend: { args: { reading: number; ids: readonly number[] }; event: never; result: ReadingInfo };
  fork: { args: { reading: number }; event: never; result: ReadingInfo };
  close: { args: { reading: number }; event: never; result: undefined };
  save: { args: { reading: number; file: string }; event: never; result: undefined };
  open: {
    args: { file: string; methods: MethodList; memory?: Memory | undefined };
    event: never;
    result: ReadingInfo;
  };
  observe: {
    args: {
      ids: readonly number[];
      /** The rows of a continuation only. */
      reading?: number;
      methods: MethodList;
      layers?: readonly number[];
      head?: number;
    };
    event: { rows: ObservedRows };
    result: undefined;
  };
  shutdown: { args: Record<string, never>; event: never; result: undefined };
}
export type OperationName = keyof Operations;

export interface ReadingInfo {
  readonly reading: number;
  readonly ids: readonly number[];
  readonly bytes: number;
  readonly peakBytes: number;
}

/** What an operation is given beside its arguments. */
export interface Call<Event> {
  readonly signal?: AbortSignal;
  /** Resolves when the receiver has taken the event in. */
  emit(event: Event): Promise<void> | void;
}

export interface HostOptions extends LoadOptions {
  readonly threads: number;
  readonly memory: number;
  readonly precision: "float32" | "int8" | "int4";
}

/**
 * The engine behind one loaded checkpoint, as a set of operations on plain data: it runs in a worker or in the calling
 * thread, and each caller sees the same.
 */
export class Host {
  readonly #checkpoint: Checkpoint;
  readonly #engine: Engine;
  readonly #decoder: Decoder;
  readonly #options: HostOptions;
  readonly #resolve: ResolveMethods;
  readonly #readings = new Map<number, { sequence: Sequence; busy: Promise<unknown>; peakBytes: number }>();
  readonly #composed = new Map<string, Promise<Composed>>();
  #nextReading = 1;
  #closed = false;

  private constructor(checkpoint: Checkpoint, engine: Engine, options: HostOptions, resolve: ResolveMethods) {
    this.#checkpoint = checkpoint;
    this.#engine = engine;
    this.#decoder = new Decoder(engine);
    this.#options = options;
    this.#resolve = resolve;
  }

  static async create(checkpoint: Checkpoint, options: HostOptions, resolve: ResolveMethods): Promise<Host> {
    return new Host(checkpoint, await Engine.create(checkpoint, options), options, resolve);
  }

  /** Runs one operation. Throws `closed` after `shutdown`. */
  async call<K extends OperationName>(
    name: K,
    args: Operations[K]["args"],
    call: Call<Operations[K]["event"]>,
  ): Promise<Operations[K]["result"]> {
    if (this.#closed) throw new FoveaError("closed", "the model is closed");
    const run = this.#operations[name] as (args: unknown, call: unknown) => Promise<unknown>;
    return (await run(args, call)) as Operations[K]["result"];
  }

  readonly #operations: {
    [K in OperationName]: (
      args: Operations[K]["args"],
      call: Call<Operations[K]["event"]>,
    ) => Promise<Operations[K]["result"]>;
  } = {
    info: async ({ methods }) => this.#info(await this.#compose(methods)),

    generate: async ({ ids, reading, methods, options, memory }, call) => {
      checkSampling(options);
      const { sequence, prompt } = await this.#begin(ids, reading, methods, memory);
      try {
        const after = reading === undefined ? undefined : this.#last.get(reading);
        return await this.#generate(sequence, prompt, after, options, call);
      } finally {
        sequence.close();
      }
    },

    score: async ({ ids, reading, methods, memory }, call) => {
      const { sequence, prompt } = await this.#begin(ids, reading, methods, memory);
      try {
        return await this.#score(sequence, prompt, reading === undefined ? undefined : this.#last.get(reading), call);
      } finally {
        sequence.close();
      }
    },

    measure: async ({ ids, reading, options }, call) => {
      const { sequence } = await this.#begin(ids, reading, []);
      const leave = this.#decoder.enter();
      try {
        const { tokenizer, config } = this.#checkpoint;
        const step = (id: number) => this.#decoder.step(sequence, id);
        return await measureAnswer(
          { sequence, step, shape: this.#engine.shape, eos: config.eos, decode: (out) => tokenizer.decode(out) },
          ids,
          { ...options, signal: call.signal },
        );
      } finally {
        leave();
        sequence.close();
      }
    },

    logits: async ({ ids, rows, methods, memory }, call) => {
      const { sequence, prompt } = await this.#begin(ids, undefined, methods, memory);
      try {
        if (rows === "last")
          return (
            (await this.#engine.prefill(sequence, prompt, { wanted: "last", signal: call.signal })) ??
            new Float32Array(0)
          );
        const { vocab } = this.#engine.config;
        if (prompt.length * vocab * 4 > 2 ** 30)
          throw new FoveaError(
            "too-large",
            `logits of ${prompt.length} rows over ${vocab} tokens take more than 1 GiB`,
            {
              hint: "ask for the last row, or use score",
            },
          );
        const out = new Float32Array(prompt.length * vocab);
        await this.#engine.prefill(sequence, prompt, {
          wanted: "all",
          signal: call.signal,
          onLogits: (first, _n, data) => out.set(data, first * vocab),
        });
        return out;
      } finally {
        sequence.close();
      }
    },

    read: async ({ ids, methods, memory }, call) => {
      const { sequence, prompt } = await this.#begin(ids, undefined, methods, memory);
      try {
        let peak = 0;
        const logits = await this.#engine.prefill(sequence, prompt, {
          wanted: "last",
          signal: call.signal,
          onProgress: (progress) => {
            // once a layer: what was evicted by then has been freed
            peak = Math.max(peak, sequence.bytes);
            void call.emit({ progress });
          },
        });
        return this.#keep(sequence, logits, Math.max(peak, sequence.bytes));
      } catch (error) {
        sequence.close();
        throw error;
      }
    },

    extend: async ({ reading, ids }, call) => {
      const held = this.#reading(reading);
      const run = held.busy.then(async () => {
        this.#last.set(
          reading,
          await this.#engine.prefill(held.sequence, ids, { wanted: "last", signal: call.signal }),
        );
      });
      held.busy = run.catch(() => undefined);
      await run;
      return this.#describe(reading);
    },

    fork: async ({ reading }) => {
      const held = this.#reading(reading);
      await held.busy;
      return this.#keep(held.sequence.fork(this.#engine.shape), this.#last.get(reading) ?? null);
    },

    close: async ({ reading }) => {
      const held = this.#readings.get(reading);
      this.#readings.delete(reading);
      this.#last.delete(reading);
      await held?.busy;
      held?.sequence.close();
      return undefined;
    },

    save: async ({ reading, file }) => {
      const held = this.#reading(reading);
      await held.busy;
      const parts = encodeSequence(
        held.sequence,
        this.#last.get(reading) ?? null,
        this.#fingerprint(held.sequence.composed),
      );
      await writeParts(file, parts);
      return undefined;
    },

    open: async ({ file, methods, memory }) => {
      const composed = await this.#compose(methods);
      needFiles(file);
      const { readFile } = await import("node:fs/promises");
      const bytes = await readFile(file).catch((cause: unknown) => {
        throw new FoveaError("not-found", `cannot read the saved reading ${file}`, { cause, hint: "check the path" });
      });
      const { sequence, logits } = decodeSequence(
        bytes,
        this.#engine.pool,
        composed,
        this.#engine.shape,
        this.#fingerprint(composed),
        memory,
      );
      return this.#keep(sequence, logits);
    },

    observe: async ({ ids, reading, methods, layers, head }, call) => {
      const observer: AttachedMethod = {
        name: "observer",
        spec: "",
        hooks: {
          layers,
          observe: (step) => call.emit({ rows: observed(step, head) }),
        },
      };
      const { sequence, prompt } =
        reading === undefined
          ? await this.#begin(ids, undefined, [...methods, observer])
          : { sequence: await this.#observed(reading, observer), prompt: ids };
      try {
        await this.#engine.prefill(sequence, prompt, { wanted: "none", signal: call.signal });
        return undefined;
      } finally {
        sequence.close();
      }
    },

    shutdown: async () => {
      this.#closed = true;
      for (const { sequence } of this.#readings.values()) sequence.close();
      this.#readings.clear();
      await this.#engine.close();
      await this.#checkpoint.close();
      return undefined;
    },
  };
  /** Logits after a reading's last token: an empty continuation starts from them. */
  readonly #last = new Map<number, Float32Array | null>();

  #info(composed: Composed): ModelInfo {
    const { config, shape } = this.#engine;
    return {
      name: this.#checkpoint.name,
      family: config.family,
      shape,
      parameters: this.#checkpoint.parameters,
      weightBytes: this.#engine.weightBytes,
      cacheBytesPerToken: this.#engine.cacheBytesPerToken,
      cacheType: this.#engine.pool.type,
      precision: this.#options.precision,
      provider: this.#options.provider ?? "cpu",
      threads: this.#options.threads,
      methods: composed.methods.map((m) => m.spec),
    };
  }

  #fingerprint(composed: Composed): Fingerprint {
    return {
      model: this.#engine.shape.hash,
      methods: composed.spec,
      precision: this.#options.precision,
      cache: this.#engine.pool.type,
    };
  }

  /** Methods composed; the same strings are composed once. */
  async #compose(methods: MethodList): Promise<Composed> {
    if (!methods.every((m) => typeof m === "string")) return this.#engine.compose(await this.#resolve(methods));
    const key = JSON.stringify(methods);
    let composed = this.#composed.get(key);
    if (!composed) {
      composed = this.#resolve(methods).then((m) => this.#engine.compose(m));
      composed.catch(() => this.#composed.delete(key));
      this.#composed.set(key, composed);
    }
    return composed;
  }

  #reading(reading: number) {
    const held = this.#readings.get(reading);
    if (!held) throw new FoveaError("closed", "the reading is closed");
    return held;
  }

  #keep(sequence: Sequence, logits: Float32Array | null, peakBytes = sequence.bytes): ReadingInfo {
    const reading = this.#nextReading++;
    this.#readings.set(reading, { sequence, busy: Promise.resolve(), peakBytes });
    this.#last.set(reading, logits);
    return this.#describe(reading);
  }

  #describe(reading: number): ReadingInfo {
    const { sequence, peakBytes } = this.#reading(reading);
    return { reading, ids: [...sequence.ids], bytes: sequence.bytes, peakBytes };
  }

  /** A reading's sequence going its own way, with an observer behind its methods. */
  async #observed(reading: number, observer: AttachedMethod): Promise<Sequence> {
    const held = this.#reading(reading);
    await held.busy;
    const composed = await this.#compose([...held.sequence.composed.methods, observer]);
    return held.sequence.fork(this.#engine.shape, composed);
  }

  /** A new sequence, or a fork of a reading, and the ids that it goes on with after the methods' context hooks. */
  async #begin(
    ids: readonly number[],
    reading: number | undefined,
    methods: MethodList,
    memory?: Memory,
  ): Promise<{ sequence: Sequence; prompt: readonly number[] }> {
    if (reading !== undefined) {
      if (memory)
        throw new FoveaError("bad-input", "a memory was given to go on from a reading, which has its own", {
          hint: "read the text with this memory, and go on from that reading",
        });
      const held = this.#reading(reading);
      await held.busy;
      return { sequence: held.sequence.fork(this.#engine.shape), prompt: ids };
    }
    const composed = await this.#compose(methods);
    const sequence = this.#engine.sequence(composed, memory);
    try {
      return { sequence, prompt: await this.#engine.prompt(sequence, ids) };
    } catch (error) {
      sequence.close();
      throw error;
    }
  }

  async #generate(
    sequence: Sequence,
    prompt: readonly number[],
    after: Float32Array | null | undefined,
    options: Operations["generate"]["args"]["options"],
    call: Call<Operations["generate"]["event"]>,
  ): Promise<GenerateResult> {
    const { maxTokens = 128, stop = [], ignoreEos = false, seed = 0 } = options;
    if (!Number.isInteger(maxTokens) || maxTokens < 0)
      throw new FoveaError("bad-input", `maxTokens is ${maxTokens}; expected a whole number of 0 or more`);
    const { tokenizer, config } = this.#checkpoint;
    const random = new Random(seed);
    const begun = performance.now();
    // a reading goes on from its own last row when nothing is added
    let logits =
      prompt.length === 0 && after
        ? after.slice()
        : await this.#engine.prefill(sequence, prompt, {
            wanted: "last",
            reserve: maxTokens,
            signal: call.signal,
            onProgress: (progress) => void call.emit({ progress }),
          });
    const prefilled = performance.now();
    const stream = tokenizer.stream();
    const out = new StopText(stop);
    const ids: number[] = [];
    const eos = new Set(config.eos);
    let finish: GenerateResult["finish"] = "length";
    const leave = this.#decoder.enter();
    try {
      // the last token takes no position: nothing is read behind it
      const most = Math.min(maxTokens, this.#engine.limit(sequence.composed) - sequence.length + 1);
      while (ids.length < most && logits) {
        if (call.signal?.aborted) {
          finish = "aborted";
          break;
        }
        const id = sample(logits, sequence.ids, options, random);
        if (!ignoreEos && eos.has(id)) {
          finish = "eos";
          break;
        }
        ids.push(id);
        const text = out.push(stream.push(id));
        void call.emit({ piece: { id, text } });
        if (out.stopped) {
          finish = "stop";
          break;
        }
        if (ids.length < most) logits = await this.#decoder.step(sequence, id);
      }
    } finally {
      leave();
    }
    const rest = out.end(stream.end());
    if (rest) void call.emit({ piece: { id: ids.at(-1) ?? -1, text: rest } });
    const ended = performance.now();
    if (finish === "aborted" && ids.length === 0) checkAbort(call.signal);
    const promptMs = prefilled - begun;
    const generateMs = ended - prefilled;
    return {
      prompt_ids: [...prompt],
      ids,
      text: out.text,
      finish,
      cache_bytes: sequence.bytes,
      timings: {
        prompt_tokens: prompt.length,
        prompt_ms: promptMs,
        generated_tokens: ids.length,
        generate_ms: generateMs,
        prefill_tps: prompt.length === 0 ? 0 : (prompt.length / promptMs) * 1000,
        // the first token comes from the prompt's own logits
        decode_tps: ids.length > 1 ? ((ids.length - 1) / generateMs) * 1000 : 0,
      },
    };
  }

  async #score(
    sequence: Sequence,
    ids: readonly number[],
    before: Float32Array | null | undefined,
    call: Call<Operations["score"]["event"]>,
  ): Promise<ScoreResult> {
    const { tokenizer } = this.#checkpoint;
    const { vocab } = this.#engine.config;
    const logprobs = new Float64Array(ids.length);
    if (before) logprobs[0] = before[ids[0]] - logSumExp(before);
    await this.#engine.prefill(sequence, ids, {
      wanted: "all",
      signal: call.signal,
      onLogits: (first, rows, logits) => {
        for (let r = 0; r < rows; r++) {
          const target = first + r + 1;
          if (target >= ids.length) continue;
          const row = logits.subarray(r * vocab, (r + 1) * vocab);
          logprobs[target] = row[ids[target]] - logSumExp(row);
        }
        void call.emit({ progress: { stage: "score", done: first + rows, total: ids.length } });
      },
    });
    let sum = 0;
    for (const x of logprobs) sum += x;
    return { tokens: ids.map((id, i) => ({ id, text: tokenizer.piece(id), logprob: logprobs[i] })), logprob: sum };
  }
}

function observed(step: ObserveStep, head: number | undefined): ObservedRows {
  const { weights } = step;
  const size = weights.rows * weights.keys;
  return {
    layer: step.layer,
    phase: step.phase,
    rows: weights.rows,
    firstRow: step.firstRow,
    totalRows: step.totalRows,
    positions: step.positions.slice(),
    keys: weights.keys,
    heads: head === undefined ? weights.heads : 1,
    data: head === undefined ? weights.data.slice() : weights.data.slice(head * size, (head + 1) * size),
    keyPositions: Array.from({ length: step.model.kvHeads }, (_, h) => step.keyPositions(h)),
  };
}

/** Throws where there is no file system. */
function needFiles(file: string): void {
  if (typeof process !== "undefined" && process.versions?.node) return;
  throw new FoveaError("unsupported", `the reading cannot be kept in ${file}: there is no file system here`, {
    hint: "In a browser a reading lives as long as its model.",
  });
}

/** Writes a file whole or not at all: under a temporary name beside it, then renamed. */
async function writeParts(file: string, parts: readonly Uint8Array[]): Promise<void> {
  needFiles(file);
  const { open, rename, rm } = await import("node:fs/promises");
  const temporary = `${file}.${process.pid}.tmp`;
  try {
    const handle = await open(temporary, "w");
    try {
      for (const part of parts) await handle.write(part);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(temporary, file);
  } catch (cause) {
    await rm(temporary, { force: true });
    throw new FoveaError(
      "bad-file",
      `cannot write ${file}: ${cause instanceof Error ? cause.message : String(cause)}`,
      { cause },
    );
  }
}
