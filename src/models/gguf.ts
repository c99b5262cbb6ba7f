import { FoveaError } from "../error.js";
import { describe } from "./json.js";
import { byteLength, DTYPES, dtypeRow } from "./quants.js";
import { type ByteSource, openSource, type SourceLike } from "./source.js";
import {
  checkedSize,
  collect,
  elementCount,
  type Place,
  replaceFile,
  type Sink,
  type TensorFile,
  type TensorInfo,
  type TensorToWrite,
  tensorBytes,
  tensorReaders,
} from "./tensor-file.js";

/** The types of metadata values, in the order of their numbers in the format. */
const VALUE_TYPES = [
  "u8",
  "i8",
  "u16",
  "i16",
  "u32",
  "i32",
  "f32",
  "bool",
  "string",
  "array",
  "u64",
  "i64",
  "f64",
] as const;

/** A type of metadata value. */
export type GgufType = (typeof VALUE_TYPES)[number];

type ScalarType = Exclude<GgufType, "array">;

/** A metadata value with its type, as it is written. An array's `value` may be any iterable with a length. */
export type GgufValue =
  | { type: ScalarType; value: string | number | bigint | boolean }
  | { type: "array"; of: ScalarType; value: ArrayLike<string | number | bigint | boolean> };

/** A GGUF file: a tensor file whose metadata are typed. */
export interface GgufFile extends TensorFile {
  readonly kind: "gguf";
  readonly version: number;
  /** Tensors start at multiples of this many bytes. */
  readonly alignment: number;
  /** The type of each metadata value; of an array `[element type]`. */
  readonly types: ReadonlyMap<string, string>;
}

const MAGIC = 0x46554747; // "GGUF"
/** Largest header that is read: the largest vocabularies take some tens of megabytes. */
const MAX_HEADER = 512 * 1024 * 1024;
const MAX_NESTING = 4;
const MAX_DIMENSIONS = 4;
const DEFAULT_ALIGNMENT = 32;

/** Bytes of a scalar metadata value; a string takes at least its length field. */
const VALUE_BYTES: Readonly<Record<GgufType, number>> = {
  u8: 1,
  i8: 1,
  u16: 2,
  i16: 2,
  u32: 4,
  i32: 4,
  f32: 4,
  bool: 1,
  string: 8,
  array: 12,
  u64: 8,
  i64: 8,
  f64: 8,
};

const HINT = "The file is truncated, corrupt or not a GGUF file; fetch it again.";

/**
 * Opens a GGUF file (version 2 or 3, little-endian). Only the header is read.
 *
 * Metadata values are numbers (64-bit ones that a number cannot hold exactly: bigint), booleans, strings, typed arrays
 * of numbers (plain arrays for 64-bit integers), and arrays of strings or booleans.
 * @throws FoveaError "bad-file" naming the field and byte that is wrong, "unsupported", "not-found"
 */
export async function openGguf(from: SourceLike): Promise<GgufFile> {
  const source = await openSource(from);
  try {
    const header = await readHeader(source);
    const { version, alignment, metadata, types, tensors, places } = header;
    const parts = metadata["split.count"];
    if (typeof parts === "number" && parts > 1) {
      throw new FoveaError("unsupported", `${source.name} is one of ${parts} parts of a split GGUF file`, {
        hint: "Put the parts together with llama.cpp's llama-gguf-split --merge, and open the result.",
      });
    }
    const readers = tensorReaders(source.name, tensors, places, [source]);
    return { kind: "gguf", name: source.name, version, alignment, metadata, types, tensors, ...readers };
  } catch (error) {
    await source.close();
    throw error;
  }
}

/** Says that the header goes on behind the bytes at hand. */
class NeedMore {
  readonly end: number;
  constructor(end: number) {
    this.end = end;
  }
}

/** Nobody knows how long a header is before it is read: parse what is there, and again with more where it ends early. */
async function readHeader(source: ByteSource): Promise<ReturnType<typeof parseHeader>> {
  let have = Math.min(source.size, 1 << 20);
  for (;;) {
    const bytes = await source.read(0, have);
    try {
      return parseHeader(new Cursor(bytes, source.size, source.name), source);
    } catch (error) {
      if (!(error instanceof NeedMore)) throw error;
      if (error.end > MAX_HEADER) {
        throw new FoveaError("too-large", `${source.name}: its header is larger than ${MAX_HEADER} bytes`, {
          hint: HINT,
        });
      }
      have = Math.min(source.size, Math.max(error.end, have * 4));
    }
  }
}

/** Reads little-endian values one after the other, never beyond the file. */
class Cursor {
  at = 0;
  private readonly view: DataView;
  private readonly bytes: Uint8Array;
  /** Size of the file, of which `bytes` is the beginning. */
  readonly size: number;
  readonly name: string;

  constructor(bytes: Uint8Array, size: number, name: string) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.size = size;
    this.name = name;
  }

  fail(what: string): never {
    throw new FoveaError("bad-file", `${this.name}: at byte ${this.at}: ${what}`, { hint: HINT });
  }

  /** Checks that `count` values of at least `each` bytes can follow, before anything is allocated for them. */
  expect(count: number, each: number, what: string): void {
    const end = this.at + count * each;
    if (!(end <= this.size)) this.fail(`${what} claims ${count}, but only ${this.size - this.at} bytes are left`);
    if (end > this.bytes.byteLength) throw new NeedMore(end);
  }

  private take(bytes: number, what: string): number {
    const from = this.at;
    this.expect(1, bytes, what);
    this.at += bytes;
    return from;
  }

  u32(what: string): number {
    return this.view.getUint32(this.take(4, what), true);
  }

  /** A 64-bit count or size. */
  u64(what: string): number {
    const value = this.view.getBigUint64(this.take(8, what), true);
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
      this.at -= 8;
      this.fail(`${what} is ${value}`);
    }
    return Number(value);
  }

  string(what: string): string {
    const length = this.u64(`the length of ${what}`);
    this.expect(length, 1, `the length of ${what}`);
    const text = decoder.decode(this.bytes.subarray(this.at, this.at + length));
    this.at += length;
    return text;
  }

  value(type: GgufType, what: string, depth = 0): unknown {
    if (type === "string") return this.string(what);
    if (type === "array") {
      if (depth === MAX_NESTING) this.fail(`${what} nests arrays deeper than ${MAX_NESTING}`);
      const element = this.type(what);
      const count = this.u64(`the length of ${what}`);
      this.expect(count, VALUE_BYTES[element], `the length of ${what}`);
      return this.array(element, count, what, depth + 1);
    }
    const at = this.take(VALUE_BYTES[type], what);
    switch (type) {
      case "u8":
        return this.view.getUint8(at);
      case "i8":
        return this.view.getInt8(at);
      case "u16":
        return this.view.getUint16(at, true);
      case "i16":
        return this.view.getInt16(at, true);
      case "u32":
        return this.view.getUint32(at, true);
      case "i32":
        return this.view.getInt32(at, true);
      case "f32":
        return this.view.getFloat32(at, true);
      case "f64":
        return this.view.getFloat64(at, true);
      case "bool":
        return this.view.getUint8(at) !== 0;
      case "u64":
        return exact(this.view.getBigUint64(at, true));
      case "i64":
        return exact(this.view.getBigInt64(at, true));
    }
  }

  private array(type: GgufType, count: number, what: string, depth: number): unknown {
    const Typed = TYPED[type];
    if (Typed) {
      const bytes = count * VALUE_BYTES[type];
      const from = this.at;
      this.at += bytes;
      // A copy, since the values may start at an odd byte.
      return new Typed(this.bytes.slice(from, from + bytes).buffer);
    }
    const list: unknown[] = [];
    for (let i = 0; i < count; i++) list.push(this.value(type, what, depth));
    return list;
  }

  type(what: string): GgufType {
    const number = this.u32(`the type of ${what}`);
    const type = VALUE_TYPES[number];
    if (type === undefined) {
      this.at -= 4;
      this.fail(`${what} has the unknown value type ${number}`);
    }
    return type;
  }
}

const TYPED: Partial<Record<GgufType, new (buffer: ArrayBuffer) => ArrayLike<number>>> = {
  u8: Uint8Array,
  i8: Int8Array,
  u16: Uint16Array,
  i16: Int16Array,
  u32: Uint32Array,
  i32: Int32Array,
  f32: Float32Array,
  f64: Float64Array,
};

const decoder = new TextDecoder();

/** A 64-bit integer as a number where that is exact. */
function exact(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

/** The data type with a GGUF number. */
const DTYPE_OF = new Map(
  Object.entries(DTYPES).flatMap(([name, row]) => (row.gguf === undefined ? [] : [[row.gguf, name] as const])),
);

function parseHeader(cursor: Cursor, source: ByteSource) {
  if (cursor.size < 24) cursor.fail(`${cursor.size} bytes are too few for a GGUF file`);
  if (cursor.u32("the magic") !== MAGIC) {
    cursor.at = 0;
    cursor.fail('it does not begin with "GGUF"');
  }
  const version = cursor.u32("the version");
  if (version !== 2 && version !== 3) {
    const swapped = version > 0xffff && (version & 0xffff) === 0;
    throw new FoveaError(
      "unsupported",
      `${cursor.name}: ${swapped ? "big-endian GGUF files" : `GGUF version ${version}`} cannot be read, only little-endian versions 2 and 3`,
      { hint: "Convert the model again with a current tool." },
    );
  }
  const tensorCount = cursor.u64("the number of tensors");
  const keyCount = cursor.u64("the number of metadata keys");
  // A key takes at least its length, its type and one byte; a tensor its name's length, dimensions, type and offset.
  if (keyCount * 13 + tensorCount * 24 > cursor.size) {
    cursor.fail(`${tensorCount} tensors and ${keyCount} metadata keys cannot be in ${cursor.size} bytes`);
  }

  const metadata: Record<string, unknown> = Object.create(null);
  const types = new Map<string, string>();
  for (let i = 0; i < keyCount; i++) {
    const key = cursor.string(`metadata key ${i}`);
    const what = `metadata ${describe(key)}`;
    if (types.has(key)) cursor.fail(`${what} is given twice`);
    const type = cursor.type(what);
    const start = cursor.at;
    metadata[key] = cursor.value(type, what);
    types.set(key, type === "array" ? `[${elementType(cursor, start)}]` : type);
  }
  const alignment = metadata["general.alignment"] ?? DEFAULT_ALIGNMENT;
  if (typeof alignment !== "number" || alignment < 1 || alignment > 1 << 20 || Math.log2(alignment) % 1 !== 0) {
    cursor.fail(`general.alignment is ${describe(alignment)}, not a power of two`);
  }

  const infos: { info: TensorInfo; offset: number }[] = [];
  const tensors = new Map<string, TensorInfo>();
  for (let i = 0; i < tensorCount; i++) {
    const info = parseTensor(cursor, i, alignment);
    if (tensors.has(info.info.name)) cursor.fail(`tensor ${describe(info.info.name)} is given twice`);
    tensors.set(info.info.name, info.info);
    infos.push(info);
  }

  const start = align(cursor.at, alignment);
  const places = new Map<string, Place>();
  let end = 0;
  let before = "";
  for (const { info, offset } of [...infos].sort((a, b) => a.offset - b.offset || a.info.bytes - b.info.bytes)) {
    if (start + offset + info.bytes > cursor.size) {
      cursor.fail(
        `tensor ${describe(info.name)} of ${info.bytes} bytes at ${start + offset} reaches beyond the file's ${cursor.size} bytes`,
      );
    }
    if (offset < end) cursor.fail(`tensors ${describe(before)} and ${describe(info.name)} overlap`);
    end = offset + info.bytes;
    before = info.name;
    places.set(info.name, { source, offset: start + offset });
  }
  return { version, alignment, metadata, types, tensors, places };
}

/** The element type of the array value that starts at a byte already read. */
function elementType(cursor: Cursor, start: number): GgufType {
  const end = cursor.at;
  cursor.at = start;
  const type = cursor.type("an array");
  cursor.at = end;
  return type;
}

function parseTensor(cursor: Cursor, index: number, alignment: number): { info: TensorInfo; offset: number } {
  const name = cursor.string(`the name of tensor ${index}`);
  const what = `tensor ${describe(name)}`;
  const dimensions = cursor.u32(`the dimensions of ${what}`);
  if (dimensions > MAX_DIMENSIONS) cursor.fail(`${what} has ${dimensions} dimensions; ${MAX_DIMENSIONS} are allowed`);
  const shape: number[] = [];
  // GGUF lists the innermost dimension first.
  for (let d = 0; d < dimensions; d++) shape.unshift(cursor.u64(`a dimension of ${what}`));
  const number = cursor.u32(`the type of ${what}`);
  const dtype = DTYPE_OF.get(number);
  if (dtype === undefined) cursor.fail(`${what} has the unknown type ${number}`);
  const row = DTYPES[dtype];
  const elements = elementCount(shape);
  if (Number.isNaN(elements)) cursor.fail(`${what} [${shape}] overflows`);
  if ((shape.at(-1) ?? 1) % row.block !== 0) {
    cursor.fail(`${what} [${shape}]: its rows are not a whole number of ${dtype} blocks of ${row.block}`);
  }
  const offset = cursor.u64(`the offset of ${what}`);
  if (offset % alignment !== 0) cursor.fail(`${what} starts at ${offset}, which is no multiple of ${alignment}`);
  return { info: { name, dtype, shape, bytes: byteLength(dtype, elements) }, offset };
}

function align(offset: number, alignment: number): number {
  return Math.ceil(offset / alignment) * alignment;
}

/** What `writeGguf` writes. */
export interface GgufToWrite {
  /** `general.alignment` need not be given: it is 32. */
  metadata: Readonly<Record<string, GgufValue>>;
  /** F32, F16, BF16 or Q8_0 from float32 values, or any type of the format from its bytes. */
  tensors: Iterable<TensorToWrite>;
}

/**
 * Writes a GGUF file, version 3, aligned to 32 bytes: to a temporary file first, which then takes the place of `path`.
 * @throws FoveaError "unsupported" or "bad-shape" when a tensor cannot be written as its type
 */
export async function writeGguf(path: string, { metadata, tensors }: GgufToWrite): Promise<void> {
  const list = [...tensors];
  const header = encodeHeader(metadata, list);
  await replaceFile(path, (sink) => writePieces(list, header, sink));
}

/** The same, to bytes in memory. */
export async function encodeGguf({ metadata, tensors }: GgufToWrite): Promise<Uint8Array<ArrayBuffer>> {
  const list = [...tensors];
  const header = encodeHeader(metadata, list);
  return collect((sink) => writePieces(list, header, sink));
}

async function writePieces(tensors: readonly TensorToWrite[], header: Uint8Array, sink: Sink): Promise<void> {
  await sink(header);
  for (const tensor of tensors) {
    const bytes = await tensorBytes(tensor);
    await sink(bytes);
    await sink(new Uint8Array(align(bytes.byteLength, DEFAULT_ALIGNMENT) - bytes.byteLength));
  }
}

function encodeHeader(metadata: Readonly<Record<string, GgufValue>>, tensors: readonly TensorToWrite[]): Uint8Array {
  const out = new Writer();
  out.u32(MAGIC);
  out.u32(3);
  out.u64(tensors.length);
  const entries = Object.entries(metadata).filter(([key]) => key !== "general.alignment");
  out.u64(entries.length);
  for (const [key, value] of entries) {
    out.string(key);
    out.u32(VALUE_TYPES.indexOf(value.type));
    if (value.type === "array") {
      out.u32(VALUE_TYPES.indexOf(value.of));
      out.u64(value.value.length);
      for (let i = 0; i < value.value.length; i++) out.value(value.of, value.value[i], key);
    } else {
      out.value(value.type, value.value, key);
    }
  }
  const seen = new Set<string>();
  let offset = 0;
  for (const tensor of tensors) {
    const number = dtypeRow(tensor.dtype)?.gguf;
    if (number === undefined)
      throw new FoveaError("unsupported", `GGUF has no type ${tensor.dtype} (tensor ${tensor.name})`);
    if (seen.has(tensor.name)) throw new FoveaError("bad-input", `cannot write two tensors named ${tensor.name}`);
    seen.add(tensor.name);
    if (tensor.shape.length > MAX_DIMENSIONS) {
      throw new FoveaError(
        "bad-shape",
        `tensor ${tensor.name} [${tensor.shape}]: GGUF allows ${MAX_DIMENSIONS} dimensions`,
      );
    }
    out.string(tensor.name);
    out.u32(tensor.shape.length);
    for (const size of [...tensor.shape].reverse()) out.u64(size);
    out.u32(number);
    out.u64(offset);
    offset = align(offset + checkedSize(tensor), DEFAULT_ALIGNMENT);
  }
  return out.padded(DEFAULT_ALIGNMENT);
}

/** Grows as little-endian values are put into it. */
class Writer {
  private bytes = new Uint8Array(1 << 16);
  private view = new DataView(this.bytes.buffer);
  private at = 0;

  private room(count: number): number {
    const from = this.at;
    this.at += count;
    if (this.at > this.bytes.byteLength) {
      const larger = new Uint8Array(Math.max(this.at, this.bytes.byteLength * 2));
      larger.set(this.bytes);
      this.bytes = larger;
      this.view = new DataView(larger.buffer);
    }
    return from;
  }

  u32(value: number): void {
    const at = this.room(4);
    this.view.setUint32(at, value, true);
  }

  u64(value: number): void {
    const at = this.room(8);
    this.view.setBigUint64(at, BigInt(value), true);
  }

  string(text: string): void {
    const bytes = new TextEncoder().encode(text);
    this.u64(bytes.byteLength);
    const at = this.room(bytes.byteLength);
    this.bytes.set(bytes, at);
  }

  value(type: ScalarType, value: string | number | bigint | boolean, key: string): void {
    if (type === "string") {
      this.string(String(value));
      return;
    }
    const [low, high] = RANGES[type];
    const number = type === "u64" || type === "i64" ? BigInt(value) : Number(value);
    if (!(number >= low && number <= high) && !(type === "f32" || type === "f64")) {
      throw new FoveaError("bad-input", `metadata ${key}: ${value} is no ${type}`);
    }
    const at = this.room(VALUE_BYTES[type]);
    SET[type](this.view, at, number);
  }

  /** The bytes so far, with zeros up to a multiple of `alignment`. */
  padded(alignment: number): Uint8Array {
    const size = align(this.at, alignment);
    this.room(size - this.at);
    return this.bytes.slice(0, size);
  }
}

type NumberType = Exclude<ScalarType, "string">;

const RANGES: Readonly<Record<NumberType, readonly [number | bigint, number | bigint]>> = {
  u8: [0, 255],
  i8: [-128, 127],
  u16: [0, 65535],
  i16: [-32768, 32767],
  u32: [0, 4294967295],
  i32: [-2147483648, 2147483647],
  u64: [0n, 2n ** 64n - 1n],
  i64: [-(2n ** 63n), 2n ** 63n - 1n],
  f32: [0, 0],
  f64: [0, 0],
  bool: [0, 1],
};

const SET: Readonly<Record<NumberType, (view: DataView, at: number, value: number | bigint) => void>> = {
  u8: (view, at, value) => view.setUint8(at, Number(value)),
  i8: (view, at, value) => view.setInt8(at, Number(value)),
  u16: (view, at, value) => view.setUint16(at, Number(value), true),
  i16: (view, at, value) => view.setInt16(at, Number(value), true),
  u32: (view, at, value) => view.setUint32(at, Number(value), true),
  i32: (view, at, value) => view.setInt32(at, Number(value), true),
  f32: (view, at, value) => view.setFloat32(at, Number(value), true),
  f64: (view, at, value) => view.setFloat64(at, Number(value), true),
  u64: (view, at, value) => view.setBigUint64(at, BigInt(value), true),
  i64: (view, at, value) => view.setBigInt64(at, BigInt(value), true),
  bool: (view, at, value) => view.setUint8(at, Number(value)),
};
