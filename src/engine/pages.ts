import { FoveaError } from "../error.js";
import {
  AppendField,
  BASE_WORD,
  ENTRY_WORDS,
  Kind,
  PAGE,
  RECORD_WORDS,
  ReadField,
  SLOT_WORD,
} from "../kernels/layout.js";
import { type Bank, identityPositions, type StoredShape } from "./pages-bank.js";

const FULL = 0xffff;
/** Slots without an entry that are worth re-encoding pages for. */
const HOLES = 32;

/** Rows of a source in memory: the first row's address of keys and values; how far the next rows lie is the job's. */
export interface SourceRows {
  readonly k: number;
  readonly v: number;
  readonly keyStride: number;
  readonly valueStride: number;
}

/** A head's pages at a point in time. See `HeadPages.mark`. */
export interface HeadMark {
  readonly sealed: number;
  readonly fill: number;
  readonly slots: number;
  readonly openK: number;
  readonly openV: number;
  readonly live: number;
  readonly holes: boolean;
  readonly positions?: Int32Array;
  /** The sealed entries, if eviction changed them since. */
  saved?: Uint32Array;
}

/**
 * The pages of one KV head in one layer: a page table in the kernels' memory whose last page may be open (float32,
 * still filling). A slot whose entry was evicted is cleared in the page's slots word; the page itself does not change,
 * so pages are shared freely. Entries are counted in the order of the table, oldest first.
 */
export class HeadPages {
  readonly #bank: Bank;
  readonly #shape: StoredShape;
  /** Index, in 32-bit words, of {address of the table, entries}: what jobs read. */
  readonly #header: number;
  #table = 0;
  #capacity = 0;
  /** Full pages; the open one follows. */
  #sealed = 0;
  #fill = 0;
  #openK = 0;
  #openV = 0;
  #live = 0;
  /** True when some page but the open one lacks entries: then an entry's page is searched. */
  #holes = false;
  /** Absolute positions; absent while they are 0, 1, 2, ... */
  #positions?: Int32Array;
  /** Pages taken ahead of an append. */
  readonly #spare: number[] = [];
  #nextOpenK = 0;
  #nextOpenV = 0;

  constructor(bank: Bank, shape: StoredShape, header: number) {
    this.#bank = bank;
    this.#shape = shape;
    this.#header = header >>> 2;
    this.#writeHeader();
  }

  /** Stored entries. */
  get live(): number {
    return this.#live;
  }

  /** Entries of the page table. */
  get count(): number {
    return this.#sealed + (this.#fill > 0 ? 1 : 0);
  }

  get table(): number {
    return this.#table;
  }

  get sealed(): number {
    return this.#sealed;
  }

  get fill(): number {
    return this.#fill;
  }

  /** True when every page but the last is full of entries: entry i lies in page i / 16. */
  get dense(): boolean {
    return !this.#holes;
  }

  /** Bytes of the head's pages and table; shared pages count whole. */
  get bytes(): number {
    const { memory } = this.#bank;
    const open = this.#openK === 0 ? 0 : this.#shape.openKeyBytes + this.#shape.openValueBytes;
    const table = this.#capacity > 0 ? memory.sizeOf(this.#table) : 0;
    return this.#sealed * (this.#shape.keyBytes + this.#shape.valueBytes) + open + table;
  }

  /** Absolute positions of the stored entries. Not to be written to. */
  get positions(): Int32Array {
    return this.#positions ? this.#positions.subarray(0, this.#live) : identityPositions(this.#live);
  }

  get explicitPositions(): boolean {
    return this.#positions !== undefined;
  }

  /** Most records that an append of n rows makes. */
  static records(n: number): number {
    return Math.ceil(n / PAGE) + 1;
  }

  /** Takes what an append of n rows needs, so that `commit` cannot fail. Throws out-of-memory. */
  prepare(n: number): void {
    const { memory } = this.#bank;
    const shape = this.#shape;
    const total = this.#fill + n;
    const full = Math.floor(total / PAGE);
    const rest = total - full * PAGE;
    this.#ensureTable(this.#sealed + full + (rest > 0 ? 1 : 0));
    const float = shape.type === "float32";
    // float32 pages are filled where they stay; the open one, if there is one, is the first of them
    const wanted = float ? full - (this.#openK !== 0 && full > 0 ? 1 : 0) : full;
    while (this.#spare.length < wanted * 2) {
      this.#spare.push(memory.alloc(shape.keyBytes));
      this.#spare.push(memory.alloc(shape.valueBytes));
    }
    // a job that seals the open page and begins the next one needs both at once
    const fresh = rest > 0 && (this.#openK === 0 || (full > 0 && (float || this.#fill > 0)));
    if (fresh && this.#nextOpenK === 0) {
      this.#nextOpenK = memory.alloc(shape.openKeyBytes);
      this.#nextOpenV = memory.alloc(shape.openValueBytes);
    }
  }

  /** Gives back what `prepare` took and `commit` has not used. */
  unprepare(): void {
    const { memory } = this.#bank;
    for (const page of this.#spare) memory.free(page);
    this.#spare.length = 0;
    if (this.#nextOpenK !== 0) memory.free(this.#nextOpenK);
    if (this.#nextOpenV !== 0) memory.free(this.#nextOpenV);
    this.#nextOpenK = 0;
    this.#nextOpenV = 0;
  }

  /**
   * Enters n rows into the table and writes the records of the job that fills their pages, from word `record` on.
   * `position`: that of the first row, or one a row. Returns the word after the last record. `prepare(n)` came before.
   */
  commit(n: number, source: SourceRows, position: number | Int32Array, record: number): number {
    const { memory } = this.#bank;
    const words = memory.u32;
    const int8 = this.#shape.type === "int8";
    this.#pushPositions(n, position);
    let left = n;
    let { k, v } = source;
    let spare = 0;
    let at = record;
    while (left > 0) {
      const slot = this.#fill;
      const rows = Math.min(left, PAGE - slot);
      const whole = slot + rows === PAGE;
      const direct = int8 && whole && slot === 0;
      if (!direct && this.#openK === 0) {
        if (whole) {
          this.#openK = this.#spare[spare++];
          this.#openV = this.#spare[spare++];
        } else {
          this.#openK = this.#nextOpenK;
          this.#openV = this.#nextOpenV;
          this.#nextOpenK = 0;
          this.#nextOpenV = 0;
        }
      }
      const sealK = int8 && whole ? this.#spare[spare++] : 0;
      const sealV = int8 && whole ? this.#spare[spare++] : 0;
      words[at] = k;
      words[at + 1] = v;
      words[at + 2] = rows;
      words[at + 3] = slot;
      words[at + 4] = direct ? 0 : this.#openK;
      words[at + 5] = direct ? 0 : this.#openV;
      words[at + 6] = sealK;
      words[at + 7] = sealV;
      at += RECORD_WORDS;

      const entry = (this.#table >>> 2) + this.#sealed * ENTRY_WORDS;
      const bits = ((1 << rows) - 1) << slot;
      const before = slot === 0 ? 0 : words[entry + SLOT_WORD];
      if (slot === 0) words[entry + BASE_WORD] = this.#live;
      words[entry] = int8 && whole ? sealK | 1 : this.#openK;
      words[entry + 1] = int8 && whole ? sealV | 1 : this.#openV;
      words[entry + SLOT_WORD] = before | bits | (bits << 16);
      this.#live += rows;
      this.#fill += rows;
      if (whole) {
        if (!int8) {
          this.#openK = 0; // it stays where it is, full
          this.#openV = 0;
        } else if (!direct && (left > rows || memory.references(this.#openK) > 1)) this.#dropOpen();
        this.#sealed++;
        this.#fill = 0;
      }
      left -= rows;
      k += rows * source.keyStride;
      v += rows * source.valueStride;
    }
    this.#spare.splice(0, spare);
    this.#writeHeader();
    return at;
  }

  /** Frees the open page, or this head's share in it. */
  #dropOpen(): void {
    if (this.#openK === 0) return;
    this.#bank.memory.free(this.#openK);
    this.#bank.memory.free(this.#openV);
    this.#openK = 0;
    this.#openV = 0;
  }

  #pushPositions(n: number, position: number | Int32Array): void {
    if (!this.#positions) {
      const first = typeof position === "number" ? position : position[0];
      let identity = first === this.#live;
      if (identity && typeof position !== "number") identity = position[n - 1] === first + n - 1;
      if (identity || n === 0) return;
      this.#positions = identityPositions(this.#live).slice();
    }
    if (this.#positions.length < this.#live + n) {
      const grown = new Int32Array((this.#live + n) * 2);
      grown.set(this.#positions.subarray(0, this.#live));
      this.#positions = grown;
    }
    for (let i = 0; i < n; i++)
      this.#positions[this.#live + i] = typeof position === "number" ? position + i : position[i];
  }

  /** Index of the first stored entry of a page (`live` for the number of pages itself). */
  firstOf(page: number): number {
    if (page >= this.count) return this.#live;
    return this.#bank.memory.u32[(this.#table >>> 2) + page * ENTRY_WORDS + BASE_WORD];
  }

  /** Index of the page that holds the stored entry `index` (the number of pages for `live` itself). */
  pageOf(index: number): number {
    if (!this.#holes) return index >>> 4;
    const words = this.#bank.memory.u32;
    const bases = (this.#table >>> 2) + BASE_WORD;
    let low = 0;
    let high = this.count;
    while (low + 1 < high) {
      const middle = (low + high) >> 1;
      if (words[bases + middle * ENTRY_WORDS] <= index) low = middle;
      else high = middle;
    }
    return index >= this.#live ? this.count : low;
  }

  /**
   * Keeps the stored entries with these indices (ascending, each once) and drops the others. Pages without entries are
   * freed; where neighbouring pages have become sparse their entries are moved together, int8 ones by encoding them
   * again. `marks` of the head stay valid.
   */
  keep(indices: Int32Array, marks: readonly HeadMark[]): void {
    checkIndices(indices, this.#live);
    if (indices.length === this.#live) return;
    for (const mark of marks) this.#save(mark);
    const { memory } = this.#bank;
    const words = memory.u32;
    const from = this.positions;
    let prefix = this.#positions === undefined;
    const positions = prefix ? undefined : new Int32Array(Math.max(16, indices.length + (indices.length >> 1)));
    if (positions) for (let i = 0; i < indices.length; i++) positions[i] = from[indices[i]];
    else if (indices.length > 0) prefix = indices[indices.length - 1] === indices.length - 1;

    const pages = this.count;
    let next = 0;
    let to = this.#table >>> 2;
    let keptSealed = 0;
    for (let page = 0, entry = to; page < pages; page++, entry += ENTRY_WORDS) {
      let live = words[entry + SLOT_WORD] >>> 16;
      const first = words[entry + BASE_WORD];
      const last = first + countBits(live) - 1;
      let kept = 0;
      if (indices[next] === first && indices[next + last - first] === last) {
        kept = live; // ascending, so all between are there too
        next += last - first + 1;
        live = 0;
      } else if (!(indices[next] <= last)) live = 0;
      for (let rank = first; live !== 0 && next < indices.length; rank++) {
        const bit = live & -live;
        live ^= bit;
        if (indices[next] === rank) {
          kept |= bit;
          next++;
        }
      }
      const open = page === this.#sealed;
      if (kept === 0) {
        if (!open) {
          memory.free(pageAddress(words[entry]));
          memory.free(pageAddress(words[entry + 1]));
        } else {
          this.#fill = 0;
          // someone who marked this page still counts on its rows
          if (memory.references(this.#openK) > 1) this.#dropOpen();
        }
        continue;
      }
      words[to] = words[entry];
      words[to + 1] = words[entry + 1];
      words[to + SLOT_WORD] = kept | (kept << 16);
      to += ENTRY_WORDS;
      if (!open) keptSealed++;
    }
    this.#sealed = keptSealed;
    this.#live = indices.length;
    this.#positions = positions ?? (prefix ? undefined : pad(indices));
    this.#recount();
    this.#compact();
    this.#writeHeader();
  }

  /** Base words, and whether there are holes. */
  #recount(): void {
    const words = this.#bank.memory.u32;
    let base = 0;
    let holes = false;
    let entry = this.#table >>> 2;
    for (let page = 0; page < this.count; page++, entry += ENTRY_WORDS) {
      words[entry + BASE_WORD] = base;
      const live = words[entry + SLOT_WORD] >>> 16;
      base += countBits(live);
      if (page < this.#sealed ? live !== FULL : live !== (1 << this.#fill) - 1) holes = true;
    }
    this.#holes = holes;
  }

  /** Moves the entries of runs of sparse pages together where that frees pages. */
  #compact(): void {
    const { memory } = this.#bank;
    const table = this.#table >>> 2;
    const livesOf = (page: number) => countBits(memory.u32[table + page * ENTRY_WORDS + SLOT_WORD] >>> 16);
    const live = this.#live - (this.#fill > 0 ? livesOf(this.#sealed) : 0);
    const holes = this.#sealed * PAGE - live;
    if (holes < HOLES || holes * 4 < live) return;
    const lives = Array.from({ length: this.#sealed }, (_, page) => livesOf(page));
    const runs: { start: number; end: number; entries: number }[] = [];
    for (let i = 0; i < this.#sealed; i++) {
      if (lives[i] === PAGE) continue;
      const start = i;
      let entries = 0;
      while (i < this.#sealed && lives[i] < PAGE) entries += lives[i++];
      if (Math.ceil(entries / PAGE) < i - start) runs.push({ start, end: i, entries });
    }
    if (runs.length === 0) return;
    const { storedKeyDim, storedValueDim, keyBytes, valueBytes, type } = this.#shape;
    const fresh: number[] = [];
    const total = runs.reduce((n, r) => n + r.entries, 0);
    const newPages = runs.reduce((n, r) => n + Math.ceil(r.entries / PAGE), 0);
    const oldPages = runs.reduce((n, r) => n + r.end - r.start, 0);
    let lists: number;
    let rows: number;
    let records: number;
    try {
      lists = this.#bank.lists.ensure(oldPages * ENTRY_WORDS * 4);
      rows = this.#bank.staging.ensure(total * (storedKeyDim + storedValueDim) * 4);
      records = this.#bank.records.ensure(newPages * RECORD_WORDS * 4) >>> 2;
      for (let i = 0; i < newPages; i++) fresh.push(memory.alloc(keyBytes), memory.alloc(valueBytes));
    } catch (error) {
      // the entries are gone already; their slots go when there is room to move the others
      for (const page of fresh) memory.free(page);
      if (error instanceof FoveaError && error.code === "out-of-memory") return;
      throw error;
    }
    const words = memory.u32;
    let base = 0;
    let to = lists >>> 2;
    for (const run of runs)
      for (let i = run.start; i < run.end; i++, to += ENTRY_WORDS) {
        const entry = table + i * ENTRY_WORDS;
        words.copyWithin(to, entry, entry + ENTRY_WORDS);
        words[to + BASE_WORD] = base;
        base += lives[i];
      }
    const values = rows + total * storedKeyDim * 4;
    readEntries(this.#bank, this.#shape, lists, oldPages, rows, values);

    // the table again: pages of runs replaced
    const moved: number[] = [];
    let row = 0;
    let next = 0;
    let record = records;
    let page = 0;
    for (const run of runs) {
      for (; page < run.start; page++) pushEntry(moved, words, table + page * ENTRY_WORDS);
      for (; page < run.end; page++) {
        memory.free(pageAddress(words[table + page * ENTRY_WORDS]));
        memory.free(pageAddress(words[table + page * ENTRY_WORDS + 1]));
      }
      for (let left = run.entries; left > 0; left -= PAGE) {
        const count = Math.min(PAGE, left);
        const k = fresh[next++];
        const v = fresh[next++];
        const int8 = type === "int8";
        const bits = (1 << count) - 1;
        words.set(
          [
            rows + row * storedKeyDim * 4,
            values + row * storedValueDim * 4,
            count,
            0,
            ...(int8 ? [0, 0, k, v] : [k, v, 0, 0]),
          ],
          record,
        );
        record += RECORD_WORDS;
        row += count;
        moved.push(int8 ? k | 1 : k, int8 ? v | 1 : v, (bits | (bits << 16)) >>> 0, 0);
      }
    }
    for (; page < this.count; page++) pushEntry(moved, words, table + page * ENTRY_WORDS);
    appendRecords(this.#bank, this.#shape, (record - records) / RECORD_WORDS, storedKeyDim * 4, storedValueDim * 4);
    words.set(moved, table);
    this.#sealed += newPages - oldPages;
    this.#recount();
  }

  /** A point to come back to. Until `rollback` or `forget` it owns a share of the open page. */
  mark(): HeadMark {
    const { memory } = this.#bank;
    const open = this.#fill > 0;
    if (open) {
      memory.retain(this.#openK);
      memory.retain(this.#openV);
    }
    return {
      sealed: this.#sealed,
      fill: this.#fill,
      slots: open ? memory.u32[(this.#table >>> 2) + this.#sealed * ENTRY_WORDS + SLOT_WORD] : 0,
      openK: open ? this.#openK : 0,
      openV: open ? this.#openV : 0,
      live: this.#live,
      holes: this.#holes,
      positions: this.#positions,
    };
  }

  /** Copies a mark's page table before eviction changes it. */
  #save(mark: HeadMark): void {
    if (mark.saved) return;
    const { memory } = this.#bank;
    const start = this.#table >>> 2;
    mark.saved = memory.u32.slice(start, start + mark.sealed * ENTRY_WORDS);
    for (let i = 0; i < mark.saved.length; i += ENTRY_WORDS) {
      memory.retain(pageAddress(mark.saved[i]));
      memory.retain(pageAddress(mark.saved[i + 1]));
    }
  }

  /** Gives back what a mark owns. */
  forget(mark: HeadMark): void {
    const { memory } = this.#bank;
    if (mark.openK !== 0) {
      memory.free(mark.openK);
      memory.free(mark.openV);
    }
    for (let i = 0; mark.saved && i < mark.saved.length; i += ENTRY_WORDS) {
      memory.free(pageAddress(mark.saved[i]));
      memory.free(pageAddress(mark.saved[i + 1]));
    }
  }

  /** Back to a mark, which is used up. Throws out-of-memory if an open page that a fork shares cannot be copied. */
  rollback(mark: HeadMark): void {
    const { memory } = this.#bank;
    if (mark.saved) this.#ensureTable(mark.sealed + 1);
    let { openK, openV } = mark;
    // a float32 page that was filled since may belong to a fork by now, whole: it must not be written to again
    const own =
      mark.sealed < this.#sealed && memory.u32[(this.#table >>> 2) + mark.sealed * ENTRY_WORDS] === openK ? 1 : 0;
    if (openK !== 0 && this.#shape.type === "float32" && openK !== this.#openK && memory.references(openK) > 1 + own) {
      const copyK = memory.alloc(this.#shape.openKeyBytes);
      try {
        openV = memory.alloc(this.#shape.openValueBytes);
      } catch (error) {
        memory.free(copyK);
        throw error;
      }
      memory.u8.copyWithin(copyK, openK, openK + this.#shape.openKeyBytes);
      memory.u8.copyWithin(openV, mark.openV, mark.openV + this.#shape.openValueBytes);
      openK = copyK;
      memory.free(mark.openK);
      memory.free(mark.openV);
    }
    const words = memory.u32;
    const table = this.#table >>> 2;
    for (let page = mark.saved ? 0 : mark.sealed; page < this.#sealed; page++) {
      memory.free(pageAddress(words[table + page * ENTRY_WORDS]));
      memory.free(pageAddress(words[table + page * ENTRY_WORDS + 1]));
    }
    this.#dropOpen();
    if (mark.saved) words.set(mark.saved, table);
    this.#sealed = mark.sealed;
    this.#fill = mark.fill;
    this.#openK = openK;
    this.#openV = openV;
    this.#live = mark.live;
    this.#positions = mark.positions;
    this.#holes = mark.holes;
    if (mark.fill > 0) {
      const base = mark.live - countBits(mark.slots >>> 16);
      words.set([openK, openV, mark.slots, base], table + mark.sealed * ENTRY_WORDS);
    }
    this.#writeHeader();
  }

  /** Makes this empty head a copy of another: full pages are shared, the open one is copied. Throws out-of-memory. */
  copyFrom(other: HeadPages): void {
    const { memory } = this.#bank;
    const { count } = other;
    this.#ensureTable(count);
    if (other.#fill > 0) {
      this.#openK = memory.alloc(this.#shape.openKeyBytes);
      try {
        this.#openV = memory.alloc(this.#shape.openValueBytes);
      } catch (error) {
        memory.free(this.#openK);
        this.#openK = 0;
        throw error;
      }
      memory.u8.copyWithin(this.#openK, other.#openK, other.#openK + this.#shape.openKeyBytes);
      memory.u8.copyWithin(this.#openV, other.#openV, other.#openV + this.#shape.openValueBytes);
    }
    const words = memory.u32;
    const from = other.#table >>> 2;
    const to = this.#table >>> 2;
    words.copyWithin(to, from, from + count * ENTRY_WORDS);
    for (let page = 0, at = to; page < other.#sealed; page++, at += ENTRY_WORDS) {
      memory.retain(pageAddress(words[at]));
      memory.retain(pageAddress(words[at + 1]));
    }
    if (other.#fill > 0) words.set([this.#openK, this.#openV], to + other.#sealed * ENTRY_WORDS);
    this.#sealed = other.#sealed;
    this.#fill = other.#fill;
    this.#live = other.#live;
    this.#holes = other.#holes;
    this.#positions = other.#positions?.slice(0, other.#live);
    this.#writeHeader();
  }

  /**
   * Makes this empty head one with the given slots words (the last one's page is open if `fill` > 0) and room for their
   * pages, whose bytes the caller writes. Throws out-of-memory.
   */
  restore(slots: Uint32Array, fill: number, positions: Int32Array | undefined): void {
    const { memory } = this.#bank;
    const { keyBytes, valueBytes, openKeyBytes, openValueBytes, type } = this.#shape;
    this.#ensureTable(slots.length);
    const sealed = slots.length - (fill > 0 ? 1 : 0);
    const flag = type === "int8" ? 1 : 0;
    for (let page = 0; page < sealed; page++) {
      const k = memory.alloc(keyBytes);
      let v: number;
      try {
        v = memory.alloc(valueBytes);
      } catch (error) {
        memory.free(k);
        throw error;
      }
      memory.u32.set([k | flag, v | flag, slots[page]], (this.#table >>> 2) + page * ENTRY_WORDS);
      this.#sealed++;
    }
    if (fill > 0) {
      this.#openK = memory.alloc(openKeyBytes);
      try {
        this.#openV = memory.alloc(openValueBytes);
      } catch (error) {
        memory.free(this.#openK);
        this.#openK = 0;
        throw error;
      }
      memory.u32.set([this.#openK, this.#openV, slots[sealed]], (this.#table >>> 2) + sealed * ENTRY_WORDS);
      this.#fill = fill;
    }
    this.#recount();
    let live = 0;
    for (const s of slots) live += countBits(s >>> 16);
    this.#live = live;
    this.#positions = positions;
    this.#writeHeader();
  }

  /** Frees everything. */
  release(): void {
    const { memory } = this.#bank;
    const words = memory.u32;
    const table = this.#table >>> 2;
    for (let page = 0; page < this.#sealed; page++) {
      memory.free(pageAddress(words[table + page * ENTRY_WORDS]));
      memory.free(pageAddress(words[table + page * ENTRY_WORDS + 1]));
    }
    this.#dropOpen();
    this.unprepare();
    if (this.#capacity > 0) memory.free(this.#table);
    this.#table = 0;
    this.#capacity = 0;
    this.#sealed = 0;
    this.#fill = 0;
    this.#live = 0;
    this.#positions = undefined;
  }

  #ensureTable(entries: number): void {
    if (entries <= this.#capacity) return;
    const { memory } = this.#bank;
    // by a quarter: what a table has too much counts as cache, for every head of every layer
    const capacity = Math.max(4, this.#capacity + (this.#capacity >> 2), entries);
    const table = memory.alloc(capacity * ENTRY_WORDS * 4);
    if (this.#capacity > 0) {
      const from = this.#table >>> 2;
      memory.u32.copyWithin(table >>> 2, from, from + this.count * ENTRY_WORDS);
      memory.free(this.#table);
    }
    this.#table = table;
    this.#capacity = capacity;
    this.#writeHeader();
  }

  #writeHeader(): void {
    const words = this.#bank.memory.u32;
    words[this.#header] = this.#table;
    words[this.#header + 1] = this.count;
  }
}

function pushEntry(to: number[], words: Uint32Array, at: number): void {
  to.push(words[at], words[at + 1], words[at + 2], words[at + 3]);
}

/** A copy with room to grow. */
function pad(indices: Int32Array): Int32Array {
  const out = new Int32Array(Math.max(16, indices.length + (indices.length >> 1)));
  out.set(indices);
  return out;
}

function checkIndices(indices: Int32Array, live: number): void {
  let before = -1;
  for (let i = 0; i < indices.length; i++) {
    const index = indices[i];
    if (index <= before || index >= live)
      throw new FoveaError(
        "bad-input",
        `entries to keep must ascend within 0 to ${live - 1}; number ${i} is ${index}${i > 0 ? ` after ${before}` : ""}`,
        { hint: "give indices of stored entries, sorted, each once" },
      );
    before = index;
  }
}

/** The address of a page in an entry's word, without its flag. */
export function pageAddress(word: number): number {
  return (word & ~1) >>> 0;
}

/** Ones among the low 16 bits. */
export function countBits(x: number): number {
  let n = x - ((x >>> 1) & 0x5555);
  n = (n & 0x3333) + ((n >>> 2) & 0x3333);
  n = (n + (n >>> 4)) & 0x0f0f;
  return (n + (n >>> 8)) & 0x1f;
}

/** Runs the append job whose records stand in the bank's records. */
export function appendRecords(
  bank: Bank,
  shape: StoredShape,
  count: number,
  keyStride: number,
  valueStride: number,
): void {
  const { job } = bank.kernels;
  const words = bank.memory.u32;
  words[job + AppendField.kind] = Kind.append;
  words[job + AppendField.total] = count;
  words[job + AppendField.records] = bank.records.ensure(0);
  words[job + AppendField.keyDim] = shape.storedKeyDim;
  words[job + AppendField.valueDim] = shape.storedValueDim;
  words[job + AppendField.keyStride] = keyStride;
  words[job + AppendField.valueStride] = valueStride;
  bank.kernels.run(count >= 16);
}

/** Widens a list of entries to float32 rows at `keys` and `values` (0: not wanted), by their base words. */
export function readEntries(
  bank: Bank,
  shape: StoredShape,
  entries: number,
  count: number,
  keys: number,
  values: number,
): void {
  const { job } = bank.kernels;
  const words = bank.memory.u32;
  words[job + ReadField.kind] = Kind.read;
  words[job + ReadField.total] = Math.ceil(count / 64);
  words[job + ReadField.entries] = entries;
  words[job + ReadField.keyDim] = shape.storedKeyDim;
  words[job + ReadField.valueDim] = shape.storedValueDim;
  words[job + ReadField.count] = count;
  words[job + ReadField.keys] = keys;
  words[job + ReadField.values] = values;
  bank.kernels.run(count > 64);
}
