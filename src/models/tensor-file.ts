import { FoveaError } from "../error.js";
import { byteLength, dequantize, dtypeRow, quantize } from "./quants.js";
import { type ByteSource, fileError, hasNode } from "./source.js";

/** One tensor of a checkpoint file, before it is read. */
export interface TensorInfo {
  readonly name: string;
  /** The file's own name of the type: "F32", "F16", "BF16", "Q8_0", ... (the rows of `DTYPES`). */
  readonly dtype: string;
  /** Row-major, outermost first, for GGUF too (which stores it the other way round). */
  readonly shape: readonly number[];
  /** Bytes in the file. */
  readonly bytes: number;
}

/** A checkpoint file with its tensors unread: each is read from its byte range when asked for. */
export interface TensorFile {
  readonly kind: "safetensors" | "gguf";
  /** What an error message calls the file. */
  readonly name: string;
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  readonly metadata: Readonly<Record<string, unknown>>;
  /**
   * Reads a tensor, dequantised and widened to float32, flat in row-major order.
   * @throws FoveaError "not-found" for an unknown name, "unsupported" for a type that cannot be read, "bad-file"
   */
  read(name: string): Promise<Float32Array<ArrayBuffer>>;
  /** Reads a tensor's bytes as they lie in the file, or `length` of them from `start`. */
  readRaw(name: string, start?: number, length?: number): Promise<Uint8Array<ArrayBuffer>>;
  /** `read` at once; throws "unsupported" where the source cannot (a blob or URL in a browser). */
  readSync(name: string): Float32Array<ArrayBuffer>;
  /** `readRaw` at once; throws "unsupported" where the source cannot. */
  readRawSync(name: string): Uint8Array<ArrayBuffer>;
  /** True when `readSync` and `readRawSync` work. */
  readonly sync: boolean;
  close(): Promise<void>;
}

/** A tensor to be written. */
export interface TensorToWrite {
  name: string;
  /** F32, F16 or BF16, in GGUF also Q8_0; with bytes as data, any type of the format. */
  dtype: string;
  /** Row-major, outermost first. */
  shape: readonly number[];
  /**
   * float32 values, which are encoded as `dtype`; or bytes, which are written as they are. A function is called when
   * the tensor's turn has come, so that a checkpoint of any size is written one tensor at a time.
   */
  data: TensorData | (() => TensorData | Promise<TensorData>);
}

export type TensorData = Float32Array | Uint8Array;

/** Where a tensor's bytes lie. */
export interface Place {
  source: ByteSource;
  offset: number;
}

/** Makes the readers of a `TensorFile` from the places of its tensors. */
export function tensorReaders(
  file: string,
  tensors: ReadonlyMap<string, TensorInfo>,
  places: ReadonlyMap<string, Place>,
  sources: readonly ByteSource[],
): Pick<TensorFile, "read" | "readRaw" | "readSync" | "readRawSync" | "sync" | "close"> {
  const find = (name: string): { info: TensorInfo; place: Place } => {
    const info = tensors.get(name);
    const place = places.get(name);
    if (!info || !place) {
      throw new FoveaError("not-found", `${file} has no tensor ${JSON.stringify(name)}`, {
        hint: `It has ${tensors.size} tensors, for example ${[...tensors.keys()].slice(0, 3).join(", ")}.`,
      });
    }
    return { info, place };
  };
  const sync = sources.every((source) => source.readSync !== undefined);
  const widen = (info: TensorInfo, bytes: Uint8Array<ArrayBuffer>): Float32Array<ArrayBuffer> => {
    // What a source reads lies in memory of its own, so float32 needs no copy.
    if (info.dtype === "F32" && bytes.byteOffset === 0) return new Float32Array(bytes.buffer, 0, bytes.byteLength / 4);
    try {
      return dequantize(info.dtype, bytes, elementCount(info.shape));
    } catch (cause) {
      if (!(cause instanceof FoveaError)) throw cause;
      throw new FoveaError(cause.code, `${file}: tensor ${info.name}: ${cause.message}`, { hint: cause.hint, cause });
    }
  };
  const readRawSync = (name: string): Uint8Array<ArrayBuffer> => {
    const { info, place } = find(name);
    if (!place.source.readSync) {
      throw new FoveaError("unsupported", `${file} cannot be read at once, only asynchronously`, {
        hint: "Use read or readRaw, or hold the file in memory as a Uint8Array.",
      });
    }
    return place.source.readSync(place.offset, info.bytes);
  };
  const readRaw: TensorFile["readRaw"] = async (name, start = 0, length) => {
    const { info, place } = find(name);
    return place.source.read(place.offset + start, Math.min(length ?? info.bytes, info.bytes - start));
  };
  return {
    sync,
    readRaw,
    readRawSync,
    read: async (name) => {
      const { info } = find(name);
      return widen(info, await readRaw(name));
    },
    readSync: (name) => widen(find(name).info, readRawSync(name)),
    close: async () => {
      for (const source of sources) await source.close();
    },
  };
}

/** Number of elements of a shape; NaN when it is not a safe integer. */
export function elementCount(shape: readonly number[]): number {
  let count = 1;
  for (const size of shape) count *= size;
  // A zero dimension hides an overflow, which is harmless; an inexact product is not.
  return Number.isSafeInteger(count) ? count : Number.NaN;
}

/** Checks a tensor to be written and gives its size in bytes. */
export function checkedSize(tensor: TensorToWrite): number {
  const row = dtypeRow(tensor.dtype);
  const last = tensor.shape.at(-1) ?? 1;
  const elements = elementCount(tensor.shape);
  if (!tensor.shape.every((size) => Number.isSafeInteger(size) && size >= 0) || Number.isNaN(elements)) {
    throw new FoveaError("bad-shape", `tensor ${tensor.name}: [${tensor.shape}] is not a shape`);
  }
  if (row && last % row.block !== 0) {
    throw new FoveaError(
      "bad-shape",
      `tensor ${tensor.name} [${tensor.shape}]: rows of ${last} are not a whole number of ${tensor.dtype} blocks of ${row.block}`,
      { hint: "Write this tensor as F16 or F32." },
    );
  }
  return byteLength(tensor.dtype, elements);
}

/** Takes a tensor's data and encodes it; checks its size. */
export async function tensorBytes(tensor: TensorToWrite): Promise<Uint8Array> {
  const data = typeof tensor.data === "function" ? await tensor.data() : tensor.data;
  const expected = checkedSize(tensor);
  const bytes = data instanceof Float32Array ? encodeValues(tensor, data) : data;
  if (bytes.byteLength !== expected) {
    throw new FoveaError(
      "bad-shape",
      `tensor ${tensor.name} [${tensor.shape}] of type ${tensor.dtype} takes ${expected} bytes, but its data ${bytes.byteLength}`,
    );
  }
  return bytes;
}

function encodeValues(tensor: TensorToWrite, values: Float32Array): Uint8Array {
  const elements = elementCount(tensor.shape);
  if (values.length !== elements) {
    throw new FoveaError(
      "bad-shape",
      `tensor ${tensor.name} [${tensor.shape}] has ${elements} elements, but its data ${values.length}`,
    );
  }
  return quantize(tensor.dtype, values);
}

/** Takes the pieces of a file in order. */
export type Sink = (piece: Uint8Array) => Promise<void> | void;

/** Runs `write` with a sink that keeps everything, and gives the bytes. */
export async function collect(write: (sink: Sink) => Promise<void>): Promise<Uint8Array<ArrayBuffer>> {
  const pieces: Uint8Array[] = [];
  let size = 0;
  await write((piece) => {
    pieces.push(piece);
    size += piece.byteLength;
  });
  const all = new Uint8Array(size);
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.byteLength;
  }
  return all;
}

/**
 * Runs `write` into a temporary file beside `path`, which takes its place only when all went well: a reader never sees
 * half a file, and a failure leaves what was there.
 */
export async function replaceFile(path: string, write: (sink: Sink) => Promise<void>): Promise<void> {
  if (!hasNode()) throw new FoveaError("unsupported", `cannot write ${path}: there is no file system here`);
  const { open, rename, rm } = await import("node:fs/promises");
  const temporary = `${path}.${process.pid}-${Math.random().toString(36).slice(2)}.tmp`;
  let file: Awaited<ReturnType<typeof open>>;
  try {
    file = await open(temporary, "wx");
  } catch (cause) {
    throw fileError(path, cause);
  }
  try {
    await write(async (piece) => {
      // Node writes at most 2 GiB at once.
      for (let at = 0; at < piece.byteLength; at += 1 << 30) await file.writeFile(piece.subarray(at, at + (1 << 30)));
    });
    await file.sync();
    await file.close();
    await rename(temporary, path);
  } catch (cause) {
    await file.close().catch(() => {});
    await rm(temporary, { force: true });
    throw cause;
  }
}
