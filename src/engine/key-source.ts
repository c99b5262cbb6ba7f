import type { AttentionShape, BlockAttention, BlockQuery, KeyBlock } from "./block-attention.js";
import { UNSEEN } from "./block-attention.js";
import type { Cache, LayerCache } from "./cache.js";
import { addBiases } from "./compose.js";
import {
  type Entries,
  entriesOf,
  isPerHead,
  type KeyView,
  type LogBias,
  type OwnKeys,
  type Part,
  type Partial,
} from "./hooks.js";
import { limitRanges, withoutBlocks } from "./row-ranges.js";

/** Rows that attend: rotated queries and their absolute positions. */
export interface QueryRows {
  readonly q: Float32Array; // [T, Hq, D]
  readonly rows: number;
  readonly positions: Int32Array; // [T]
}

/**
 * Keys and values that rows attend to, wherever they lie. Two forms: `FloatKeys` (float32 arrays, graphs) and
 * `PagedKeys` (the cache's pages, kernels). The engine picks; both give the same numbers.
 */
export interface KeySource {
  readonly view: KeyView;
  /** Most entries of any head: the S of rows of logits. */
  readonly keys: number;
  attend(query: QueryRows, part: Part): Promise<Partial>;
  /** The same into arrays of the caller's: output [T, Hq, Dv], lse [T, Hq]. */
  attendInto(query: QueryRows, part: Part, output: Float32Array, lse: Float32Array): Promise<void> | void;
  /**
   * Rows over keys that are listed by blocks of rows; `lse` is left out where nothing is merged. Absent where keys cannot
   * be gathered: then `withoutBlocks` says the same.
   */
  attendBlocks?(query: QueryRows, part: Part, output: Float32Array, lse?: Float32Array): Promise<void>;
  /** [Hq, T, S]; -Infinity where the part reads nothing or a head has fewer entries. */
  logits(query: QueryRows, part: Part): Promise<Float32Array>;
  /** Values summed under weights [Hq, T, S]: [T, Hq, Dv]. */
  sum(weights: Float32Array, rows: number): Promise<Float32Array>;
}

/** True for entries that an index list, a page list or ranges name; everything for "all". */
export function entryMask(entries: Entries, length: number, pageSize: number): Uint8Array {
  const mask = new Uint8Array(length);
  if (entries === "all") return mask.fill(1);
  if ("ranges" in entries)
    for (const [start, end] of entries.ranges) mask.fill(1, Math.max(0, start), Math.min(length, end));
  else if ("pages" in entries)
    for (const p of entries.pages) mask.fill(1, p * pageSize, Math.min(length, (p + 1) * pageSize));
  else for (const t of entries.tokens) mask[t] = 1;
  return mask;
}

/** Bytes of logits that rows attend with at a time. */
const LOGIT_BYTES = 48 << 20;

/** Keys and values as float32 arrays of one length for all heads: a prompt's, or a cache's read out for a long extension. */
export class FloatKeys implements KeySource {
  readonly view: KeyView;
  readonly keys: number;
  readonly #shape: AttentionShape;
  readonly #blocks: BlockAttention;
  readonly #k: KeyBlock;
  readonly #v: KeyBlock;
  /** [Hkv, S] or [1, S]: UNSEEN where a head has no entry. */
  readonly #positions: Float32Array;
  readonly #heads: ({ k: Float32Array; v: Float32Array } | undefined)[] = [];

  constructor(
    shape: AttentionShape,
    blocks: BlockAttention,
    k: KeyBlock,
    v: KeyBlock,
    positions: Float32Array,
    lengths?: readonly number[],
  ) {
    this.#shape = shape;
    this.#blocks = blocks;
    this.#k = k;
    this.#v = v;
    this.#positions = positions;
    this.keys = k.keys;
    const shared = positions.length === k.keys;
    const length = (head: number) => lengths?.[head] ?? k.keys;
    const rows = (b: KeyBlock, head: number, dim: number) => {
      if (b.layout === "heads") return b.data.slice(head * b.keys * dim, (head * b.keys + length(head)) * dim);
      const out = new Float32Array(length(head) * dim);
      for (let t = 0, from = head * dim; t < length(head); t++, from += shape.kvHeads * dim)
        out.set(b.data.subarray(from, from + dim), t * dim);
      return out;
    };
    this.view = {
      length,
      positions: (head) =>
        Int32Array.from(positions.subarray(shared ? 0 : head * k.keys, (shared ? 0 : head * k.keys) + length(head))),
      keys: (head) => rows(k, head, shape.keyDim),
      values: (head) => rows(v, head, shape.valueDim),
    };
  }

  async attend(query: QueryRows, part: Part): Promise<Partial> {
    const { heads, keyDim, valueDim } = this.#shape;
    const size = Math.max(1, Math.floor(LOGIT_BYTES / (4 * heads * this.keys)));
    if (query.rows <= size || part.bias) {
      const { request, k, v } = this.#cut(query, part);
      return this.#blocks.attend(this.#shape, request, k, v);
    }
    const output = new Float32Array(query.rows * heads * valueDim);
    const lse = new Float32Array(query.rows * heads);
    for (let first = 0; first < query.rows; first += size) {
      const rows = Math.min(size, query.rows - first);
      const q = query.q.subarray(first * heads * keyDim, (first + rows) * heads * keyDim);
      const found = await this.attend({ q, rows, positions: query.positions.subarray(first, first + rows) }, part);
      output.set(found.output, first * heads * valueDim);
      lse.set(found.lse, first * heads);
    }
    return { output, lse };
  }

  async attendBlocks(query: QueryRows, part: Part, output: Float32Array, lse?: Float32Array): Promise<void> {
    const { blocks } = part;
    if (!blocks || part.bias) {
      const found = await this.attend(query, withoutBlocks(part, query.rows, this.keys, this.#shape));
      output.set(found.output);
      lse?.set(found.lse);
      return;
    }
    const window = Math.min(part.window ?? UNSEEN, this.#shape.window ?? UNSEEN);
    const n = this.keys;
    const shared = this.#positions.length === n;
    await this.#blocks.gathered.attend(
      { ...this.#shape, window },
      {
        q: query.q,
        rows: query.rows,
        rowPositions: query.positions.subarray(0, query.rows),
        positions: (kv) => (shared ? this.#positions : this.#positions.subarray(kv * n, (kv + 1) * n)),
        k: this.#k,
        v: this.#v,
        head: (kv) => this.#head(kv),
      },
      part.heads ? limitRanges(blocks, this.#shape, part.heads) : blocks,
      output,
      lse,
    );
  }

  /** A KV head's keys and values one after the other: [S, D], kept while the layer runs. */
  #head(kv: number): { k: Float32Array; v: Float32Array } {
    const found = this.#heads[kv];
    if (found) return found;
    return (this.#heads[kv] = { k: this.view.keys(kv), v: this.view.values(kv) });
  }

  async attendInto(query: QueryRows, part: Part, output: Float32Array, lse: Float32Array): Promise<void> {
    const result = await this.attend(query, part);
    output.set(result.output);
    lse.set(result.lse);
  }

  async logits(query: QueryRows, part: Part): Promise<Float32Array> {
    const { request } = this.#cut(query, part, true);
    return this.#blocks.logits(this.#shape, request, this.#k);
  }

  sum(weights: Float32Array, rows: number): Promise<Float32Array> {
    return this.#blocks.sum(this.#shape, weights, rows, this.#v);
  }

  /** Masks what the part leaves out and, unless rows of full width are asked for, drops keys that no row can see. */
  #cut(query: QueryRows, part: Part, whole = false): { request: BlockQuery; k: KeyBlock; v: KeyBlock } {
    const { kvHeads, keyDim, valueDim } = this.#shape;
    const n = this.keys;
    const { rows } = query;
    let positions = this.#positions;
    const shared = positions.length === n;
    let entries = part.entries ?? "all";
    let { bias: given } = part;
    if (isPerHead(entries) && entries.length !== kvHeads) {
      // positions differ by KV head at most: what a query head leaves out is masked by a bias
      const mask = maskBias(entries, n);
      given = given ? addBiases(given, mask, this.#shape) : mask;
      entries = "all";
    }
    const heads = part.heads;
    if (entries !== "all" || heads) {
      const apart = heads !== undefined || isPerHead(entries);
      const copies = apart ? kvHeads : positions.length / n;
      const masked = new Float32Array(copies * n).fill(UNSEEN);
      for (let h = 0; h < copies; h++) {
        if (heads && (h < heads[0] || h >= heads[1])) continue;
        const mask = entryMask(entriesOf(entries, h, kvHeads), n, PAGE);
        const from = shared ? 0 : h * n;
        for (let i = 0; i < n; i++) if (mask[i]) masked[h * n + i] = positions[from + i];
      }
      positions = masked;
    }
    let from = 0;
    let to = n;
    const window = Math.min(part.window ?? UNSEEN, this.#shape.window ?? UNSEEN);
    if (!whole && positions.length === n && this.#k.layout === "tokens") {
      const lowest = query.positions[0] - window;
      const highest = query.positions[rows - 1];
      while (from < to && (positions[from] <= lowest || positions[from] > highest)) from++;
      while (to > from && (positions[to - 1] > highest || positions[to - 1] <= lowest)) to--;
      if (to === from) {
        // nothing is visible: one key stays, which the graph masks
        from = Math.min(from, n - 1);
        to = from + 1;
      }
    }
    const cut = (b: KeyBlock, dim: number): KeyBlock =>
      from === 0 && to === n
        ? b
        : { data: b.data.subarray(from * kvHeads * dim, to * kvHeads * dim), keys: to - from, layout: b.layout };
    const bias = given && {
      data: from === 0 && to === n ? given.data : columns(given.data, n, from, to),
      heads: given.heads,
      rows: given.rows || 1,
    };
    return {
      request: {
        q: query.q,
        rows,
        rowPositions: Float32Array.from(query.positions.subarray(0, rows)),
        keyPositions: from === 0 && to === n ? positions : positions.subarray(from, to),
        window,
        bias,
      },
      k: cut(this.#k, keyDim),
      v: cut(this.#v, valueDim),
    };
  }
}

const PAGE = 16;
/** What masks a logit inside graphs. */
const MASKED = -1e30;

/** A bias [heads, n] that masks what a head's entries leave out. */
function maskBias(entries: readonly Entries[], n: number): LogBias {
  const data = new Float32Array(entries.length * n);
  for (const [h, own] of entries.entries()) {
    const mask = entryMask(own, n, PAGE);
    for (let i = 0; i < n; i++) if (mask[i] === 0) data[h * n + i] = MASKED;
  }
  return { data, heads: entries.length, rows: 0 };
}

function columns(data: Float32Array, width: number, from: number, to: number): Float32Array {
  const rows = data.length / width;
  const out = new Float32Array(rows * (to - from));
  for (let r = 0; r < rows; r++) out.set(data.subarray(r * width + from, r * width + to), r * (to - from));
  return out;
}

/** The entries that are left of some keys: per KV head those listed, or all. */
export function keptKeys(
  shape: AttentionShape,
  blocks: BlockAttention,
  view: KeyView,
  kept: readonly (Int32Array | undefined)[],
): FloatKeys {
  const { kvHeads, keyDim, valueDim } = shape;
  const lengths = Array.from({ length: kvHeads }, (_, h) => kept[h]?.length ?? view.length(h));
  const keys = Math.max(1, ...lengths);
  const k = new Float32Array(kvHeads * keys * keyDim);
  const v = new Float32Array(kvHeads * keys * valueDim);
  const positions = new Float32Array(kvHeads * keys).fill(UNSEEN);
  for (let h = 0; h < kvHeads; h++) {
    const [allK, allV, at] = [view.keys(h), view.values(h), view.positions(h)];
    for (let i = 0; i < lengths[h]; i++) {
      const e = kept[h]?.[i] ?? i;
      k.set(allK.subarray(e * keyDim, (e + 1) * keyDim), (h * keys + i) * keyDim);
      v.set(allV.subarray(e * valueDim, (e + 1) * valueDim), (h * keys + i) * valueDim);
      positions[h * keys + i] = at[e];
    }
  }
  const block = (data: Float32Array): KeyBlock => ({ data, keys, layout: "heads" });
  return new FloatKeys(shape, blocks, block(k), block(v), positions, lengths);
}

/** Keys that a method made itself, each visible to every row. */
export function ownKeys({ window: _, ...shape }: AttentionShape, blocks: BlockAttention, own: OwnKeys): FloatKeys {
  const block = (data: Float32Array): KeyBlock => ({ data, keys: own.count, layout: "heads" });
  return new FloatKeys(shape, blocks, block(own.k), block(own.v), new Float32Array(own.count));
}

/** A layer's pages, with `extra` float32 rows that are not in pages yet, as float32 arrays. */
export function floatKeysOfCache(
  shape: AttentionShape,
  blocks: BlockAttention,
  cache: LayerCache,
  extra?: { readonly k: Float32Array; readonly v: Float32Array; readonly positions: Int32Array },
): FloatKeys {
  const { kvHeads, keyDim, valueDim } = shape;
  const more = extra?.positions.length ?? 0;
  const stored = Array.from({ length: kvHeads }, (_, h) => cache.length(h));
  const keys = Math.max(...stored) + more;
  const k = new Float32Array(kvHeads * keys * keyDim);
  const v = new Float32Array(kvHeads * keys * valueDim);
  const positions = new Float32Array(kvHeads * keys).fill(UNSEEN);
  for (let h = 0; h < kvHeads; h++) {
    const read = cache.read(h);
    k.set(read.k, h * keys * keyDim);
    v.set(read.v, h * keys * valueDim);
    positions.set(cache.positions(h), h * keys);
    for (let i = 0; extra && i < more; i++) {
      const at = h * keys + stored[h] + i;
      positions[at] = extra.positions[i];
      k.set(extra.k.subarray((i * kvHeads + h) * keyDim, (i * kvHeads + h + 1) * keyDim), at * keyDim);
      v.set(extra.v.subarray((i * kvHeads + h) * valueDim, (i * kvHeads + h + 1) * valueDim), at * valueDim);
    }
  }
  return new FloatKeys(
    shape,
    blocks,
    { data: k, keys, layout: "heads" },
    { data: v, keys, layout: "heads" },
    positions,
    stored.map((n) => n + more),
  );
}

export type { Cache, LogBias };
