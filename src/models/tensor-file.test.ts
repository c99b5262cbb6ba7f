import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { FoveaError } from "../error.js";
import { encodeGguf, openGguf, writeGguf } from "./gguf.js";
import { encodeSafetensors, openSafetensors, writeSafetensors } from "./safetensors.js";
import { memorySource, type SourceLike } from "./source.js";

const folder = mkdtempSync(join(tmpdir(), "fovea-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** The error that opening throws; fails when none is thrown. */
async function refusal(open: Promise<unknown>): Promise<FoveaError> {
  const error = await open.then(
    () => undefined,
    (e: unknown) => e,
  );
  expect(error).toBeInstanceOf(FoveaError);
  return error as FoveaError;
}

const a = Float32Array.from({ length: 64 }, (_, i) => i / 4 - 8);

describe("safetensors", () => {
  /** A file with this header and so many bytes of data. */
  function file(header: string | object, data = 0, claim?: bigint): Uint8Array {
    const text = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
    const bytes = new Uint8Array(8 + text.length + data);
    new DataView(bytes.buffer).setBigUint64(0, claim ?? BigInt(text.length), true);
    bytes.set(text, 8);
    return bytes;
  }

  test("what is written is read back, whole and by halves", async () => {
    const path = join(folder, "model.safetensors");
    await writeSafetensors(
      path,
      [
        { name: "a", dtype: "F32", shape: [2, 32], data: a },
        { name: "10", dtype: "F16", shape: [64], data: a },
        { name: "b", dtype: "BF16", shape: [4, 4, 4], data: async () => a },
        { name: "none", dtype: "F32", shape: [0, 5], data: new Float32Array(0) },
        { name: "one", dtype: "F32", shape: [], data: Float32Array.of(7) },
      ],
      { format: "pt" },
    );
    for (const from of [path, folder, new Blob([readFileSync(path)]), new Uint8Array(readFileSync(path))]) {
      const opened = await openSafetensors(from);
      expect(opened.metadata).toEqual({ format: "pt" });
      expect([...opened.tensors.values()].map((t) => [t.name, t.dtype, t.shape, t.bytes])).toEqual([
        ["a", "F32", [2, 32], 256],
        ["10", "F16", [64], 128],
        ["b", "BF16", [4, 4, 4], 128],
        ["none", "F32", [0, 5], 0],
        ["one", "F32", [], 4],
      ]);
      for (const name of ["a", "10", "b"]) expect(await opened.read(name)).toEqual(a);
      expect(await opened.read("one")).toEqual(Float32Array.of(7));
      if (opened.sync) expect(opened.readSync("b")).toEqual(a);
      else expect(() => opened.readSync("b")).toThrow(FoveaError);
      await opened.close();
    }
  });

  test("shards are one checkpoint; an index may not lead out of its folder", async () => {
    const write = (name: string, tensor: string): Promise<void> =>
      writeSafetensors(join(folder, name), [{ name: tensor, dtype: "F32", shape: [64], data: a }]);
    await write("s-1.safetensors", "x");
    await write("s-2.safetensors", "y");
    const index = join(folder, "s.safetensors.index.json");
    writeFileSync(index, JSON.stringify({ weight_map: { x: "s-1.safetensors", y: "s-2.safetensors" } }));
    const opened = await openSafetensors(index);
    expect([...opened.tensors.keys()]).toEqual(["x", "y"]);
    expect(opened.readSync("y")).toEqual(a);
    await opened.close();
    await expect(async () => opened.readSync("y")).rejects.toThrow(/closed/);
    writeFileSync(index, JSON.stringify({ weight_map: { x: "../s-1.safetensors" } }));
    expect((await refusal(openSafetensors(index))).message).toContain("plain file name");
    writeFileSync(index, JSON.stringify({ weight_map: { z: "s-1.safetensors" } }));
    expect((await refusal(openSafetensors(index))).message).toContain("it is in no shard");
    writeFileSync(index, JSON.stringify({ weight_map: { x: "gone.safetensors" } }));
    expect((await refusal(openSafetensors(index))).code).toBe("not-found");
    expect(
      (await refusal(openSafetensors([join(folder, "s-1.safetensors"), join(folder, "s-1.safetensors")]))).message,
    ).toContain("two shards");
  });

  test("a failed write leaves what was there", async () => {
    const path = join(folder, "kept.safetensors");
    writeFileSync(path, "old");
    const data = (): Float32Array => {
      throw new Error("no data");
    };
    await expect(writeSafetensors(path, [{ name: "a", dtype: "F32", shape: [64], data }])).rejects.toThrow("no data");
    expect(readFileSync(path, "utf8")).toBe("old");
    expect(readdirSync(folder).filter((name) => name.endsWith(".tmp"))).toEqual([]);
  });

  const t = (begin: number, end: number, shape: unknown = [(end - begin) / 4], dtype = "F32"): object => ({
    dtype,
    shape,
    data_offsets: [begin, end],
  });
  test.each<[string, Uint8Array, RegExp]>([
    ["empty", new Uint8Array(0), /too few/],
    ["a header longer than the file", file({}, 0, 1000n), /claims 1000 bytes/],
    ["an absurd header length", file({}, 0, 2n ** 64n - 1n), /claims/],
    ["no JSON", file("{nonsense"), /not valid JSON/],
    ["an array", file("[]"), /must hold a JSON object/],
    ["deep JSON", file(`{"a":${"[".repeat(100_000)}`), /nested deeper/],
    ["invalid UTF-8", file('{"a\xff":1}').map((b) => (b === 0xc3 ? 0xff : b)), /not valid UTF-8/],
    [
      "a key twice",
      file(`{"a":${JSON.stringify(t(0, 4))},"a":${JSON.stringify(t(0, 4))}}`, 4),
      /names the key .* twice/,
    ],
    ["a key twice, once escaped", file('{"a":1,"\\u0061":1}'), /names the key .* twice/],
    ["an unknown dtype", file({ a: t(0, 4, [1], "F33") }, 4), /unknown dtype/],
    ["a dtype that is an object's", file({ a: t(0, 4, [1], "constructor") }, 4), /unknown dtype/],
    ["a GGUF dtype", file({ a: t(0, 34, [32], "Q8_0") }, 34), /unknown dtype/],
    ["a negative size", file({ a: t(0, 4, [-1]) }, 4), /no list of sizes/],
    ["a fraction", file({ a: t(0, 4, [1.5]) }, 4), /no list of sizes/],
    ["overflow", file({ a: t(0, 4, [2 ** 40, 2 ** 40]) }, 4), /overflows/],
    ["too few bytes", file({ a: t(0, 4, [2]) }, 4), /takes 8 bytes/],
    ["beyond the end", file({ a: t(0, 8) }, 4), /do not lie in/],
    ["backwards", file({ a: t(8, 4, [1]) }, 8), /do not lie in/],
    ["overlap", file({ a: t(0, 8), b: t(4, 12) }, 12), /overlaps/],
    ["a hole", file({ a: t(0, 4), b: t(8, 12) }, 12), /leaves bytes unused/],
    ["bytes left over", file({ a: t(0, 4) }, 8), /end at byte/],
    ["an entry that is no object", file({ a: 5 }, 0), /must be an object/],
  ])("refuses %s", async (_, bytes, message) => {
    const error = await refusal(openSafetensors(bytes));
    expect(error.code).toBe("bad-file");
    expect(error.message).toMatch(message);
  });

  test("a tensor named __proto__ is a tensor", async () => {
    const bytes = await encodeSafetensors([{ name: "__proto__", dtype: "F32", shape: [1], data: Float32Array.of(3) }]);
    expect((await openSafetensors(bytes)).readSync("__proto__")).toEqual(Float32Array.of(3));
  });

  test("a dtype that cannot be read says so when read, not when opened", async () => {
    const bytes = await encodeSafetensors([{ name: "f", dtype: "F8_E4M3", shape: [3], data: new Uint8Array(3) }]);
    const opened = await openSafetensors(bytes);
    expect((await refusal(opened.read("f"))).code).toBe("unsupported");
    expect(await opened.readRaw("f")).toEqual(new Uint8Array(3));
    expect((await refusal(opened.read("g"))).code).toBe("not-found");
  });
});

describe("gguf", () => {
  const metadata = {
    "general.architecture": { type: "string", value: "llama" },
    u8: { type: "u8", value: 255 },
    i8: { type: "i8", value: -128 },
    u16: { type: "u16", value: 65535 },
    i16: { type: "i16", value: -5 },
    u32: { type: "u32", value: 4294967295 },
    i32: { type: "i32", value: -7 },
    f32: { type: "f32", value: 0.5 },
    f64: { type: "f64", value: 0.1 },
    u64: { type: "u64", value: 2n ** 64n - 1n },
    i64: { type: "i64", value: -3 },
    yes: { type: "bool", value: true },
    words: { type: "array", of: "string", value: ["a", "ü", ""] },
    scores: { type: "array", of: "f32", value: [0, -1.5] },
    flags: { type: "array", of: "bool", value: [true, false] },
    big: { type: "array", of: "i64", value: [1, -(2n ** 62n)] },
  } as const;
  const tensors = [
    { name: "a", dtype: "F32", shape: [2, 32], data: a },
    { name: "small", dtype: "F16", shape: [3], data: Float32Array.of(1, 2, -3) },
    { name: "q", dtype: "Q8_0", shape: [2, 32], data: a },
  ];

  test("what is written is read back", async () => {
    const path = join(folder, "model.gguf");
    await writeGguf(path, { metadata, tensors });
    const opened = await openGguf(path);
    expect(opened.version).toBe(3);
    expect({ ...opened.metadata }).toEqual({
      "general.architecture": "llama",
      u8: 255,
      i8: -128,
      u16: 65535,
      i16: -5,
      u32: 4294967295,
      i32: -7,
      f32: 0.5,
      f64: 0.1,
      u64: 2n ** 64n - 1n,
      i64: -3,
      yes: true,
      words: ["a", "ü", ""],
      scores: Float32Array.of(0, -1.5),
      flags: [true, false],
      big: [1, -(2n ** 62n)],
    });
    expect(opened.types.get("words")).toBe("[string]");
    expect(opened.types.get("u16")).toBe("u16");
    expect([...opened.tensors.values()]).toEqual([
      { name: "a", dtype: "F32", shape: [2, 32], bytes: 256 },
      { name: "small", dtype: "F16", shape: [3], bytes: 6 },
      { name: "q", dtype: "Q8_0", shape: [2, 32], bytes: 68 },
    ]);
    expect(await opened.read("a")).toEqual(a);
    expect(opened.readSync("small")).toEqual(Float32Array.of(1, 2, -3));
    const q = opened.readSync("q");
    for (let i = 0; i < 64; i++) expect(Math.abs(q[i] - a[i])).toBeLessThan(8 / 127);
    await opened.close();
  });

  test("a header longer than the first read", async () => {
    const words = Array.from({ length: 200_000 }, (_, i) => `token number ${i}`);
    const bytes = await encodeGguf({ metadata: { words: { type: "array", of: "string", value: words } }, tensors });
    expect(bytes.byteLength).toBeGreaterThan(1 << 20);
    const opened = await openGguf(bytes);
    expect(opened.metadata.words).toEqual(words);
    expect(opened.readSync("a")).toEqual(a);
  });

  test("every prefix of a file is refused", async () => {
    const bytes = await encodeGguf({ metadata, tensors });
    const size = bytes.byteLength - 28; // The padding behind the last tensor is not needed.
    for (let length = 0; length < size; length++) {
      const error = await refusal(openGguf(bytes.subarray(0, length)));
      expect(["bad-file", "unsupported"]).toContain(error.code);
    }
    await openGguf(bytes.subarray(0, size));
  });

  /** Little-endian bytes: a number is a u32, a bigint a u64, a string has its length before it. */
  function bytes(...parts: (number | bigint | string)[]): Uint8Array {
    const out: number[] = [];
    const put = (value: bigint, count: number): void => {
      for (let i = 0n; i < count; i++) out.push(Number((value >> (8n * i)) & 255n));
    };
    for (const part of parts) {
      if (typeof part === "number") put(BigInt(part), 4);
      else if (typeof part === "bigint") put(part, 8);
      else {
        const text = new TextEncoder().encode(part);
        put(BigInt(text.length), 8);
        out.push(...text);
      }
    }
    return Uint8Array.from(out);
  }
  const magic = 0x46554747;
  const head = [magic, 3] as const;
  test.each<[string, Uint8Array, RegExp]>([
    ["another magic", bytes(magic + 1, 3, 0n, 0n), /does not begin with/],
    ["version 1", bytes(magic, 1, 0n, 0n), /version 1/],
    ["big-endian", bytes(magic, 0x03000000, 0n, 0n), /big-endian/],
    ["an absurd tensor count", bytes(...head, 2n ** 40n, 0n), /cannot be in/],
    ["an absurd key count", bytes(...head, 0n, 2n ** 60n), /number of metadata keys is/],
    ["an absurd string", bytes(...head, 0n, 1n, 2n ** 50n, 0n), /claims 1125899906842624/],
    ["an absurd array", bytes(...head, 0n, 1n, "k", 9, 8, 2n ** 40n), /claims 1099511627776/],
    ["an unknown value type", bytes(...head, 0n, 1n, "k", 99, 0n), /unknown value type 99/],
    ["nested arrays", bytes(...head, 0n, 1n, "k", 9, 9, 1n, 9, 1n, 9, 1n, 9, 1n, 9, 1n, 9, 1n), /nests arrays/],
    ["a key twice", bytes(...head, 0n, 2n, "k", 4, 1, "k", 4, 1), /given twice/],
    ["a bad alignment", bytes(...head, 0n, 1n, "general.alignment", 4, 24), /not a power of two/],
    ["five dimensions", bytes(...head, 1n, 0n, "t", 5, 1n, 1n, 1n, 1n, 1n, 0, 0n), /5 dimensions/],
    ["an unknown tensor type", bytes(...head, 1n, 0n, "t", 1, 1n, 77, 0n), /unknown type 77/],
    ["overflow", bytes(...head, 1n, 0n, "t", 2, 2n ** 40n, 2n ** 40n, 0, 0n), /overflows/],
    ["half a block", bytes(...head, 1n, 0n, "t", 1, 16n, 8, 0n, ...Array<bigint>(8).fill(0n)), /not a whole number/],
    ["an odd offset", bytes(...head, 1n, 0n, "t", 1, 1n, 0, 4n, ...Array<bigint>(8).fill(0n)), /no multiple of 32/],
    ["beyond the end", bytes(...head, 1n, 0n, "t", 1, 1n, 0, 1024n, ...Array<bigint>(8).fill(0n)), /reaches beyond/],
    [
      "overlap",
      bytes(...head, 2n, 0n, "t", 1, 16n, 0, 0n, "u", 1, 16n, 0, 32n, ...Array<bigint>(40).fill(0n)),
      /overlap/,
    ],
    [
      "a tensor twice",
      bytes(...head, 2n, 0n, "t", 1, 1n, 0, 0n, "t", 1, 1n, 0, 32n, ...Array<bigint>(40).fill(0n)),
      /twice/,
    ],
  ])("refuses %s", async (_, file, message) => {
    const error = await refusal(openGguf(file));
    expect(["bad-file", "unsupported"]).toContain(error.code);
    expect(error.message).toMatch(message);
  });

  test("a part of a split file says what to do", async () => {
    const part = await encodeGguf({ metadata: { "split.count": { type: "u16", value: 3 } }, tensors: [] });
    expect((await refusal(openGguf(part))).hint).toContain("--merge");
  });

  test("a header that claims gigabytes is refused before they are read", async () => {
    const start = bytes(...head, 0n, 1n, 2n ** 33n);
    const large = { ...memorySource(start, "huge"), size: 2 ** 35, read: reading(start) };
    expect((await refusal(openGguf(large as SourceLike))).code).toBe("too-large");
  });
  /** A source that pretends to be larger than it is. */
  function reading(start: Uint8Array) {
    return async (offset: number, length: number): Promise<Uint8Array> => {
      expect(length).toBeLessThanOrEqual(1 << 20);
      const out = new Uint8Array(length);
      out.set(start.subarray(offset));
      return out;
    };
  }

  test("writing refuses what the format cannot hold", async () => {
    const one = (tensor: object): Promise<unknown> =>
      encodeGguf({ metadata: {}, tensors: [{ ...tensors[0], ...tensor }] });
    expect((await refusal(one({ dtype: "U64" }))).code).toBe("unsupported");
    expect((await refusal(one({ dtype: "Q8_0", shape: [4, 16] }))).message).toContain("blocks of 32");
    expect((await refusal(one({ shape: [2, 2, 2, 2, 4] }))).message).toContain("4 dimensions");
    expect((await refusal(one({ shape: [65] }))).message).toContain("65 elements");
    expect((await refusal(encodeGguf({ metadata: { k: { type: "u8", value: 256 } }, tensors: [] }))).message).toContain(
      "no u8",
    );
    expect((await refusal(encodeGguf({ metadata: {}, tensors: [tensors[0], tensors[0]] }))).message).toContain(
      "two tensors",
    );
  });
});

const stories = join(import.meta.dirname, "../../../shared/checkpoints/stories260K");
describe.skipIf(!existsSync(stories))("stories260K", () => {
  test("opens from its folder", async () => {
    const opened = await openSafetensors(stories);
    expect(opened.tensors.size).toBeGreaterThan(40);
    expect(opened.tensors.get("model.embed_tokens.weight")?.shape).toEqual([512, 64]);
    const values = await opened.read("model.embed_tokens.weight");
    expect(values.length).toBe(512 * 64);
    expect(values.every(Number.isFinite)).toBe(true);
    await opened.close();
  });
});
