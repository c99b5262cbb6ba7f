import { FoveaError } from "../error.js";
import { isObject } from "./json.js";
import { BYTE_CHARACTERS, type Component, component } from "./tokenizer-align.js";
import type { LibraryTokenizer } from "./tokenizer-library.js";

/** Turns token ids back into text. */
export interface Decoder {
  /** The bytes that a token adds in the middle of a text; undefined when they depend on its neighbours. */
  bytes(id: number): Uint8Array | undefined;
  /** True when one space at the very beginning of a text is an artefact of encoding and is dropped. */
  dropsFirstSpace: boolean;
  /** Decodes a whole text when `bytes` cannot. */
  whole(ids: readonly number[]): string;
}

/** Emits text as tokens arrive, never half a character. */
export interface TokenStream {
  /** Takes the next token; gives the text that is certain by now, which may be empty. */
  push(id: number): string;
  /** Ends the stream; gives what was held back (an unfinished character becomes U+FFFD). */
  end(): string;
}

const encoder = new TextEncoder();
const BYTE_OF = new Map(BYTE_CHARACTERS.map((character, byte) => [character, byte]));

/** The decoder that a tokenizer.json describes. */
export function decoder(
  config: Component | null,
  library: LibraryTokenizer,
  added: ReadonlyMap<number, string>,
): Decoder {
  const steps = flatten(config);
  const has = (type: string): boolean => steps.some((step) => step.type === type);
  const whole = (ids: readonly number[]): string => {
    try {
      return ids.length === 0 ? "" : library.decode([...ids], { clean_up_tokenization_spaces: false });
    } catch (cause) {
      throw new FoveaError("bad-file", `tokenizer: its decoder fails: ${cause instanceof Error ? cause.message : ""}`, {
        cause,
      });
    }
  };
  const piece = (id: number): string | undefined => added.get(id) ?? library.id_to_token(id);

  let convert: ((text: string, id: number) => Uint8Array) | undefined;
  let dropsFirstSpace = false;
  if (has("ByteLevel") && steps.every(({ type }) => type === "ByteLevel" || type === "Fuse")) {
    convert = (text, id) => (added.has(id) ? encoder.encode(text) : fromByteCharacters(text));
  } else if (steps.length > 0 && steps.every(isSentencePiece)) {
    const fallback = has("ByteFallback");
    const mark = steps.find(({ type }) => type === "Metaspace" || type === "Replace");
    const replacement = mark?.type === "Metaspace" ? (mark.replacement ?? "▁") : patternOf(mark);
    dropsFirstSpace = steps.some(
      (step) => step.type === "Strip" || (step.type === "Metaspace" && step.prepend_scheme !== "never"),
    );
    convert = (text) => {
      const byte = fallback ? /^<0x([0-9A-Fa-f]{2})>$/.exec(text) : null;
      if (byte) return Uint8Array.of(Number.parseInt(byte[1], 16));
      return encoder.encode(typeof replacement === "string" ? text.replaceAll(replacement, " ") : text);
    };
  }

  const known = new Map<number, Uint8Array>();
  return {
    dropsFirstSpace,
    whole,
    bytes(id) {
      if (!convert) return undefined;
      let bytes = known.get(id);
      if (!bytes) {
        const text = piece(id);
        bytes = text === undefined ? new Uint8Array(0) : convert(text, id);
        known.set(id, bytes);
      }
      return bytes;
    },
  };
}

function flatten(config: Component | null): Component[] {
  if (config === null) return [];
  if (config.type !== "Sequence") return [config];
  const { decoders } = config;
  if (!Array.isArray(decoders) || decoders.includes(null)) {
    throw new FoveaError("bad-file", "tokenizer: the decoder's Sequence.decoders must be a list of decoders");
  }
  return decoders.flatMap((step) => flatten(component(step, "Sequence.decoders")));
}

function patternOf(step: Component | undefined): unknown {
  return isObject(step?.pattern) ? step.pattern.String : undefined;
}

/** The steps that every SentencePiece vocabulary's decoder is made of. */
function isSentencePiece(step: Component): boolean {
  switch (step.type) {
    case "Fuse":
    case "ByteFallback":
    case "Metaspace":
      return true;
    case "Replace":
      return patternOf(step) === "▁" && step.content === " ";
    case "Strip":
      return step.content === " " && step.start === 1 && (step.stop ?? 0) === 0;
    default:
      return false;
  }
}

function fromByteCharacters(text: string): Uint8Array {
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) {
    const byte = BYTE_OF.get(text[i]);
    if (byte === undefined) return encoder.encode(text);
    bytes[i] = byte;
  }
  return bytes;
}

/** Streams text out of tokens. `start`: the stream is the beginning of a text, so its artificial space is dropped. */
export function streamTokens(from: Decoder, skip: (id: number) => boolean, start: boolean): TokenStream {
  const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
  let dropSpace = start && from.dropsFirstSpace;
  const out = (text: string): string => {
    if (!dropSpace || text === "") return text;
    dropSpace = false;
    return text.startsWith(" ") ? text.slice(1) : text;
  };
  // For a decoder that looks at neighbours: all ids so far, and how much of their text has been given out.
  const ids: number[] = [];
  let given = "";
  const rest = (last: boolean): string => {
    const text = from.whole(ids);
    if (!text.startsWith(given)) return "";
    const sure = last ? text : text.replace(/\uFFFD+$/, "");
    if (sure.length <= given.length) return "";
    const fresh = sure.slice(given.length);
    given = sure;
    return fresh;
  };
  return {
    push(id) {
      if (skip(id)) return "";
      const bytes = from.bytes(id);
      if (bytes) return out(utf8.decode(bytes, { stream: true }));
      ids.push(id);
      return rest(false);
    },
    end() {
      return ids.length > 0 ? rest(true) : out(utf8.decode());
    },
  };
}
