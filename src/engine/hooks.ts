import type { Tensor } from "../graph/index.js";
import type { LayerCache } from "./cache.js";

/**
 * The places where a method plugs into the way of one token. A method implements only the hooks that it uses; the
 * engine runs them in the order in which the methods were given. Every array is row-major Float32Array unless said
 * otherwise. T counts rows of this step, S keys, d the model's width, Hq query heads, Hkv key-value heads (also of a
 * model without grouped queries, where Hkv = Hq), G = Hq / Hkv, D a head's width, V the vocabulary.
 *
 * docs/hooks.md defines each point exactly.
 */

/** prompt: rows of a text on an empty cache; extend: several rows on a filled one; decode: one row. */
export type Phase = "prompt" | "extend" | "decode";

/** What a method may know of the model it runs in. */
export interface ModelShape {
  readonly layers: number;
  readonly width: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly mlpWidth: number;
  readonly vocab: number;
  readonly maxPositions: number;
  /** Hash of the checkpoint, which head lists and method tensors carry. */
  readonly hash: string;
  /** True when the model rotates queries and keys. */
  readonly rotary: boolean;
  /**
   * What the model has in softmax attention's place, whether it carries a state instead of a cache, and the width of the
   * memory's rows where it reads one.
   */
  readonly mechanism?: { readonly name: string; readonly state: boolean; readonly memory?: number };
}

/** Where a method acts: layers and query heads; absent means all. Negative layers count from the last. */
export interface Scope {
  readonly layers?: readonly number[];
  readonly heads?: readonly { readonly layer: number; readonly head: number }[];
}

/** One rotary plan as data: angles are position * inverse[i]; cos and sin are multiplied by `multiplier`. */
export interface RotaryPlan {
  /** [dims / 2] inverse frequencies, or [groups, dims / 2]. */
  readonly inverse: Float32Array;
  /** Groups of KV heads with frequencies of their own, of like size and in order; a divisor of Hkv. Default 1. */
  readonly groups?: number;
  /** What the frequencies are powers of, before any scaling. Plans of the engine's own have it. */
  readonly base?: number;
  /** Factor on cos and sin (YaRN's and LongRoPE's attention factor). Default 1. */
  readonly multiplier: number;
  /** Rotated dimensions of a head; the rest pass. */
  readonly dims: number;
  /** Query scale as a function of the absolute position (log-n scaling and the like). Default 1. */
  readonly queryScale?: (position: number) => number;
}

/** Which entries of the cache a part reads. Indices count stored entries of a KV head, oldest first, not positions. */
export type Entries =
  | "all"
  | { readonly ranges: readonly (readonly [start: number, end: number])[] }
  | { readonly pages: Int32Array }
  | { readonly tokens: Int32Array };

/** Entries for all heads alike, or one for each KV head, or one for each query head. */
export type HeadEntries = Entries | readonly Entries[];

/** True for entries that differ by head. */
export function isPerHead(entries: HeadEntries): entries is readonly Entries[] {
  return Array.isArray(entries);
}

/** Entries of head `head` of `heads`; a list may have one for each, or one for each group of them. */
export function entriesOf(entries: HeadEntries, head: number, heads: number): Entries {
  return isPerHead(entries) ? entries[Math.floor((head * entries.length) / heads)] : entries;
}

/**
 * Entries that differ from row to row: what a selection of a prompt's rows is. Block i of `rows` rows (the first at the
 * step's first row) reads, in list h of `heads`, the pairs [offsets[i * heads + h], offsets[i * heads + h + 1]) of
 * `pairs`: (start, end) of entries, sorted and disjoint. Ranges may reach beyond a row; the engine adds causality.
 */
export interface RowRanges {
  /** Rows that share lists. 1: each row has its own. */
  readonly rows: number;
  /** Lists a block: 1 (all heads alike), Hkv or Hq. */
  readonly heads: number;
  readonly offsets: Int32Array;
  readonly pairs: Int32Array;
}

/**
 * A log-bias on attention logits, added before the softmax. `data` is [heads, keys] or [heads, rows, keys]; `heads` is
 * 1 (all alike), Hkv or Hq; `keys` are stored entries, oldest first.
 */
export interface LogBias {
  readonly data: Float32Array;
  readonly heads: number;
  /** 0: the same for every row of the step. */
  readonly rows: number;
}

/**
 * The unit of attention. The parts of a row are disjoint sets of keys; their results merge exactly by log-sum-exp.
 * The engine adds causality itself: row i of a step never sees a later row's key.
 */
export interface Part {
  /** KV heads [from, to) that the part covers; default all. */
  readonly heads?: readonly [from: number, to: number];
  /** The queries of this part, rotated or projected for it: [T, Hq, D]; default the step's own. */
  readonly query?: Float32Array;
  /**
   * Default "all". Lists count from head 0, whatever `heads` is. One a query head costs what reading each head's keys for
   * itself costs.
   */
  readonly entries?: HeadEntries;
  /**
   * Entries by blocks of rows, in the place of `entries`. A prompt's rows attend to the keys that their block lists,
   * gathered, so that what is not listed costs nothing. Declare `rowBlock` with it.
   */
  readonly blocks?: RowRanges;
  /** Only keys with (row's position) - (key's position) < window. */
  readonly window?: number;
  readonly bias?: LogBias;
  /**
   * Read whatever other methods select (a selector's sinks and newest tokens): selections intersect, forced parts unite.
   * A forced part names its keys by `entries` and has no `window`.
   */
  readonly forced?: boolean;
}

/** A ready result that merges with the parts: output [T, Hq, D], lse [T, Hq] (-Infinity where nothing was read). */
export interface Partial {
  readonly output: Float32Array;
  readonly lse: Float32Array;
}

/** What every hook of one method shares in one step. */
export interface Step<State = unknown> {
  readonly layer: number;
  readonly phase: Phase;
  /** T: rows of this call. In the prompt phase a hook may be called for a block of the prompt's rows. */
  readonly rows: number;
  /** Absolute positions of the rows, [T]. */
  readonly positions: Int32Array;
  /** Index of the block's first row in the prompt or extension (0 while decoding). */
  readonly firstRow: number;
  /** Rows of the whole prompt or extension, of which this step may be a block. */
  readonly totalRows: number;
  readonly model: ModelShape;
  /** The method's own state for this sequence: plain data, cloned with the sequence and saved with it. */
  state: State;
}

/** q, k, v as they leave the projections: after bias and q/k norm, before rotation. Edit in place. */
export interface ActivationsStep<State = unknown> extends Step<State> {
  readonly q: Float32Array; // [T, Hq, D]
  readonly k: Float32Array; // [T, Hkv, D]
  readonly v: Float32Array; // [T, Hkv, D]
}

/** Keys and values as they are about to be stored and read: keys rotated. Edit in place. */
export interface KeysStep<State = unknown> extends Step<State> {
  readonly k: Float32Array; // [T, Hkv, D]
  readonly v: Float32Array; // [T, Hkv, D]
}

/** How positions enter: the plan and the integers that stand for the rows' positions. */
export interface PositionStep<State = unknown> extends Step<State> {
  /** The model's own plan for this layer (null: no rotation). The same object at every step. */
  readonly plan: RotaryPlan | null;
  /** Tokens of the sequence as long as it is known to get: its first prompt and what is generated after it. */
  readonly length: number;
  /** Which of the sequence's parallel streams this is; 0 where there are none. */
  readonly stream: number;
}
export interface PositionResult {
  /** Tables of cos and sin are kept per plan: return the same object at every step. */
  readonly plan?: RotaryPlan;
  /** Positions that the rows' queries and keys are rotated at, [T]; default the absolute ones. */
  readonly query?: Int32Array;
  readonly key?: Int32Array;
  readonly near?: Near;
}

/**
 * Near keys at other positions than far ones (Self-Extend): where (row's position) - (key's position) < window, query
 * and key are rotated at their absolute positions instead, in the one softmax of the row. Far keys are read where they
 * lie; the near ones are turned at each step, which is work for `window` keys.
 */
export interface Near {
  readonly window: number;
  /** The integer that the key of an absolute position is rotated at: what `key` of its step was. */
  stored(position: number): number;
}

/**
 * Keys and values of the step, wherever they lie: float32 as projected during the prompt, pages afterwards. `length`
 * counts the entries that a KV head holds (heads may differ after eviction).
 */
export interface KeyView {
  length(kvHead: number): number;
  /** Absolute positions of the head's entries, oldest first. */
  positions(kvHead: number): Int32Array;
  /** Rotated keys of one head, widened to float32: [length, D]. */
  keys(kvHead: number): Float32Array;
  /** Values of one head: [length, D]. */
  values(kvHead: number): Float32Array;
}

/** How `products` reads its arrays. */
export interface ProductOptions {
  /** H: heads of b. */
  readonly heads: number;
  /** D. Default the model's head width. */
  readonly dim?: number;
  /** Sizes of a tile, divisors of M and of N. Default 1. */
  readonly rows?: number;
  readonly keys?: number;
  /** Added to the products of a tile of rows: [Hq, M / rows, N]. */
  readonly bias?: Float32Array;
}

/** Keys and values that a method made of the cached ones (turned to other positions, averaged, ...). */
export interface OwnKeys {
  readonly count: number;
  readonly k: Float32Array; // [Hkv, count, D]
  readonly v: Float32Array; // [Hkv, count, Dv]
  /** The row's queries for them, [Hq, D]; default the step's own. */
  readonly query?: Float32Array;
}

/** An attention step: what select, scores and pattern see. */
export interface AttentionStep<State = unknown> extends Step<State> {
  /** Rotated queries, [T, Hq, D]. */
  readonly q: Float32Array;
  readonly scale: number;
  readonly view: KeyView;
  /** The layer's pages; null during the prompt, whose keys are not in pages yet. */
  readonly cache: LayerCache | null;
  /** The step's queries rotated at other positions ([T]), from the unrotated ones: [T, Hq, D]. */
  rotate(positions: Int32Array): Float32Array;
  /** Logits of a part over all keys of the view, [Hq, T, S] with -Infinity where nothing is read. */
  score(part?: Part): Promise<Float32Array>;
  /** Attention over a part: ready to be merged. */
  attend(part?: Part): Promise<Partial>;
  /**
   * Attention of a decoded row over keys and values of the method's own, all of which it sees; scale and soft-cap are the
   * layer's.
   */
  attendTo(keys: OwnKeys): Promise<Partial>;
  /**
   * Dot products of queries a [M, Hq, D] with representatives b [H, N, D] of their heads' keys (H is Hkv or Hq), the
   * largest of each tile of `rows` queries by `keys` representatives: [Hq, M / rows, N / keys]. Unscaled.
   */
  products(a: Float32Array, b: Float32Array, options: ProductOptions): Promise<Float32Array>;
}

/** Rows of logits or of weights that a method edits in place: data [Hq, T, S]. */
export interface Rows {
  readonly data: Float32Array;
  readonly heads: number;
  readonly rows: number;
  readonly keys: number;
}

/**
 * When entries may leave the cache. `when` is "before" (rows are about to be appended: make room), or "after" (the
 * rows' attention is done and they are stored). After a prompt `q` holds the last rows' rotated queries.
 */
export interface RetainStep<State = unknown> extends Step<State> {
  readonly when: "before" | "after";
  readonly view: KeyView;
  readonly scale: number;
  /** The plan by which the layer's queries and keys are rotated (null: no rotation). */
  readonly plan: RotaryPlan | null;
  /** Rows whose queries are given: the last `queryRows` of the step. */
  readonly queryRows: number;
  /** Rotated queries, [queryRows, Hq, D]; empty when `when` is "before". */
  readonly q: Float32Array;
  /** Rows that are about to be appended (when "before"), else 0. */
  readonly incoming: number;
  /** Attention weights of the last n query rows over all entries: [Hq, n, S], causal, full softmax. */
  weights(n: number): Promise<Float32Array>;
  /** Keeps these entries (sorted indices) of a KV head and frees the rest. */
  keep(kvHead: number, entries: Int32Array): void;
}

/** Output of attention per head, before the output projection: [T, Hq, D]. Edit in place. */
export interface HeadsStep<State = unknown> extends Step<State> {
  readonly heads: Float32Array;
}

/** Values at a tap inside a dense segment: [T, width]. Edit in place. */
export interface TapStep<State = unknown> extends Step<State> {
  readonly x: Float32Array;
  readonly width: number;
}

/** Logits before sampling: [V]. Edit in place. `ids` are the sequence's tokens so far. */
export interface LogitsStep<State = unknown> extends Step<State> {
  readonly logits: Float32Array;
  readonly ids: readonly number[];
}

/** The token list before the model sees it. */
export interface ContextStep<State = unknown> {
  readonly ids: readonly number[];
  readonly model: ModelShape;
  state: State;
  /** A run without methods, of which nothing is kept. */
  probe(ids: readonly number[], options?: ProbeOptions): Promise<Probed>;
}

export interface ProbeOptions {
  /** Layers that run. Default all. */
  readonly layers?: number;
  /** Layers whose last row of attention is wanted; layer `layers` itself may be among them at no more cost. */
  readonly lastRow?: readonly number[];
}

export interface Probed {
  /** The residual stream behind the first `layers` layers: [T, d]. */
  readonly residual: Float32Array;
  /** For each layer of `lastRow`, in that order. */
  readonly lastRow: readonly {
    /** Dot products of the last row's rotated queries with their heads' keys, without scale or cap: [Hq, S]. */
    readonly products: Float32Array;
    /** Attention weights of the last row: [Hq, S]. */
    readonly weights: Float32Array;
  }[];
}

/** An observer of attention rows: weights [Hq, T, S] of one layer's block, exact, valid during the call only. */
export interface ObserveStep<State = unknown> extends Step<State> {
  /** Normalised weights; under a sparse method 0 where nothing was read. */
  readonly weights: Rows;
  /** Positions of the keys for a KV head, [S]. */
  keyPositions(kvHead: number): Int32Array;
}

/**
 * What a mechanism is given, as graph tensors: q [Hq, T, D]; k [Hq, S, D] and v [Hq, S, Dv], rotated, each key-value
 * head repeated for its query heads; mask [Hq, T, S] (1 visible, 0 not); scale. It returns the heads' outputs
 * [Hq, T, Dv].
 */
export interface MechanismInputs {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly mask: Tensor;
  readonly scale: number;
}

/**
 * A method attached to a model: its hooks, each optional. A hook that is absent costs nothing; one that is declared for
 * some layers only (`layers`) costs nothing elsewhere.
 */
export interface Hooks<State = unknown> {
  /** Layers in which the hooks of attention act; default all. */
  readonly layers?: readonly number[];
  /** The state of a new sequence. */
  state?(model: ModelShape): State;
  context?(step: ContextStep<State>): Promise<readonly number[]> | readonly number[];
  embeddings?(step: TapStep<State>): void;
  position?(step: PositionStep<State>): PositionResult | undefined;
  activations?(step: ActivationsStep<State>): void;
  /** Edits of keys after rotation and of values, before they are stored and read. */
  keys?(step: KeysStep<State>): void;
  retain?(step: RetainStep<State>): void | Promise<void>;
  select?(step: AttentionStep<State>): readonly (Part | Partial)[] | Promise<readonly (Part | Partial)[]>;
  /** Added to the logits before the softmax: runs in the kernel path. */
  bias?(step: AttentionStep<State>): LogBias | undefined;
  /** Edits of whole rows of logits, -Infinity where nothing is read: runs in the row path. */
  scores?(step: AttentionStep<State>, rows: Rows): void;
  /** Edits of the weights after the softmax; rows need not sum to 1 afterwards: runs in the row path. */
  pattern?(step: AttentionStep<State>, rows: Rows): void;
  /** The method lets a text grow beyond the model's context (positions inside the cache, a stretched plan). */
  readonly beyondContext?: boolean;
  /**
   * Layers in which the hooks of attention do not act: how many first ones, or which (negative ones count from the
   * last). Without other methods a prompt then runs there as one fused operator.
   */
  readonly denseLayers?: number | readonly number[];
  /**
   * `select` treats rows of a prompt or extension in blocks of so many, counted from its first row: steps then begin at
   * multiples of it, also where the prompt is cut into pieces. 1 for a method that lists keys row by row.
   */
  readonly rowBlock?: number;
  /**
   * `select` leaves nothing out but for decoded rows. Without other hooks on what is read a prompt then runs as one fused
   * operator, and `select` is not asked.
   */
  readonly selectsDecoding?: boolean;
  /** Runs every sequence several times side by side; only one method can. */
  readonly streams?: Streams;
  /** True when `pattern` writes weights of its own instead of editing those it is given: one such method a layer. */
  readonly replacesPattern?: boolean;
  /** Reads the weights as used, after every `pattern`. */
  observe?(step: ObserveStep<State>): void | Promise<void>;
  heads?(step: HeadsStep<State>): void;
  attnOut?(step: TapStep<State>): void;
  mlp?(step: TapStep<State>): void;
  mlpOut?(step: TapStep<State>): void;
  residual?(step: TapStep<State>): void;
  logits?(step: LogitsStep<State>): void;
  /** Attention replaced, in the layers of the method: written over graph tensors, compiled once a shape. */
  mechanism?(inputs: MechanismInputs): Tensor;
}

/**
 * Parallel streams of a sequence: the same tokens, each with its own cache and states of methods. What differs between
 * them is what a method's `position` makes of `step.stream`. Their logits become one row, from which one token is drawn
 * for all; `logits` hooks edit that row. Observers see the first stream.
 */
export interface Streams {
  readonly count: number;
  /** Logits [V] of each stream, into one row [V]. */
  fuse(logits: readonly Float32Array[], into: Float32Array): void;
}

/** A method's parameters bound: what is attached to a model. */
export interface AttachedMethod {
  readonly name: string;
  /** Canonical string, e.g. "streaming-llm(sinks=4,window=512)": part of cache fingerprints. */
  readonly spec: string;
  readonly hooks: Hooks;
  /** Where it acts, as given; its hooks honour it already. */
  readonly scope?: Scope;
  /** Throws `unsupported` or `bad-input`, with the reason, if the method cannot run in this model. */
  readonly check?: (model: ModelShape) => void;
}

export const HOOK_NAMES = [
  "context",
  "embeddings",
  "position",
  "activations",
  "retain",
  "select",
  "scores",
  "pattern",
  "heads",
  "mlp",
  "residual",
  "logits",
  "mechanism",
  "observe",
] as const;
export type HookName = (typeof HOOK_NAMES)[number];

/** True for a ready result, false for a part that is still to be attended. */
export function isPartial(part: Part | Partial): part is Partial {
  return "lse" in part;
}
