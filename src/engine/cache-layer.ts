import { FoveaError } from "../error.js";
import { BASE_WORD, BLOCK, CHUNK, ENTRY_WORDS, Field, Kind, MAX_GROUP, RECORD_WORDS } from "../kernels/layout.js";
import { entriesBelow } from "./ascending.js";
import { type PageBounds, pageBounds } from "./cache-bounds.js";
import { entriesBound, writeEntries } from "./cache-entries.js";
import { type Entries, entriesOf, type HeadEntries, isPerHead, type LogBias } from "./hooks.js";
import { type PageChoice, PageChooser, type PageReduction, type PageScores } from "./page-choice.js";
import { appendRecords, type HeadMark, HeadPages, readEntries } from "./pages.js";
import type { Bank, StoredShape } from "./pages-bank.js";
import type { LayerMeter } from "./read-meter.js";

/** Bytes of rows that are staged at a time. */
const STAGING_BYTES = 4 << 20;
/** Bytes of partial results or logits of a job; more rows go in several jobs. */
const JOB_BYTES = 16 << 20;
/** Below this many (page, query head, row) a job runs on the calling thread alone: waking others would take longer. */
const PARALLEL_WORK = 256;
/** From this many pages on, storing a token wakes the threads that will attend to it. */
const WAKE_PAGES = 96;

export interface AttendRequest {
  /** Rotated queries, [rows, Hq, D]. */
  readonly q: Float32Array;
  readonly rows: number;
  /** Factor on the dot products. */
  readonly scale: number;
  /** KV heads [from, to); default all. Others give output 0 and log-sum-exp -Infinity. */
  readonly heads?: readonly [from: number, to: number];
  /** cap * tanh(logit / cap), before bias and mask. */
  readonly softcap?: number;
  /** A logit per query head that takes weight but has no value: [Hq]. */
  readonly sink?: Float32Array;
  /** Which stored entries are read: for every head alike, or one a KV head, or one a query head. Default all. */
  readonly entries?: HeadEntries;
  /** Added to the logits; keys are stored entries, oldest first. */
  readonly bias?: LogBias;
  /**
   * True: the newest `rows` entries belong to the rows, and row i sees none newer than its own. Default true for more
   * than one row.
   */
  readonly causal?: boolean;
  /** Only keys with (row's position) - (key's position) < window. */
  readonly window?: number;
  /** Absolute positions of the rows, for `window`. Default: the last `rows` tokens that the layer has seen. */
  readonly positions?: ArrayLike<number>;
}

/** How rows of logits and weights are laid out: [rows, Hq, n] or [Hq, rows, n]. */
export type RowLayout = "rows" | "heads";

/** Where a layer stood. */
export interface LayerMark {
  readonly seen: number;
  readonly heads: readonly HeadMark[];
}

/** One layer of a cache: its KV heads' keys and values, and attention over them where they lie. */
export class LayerCache {
  readonly shape: StoredShape;
  /** Counts what is read, while somebody measures. */
  meter: LayerMeter | undefined;
  readonly #bank: Bank;
  readonly #heads: HeadPages[];
  readonly #header: number;
  readonly #chooser: PageChooser;
  readonly #marks: LayerMark[] = [];
  #seen = 0;
  #released = false;

  /** Throws out-of-memory. */
  constructor(bank: Bank, shape: StoredShape) {
    this.#bank = bank;
    this.shape = shape;
    this.#header = bank.memory.alloc(shape.kvHeads * 8);
    this.#heads = Array.from({ length: shape.kvHeads }, (_, h) => new HeadPages(bank, shape, this.#header + h * 8));
    this.#chooser = new PageChooser(bank, shape, this.#heads, this.#header);
  }

  /** Tokens appended, whether or not they are still stored: the position of the next one. */
  get seen(): number {
    return this.#seen;
  }

  /** Stored entries of a KV head. */
  length(head: number): number {
    return this.#heads[head].live;
  }

  /** Most stored entries of any KV head: n of rows of logits. */
  get keys(): number {
    let n = 0;
    for (const head of this.#heads) if (head.live > n) n = head.live;
    return n;
  }

  /** Absolute positions of a KV head's stored entries, oldest first. Not to be written to; valid until the next change. */
  positions(head: number): Int32Array {
    return this.#heads[head].positions;
  }

  /** Bytes of the layer's pages and tables; pages shared with other caches count whole. */
  get bytes(): number {
    let n = 0;
    for (const head of this.#heads) n += head.bytes;
    return n;
  }

  /** For serialisation. */
  get pages(): readonly HeadPages[] {
    return this.#heads;
  }

  get bank(): Bank {
    return this.#bank;
  }

  /**
   * Stores n tokens behind what is there: k [n, Hkv, D], v [n, Hkv, Dv], rotated. Their positions continue. Throws
   * out-of-memory, and then has stored nothing.
   */
  append(k: Float32Array, v: Float32Array, n: number): void {
    this.#check();
    const { kvHeads, keyDim, valueDim, storedKeyDim, storedValueDim } = this.shape;
    checkLength("keys", k, n * kvHeads * keyDim, `[${n}, ${kvHeads}, ${keyDim}]`);
    checkLength("values", v, n * kvHeads * valueDim, `[${n}, ${kvHeads}, ${valueDim}]`);
    const keyWidth = kvHeads * storedKeyDim;
    const valueWidth = kvHeads * storedValueDim;
    const piece = Math.max(16, Math.floor(STAGING_BYTES / (4 * (keyWidth + valueWidth)) / 16) * 16);
    const mark = n > piece ? this.mark() : undefined;
    if (n === 1 && this.#pages >= WAKE_PAGES) this.#bank.kernels.wake();
    try {
      for (let from = 0; from < n; from += piece) {
        const rows = Math.min(piece, n - from);
        for (const head of this.#heads) head.prepare(rows);
        const keys = this.#bank.staging.ensure(rows * (keyWidth + valueWidth) * 4);
        const values = keys + rows * keyWidth * 4;
        const records = this.#bank.records.ensure(kvHeads * HeadPages.records(rows) * RECORD_WORDS * 4) >>> 2;
        this.#stage(keys, k, from * kvHeads, rows * kvHeads, keyDim, storedKeyDim);
        this.#stage(values, v, from * kvHeads, rows * kvHeads, valueDim, storedValueDim);
        let record = records;
        for (let h = 0; h < kvHeads; h++) {
          const source = {
            k: keys + h * storedKeyDim * 4,
            v: values + h * storedValueDim * 4,
            keyStride: keyWidth * 4,
            valueStride: valueWidth * 4,
          };
          record = this.#heads[h].commit(rows, source, this.#seen + from, record);
        }
        appendRecords(this.#bank, this.shape, (record - records) / RECORD_WORDS, keyWidth * 4, valueWidth * 4);
      }
    } catch (error) {
      for (const head of this.#heads) head.unprepare();
      if (mark) this.rollback(mark);
      throw error;
    }
    if (mark) this.forget(mark);
    this.#seen += n;
  }

  /**
   * Like `append`, but a head with a list in `kept` stores only those of the rows (ascending); all n count as seen.
   * `kept[head]` undefined: all rows. Throws out-of-memory, and then has stored nothing.
   */
  appendSelected(k: Float32Array, v: Float32Array, n: number, kept: readonly (Int32Array | undefined)[]): void {
    this.#check();
    if (kept.every((list) => list === undefined)) {
      this.append(k, v, n);
      return;
    }
    const { kvHeads, keyDim, valueDim, storedKeyDim, storedValueDim } = this.shape;
    checkLength("keys", k, n * kvHeads * keyDim, `[${n}, ${kvHeads}, ${keyDim}]`);
    checkLength("values", v, n * kvHeads * valueDim, `[${n}, ${kvHeads}, ${valueDim}]`);
    const piece = Math.max(16, Math.floor(STAGING_BYTES / (4 * (storedKeyDim + storedValueDim)) / 16) * 16);
    const mark = this.mark();
    try {
      for (let h = 0; h < kvHeads; h++) {
        const list = kept[h] ?? Int32Array.from({ length: n }, (_, i) => i);
        for (let from = 0; from < list.length; from += piece) {
          const rows = list.subarray(from, from + piece);
          const count = rows.length;
          this.#heads[h].prepare(count);
          const keys = this.#bank.staging.ensure(count * (storedKeyDim + storedValueDim) * 4);
          const values = keys + count * storedKeyDim * 4;
          const records = this.#bank.records.ensure(HeadPages.records(count) * RECORD_WORDS * 4) >>> 2;
          const { f32 } = this.#bank.memory;
          for (let i = 0; i < count; i++) {
            const row = rows[i] * kvHeads + h;
            f32.set(k.subarray(row * keyDim, (row + 1) * keyDim), (keys >>> 2) + i * storedKeyDim);
            f32.set(v.subarray(row * valueDim, (row + 1) * valueDim), (values >>> 2) + i * storedValueDim);
            f32.fill(0, (keys >>> 2) + i * storedKeyDim + keyDim, (keys >>> 2) + (i + 1) * storedKeyDim);
            f32.fill(0, (values >>> 2) + i * storedValueDim + valueDim, (values >>> 2) + (i + 1) * storedValueDim);
          }
          const source = { k: keys, v: values, keyStride: storedKeyDim * 4, valueStride: storedValueDim * 4 };
          const at = rows.map((i) => this.#seen + i);
          const end = this.#heads[h].commit(count, source, at, records);
          appendRecords(this.#bank, this.shape, (end - records) / RECORD_WORDS, storedKeyDim * 4, storedValueDim * 4);
        }
      }
    } catch (error) {
      for (const head of this.#heads) head.unprepare();
      this.rollback(mark);
      throw error;
    }
    this.forget(mark);
    this.#seen += n;
  }

  /** Copies rows of one width into memory, padded with zeros to the stored width. */
  #stage(to: number, data: Float32Array, first: number, rows: number, dim: number, stored: number): void {
    const { f32 } = this.#bank.memory;
    const at = to >>> 2;
    if (dim === stored) {
      f32.set(data.length === rows * dim ? data : data.subarray(first * dim, (first + rows) * dim), at);
      return;
    }
    for (let r = 0; r < rows; r++) {
      f32.set(data.subarray((first + r) * dim, (first + r + 1) * dim), at + r * stored);
      f32.fill(0, at + r * stored + dim, at + (r + 1) * stored);
    }
  }

  /**
   * Keeps the stored entries of a KV head with these indices (ascending) and frees the others. Entries keep their
   * absolute positions; indices count anew. Throws bad-input for indices that do not ascend or do not exist.
   */
  keep(head: number, indices: Int32Array): void {
    this.#check();
    this.#heads[head].keep(
      indices,
      this.#marks.map((m) => m.heads[head]),
    );
  }

  /** A KV head's stored keys [n, D] and values [n, Dv], widened to float32. */
  read(head: number): { k: Float32Array; v: Float32Array } {
    this.meter?.read(this, head);
    return this.tail(head, 0);
  }

  /** The same from an entry on, without being counted: whoever attends to them tells the meter. */
  tail(head: number, from: number): { k: Float32Array; v: Float32Array } {
    this.#check();
    const pages = this.#heads[head];
    const { keyDim, valueDim, storedKeyDim, storedValueDim } = this.shape;
    const wanted = pages.live - from;
    if (wanted <= 0) return { k: new Float32Array(0), v: new Float32Array(0) };
    // whole pages are read, each to where its first entry's index says: the area begins with the first page's
    const first = pages.pageOf(from);
    const table = pages.table + first * ENTRY_WORDS * 4;
    const base = this.#bank.memory.u32[(table >>> 2) + BASE_WORD];
    const n = pages.live - base;
    const keys = this.#bank.staging.ensure(n * (storedKeyDim + storedValueDim) * 4);
    const values = keys + n * storedKeyDim * 4;
    const count = pages.count - first;
    const back = (area: number, dim: number) => area - base * dim * 4;
    readEntries(this.#bank, this.shape, table, count, back(keys, storedKeyDim), back(values, storedValueDim));
    const skip = from - base;
    return {
      k: this.#unstage(keys + skip * storedKeyDim * 4, wanted, keyDim, storedKeyDim),
      v: this.#unstage(values + skip * storedValueDim * 4, wanted, valueDim, storedValueDim),
    };
  }

  /**
   * Keys [n, D] and values [n, Dv] of the stored entries with these indices (ascending) of a KV head, widened to float32.
   * Only their pages are read, and they count as attended to.
   */
  gather(head: number, entries: Int32Array): { k: Float32Array; v: Float32Array } {
    this.#check();
    this.meter?.attend(this, { q: NO_QUERY, rows: 1, scale: 1, heads: [head, head + 1], entries: { tokens: entries } });
    const pages = this.#heads[head];
    const { keyDim, valueDim, storedKeyDim, storedValueDim } = this.shape;
    const list = this.#bank.lists.ensure(entries.length * ENTRY_WORDS * 4);
    const rows = new Int32Array(entries.length);
    let count = 0;
    let live = 0;
    for (let i = 0, page = -1, first = 0, base = 0; i < entries.length; i++) {
      const own = pages.pageOf(entries[i]);
      if (own !== page) {
        page = own;
        first = pages.firstOf(page);
        base = live;
        live += pages.firstOf(page + 1) - first;
        const { u32 } = this.#bank.memory;
        const [from, to] = [(pages.table >>> 2) + page * ENTRY_WORDS, (list >>> 2) + count++ * ENTRY_WORDS];
        u32.copyWithin(to, from, from + ENTRY_WORDS);
        u32[to + BASE_WORD] = base;
      }
      rows[i] = base + entries[i] - first;
    }
    const keys = this.#bank.staging.ensure(live * (storedKeyDim + storedValueDim) * 4);
    const values = keys + live * storedKeyDim * 4;
    if (count > 0) readEntries(this.#bank, this.shape, list, count, keys, values);
    const { f32 } = this.#bank.memory;
    const pick = (area: number, dim: number, stored: number) => {
      const out = new Float32Array(rows.length * dim);
      for (let i = 0; i < rows.length; i++) {
        const at = (area >>> 2) + rows[i] * stored;
        out.set(f32.subarray(at, at + dim), i * dim);
      }
      return out;
    };
    return { k: pick(keys, keyDim, storedKeyDim), v: pick(values, valueDim, storedValueDim) };
  }

  /**
   * Bounds of each page's keys in a KV head, [pages, D] each: no stored key of a page is below `lower` or above `upper`.
   * `first` [pages + 1]: index of each page's first stored entry, and at the end the number of entries.
   */
  bounds(head: number): PageBounds {
    this.#check();
    this.meter?.readBounds(this, this.#heads[head].count);
    return pageBounds(this.#bank.memory, this.shape, this.#heads[head]);
  }

  /**
   * For each query [Hq, D] and page the largest dot product that a key within the page's bounds can have with it: a bound
   * on q.k of the page's keys, without the attention scale. With `reduce`, the sum, maximum or mean over the query heads
   * of a KV head. Only the bounds are read, and of pages of int8 keys they are the exact hull of their codes.
   */
  pageScores(q: Float32Array, reduce: PageReduction = "none"): PageScores {
    this.#meterBounds(q);
    return this.#chooser.scores(q, reduce);
  }

  /**
   * The pages with the largest `pageScores`, as entries for each query head, or for each KV head with `reduce`; ties go to
   * the older page. A head that holds no more than `count` reads all.
   */
  choosePages(q: Float32Array, choice: PageChoice): Entries[] {
    this.#meterBounds(q);
    if (!Number.isInteger(choice.count) || choice.count < 1)
      throw new FoveaError("bad-input", `${choice.count} pages were asked for; expected 1 or more`);
    return this.#chooser.choose(q, choice);
  }

  #meterBounds(q: Float32Array): void {
    this.#queryHeads(q, 1);
    if (this.meter) for (const head of this.#heads) this.meter.readBounds(this, head.count);
  }

  #unstage(from: number, rows: number, dim: number, stored: number): Float32Array {
    const out = new Float32Array(rows * dim);
    this.#copyOut(out, 0, from, rows, dim, stored);
    return out;
  }

  #copyOut(out: Float32Array, at: number, from: number, rows: number, dim: number, stored: number): void {
    const { f32 } = this.#bank.memory;
    const start = from >>> 2;
    if (dim === stored) out.set(f32.subarray(start, start + rows * dim), at);
    else
      for (let r = 0; r < rows; r++) out.set(f32.subarray(start + r * stored, start + r * stored + dim), at + r * dim);
  }

  /**
   * Attention of rows over the stored entries: `out` [rows, Hq, Dv] and, if given, `lse` [rows, Hq]. A row that reads
   * nothing gives 0 and -Infinity. The result does not depend on the number of threads.
   */
  attend(request: AttendRequest, out: Float32Array, lse?: Float32Array): void {
    const { rows } = request;
    const heads = this.#queryHeads(request.q, rows);
    this.meter?.attend(this, request);
    const { kvHeads, valueDim, storedValueDim } = this.shape;
    checkLength("outputs", out, rows * heads * valueDim, `[${rows}, ${heads}, ${valueDim}]`);
    if (lse) checkLength("log-sum-exps", lse, rows * heads, `[${rows}, ${heads}]`);
    const [from, to] = request.heads ?? [0, kvHeads];
    if (to - from < kvHeads) {
      out.fill(0, 0, rows * heads * valueDim);
      lse?.fill(Number.NEGATIVE_INFINITY, 0, rows * heads);
    }
    const longest = this.#lists(request, heads, from, to);
    const lanes = this.#lanes;
    const units = (((to - from) * lanes) / kvHeads) * Math.ceil(heads / lanes / MAX_GROUP);
    const size = taskSize(longest, units * rows);
    const chunks = Math.max(1, Math.ceil(longest / size));
    const perRow = units * chunks * (64 + storedValueDim * MAX_GROUP * 4);
    const step = Math.max(1, Math.min(rows, Math.floor(JOB_BYTES / perRow)));
    for (let row = 0; row < rows; row += step) {
      const count = Math.min(step, rows - row);
      const result = this.#bank.result.ensure(count * heads * (storedValueDim + 1) * 4);
      const sums = result + count * heads * storedValueDim * 4;
      const partials = this.#bank.partials.ensure(count * perRow);
      this.#fields(Kind.attend, request, heads, from, to, row, count, size, chunks);
      const words = this.#bank.memory.u32;
      const job = this.#bank.kernels.job;
      words[job + Field.out] = result;
      words[job + Field.lse] = sums;
      words[job + Field.partials] = partials;
      this.#run(count * heads, longest);
      if (to - from === kvHeads) {
        this.#copyOut(out, row * heads * valueDim, result, count * heads, valueDim, storedValueDim);
        const at = sums >>> 2;
        if (lse) lse.set(this.#bank.memory.f32.subarray(at, at + count * heads), row * heads);
        continue;
      }
      const group = heads / kvHeads;
      for (let r = 0; r < count; r++) {
        const head = r * heads + from * group;
        const n = (to - from) * group;
        const target = (row + r) * heads + from * group;
        this.#copyOut(out, target * valueDim, result + head * storedValueDim * 4, n, valueDim, storedValueDim);
        const at = (sums >>> 2) + head;
        if (lse) lse.set(this.#bank.memory.f32.subarray(at, at + n), target);
      }
    }
  }

  /**
   * Logits of rows over all stored entries, n = `keys`: [rows, Hq, n], or [Hq, rows, n] with layout "heads". After
   * soft-cap and bias; -Infinity where a row reads nothing or a head holds fewer entries.
   */
  scores(request: AttendRequest, layout: RowLayout = "rows"): Float32Array {
    const { rows } = request;
    const heads = this.#queryHeads(request.q, rows);
    this.meter?.score(this, request);
    const { kvHeads } = this.shape;
    const n = this.keys;
    const out = new Float32Array(rows * heads * n);
    if (n === 0) return out;
    const [from, to] = request.heads ?? [0, kvHeads];
    const longest = this.#lists(request, heads, from, to);
    const chunks = Math.max(1, Math.ceil(longest / CHUNK));
    const step = Math.max(1, Math.min(rows, Math.floor(JOB_BYTES / (heads * n * 4))));
    for (let row = 0; row < rows; row += step) {
      const count = Math.min(step, rows - row);
      const logits = this.#bank.logits.ensure(count * heads * n * 4 + 64);
      this.#fields(Kind.scores, request, heads, from, to, row, count, CHUNK, chunks);
      const start = logits >>> 2;
      this.#bank.memory.f32.fill(Number.NEGATIVE_INFINITY, start, start + count * heads * n);
      this.#layoutOfLogits(logits, layout, count, heads, n);
      this.#run(count * heads, longest);
      const { f32 } = this.#bank.memory;
      if (layout === "rows" || count === rows) out.set(f32.subarray(start, start + count * heads * n), row * heads * n);
      else
        for (let h = 0; h < heads; h++)
          out.set(f32.subarray(start + h * count * n, start + (h + 1) * count * n), (h * rows + row) * n);
    }
    return out;
  }

  /**
   * Values summed under given weights, which need not sum to 1: weights [rows, Hq, n] (or [Hq, rows, n] with layout
   * "heads"), n = `keys`; gives [rows, Hq, Dv].
   */
  sum(weights: Float32Array, rows: number, layout: RowLayout = "rows"): Float32Array {
    this.#check();
    const { kvHeads, valueDim, storedValueDim } = this.shape;
    const n = this.keys;
    const heads = n === 0 ? kvHeads : weights.length / (rows * n);
    const out = new Float32Array(rows * heads * valueDim);
    if (n === 0 || rows === 0) return out;
    if (!Number.isInteger(heads / kvHeads) || heads === 0)
      throw new FoveaError(
        "bad-shape",
        `${weights.length} weights are no [rows ${rows}, a multiple of ${kvHeads} heads, ${n}]`,
      );
    this.meter?.sum(this, weights, rows, layout === "heads");
    const longest = Math.max(...this.#heads.map((h) => h.count));
    const chunks = Math.max(1, Math.ceil(longest / CHUNK));
    const group = heads / kvHeads;
    const perRow =
      kvHeads * Math.ceil(group / MAX_GROUP) * chunks * (64 + storedValueDim * MAX_GROUP * 4) + heads * n * 4;
    const step = Math.max(1, Math.min(rows, Math.floor(JOB_BYTES / perRow)));
    for (let row = 0; row < rows; row += step) {
      const count = Math.min(step, rows - row);
      const logits = this.#bank.logits.ensure(count * heads * n * 4 + 64);
      const start = logits >>> 2;
      const result = this.#bank.result.ensure(count * heads * (storedValueDim + 1) * 4);
      const partials = this.#bank.partials.ensure(count * perRow);
      const { f32, u32 } = this.#bank.memory;
      if (layout === "rows") f32.set(weights.subarray(row * heads * n, (row + count) * heads * n), start);
      else
        for (let h = 0; h < heads; h++)
          f32.set(weights.subarray((h * rows + row) * n, (h * rows + row + count) * n), start + h * count * n);
      this.#common(Kind.sum, kvHeads, group, 0, kvHeads, count, CHUNK, chunks);
      const { job } = this.#bank.kernels;
      u32[job + Field.tables] = this.#header;
      u32[job + Field.limits] = 0;
      u32[job + Field.bias] = 0;
      u32[job + Field.sink] = 0;
      u32[job + Field.out] = result;
      u32[job + Field.lse] = result + count * heads * storedValueDim * 4;
      u32[job + Field.partials] = partials;
      this.#layoutOfLogits(logits, layout, count, heads, n);
      this.#run(count * heads, longest);
      this.#copyOut(out, row * heads * valueDim, result, count * heads, valueDim, storedValueDim);
    }
    return out;
  }

  #layoutOfLogits(logits: number, layout: RowLayout, rows: number, heads: number, n: number): void {
    const { u32 } = this.#bank.memory;
    const { job } = this.#bank.kernels;
    u32[job + Field.logits] = logits;
    u32[job + Field.logitRow] = layout === "rows" ? heads * n : n;
    u32[job + Field.logitHead] = layout === "rows" ? n : rows * n;
  }

  /** Query heads of a request. Throws bad-shape. */
  #queryHeads(q: Float32Array, rows: number): number {
    this.#check();
    const { kvHeads, keyDim } = this.shape;
    const heads = q.length / (rows * keyDim);
    if (rows < 1 || !Number.isInteger(heads / kvHeads) || heads === 0)
      throw new FoveaError(
        "bad-shape",
        `${q.length} numbers are no queries [rows ${rows}, heads, ${keyDim}] with a multiple of ${kvHeads} heads`,
      );
    return heads;
  }

  /**
   * Points the job at its page tables, which it writes if entries are selected. Returns the longest one's length.
   *
   * A lane is what shares a table: a KV head with its query heads, or a query head by itself where each has entries of
   * its own. To the kernels lanes are KV heads.
   */
  #lists(request: AttendRequest, heads: number, fromHead: number, toHead: number): number {
    const { entries } = request;
    const { kvHeads } = this.shape;
    let longest = 0;
    this.#lanes = kvHeads;
    let [from, to] = [fromHead, toHead];
    if (entries === undefined || entries === "all") {
      this.#tables = this.#header;
      for (let h = from; h < to; h++) longest = Math.max(longest, this.#heads[h].count);
      return longest;
    }
    if (isPerHead(entries) && entries.length !== kvHeads) {
      if (entries.length !== heads)
        throw new FoveaError(
          "bad-shape",
          `${entries.length} selections were given for ${kvHeads} KV heads and ${heads} query heads`,
        );
      this.#lanes = heads;
      from *= heads / kvHeads;
      to *= heads / kvHeads;
    }
    const lanes = this.#lanes;
    const pages = (lane: number) => this.#heads[Math.floor((lane * kvHeads) / lanes)];
    let bound = 0;
    for (let lane = from; lane < to; lane++) bound += entriesBound(entriesOf(entries, lane, lanes), pages(lane));
    const headerBytes = lanes * 8;
    const lists = this.#bank.lists.ensure(headerBytes + bound * ENTRY_WORDS * 4);
    const { u32 } = this.#bank.memory;
    let at = (lists + headerBytes) >>> 2;
    for (let lane = from; lane < to; lane++) {
      const count = writeEntries(u32, at, entriesOf(entries, lane, lanes), pages(lane));
      u32[(lists >>> 2) + lane * 2] = at * 4;
      u32[(lists >>> 2) + lane * 2 + 1] = count;
      at += count * ENTRY_WORDS;
      longest = Math.max(longest, count);
    }
    this.#tables = lists;
    return longest;
  }
  #tables = 0;
  #lanes = 0;

  #common(
    kind: number,
    lanes: number,
    group: number,
    from: number,
    to: number,
    rows: number,
    size: number,
    chunks: number,
  ): void {
    const { u32 } = this.#bank.memory;
    const { job } = this.#bank.kernels;
    u32[job + Field.kind] = kind;
    u32[job + Field.total] = (to - from) * Math.ceil(group / MAX_GROUP) * rows * chunks;
    u32[job + Field.group] = group;
    u32[job + Field.keyDim] = this.shape.storedKeyDim;
    u32[job + Field.valueDim] = this.shape.storedValueDim;
    u32[job + Field.rows] = rows;
    u32[job + Field.headFrom] = from;
    u32[job + Field.heads] = to - from;
    u32[job + Field.kvHeads] = lanes;
    u32[job + Field.size] = size;
    u32[job + Field.chunks] = chunks;
  }

  /** Writes the fields of a job for rows [row, row + count) of a request. */
  #fields(
    kind: number,
    request: AttendRequest,
    heads: number,
    from: number,
    to: number,
    row: number,
    count: number,
    size: number,
    chunks: number,
  ): void {
    const { keyDim, storedKeyDim, kvHeads } = this.shape;
    const bank = this.#bank;
    const { job } = bank.kernels;
    const query = bank.query.ensure(count * heads * storedKeyDim * 4);
    const limits = this.#limits(request, row, count);
    const { sink } = request;
    let sinkAt = 0;
    if (sink) {
      checkLength("sinks", sink, heads, `[${heads}]`);
      sinkAt = bank.sink.ensure(heads * 4);
      bank.memory.f32.set(sink, sinkAt >>> 2);
    }
    const bias = request.bias ? this.#bias(request.bias, heads, request.rows) : 0;
    const lanes = this.#lanes;
    const wide = lanes / kvHeads;
    this.#common(kind, lanes, heads / lanes, from * wide, to * wide, count, size, chunks);
    this.#stage(query, request.q, row * heads, count * heads, keyDim, storedKeyDim);
    const { u32, f32 } = bank.memory;
    u32[job + Field.query] = query;
    u32[job + Field.tables] = this.#tables;
    u32[job + Field.limits] = limits;
    f32[job + Field.scale] = request.scale;
    f32[job + Field.softcap] = request.softcap ?? 0;
    u32[job + Field.sink] = sinkAt;
    u32[job + Field.bias] = bias;
    if (request.bias) {
      const b = request.bias;
      const rows = Math.max(1, b.rows);
      const n = b.data.length / (b.heads * rows);
      u32[job + Field.biasKv] =
        b.heads === 1 ? 0 : b.heads === heads || wide > 1 ? (heads / lanes) * rows * n : rows * n;
      u32[job + Field.biasQuery] = b.heads === heads ? rows * n : 0;
      u32[job + Field.biasRow] = b.rows > 0 ? n : 0;
      u32[job + Field.bias] = bias + (b.rows > 0 ? row * n * 4 : 0);
    }
  }

  /** Copies a bias into memory; returns its address. */
  #bias(bias: LogBias, heads: number, rows: number): number {
    const { kvHeads } = this.shape;
    if (bias.heads !== 1 && bias.heads !== kvHeads && bias.heads !== heads)
      throw new FoveaError("bad-shape", `a bias has ${bias.heads} heads; 1, ${kvHeads} or ${heads} can be had`);
    if (bias.rows !== 0 && bias.rows !== rows)
      throw new FoveaError("bad-shape", `a bias has ${bias.rows} rows; the queries have ${rows}`);
    const n = bias.data.length / (bias.heads * Math.max(1, bias.rows));
    if (n < this.keys) throw new FoveaError("bad-shape", `a bias covers ${n} entries; the layer holds ${this.keys}`);
    // pages are read whole: up to 15 numbers behind the last row
    const repeat = this.#lanes === heads && bias.heads === kvHeads ? heads / kvHeads : 1;
    const at = this.#bank.bias.ensure(bias.data.length * repeat * 4 + 64);
    const width = bias.data.length / bias.heads;
    if (repeat === 1) this.#bank.memory.f32.set(bias.data, at >>> 2);
    else
      for (let h = 0; h < heads; h++) {
        const own = Math.floor(h / repeat);
        this.#bank.memory.f32.set(bias.data.subarray(own * width, (own + 1) * width), (at >>> 2) + h * width);
      }
    return at;
  }

  /** For each row and KV head the stored entries [start, end) that it sees; 0 where all rows see all. */
  #limits(request: AttendRequest, row: number, count: number): number {
    const { rows, window } = request;
    const causal = request.causal ?? rows > 1;
    if (!window && (!causal || rows === 1)) return 0;
    const { kvHeads } = this.shape;
    const lanes = this.#lanes;
    const address = this.#bank.limits.ensure(count * lanes * 8);
    const { i32 } = this.#bank.memory;
    let at = address >>> 2;
    for (let r = row; r < row + count; r++) {
      const position = request.positions ? request.positions[r] : this.#seen - rows + r;
      for (let lane = 0; lane < lanes; lane++) {
        const head = this.#heads[Math.floor((lane * kvHeads) / lanes)];
        i32[at++] = window ? entriesBelow(head.positions, position - window + 1) : 0;
        i32[at++] = causal ? head.live - rows + r + 1 : head.live;
      }
    }
    return address;
  }

  /** Runs the job; `longest`: entries of the longest page table. */
  #run(queries: number, longest: number): void {
    this.#bank.kernels.run(longest * queries >= PARALLEL_WORK);
  }

  get #pages(): number {
    let n = 0;
    for (const head of this.#heads) n += head.count;
    return n;
  }

  /** Wakes the kernels' threads ahead of `attend`. */
  wake(): void {
    this.#bank.kernels.wake();
  }

  /** A point to come back to; for `Cache`. */
  mark(): LayerMark {
    this.#check();
    const mark = { seen: this.#seen, heads: this.#heads.map((h) => h.mark()) };
    this.#marks.push(mark);
    return mark;
  }

  rollback(mark: LayerMark): void {
    this.#check();
    const at = this.#marks.indexOf(mark);
    if (at < 0) throw new FoveaError("bad-input", "a mark was used that is used up, or not this cache's");
    for (let later = this.#marks.length - 1; later > at; later--) this.forget(this.#marks[later]);
    for (const [h, head] of this.#heads.entries()) head.rollback(mark.heads[h]);
    this.#marks.pop();
    this.#seen = mark.seen;
  }

  forget(mark: LayerMark): void {
    const at = this.#marks.indexOf(mark);
    if (at < 0) return;
    this.#marks.splice(at, 1);
    for (const [h, head] of this.#heads.entries()) head.forget(mark.heads[h]);
  }

  /** Makes this empty layer a copy that shares the other's full pages. Throws out-of-memory. */
  copyFrom(other: LayerCache): void {
    other.#check();
    for (const [h, head] of this.#heads.entries()) head.copyFrom(other.#heads[h]);
    this.#seen = other.#seen;
  }

  /** For deserialisation. */
  restoreSeen(seen: number): void {
    this.#seen = seen;
  }

  release(): void {
    if (this.#released) return;
    while (this.#marks.length > 0) this.forget(this.#marks[this.#marks.length - 1]);
    this.#released = true;
    for (const head of this.#heads) head.release();
    this.#bank.memory.free(this.#header);
  }

  #check(): void {
    if (this.#released) throw new FoveaError("closed", "the cache was released");
  }
}

/** Tasks that a job is cut into at least, where its lists are long enough. */
const TASKS = 8;

/**
 * Entries of one task, the same whatever the number of threads: fewer where short lists would make too few tasks for
 * threads to share.
 */
function taskSize(longest: number, units: number): number {
  const wanted = Math.ceil(longest / Math.ceil(TASKS / units));
  return Math.min(CHUNK, Math.max(BLOCK, Math.ceil(wanted / BLOCK) * BLOCK));
}

const NO_QUERY = new Float32Array(0);

function checkLength(what: string, data: Float32Array, wanted: number, shape: string): void {
  if (data.length < wanted)
    throw new FoveaError("bad-shape", `${data.length} numbers were given as ${what}; ${shape} has ${wanted}`);
}
