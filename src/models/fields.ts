import { FoveaError } from "../error.js";
import { describe, isObject } from "./json.js";

/** Sizes beyond these are taken for a corrupt or hostile file. */
export const LIMITS = {
  layers: { min: 1, max: 1024 },
  width: { min: 1, max: 2 ** 17 },
  heads: { min: 1, max: 1024 },
  headDim: { min: 1, max: 1024 },
  mlpWidth: { min: 1, max: 2 ** 20 },
  vocab: { min: 1, max: 2 ** 23 },
  positions: { min: 1, max: 2 ** 31 },
  token: { min: 0, max: 2 ** 23 },
  eps: { min: 0, max: 1 },
  base: { min: 1.000001, max: 1e15 },
  cap: { min: 1e-6, max: 1e6 },
} as const;

/** Bounds of an integer read from somebody else's file. */
export interface Range {
  min?: number;
  max?: number;
}

/**
 * Typed access to the fields of a JSON object or of GGUF metadata that somebody else wrote. Every accessor checks type
 * and range and throws FoveaError "bad-file" that names the field, what it holds and what was expected. null counts as
 * absent, as in config.json.
 */
export class Fields {
  readonly #values: Readonly<Record<string, unknown>>;
  /** What error messages call the object. */
  readonly where: string;

  constructor(values: unknown, where: string) {
    if (!isObject(values)) throw new FoveaError("bad-file", `${where} must hold an object, not ${describe(values)}`);
    this.#values = values;
    this.where = where;
  }

  /** The value as it is, undefined when absent or null. */
  raw(key: string): unknown {
    const value = Object.hasOwn(this.#values, key) ? this.#values[key] : undefined;
    return value === null ? undefined : value;
  }

  has(key: string): boolean {
    return this.raw(key) !== undefined;
  }

  /** True when the field is there, even as null. */
  given(key: string): boolean {
    return Object.hasOwn(this.#values, key);
  }

  /** An integer of the range; `fallback` when absent, an error when there is none. */
  int(key: string, range: Range, fallback?: number): number {
    const { min = 0, max = Number.MAX_SAFE_INTEGER } = range;
    const value = this.raw(key) ?? fallback;
    if (typeof value === "number" && Number.isSafeInteger(value) && value >= min && value <= max) return value;
    throw this.wrong(key, `an integer from ${min} to ${max}`, value);
  }

  /** A finite number of the range. */
  number(key: string, range: Range, fallback?: number): number {
    const { min = -Number.MAX_VALUE, max = Number.MAX_VALUE } = range;
    const value = this.raw(key) ?? fallback;
    if (typeof value === "number" && Number.isFinite(value) && value >= min && value <= max) return value;
    throw this.wrong(key, `a number from ${min} to ${max}`, value);
  }

  optionalInt(key: string, range: Range): number | undefined {
    return this.has(key) ? this.int(key, range) : undefined;
  }

  optionalNumber(key: string, range: Range): number | undefined {
    return this.has(key) ? this.number(key, range) : undefined;
  }

  bool(key: string, fallback: boolean): boolean {
    const value = this.raw(key) ?? fallback;
    if (typeof value === "boolean") return value;
    throw this.wrong(key, "true or false", value);
  }

  string(key: string, fallback?: string): string {
    const value = this.raw(key) ?? fallback;
    if (typeof value === "string") return value;
    throw this.wrong(key, "a text", value);
  }

  optionalString(key: string): string | undefined {
    return this.has(key) ? this.string(key) : undefined;
  }

  /** One of the keys of a table. */
  choice<T>(key: string, table: Readonly<Record<string, T>>, fallback?: string): T {
    const value = this.raw(key) ?? fallback;
    if (typeof value === "string" && Object.hasOwn(table, value)) return table[value];
    throw this.wrong(key, `one of ${Object.keys(table).join(", ")}`, value);
  }

  /** A list of exactly `length` finite numbers in the range. */
  numbers(key: string, length: number, range: Range): number[] {
    const { min = -Number.MAX_VALUE, max = Number.MAX_VALUE } = range;
    const value = this.raw(key);
    const list =
      Array.isArray(value) || ArrayBuffer.isView(value) ? Array.from(value as ArrayLike<unknown>) : undefined;
    const good = list?.length === length && list.every((x) => typeof x === "number" && x >= min && x <= max);
    if (good) return list as number[];
    throw this.wrong(key, `a list of ${length} numbers from ${min} to ${max}`, value);
  }

  /** An integer or a list of integers; empty when absent. */
  ints(key: string, range: Range): number[] {
    const value = this.raw(key);
    if (value === undefined) return [];
    if (!Array.isArray(value)) return [this.int(key, range)];
    const { min = 0, max = Number.MAX_SAFE_INTEGER } = range;
    if (value.length <= 1024 && value.every((x) => Number.isSafeInteger(x) && x >= min && x <= max)) return value;
    throw this.wrong(key, `an integer, or a list of integers, from ${min} to ${max}`, value);
  }

  /** A nested object; undefined when absent. */
  object(key: string): Fields | undefined {
    const value = this.raw(key);
    if (value === undefined) return undefined;
    if (!isObject(value)) throw this.wrong(key, "an object", value);
    return new Fields(value, `${this.where}: ${key}`);
  }

  /** The error for a field that holds something else than was expected. */
  wrong(key: string, expected: string, value: unknown): FoveaError {
    if (value === undefined) {
      return new FoveaError("bad-file", `${this.where}: ${key} is missing; expected ${expected}`);
    }
    const given = Array.isArray(value) ? `a list of ${value.length}` : describe(value);
    return new FoveaError("bad-file", `${this.where}: ${key} is ${given}; expected ${expected}`);
  }
}

/** Window layers from `layer_types`; undefined when the config does not list them. */
export function layerTypes(f: Fields, layers: number): boolean[] | undefined {
  const value = f.raw("layer_types");
  if (value === undefined) return undefined;
  if (!Array.isArray(value) || value.length !== layers) {
    throw f.wrong("layer_types", `a list of ${layers} layer types`, value);
  }
  return value.map((type) => {
    if (type === "sliding_attention" || type === "full_attention") return type === "sliding_attention";
    throw f.wrong("layer_types", "sliding_attention or full_attention for each layer", describe(type));
  });
}
