import { FoveaError } from "../error.js";

/** One option of a command: how it is shown in --help, and how its text becomes a value. */
export interface Option<T> {
  readonly help: string;
  /** Shown after the flag in --help; absent for a flag that takes no value. */
  readonly value?: string;
  /** One letter, without the dash. */
  readonly short?: string;
  /** The value when the option is not given. */
  readonly fallback: T;
  /** Shown in --help instead of the fallback. */
  readonly fallbackText?: string;
  /** @throws UsageError when the text is not what the option takes */
  parse(text: string, flag: string): T;
}

/** Options of a command by name; `maxTokens` is `--max-tokens` on the command line. */
export type OptionTable = Readonly<Record<string, Option<unknown>>>;
export type OptionValues<O extends OptionTable> = { readonly [K in keyof O]: O[K] extends Option<infer T> ? T : never };

/** A command line that cannot be understood: the program ends with exit code 2. */
export class UsageError extends FoveaError {
  constructor(message: string, hint?: string) {
    super("bad-input", message, { hint });
  }
}

/** `maxTokens` -> `max-tokens`. */
export function kebab(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

interface Common {
  readonly short?: string;
  readonly fallbackText?: string;
}

/** A switch, false unless given. */
export function flag(help: string, common: Common = {}): Option<boolean> {
  return { ...common, help, fallback: false, parse: () => true };
}

/** A text as it stands. */
export function text(help: string, value: string, common: Common = {}): Option<string | undefined> {
  return { ...common, help, value, fallback: undefined, parse: (given) => given };
}

/** A text with a default. */
export function textOr(help: string, value: string, fallback: string, common: Common = {}): Option<string> {
  return { ...common, help, value, fallback, parse: (given) => given };
}

interface Bounds extends Common {
  readonly min?: number;
  readonly max?: number;
}

function parseNumber(given: string, name: string, whole: boolean, { min, max }: Bounds): number {
  const number = given.trim() === "" ? Number.NaN : Number(given);
  const fits = Number.isFinite(number) && (!whole || Number.isSafeInteger(number));
  if (fits && number >= (min ?? -Infinity) && number <= (max ?? Infinity)) return number;
  const range =
    min !== undefined && max !== undefined
      ? ` from ${min} to ${max}`
      : min !== undefined
        ? ` of at least ${min}`
        : max !== undefined
          ? ` of at most ${max}`
          : "";
  throw new UsageError(`--${name} takes a${whole ? " whole" : ""} number${range}, got "${given}"`);
}

export function integer(help: string, bounds?: Bounds): Option<number | undefined>;
export function integer(help: string, bounds: Bounds & { fallback: number }): Option<number>;
/** A whole number within bounds. */
export function integer(help: string, bounds: Bounds & { fallback?: number } = {}): Option<number | undefined> {
  return {
    ...bounds,
    help,
    value: "n",
    fallback: bounds.fallback,
    parse: (given, name) => parseNumber(given, name, true, bounds),
  };
}

/** A number within bounds. */
export function decimal(help: string, bounds: Bounds = {}): Option<number | undefined> {
  return {
    ...bounds,
    help,
    value: "x",
    fallback: undefined,
    parse: (given, name) => parseNumber(given, name, false, bounds),
  };
}

/** One of a few words. */
export function choice<const C extends string>(
  help: string,
  choices: readonly C[],
  common: Common = {},
): Option<C | undefined> {
  return {
    ...common,
    help,
    value: choices.join("|"),
    fallback: undefined,
    parse: (given, name) => {
      const found = choices.find((word) => word === given.toLowerCase());
      if (found !== undefined) return found;
      throw new UsageError(`--${name} is one of ${choices.join(", ")}, got "${given}"`);
    },
  };
}

/** Token ids or other whole numbers, separated by commas or blanks. */
export function integers(help: string, value: string, bounds: Bounds = {}): Option<number[] | undefined> {
  return {
    ...bounds,
    help,
    value,
    fallback: undefined,
    parse: (given, name) => {
      const parts = given.split(/[\s,]+/).filter((part) => part !== "");
      if (parts.length === 0) throw new UsageError(`--${name} takes whole numbers separated by commas, got "${given}"`);
      return parts.map((part) => parseNumber(expandSuffix(part), name, true, bounds));
    },
  };
}

/** "8k" -> "8192": lengths may be written the short way. */
function expandSuffix(part: string): string {
  const match = /^(\d+)k$/i.exec(part);
  return match ? String(Number(match[1]) * 1024) : part;
}

/** Method strings separated by commas; commas inside brackets belong to a method. */
export function methodList(help: string, fallback: readonly string[]): Option<readonly string[]> {
  return { help, value: "methods", fallback, fallbackText: fallback.join(","), parse: (given) => splitMethods(given) };
}

/** `"full,a(x=1,y=2)+b"` -> `["full", "a(x=1,y=2)+b"]`. */
export function splitMethods(given: string): string[] {
  const methods: string[] = [];
  let depth = 0;
  let current = "";
  for (const letter of given) {
    if (letter === "(" || letter === "[") depth++;
    if (letter === ")" || letter === "]") depth--;
    if (letter === "," && depth <= 0) {
      methods.push(current);
      current = "";
    } else current += letter;
  }
  methods.push(current);
  return methods.map((method) => method.trim()).filter((method) => method !== "");
}

const UNITS: Readonly<Record<string, number>> = { "": 1, k: 1024, m: 1024 ** 2, g: 1024 ** 3, t: 1024 ** 4 };

/** A number of bytes: "2GB", "512MiB", "800m" or plain bytes. Units are powers of 1024. */
export function bytes(help: string): Option<number | undefined> {
  return {
    help,
    value: "bytes",
    fallback: undefined,
    parse: (given, name) => {
      const match = /^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*$/i.exec(given);
      const size = match ? Math.round(Number(match[1]) * UNITS[match[2].toLowerCase()]) : 0;
      if (size > 0 && Number.isSafeInteger(size)) return size;
      throw new UsageError(`--${name} takes a number of bytes such as 2GB or 512MB, got "${given}"`);
    },
  };
}
