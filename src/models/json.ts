import { FoveaError } from "../error.js";

/** Limits for JSON that somebody else wrote. */
export interface JsonLimits {
  /** Deepest nesting of objects and arrays allowed. Default 64. */
  maxDepth?: number;
  /** Refuse an object that names a key twice. Default true. */
  uniqueKeys?: boolean;
}

/**
 * Parses JSON from an untrusted file: UTF-8 must be valid, nesting bounded and keys unique (JSON.parse keeps the last of
 * two equal keys without a word, so two readers of one file may see different models).
 * @param name what an error message calls the text
 * @throws FoveaError "bad-file"
 */
export function parseJson(input: string | Uint8Array, name: string, limits: JsonLimits = {}): unknown {
  const text = typeof input === "string" ? input : decodeUtf8(input, name);
  checkStructure(text, name, limits.maxDepth ?? 64, limits.uniqueKeys ?? true);
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new FoveaError("bad-file", `${name} is not valid JSON: ${cause instanceof Error ? cause.message : ""}`, {
      cause,
      hint: "The file is truncated or corrupt; fetch it again.",
    });
  }
}

/** Parses JSON that must be an object; the limits of `parseJson` hold. */
export function parseJsonObject(
  input: string | Uint8Array,
  name: string,
  limits: JsonLimits = {},
): Record<string, unknown> {
  const value = parseJson(input, name, limits);
  if (!isObject(value)) throw new FoveaError("bad-file", `${name} must hold a JSON object, not ${describe(value)}`);
  return value;
}

/** True for a plain JSON object. */
export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A short word for a JSON value in an error message. */
export function describe(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return "an array";
  if (typeof value === "object") return "an object";
  const text = String(value);
  return `${typeof value} ${JSON.stringify(text.length > 60 ? `${text.slice(0, 57)}...` : text)}`;
}

function decodeUtf8(bytes: Uint8Array, name: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new FoveaError("bad-file", `${name} is not valid UTF-8`, { cause });
  }
}

/** One pass over the text that follows strings and brackets only; what else is wrong JSON.parse finds. */
function checkStructure(text: string, name: string, maxDepth: number, uniqueKeys: boolean): void {
  // One entry per open bracket: the keys seen in an object, or null in an array.
  const open: (Set<string> | null)[] = [];
  let keyNext = false;
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (c === 0x22) {
      const start = i + 1;
      let escaped = false;
      for (i = start; i < text.length; i++) {
        const s = text.charCodeAt(i);
        if (s === 0x22) break;
        if (s === 0x5c) {
          escaped = true;
          i++;
        }
      }
      const keys = open.at(-1);
      if (keyNext && keys && uniqueKeys) {
        const key = escaped ? plainKey(text.slice(start, i)) : text.slice(start, i);
        if (keys.has(key)) {
          throw new FoveaError("bad-file", `${name} names the key ${describe(key)} twice (at character ${start})`);
        }
        keys.add(key);
      }
      keyNext = false;
    } else if (c === 0x7b || c === 0x5b) {
      if (open.length === maxDepth) {
        throw new FoveaError("bad-file", `${name} is nested deeper than ${maxDepth} levels (at character ${i})`);
      }
      open.push(c === 0x7b ? new Set() : null);
      keyNext = c === 0x7b;
    } else if (c === 0x7d || c === 0x5d) {
      open.pop();
      keyNext = false;
    } else if (c === 0x2c) {
      keyNext = open.at(-1) instanceof Set;
    }
  }
}

function plainKey(raw: string): string {
  try {
    return JSON.parse(`"${raw}"`) as string;
  } catch {
    return raw;
  }
}
