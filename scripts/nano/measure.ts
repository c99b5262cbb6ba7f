/** Measuring a model on documents with known answers: each document is read once, and its questions are asked of that. */
import { mkdirSync, renameSync, writeFileSync } from "node:fs";
import type { Model, ModelShape } from "fovea";
import { type MeasuredHead, printHeadList, toHeadList } from "fovea/attention";
import { type DocumentOptions, generateDocument, type Kind, type Question, questionPrompt } from "fovea/tasks";

/** One question and what became of it. */
export interface Asked {
  readonly kind: Kind;
  readonly question: Question;
  readonly answer: string;
  readonly right: boolean;
  /** Where the answer's evidence lies in the document, 0..1. */
  readonly depth: number | undefined;
  /** Tokens of the prompt. */
  readonly tokens: number;
}

export interface MeasureOptions extends Omit<DocumentOptions, "seed" | "length"> {
  readonly kind: Kind;
  /** Tokens of a prompt, about. */
  readonly tokens: number;
  readonly documents: number;
  readonly seed: string;
  /** The questions of a document are put to the next one: what is answered without reading. */
  readonly shuffled?: boolean;
}

/** Characters a token. */
const DENSITY = { list: 1.75, prose: 2.75 };

/** Asks the questions of some documents. */
export async function askAll(model: Model, options: MeasureOptions): Promise<Asked[]> {
  const { tokens, documents, seed, shuffled = false, ...rest } = options;
  const list = rest.kind === "pairs" || rest.kind === "reversed";
  const length = Math.floor((tokens - 40) * (list ? DENSITY.list : DENSITY.prose));
  const make = (i: number) => {
    const made = { split: "held-out" as const, questions: 4, ...rest, seed: `${seed} ${tokens} ${i}` };
    const one = generateDocument({ ...made, length });
    // some documents take more tokens than usual: those get fewer characters
    const used = model.tokenizer.encode(one.document, { special: false }).ids.length;
    return used <= tokens - 64
      ? one
      : generateDocument({ ...made, length: Math.floor((length * (tokens - 64)) / used) });
  };
  const found: Asked[] = [];
  for (let i = 0; i < documents; i++) {
    const asked = make(i);
    const { document } = shuffled ? make(i + documents) : asked;
    found.push(...(await askOne(model, document, asked.questions)));
  }
  return found;
}

/** Reads a document once and asks questions of it. */
export async function askOne(model: Model, document: string, questions: readonly Question[]): Promise<Asked[]> {
  const prompts = questions.map((question) =>
    model.prompt(questionPrompt(document, question.text), { special: false }),
  );
  let shared = Math.min(...prompts.map(({ ids }) => ids.length - 1));
  for (const { ids } of prompts) {
    let same = 0;
    while (same < shared && ids[same] === prompts[0].ids[same]) same++;
    shared = same;
  }
  const reading = await model.read(prompts[0].ids.slice(0, shared));
  const found: Asked[] = [];
  try {
    for (const [i, question] of questions.entries()) {
      const rest = prompts[i].ids.slice(shared);
      const { text } = await reading.generate(rest, { maxTokens: 40 }).result;
      const answer = text.trim();
      const at = question.spans[0]?.[0];
      found.push({
        ...{ kind: question.kind, question, answer, right: answer === question.answer, tokens: prompts[i].ids.length },
        depth: at === undefined ? undefined : at / document.length,
      });
    }
  } finally {
    await reading.close();
  }
  return found;
}

/** A share with its 95% interval (Wilson's), in percent: "93.5 (90.1-95.9)". */
export function share(right: number, all: number): string {
  if (all === 0) return "-";
  const { low, high } = wilson(right, all);
  const percent = (x: number): string => (100 * x).toFixed(1);
  return `${percent(right / all)} (${percent(low)}-${percent(high)})`;
}

export function wilson(right: number, all: number): { low: number; high: number } {
  const z = 1.96;
  const p = right / all;
  const middle = (p + (z * z) / (2 * all)) / (1 + (z * z) / all);
  const half = (z * Math.sqrt((p * (1 - p)) / all + (z * z) / (4 * all * all))) / (1 + (z * z) / all);
  return { low: Math.max(0, middle - half), high: Math.min(1, middle + half) };
}

export const rightShare = (asked: readonly Asked[]): string => share(asked.filter((a) => a.right).length, asked.length);

/** Some heads at random, the same for a seed. */
export function pick<T>(list: readonly T[], count: number, seed: number): T[] {
  let state = (0x9e3779b9 * (seed + 1)) >>> 0;
  const left = [...list];
  return Array.from({ length: Math.min(count, left.length) }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    // the low bits of this generator repeat soon
    return left.splice(Math.floor((state / 2 ** 32) * left.length), 1)[0];
  });
}

/** Lines that are printed and kept for a file. */
export class Report {
  readonly #lines: string[] = [];

  print(...lines: readonly string[]): void {
    for (const line of lines) console.log(line);
    this.#lines.push(...lines);
  }

  get text(): string {
    return this.#lines.join("\n").trimEnd();
  }
}

/** Writes a file under another name and renames it. */
export function writeAtomic(file: string, text: string): void {
  writeFileSync(`${file}.tmp`, text);
  renameSync(`${file}.tmp`, file);
}

/** The files of methods for nano, each bound to its hash. */
export const METHODS = "models/nano/methods";

/** Writes the best of some ranked heads as a head list. */
export function writeHeads(
  ranked: readonly MeasuredHead[],
  about: { readonly model: ModelShape; readonly name: string; readonly keep: number; readonly madeBy: string },
): void {
  mkdirSync(METHODS, { recursive: true });
  writeAtomic(`${METHODS}/${about.name}.json`, printHeadList(toHeadList(ranked, about)));
}
