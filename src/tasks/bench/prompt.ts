import type { Model, Prompt } from "../../engine/api.js";
import { FoveaError } from "../../error.js";
import type { Span } from "../documents/index.js";
import type { TaskQuestion } from "../task.js";

/** A question with its document, as tokens. */
export interface BenchPrompt {
  readonly ids: readonly number[];
  /** Tokens of the document with what stands before it: what is read before a question is known. */
  readonly documentTokens: number;
  /** Positions of the evidence's tokens. */
  readonly evidence: readonly number[];
  /** Tokens of the right answer, as they go on from the prompt. */
  readonly answer: readonly number[];
}

/**
 * How documents and questions are put to a model: by its chat template, or as plain text where it has none. A template's
 * turn stays open, so that the beginning of a reply may follow.
 */
export class PromptFormat {
  readonly #model: Model;
  readonly #chat: boolean;
  readonly #prefix: boolean;

  /** @param prefix whether the model is given the beginning of the reply, where a task has one. Default true */
  constructor(model: Model, prefix = true) {
    this.#model = model;
    this.#chat = hasTemplate(model);
    this.#prefix = prefix;
  }

  /** Tokens of a prompt. */
  tokens(document: string, question: string, prefix?: string): number {
    return this.#put(document, question, prefix).ids.length;
  }

  prompt(document: string, question: TaskQuestion): BenchPrompt {
    const prompt = this.#put(document, question.text, question.prefix);
    const { text, ids, offsets } = prompt;
    const start = text.indexOf(document);
    if (start < 0)
      throw new FoveaError("unsupported", "the model's chat template does not repeat the text that it is given");
    const end = start + document.length;
    // special tokens have no characters of their own
    const documentTokens = offsets.findIndex(([, to], i) => to > end && i > 0);
    return {
      ids,
      documentTokens: documentTokens < 0 ? ids.length : documentTokens,
      evidence: tokensOf(question.evidence, start, offsets),
      answer: this.#answer(prompt, question.answer),
    };
  }

  #put(document: string, question: string, prefix: string | undefined): Prompt {
    const content = `${document}\n\n${question}`;
    const begin = this.#prefix ? prefix : undefined;
    if (!this.#chat) return this.#model.prompt(`${content}\n${begin ?? "Answer:"}`);
    const prompt = this.#model.prompt([{ role: "user", content }]);
    if (begin === undefined) return prompt;
    return this.#model.prompt(`${prompt.text}${lead(prompt.text)}${begin}`, { special: false });
  }

  #answer({ text, ids }: Prompt, answer: string): number[] {
    const { tokenizer } = this.#model;
    const going = lead(text) + answer;
    const whole = this.#model.prompt(text + going, { special: !this.#chat }).ids;
    // a tokenizer may join the prompt's last token with the answer
    const stands = ids.every((id, i) => whole[i] === id);
    return [...(stands ? whole.slice(ids.length) : tokenizer.encode(going, { special: false }).ids)];
  }
}

function hasTemplate(model: Model): boolean {
  try {
    model.prompt([{ role: "user", content: "a" }]);
    return true;
  } catch (error) {
    if (error instanceof FoveaError && error.code === "unsupported") return false;
    throw error;
  }
}

/** Words follow a space, but for the first of a line. */
const lead = (text: string) => (/\s$/.test(text) ? "" : " ");

/** Tokens that overlap any of the spans, which count from `start`. */
function tokensOf(spans: readonly Span[], start: number, offsets: readonly (readonly [number, number])[]): number[] {
  return offsets.flatMap(([from, to], i) => (spans.some(([a, b]) => from < b + start && to > a + start) ? [i] : []));
}
