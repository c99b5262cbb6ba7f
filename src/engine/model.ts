import { FoveaError } from "../error.js";
import { createChatTemplate, templateTokens } from "../models/chat.js";
import type { ModelConfig, Tokenizer } from "../models/index.js";
import type {
  AttentionMap,
  GenerateOptions,
  GenerateResult,
  Generation,
  MemoryOption,
  Message,
  MethodInput,
  Model,
  ModelInfo,
  Piece,
  Progress,
  Prompt,
  PromptInput,
  Reading,
  Reducer,
  ReducerRun,
  ScoreResult,
} from "./api.js";
import type { Connection } from "./connection.js";
import type { ObserveStep } from "./hooks.js";
import type { MethodList, ObservedRows, ReadingInfo } from "./host.js";
import { idsOf, TokenizedPrompt } from "./prompt.js";

/** What the caller's side of a model holds: no weights. */
export interface ModelParts {
  readonly connection: Connection;
  readonly config: ModelConfig;
  readonly tokenizer: Tokenizer;
  /** Jinja source of the chat format. */
  readonly chatTemplate?: string;
  readonly info: ModelInfo;
  readonly methods: MethodList;
}

/** A model as its user sees it; the engine may be in another thread. */
export function createModel(parts: ModelParts): Model {
  return new ConnectedModel(parts);
}

class ConnectedModel implements Model {
  readonly #parts: ModelParts;

  constructor(parts: ModelParts) {
    this.#parts = parts;
  }

  get info(): ModelInfo {
    return this.#parts.info;
  }
  get config(): ModelConfig {
    return this.#parts.config;
  }
  get tokenizer(): Tokenizer {
    return this.#parts.tokenizer;
  }

  with(...methods: MethodInput[]): Model {
    const all = [...this.#parts.methods, ...methods];
    const specs = all.map((m) => (typeof m === "string" ? m : m.spec)).filter((s) => s !== "");
    return new ConnectedModel({ ...this.#parts, methods: all, info: { ...this.#parts.info, methods: specs } });
  }

  prompt(input: string | readonly Message[], options: { special?: boolean; generation?: boolean } = {}): Prompt {
    const { tokenizer, chatTemplate, info } = this.#parts;
    if (typeof input === "string") {
      const { ids, offsets } = tokenizer.encode(input, { special: options.special ?? true });
      return new TokenizedPrompt(input, ids, offsets);
    }
    if (!chatTemplate)
      throw new FoveaError(
        "unsupported",
        `${info.name} has no chat template, so messages cannot be made into a prompt`,
        {
          hint: "give a plain text, or a checkpoint whose tokenizer_config.json has a chat_template",
        },
      );
    const template = createChatTemplate(chatTemplate, templateTokens(tokenizer.files.config));
    const { text } = template.render(
      input.map(({ role, content }) => ({ role, content })),
      {
        addGenerationPrompt: options.generation ?? true,
      },
    );
    // the template writes BOS itself where the model wants one
    const { ids, offsets } = tokenizer.encode(text, { special: options.special ?? false });
    return new TokenizedPrompt(text, ids, offsets);
  }

  generate(prompt: PromptInput | readonly Message[], options: GenerateOptions = {}): Generation {
    return this.#generate(this.#ids(prompt), undefined, options);
  }

  #ids(prompt: PromptInput | readonly Message[]): readonly number[] {
    if (Array.isArray(prompt) && typeof prompt[0] === "object") return this.prompt(prompt as readonly Message[]).ids;
    return idsOf(prompt as PromptInput, this.#parts.tokenizer, true);
  }

  #generate(ids: readonly number[], reading: number | undefined, options: GenerateOptions): Generation {
    const { signal, onProgress, memory, ...rest } = options;
    const pieces = new PieceQueue();
    const result = this.#parts.connection
      .call(
        "generate",
        { ids, reading, methods: this.#parts.methods, options: rest, memory },
        { signal, onEvent: (event) => ("piece" in event ? pieces.push(event.piece) : onProgress?.(event.progress)) },
      )
      .then(
        (done) => {
          pieces.end();
          return done;
        },
        (error: unknown) => {
          pieces.end(error);
          throw error;
        },
      );
    // whoever only iterates gets the error there; it must not count as unhandled here
    result.catch(() => undefined);
    return { result, [Symbol.asyncIterator]: () => pieces[Symbol.asyncIterator]() };
  }

  score(
    text: PromptInput,
    options: { signal?: AbortSignal; onProgress?: (p: Progress) => void } & MemoryOption = {},
  ): Promise<ScoreResult> {
    const { memory } = options;
    return this.#parts.connection.call(
      "score",
      { ids: idsOf(text, this.#parts.tokenizer, true), methods: this.#parts.methods, memory },
      { signal: options.signal, onEvent: (e) => options.onProgress?.(e.progress) },
    );
  }

  logits(
    prompt: PromptInput,
    { rows = "last", signal, memory }: { rows?: "last" | "all"; signal?: AbortSignal } & MemoryOption = {},
  ): Promise<Float32Array> {
    return this.#parts.connection.call(
      "logits",
      { ids: idsOf(prompt, this.#parts.tokenizer, true), rows, methods: this.#parts.methods, memory },
      { signal },
    );
  }

  async read(
    text: PromptInput,
    options: {
      attention?: MethodInput | readonly MethodInput[];
      signal?: AbortSignal;
      onProgress?: (p: Progress) => void;
    } & MemoryOption = {},
  ): Promise<Reading> {
    const { connection, tokenizer } = this.#parts;
    const { attention, memory } = options;
    const extra =
      attention === undefined
        ? []
        : Array.isArray(attention)
          ? (attention as readonly MethodInput[])
          : [attention as MethodInput];
    const info = await connection.call(
      "read",
      { ids: idsOf(text, tokenizer, true), methods: [...this.#parts.methods, ...extra], memory },
      { signal: options.signal, onEvent: (e) => options.onProgress?.(e.progress) },
    );
    return this.#reading(info);
  }

  async open(file: string, { memory }: MemoryOption = {}): Promise<Reading> {
    return this.#reading(await this.#parts.connection.call("open", { file, methods: this.#parts.methods, memory }));
  }

  #reading(first: ReadingInfo): Reading {
    const { connection, tokenizer } = this.#parts;
    let info = first;
    const close = async () => {
      await connection.call("close", { reading: info.reading });
    };
    return {
      get ids() {
        return info.ids;
      },
      get length() {
        return info.ids.length;
      },
      get bytes() {
        return info.bytes;
      },
      get peakBytes() {
        return info.peakBytes;
      },
      generate: (text, options = {}) => this.#generate(idsOf(text, tokenizer, false), info.reading, options),
      score: (text, options = {}) =>
        connection.call(
          "score",
          { ids: idsOf(text, tokenizer, false), reading: info.reading, methods: [] },
          { signal: options.signal },
        ),
      measure: (question, { signal, ...options } = {}) =>
        connection.call(
          "measure",
          { ids: idsOf(question, tokenizer, false), reading: info.reading, options },
          { signal },
        ),
      observe: (text, reducers, options) =>
        this.#observe(idsOf(text, tokenizer, false), reducers, { ...options, from: info }),
      fork: async () => this.#reading(await connection.call("fork", { reading: info.reading })),
      extend: async (text, options = {}) => {
        info = await connection.call(
          "extend",
          { reading: info.reading, ids: idsOf(text, tokenizer, false) },
          { signal: options.signal },
        );
      },
      save: async (file) => {
        await connection.call("save", { reading: info.reading, file });
      },
      close,
      [Symbol.asyncDispose]: close,
    };
  }

  async observe<R extends Record<string, Reducer<unknown>>>(
    prompt: PromptInput,
    reducers: R,
    options: { signal?: AbortSignal } = {},
  ): Promise<{ [K in keyof R]: R[K] extends Reducer<infer T> ? T : never }> {
    return this.#observe(idsOf(prompt, this.#parts.tokenizer, true), reducers, options);
  }

  async #observe<R extends Record<string, Reducer<unknown>>>(
    ids: readonly number[],
    reducers: R,
    { signal, from }: { signal?: AbortSignal; from?: ReadingInfo } = {},
  ): Promise<{ [K in keyof R]: R[K] extends Reducer<infer T> ? T : never }> {
    const { shape } = this.#parts.info;
    const runs: { key: string; layers: ReadonlySet<number> | undefined; run: ReducerRun<unknown> }[] = Object.entries(
      reducers,
    ).map(([key, reducer]) => ({
      key,
      layers: reducer.layers && new Set(reducer.layers.map((l) => (l < 0 ? l + shape.layers : l))),
      run: reducer.start(shape, ids.length + (from?.ids.length ?? 0)),
    }));
    const layers = runs.every((r) => r.layers) ? [...new Set(runs.flatMap((r) => [...(r.layers ?? [])]))] : undefined;
    await this.#parts.connection.call(
      "observe",
      { ids, reading: from?.reading, methods: from ? [] : this.#parts.methods, layers },
      {
        signal,
        onEvent: ({ rows }) => {
          const step = this.#step(rows);
          for (const { layers: own, run } of runs) if (!own || own.has(rows.layer)) run.observe(step);
        },
      },
    );
    return Object.fromEntries(runs.map(({ key, run }) => [key, run.finish()])) as {
      [K in keyof R]: R[K] extends Reducer<infer T> ? T : never;
    };
  }

  #step(rows: ObservedRows): ObserveStep {
    return {
      layer: rows.layer,
      phase: rows.phase,
      rows: rows.rows,
      positions: rows.positions,
      firstRow: rows.firstRow,
      totalRows: rows.totalRows,
      model: this.#parts.info.shape,
      state: undefined,
      weights: { data: rows.data, heads: rows.heads, rows: rows.rows, keys: rows.keys },
      keyPositions: (head) => rows.keyPositions[head],
    };
  }

  async attention(
    prompt: PromptInput,
    at: { layer: number; head: number; rows?: readonly [number, number] },
  ): Promise<AttentionMap> {
    const { shape } = this.#parts.info;
    const { tokenizer } = this.#parts;
    const layer = at.layer < 0 ? at.layer + shape.layers : at.layer;
    if (
      !(
        Number.isInteger(layer) &&
        layer >= 0 &&
        layer < shape.layers &&
        Number.isInteger(at.head) &&
        at.head >= 0 &&
        at.head < shape.heads
      )
    )
      throw new FoveaError(
        "bad-input",
        `there is no head ${at.head} in layer ${at.layer}; the model has layers 0 to ${shape.layers - 1} and heads 0 to ${shape.heads - 1}`,
      );
    const ids = idsOf(prompt, tokenizer, true);
    const [from, to] = at.rows ?? [0, ids.length];
    if (!(from >= 0 && from < to && to <= ids.length))
      throw new FoveaError("bad-input", `rows ${from} to ${to} are no range of ${ids.length} tokens`);
    const data = new Float32Array((to - from) * ids.length);
    const group = Math.floor(at.head / (shape.heads / shape.kvHeads));
    await this.#parts.connection.call(
      "observe",
      { ids, methods: this.#parts.methods, layers: [layer], head: at.head },
      {
        onEvent: ({ rows }) => {
          const keys = rows.keyPositions[group];
          for (let r = 0; r < rows.rows; r++) {
            const row = rows.positions[r];
            if (row < from || row >= to) continue;
            for (let i = 0; i < keys.length; i++)
              if (keys[i] < ids.length) data[(row - from) * ids.length + keys[i]] = rows.data[r * rows.keys + i];
          }
        },
      },
    );
    return {
      layer,
      head: at.head,
      rows: to - from,
      columns: ids.length,
      data,
      tokens: ids.map((id) => tokenizer.piece(id)),
    };
  }

  close(): Promise<void> {
    return this.#parts.connection.close();
  }
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** Pieces that have arrived, for any number of readers from the beginning. */
class PieceQueue implements AsyncIterable<Piece> {
  readonly #pieces: Piece[] = [];
  #done = false;
  #error: unknown;
  #wake: (() => void)[] = [];

  push(piece: Piece): void {
    this.#pieces.push(piece);
    this.#notify();
  }

  end(error?: unknown): void {
    this.#done = true;
    this.#error = error;
    this.#notify();
  }

  #notify(): void {
    const wake = this.#wake;
    this.#wake = [];
    for (const w of wake) w();
  }

  async *[Symbol.asyncIterator](): AsyncIterator<Piece> {
    for (let i = 0; ; i++) {
      while (i >= this.#pieces.length) {
        if (this.#done) {
          if (this.#error !== undefined) throw this.#error;
          return;
        }
        await new Promise<void>((resolve) => this.#wake.push(resolve));
      }
      yield this.#pieces[i];
    }
  }
}

export type { GenerateResult };
