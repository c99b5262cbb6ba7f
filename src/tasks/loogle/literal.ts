import { FoveaError } from "../../error.js";

/** What a literal can be. */
export type Literal = string | number | boolean | null | Literal[] | { [key: string]: Literal };

const WORDS: Readonly<Record<string, Literal>> = {
  None: null,
  True: true,
  False: false,
  null: null,
  true: true,
  false: false,
};
const ESCAPES: Readonly<Record<string, string>> = { n: "\n", t: "\t", r: "\r", "\n": "" };

/**
 * Reads a Python literal: lists, tuples, dicts, strings in either quotes, numbers, None, True and False. It is read and
 * never run. JSON is read too.
 * @throws FoveaError `bad-file` saying where it goes wrong
 */
export function parseLiteral(text: string): Literal {
  const reader = new Reader(text);
  const value = reader.value();
  reader.end();
  return value;
}

class Reader {
  #at = 0;
  readonly #text: string;

  constructor(text: string) {
    this.#text = text;
  }

  value(): Literal {
    const next = this.#peek();
    if (next === "[" || next === "(") return this.#list(next === "[" ? "]" : ")");
    if (next === "{") return this.#dict();
    if (next === '"' || next === "'") return this.#string();
    const word = /^[-+\w.]+/.exec(this.#text.slice(this.#at, this.#at + 64))?.[0] ?? "";
    this.#at += word.length;
    if (word in WORDS) return WORDS[word];
    const number = Number(word);
    if (word === "" || Number.isNaN(number)) throw this.#error("a value");
    return number;
  }

  end(): void {
    if (this.#peek() !== "") throw this.#error("the end");
  }

  #list(close: string): Literal[] {
    const items: Literal[] = [];
    this.#at++;
    while (this.#peek() !== close) {
      items.push(this.value());
      if (this.#peek() === ",") this.#at++;
      else if (this.#peek() !== close) throw this.#error(`"," or "${close}"`);
    }
    this.#at++;
    return items;
  }

  #dict(): { [key: string]: Literal } {
    const entries: [string, Literal][] = [];
    this.#at++;
    while (this.#peek() !== "}") {
      const key = this.value();
      if (this.#peek() !== ":") throw this.#error('":"');
      this.#at++;
      entries.push([String(key), this.value()]);
      if (this.#peek() === ",") this.#at++;
      else if (this.#peek() !== "}") throw this.#error('"," or "}"');
    }
    this.#at++;
    return Object.fromEntries(entries);
  }

  #string(): string {
    const quote = this.#text[this.#at++];
    let out = "";
    for (; ; this.#at++) {
      const c = this.#text[this.#at];
      if (c === undefined) throw this.#error(`the closing ${quote}`);
      if (c === quote) break;
      out += c === "\\" ? this.#escape() : c;
    }
    this.#at++;
    return out;
  }

  #escape(): string {
    const c = this.#text[++this.#at];
    const length = { x: 2, u: 4, U: 8 }[c];
    if (length === undefined) return ESCAPES[c] ?? c;
    const code = Number.parseInt(this.#text.slice(this.#at + 1, this.#at + 1 + length), 16);
    if (Number.isNaN(code)) throw this.#error("a character's number");
    this.#at += length;
    return String.fromCodePoint(code);
  }

  /** The next character that is no space; "" at the end. */
  #peek(): string {
    while (/\s/.test(this.#text[this.#at] ?? "")) this.#at++;
    return this.#text[this.#at] ?? "";
  }

  #error(wanted: string): FoveaError {
    const found = this.#text.slice(this.#at, this.#at + 20);
    return new FoveaError(
      "bad-file",
      `expected ${wanted} at character ${this.#at} of a literal, found ${JSON.stringify(found)}`,
    );
  }
}
