import { FoveaError } from "../error.js";
import { Budget } from "../kernels/index.js";
import { deserializeCache, serializeCache } from "./cache-file.js";
import { LayerCache, type LayerMark } from "./cache-layer.js";
import { Bank, type CacheType, type LayerShape, type StoredShape, storedShape } from "./pages-bank.js";
import type { ReadMeter } from "./read-meter.js";

export type { PageBounds } from "./cache-bounds.js";
export { type AttendRequest, LayerCache, type RowLayout } from "./cache-layer.js";
export type { PageChoice, PageReduction, PageScores } from "./page-choice.js";
export type { CacheType, LayerShape } from "./pages-bank.js";

/** Bytes of the limit that one WebAssembly memory serves; it can hold up to 4 GiB. */
const BANK_BYTES = 3 * 2 ** 30;
const LIMIT_BYTES = 4 * 2 ** 30 - 2 ** 20;

export interface CachePoolOptions {
  readonly layers: readonly LayerShape[];
  readonly type: CacheType;
  /** Threads that attention uses, the calling one included. Default 1. */
  readonly threads?: number;
  /** Most bytes of all caches together, pages, tables and work areas. Default 4 GiB. */
  readonly limitBytes?: number;
  /** Microseconds that an idle thread looks for work before it sleeps. Default 10. */
  readonly spin?: number;
}

/** The memory in which all caches of a model lie: one WebAssembly memory, or several where the limit is above 3 GiB. */
export class CachePool {
  readonly type: CacheType;
  readonly layers: readonly StoredShape[];
  readonly limitBytes: number;
  readonly #budget: Budget;
  readonly #banks: Bank[];
  #closed = false;

  /** Throws out-of-memory when the limit is too low for the kernels themselves, bad-shape for impossible widths. */
  constructor(options: CachePoolOptions) {
    this.type = options.type;
    this.layers = options.layers.map((shape) => storedShape(shape, options.type));
    this.limitBytes = options.limitBytes ?? LIMIT_BYTES;
    this.#budget = new Budget(this.limitBytes);
    const banks = Math.max(1, Math.min(this.layers.length, Math.ceil(this.limitBytes / BANK_BYTES)));
    const maximumBytes = Math.min(this.limitBytes, LIMIT_BYTES);
    const { threads = 1, spin } = options;
    this.#banks = Array.from({ length: banks }, () => new Bank({ threads, maximumBytes, budget: this.#budget, spin }));
  }

  /** Threads in use: fewer than asked for where memory cannot be shared. */
  get threads(): number {
    return this.#banks[0].kernels.threads;
  }

  /** Bytes of all caches: pages and tables in use, work areas. */
  get bytesUsed(): number {
    return this.#banks.reduce((n, bank) => n + bank.memory.bytesInUse, 0);
  }

  /** Bytes set aside, which the limit bounds: the above and what the allocator holds for more of the same size. */
  get bytesReserved(): number {
    return this.#budget.reserved;
  }

  /** The memory that holds a layer. */
  bank(layer: number): Bank {
    return this.#banks[Math.floor((layer * this.#banks.length) / this.layers.length)];
  }

  /** An empty cache. Throws out-of-memory. */
  create(): Cache {
    if (this.#closed) throw new FoveaError("closed", "the cache pool was closed");
    return new Cache(this);
  }

  /** Bytes that a cache of `tokens` tokens takes in full pages, for refusing what cannot fit. */
  bytesFor(tokens: number): number {
    const pages = Math.ceil(tokens / 16);
    return this.layers.reduce((n, s) => {
      const open = s.type === "int8" ? s.openKeyBytes + s.openValueBytes : 0;
      return n + s.kvHeads * (pages * (s.keyBytes + s.valueBytes + 16) + open);
    }, 0);
  }

  /** Gives back the work areas. */
  trim(): void {
    for (const bank of this.#banks) bank.trim();
  }

  /** Ends the threads. Caches of the pool are unusable afterwards. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const bank of this.#banks) bank.kernels.close();
  }
}

/** A point in a cache's life. */
export interface CacheMark {
  readonly layers: readonly LayerMark[];
}

/** The keys and values of one sequence in all layers. */
export class Cache {
  readonly pool: CachePool;
  readonly #layers: LayerCache[];

  /** Use `CachePool.create`. */
  constructor(pool: CachePool) {
    this.pool = pool;
    this.#layers = [];
    try {
      for (const [l, shape] of pool.layers.entries()) this.#layers.push(new LayerCache(pool.bank(l), shape));
    } catch (error) {
      this.release();
      throw error;
    }
  }

  layer(l: number): LayerCache {
    return this.#layers[l];
  }

  /** Tokens seen, whether or not they are still stored (by the first layer, while a prompt is under way). */
  get length(): number {
    return this.#layers[0]?.seen ?? 0;
  }

  /** Bytes of pages and page tables; pages shared with a fork count whole. */
  get bytes(): number {
    return this.#layers.reduce((n, layer) => n + layer.bytes, 0);
  }

  /** Counts what is read from now on, or stops counting. A fork is not counted. */
  meter(meter: ReadMeter | undefined): void {
    for (const [l, layer] of this.#layers.entries()) layer.meter = meter?.layer(l);
  }

  /** The same entries, going their own way: full pages are shared, those still filling copied. Throws out-of-memory. */
  fork(): Cache {
    const copy = new Cache(this.pool);
    try {
      for (const [l, layer] of copy.#layers.entries()) layer.copyFrom(this.#layers[l]);
    } catch (error) {
      copy.release();
      throw error;
    }
    return copy;
  }

  /** A point to come back to. It keeps some pages alive until `rollback` or `forget`. */
  snapshot(): CacheMark {
    return { layers: this.#layers.map((layer) => layer.mark()) };
  }

  /** Back to a snapshot, which is used up; later ones are forgotten. What was evicted since is there again. */
  rollback(mark: CacheMark): void {
    for (const [l, layer] of this.#layers.entries()) layer.rollback(mark.layers[l]);
  }

  /** Gives up a snapshot. */
  forget(mark: CacheMark): void {
    for (const [l, layer] of this.#layers.entries()) layer.forget(mark.layers[l]);
  }

  /** Everything as bytes, from which `deserialize` continues bit for bit: a header, then one chunk a layer. */
  serialize(): Uint8Array[] {
    return serializeCache(this.pool, this.#layers);
  }

  /** The cache that `serialize` wrote. Throws bad-file for damage, mismatch for another shape or type, out-of-memory. */
  static deserialize(pool: CachePool, chunks: readonly Uint8Array[]): Cache {
    const cache = pool.create();
    try {
      deserializeCache(pool, chunks, cache.#layers);
    } catch (error) {
      cache.release();
      throw error;
    }
    return cache;
  }

  /** Frees all pages that no fork uses. Safe to call twice. */
  release(): void {
    for (const layer of this.#layers) layer.release();
  }
}
