import { FoveaError } from "../error.js";

/**
 * Bytes that can be read at any place: a file, a blob, a URL or memory. Every checkpoint reader reads through one, so a
 * file of many gigabytes is never held whole.
 */
export interface ByteSource {
  /** What an error message calls it: a path, a URL or a file name. */
  readonly name: string;
  /** Size in bytes when it was opened. */
  readonly size: number;
  /**
   * Reads `length` bytes at `offset` into memory of their own.
   * @throws FoveaError "bad-file" when the range does not lie inside the source or the source ended early
   */
  read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>>;
  /** The same at once, where the source can (files in Node, memory); undefined elsewhere. */
  readonly readSync?: (offset: number, length: number) => Uint8Array<ArrayBuffer>;
  close(): Promise<void>;
}

/** Anything `openSource` opens. A string is a path in Node, or a URL when it starts with `http:`, `https:` or `blob:`. */
export type SourceLike = string | URL | Blob | Uint8Array | ByteSource;

/** A single read call takes at most this many bytes: Node refuses 2 GiB and more. */
const CHUNK = 1 << 30;

/**
 * Opens a file, URL, blob or bytes for random access. A `ByteSource` is returned as it is.
 * @throws FoveaError "not-found" when there is no such file, "bad-input" when it is a folder
 */
export async function openSource(from: SourceLike): Promise<ByteSource> {
  if (typeof from === "string") {
    return /^(https?|blob):/i.test(from) ? openUrl(from) : openFile(from);
  }
  if (from instanceof URL) return from.protocol === "file:" ? openFile(await filePath(from)) : openUrl(from.href);
  if (from instanceof Uint8Array) return memorySource(from);
  if (typeof Blob !== "undefined" && from instanceof Blob) return blobSource(from);
  return from as ByteSource;
}

/** True in Node (and in what imitates it), where `node:` modules can be imported. */
export function hasNode(): boolean {
  return typeof process !== "undefined" && typeof process.versions?.node === "string";
}

/** Throws unless [offset, offset + length) lies inside a source of `size` bytes. */
function checkRange(name: string, size: number, offset: number, length: number): void {
  const inside =
    Number.isSafeInteger(offset) &&
    Number.isSafeInteger(length) &&
    offset >= 0 &&
    length >= 0 &&
    offset + length <= size;
  if (!inside) {
    throw new FoveaError("bad-file", `${name}: cannot read ${length} bytes at offset ${offset}: it has ${size} bytes`, {
      hint: "The file is truncated or corrupt; fetch it again.",
    });
  }
}

/** Allocates, turning the engine's RangeError into an error that says how much was asked for. */
function allocate(name: string, length: number): Uint8Array<ArrayBuffer> {
  try {
    return new Uint8Array(length);
  } catch (cause) {
    throw new FoveaError("out-of-memory", `${name}: cannot hold ${length} bytes in memory at once`, { cause });
  }
}

/** Bytes in memory as a source. Reads are copies: what a reader does with them never changes `bytes`. */
export function memorySource(bytes: Uint8Array, name = "bytes in memory"): ByteSource {
  const readSync = (offset: number, length: number): Uint8Array<ArrayBuffer> => {
    checkRange(name, bytes.byteLength, offset, length);
    const copy = allocate(name, length);
    copy.set(bytes.subarray(offset, offset + length));
    return copy;
  };
  return {
    name,
    size: bytes.byteLength,
    readSync,
    read: async (offset, length) => readSync(offset, length),
    close: async () => {},
  };
}

/** A Blob or File (a browser's file input) as a source. */
export function blobSource(blob: Blob, name = blob instanceof File ? blob.name : "blob"): ByteSource {
  return {
    name,
    size: blob.size,
    async read(offset, length) {
      checkRange(name, blob.size, offset, length);
      return new Uint8Array(await blob.slice(offset, offset + length).arrayBuffer());
    },
    close: async () => {},
  };
}

async function filePath(url: URL): Promise<string> {
  const { fileURLToPath } = await import("node:url");
  return fileURLToPath(url);
}

/** A file in Node, read at positions (no seek state, so reads may overlap in time). */
async function openFile(path: string): Promise<ByteSource> {
  if (!hasNode()) {
    throw new FoveaError("unsupported", `cannot open the path ${path}: there is no file system here`, {
      hint: "In a browser pass a URL, a File or a Uint8Array.",
    });
  }
  const fs = await import("node:fs");
  let handle: number | undefined;
  let size: number;
  try {
    handle = fs.openSync(path, "r");
    const stat = fs.fstatSync(handle);
    if (!stat.isFile()) throw new FoveaError("bad-input", `${path} is not a file`);
    size = stat.size;
  } catch (cause) {
    if (handle !== undefined) fs.closeSync(handle);
    throw cause instanceof FoveaError ? cause : fileError(path, cause);
  }
  const open = (): number => {
    if (handle === undefined) throw new FoveaError("closed", `${path} was closed`);
    return handle;
  };
  const ended = (at: number): FoveaError =>
    new FoveaError("bad-file", `${path}: it ended at byte ${at}, but had ${size} bytes when it was opened`, {
      hint: "The file was changed while it was read.",
    });
  return {
    name: path,
    size,
    readSync(offset, length) {
      const file = open();
      checkRange(path, size, offset, length);
      const bytes = allocate(path, length);
      for (let done = 0; done < length; ) {
        const count = fs.readSync(file, bytes, done, Math.min(CHUNK, length - done), offset + done);
        if (count === 0) throw ended(offset + done);
        done += count;
      }
      return bytes;
    },
    async read(offset, length) {
      checkRange(path, size, offset, length);
      const bytes = allocate(path, length);
      for (let done = 0; done < length; ) {
        const file = open();
        const count = await new Promise<number>((resolve, reject) => {
          fs.read(file, bytes, done, Math.min(CHUNK, length - done), offset + done, (error, n) =>
            error ? reject(error) : resolve(n),
          );
        });
        if (count === 0) throw ended(offset + done);
        done += count;
      }
      return bytes;
    },
    async close() {
      if (handle !== undefined) fs.closeSync(handle);
      handle = undefined;
    },
  };
}

/** Turns a Node file error into one that says what to do. */
export function fileError(path: string, cause: unknown): FoveaError {
  const code = (cause as { code?: unknown } | null)?.code;
  if (code === "ENOENT" || code === "ENOTDIR") {
    return new FoveaError("not-found", `there is no file ${path}`, { cause, hint: "Check the path." });
  }
  return new FoveaError("bad-input", `cannot open ${path}: ${cause instanceof Error ? cause.message : String(cause)}`, {
    cause,
  });
}

/** A URL read by HTTP range requests. */
async function openUrl(url: string): Promise<ByteSource> {
  const request = async (range?: string): Promise<Response> => {
    try {
      return await fetch(url, range === undefined ? {} : { headers: { Range: range } });
    } catch (cause) {
      throw new FoveaError("not-found", `cannot reach ${url}`, { cause, hint: "Check the network and the address." });
    }
  };
  const probe = await request("bytes=0-0");
  if (!probe.ok) {
    throw new FoveaError("not-found", `${url} answered ${probe.status} ${probe.statusText}`, {
      hint: "Check the address.",
    });
  }
  // Many development servers answer a missing file with their start page. No file of a checkpoint is a page.
  if (/^text\/html\b/i.test(probe.headers.get("content-type") ?? "")) {
    await probe.body?.cancel();
    throw new FoveaError("not-found", `${url} is a web page, not a file of a checkpoint`, {
      hint: "Check the address; a server that sends its start page for missing files has no such file.",
    });
  }
  const total = /\/(\d+)$/.exec(probe.headers.get("content-range") ?? "")?.[1];
  if (probe.status !== 206 || total === undefined) {
    // The server knows no ranges: hold the whole answer, since reading it again and again costs more.
    return memorySource(new Uint8Array(await probe.arrayBuffer()), url);
  }
  await probe.body?.cancel();
  const size = Number(total);
  return {
    name: url,
    size,
    async read(offset, length) {
      checkRange(url, size, offset, length);
      if (length === 0) return new Uint8Array(0);
      const answer = await request(`bytes=${offset}-${offset + length - 1}`);
      if (answer.status !== 206) {
        await answer.body?.cancel();
        throw new FoveaError("bad-file", `${url} answered ${answer.status} to a range request`);
      }
      const bytes = new Uint8Array(await answer.arrayBuffer());
      if (bytes.byteLength !== length) {
        throw new FoveaError("bad-file", `${url} sent ${bytes.byteLength} bytes for a range of ${length}`);
      }
      return bytes;
    },
    close: async () => {},
  };
}
