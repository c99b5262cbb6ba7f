import type { Span } from "./types.js";

// Documents are put together as text with marks, so that every span is exact however the pieces are laid out.
const OPEN = "\u0001";
const LABEL = "\u0002";
const CLOSE = "\u0003";

/** Marks a piece of text with a label; marks nest. */
export function mark(label: string, text: string): string {
  return `${OPEN}${label}${LABEL}${text}${CLOSE}`;
}

/** The text and the spans of each label, in order. */
export function unmark(marked: string): { text: string; spans: Map<string, Span[]> } {
  const spans = new Map<string, Span[]>();
  const open: { label: string; start: number }[] = [];
  let text = "";
  for (let i = 0; i < marked.length; i++) {
    if (marked[i] === OPEN) {
      const end = marked.indexOf(LABEL, i);
      open.push({ label: marked.slice(i + 1, end), start: text.length });
      i = end;
    } else if (marked[i] === CLOSE) {
      const { label, start } = open.pop()!;
      const list = spans.get(label);
      if (list) list.push([start, text.length]);
      else spans.set(label, [[start, text.length]]);
    } else text += marked[i];
  }
  return { text, spans };
}

/** The text alone. */
export const plain = (marked: string): string => unmark(marked).text;

/** Capitalises the first letter unless it is marked: marked text stays verbatim. */
export function capitalise(marked: string): string {
  return marked[0] === OPEN ? marked : marked[0].toUpperCase() + marked.slice(1);
}
