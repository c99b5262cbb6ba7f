import type { DocumentCase, Span } from "./types.js";

/** The tokens of the format, each one token of the tokenizer. */
export const SPECIAL_TOKENS = {
  begin: "<|begin|>",
  system: "<|system|>",
  user: "<|user|>",
  assistant: "<|assistant|>",
  end: "<|end|>",
} as const;

/** The special tokens in the order of their ids. */
export const SPECIAL_TOKEN_LIST: readonly string[] = Object.values(SPECIAL_TOKENS);

const { begin, user, assistant, end } = SPECIAL_TOKENS;

/**
 * The same format as a chat template in Jinja. What the assistant says follows a space, as words of a document do, so that
 * an answer has the tokens that it has in the document; a prompt ends in the assistant's token, never in a space.
 */
export const CHAT_TEMPLATE = [
  `{{ '${begin}' }}`,
  "{%- for message in messages -%}",
  "{%- if not loop.first %}{{ '\\n' }}{% endif -%}",
  "{{ '<|' + message['role'] + '|>' }}",
  "{%- if message['role'] == 'assistant' %}{{ ' ' }}{% endif -%}",
  `{{ message['content'] }}{{ '${end}' }}`,
  "{%- endfor -%}",
  `{%- if add_generation_prompt %}{{ '\\n${assistant}' }}{% endif -%}`,
].join("");

/** What the user says first: the document, then the question. */
export const userMessage = (document: string, question: string): string => `${document}\n\n${question}`;

/** The prompt that a question is put with, in measuring as in training. Encode it with `{ special: false }`. */
export function questionPrompt(document: string, question: string): string {
  return `${begin}${user}${userMessage(document, question)}${end}\n${assistant}`;
}

/** A text to train on. */
export interface TrainingText {
  /** Begins with the begin token. Encode it with `{ special: false }`. */
  readonly text: string;
  /** The document. */
  readonly document: Span;
  /** The answers, each with the space before it and the end token after it. */
  readonly answers: readonly Span[];
  /** Weight of each character, in UTF-16 units: [text.length]. */
  readonly weights: Float32Array;
}

/** Weights of the characters of a training text. */
export interface WeightOptions {
  /** Of answers. Default 10. */
  readonly answer?: number;
  /** Of everything else. Default 1. */
  readonly rest?: number;
}

/** A document and its questions as one conversation. */
export function trainingText(given: DocumentCase, options: WeightOptions = {}): TrainingText {
  const { answer: answerWeight = 10, rest = 1 } = options;
  const start = begin.length + user.length;
  const answers: Span[] = [];
  let text = `${begin}${user}${given.document}\n\n`;
  given.questions.forEach((question, i) => {
    text += `${i === 0 ? "" : `\n${user}`}${question.text}${end}\n${assistant}`;
    const from = text.length;
    text += ` ${question.answer}${end}`;
    answers.push([from, text.length]);
  });
  const weights = new Float32Array(text.length).fill(rest);
  for (const [from, to] of answers) weights.fill(answerWeight, from, to);
  return { text, document: [start, start + given.document.length], answers, weights };
}

/**
 * The weight of each token from those of its characters: the greatest of them.
 * @param offsets [start, end) of each token in the text, as a tokenizer gives them
 * @returns [tokens]
 */
export function tokenWeights(offsets: readonly Span[], weights: ArrayLike<number>): Float32Array {
  return Float32Array.from(offsets, ([start, end]) => {
    let weight = 0;
    for (let i = start; i < Math.max(end, start + 1) && i < weights.length; i++) weight = Math.max(weight, weights[i]);
    return weight;
  });
}

/** What `trainingTokens` needs of a tokenizer. */
export interface OffsetTokenizer {
  encode(text: string, options?: { special?: boolean }): { ids: ArrayLike<number>; offsets: readonly Span[] };
}

/** A case as tokens with their weights, ready to be packed into batches. */
export function trainingTokens(
  given: DocumentCase,
  tokenizer: OffsetTokenizer,
  options: WeightOptions = {},
): { ids: ArrayLike<number>; weights: Float32Array } {
  const { text, weights } = trainingText(given, options);
  const { ids, offsets } = tokenizer.encode(text, { special: false });
  return { ids, weights: tokenWeights(offsets, weights) };
}
