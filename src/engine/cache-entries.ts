import { FoveaError } from "../error.js";
import { BASE_WORD, ENTRY_WORDS, PAGE, SLOT_WORD } from "../kernels/layout.js";
import type { Entries } from "./hooks.js";
import type { HeadPages } from "./pages.js";
import { countBits } from "./pages.js";

/** Most entries of a list that `writeEntries` makes for a head. */
export function entriesBound(entries: Entries, head: HeadPages): number {
  // pages with holes hold fewer entries, so that a range may span any number of them
  if (entries === "all" || !head.dense) return head.count;
  let n = 0;
  if ("ranges" in entries)
    for (const [start, end] of entries.ranges) n += Math.max(0, Math.ceil((end - start) / PAGE) + 1);
  else n = "pages" in entries ? entries.pages.length : entries.tokens.length;
  return Math.min(head.count, n);
}

/**
 * Writes the page-table entries that hold the selected stored entries, with masks, from word `to` on. Returns how many.
 * Pages of `{ pages }` are pages of 16 consecutive stored entries: page p is entries 16 p to 16 p + 15.
 */
export function writeEntries(words: Uint32Array, to: number, entries: Entries, head: HeadPages): number {
  const table = head.table >>> 2;
  const live = head.live;
  if (entries === "all") {
    words.copyWithin(to, table, table + head.count * ENTRY_WORDS);
    return head.count;
  }
  const list = new ListWriter(words, table, to, head);
  if ("ranges" in entries) {
    let done = 0;
    for (const [start, end] of orderedRanges(entries.ranges)) {
      list.range(Math.max(done, start), Math.min(live, end));
      done = Math.max(done, Math.min(live, end));
    }
  } else if ("pages" in entries) {
    if (head.dense) return copyPages(words, to, ascending(entries.pages), head);
    for (const page of ascending(entries.pages)) {
      if (page < 0 || page * PAGE >= live) throw outside("page", page, Math.ceil(live / PAGE));
      list.range(page * PAGE, Math.min(live, (page + 1) * PAGE));
    }
  } else {
    for (const token of ascending(entries.tokens)) {
      if (token < 0 || token >= live) throw outside("entry", token, live);
      list.range(token, token + 1);
    }
  }
  return list.finish();
}

/** Where every page but the last is full, pages of 16 entries are those of the table. */
function copyPages(words: Uint32Array, to: number, pages: Int32Array, head: HeadPages): number {
  const table = head.table >>> 2;
  let at = to;
  let before = -1;
  for (const page of pages) {
    if (page < 0 || page >= head.count) throw outside("page", page, head.count);
    if (page === before) continue;
    before = page;
    const entry = table + page * ENTRY_WORDS;
    words[at] = words[entry];
    words[at + 1] = words[entry + 1];
    words[at + 2] = words[entry + 2];
    words[at + 3] = words[entry + 3];
    at += ENTRY_WORDS;
  }
  return (at - to) / ENTRY_WORDS;
}

function outside(what: string, index: number, count: number): FoveaError {
  return new FoveaError("bad-input", `${what} ${index} was selected; the head holds ${count}, numbered from 0`, {
    hint: "selections count stored entries of a KV head, oldest first, not positions",
  });
}

/** Appends ascending ranges of entries to a list, page by page. */
class ListWriter {
  readonly #words: Uint32Array;
  readonly #table: number;
  readonly #start: number;
  readonly #head: HeadPages;
  #to: number;
  #page = -1;
  #mask = 0;

  constructor(words: Uint32Array, table: number, to: number, head: HeadPages) {
    this.#words = words;
    this.#table = table;
    this.#start = to;
    this.#to = to;
    this.#head = head;
  }

  range(start: number, end: number): void {
    const words = this.#words;
    let at = start;
    let page = at < end ? this.#head.pageOf(at) : 0;
    while (at < end) {
      const entry = this.#table + page * ENTRY_WORDS;
      const live = words[entry + SLOT_WORD] >>> 16;
      const base = words[entry + BASE_WORD];
      const stop = Math.min(end, base + countBits(live));
      if (page !== this.#page) this.#flush(page);
      this.#mask |= at === base && stop === base + countBits(live) ? live : ranked(live, at - base, stop - base);
      at = stop;
      page++;
    }
  }

  #flush(next: number): void {
    if (this.#page >= 0 && this.#mask !== 0) {
      const words = this.#words;
      const entry = this.#table + this.#page * ENTRY_WORDS;
      words[this.#to] = words[entry];
      words[this.#to + 1] = words[entry + 1];
      words[this.#to + SLOT_WORD] = (words[entry + SLOT_WORD] & 0xffff0000) | this.#mask;
      words[this.#to + BASE_WORD] = words[entry + BASE_WORD];
      this.#to += ENTRY_WORDS;
    }
    this.#page = next;
    this.#mask = 0;
  }

  finish(): number {
    this.#flush(-1);
    return (this.#to - this.#start) / ENTRY_WORDS;
  }
}

/** The bits of `live` whose rank among its ones is in [from, to). */
function ranked(live: number, from: number, to: number): number {
  if ((live & (live + 1)) === 0) return ((1 << to) - 1) & ~((1 << from) - 1);
  let out = 0;
  for (let rank = 0, m = live; m !== 0; rank++) {
    const bit = m & -m;
    m ^= bit;
    if (rank >= from && rank < to) out |= bit;
  }
  return out;
}

function ascending(list: Int32Array): Int32Array {
  for (let i = 1; i < list.length; i++) if (list[i] < list[i - 1]) return list.slice().sort();
  return list;
}

function orderedRanges(ranges: readonly (readonly [number, number])[]): readonly (readonly [number, number])[] {
  for (let i = 1; i < ranges.length; i++)
    if (ranges[i][0] < ranges[i - 1][0]) return [...ranges].sort((a, b) => a[0] - b[0]);
  return ranges;
}
