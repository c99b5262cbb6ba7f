import { FoveaError } from "../../error.js";
import type { Random } from "./random.js";
import type { Split } from "./types.js";

/** A genre's running prose, as sentences. */
export interface Filler {
  readonly genre: string;
  readonly split: Split;
  readonly sentences: readonly string[];
}

/**
 * Prose to put between facts. Paragraphs are separated by empty lines.
 * @throws FoveaError `bad-input` where a text holds no sentence
 */
export function filler(genre: string, text: string, split: Split = "train"): Filler {
  const sentences = text
    .split(/\n\s*\n/)
    .flatMap((paragraph) =>
      paragraph
        .replace(/\s+/g, " ")
        .trim()
        .split(/(?<=[.!?]["”’']?) (?=["“‘']?[A-Z])/),
    )
    .filter((sentence) => sentence.length > 0 && !/[|<>#]/.test(sentence));
  if (sentences.length === 0) throw new FoveaError("bad-input", `the filler text "${genre}" holds no sentence`);
  return { genre, split, sentences };
}

/** Sentences of one genre after the other, each a run from a random place, for as long as they are asked for. */
export function* run(texts: readonly Filler[], random: Random): Generator<string> {
  if (texts.length === 0) return;
  for (;;) {
    const { sentences } = random.pick(texts);
    const start = random.int(0, sentences.length - 1);
    const length = random.int(12, 60);
    for (let i = 0; i < length && start + i < sentences.length; i++) yield sentences[start + i];
  }
}
