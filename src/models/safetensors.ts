import { FoveaError } from "../error.js";
import { describe, isObject, parseJsonObject } from "./json.js";
import { byteLength, dequantize, dtypeRow } from "./quants.js";
import { type ByteSource, hasNode, openSource, type SourceLike } from "./source.js";
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

/** The format's own limit on its header. */
const MAX_HEADER = 100_000_000;

const INDEX = ".safetensors.index.json";

/**
 * Opens a checkpoint in the safetensors format. Only the headers are read.
 *
 * @param from a `.safetensors` file; a `*.safetensors.index.json` file, whose shards lie beside it; a folder that holds
 *   `model.safetensors` or `model.safetensors.index.json`; bytes, a blob or a URL; or a list of sources, which are
 *   taken together as the shards of one checkpoint
 * @throws FoveaError "bad-file" naming the tensor and byte that is wrong, "not-found"
 */
export async function openSafetensors(from: SourceLike | readonly SourceLike[]): Promise<TensorFile> {
  if (Array.isArray(from)) return openShards("safetensors shards", from as readonly SourceLike[]);
  const one = await locate(from as SourceLike);
  const name = typeof one === "string" ? one : one instanceof URL ? one.href : "";
  if (name.endsWith(INDEX)) return openIndex(name);
  return openShards(name || undefined, [one]);
}

/** A folder stands for the checkpoint in it. */
async function locate(from: SourceLike): Promise<SourceLike> {
  if (typeof from !== "string" || from.includes("://") || !hasNode()) return from;
  const { existsSync, statSync } = await import("node:fs");
  if (!statSync(from, { throwIfNoEntry: false })?.isDirectory()) return from;
  const names = ["model.safetensors", `model${INDEX}`];
  const found = names.find((name) => existsSync(`${from}/${name}`));
  if (found) return `${from}/${found}`;
  throw new FoveaError("not-found", `the folder ${from} holds neither ${names.join(" nor ")}`);
}

/** Opens every shard that an index file names. */
async function openIndex(path: string): Promise<TensorFile> {
  const source = await openSource(path);
  let map: unknown;
  try {
    if (source.size > MAX_HEADER)
      throw new FoveaError("bad-file", `${path}: an index of ${source.size} bytes is absurd`);
    map = parseJsonObject(await source.read(0, source.size), path).weight_map;
  } finally {
    await source.close();
  }
  if (!isObject(map)) throw new FoveaError("bad-file", `${path}: weight_map must be an object, not ${describe(map)}`);
  const shardOf = new Map<string, string>();
  for (const [tensor, shard] of Object.entries(map)) {
    // A shard lies beside its index: a path that leads elsewhere is refused.
    if (typeof shard !== "string" || !/^[^/\\:]+\.safetensors$/.test(shard)) {
      throw new FoveaError("bad-file", `${path}: the shard of ${tensor} is ${describe(shard)}, not a plain file name`);
    }
    shardOf.set(tensor, shard);
  }
  const folder = path.slice(0, Math.max(path.lastIndexOf("/"), path.lastIndexOf("\\")) + 1);
  const shards = [...new Set(shardOf.values())];
  const file = await openShards(
    path,
    shards.map((shard) => folder + shard),
  );
  for (const [tensor, shard] of shardOf) {
    if (!file.tensors.has(tensor)) {
      await file.close();
      throw new FoveaError("bad-file", `${path} says that ${tensor} is in ${shard}, but it is in no shard`, {
        hint: "A shard is missing tensors: fetch the checkpoint again.",
      });
    }
  }
  return file;
}

async function openShards(name: string | undefined, from: readonly SourceLike[]): Promise<TensorFile> {
  const tensors = new Map<string, TensorInfo>();
  const places = new Map<string, Place>();
  const metadata: Record<string, unknown> = Object.create(null);
  const sources: ByteSource[] = [];
  try {
    for (const one of from) {
      const source = await openSource(one);
      sources.push(source);
      const header = await readHeader(source);
      for (const [info, offset] of header.tensors) {
        if (tensors.has(info.name))
          throw new FoveaError("bad-file", `${source.name}: tensor ${info.name} is in two shards`);
        tensors.set(info.name, info);
        places.set(info.name, { source, offset });
      }
      Object.assign(metadata, header.metadata);
    }
  } catch (error) {
    for (const source of sources) await source.close();
    throw error;
  }
  const file = name ?? sources[0]?.name ?? "safetensors";
  return { kind: "safetensors", name: file, tensors, metadata, ...tensorReaders(file, tensors, places, sources) };
}

/** Reads and checks one file's header: every tensor must lie inside the data, and the data be covered without overlap. */
async function readHeader(
  source: ByteSource,
): Promise<{ tensors: [TensorInfo, number][]; metadata: Record<string, string> }> {
  const { name, size } = source;
  if (size < 8) throw new FoveaError("bad-file", `${name}: ${size} bytes are too few for a safetensors file`, { hint });
  const length = headerLength(name, size, await source.read(0, 8));
  return checkHeader(name, size, await source.read(8, length));
}

const hint = "The file is truncated, corrupt or not a safetensors file; fetch it again.";

function headerLength(name: string, size: number, prefix: Uint8Array): number {
  const length = Number(new DataView(prefix.buffer, prefix.byteOffset).getBigUint64(0, true));
  if (length > MAX_HEADER || length > size - 8) {
    throw new FoveaError(
      "bad-file",
      `${name}: its header claims ${length} bytes; the file has ${size}, and ${MAX_HEADER} are allowed`,
      { hint },
    );
  }
  return length;
}

function checkHeader(
  name: string,
  size: number,
  bytes: Uint8Array<ArrayBuffer>,
): { tensors: [TensorInfo, number][]; metadata: Record<string, string> } {
  const header = parseJsonObject(bytes, `the header of ${name}`, { maxDepth: 8 });
  const start = 8 + bytes.length;
  const room = size - start;
  const tensors: [TensorInfo, number][] = [];
  const metadata: Record<string, string> = Object.create(null);
  for (const [key, value] of Object.entries(header)) {
    if (key === "__metadata__") {
      for (const [entry, text] of Object.entries(isObject(value) ? value : {})) metadata[entry] = String(text);
      continue;
    }
    tensors.push(checkTensor(name, key, value, start, room));
  }
  tensors.sort((a, b) => a[1] - b[1] || a[0].bytes - b[0].bytes);
  let end = start;
  for (const [info, offset] of tensors) {
    if (offset !== end) {
      const what = offset < end ? "overlaps the tensor before it" : "leaves bytes unused before it";
      throw new FoveaError("bad-file", `${name}: tensor ${info.name} at byte ${offset} ${what} (expected ${end})`, {
        hint,
      });
    }
    end = offset + info.bytes;
  }
  if (end !== size) {
    throw new FoveaError("bad-file", `${name}: its tensors end at byte ${end}, but the file has ${size} bytes`, {
      hint,
    });
  }
  return { tensors, metadata };
}

/**
 * All tensors of a safetensors file that lies in memory, widened to float32, at once: for small files that a method
 * brings. Throws FoveaError "bad-file", "unsupported" for a type that cannot be read.
 */
export function parseSafetensors(
  bytes: Uint8Array<ArrayBuffer>,
  name: string,
): {
  readonly tensors: ReadonlyMap<
    string,
    { readonly shape: readonly number[]; readonly data: Float32Array<ArrayBuffer> }
  >;
  readonly metadata: Readonly<Record<string, string>>;
} {
  const size = bytes.length;
  if (size < 8) throw new FoveaError("bad-file", `${name}: ${size} bytes are too few for a safetensors file`, { hint });
  const length = headerLength(name, size, bytes.subarray(0, 8));
  const { tensors, metadata } = checkHeader(name, size, bytes.slice(8, 8 + length));
  const read = tensors.map(([info, at]) => {
    const data = dequantize(info.dtype, bytes.slice(at, at + info.bytes), elementCount(info.shape));
    return [info.name, { shape: info.shape, data }] as const;
  });
  return { tensors: new Map(read), metadata };
}

function checkTensor(file: string, name: string, value: unknown, start: number, room: number): [TensorInfo, number] {
  const fail = (what: string): never => {
    throw new FoveaError("bad-file", `${file}: tensor ${describe(name)}: ${what}`);
  };
  if (!isObject(value)) return fail(`its entry must be an object, not ${describe(value)}`);
  const { dtype, shape, data_offsets: range } = value;
  const isCount = (n: unknown): n is number => typeof n === "number" && Number.isSafeInteger(n) && n >= 0;
  if (typeof dtype !== "string" || !dtypeRow(dtype)?.safetensors) return fail(`unknown dtype ${describe(dtype)}`);
  if (!Array.isArray(shape) || !shape.every(isCount)) return fail(`its shape ${describe(shape)} is no list of sizes`);
  if (!Array.isArray(range) || range.length !== 2 || !range.every(isCount))
    return fail("its data_offsets are not [begin, end]");
  const [begin, end] = range as [number, number];
  if (begin > end || end > room) return fail(`its bytes ${begin}..${end} do not lie in the ${room} bytes of data`);
  const elements = elementCount(shape);
  if (Number.isNaN(elements)) return fail(`its shape [${shape}] overflows`);
  const bytes = byteLength(dtype, elements);
  if (bytes !== end - begin) {
    return fail(`${dtype} [${shape}] takes ${bytes} bytes, but data_offsets give it ${end - begin}`);
  }
  return [{ name, dtype, shape, bytes }, start + begin];
}

/**
 * Writes a safetensors file: to a temporary file first, which then takes the place of `path`.
 * @param tensors F32, F16 or BF16 from float32 values, or any type of the format from its bytes
 * @param metadata strings kept under `__metadata__`
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<TensorToWrite>,
  metadata: Record<string, string> = {},
): Promise<void> {
  const list = [...tensors];
  const header = encodeHeader(list, metadata);
  await replaceFile(path, (sink) => writePieces(list, header, sink));
}

/** The same, to bytes in memory. */
export async function encodeSafetensors(
  tensors: Iterable<TensorToWrite>,
  metadata: Record<string, string> = {},
): Promise<Uint8Array<ArrayBuffer>> {
  const list = [...tensors];
  const header = encodeHeader(list, metadata);
  return collect((sink) => writePieces(list, header, sink));
}

async function writePieces(tensors: readonly TensorToWrite[], header: Uint8Array, sink: Sink): Promise<void> {
  await sink(header);
  for (const tensor of tensors) await sink(await tensorBytes(tensor));
}

function encodeHeader(tensors: readonly TensorToWrite[], metadata: Record<string, string>): Uint8Array {
  const entries: [string, unknown][] = [];
  if (Object.keys(metadata).length > 0) entries.push(["__metadata__", metadata]);
  const seen = new Set(["__metadata__"]);
  let offset = 0;
  for (const tensor of tensors) {
    if (!dtypeRow(tensor.dtype)?.safetensors) {
      throw new FoveaError("unsupported", `safetensors has no type ${tensor.dtype} (tensor ${tensor.name})`);
    }
    if (seen.has(tensor.name)) throw new FoveaError("bad-input", `cannot write two tensors named ${tensor.name}`);
    seen.add(tensor.name);
    const end = offset + checkedSize(tensor);
    entries.push([tensor.name, { dtype: tensor.dtype, shape: tensor.shape, data_offsets: [offset, end] }]);
    offset = end;
  }
  // Written by hand, since an object would reorder keys that look like numbers.
  const json = `{${entries.map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`).join(",")}}`;
  const text = new TextEncoder().encode(json);
  // The data starts at a multiple of 8, so that float arrays can be mapped.
  const length = Math.ceil(text.byteLength / 8) * 8;
  const header = new Uint8Array(8 + length).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(length), true);
  header.set(text, 8);
  return header;
}
