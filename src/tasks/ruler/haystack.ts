import { run } from "../documents/filler.js";
import type { Filler, Span } from "../documents/index.js";
import { Random } from "../documents/random.js";

/** Sentences that say nothing, over and over. */
export const NOISE = [
  "The rain falls on the roof.",
  "The river runs down to the sea.",
  "The wind turns the sails of the mill.",
  "The road leads over the hill.",
  "So it was, and so it will be.",
];

/** A text and where some of its pieces lie. */
export interface Marked {
  readonly text: string;
  readonly spans: readonly Span[];
}

/** Pieces joined, with the spans of those that are marked, in the order of `marked`. */
export function joinMarked(pieces: readonly string[], marked: readonly number[], between = " "): Marked {
  const starts: number[] = [];
  let at = 0;
  for (const piece of pieces) {
    starts.push(at);
    at += piece.length + between.length;
  }
  return { text: pieces.join(between), spans: marked.map((i) => [starts[i], starts[i] + pieces[i].length]) };
}

/**
 * Essays of n sentences with the needles between them, at distinct depths out of 40 that are equally spaced (the order of
 * the depths is drawn, so that the first needle is not always the earliest).
 */
export function inEssays(needles: readonly string[], n: number, filler: readonly Filler[], seed: string): Marked {
  const random = new Random(`${seed} essays`);
  const depths = random.shuffle(Array.from({ length: Math.max(40, needles.length) }, (_, i) => i));
  const sentences = take(run(filler, new Random(`${seed} prose`)), n);
  const slots = depths.length - 1;
  return insert(
    sentences,
    needles.map((_, i) => Math.round((depths[i] / slots) * n)),
    needles,
  );
}

/** n lines of filler (noise, or other needles) with the needles at distinct random lines, in their order if asked. */
export function inLines(
  needles: readonly string[],
  lines: readonly string[],
  seed: string,
  { ordered = false, between = "\n" }: { ordered?: boolean; between?: string } = {},
): Marked {
  const random = new Random(`${seed} lines`);
  const places = random.shuffle(Array.from({ length: lines.length + 1 }, (_, i) => i)).slice(0, needles.length);
  while (places.length < needles.length) places.push(lines.length);
  return insert(lines, ordered ? places.sort((a, b) => a - b) : places, needles, between);
}

/** Puts each needle before the filler piece of its place. */
function insert(
  filler: readonly string[],
  places: readonly number[],
  needles: readonly string[],
  between = " ",
): Marked {
  const order = needles.map((_, i) => i).sort((a, b) => places[a] - places[b] || a - b);
  const pieces: string[] = [];
  const at = new Array<number>(needles.length);
  let next = 0;
  for (const i of order) {
    for (; next < places[i]; next++) pieces.push(filler[next]);
    at[i] = pieces.length;
    pieces.push(needles[i]);
  }
  pieces.push(...filler.slice(next));
  return joinMarked(pieces, at, between);
}

export function take<T>(from: Iterator<T>, n: number): T[] {
  const out: T[] = [];
  for (let i = 0; i < n; i++) {
    const { value, done } = from.next();
    if (done) break;
    out.push(value);
  }
  return out;
}

/** Spans moved by what stands before them. */
export function moved(spans: readonly Span[], by: number): Span[] {
  return spans.map(([start, end]) => [start + by, end + by]);
}
