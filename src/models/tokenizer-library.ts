import * as library from "@huggingface/tokenizers";

// The package's own declarations import without file extensions, which Node's module resolution does not follow, so
// what is used of it is declared here.

/** A tokenizer's normalizer, such as NFC. */
export interface Normalizer {
  normalize(text: string): string;
  /** Of Replace only. */
  readonly pattern?: RegExp | null;
}

/** What splits text before the model sees it. */
export interface PreTokenizer {
  pre_tokenize_text(text: string, options?: object): string[];
  /** Of ByteLevel and Split only. */
  readonly pattern?: RegExp | null;
}

/** A vocabulary with an algorithm. */
export interface Model {
  (words: string[]): string[];
  encode(words: string[]): string[];
  readonly tokens_to_ids: Map<string, number>;
  readonly unk_token_id?: number | null;
  readonly unk_token?: string | null;
}

/** Byte-pair encoding. */
export interface BpeModel extends Model {
  /** The merged symbols of a word, tokens or not. */
  bpe(word: string): string[];
  readonly merges: [string, string][];
  /** The rank of each merge, by its JSON. */
  bpe_ranks: Map<string, number>;
  readonly byte_fallback: boolean;
  readonly ignore_merges: boolean;
  readonly fuse_unk: boolean;
  readonly end_of_word_suffix?: string | null;
  readonly continuing_subword_suffix?: string | null;
}

/** The most probable segmentation by pieces' log-probabilities. */
export interface UnigramModel extends Model {
  readonly scores: number[];
}

/** WordPiece, as in BERT. */
export interface WordPieceModel extends Model {
  readonly config: { continuing_subword_prefix?: string };
}

/** The whole tokenizer. */
export interface LibraryTokenizer {
  encode(text: string, options?: { add_special_tokens?: boolean }): { ids: number[]; tokens: string[] };
  decode(ids: number[], options?: { skip_special_tokens?: boolean; clean_up_tokenization_spaces?: boolean }): string;
  id_to_token(id: number): string | undefined;
  readonly model: Model;
  readonly post_processor: ((tokens: string[], pair: null, special: boolean) => { tokens: string[] }) | null;
}

type Make<T> = new (config?: unknown, more?: unknown) => T;

const classes = library as unknown as {
  Tokenizer: Make<LibraryTokenizer>;
  BPE: Make<BpeModel>;
  Unigram: Make<UnigramModel>;
  WordPiece: Make<WordPieceModel>;
  ReplaceNormalizer: Make<Normalizer>;
  StripAccentsNormalizer: Make<Normalizer>;
  BertNormalizer: Make<Normalizer>;
  PrecompiledNormalizer: Make<Normalizer>;
  ByteLevelPreTokenizer: Make<PreTokenizer>;
  SplitPreTokenizer: Make<PreTokenizer>;
  WhitespacePreTokenizer: Make<PreTokenizer>;
  WhitespaceSplitPreTokenizer: Make<PreTokenizer>;
  BertPreTokenizer: Make<PreTokenizer>;
  FixedLengthPreTokenizer: Make<PreTokenizer>;
};

export const {
  Tokenizer: HfTokenizer,
  BPE,
  Unigram,
  WordPiece,
  ReplaceNormalizer,
  StripAccentsNormalizer,
  BertNormalizer,
  PrecompiledNormalizer,
  ByteLevelPreTokenizer,
  SplitPreTokenizer,
  WhitespacePreTokenizer,
  WhitespaceSplitPreTokenizer,
  BertPreTokenizer,
  FixedLengthPreTokenizer,
} = classes;
