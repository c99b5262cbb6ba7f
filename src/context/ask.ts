import { type HeadList, sharpness } from "../attention/index.js";
import type { GenerateResult, MethodInput, Model, Progress, Prompt } from "../engine/api.js";
import { FoveaError } from "../error.js";

/** A text to ask about. */
export interface AskedDocument {
  readonly name: string;
  readonly text: string;
}

export interface AskOptions {
  readonly question: string;
  readonly documents: readonly AskedDocument[];
  /** Attention methods, as a string or attached; default: the model's own. */
  readonly attention?: MethodInput | readonly MethodInput[];
  /** Heads whose reading counts as evidence, e.g. the model's retrieval heads. Default all. */
  readonly heads?: Pick<HeadList, "heads">;
  /** Default 64. */
  readonly maxTokens?: number;
  /** Lines of evidence, at most. Default 3. */
  readonly lines?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: Progress) => void;
  /** The answer as it is written. */
  readonly onText?: (text: string) => void;
}

/** A line, or a sentence of a long line, that an answer rests on. */
export interface Evidence {
  /** Name of its document. */
  readonly document: string;
  /** Number of the line in it, from 1. */
  readonly line: number;
  /** Characters [start, end) of the document, in UTF-16 units. */
  readonly span: readonly [start: number, end: number];
  readonly text: string;
  /** Share of what the answer read sharply in the documents, 0..1. */
  readonly share: number;
}

export interface Answer {
  readonly text: string;
  /** Whether the answer stands word for word in one of the lines of evidence. */
  readonly supported: boolean;
  /** What was read most sharply while the answer was written, most first. */
  readonly evidence: readonly Evidence[];
  readonly finish: GenerateResult["finish"];
  /** Tokens of the prompt. */
  readonly prompt_tokens: number;
  readonly generated_tokens: number;
  /** Keys that the answer's first row attended to, mean over layers and heads, and those that there were. */
  readonly tokens_read: number;
  readonly depth: number;
  readonly cache_bytes: number;
  readonly prefill_ms: number;
  /** Median milliseconds of a written token; null where the first was the end. */
  readonly ms_per_token: number | null;
}

/** Lines longer than this are taken sentence by sentence. */
const LONG_LINE = 160;

/**
 * Answers a question from documents, and names the lines that the answer rests on: those that attention read most sharply
 * while it was written. That is where the model looked, which is not a proof that it read rightly; `supported` says whether
 * the answer stands there.
 *
 * @throws FoveaError `bad-input` without a question or a document; what `read` and `generate` throw
 */
export async function ask(model: Model, options: AskOptions): Promise<Answer> {
  const { question, documents, attention, maxTokens = 64, lines = 3, signal, onProgress, heads } = options;
  if (question.trim() === "") throw new FoveaError("bad-input", "the question is empty", { hint: "ask something" });
  if (!documents.some(({ text }) => text.trim() !== ""))
    throw new FoveaError("bad-input", "there is no text to answer from", { hint: "give a document that holds text" });
  const methods: readonly MethodInput[] =
    attention === undefined ? [] : Array.isArray(attention) ? attention : [attention as MethodInput];
  const { prompt, starts } = askPrompt(model, question, documents);
  // the last token of the prompt writes the answer's first one, and is the first row whose reading counts
  const last = prompt.ids.length - 1;
  const started = performance.now();
  await using reading = await model
    .with(...methods)
    .read(prompt.ids.slice(0, last), { ...(signal && { signal }), ...(onProgress && { onProgress }) });
  const prefill = performance.now() - started;
  const first = prompt.ids.slice(last);
  const generation = reading.generate(first, { maxTokens, ...(signal && { signal }) });
  for await (const { text } of generation) options.onText?.(text);
  const { ids, text, finish } = await generation.result;
  const rows = [...first, ...ids.slice(0, -1)];
  const measured = await reading.measure(first, { maxTokens: Math.max(2, ids.length), ...(signal && { signal }) });
  const { sharp } = await reading.observe(rows, { sharp: sharpness(heads ?? {}) }, signal && { signal });
  const evidence = ranked(documents, starts, prompt, sharp).slice(0, lines);
  const answer = text.trim();
  return {
    text: answer,
    supported: answer !== "" && evidence.some((line) => plain(line.text).includes(plain(answer))),
    evidence,
    finish,
    prompt_tokens: prompt.ids.length,
    generated_tokens: ids.length,
    tokens_read: measured.tokens_read,
    depth: measured.depth,
    cache_bytes: measured.cache_bytes,
    prefill_ms: prefill,
    ms_per_token: median(measured.step_ms),
  };
}

/** The prompt, by the model's chat template where it has one, and where each document begins in its text. */
function askPrompt(
  model: Model,
  question: string,
  documents: readonly AskedDocument[],
): { prompt: Prompt; starts: readonly number[] } {
  const texts = documents.map(({ name, text }) => (documents.length > 1 ? `${name}\n${text}` : text));
  const content = `${texts.join("\n\n")}\n\n${question}`;
  let prompt: Prompt;
  try {
    prompt = model.prompt([{ role: "user", content }]);
  } catch (error) {
    if (!(error instanceof FoveaError && error.code === "unsupported")) throw error;
    prompt = model.prompt(`${texts.join("\n\n")}\n\nQuestion: ${question}\nAnswer:`);
  }
  let from = 0;
  const starts = documents.map(({ text }) => {
    const at = prompt.text.indexOf(text, from);
    // a template may trim what it is given
    const found = at >= 0 ? at : prompt.text.indexOf(text.trim(), from) - (text.length - text.trimStart().length);
    from = found + text.length;
    return found;
  });
  return { prompt, starts };
}

/** Lines of the documents by how sharply they were read, most first. */
function ranked(
  documents: readonly AskedDocument[],
  starts: readonly number[],
  { offsets }: Prompt,
  sharp: Float64Array,
): Evidence[] {
  const found: Evidence[] = [];
  let total = 0;
  let token = 0;
  for (const [d, { name, text }] of documents.entries())
    for (const { line, span } of linesOf(text)) {
      const end = starts[d] + span[1];
      while (token < offsets.length && offsets[token][1] <= starts[d] + span[0]) token++;
      let score = 0;
      for (let t = token; t < offsets.length && offsets[t][0] < end; t++) score += sharp[t] ?? 0;
      total += score;
      found.push({ document: name, line, span, text: text.slice(...span), share: score });
    }
  const most = found.filter(({ share }) => share > 0).sort((a, b) => b.share - a.share || a.span[0] - b.span[0]);
  return most.map((line) => ({ ...line, share: line.share / total }));
}

/** Lines with text, long ones cut at the ends of sentences. */
export function linesOf(text: string): { line: number; span: readonly [number, number] }[] {
  const found: { line: number; span: readonly [number, number] }[] = [];
  let start = 0;
  text.split("\n").forEach((content, index) => {
    const pieces =
      content.length > LONG_LINE ? (content.match(/[^.!?]+(?:[.!?]+["')\]]*\s*|$)|[.!?]+\s*/g) ?? []) : [content];
    let at = start;
    for (const piece of pieces) {
      const from = at + (piece.length - piece.trimStart().length);
      const to = at + piece.trimEnd().length;
      if (to > from) found.push({ line: index + 1, span: [from, to] });
      at += piece.length;
    }
    start += content.length + 1;
  });
  return found;
}

/** Words without the signs around them, for comparing. */
const plain = (text: string): string =>
  ` ${
    text
      .toLowerCase()
      .match(/[\p{L}\p{N}]+/gu)
      ?.join(" ") ?? ""
  } `;

function median(values: readonly number[]): number | null {
  return [...values].sort((a, b) => a - b)[values.length >> 1] ?? null;
}
