import { FoveaError } from "../error.js";
import { describe, isObject, parseJsonObject } from "./json.js";
import { openSource } from "./source.js";
import {
  Aligned,
  bounded,
  component,
  type Normalize,
  normalizer,
  type PreTokenize,
  preTokenizer,
} from "./tokenizer-align.js";
import { type Decoder, decoder, streamTokens, type TokenStream } from "./tokenizer-decode.js";
import {
  BPE,
  type BpeModel,
  HfTokenizer,
  type LibraryTokenizer,
  type Model,
  Unigram,
  WordPiece,
} from "./tokenizer-library.js";

export type { TokenStream } from "./tokenizer-decode.js";

/** Token ids with the characters that each stands for. */
export interface Encoding {
  ids: number[];
  /**
   * For each token the [start, end) of its characters in the text, in UTF-16 units. Starts never decrease and, but for
   * what a normalizer deletes, the spans cover the text. A token of a part of a character has the whole character's
   * span; a token that stands for no character (BOS, an added leading space) has an empty span.
   */
  offsets: [number, number][];
}

export interface EncodeOptions {
  /** Add the tokens that the model expects around a text: BOS, for some EOS. Default true. */
  special?: boolean;
  /** Read the text of a special token, such as `<|im_end|>`, as that token. Default true; false for untrusted text. */
  parse?: boolean;
}

export interface DecodeOptions {
  /** Leave special tokens out. Default false. */
  skipSpecial?: boolean;
  /**
   * The ids are the beginning of a text: the leading space that a SentencePiece vocabulary adds there is dropped.
   * Default true for `decode`, false for `stream` (which continues a prompt).
   */
  start?: boolean;
}

/** Text to token ids and back. */
export interface Tokenizer {
  encode(text: string, options?: EncodeOptions): Encoding;
  decode(ids: readonly number[], options?: DecodeOptions): string;
  /** One token as text, as in the middle of a text; bytes that are no whole character show as `<0xE2>`. */
  piece(id: number): string;
  /** Decodes as tokens arrive; never emits half a character. */
  stream(options?: DecodeOptions): TokenStream;
  /** The id of a token by its exact text in the vocabulary (`"<|im_end|>"`, `"Ġthe"`). */
  id(token: string): number | undefined;
  /** True for BOS, EOS and the like. */
  isSpecial(id: number): boolean;
  /** One more than the largest token id. */
  readonly vocabSize: number;
  readonly bos: number | undefined;
  readonly eos: number | undefined;
  readonly unknown: number | undefined;
  /** True when `encode` puts BOS first. */
  readonly addsBos: boolean;
  /** True when `encode` puts EOS last. */
  readonly addsEos: boolean;
  /** The vocabulary entry of each id, as the tokenizer file spells it. */
  readonly vocabulary: ReadonlyMap<number, string>;
  /** What the tokenizer was made from, in the form of tokenizer.json and tokenizer_config.json. */
  readonly files: {
    readonly tokenizer: Record<string, unknown>;
    readonly config: Record<string, unknown>;
    /** The scores of a SentencePiece vocabulary by id, where they are known. */
    readonly scores?: ArrayLike<number>;
  };
}

/** Largest token id allowed: the largest published vocabularies have some 300 000 entries. */
const MAX_ID = 1 << 24;

interface AddedToken {
  id: number;
  content: string;
  special: boolean;
  normalized: boolean;
  lstrip: boolean;
  rstrip: boolean;
  singleWord: boolean;
}

/**
 * Makes a tokenizer from the contents of tokenizer.json and tokenizer_config.json.
 * @param scores of a SentencePiece vocabulary, by id: neighbours whose joined text is a token merge, the highest score
 *   first, the leftmost first among equals; the model's list of merges is not looked at
 * @throws FoveaError "bad-file" when the file is malformed, "unsupported" for a kind of tokenizer that is not known
 */
export function createTokenizer(tokenizer: unknown, config: unknown = {}, scores?: ArrayLike<number>): Tokenizer {
  if (!isObject(tokenizer)) {
    throw new FoveaError("bad-file", `tokenizer: tokenizer.json must hold an object, not ${describe(tokenizer)}`);
  }
  if (!isObject(config)) {
    throw new FoveaError("bad-file", `tokenizer: tokenizer_config.json must hold an object, not ${describe(config)}`);
  }
  try {
    return build(tokenizer, config, scores);
  } catch (cause) {
    if (cause instanceof FoveaError) throw cause;
    throw new FoveaError("bad-file", `tokenizer: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

/** Reads tokenizer.json and, where there is one, tokenizer_config.json from a folder. */
export async function loadTokenizer(folder: string): Promise<Tokenizer> {
  const tokenizer = await readJson(`${folder}/tokenizer.json`);
  if (!tokenizer) {
    throw new FoveaError("not-found", `${folder} has no tokenizer.json`, {
      hint: "A checkpoint needs its tokenizer.json (the format of Hugging Face's fast tokenizers).",
    });
  }
  return createTokenizer(tokenizer, (await readJson(`${folder}/tokenizer_config.json`)) ?? {});
}

/** Reads a JSON object; undefined when there is no such file. */
export async function readJson(path: string): Promise<Record<string, unknown> | undefined> {
  let source: Awaited<ReturnType<typeof openSource>>;
  try {
    source = await openSource(path);
  } catch (error) {
    if (error instanceof FoveaError && error.code === "not-found") return undefined;
    throw error;
  }
  try {
    if (source.size > 1 << 28) throw new FoveaError("too-large", `${path}: ${source.size} bytes of JSON are too many`);
    return parseJsonObject(await source.read(0, source.size), path, { uniqueKeys: false });
  } finally {
    await source.close();
  }
}

function build(
  json: Record<string, unknown>,
  config: Record<string, unknown>,
  scores: ArrayLike<number> | undefined,
): Tokenizer {
  const added = addedTokens(json.added_tokens);
  checkModel(json.model);
  const filled = {
    normalizer: null,
    pre_tokenizer: null,
    post_processor: null,
    decoder: null,
    ...json,
    added_tokens: json.added_tokens ?? [],
  };
  // The parts are made first: their errors name the field.
  const normalize = normalizer(component(json.normalizer, "normalizer"));
  const split = preTokenizer(component(json.pre_tokenizer, "pre_tokenizer"));
  const decoderConfig = component(json.decoder, "decoder");
  component(json.post_processor, "post_processor");
  const library = new HfTokenizer(filled, config);
  const { model } = library;
  if (model instanceof BPE && scores) model.bpe_ranks = new ScoreRanks(model.tokens_to_ids, scores);

  const ids = model.tokens_to_ids;
  const vocabulary = new Map<number, string>();
  for (const [token, id] of ids) vocabulary.set(id, token);
  const addedText = new Map(added.map((token) => [token.id, token.content]));
  for (const [id, token] of addedText) vocabulary.set(id, token);
  const special = new Set(added.filter((token) => token.special).map((token) => token.id));
  const named = (field: string): number | undefined => {
    const value = isObject(config[field]) ? config[field].content : config[field];
    return typeof value === "string" ? ids.get(value) : undefined;
  };
  const bos = named("bos_token");
  const eos = named("eos_token");
  const frame = frameOf(library, config, ids, bos, eos);
  const encodeText = encoder(model, added, normalize, split);
  const from: Decoder = decoder(decoderConfig, library, addedText);
  let vocabSize = 0;
  for (const id of vocabulary.keys()) vocabSize = Math.max(vocabSize, id + 1);

  const checkId = (id: number): void => {
    if (!Number.isSafeInteger(id) || id < 0) throw new FoveaError("bad-input", `${describe(id)} is not a token id`);
  };
  const stream = ({ skipSpecial = true, start = false }: DecodeOptions = {}): TokenStream => {
    const out = streamTokens(from, (id) => skipSpecial && special.has(id), start);
    return {
      push: (id) => {
        checkId(id);
        return out.push(id);
      },
      end: out.end,
    };
  };
  return {
    encode(text, { special: withSpecial = true, parse = true } = {}) {
      const encoding = encodeText(text, parse);
      if (!withSpecial) return encoding;
      return {
        ids: [...frame.before, ...encoding.ids, ...frame.after],
        offsets: [
          ...frame.before.map((): [number, number] => [0, 0]),
          ...encoding.offsets,
          ...frame.after.map((): [number, number] => [text.length, text.length]),
        ],
      };
    },
    decode(list, { skipSpecial = false, start = true } = {}) {
      const out = stream({ skipSpecial, start });
      let text = "";
      if (list.length > 0 && from.bytes(list[0]) === undefined) {
        list.forEach(checkId);
        return from.whole(skipSpecial ? list.filter((id) => !special.has(id)) : list);
      }
      for (const id of list) text += out.push(id);
      return text + out.end();
    },
    piece(id) {
      checkId(id);
      const bytes = from.bytes(id);
      return bytes ? showBytes(bytes) : (vocabulary.get(id) ?? "");
    },
    stream,
    id: (token) => ids.get(token),
    isSpecial: (id) => special.has(id),
    vocabSize,
    bos: bos ?? (frame.before.length > 0 ? frame.before[0] : undefined),
    eos,
    unknown: model.unk_token_id ?? undefined,
    addsBos: frame.before.length > 0,
    addsEos: frame.after.length > 0,
    vocabulary,
    files: { tokenizer: json, config, scores },
  };
}

// ---- checks ----

function isId(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0 && value < MAX_ID;
}

function addedTokens(list: unknown): AddedToken[] {
  if (list === undefined || list === null) return [];
  if (!Array.isArray(list)) {
    throw new FoveaError("bad-file", `tokenizer: added_tokens must be an array, not ${describe(list)}`);
  }
  return list.map((token: unknown, i) => {
    if (!isObject(token) || !isId(token.id) || typeof token.content !== "string" || token.content === "") {
      throw new FoveaError("bad-file", `tokenizer: added_tokens[${i}] needs an id below ${MAX_ID} and a content`);
    }
    const special = token.special === true;
    return {
      id: token.id,
      content: token.content,
      special,
      normalized: typeof token.normalized === "boolean" ? token.normalized : !special,
      lstrip: token.lstrip === true,
      rstrip: token.rstrip === true,
      singleWord: token.single_word === true,
    };
  });
}

function checkModel(model: unknown): void {
  const check = (good: boolean, what: string): void => {
    if (!good) throw new FoveaError("bad-file", `tokenizer: model ${what}`);
  };
  if (!isObject(model)) throw new FoveaError("bad-file", `tokenizer: model must be an object, not ${describe(model)}`);
  const { type, vocab, merges } = model;
  if (type !== undefined && type !== "BPE" && type !== "WordPiece" && type !== "Unigram") {
    throw new FoveaError("unsupported", `tokenizer: model type ${describe(type)} is not known`, {
      hint: "Known are BPE, Unigram and WordPiece.",
    });
  }
  if (type === "Unigram" || Array.isArray(vocab)) {
    if (!Array.isArray(vocab)) throw new FoveaError("bad-file", "tokenizer: model vocab must be a list of pairs");
    check(vocab.length > 0 && vocab.length <= MAX_ID, `vocab has ${vocab.length} entries`);
    for (const entry of vocab) {
      const pair = Array.isArray(entry) && typeof entry[0] === "string" && typeof entry[1] === "number";
      check(pair, `vocab entry ${describe(entry)} is not [piece, score]`);
    }
    const unknown = model.unk_id ?? 0;
    check(isId(unknown) && unknown < vocab.length, `unk_id is ${describe(unknown)}`);
    return;
  }
  if (!isObject(vocab))
    throw new FoveaError("bad-file", `tokenizer: model vocab must be an object, not ${describe(vocab)}`);
  for (const [token, id] of Object.entries(vocab))
    check(isId(id), `vocab gives ${describe(token)} the id ${describe(id)}`);
  for (const field of ["unk_token", "end_of_word_suffix", "continuing_subword_prefix"]) {
    const value = model[field] ?? "";
    check(typeof value === "string", `${field} is ${describe(value)}`);
  }
  if (type === "WordPiece") return;
  if (!Array.isArray(merges))
    throw new FoveaError("bad-file", `tokenizer: model merges must be an array, not ${describe(merges)}`);
  const pairs = Array.isArray(merges[0]);
  for (const merge of merges) {
    const pair = Array.isArray(merge) && merge.length === 2 && merge.every((part) => typeof part === "string");
    check(pairs ? pair : typeof merge === "string" && merge.includes(" "), `merge ${describe(merge)} is not a pair`);
  }
}

// ---- encoding ----

/** The tokens that the post-processor puts before and behind a text. */
function frameOf(
  library: LibraryTokenizer,
  config: Record<string, unknown>,
  ids: ReadonlyMap<string, number>,
  bos: number | undefined,
  eos: number | undefined,
): { before: number[]; after: number[] } {
  const place = "\u0000text\u0000";
  const tokens = library.post_processor ? library.post_processor([place], null, true).tokens : [place];
  const at = tokens.indexOf(place);
  if (at < 0) throw new FoveaError("bad-file", "tokenizer: the post-processor drops the text");
  const toIds = (list: string[]): number[] =>
    list.map((token) => {
      const id = ids.get(token);
      if (id === undefined)
        throw new FoveaError("bad-file", `tokenizer: the post-processor adds ${describe(token)}, which is no token`);
      return id;
    });
  let before = toIds(tokens.slice(0, at));
  let after = toIds(tokens.slice(at + 1));
  // Llama's and Gemma's tokenizer classes rebuild the post-processor from these two flags.
  if (/^(Llama|CodeLlama|Gemma)/.test(String(config.tokenizer_class))) {
    if (typeof config.add_bos_token === "boolean") before = config.add_bos_token && bos !== undefined ? [bos] : [];
    if (typeof config.add_eos_token === "boolean") after = config.add_eos_token && eos !== undefined ? [eos] : [];
  }
  return { before, after };
}

type Encode = (text: string, parse: boolean) => Encoding;

function encoder(model: Model, added: readonly AddedToken[], normalize: Normalize, split: PreTokenize): Encode {
  const raw = added.filter((token) => !token.normalized);
  const normalized = added.filter((token) => token.normalized);
  const everyRaw = finder(raw.map((token) => [token.content, token]));
  const userRaw = finder(raw.filter((token) => !token.special).map((token) => [token.content, token]));
  const withNormal = (list: AddedToken[]): Finder =>
    finder(list.map((token) => [normalize(Aligned.original(token.content, 0)).text, token]));
  const everyNormalized = withNormal(normalized);
  const userNormalized = withNormal(normalized.filter((token) => !token.special));
  const words = wordEncoder(model);

  return (text, parse) => {
    const ids: number[] = [];
    const offsets: [number, number][] = [];
    const sections = cut(Aligned.original(text, 0), parse ? everyRaw : userRaw);
    sections.forEach(({ part, token }, section) => {
      if (token) {
        ids.push(token.id);
        offsets.push(part.span(0, part.text.length));
        return;
      }
      const normal = bounded(normalize(part), part);
      for (const inner of cut(normal, parse ? everyNormalized : userNormalized)) {
        if (inner.token) {
          ids.push(inner.token.id);
          offsets.push(inner.part.span(0, inner.part.text.length));
          continue;
        }
        for (const word of split(inner.part, section === 0)) {
          for (const { id, from, to } of words(word.text)) {
            ids.push(id);
            offsets.push(word.span(from, to));
          }
        }
      }
    });
    return { ids, offsets };
  };
}

type Finder = Map<string, TrieNode>;
interface TrieNode {
  next: Finder;
  token?: AddedToken;
}

/** A trie over the contents of added tokens. */
function finder(entries: readonly (readonly [string, AddedToken])[]): Finder {
  const root: Finder = new Map();
  for (const [content, token] of entries) {
    let level = root;
    let node: TrieNode | undefined;
    for (const unit of content) {
      node = level.get(unit);
      if (!node) level.set(unit, (node = { next: new Map() }));
      level = node.next;
    }
    if (node) node.token = token;
  }
  return root;
}

const WORD = /[\p{L}\p{N}_]/u;

/** Cuts a text at added tokens, the leftmost and then the longest first. */
function cut(input: Aligned, tokens: Finder): { part: Aligned; token?: AddedToken }[] {
  const { text } = input;
  if (text === "") return [];
  if (tokens.size === 0) return [{ part: input }];
  const parts: { part: Aligned; token?: AddedToken }[] = [];
  let done = 0;
  for (let at = 0; at < text.length; ) {
    let found: AddedToken | undefined;
    let end = at;
    let level = tokens;
    for (let i = at; i < text.length; ) {
      const unit = String.fromCodePoint(text.codePointAt(i) ?? 0);
      const node = level.get(unit);
      if (!node) break;
      i += unit.length;
      level = node.next;
      if (node.token && !(node.token.singleWord && isInsideWord(text, at, i))) {
        found = node.token;
        end = i;
      }
    }
    if (!found) {
      at++;
      continue;
    }
    let from = at;
    if (found.lstrip) while (from > done && /\s/.test(text[from - 1])) from--;
    if (found.rstrip) while (end < text.length && /\s/.test(text[end])) end++;
    if (from > done) parts.push({ part: input.slice(done, from) });
    parts.push({ part: input.slice(from, end), token: found });
    done = at = end;
  }
  if (done < text.length) parts.push({ part: input.slice(done, text.length) });
  return parts;
}

function isInsideWord(text: string, from: number, to: number): boolean {
  return (from > 0 && WORD.test(text[from - 1])) || (to < text.length && WORD.test(text[to]));
}

/** One token of a word and the units [from, to) of it that the token stands for. */
interface WordToken {
  id: number;
  from: number;
  to: number;
}

/** Encodes one pre-token with the library's model, and says which of its units each token stands for. */
function wordEncoder(model: Model): (word: string) => WordToken[] {
  if (model instanceof BPE) return bpeEncoder(model);
  const ids = model.tokens_to_ids;
  const unknown = model.unk_token_id ?? undefined;
  if (model instanceof Unigram) {
    return (word) => {
      const tokens: WordToken[] = [];
      let at = 0;
      let fused = false;
      for (const piece of word === "" ? [] : model.encode([word])) {
        const id = ids.get(piece) ?? unknown;
        at += piece.length;
        // Unknown characters side by side are one unknown token.
        if (fused && id === unknown) tokens[tokens.length - 1].to = at;
        else if (id !== undefined) tokens.push({ id, from: at - piece.length, to: at });
        fused = id !== undefined && id === unknown;
      }
      return tokens;
    };
  }
  if (model instanceof WordPiece) {
    const prefix = model.config.continuing_subword_prefix ?? "";
    return (word) => {
      const tokens: WordToken[] = [];
      let at = 0;
      model.encode([word]).forEach((piece, i) => {
        const id = ids.get(piece);
        if (id === undefined) return;
        // An unknown word is one token; a piece that goes on with a word has a prefix.
        const length = piece === model.unk_token ? word.length : piece.length - (i > 0 ? prefix.length : 0);
        tokens.push({ id, from: at, to: at + length });
        at += length;
      });
      return tokens;
    };
  }
  throw new FoveaError("unsupported", "tokenizer: only BPE, Unigram and WordPiece models are known");
}

const utf8 = new TextEncoder();

/** The library's BPE gives the merged symbols; what becomes of symbols that are no tokens is decided here. */
function bpeEncoder(model: BpeModel): (word: string) => WordToken[] {
  const ids = model.tokens_to_ids;
  const unknown = model.unk_token_id ?? undefined;
  const end = model.end_of_word_suffix ?? "";
  const inner = model.continuing_subword_suffix ?? "";
  const cutsAtMarks = end === "" && inner === "" && !model.ignore_merges && marksOnlyLead(model);

  const symbols = (word: string): string[] => {
    if (model.ignore_merges && ids.has(word)) return [word];
    if (!cutsAtMarks) return model.bpe(word);
    // No token goes on over a mark, so no merge does: words are merged alone, which is faster and can be remembered.
    return word.split(/(?<=[^▁])(?=▁)/u).flatMap((part) => model.bpe(part));
  };

  return (word) => {
    const tokens: WordToken[] = [];
    const list = symbols(word);
    let at = 0;
    let fused = false;
    list.forEach((symbol, i) => {
      const added = i === list.length - 1 ? end : inner;
      const from = at;
      at += added !== "" && symbol.endsWith(added) ? symbol.length - added.length : symbol.length;
      const id = ids.get(symbol);
      const bytes = id === undefined && model.byte_fallback ? byteTokens(symbol, ids) : undefined;
      if (id !== undefined) tokens.push({ id, from, to: at });
      else if (bytes) {
        // A suffix has bytes too, but no characters.
        const clamp = (n: number): number => Math.min(from + n, at);
        tokens.push(...bytes.map((byte) => ({ id: byte.id, from: clamp(byte.from), to: clamp(byte.to) })));
      } else if (unknown !== undefined && !(fused && model.fuse_unk)) tokens.push({ id: unknown, from, to: at });
      else if (tokens.length > 0) {
        // Characters without a token belong to the one before.
        tokens[tokens.length - 1].to = at;
      }
      fused = id === undefined && !bytes && unknown !== undefined;
    });
    return tokens;
  };
}

/** The `<0xE2>` tokens of a symbol, those of one character with its span; undefined when one of them is no token. */
function byteTokens(symbol: string, ids: ReadonlyMap<string, number>): WordToken[] | undefined {
  const tokens: WordToken[] = [];
  let at = 0;
  for (const character of symbol) {
    for (const byte of utf8.encode(character)) {
      const id = ids.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
      if (id === undefined) return undefined;
      tokens.push({ id, from: at, to: at + character.length });
    }
    at += character.length;
  }
  return tokens;
}

/** True for a SentencePiece vocabulary in which the mark of a space stands only at the beginning of tokens. */
function marksOnlyLead(model: BpeModel): boolean {
  if (!model.tokens_to_ids.has("▁")) return false;
  if (model.merges.length > 0) return model.merges.every(([left, right]) => !/[^▁]▁/u.test(left + right));
  for (const token of model.tokens_to_ids.keys()) if (/[^▁]▁/u.test(token)) return false;
  return true;
}

/** Ranks of merges by the score of what they make, in the place of the library's table of merges. */
class ScoreRanks extends Map<string, number> {
  private readonly ranks = new Map<string, number>();

  constructor(ids: ReadonlyMap<string, number>, scores: ArrayLike<number>) {
    super();
    const order = [...new Set(Array.from(scores))].sort((a, b) => b - a);
    const rank = new Map(order.map((score, i) => [score, i]));
    for (const [token, id] of ids) this.ranks.set(token, rank.get(scores[id]) ?? order.length);
  }

  override get(pair: string): number | undefined {
    const [left, right] = JSON.parse(pair) as [string, string];
    return this.ranks.get(left + right);
  }
}

/** Bytes as text; what is no whole character shows as `<0xE2>`. */
function showBytes(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    // Shown below, byte by byte where it must be.
  }
  let text = "";
  for (let at = 0; at < bytes.length; ) {
    const length = [1, 2, 3, 4].find((n) => at + n <= bytes.length && isCharacter(bytes.subarray(at, at + n)));
    if (length) text += new TextDecoder().decode(bytes.subarray(at, at + length));
    else text += `<0x${bytes[at].toString(16).toUpperCase().padStart(2, "0")}>`;
    at += length ?? 1;
  }
  return text;
}

function isCharacter(bytes: Uint8Array): boolean {
  try {
    new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    return true;
  } catch {
    return false;
  }
}
