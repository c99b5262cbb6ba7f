import { FoveaError } from "../error.js";
import { JOB, MAX_DIM, SCRATCH_BYTES } from "./layout.js";
import { type Budget, PagedMemory } from "./memory.js";
import { type KernelThread, startThread, threadsAvailable } from "./threads.js";
import { shared as sharedModule, single as singleModule } from "./wasm.generated.js";

interface Exports {
  runAlone(scratch: number): void;
  run(scratch: number): void;
  wake(): void;
  stop(): void;
  softmaxRow(row: number, n: number): number;
  topK(row: number, n: number, k: number, out: number, scratch: number): void;
}

export interface KernelOptions {
  /** Threads that share the work, the calling one included. Default 1. Where threads cannot be had, 1. */
  readonly threads?: number;
  /** Bytes that the memory holds from the start. Default 0: it grows as needed. */
  readonly initialBytes?: number;
  /** Most bytes handed out. Default and most: 4 GiB less one unit. */
  readonly maximumBytes?: number;
  /** A limit shared with other kernels; default: `maximumBytes` alone. */
  readonly budget?: Budget;
  /**
   * Microseconds that an idle thread looks for work before it sleeps. Default 10: long enough to meet the job that it
   * was woken for, short enough to leave the core to the dense segments.
   */
  readonly spin?: number;
}

const modules = new Map<boolean, WebAssembly.Module>();

function moduleFor(shared: boolean): WebAssembly.Module {
  let module = modules.get(shared);
  if (!module) {
    const text = atob(shared ? sharedModule : singleModule);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    module = new WebAssembly.Module(bytes);
    modules.set(shared, module);
  }
  return module;
}

/** One memory, the kernels that work on it, and their threads. */
export class Kernels {
  readonly memory: PagedMemory;
  readonly threads: number;
  readonly #exports: Exports;
  readonly #scratch: number;
  readonly #workers: KernelThread[] = [];
  #closed = false;

  constructor(options: KernelOptions = {}) {
    const wanted = options.threads ?? 1;
    if (!Number.isInteger(wanted) || wanted < 1)
      throw new FoveaError("bad-input", `threads is ${wanted}; it must be a whole number of at least 1`);
    this.threads = threadsAvailable() ? wanted : 1;
    const shared = this.threads > 1;
    const module = moduleFor(shared);
    this.memory = new PagedMemory({ ...options, shared });
    const instance = new WebAssembly.Instance(module, { env: { memory: this.memory.memory } });
    this.#exports = instance.exports as unknown as Exports;
    this.#scratch = this.memory.alloc(SCRATCH_BYTES);
    const spins = Math.round((options.spin ?? 10) * 400);
    for (let i = 1; i < this.threads; i++) {
      const scratch = this.memory.alloc(SCRATCH_BYTES);
      this.#workers.push(startThread({ module, memory: this.memory.memory, scratch, spins }));
    }
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Runs the job whose fields stand at JOB; `parallel` asks for all threads. Blocks until it is done. */
  run(parallel: boolean): void {
    if (this.#closed) throw new FoveaError("closed", "the kernels were closed");
    if (parallel && this.#workers.length > 0) this.#exports.run(this.#scratch);
    else this.#exports.runAlone(this.#scratch);
  }

  /** Wakes sleeping threads ahead of a job, which takes some microseconds that other work can hide. */
  wake(): void {
    if (this.#workers.length > 0) this.#exports.wake();
  }

  /** Index of the job's first field among the 32-bit words. */
  get job(): number {
    return JOB;
  }

  /**
   * Softmax of rows [rows, n] in place. Returns each row's log-sum-exp; a row of -Infinity becomes zeros and gives
   * -Infinity.
   */
  softmax(data: Float32Array, rows: number): Float32Array {
    const n = rowLength(data, rows);
    const lse = new Float32Array(rows);
    if (n === 0) return lse.fill(Number.NEGATIVE_INFINITY);
    const row = this.memory.alloc(n * 4 + 64);
    try {
      for (let r = 0; r < rows; r++) {
        this.memory.f32.set(data.subarray(r * n, (r + 1) * n), row >>> 2);
        lse[r] = this.#exports.softmaxRow(row, n);
        data.set(this.memory.f32.subarray(row >>> 2, (row >>> 2) + n), r * n);
      }
    } finally {
      this.memory.free(row);
    }
    return lse;
  }

  /**
   * Indices of the k largest of each row of [rows, n], ascending; of equal ones the lower index is taken. [rows, min(k,
   * n)]. NaN is not allowed.
   */
  topK(data: Float32Array, rows: number, k: number): Int32Array {
    const n = rowLength(data, rows);
    const count = Math.min(k, n);
    if (!Number.isInteger(k) || k < 0)
      throw new FoveaError("bad-input", `k is ${k}; it must be a whole number of at least 0`);
    const out = new Int32Array(rows * count);
    if (count === 0) return out;
    const row = this.memory.alloc(n * 4 + count * 4);
    const result = (row + n * 4) >>> 2;
    try {
      for (let r = 0; r < rows; r++) {
        this.memory.f32.set(data.subarray(r * n, (r + 1) * n), row >>> 2);
        this.#exports.topK(row, n, count, result * 4, this.#scratch);
        out.set(this.memory.i32.subarray(result, result + count), r * count);
      }
    } finally {
      this.memory.free(row);
    }
    return out;
  }

  /** The same for one row of n floats in memory, 0 < k <= n: writes the indices to address `out`. */
  topKAt(row: number, n: number, k: number, out: number): void {
    this.#exports.topK(row, n, k, out, this.#scratch);
  }

  /** Ends the threads. The memory goes when the last view of it goes. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#exports.stop();
    for (const worker of this.#workers) worker.end();
  }
}

function rowLength(data: Float32Array, rows: number): number {
  if (rows === 0) return 0;
  const n = data.length / rows;
  if (!Number.isInteger(n))
    throw new FoveaError("bad-shape", `${data.length} numbers do not make ${rows} rows of one length`);
  return n;
}

/** A head dimension as the kernels store it: a multiple of 8. Throws bad-shape beyond the largest. */
export function storedDim(dim: number): number {
  if (!Number.isInteger(dim) || dim < 1 || dim > MAX_DIM)
    throw new FoveaError("bad-shape", `a head dimension of ${dim} was asked for; the cache holds 1 to ${MAX_DIM}`);
  return Math.ceil(dim / 8) * 8;
}

/** A new memory with kernels. */
export function createKernels(options: KernelOptions = {}): Kernels {
  return new Kernels(options);
}
