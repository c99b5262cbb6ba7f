import { FoveaError } from "../error.js";
import type { Tokenizer } from "../models/index.js";
import type { Prompt, PromptInput } from "./api.js";

/** A text with its tokens and their characters. */
export class TokenizedPrompt implements Prompt {
  readonly text: string;
  readonly ids: readonly number[];
  readonly offsets: readonly (readonly [number, number])[];

  constructor(text: string, ids: readonly number[], offsets: readonly (readonly [number, number])[]) {
    this.text = text;
    this.ids = ids;
    this.offsets = offsets;
  }

  span(target: string | readonly [number, number]): readonly [number, number] {
    let start: number;
    let end: number;
    if (typeof target === "string") {
      start = this.text.indexOf(target);
      if (target === "" || start < 0)
        throw new FoveaError("not-found", `the prompt does not hold ${JSON.stringify(target.slice(0, 80))}`, {
          hint: "give the text exactly as it stands in the prompt, or a range of characters",
        });
      end = start + target.length;
    } else {
      [start, end] = target;
      if (!(start >= 0 && start < end && end <= this.text.length))
        throw new FoveaError(
          "bad-input",
          `characters ${start} to ${end} are no range of a prompt of ${this.text.length} characters`,
        );
    }
    let first = -1;
    let last = -1;
    this.offsets.forEach(([a, b], i) => {
      if (a < end && b > start) {
        if (first < 0) first = i;
        last = i;
      }
    });
    if (first < 0) throw new FoveaError("not-found", `no token covers characters ${start} to ${end} of the prompt`);
    return [first, last + 1];
  }
}

/** Token ids of any prompt input. A text gets the tokenizer's special tokens if it stands at a beginning. */
export function idsOf(input: PromptInput, tokenizer: Tokenizer, beginning: boolean): readonly number[] {
  if (typeof input === "string") return tokenizer.encode(input, { special: beginning }).ids;
  if ("offsets" in input) return input.ids;
  return input;
}
