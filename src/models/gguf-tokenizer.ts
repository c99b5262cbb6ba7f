import { FoveaError } from "../error.js";
import type { GgufValue } from "./gguf.js";
import { describe, isObject } from "./json.js";
import { createTokenizer, type Tokenizer } from "./tokenizer.js";

/** The kinds of tokens in `tokenizer.ggml.token_type`. */
const TYPE = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

/** How a byte-level vocabulary splits text into words, under the names of `tokenizer.ggml.pre`. */
interface PreRow {
  /** Names in `tokenizer.ggml.pre`; the first is the one that is written. */
  names: readonly string[];
  /** Patterns that split the text one after the other. */
  patterns: readonly string[];
  /** A word that is a token needs no merges. */
  ignoreMerges?: true;
  /** BOS is added where the file does not say. */
  addsBos?: true;
  /** The families' own tokenizers normalize text so. */
  normalizer?: "NFC";
}

const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const REST = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const LLAMA3 = `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}${REST}`;
const QWEN2 = `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}${REST}`;
const QWEN35 = `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
const UPPER = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]";
const LOWER = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";
const WORD_HEAD = "[^\\r\\n\\p{L}\\p{N}]?";
const CASED_REST = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const GPT4O = `${WORD_HEAD}${UPPER}*${LOWER}+${CONTRACTIONS}?|${WORD_HEAD}${UPPER}+${LOWER}*${CONTRACTIONS}?|\\p{N}{1,3}${CASED_REST}`;
const TEKKEN = `${WORD_HEAD}${UPPER}*${LOWER}+|${WORD_HEAD}${UPPER}+${LOWER}*|\\p{N}${CASED_REST}`;

const PRE: readonly PreRow[] = [
  {
    names: ["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
    patterns: [LLAMA3],
    ignoreMerges: true,
    addsBos: true,
  },
  { names: ["dbrx", "smaug-bpe", "chatglm-bpe", "glm4"], patterns: [LLAMA3] },
  {
    names: ["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"],
    patterns: [QWEN2],
    normalizer: "NFC",
  },
  { names: ["qwen35"], patterns: [QWEN35] },
  {
    names: [
      "gpt-2",
      "phi-2",
      "mpt",
      "jais",
      "trillion",
      "granite-docling",
      "gigachat",
      "mellum",
      "modern-bert",
      "exaone4",
      "a.x-4.0",
      "jina-es",
      "jina-de",
      "jina-v2-es",
      "jina-v2-de",
      "jina-v2-code",
      "jina-v1-en",
      "roberta-bpe",
    ],
    patterns: [GPT2],
  },
  { names: ["olmo"], patterns: [GPT2], normalizer: "NFC" },
  {
    names: ["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
    patterns: ["\\p{N}", GPT2],
  },
  { names: ["falcon"], patterns: ["[\\p{P}\\$\\+<=>\\^~\\|`]+", GPT2, "[0-9][0-9][0-9]"] },
  { names: ["default"], patterns: ["[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"] },
  { names: ["tekken"], patterns: [TEKKEN], ignoreMerges: true, addsBos: true },
  { names: ["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], patterns: [GPT4O] },
  {
    names: ["deepseek-v3", "hunyuan-dense", "joyai-llm"],
    patterns: [
      "\\p{N}{1,3}",
      "[一-龥぀-ゟ゠-ヿ]+",
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    ],
  },
  {
    names: ["deepseek-coder"],
    patterns: ["[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[一-龥ࠀ-一가-퟿]+", "\\p{N}"],
  },
];

/** Tokens that end a turn in some family, whatever type a file gives them. */
const CONTROL_LOOKING = new Set([
  "<|eot_id|>",
  "<|im_end|>",
  "<|end|>",
  "<end_of_turn>",
  "<|endoftext|>",
  "<|end_of_text|>",
  "<|eom_id|>",
  "<EOT>",
  "[EOT]",
]);

/** A tokenizer in the form of tokenizer.json and tokenizer_config.json. */
export interface TokenizerFiles {
  tokenizer: Record<string, unknown>;
  config: Record<string, unknown>;
  /** Scores by id of a SentencePiece vocabulary, which decide its merges. */
  scores?: ArrayLike<number>;
}

/**
 * Makes the tokenizer that a GGUF file carries in its metadata.
 * @param metadata a GGUF file's metadata (`tokenizer.ggml.*`)
 * @throws FoveaError "bad-file" when the vocabulary is malformed, "unsupported" for an unknown model or pre-tokenizer
 */
export function tokenizerFromGguf(metadata: Readonly<Record<string, unknown>>): Tokenizer {
  const { tokenizer, config, scores } = ggufTokenizerFiles(metadata);
  return createTokenizer(tokenizer, config, scores);
}

/** What `tokenizerFromGguf` makes the tokenizer from: the contents of tokenizer.json and tokenizer_config.json. */
export function ggufTokenizerFiles(metadata: Readonly<Record<string, unknown>>): TokenizerFiles {
  const model = metadata["tokenizer.ggml.model"];
  const vocabulary = readVocabulary(metadata);
  if (model === "llama") return sentencePiece(metadata, vocabulary);
  if (model === "gpt2") return byteLevel(metadata, vocabulary);
  throw new FoveaError("unsupported", `GGUF: tokenizer model ${describe(model)} is not known`, {
    hint: 'Known are "llama" (SentencePiece) and "gpt2" (byte-level BPE).',
  });
}

interface Vocabulary {
  tokens: string[];
  types: ArrayLike<number>;
  vocab: Record<string, number>;
  bos: string | undefined;
  eos: string | undefined;
  unknown: string | undefined;
  pad: string | undefined;
}

function readVocabulary(metadata: Readonly<Record<string, unknown>>): Vocabulary {
  const list = metadata["tokenizer.ggml.tokens"];
  if (!Array.isArray(list) || list.length === 0 || !list.every((token) => typeof token === "string")) {
    throw new FoveaError("bad-file", "GGUF: tokenizer.ggml.tokens must be a list of strings", {
      hint: "The file carries no vocabulary; a tokenizer.json beside it may.",
    });
  }
  const tokens = list.map((token: string, id) => (token === "" ? `[EMPTY_${id}]` : token));
  const seen = new Map<string, number>();
  for (const [id, token] of tokens.entries()) {
    const before = seen.get(token);
    if (before !== undefined) {
      throw new FoveaError(
        "bad-file",
        `GGUF: the token ${describe(token)} is in the vocabulary twice (${before} and ${id})`,
      );
    }
    seen.set(token, id);
  }
  const types = numbers(metadata, "tokenizer.ggml.token_type", tokens.length) ?? new Int32Array(tokens.length).fill(1);
  const named = (key: string): string | undefined => {
    const id = metadata[`tokenizer.ggml.${key}_token_id`];
    return typeof id === "number" ? tokens[id] : undefined;
  };
  return {
    tokens,
    types,
    vocab: Object.fromEntries(seen),
    bos: named("bos"),
    eos: named("eos"),
    unknown: named("unknown"),
    pad: named("padding"),
  };
}

/** A list of numbers of the vocabulary's length, or nothing. */
function numbers(
  metadata: Readonly<Record<string, unknown>>,
  key: string,
  length: number,
): ArrayLike<number> | undefined {
  const value = metadata[key];
  if (value === undefined) return undefined;
  if (!(value instanceof Int32Array || value instanceof Float32Array) || value.length < length) {
    throw new FoveaError("bad-file", `GGUF: ${key} must be a list of ${length} numbers`);
  }
  return value;
}

/** Tokens that are read from the text before anything else, with what the model's family does about spaces beside them. */
function addedTokens(metadata: Readonly<Record<string, unknown>>, { tokens, types, bos, eos }: Vocabulary): object[] {
  const name = String(metadata["general.name"] ?? "").toLowerCase();
  const phi3 = metadata["general.architecture"] === "phi3" || name.includes("phi-3") || name.includes("phi3");
  const added: object[] = [];
  tokens.forEach((content, id) => {
    const ends = CONTROL_LOOKING.has(content) || content === bos || content === eos;
    const special = types[id] === TYPE.control || types[id] === TYPE.unknown || ends;
    if (!special && types[id] !== TYPE.userDefined) return;
    const rstrip = phi3 && !["<unk>", "<s>", "<|endoftext|>"].includes(content);
    added.push({ id, content, single_word: false, lstrip: false, rstrip, normalized: false, special });
  });
  return added;
}

function flag(metadata: Readonly<Record<string, unknown>>, key: string, fallback: boolean): boolean {
  const value = metadata[`tokenizer.ggml.${key}`];
  return typeof value === "boolean" ? value : fallback;
}

/** The post-processor and the configuration that say which tokens frame a text. */
function frame(
  metadata: Readonly<Record<string, unknown>>,
  { vocab, bos, eos, unknown, pad }: Vocabulary,
  byDefault: { bos: boolean },
): { post_processor: object | null; config: Record<string, unknown> } {
  const addsBos = flag(metadata, "add_bos_token", byDefault.bos) && bos !== undefined;
  const addsEos = flag(metadata, "add_eos_token", false) && eos !== undefined;
  const before = addsBos ? [bos] : [];
  const after = addsEos ? [eos] : [];
  const item = (id: string): object => ({ SpecialToken: { id, type_id: 0 } });
  const single = [...before.map(item), { Sequence: { id: "A", type_id: 0 } }, ...after.map(item)];
  const special = [...before, ...after].map((token): [string, object] => [
    token,
    { id: token, ids: [vocab[token]], tokens: [token] },
  ]);
  const template = metadata["tokenizer.chat_template"];
  return {
    post_processor:
      special.length === 0
        ? null
        : {
            type: "TemplateProcessing",
            single,
            pair: [...single, { Sequence: { id: "B", type_id: 1 } }],
            special_tokens: Object.fromEntries(special),
          },
    config: {
      ...(bos !== undefined && { bos_token: bos }),
      ...(eos !== undefined && { eos_token: eos }),
      ...(unknown !== undefined && { unk_token: unknown }),
      ...(pad !== undefined && { pad_token: pad }),
      ...(typeof template === "string" && { chat_template: template }),
      add_bos_token: addsBos,
      add_eos_token: addsEos,
      clean_up_tokenization_spaces: false,
      tokenizer_class: "PreTrainedTokenizerFast",
    },
  };
}

function sentencePiece(metadata: Readonly<Record<string, unknown>>, vocabulary: Vocabulary): TokenizerFiles {
  const { tokens, types, vocab } = vocabulary;
  const scores = numbers(metadata, "tokenizer.ggml.scores", tokens.length) ?? new Float32Array(tokens.length);
  const leadingSpace = flag(metadata, "add_space_prefix", true);
  const space = { type: "Replace", pattern: { String: " " }, content: "▁" };
  const back = [
    { type: "Replace", pattern: { String: "▁" }, content: " " },
    { type: "ByteFallback" },
    { type: "Fuse" },
  ];
  const unknown = vocabulary.unknown ?? tokens.find((_, id) => types[id] === TYPE.unknown);
  const { post_processor, config } = frame(metadata, vocabulary, { bos: true });
  let merges: [string, string][] | undefined;
  const model = {
    type: "BPE",
    dropout: null,
    unk_token: unknown ?? null,
    continuing_subword_prefix: null,
    end_of_word_suffix: null,
    fuse_unk: true,
    byte_fallback: true,
    ignore_merges: false,
    vocab,
    // The scores decide. The list, which can be a million long, is made for those who write it to a file.
    merges: [] as [string, string][],
  };
  return {
    tokenizer: {
      version: "1.0",
      truncation: null,
      padding: null,
      added_tokens: addedTokens(metadata, vocabulary),
      normalizer: leadingSpace ? { type: "Sequence", normalizers: [{ type: "Prepend", prepend: "▁" }, space] } : space,
      pre_tokenizer: null,
      post_processor,
      decoder: {
        type: "Sequence",
        decoders: leadingSpace ? [...back, { type: "Strip", content: " ", start: 1, stop: 0 }] : back,
      },
      model: {
        ...model,
        toJSON: () => ({ ...model, merges: (merges ??= mergesByScore(vocab, scores)) }),
      },
    },
    config,
    scores,
  };
}

/**
 * The merges of a SentencePiece vocabulary, as a BPE lists them: every pair of tokens whose joined text is a token, by
 * the score of that token. Equal in effect to merging by score but for ties, which a list cannot express.
 */
export function mergesByScore(vocab: Readonly<Record<string, number>>, scores: ArrayLike<number>): [string, string][] {
  const merges: { pair: [string, string]; id: number; order: number }[] = [];
  for (const [token, id] of Object.entries(vocab)) {
    const characters = [...token];
    let left = "";
    for (let i = 0; i + 1 < characters.length; i++) {
      left += characters[i];
      const right = token.slice(left.length);
      if (Object.hasOwn(vocab, left) && Object.hasOwn(vocab, right)) merges.push({ pair: [left, right], id, order: i });
    }
  }
  merges.sort((a, b) => scores[b.id] - scores[a.id] || a.id - b.id || a.order - b.order);
  return merges.map(({ pair }) => pair);
}

function byteLevel(metadata: Readonly<Record<string, unknown>>, vocabulary: Vocabulary): TokenizerFiles {
  const name = metadata["tokenizer.ggml.pre"] ?? "default";
  const row = PRE.find(({ names }) => names.includes(String(name)));
  if (!row) {
    throw new FoveaError("unsupported", `GGUF: pre-tokenizer ${describe(name)} is not known`, {
      hint: `Known are ${PRE.flatMap(({ names }) => names).join(", ")}.`,
    });
  }
  const merges = metadata["tokenizer.ggml.merges"];
  if (!Array.isArray(merges) || !merges.every((merge) => typeof merge === "string" && merge.indexOf(" ", 1) > 0)) {
    throw new FoveaError("bad-file", "GGUF: tokenizer.ggml.merges must be a list of pairs");
  }
  const bytes = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false };
  const { post_processor, config } = frame(metadata, vocabulary, { bos: row.addsBos === true });
  return {
    tokenizer: {
      version: "1.0",
      truncation: null,
      padding: null,
      added_tokens: addedTokens(metadata, vocabulary),
      normalizer: row.normalizer ? { type: row.normalizer } : null,
      pre_tokenizer: {
        type: "Sequence",
        pretokenizers: [
          ...row.patterns.map((Regex) => ({ type: "Split", pattern: { Regex }, behavior: "Isolated", invert: false })),
          bytes,
        ],
      },
      post_processor,
      decoder: bytes,
      model: {
        type: "BPE",
        dropout: null,
        unk_token: null,
        continuing_subword_prefix: "",
        end_of_word_suffix: "",
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: row.ignoreMerges === true,
        vocab: vocabulary.vocab,
        merges: merges.map((merge: string) => {
          const at = merge.indexOf(" ", 1);
          return [merge.slice(0, at), merge.slice(at + 1)];
        }),
      },
    },
    config,
  };
}

// ---- the other way ----

/**
 * The GGUF metadata of a tokenizer, for writing a model that llama.cpp runs.
 * @param vocabSize rows of the model's embedding, where there are more than tokens: the rest is padded
 * @param chatTemplate kept as `tokenizer.chat_template`
 * @throws FoveaError "unsupported" for a tokenizer that GGUF cannot express: only SentencePiece-like BPE with byte
 *   fallback and byte-level BPE with a known pre-tokenizer
 */
export function tokenizerToGguf(
  tokenizer: Tokenizer,
  { vocabSize = tokenizer.vocabSize, chatTemplate }: { vocabSize?: number; chatTemplate?: string } = {},
): Record<string, GgufValue> {
  const { tokenizer: json, config } = tokenizer.files;
  const model = json.model;
  if (!isObject(model) || (model.type !== undefined && model.type !== "BPE")) {
    throw new FoveaError("unsupported", "GGUF: only BPE tokenizers can be written");
  }
  const isBytes = steps(json.pre_tokenizer).some(({ type }) => type === "ByteLevel");
  if (!isBytes && model.byte_fallback !== true) {
    throw new FoveaError("unsupported", "GGUF: a BPE tokenizer needs a ByteLevel pre-tokenizer or byte fallback");
  }
  const { tokens, types } = listTokens(tokenizer, vocabSize, isBytes);
  const special = (name: string, id: number | undefined): Record<string, GgufValue> =>
    id === undefined ? {} : { [`tokenizer.ggml.${name}_token_id`]: { type: "u32", value: id } };
  const pad = isObject(config.pad_token) ? config.pad_token.content : config.pad_token;
  return {
    "tokenizer.ggml.model": { type: "string", value: isBytes ? "gpt2" : "llama" },
    "tokenizer.ggml.pre": { type: "string", value: isBytes ? preName(json, model) : "default" },
    "tokenizer.ggml.tokens": { type: "array", of: "string", value: tokens },
    ...(isBytes
      ? { "tokenizer.ggml.merges": { type: "array", of: "string", value: mergeStrings(model) } }
      : {
          "tokenizer.ggml.scores": { type: "array", of: "f32", value: listScores(tokenizer, model, vocabSize) },
          "tokenizer.ggml.add_space_prefix": { type: "bool", value: hasLeadingSpace(json) },
        }),
    "tokenizer.ggml.token_type": { type: "array", of: "i32", value: types },
    ...special("bos", tokenizer.bos),
    ...special("eos", tokenizer.eos),
    ...special("unknown", isBytes ? undefined : tokenizer.unknown),
    ...special("padding", typeof pad === "string" ? tokenizer.id(pad) : undefined),
    "tokenizer.ggml.add_bos_token": { type: "bool", value: tokenizer.addsBos },
    "tokenizer.ggml.add_eos_token": { type: "bool", value: tokenizer.addsEos },
    ...(chatTemplate !== undefined && { "tokenizer.chat_template": { type: "string", value: chatTemplate } }),
  };
}

/** A component, or the components of a sequence. */
function steps(component: unknown): Record<string, unknown>[] {
  if (!isObject(component)) return [];
  if (component.type !== "Sequence") return [component];
  const list = component.pretokenizers ?? component.normalizers ?? component.decoders;
  return Array.isArray(list) ? list.flatMap(steps) : [];
}

function listTokens(tokenizer: Tokenizer, vocabSize: number, isBytes: boolean): { tokens: string[]; types: number[] } {
  const added = tokenizer.files.tokenizer.added_tokens;
  const addedIds = new Set((Array.isArray(added) ? added : []).map((token: { id: number }) => token.id));
  const texts = new Set(tokenizer.vocabulary.values());
  const tokens: string[] = [];
  const types: number[] = [];
  for (let id = 0; id < vocabSize; id++) {
    const text = tokenizer.vocabulary.get(id);
    if (text === undefined) {
      tokens.push(`[PAD${id}]`);
      types.push(TYPE.unused);
    } else if (!isBytes && id === tokenizer.unknown) {
      tokens.push(text);
      types.push(TYPE.unknown);
    } else if (tokenizer.isSpecial(id)) {
      tokens.push(text);
      types.push(TYPE.control);
    } else if (addedIds.has(id)) {
      // llama.cpp looks for these in the text as it is, before spaces become marks.
      const plain = text.replaceAll("▁", " ");
      tokens.push(texts.has(plain) ? text : plain);
      types.push(TYPE.userDefined);
    } else {
      tokens.push(text);
      types.push(!isBytes && /^<0x[0-9A-F]{2}>$/.test(text) ? TYPE.byte : TYPE.normal);
    }
  }
  return { tokens, types };
}

function mergeStrings(model: Record<string, unknown>): string[] {
  return (model.merges as (string | [string, string])[]).map((merge) =>
    typeof merge === "string" ? merge : merge.join(" "),
  );
}

/** The scores that a SentencePiece vocabulary has, or scores that give the same merges in the same order. */
function listScores(tokenizer: Tokenizer, model: Record<string, unknown>, vocabSize: number): Float32Array {
  const scores = new Float32Array(vocabSize);
  const known = tokenizer.files.scores;
  if (known) {
    for (let id = 0; id < vocabSize; id++) scores[id] = known[id] ?? 0;
    return scores;
  }
  // What no merge makes comes last.
  const merges = mergeStrings(model);
  scores.fill(-merges.length - 1);
  merges.forEach((merge, rank) => {
    const id = tokenizer.id(merge.replace(" ", ""));
    // A score is a float32, exact up to 2^24; a token counts with the first merge that makes it.
    if (id !== undefined && id < vocabSize && scores[id] < -rank) scores[id] = -rank;
  });
  return scores;
}

function hasLeadingSpace(json: Readonly<Record<string, unknown>>): boolean {
  return (
    steps(json.normalizer).some(({ type }) => type === "Prepend") ||
    steps(json.pre_tokenizer).some(
      (step) => step.type === "Metaspace" && step.prepend_scheme !== "never" && step.add_prefix_space !== false,
    )
  );
}

/** The name in `tokenizer.ggml.pre` of a pre-tokenizer that does the same. */
function preName(json: Readonly<Record<string, unknown>>, model: Record<string, unknown>): string {
  const patterns = steps(json.pre_tokenizer).flatMap((step): string[] => {
    const { type, pattern } = step;
    if (type === "Split" && isObject(pattern)) return [String(pattern.Regex ?? pattern.String)];
    if (type === "Digits") return [step.individual_digits === true ? "\\p{N}" : "\\p{N}+"];
    if (type === "ByteLevel") return step.use_regex === false ? [] : [GPT2];
    return [`${type}`];
  });
  const same = PRE.filter((row) => row.patterns.map(canonical).join("\n") === patterns.map(canonical).join("\n"));
  const row =
    same.find((one) => (one.ignoreMerges ?? false) === (model.ignore_merges ?? false)) ?? same.find(() => true);
  if (!row) {
    throw new FoveaError("unsupported", `GGUF has no name for the pre-tokenizer ${describe(patterns.join("  "))}`, {
      hint: `It knows ${PRE.map(({ names }) => names[0]).join(", ")}.`,
    });
  }
  return row.names[0];
}

/** Spellings of one pattern that files differ in. */
function canonical(pattern: string): string {
  return pattern
    .replaceAll("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", CONTRACTIONS)
    .replaceAll("'(?i:[sdmt]|ll|ve|re)", CONTRACTIONS)
    .replaceAll(/([?+*}])\+/g, "$1");
}
