/** What a byte-level byte-pair vocabulary is made of. */
export interface ByteLevelVocabulary {
  /** Tokens by id: special ones first, then bytes and merges. */
  readonly pieces: readonly string[];
  readonly merges: readonly (readonly [string, string])[];
  readonly special: readonly string[];
  /** Token put before every text; null: none. */
  readonly begin: string | null;
  /** Whether every digit is a token of its own, or digits merge like letters. */
  readonly digits: "apart" | "together";
}

/** The tokenizer.json of a byte-level byte-pair tokenizer: SmolLM's form with digits apart, else GPT-2's. */
export function byteLevelTokenizer(vocabulary: ByteLevelVocabulary): Record<string, unknown> {
  const { pieces, merges, special, begin, digits } = vocabulary;
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
  const sequence = (id: string, type: number) => [
    { SpecialToken: { id: begin, type_id: type } },
    { Sequence: { id, type_id: type } },
  ];
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: special.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer:
      digits === "together"
        ? byteLevel
        : { type: "Sequence", pretokenizers: [{ type: "Digits", individual_digits: true }, byteLevel] },
    post_processor:
      begin === null
        ? null
        : {
            type: "TemplateProcessing",
            single: sequence("A", 0),
            pair: [...sequence("A", 0), ...sequence("B", 1)],
            special_tokens: { [begin]: { id: begin, ids: [special.indexOf(begin)], tokens: [begin] } },
          },
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      vocab: Object.fromEntries(pieces.map((piece, id) => [piece, id])),
      merges: merges.map(([a, b]) => `${a} ${b}`),
    },
  };
}
