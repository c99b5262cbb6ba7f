import { FoveaError } from "../../error.js";
import type { Span } from "../documents/index.js";
import { type Literal, parseLiteral } from "./literal.js";

/** The kinds of question that LooGLE has. */
export type LoogleKind = "short-qa" | "long-qa" | "reorder" | "cloze" | "summary";

/** One question of a LooGLE document. */
export interface LoogleQuestion {
  readonly kind: LoogleKind;
  readonly question: string;
  /** As text; a cloze's as JSON of mask to name. */
  readonly answer: string;
  /** The evidence as the data copies it. */
  readonly evidence: readonly string[];
}

export interface LoogleDocument {
  readonly title: string;
  readonly text: string;
  readonly questions: readonly LoogleQuestion[];
}

/**
 * Reads LooGLE's files: JSON lines with `input`, `title`, `output` and `qa_pairs`, the last a list or, as published, a string
 * that holds a Python literal. `output` is a summary or "none".
 * @throws FoveaError `bad-file` naming the line
 */
export function parseLoogle(text: string): LoogleDocument[] {
  return text
    .split("\n")
    .map((line, i) => [line, i + 1] as const)
    .filter(([line]) => line.trim() !== "")
    .map(([line, number]) => {
      try {
        return documentOf(JSON.parse(line) as Record<string, unknown>);
      } catch (cause) {
        const why = cause instanceof Error ? cause.message : String(cause);
        throw new FoveaError("bad-file", `LooGLE, line ${number}: ${why}`, {
          hint: "each line is a JSON object with input and qa_pairs or output",
          cause,
        });
      }
    });
}

function documentOf(record: Record<string, unknown>): LoogleDocument {
  const { input, title = "", output, qa_pairs: pairs } = record;
  if (typeof input !== "string") throw new FoveaError("bad-file", "there is no input");
  const list = typeof pairs === "string" ? (pairs === "none" ? [] : parseLiteral(pairs)) : ((pairs ?? []) as Literal);
  if (!Array.isArray(list)) throw new FoveaError("bad-file", "qa_pairs is no list");
  const questions = list.map(questionOf);
  if (typeof output === "string" && output !== "none")
    questions.push({ kind: "summary", question: "Summarise the text.", answer: output, evidence: [] });
  return { title: String(title), text: input, questions };
}

function questionOf(pair: Literal): LoogleQuestion {
  if (pair === null || typeof pair !== "object" || Array.isArray(pair))
    throw new FoveaError("bad-file", "a pair is no object");
  const { Q, A, S, type } = pair;
  const answer = typeof A === "object" && A !== null ? JSON.stringify(A) : String(A);
  const evidence = (Array.isArray(S) ? S : [S]).filter((s): s is string => typeof s === "string");
  return { kind: kindOf(A, type), question: String(Q), answer, evidence };
}

function kindOf(answer: Literal | undefined, type: Literal | undefined): LoogleKind {
  if (typeof answer === "object" && answer !== null && !Array.isArray(answer)) return "cloze";
  if (type === undefined) return "short-qa";
  return type === "timeline_reorder" ? "reorder" : "long-qa";
}

/**
 * Where evidence stands in a text, whatever its white space, quotes and note numbers; as a whole or, where sentences were
 * put together, sentence by sentence. Nothing for what is not found.
 */
export function locate(text: string, evidence: string): Span[] {
  const whole = find(text, evidence);
  if (whole) return [whole];
  return evidence
    .split(/(?<=[.!?])["”’']?\s+(?=["“'A-Z])/)
    .map((sentence) => find(text, sentence))
    .filter((span) => span !== undefined);
}

function find(text: string, evidence: string): Span | undefined {
  const words = evidence
    .replace(/\[\d+\]/g, "")
    .trim()
    .split(/\s+/);
  // a word alone is anywhere
  if (words.length < 2) return undefined;
  const pattern = words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replace(/["'“”‘’]+/g, "[\"'“”‘’]+"));
  const found = new RegExp(pattern.join("(?:\\[\\d+\\])*\\s+")).exec(text);
  return found ? [found.index, found.index + found[0].length] : undefined;
}

/** LooGLE's truncation: of a prompt that is too long, its first and its last `most / 2` tokens. */
export function keepEnds(ids: readonly number[], most: number): number[] {
  if (ids.length <= most) return [...ids];
  const first = Math.floor(most / 2);
  return [...ids.slice(0, first), ...ids.slice(ids.length - (most - first))];
}
