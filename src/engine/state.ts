import { FoveaError } from "../error.js";

/**
 * Methods' states are plain data: numbers, strings, booleans, null, arrays, plain objects, Maps and typed arrays. They
 * are cloned with a sequence and written into saved readings by these two functions.
 */
const ARRAYS = {
  f32: Float32Array,
  f64: Float64Array,
  i32: Int32Array,
  u32: Uint32Array,
  u8: Uint8Array,
  i8: Int8Array,
  u16: Uint16Array,
  i16: Int16Array,
} as const;
type ArrayKind = keyof typeof ARRAYS;

/** Plain data as JSON text plus the bytes of its typed arrays, in the order in which the text refers to them. */
export function encodeState(value: unknown): { json: string; buffers: Uint8Array[] } {
  const buffers: Uint8Array[] = [];
  const walk = (v: unknown, path: string): unknown => {
    if (v === undefined) return { $: "undefined" };
    if (v === null || typeof v === "string" || typeof v === "boolean") return v;
    if (typeof v === "number")
      return Number.isFinite(v) && !Object.is(v, -0) ? v : { $: "number", v: Object.is(v, -0) ? "-0" : String(v) };
    if (ArrayBuffer.isView(v)) {
      for (const [kind, type] of Object.entries(ARRAYS))
        if (v instanceof type) {
          buffers.push(new Uint8Array(v.buffer, v.byteOffset, v.byteLength));
          return { $: kind, b: buffers.length - 1, n: v.length };
        }
    }
    if (Array.isArray(v)) return v.map((x, i) => walk(x, `${path}[${i}]`));
    if (v instanceof Map)
      return { $: "map", v: [...v].map(([k, x]) => [walk(k, path), walk(x, `${path}.${String(k)}`)]) };
    if (typeof v === "object" && (Object.getPrototypeOf(v) === Object.prototype || Object.getPrototypeOf(v) === null))
      return { $: "object", v: Object.entries(v).map(([k, x]) => [k, walk(x, `${path}.${k}`)]) };
    throw new FoveaError(
      "bad-input",
      `a method's state holds ${typeof v} at ${path || "its root"}; expected plain data`,
      {
        hint: "keep functions and class instances out of a method's state",
      },
    );
  };
  return { json: JSON.stringify(walk(value, "")), buffers };
}

/** The value that `encodeState` was given. */
export function decodeState(json: string, buffers: readonly Uint8Array[]): unknown {
  const walk = (v: unknown): unknown => {
    if (Array.isArray(v)) return v.map(walk);
    if (v === null || typeof v !== "object") return v;
    const tagged = v as { $: string; v?: unknown; b?: number; n?: number };
    switch (tagged.$) {
      case "undefined":
        return undefined;
      case "number":
        return Number(tagged.v);
      case "map":
        return new Map((tagged.v as [unknown, unknown][]).map(([k, x]) => [walk(k), walk(x)]));
      case "object":
        return Object.fromEntries((tagged.v as [string, unknown][]).map(([k, x]) => [k, walk(x)]));
    }
    const type = ARRAYS[tagged.$ as ArrayKind];
    const bytes = buffers[tagged.b ?? -1];
    if (!type || !bytes) throw new FoveaError("bad-file", "a saved state refers to data that the file does not hold");
    // a copy: the bytes may be a view into a file, at any offset (and a Buffer's slice would be one again)
    return new type(new Uint8Array(bytes).buffer, 0, tagged.n);
  };
  return walk(JSON.parse(json));
}
