import { CHUNK, Field, Kind } from "../kernels/layout.js";
import type { Entries } from "./hooks.js";
import type { HeadPages } from "./pages.js";
import type { Bank, StoredShape } from "./pages-bank.js";

/** How the scores of the query heads of a KV head become one row; "none": each keeps its own. */
export const PAGE_REDUCTIONS = ["none", "sum", "max", "mean"] as const;
export type PageReduction = (typeof PAGE_REDUCTIONS)[number];

export interface PageChoice {
  /** Pages that a head reads, those of `first` and `last` included. At least 1. */
  readonly count: number;
  /** Default "none": a list for each query head; else one for each KV head. */
  readonly reduce?: PageReduction;
  /** First and last pages that are read whatever their score; the last go first where the count is too small. Default 0. */
  readonly first?: number;
  readonly last?: number;
}

/** Rows of page scores: data [rows, pages], rows Hq or Hkv; -Infinity where a head holds fewer pages. */
export interface PageScores {
  readonly data: Float32Array;
  readonly rows: number;
  readonly pages: number;
}

/** Below this many (page, query head) threads would take longer to wake than the scores take. */
const PARALLEL_SCORES = 2048;

/** Scores of pages in memory: rows of `pages` floats from `address` on. */
interface ScoredPages {
  readonly address: number;
  readonly rows: number;
  readonly pages: number;
}

/**
 * Chooses pages of a layer by their bounds, where they lie: nothing but the lists leaves the kernels' memory. `header`:
 * address of the layer's page tables. Queries are [Hq, D].
 */
export class PageChooser {
  readonly #bank: Bank;
  readonly #shape: StoredShape;
  readonly #heads: readonly HeadPages[];
  readonly #header: number;

  constructor(bank: Bank, shape: StoredShape, heads: readonly HeadPages[], header: number) {
    this.#bank = bank;
    this.#shape = shape;
    this.#heads = heads;
    this.#header = header;
  }

  scores(q: Float32Array, reduce: PageReduction): PageScores {
    const { address, rows, pages } = this.#score(q, reduce);
    const at = address >>> 2;
    return { data: this.#bank.memory.f32.slice(at, at + rows * pages), rows, pages };
  }

  choose(q: Float32Array, choice: PageChoice): Entries[] {
    const { count, reduce = "none", first = 0, last = 0 } = choice;
    const { address, rows, pages } = this.#score(q, reduce);
    const { kernels, memory } = this.#bank;
    const list = this.#bank.lists.ensure(count * 4);
    return Array.from({ length: rows }, (_, row): Entries => {
      const head = this.#heads[Math.floor((row * this.#shape.kvHeads) / rows)];
      if (count >= head.count) return "all";
      const newest = Math.min(last, count);
      const oldest = Math.min(first, count - newest);
      const best = count - newest - oldest;
      const chosen = new Int32Array(count);
      for (let i = 0; i < oldest; i++) chosen[i] = i;
      for (let i = 0; i < newest; i++) chosen[count - newest + i] = head.count - newest + i;
      if (best > 0) {
        kernels.topKAt(address + (row * pages + oldest) * 4, head.count - newest - oldest, best, list);
        for (let i = 0, at = list >>> 2; i < best; i++) chosen[oldest + i] = memory.u32[at + i] + oldest;
      }
      return pageEntries(head, chosen);
    });
  }

  #score(q: Float32Array, reduce: PageReduction): ScoredPages {
    const { kvHeads, keyDim, storedKeyDim } = this.#shape;
    const bank = this.#bank;
    const heads = q.length / keyDim;
    const rows = reduce === "none" ? heads : kvHeads;
    let pages = 0;
    let equal = true;
    for (const head of this.#heads) {
      if (pages > 0 && head.count !== pages) equal = false;
      pages = Math.max(pages, head.count);
    }
    const query = bank.query.ensure(heads * storedKeyDim * 4);
    const address = bank.logits.ensure(rows * pages * 4 + 64);
    const { f32, u32 } = bank.memory;
    if (keyDim === storedKeyDim) f32.set(q, query >>> 2);
    else
      for (let h = 0, at = query >>> 2; h < heads; h++, at += storedKeyDim) {
        f32.set(q.subarray(h * keyDim, (h + 1) * keyDim), at);
        f32.fill(0, at + keyDim, at + storedKeyDim);
      }
    if (!equal) f32.fill(Number.NEGATIVE_INFINITY, address >>> 2, (address >>> 2) + rows * pages);
    const { job } = bank.kernels;
    const chunks = Math.max(1, Math.ceil(pages / CHUNK));
    u32[job + Field.kind] = Kind.bounds;
    u32[job + Field.total] = kvHeads * chunks;
    u32[job + Field.group] = heads / kvHeads;
    u32[job + Field.keyDim] = storedKeyDim;
    u32[job + Field.chunks] = chunks;
    u32[job + Field.query] = query;
    u32[job + Field.tables] = this.#header;
    u32[job + Field.logits] = address;
    u32[job + Field.logitHead] = pages;
    u32[job + Field.reduce] = PAGE_REDUCTIONS.indexOf(reduce);
    bank.kernels.run(pages * heads >= PARALLEL_SCORES);
    return { address, rows, pages };
  }
}

/** Pages of a head's table (ascending) as entries: where some lack entries, pages of the table are not those of 16. */
function pageEntries(head: HeadPages, pages: Int32Array): Entries {
  if (head.dense) return { pages };
  return { ranges: Array.from(pages, (page): [number, number] => [head.firstOf(page), head.firstOf(page + 1)]) };
}
