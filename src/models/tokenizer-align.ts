import { FoveaError } from "../error.js";
import { describe, isObject } from "./json.js";
import {
  BertNormalizer,
  BertPreTokenizer,
  ByteLevelPreTokenizer,
  FixedLengthPreTokenizer,
  type Normalizer,
  PrecompiledNormalizer,
  type PreTokenizer,
  ReplaceNormalizer,
  SplitPreTokenizer,
  StripAccentsNormalizer,
  WhitespacePreTokenizer,
  WhitespaceSplitPreTokenizer,
} from "./tokenizer-library.js";

/**
 * Text on its way to the tokenizer, each of whose UTF-16 units knows the characters of the original text that it stands
 * for. The library's tokenizers keep no offsets; every step here changes the text as the library does and carries them.
 */
export class Aligned {
  readonly text: string;
  /** Unit i stands for original units [starts[at + i], ends[at + i]); without the arrays, for unit at + i alone. */
  private readonly at: number;
  private readonly starts: Int32Array | undefined;
  private readonly ends: Int32Array | undefined;

  private constructor(text: string, at: number, starts?: Int32Array, ends?: Int32Array) {
    this.text = text;
    this.at = at;
    this.starts = starts;
    this.ends = ends;
  }

  /** A piece of the original text, which begins at unit `offset` of it. */
  static original(text: string, offset: number): Aligned {
    return new Aligned(text, offset);
  }

  /** The span of the original text that units [from, to) stand for; an empty range gives an empty span. */
  span(from: number, to: number): [number, number] {
    if (from < to) return [this.start(from), this.end(to - 1)];
    let at: number;
    if (!this.starts || !this.ends) at = this.at + from;
    else if (this.at + from < this.starts.length) at = this.starts[this.at + from];
    else at = this.ends.at(-1) ?? 0;
    return [at, at];
  }

  private start(i: number): number {
    return this.starts ? this.starts[this.at + i] : this.at + i;
  }

  private end(i: number): number {
    return this.ends ? this.ends[this.at + i] : this.at + i + 1;
  }

  /** Units [from, to) alone. */
  slice(from: number, to: number): Aligned {
    if (from === 0 && to === this.text.length) return this;
    return new Aligned(this.text.slice(from, to), this.at + from, this.starts, this.ends);
  }

  /** The same alignment under another text of the same length. */
  relabel(text: string): Aligned {
    return new Aligned(text, this.at, this.starts, this.ends);
  }

  /**
   * Rewrites the text by pieces, which follow one another: each takes units [from, to) and leaves them as they are, or
   * puts `text` in their place, all of which then stands for all that was taken.
   */
  rewrite(pieces: readonly Piece[]): Aligned {
    let text = "";
    for (const piece of pieces) text += piece.text ?? this.text.slice(piece.from, piece.to);
    const starts = new Int32Array(text.length);
    const ends = new Int32Array(text.length);
    let out = 0;
    for (const { from, to, text: put } of pieces) {
      if (put === undefined) {
        for (let i = from; i < to; i++, out++) {
          starts[out] = this.start(i);
          ends[out] = this.end(i);
        }
      } else {
        const [start, end] = this.span(from, to);
        starts.fill(start, out, out + put.length);
        ends.fill(end, out, out + put.length);
        out += put.length;
      }
    }
    return new Aligned(text, 0, starts, ends);
  }
}

interface Piece {
  from: number;
  to: number;
  text?: string;
}

/** A part of a tokenizer.json: `type` says which. */
export interface Component {
  type: string;
  [field: string]: unknown;
}

/** A step that keeps the alignment. */
export type Normalize = (text: Aligned) => Aligned;

/** Splits text into what the model sees at once. `first`: it is the beginning of the input. */
export type PreTokenize = (text: Aligned, first: boolean) => Aligned[];

/** Checks that a part of a tokenizer.json is an object with a type, or absent. */
export function component(value: unknown, what: string): Component | null {
  if (value === null || value === undefined) return null;
  if (!isObject(value) || typeof value.type !== "string") {
    throw new FoveaError("bad-file", `tokenizer: ${what} must be an object with a type, not ${describe(value)}`);
  }
  return value as Component;
}

function list(config: Component, field: string): Component[] {
  const items = config[field];
  if (!Array.isArray(items)) throw new FoveaError("bad-file", `tokenizer: ${config.type}.${field} must be an array`);
  return items.map((item) => component(item, `${config.type}.${field}`)).filter((item) => item !== null);
}

function text(config: Component, field: string, fallback?: string): string {
  const value = config[field] ?? fallback;
  if (typeof value !== "string") {
    throw new FoveaError("bad-file", `tokenizer: ${config.type}.${field} must be a string, not ${describe(value)}`);
  }
  return value;
}

// ---- normalizers ----

/** Refuses a text that normalizes to far more than itself, which is an attack on memory. */
export function bounded(output: Aligned, input: Aligned): Aligned {
  if (output.text.length > 4096 + 64 * input.text.length) {
    throw new FoveaError("too-large", `tokenizer: ${input.text.length} characters normalize to ${output.text.length}`);
  }
  return output;
}

/** The normalizer that a tokenizer.json describes. */
export function normalizer(config: Component | null): Normalize {
  if (config === null) return (input) => input;
  switch (config.type) {
    case "Sequence": {
      const steps = list(config, "normalizers").map(normalizer);
      return (input) => steps.reduce((current, step) => bounded(step(current), input), input);
    }
    case "Prepend": {
      const prefix = text(config, "prepend");
      return (input) =>
        input.rewrite([
          { from: 0, to: 0, text: prefix },
          { from: 0, to: input.text.length },
        ]);
    }
    case "Replace": {
      checkPattern(config);
      const content = text(config, "content", "");
      const pattern = new ReplaceNormalizer(config).pattern;
      return (input) => (pattern ? replaceMatches(input, pattern, content) : input);
    }
    case "Strip": {
      const left = config.strip_left === true;
      const right = config.strip_right === true;
      return (input) => {
        const from = left ? input.text.length - input.text.trimStart().length : 0;
        const to = right ? input.text.trimEnd().length : input.text.length;
        return input.slice(from, Math.max(from, to));
      };
    }
    case "NFC":
    case "NFD":
    case "NFKC":
    case "NFKD": {
      const form = config.type;
      return (input) => byClusters(input, (part) => part.normalize(form));
    }
    case "Lowercase":
      return (input) => byClusters(input, (part) => part.toLowerCase());
    case "StripAccents":
      return throughLibrary(new StripAccentsNormalizer(config));
    case "BertNormalizer":
      return throughLibrary(new BertNormalizer(config));
    case "Precompiled":
      return throughLibrary(new PrecompiledNormalizer(config));
    default:
      throw new FoveaError("unsupported", `tokenizer: unknown normalizer ${describe(config.type)}`);
  }
}

function throughLibrary(step: Normalizer): Normalize {
  return (input) => byClusters(input, (part) => step.normalize(part));
}

function checkPattern(config: Component): void {
  const { pattern } = config;
  if (!isObject(pattern) || (typeof pattern.String !== "string" && typeof pattern.Regex !== "string")) {
    throw new FoveaError("bad-file", `tokenizer: ${config.type}.pattern must hold a String or a Regex`);
  }
}

function replaceMatches(input: Aligned, pattern: RegExp, content: string): Aligned {
  const pieces: Piece[] = [];
  let done = 0;
  let same = true;
  for (const match of input.text.matchAll(pattern)) {
    if (match.index > done) pieces.push({ from: done, to: match.index });
    done = match.index + match[0].length;
    pieces.push({ from: match.index, to: done, text: content });
    same &&= content.length === match[0].length && content.length === 1;
  }
  if (pieces.length === 0) return input;
  // One unit for one unit, as " " to "▁" in every SentencePiece vocabulary: the alignment stays.
  if (same) return input.relabel(input.text.replaceAll(pattern, () => content));
  if (done < input.text.length) pieces.push({ from: done, to: input.text.length });
  return input.rewrite(pieces);
}

/** A character with the marks that follow it: what a normalizer looks at as a whole. */
const CLUSTER = /\P{M}\p{M}*|\p{M}+/gu;

/** Applies a normalizer to the clusters of a text one by one, which says what became of each. */
function byClusters(input: Aligned, change: (part: string) => string): Aligned {
  const whole = change(input.text);
  if (whole === input.text) return input;
  const pieces: (Piece & { text: string })[] = [];
  for (const match of input.text.matchAll(CLUSTER)) {
    const piece = { from: match.index, to: match.index + match[0].length, text: change(match[0]) };
    const before = pieces.at(-1);
    if (before && (before.to - before.from > 1 || match[0] > "\x7f" || before.text > "\x7f")) {
      // Some clusters compose with the next one all the same: the parts of a Hangul syllable.
      const together = change(input.text.slice(before.from, piece.to));
      if (together !== before.text + piece.text) {
        before.to = piece.to;
        before.text = together;
        continue;
      }
    }
    pieces.push(piece);
  }
  const joined = pieces.map((piece) => piece.text).join("");
  if (joined === whole) {
    return input.rewrite(
      pieces.map((piece) =>
        piece.text === input.text.slice(piece.from, piece.to) ? { from: piece.from, to: piece.to } : piece,
      ),
    );
  }
  // The change looks further than one cluster. Where only values differ (a final sigma) the lengths still align.
  if (joined.length === whole.length) return input.rewrite(pieces).relabel(whole);
  return input.rewrite([{ from: 0, to: input.text.length, text: whole }]);
}

// ---- pre-tokenizers ----

/** The pre-tokenizer that a tokenizer.json describes. */
export function preTokenizer(config: Component | null): PreTokenize {
  if (config === null) return (input) => [input];
  switch (config.type) {
    case "Sequence": {
      const steps = list(config, "pretokenizers").map(preTokenizer);
      return (input, first) =>
        steps.reduce<Aligned[]>(
          (parts, step) => parts.flatMap((part, i) => (part.text === "" ? [] : step(part, first && i === 0))),
          [input],
        );
    }
    case "ByteLevel":
      return byteLevel(config);
    case "Metaspace":
      return metaspace(config);
    case "Replace": {
      checkPattern(config);
      const content = text(config, "content", "");
      const pattern = new ReplaceNormalizer(config).pattern;
      return (input) => [pattern ? replaceMatches(input, pattern, content) : input];
    }
    case "Split": {
      checkPattern(config);
      const { pattern } = new SplitPreTokenizer(config);
      if (!pattern) throw new FoveaError("bad-file", "tokenizer: Split has no pattern");
      return splitAt(pattern, String(config.behavior ?? "Isolated"), config.invert === true);
    }
    // The next two are not the library's: it takes only ASCII digits and never splits a run of punctuation.
    case "Digits":
      return splitAt(config.individual_digits === true ? /\p{N}/gu : /\p{N}+/gu, "Isolated", false);
    case "Punctuation":
      return splitAt(PUNCTUATION, String(config.behavior ?? "Isolated"), false);
    case "Whitespace":
      return splitting(new WhitespacePreTokenizer());
    case "WhitespaceSplit":
      return splitting(new WhitespaceSplitPreTokenizer());
    case "BertPreTokenizer":
      return splitting(new BertPreTokenizer());
    case "FixedLength":
      if (!Number.isSafeInteger(config.length) || Number(config.length) < 1) {
        throw new FoveaError(
          "bad-file",
          `tokenizer: FixedLength.length is ${describe(config.length)}, not a positive integer`,
        );
      }
      return splitting(new FixedLengthPreTokenizer(config));
    default:
      throw new FoveaError("unsupported", `tokenizer: unknown pre-tokenizer ${describe(config.type)}`);
  }
}

const PUNCTUATION = /[\p{P}$+<=>^`|~]/gu;

/**
 * Splits at the matches of a pattern, as Hugging Face's tokenizers do: the matches (with `invert`, what lies between
 * them) are isolated, removed, joined with their like, or merged with the piece before or behind.
 */
function splitAt(pattern: RegExp, behavior: string, invert: boolean): PreTokenize {
  if (!["Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext"].includes(behavior)) {
    throw new FoveaError("bad-file", `tokenizer: unknown split behavior ${describe(behavior)}`);
  }
  return (input) => {
    const pieces: { from: number; to: number; match: boolean }[] = [];
    let done = 0;
    for (const found of input.text.matchAll(pattern)) {
      const end = found.index + found[0].length;
      if (found.index > done) pieces.push({ from: done, to: found.index, match: invert });
      if (end > found.index) pieces.push({ from: found.index, to: end, match: !invert });
      done = end;
    }
    if (done < input.text.length) pieces.push({ from: done, to: input.text.length, match: invert });
    const joined: typeof pieces = [];
    for (const piece of pieces) {
      const before = joined.at(-1);
      const join =
        before !== undefined &&
        ((behavior === "Contiguous" && before.match === piece.match) ||
          (behavior === "MergedWithPrevious" && piece.match && !before.match) ||
          (behavior === "MergedWithNext" && !piece.match && before.match));
      if (behavior === "Removed" && piece.match) continue;
      if (join) {
        before.to = piece.to;
        before.match = piece.match;
      } else joined.push({ ...piece });
    }
    return joined.map(({ from, to }) => input.slice(from, to));
  };
}

/** A pre-tokenizer whose results are pieces of the text, in order; what it drops between them is passed over. */
function splitting(step: PreTokenizer): PreTokenize {
  return (input) => {
    const parts: Aligned[] = [];
    let done = 0;
    for (const part of step.pre_tokenize_text(input.text, {})) {
      const from = input.text.indexOf(part, done);
      if (from < 0) throw new FoveaError("internal", `tokenizer: the split ${describe(part)} is not in the text`);
      done = from + part.length;
      parts.push(input.slice(from, done));
    }
    return parts;
  };
}

function literal(text: string): RegExp {
  return new RegExp(text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"), "gu");
}

/** Spaces become a visible mark, and the text gets one in front. */
function metaspace(config: Component): PreTokenize {
  const mark = text(config, "replacement", "▁");
  const written = typeof config.str_rep === "string" && config.str_rep !== "" ? config.str_rep : mark;
  // Before there was a scheme there was a flag.
  const scheme = text(config, "prepend_scheme", config.add_prefix_space === false ? "never" : "always");
  // A word is a mark and what follows it.
  const words = config.split === false ? (input: Aligned) => [input] : splitAt(literal(mark), "MergedWithNext", false);
  return (input, first) => {
    const marked = replaceMatches(input, / /g, written);
    const bare = marked.text.startsWith(mark) || !(scheme === "always" || (scheme === "first" && first));
    const prefix = [
      { from: 0, to: 0, text: written },
      { from: 0, to: marked.text.length },
    ];
    return words(bare ? marked : marked.rewrite(prefix), first);
  };
}

const ASCII = /^[\x21-\x7e ]*$/;
const encoder = new TextEncoder();

/** The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table). */
export const BYTE_CHARACTERS: readonly string[] = byteCharacters();

function byteCharacters(): string[] {
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    return String.fromCharCode(printable ? byte : next++);
  });
}

/** Splits by GPT-2's pattern (unless told not to), then writes every byte of the UTF-8 as one printable character. */
function byteLevel(config: Component): PreTokenize {
  const split = config.use_regex === false ? undefined : new ByteLevelPreTokenizer(config).pattern;
  const prefix = config.add_prefix_space === true;
  return (input) => {
    let whole = input;
    if (prefix && !input.text.startsWith(" ")) {
      whole = input.rewrite([
        { from: 0, to: 0, text: " " },
        { from: 0, to: input.text.length },
      ]);
    }
    if (!split) return [toBytes(whole)];
    return [...whole.text.matchAll(split)].map((match) =>
      toBytes(whole.slice(match.index, match.index + match[0].length)),
    );
  };
}

function toBytes(input: Aligned): Aligned {
  // ASCII is one byte a unit, and only the space looks different.
  if (ASCII.test(input.text)) return input.relabel(input.text.replaceAll(" ", BYTE_CHARACTERS[32]));
  const pieces: Piece[] = [];
  let at = 0;
  for (const character of input.text) {
    let bytes = "";
    for (const byte of encoder.encode(character)) bytes += BYTE_CHARACTERS[byte];
    pieces.push({ from: at, to: at + character.length, text: bytes });
    at += character.length;
  }
  return input.rewrite(pieces);
}
