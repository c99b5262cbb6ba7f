import type { Memory, ModelConfig, Tokenizer } from "../models/index.js";
import type { AttachedMethod, ModelShape } from "./hooks.js";

/** How a checkpoint is loaded. */
export interface LoadOptions {
  /** Weights of the dense layers. Default: int8 ("float32" for models under 50M parameters). */
  precision?: "float32" | "int8" | "int4";
  /** Type of cached keys and values. Default int8. */
  cache?: "float32" | "int8";
  /** Threads of dense layers and kernels. Default: the machine's cores. */
  threads?: number;
  /** Bytes that weights, caches and work areas together may take. Default: 3/4 of the machine's memory. */
  memory?: number;
  /** Positions that a text may take. Default: the model's own; more runs it beyond what it was trained for. */
  context?: number;
  provider?: "cpu" | "webgpu" | "cuda" | "auto";
  /** Run the engine in the calling thread, where a method may be any function; a run then blocks. Default true. */
  worker?: boolean;
  /** Folder of downloaded checkpoints. */
  cacheFolder?: string;
  signal?: AbortSignal;
  onProgress?: (progress: Progress) => void;
}

export interface Progress {
  readonly stage: "download" | "load" | "compile" | "prompt" | "score";
  readonly done: number;
  readonly total: number;
  readonly label?: string;
}

/** How the next token is chosen. temperature 0 (the default) is greedy. */
export interface SamplingOptions {
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  repetitionPenalty?: number;
  seed?: number;
}

/** What a model reads beside the text, where its mechanism declares a memory. */
export interface MemoryOption {
  /** rows x m, m as the mechanism declares it. A reading keeps its own: what goes on from one takes none. */
  memory?: Memory;
}

export interface GenerateOptions extends SamplingOptions, MemoryOption {
  maxTokens?: number;
  /** Texts at which generation stops; they are not part of the text. */
  stop?: readonly string[];
  /** Go on past the model's end-of-text tokens. Default false. */
  ignoreEos?: boolean;
  signal?: AbortSignal;
  onProgress?: (progress: Progress) => void;
}

export interface Timings {
  readonly prompt_tokens: number;
  readonly prompt_ms: number;
  readonly generated_tokens: number;
  readonly generate_ms: number;
  readonly prefill_tps: number;
  readonly decode_tps: number;
}

export interface GenerateResult {
  readonly prompt_ids: number[];
  readonly ids: number[];
  readonly text: string;
  readonly finish: "length" | "eos" | "stop" | "aborted";
  readonly timings: Timings;
  /** Bytes of the sequence's cache at its end. */
  readonly cache_bytes: number;
}

/** One token as it arrives. `text` may be empty while a character is incomplete. */
export interface Piece {
  readonly id: number;
  readonly text: string;
}

/** A run that streams its pieces and resolves to its result. */
export interface Generation extends AsyncIterable<Piece> {
  readonly result: Promise<GenerateResult>;
}

/** What `Reading.measure` is asked for. */
export interface MeasureOptions {
  /** Token ids that are forced after the question, to compare distributions at. Default none. */
  answer?: readonly number[];
  /** Tokens generated greedily after the question. Default 64. */
  maxTokens?: number;
  /** Absolute positions of the text (its evidence) whose reading is asked about. */
  watch?: readonly number[];
  signal?: AbortSignal;
}

/** One question measured on a reading. "First" is the row that gives the answer's first token. */
export interface Measured {
  /** The greedy answer. */
  readonly text: string;
  readonly ids: readonly number[];
  readonly finish: "length" | "eos";
  /** Logits at the first row and after each forced token but the last: [max(1, answer), V]. */
  readonly logits: Float32Array;
  /** Milliseconds of each decode step that nothing was counted in. */
  readonly step_ms: readonly number[];
  /** Keys attended to per layer and query head, mean over the first row and those of the forced answer. */
  readonly tokens_read: number;
  /** Keys scored and not attended to, likewise. */
  readonly tokens_scored: number;
  /** Pages whose bounds were read, likewise. */
  readonly bounds_read: number;
  /** Entries stored per layer and KV head at the first row, that row's own included. */
  readonly tokens_kept: number;
  /** Tokens of the text up to and including the first row. */
  readonly depth: number;
  /** Rows that were counted: the first, and those of the forced answer but its last. Each sees one token more. */
  readonly rows_counted: number;
  /** Share of the watched positions attended to at the first row: mean over layers and query heads. */
  readonly coverage: number;
  /** Share of the watched positions still stored then: mean over layers and KV heads. */
  readonly coverage_kept: number;
  /** Bytes of the cache at the first row. */
  readonly cache_bytes: number;
}

export interface ScoreResult {
  /** The first token has no logprob (0) when nothing stands before it. */
  readonly tokens: { readonly id: number; readonly text: string; readonly logprob: number }[];
  readonly logprob: number;
}

/** Text, or token ids as they are. */
export type PromptInput = string | readonly number[] | Prompt;

export interface Prompt {
  readonly text: string;
  readonly ids: readonly number[];
  /** Character offsets of each token in `text`, [start, end). */
  readonly offsets: readonly (readonly [number, number])[];
  /** Token range [start, end) that covers a text's first occurrence, or a range of characters. Throws not-found. */
  span(text: string | readonly [number, number]): readonly [number, number];
}

export interface Message {
  readonly role: "system" | "user" | "assistant" | "tool" | (string & {});
  readonly content: string | readonly string[];
}

/** One head's attention map, as asked for. */
export interface AttentionMap {
  readonly layer: number;
  readonly head: number;
  readonly rows: number;
  readonly columns: number;
  /** [rows, columns]; row i is what token i read. */
  readonly data: Float32Array;
  readonly tokens: readonly string[];
}

export interface ModelInfo {
  readonly name: string;
  readonly family: string;
  readonly shape: ModelShape;
  readonly parameters: number;
  readonly weightBytes: number;
  readonly cacheBytesPerToken: number;
  readonly cacheType: "float32" | "int8";
  readonly precision: "float32" | "int8" | "int4";
  readonly provider: string;
  readonly threads: number;
  readonly methods: readonly string[];
}

/** A prefilled text: a value that answers, forks, is saved and opened. */
export interface Reading extends AsyncDisposable {
  readonly ids: readonly number[];
  readonly length: number;
  readonly bytes: number;
  /** Most bytes that the cache took while the text was read, as seen after each layer. */
  readonly peakBytes: number;
  generate(text: PromptInput, options?: Omit<GenerateOptions, "memory">): Generation;
  /** Log-probabilities of a continuation; the reading stays as it is. */
  score(text: PromptInput, options?: { signal?: AbortSignal }): Promise<ScoreResult>;
  /**
   * Puts a question, fed token by token so that the methods choose for each of its rows, and measures the answer: what was
   * read, how fast, with which distributions. The reading stays as it is.
   */
  measure(question: PromptInput, options?: MeasureOptions): Promise<Measured>;
  /** What the rows of a continuation read: as `Model.observe`, without the rows before. The reading stays as it is. */
  observe<R extends Record<string, Reducer<unknown>>>(
    text: PromptInput,
    reducers: R,
    options?: { signal?: AbortSignal },
  ): Promise<{ [K in keyof R]: R[K] extends Reducer<infer T> ? T : never }>;
  fork(): Promise<Reading>;
  /** Appends a text for good. */
  extend(text: PromptInput, options?: { signal?: AbortSignal }): Promise<void>;
  save(file: string): Promise<void>;
  close(): Promise<void>;
}

export type MethodInput = string | AttachedMethod;

/** A streaming reduction of attention rows to numbers; see engine/hooks.ts, ObserveStep. */
export interface Reducer<Result> {
  readonly name: string;
  /** Layers that it reads; default all. */
  readonly layers?: readonly number[];
  start(model: ModelShape, tokens: number): ReducerRun<Result>;
}
export interface ReducerRun<Result> {
  observe(step: import("./hooks.js").ObserveStep): void;
  finish(): Result;
}

/** A model with methods attached is a model. */
export interface Model extends AsyncDisposable {
  readonly info: ModelInfo;
  readonly config: ModelConfig;
  readonly tokenizer: Tokenizer;
  with(...methods: MethodInput[]): Model;
  prompt(input: string | readonly Message[], options?: { special?: boolean; generation?: boolean }): Prompt;
  generate(prompt: PromptInput | readonly Message[], options?: GenerateOptions): Generation;
  score(
    text: PromptInput,
    options?: { signal?: AbortSignal; onProgress?: (p: Progress) => void } & MemoryOption,
  ): Promise<ScoreResult>;
  /** Logits of the last row, or of all rows: [rows, V]. */
  logits(
    prompt: PromptInput,
    options?: { rows?: "last" | "all"; signal?: AbortSignal } & MemoryOption,
  ): Promise<Float32Array>;
  read(
    text: PromptInput,
    options?: {
      attention?: MethodInput | readonly MethodInput[];
      signal?: AbortSignal;
      onProgress?: (p: Progress) => void;
    } & MemoryOption,
  ): Promise<Reading>;
  /**
   * A reading saved by `save`, with the memory that it was read with. Refused when the model, its precision, cache type or
   * methods differ, and when a memory is given that is another one.
   */
  open(file: string, options?: MemoryOption): Promise<Reading>;
  observe<R extends Record<string, Reducer<unknown>>>(
    prompt: PromptInput,
    reducers: R,
    options?: { signal?: AbortSignal },
  ): Promise<{ [K in keyof R]: R[K] extends Reducer<infer T> ? T : never }>;
  attention(
    prompt: PromptInput,
    at: { layer: number; head: number; rows?: readonly [number, number] },
  ): Promise<AttentionMap>;
  close(): Promise<void>;
}
