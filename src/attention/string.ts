import { FoveaError } from "../error.js";

/**
 * Method strings: `name(a=1,b=1/8,c="text",layers=2-5,heads=3.1)+other`.
 *
 *     methods = call { "+" call }
 *     call    = name [ "(" [ parameter { "," parameter } ] ")" ]
 *     parameter = key "=" value
 *     value   = number | fraction | range | head | word | text | "true" | "false" | "[" [ value { "," value } ] "]"
 *
 * A number may end in k (1024) or m (1048576), as context lengths are counted. A range `2-5` is the list [2,3,4,5].
 * The values of `layers` are always lists; those of `heads`, and of keys that end in `Heads`, may be written
 * `layer.head` or `layer.first-last`. Blanks between tokens are ignored.
 */

/** A query head of a layer, written `3.1`. */
export interface HeadName {
  readonly layer: number;
  readonly head: number;
}
export type Value = number | string | boolean | HeadName | readonly Value[];

/** One method of a string. Positions count UTF-16 units from 0 and are there after parsing only. */
export interface MethodCall {
  readonly name: string;
  readonly params: Readonly<Record<string, Value>>;
  readonly at?: number;
  readonly paramsAt?: Readonly<Record<string, number>>;
}

/** Longest method string that is read. */
export const MAX_LENGTH = 1 << 16;
/** Most values of one list or range. */
export const MAX_LIST = 1 << 14;
const MAX_DEPTH = 8;

const NAME = /[a-z][a-z0-9]*(?:-[a-z0-9]+)*/y;
const KEY = /[A-Za-z][A-Za-z0-9]*/y;
const NUMBER = /-?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?/iy;
const WORD = /[A-Za-z_][A-Za-z0-9_./-]*/y;
const HEAD = /(-?\d+)\.(\d+)(?:-(\d+))?(?![\d.\w])/y;
const BLANK = /[ \t\r\n]*/y;

/** The methods that a string names, in order. Throws bad-input with the position, what was found and what was expected. */
export function parseMethods(text: string): MethodCall[] {
  if (text.length > MAX_LENGTH)
    throw new FoveaError("bad-input", `a method string of ${text.length} characters; expected at most ${MAX_LENGTH}`);
  return new Parser(text).methods();
}

class Parser {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  methods(): MethodCall[] {
    const calls = [this.#call()];
    while (this.#take("+")) calls.push(this.#call());
    if (this.#at < this.#text.length) this.#fail('"+" and another method, or the end');
    return calls;
  }

  #call(): MethodCall {
    this.#blank();
    const at = this.#at;
    const name = this.#match(NAME)?.[0];
    if (!name) this.#fail("a method's name, such as streaming-llm");
    const params: Record<string, Value> = Object.create(null);
    const paramsAt: Record<string, number> = Object.create(null);
    if (this.#take("(") && !this.#take(")")) {
      do {
        this.#blank();
        const keyAt = this.#at;
        const key = this.#match(KEY)?.[0];
        if (!key) this.#fail("a parameter's name");
        if (key in params) this.#fail(`each parameter once; ${key} was given before`, keyAt);
        if (!this.#take("=")) this.#fail(`"=" and a value of ${key}`);
        const value = this.#value(key, 0);
        params[key] = key === "layers" && !Array.isArray(value) ? [value] : value;
        paramsAt[key] = keyAt;
      } while (this.#take(","));
      if (!this.#take(")")) this.#fail('"," and another parameter, or ")"');
    }
    // plain objects compare and clone like any other; null prototypes only guard the filling
    return { name, params: { ...params }, at, paramsAt: { ...paramsAt } };
  }

  #value(key: string, depth: number): Value {
    this.#blank();
    const start = this.#at;
    if (isHeadKey(key)) {
      const heads = this.#heads();
      if (heads) return depth === 0 ? heads : heads.length === 1 ? heads[0] : heads;
    }
    const next = this.#text[this.#at];
    if (next === "[") {
      if (depth >= MAX_DEPTH) this.#fail(`lists nested at most ${MAX_DEPTH} deep`);
      this.#at++;
      const list: Value[] = [];
      if (this.#take("]")) return list;
      do {
        const from = this.#at;
        const value = this.#value(key, depth + 1);
        // a range inside a list stands for its members
        if (Array.isArray(value) && this.#text[from + this.#leading(from)] !== "[") list.push(...value);
        else list.push(value);
        if (list.length > MAX_LIST) this.#fail(`lists of at most ${MAX_LIST} values`, start);
      } while (this.#take(","));
      if (!this.#take("]")) this.#fail('"," and another value, or "]"');
      return list;
    }
    if (next === '"' || next === "'") return this.#quoted(next);
    const number = this.#match(NUMBER);
    if (number) return this.#number(number[0], start);
    const word = this.#match(WORD)?.[0];
    if (word === undefined) this.#fail(`a value of ${key}`);
    return word === "true" ? true : word === "false" ? false : word;
  }

  #leading(from: number): number {
    BLANK.lastIndex = from;
    return BLANK.exec(this.#text)?.[0].length ?? 0;
  }

  #heads(): HeadName[] | undefined {
    const match = this.#match(HEAD);
    if (!match) return undefined;
    const layer = Number(match[1]);
    const first = Number(match[2]);
    const last = match[3] === undefined ? first : Number(match[3]);
    this.#checkRange(first, last, this.#at - match[0].length);
    return Array.from({ length: last - first + 1 }, (_, i) => ({ layer, head: first + i }));
  }

  #number(raw: string, start: number): Value {
    const value = Number(raw);
    if (!Number.isFinite(value)) this.#fail("a number that is not beyond all bounds", start);
    const next = this.#text[this.#at];
    const after = this.#text[this.#at + 1] ?? "";
    if (next === "/" && /[\d.]/.test(after)) {
      this.#at++;
      const divisor = Number(this.#match(NUMBER)?.[0]);
      if (!(divisor > 0) || !Number.isFinite(value / divisor)) this.#fail("a divisor above 0", start);
      this.#endOfNumber(start);
      return value / divisor + 0;
    }
    if (next === "-" && /\d/.test(after) && /^\d+$/.test(raw)) {
      this.#at++;
      const end = this.#match(NUMBER)?.[0] ?? "";
      if (!/^\d+$/.test(end)) this.#fail("a range of whole numbers, such as 2-5", start);
      this.#endOfNumber(start);
      this.#checkRange(value, Number(end), start);
      return Array.from({ length: Number(end) - value + 1 }, (_, i) => value + i);
    }
    const suffix = next === "k" || next === "K" ? 1024 : next === "m" || next === "M" ? 1 << 20 : 0;
    if (suffix) this.#at++;
    this.#endOfNumber(start);
    const scaled = value * (suffix || 1);
    if (!Number.isFinite(scaled)) this.#fail("a number that is not beyond all bounds", start);
    return scaled + 0; // -0 becomes 0
  }

  #endOfNumber(start: number): void {
    if (/[\w.]/.test(this.#text[this.#at] ?? ""))
      this.#fail("a number; texts that begin with a digit need quotes", start);
  }

  #checkRange(first: number, last: number, start: number): void {
    if (last < first) this.#fail(`a range that rises; ${first} is above ${last}`, start);
    if (last - first >= MAX_LIST) this.#fail(`a range of at most ${MAX_LIST} values`, start);
  }

  #quoted(quote: string): string {
    const start = this.#at++;
    let out = "";
    for (;;) {
      const c = this.#text[this.#at];
      if (c === undefined) this.#fail(`the closing ${quote}`, start);
      this.#at++;
      if (c === quote) return out;
      if (c !== "\\") {
        out += c;
        continue;
      }
      const letter = this.#text[this.#at++];
      if (letter === "u") {
        const hex = this.#text.slice(this.#at, this.#at + 4);
        if (!/^[0-9a-fA-F]{4}$/.test(hex)) this.#fail("four hexadecimal digits after \\u");
        out += String.fromCharCode(Number.parseInt(hex, 16));
        this.#at += 4;
      } else {
        const plain = ESCAPES[letter as keyof typeof ESCAPES];
        if (plain === undefined) this.#fail(`one of \\n \\t \\r \\b \\f \\\\ \\/ \\" \\' \\uXXXX`, this.#at - 2);
        out += plain;
      }
    }
  }

  #blank(): void {
    BLANK.lastIndex = this.#at;
    BLANK.exec(this.#text);
    this.#at = BLANK.lastIndex;
  }

  #take(token: string): boolean {
    this.#blank();
    if (this.#text[this.#at] !== token) return false;
    this.#at++;
    return true;
  }

  #match(pattern: RegExp): RegExpExecArray | undefined {
    pattern.lastIndex = this.#at;
    const match = pattern.exec(this.#text);
    if (match) this.#at += match[0].length;
    return match ?? undefined;
  }

  #fail(expected: string, at = this.#at): never {
    throw syntaxError(this.#text, at, expected);
  }
}

const ESCAPES = { n: "\n", t: "\t", r: "\r", b: "\b", f: "\f", "\\": "\\", "/": "/", '"': '"', "'": "'" } as const;

function isHeadKey(key: string): boolean {
  return key === "heads" || key.endsWith("Heads");
}

/** A bad-input error that shows where in the string it is. */
export function syntaxError(text: string, at: number, expected: string): FoveaError {
  const found = at >= text.length ? "the end" : JSON.stringify(String.fromCodePoint(text.codePointAt(at) ?? 0));
  const from = Math.max(0, at - 30);
  const excerpt = text.slice(from, at + 30).replace(/\s/g, " ");
  return new FoveaError("bad-input", `method string, position ${at}: found ${found}, expected ${expected}`, {
    hint: `${from > 0 ? "..." : ""}${excerpt}\n${" ".repeat(at - from + (from > 0 ? 3 : 0))}^`,
  });
}

/** The canonical form: no blanks, parameters in their given order, lists with their ranges, fractions where shorter. */
export function printMethods(calls: readonly MethodCall[]): string {
  return calls
    .map(({ name, params }) => {
      const list = Object.entries(params).map(([key, value]) => `${key}=${printValue(value, key)}`);
      return list.length > 0 ? `${name}(${list.join(",")})` : name;
    })
    .join("+");
}

/** A value as a method string writes it. */
export function printValue(value: Value, key = ""): string {
  if (typeof value === "number") return printNumber(value);
  if (typeof value === "boolean") return String(value);
  if (typeof value === "string") return isPlainWord(value) ? value : JSON.stringify(value);
  if (!Array.isArray(value)) {
    const head = value as HeadName;
    return `${head.layer}.${head.head}`;
  }
  const items = printItems(value, key);
  // one item stands without brackets only where reading it gives a list again
  const bare =
    items.length === 1 &&
    (value.length > 1 || (isHeadKey(key) ? isHead(value[0]) : key === "layers" && isCount(value[0])));
  return bare ? items[0] : `[${items.join(",")}]`;
}

/** Items of a list; three or more consecutive whole numbers (or heads of a layer) become a range. */
function printItems(values: readonly Value[], key: string): string[] {
  const items: string[] = [];
  for (let i = 0; i < values.length; ) {
    let n = 1;
    while (i + n < values.length && follows(values[i + n - 1], values[i + n])) n++;
    const first = values[i];
    const last = values[i + n - 1];
    if (n < 3) {
      n = 1;
      items.push(printValue(first, key));
    } else if (isHead(first) && isHead(last)) items.push(`${first.layer}.${first.head}-${last.head}`);
    else items.push(`${first}-${last}`);
    i += n;
  }
  return items;
}

function follows(a: Value, b: Value): boolean {
  if (isCount(a)) return isCount(b) && b === a + 1;
  return isHead(a) && isHead(b) && a.layer === b.layer && b.head === a.head + 1;
}

function isCount(value: Value): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0 && value < 1e15;
}

/** True for a head's name. */
export function isHead(value: unknown): value is HeadName {
  return typeof value === "object" && value !== null && "layer" in value && "head" in value;
}

function isPlainWord(text: string): boolean {
  WORD.lastIndex = 0;
  return WORD.exec(text)?.[0].length === text.length && text !== "true" && text !== "false";
}

function printNumber(value: number): string {
  const decimal = String(value + 0);
  if (Number.isInteger(value) || Math.abs(value) < 1e-4) return decimal;
  for (let divisor = 2; divisor <= 1024; divisor++) {
    const over = Math.round(value * divisor);
    if (over / divisor === value) {
      const fraction = `${over}/${divisor}`;
      return fraction.length < decimal.length ? fraction : decimal;
    }
  }
  return decimal;
}

/** Names nearest to a mistyped one by edit distance, best first; at most three. */
export function nearestNames(name: string, known: Iterable<string>): string[] {
  const wanted = name.slice(0, 64).toLowerCase();
  return [...known]
    .map((candidate) => ({ candidate, distance: editDistance(wanted, candidate.toLowerCase()) }))
    .filter(({ candidate, distance }) => distance <= Math.max(2, candidate.length / 3) || candidate.startsWith(wanted))
    .sort((a, b) => a.distance - b.distance || a.candidate.localeCompare(b.candidate))
    .slice(0, 3)
    .map(({ candidate }) => candidate);
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++)
      next.push(Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1)));
    row = next;
  }
  return row[b.length];
}

/** "did you mean x or y?" or a list of what is known. */
export function didYouMean(name: string, known: Iterable<string>): string {
  const all = [...known];
  const near = nearestNames(name, all);
  return near.length > 0 ? `did you mean ${near.join(" or ")}?` : `known: ${all.join(", ") || "none"}`;
}
