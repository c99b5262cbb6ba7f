import { type Budget, Kernels, storedDim } from "../kernels/index.js";
import { floatPageBytes, keyPageBytes, valuePageBytes } from "../kernels/layout.js";
import type { PagedMemory } from "../kernels/memory.js";

export type CacheType = "float32" | "int8";

/** What a layer's cache holds: heads of keys and values and their widths. */
export interface LayerShape {
  readonly kvHeads: number;
  readonly keyDim: number;
  readonly valueDim: number;
}

/** A layer's shape as its pages have it: widths padded to multiples of 8. */
export interface StoredShape extends LayerShape {
  readonly type: CacheType;
  readonly storedKeyDim: number;
  readonly storedValueDim: number;
  /** Bytes of a full page of keys, of values. */
  readonly keyBytes: number;
  readonly valueBytes: number;
  /** Bytes of the float32 page that is still filling. */
  readonly openKeyBytes: number;
  readonly openValueBytes: number;
}

export function storedShape(shape: LayerShape, type: CacheType): StoredShape {
  const storedKeyDim = storedDim(shape.keyDim);
  const storedValueDim = storedDim(shape.valueDim);
  const openKeyBytes = floatPageBytes(storedKeyDim);
  const openValueBytes = floatPageBytes(storedValueDim);
  return {
    ...shape,
    type,
    storedKeyDim,
    storedValueDim,
    keyBytes: type === "int8" ? keyPageBytes(storedKeyDim) : openKeyBytes,
    valueBytes: type === "int8" ? valuePageBytes(storedValueDim) : openValueBytes,
    openKeyBytes,
    openValueBytes,
  };
}

/** A block of memory that is kept between jobs and replaced by a larger one when it is too small. */
export class Area {
  readonly #memory: PagedMemory;
  #address = 0;
  #bytes = 0;

  constructor(memory: PagedMemory) {
    this.#memory = memory;
  }

  /** Address of at least `bytes`; what stood there is lost when it grows. */
  ensure(bytes: number): number {
    if (bytes <= this.#bytes) return this.#address;
    this.free();
    const wanted = Math.max(1024, bytes + (bytes >> 2));
    this.#address = this.#memory.alloc(wanted);
    this.#bytes = wanted;
    return this.#address;
  }

  free(): void {
    if (this.#bytes > 0) this.#memory.free(this.#address);
    this.#bytes = 0;
    this.#address = 0;
  }
}

/** One memory with its kernels, and the areas that jobs read from and write to. */
export class Bank {
  readonly kernels: Kernels;
  readonly memory: PagedMemory;
  /** Rows on their way into pages, or out of them. */
  readonly staging: Area;
  readonly records: Area;
  readonly query: Area;
  readonly result: Area;
  readonly partials: Area;
  readonly lists: Area;
  readonly limits: Area;
  readonly bias: Area;
  readonly logits: Area;
  readonly sink: Area;

  constructor(options: { threads: number; maximumBytes: number; budget: Budget; spin?: number }) {
    this.kernels = new Kernels(options);
    this.memory = this.kernels.memory;
    const area = () => new Area(this.memory);
    this.staging = area();
    this.records = area();
    this.query = area();
    this.result = area();
    this.partials = area();
    this.lists = area();
    this.limits = area();
    this.bias = area();
    this.logits = area();
    this.sink = area();
  }

  /** Gives back the areas, which a large job may have left large. */
  trim(): void {
    const { staging, records, query, result, partials, lists, limits, bias, logits, sink } = this;
    for (const area of [staging, records, query, result, partials, lists, limits, bias, logits, sink]) area.free();
  }
}

let identity: Int32Array = new Int32Array(0);

/** 0, 1, ..., n - 1. Not to be written to. */
export function identityPositions(n: number): Int32Array {
  if (identity.length < n) identity = Int32Array.from({ length: Math.max(1024, n * 2) }, (_, i) => i);
  return identity.subarray(0, n);
}
