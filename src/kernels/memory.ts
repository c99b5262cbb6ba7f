import { FoveaError } from "../error.js";
import { CONTROL_BYTES } from "./layout.js";

/** Memory is handed out in units of this size: one page of WebAssembly. */
const UNIT = 65_536;
/** Units of a slab, which holds blocks of one size. */
const SLAB_UNITS = 4;
const SLAB_BYTES = UNIT * SLAB_UNITS;
/** Blocks above this size take units of their own. */
const LARGEST_BLOCK = SLAB_BYTES / 4;
const ALIGN = 64;
/** Most bytes of a WebAssembly memory. */
export const MEMORY_BYTES = 65_536 * UNIT;

/** A limit on bytes that several memories share. */
export class Budget {
  readonly limit: number;
  #reserved = 0;

  constructor(limit: number) {
    this.limit = limit;
  }

  get reserved(): number {
    return this.#reserved;
  }

  /** Throws out-of-memory, with the figures, when `bytes` more exceed the limit. */
  reserve(bytes: number): void {
    if (this.#reserved + bytes > this.limit) throw exceeded(bytes, this.#reserved, this.limit);
    this.#reserved += bytes;
  }

  release(bytes: number): void {
    this.#reserved -= bytes;
  }
}

function exceeded(bytes: number, reserved: number, limit: number): FoveaError {
  return new FoveaError(
    "out-of-memory",
    `the cache needs ${reserved + bytes} bytes; its limit is ${limit} (${reserved} are in use, ${bytes} more are wanted)`,
    {
      hint: "raise the memory limit, shorten the text, release sequences that are no longer used, or use an int8 cache",
    },
  );
}

/** Blocks of one size in four units of memory. */
interface Slab {
  readonly start: number;
  readonly size: number;
  readonly capacity: number;
  /** Owners of each block; 0: free. */
  readonly references: Uint32Array;
  /** Blocks that were freed; the ones from `fresh` on were never given out. */
  readonly freed: number[];
  fresh: number;
  used: number;
  /** Position in its size's list of slabs with room, or -1. */
  place: number;
}

/**
 * A WebAssembly memory with an allocator: blocks of like size lie together in slabs, a slab without blocks serves any
 * other size, large blocks take whole units, and the memory grows without moving. Addresses are bytes, multiples of 64,
 * never 0. The typed views change when the memory grows: read them from this object at each use.
 */
export class PagedMemory {
  readonly memory: WebAssembly.Memory;
  readonly shared: boolean;
  u8!: Uint8Array;
  i32!: Int32Array;
  u32!: Uint32Array;
  f32!: Float32Array;
  readonly #budget: Budget;
  readonly #maximum: number;
  #end: number;
  #inUse = 0;
  #reserved = 0;
  /** Runs of free units, by start: [start, units]. */
  readonly #free: [start: number, units: number][] = [];
  readonly #slabAt: (Slab | undefined)[] = [];
  readonly #large = new Map<number, number>();
  readonly #roomy = new Map<number, Slab[]>();

  /** `maximumBytes` is a hard limit on what is handed out, up to 4 GiB. */
  constructor(options: { initialBytes?: number; maximumBytes?: number; shared?: boolean; budget?: Budget } = {}) {
    const maximum = Math.min(MEMORY_BYTES, (options.maximumBytes ?? MEMORY_BYTES) + CONTROL_BYTES);
    this.#maximum = Math.ceil(maximum / UNIT);
    this.#budget = options.budget ?? new Budget(options.maximumBytes ?? MEMORY_BYTES);
    this.shared = options.shared ?? false;
    const initial = Math.min(
      this.#maximum,
      Math.max(1, Math.ceil((CONTROL_BYTES + (options.initialBytes ?? 0)) / UNIT)),
    );
    try {
      // a shared memory must state a maximum, and the module's own is the largest there is
      this.memory = new WebAssembly.Memory(
        this.shared ? { initial, maximum: 65_536, shared: true } : { initial, maximum: this.#maximum },
      );
    } catch (cause) {
      throw new FoveaError("out-of-memory", `no WebAssembly memory of ${initial * UNIT} bytes could be made`, {
        cause,
      });
    }
    this.#end = initial;
    if (initial > 1) this.#free.push([1, initial - 1]);
    this.#refresh();
  }

  /** Bytes of the blocks that are given out. */
  get bytesInUse(): number {
    return this.#inUse;
  }

  /** Bytes set aside for blocks: the above, what their slabs waste, and free blocks in slabs. Counts for the limit. */
  get bytesReserved(): number {
    return this.#reserved;
  }

  /** A block of at least `bytes`, with one reference. Its contents are undefined. Throws out-of-memory. */
  alloc(bytes: number): number {
    const size = Math.max(ALIGN, Math.ceil(bytes / ALIGN) * ALIGN);
    if (size > LARGEST_BLOCK) {
      const units = Math.ceil(size / UNIT);
      const start = this.#takeUnits(units) * UNIT;
      this.#large.set(start, units);
      this.#inUse += units * UNIT;
      return start;
    }
    let slabs = this.#roomy.get(size);
    if (!slabs) {
      slabs = [];
      this.#roomy.set(size, slabs);
    }
    if (slabs.length === 0) this.#addSlab(size, slabs);
    const slab = slabs[slabs.length - 1];
    const index = slab.freed.length > 0 ? (slab.freed.pop() as number) : slab.fresh++;
    slab.references[index] = 1;
    slab.used++;
    if (slab.used === slab.capacity) {
      slabs.pop();
      slab.place = -1;
    }
    this.#inUse += size;
    return slab.start + index * size;
  }

  /** Bytes of the block at an address: what was asked for, rounded up. */
  sizeOf(address: number): number {
    return this.#slabAt[address >>> 16]?.size ?? (this.#large.get(address) ?? 0) * UNIT;
  }

  /** Owners of a block of a slab. */
  references(address: number): number {
    const slab = this.#slabAt[address >>> 16];
    if (!slab) return this.#large.has(address) ? 1 : 0;
    return slab.references[(address - slab.start) / slab.size];
  }

  /** One more owner. Blocks above 64 KiB have one owner only. */
  retain(address: number): void {
    const slab = this.#slabAt[address >>> 16] as Slab;
    slab.references[(address - slab.start) / slab.size]++;
  }

  /** One owner less; the last one frees the block. */
  free(address: number): void {
    const slab = this.#slabAt[address >>> 16];
    if (!slab) {
      const units = this.#large.get(address);
      if (units === undefined) throw new FoveaError("internal", `no block begins at address ${address}`);
      this.#large.delete(address);
      this.#inUse -= units * UNIT;
      this.#giveUnits(address / UNIT, units);
      return;
    }
    const index = (address - slab.start) / slab.size;
    if (slab.references[index] === 0)
      throw new FoveaError("internal", `the block at address ${address} is freed twice`);
    if (--slab.references[index] > 0) return;
    this.#inUse -= slab.size;
    slab.used--;
    const slabs = this.#roomy.get(slab.size) as Slab[];
    if (slab.used > 0) {
      slab.freed.push(index);
      if (slab.place < 0) {
        slab.place = slabs.length;
        slabs.push(slab);
      }
      return;
    }
    if (slab.place >= 0) {
      const last = slabs.pop() as Slab;
      if (last !== slab) {
        slabs[slab.place] = last;
        last.place = slab.place;
      }
    }
    for (let u = 0; u < SLAB_UNITS; u++) this.#slabAt[slab.start / UNIT + u] = undefined;
    this.#giveUnits(slab.start / UNIT, SLAB_UNITS);
  }

  #addSlab(size: number, slabs: Slab[]): void {
    const first = this.#takeUnits(SLAB_UNITS);
    const capacity = Math.floor(SLAB_BYTES / size);
    const slab: Slab = {
      start: first * UNIT,
      size,
      capacity,
      references: new Uint32Array(capacity),
      freed: [],
      fresh: 0,
      used: 0,
      place: slabs.length,
    };
    for (let u = 0; u < SLAB_UNITS; u++) this.#slabAt[first + u] = slab;
    slabs.push(slab);
  }

  /** First fit, else growth. */
  #takeUnits(units: number): number {
    this.#budget.reserve(units * UNIT);
    for (let i = 0; i < this.#free.length; i++) {
      const run = this.#free[i];
      if (run[1] < units) continue;
      const start = run[0];
      if (run[1] === units) this.#free.splice(i, 1);
      else {
        run[0] += units;
        run[1] -= units;
      }
      this.#reserved += units * UNIT;
      return start;
    }
    try {
      this.#grow(units);
    } catch (error) {
      this.#budget.release(units * UNIT);
      throw error;
    }
    const run = this.#free[this.#free.length - 1];
    const start = run[0];
    if (run[1] === units) this.#free.pop();
    else {
      run[0] += units;
      run[1] -= units;
    }
    this.#reserved += units * UNIT;
    return start;
  }

  #giveUnits(start: number, units: number): void {
    this.#budget.release(units * UNIT);
    this.#reserved -= units * UNIT;
    this.#insertFree(start, units);
  }

  #insertFree(start: number, units: number): void {
    const runs = this.#free;
    let low = 0;
    let high = runs.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (runs[middle][0] < start) low = middle + 1;
      else high = middle;
    }
    const before = runs[low - 1];
    const after = runs[low];
    if (before && before[0] + before[1] === start) {
      before[1] += units;
      if (after && before[0] + before[1] === after[0]) {
        before[1] += after[1];
        runs.splice(low, 1);
      }
    } else if (after && start + units === after[0]) {
      after[0] = start;
      after[1] += units;
    } else runs.splice(low, 0, [start, units]);
  }

  /** Makes the last free run at least `units` long. */
  #grow(units: number): void {
    const last = this.#free[this.#free.length - 1];
    const open = last && last[0] + last[1] === this.#end ? last[1] : 0;
    const least = units - open;
    if (this.#end + least > this.#maximum) throw exceeded(least * UNIT, this.#end * UNIT, this.#maximum * UNIT);
    // grow by an eighth at a time: each growth makes the views anew
    const wanted = Math.min(this.#maximum - this.#end, Math.max(least, this.#end >> 3, 16));
    let grown = wanted;
    try {
      this.memory.grow(wanted);
    } catch {
      try {
        grown = least;
        this.memory.grow(least);
      } catch (cause) {
        throw new FoveaError(
          "out-of-memory",
          `the cache's memory cannot grow by ${least * UNIT} bytes beyond ${this.#end * UNIT}`,
          {
            hint: "the system has too little memory or address space left: lower the memory limit or shorten the text",
            cause,
          },
        );
      }
    }
    const start = this.#end;
    this.#end += grown;
    this.#refresh();
    this.#insertFree(start, grown);
  }

  #refresh(): void {
    const { buffer } = this.memory;
    this.u8 = new Uint8Array(buffer);
    this.i32 = new Int32Array(buffer);
    this.u32 = new Uint32Array(buffer);
    this.f32 = new Float32Array(buffer);
  }
}
