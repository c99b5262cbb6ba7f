import { z } from "zod";

const place = z.int().min(0);
const isPair = ([start, end]: readonly number[]): boolean => start < end;
const pair = z.array(place).length(2).refine(isPair, "expected [start, end) with start below end");

/** One span of tokens, [start, end), or several: as `prompt.span(text)` gives them. */
export const spansParameter = z.union([pair, z.array(pair).min(1)]);

/** A span parameter as a list of spans. */
export function spansOf(parameter: z.output<typeof spansParameter>): readonly (readonly [number, number])[] {
  const list = typeof parameter[0] === "number" ? [parameter as number[]] : (parameter as number[][]);
  return list.map(([start, end]) => [start, end] as const);
}

/** Whether a position lies in one of the spans. */
export function inSpans(spans: readonly (readonly [number, number])[], position: number): boolean {
  return spans.some(([start, end]) => position >= start && position < end);
}
