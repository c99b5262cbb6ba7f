import type { AttentionStep } from "../../engine/hooks.js";
import {
  type GroupReduction,
  type HeadScores,
  headLengths,
  PAGE,
  pageBounds,
  readTokens,
  reduceGroups,
  topEntries,
  withNewer,
} from "../select/index.js";

/** Pages of a layer, chosen by a row at a position, for each query head or KV head; and the entries held then. */
export interface PageChoice {
  readonly at: number;
  readonly pages: readonly Int32Array[];
  readonly lengths: readonly number[];
}

/** How many pages are chosen, and when. */
interface Choosing {
  readonly tokens: number;
  readonly share?: number;
  /** Tokens of a page, a multiple of 16. */
  readonly page: number;
  readonly minPages: number;
  readonly interval: number;
  readonly group: GroupReduction;
}

/** The pages that each head reads, held until the text's length is the next multiple of the interval. */
export function chosenPages(
  step: AttentionStep<Map<number, PageChoice>>,
  lengths: readonly number[],
  params: Choosing,
): readonly Int32Array[] | undefined {
  const { page, interval } = params;
  const [position] = step.positions;
  // the history is the text without the row's own token
  const tokens = readTokens(params, position);
  if (position <= tokens) return undefined;
  const held = step.state.get(step.layer);
  const reused = held && position > held.at && Math.floor(position / interval) === Math.floor(held.at / interval);
  if (reused)
    return held.pages.map((list, i) => {
      const head = Math.floor((i * lengths.length) / held.pages.length);
      return withNewer(list, Math.ceil(held.lengths[head] / page), Math.ceil(lengths[head] / page));
    });
  const count = Math.max(params.minPages, Math.floor(tokens / page));
  const pages = selectPages(step, lengths, count, params);
  step.state.set(step.layer, { at: position, pages, lengths });
  return pages;
}

/** The `count` pages with the largest scores, the newest among them: for each query head, or KV head with a reduction. */
export function selectPages(
  step: Pick<AttentionStep, "q" | "cache" | "view" | "model">,
  lengths: readonly number[],
  count: number,
  { page, group }: Pick<Choosing, "page" | "group">,
): Int32Array[] {
  const { kvHeads } = step.model;
  const scores = logicalScores(step);
  const { data, heads, keys } = reduceGroups(scores, kvHeads, group);
  return Array.from({ length: heads }, (_, h) => {
    const length = lengths[Math.floor((h * kvHeads) / heads)];
    const row = data.subarray(h * keys, h * keys + Math.ceil(length / PAGE));
    return topEntries(pageMaxima(row, page / PAGE), count, { window: 1 });
  });
}

/** The largest of each `size` neighbouring scores; a last group may have fewer. */
export function pageMaxima(scores: Float32Array, size: number): Float32Array {
  const maxima = new Float32Array(Math.ceil(scores.length / size)).fill(Number.NEGATIVE_INFINITY);
  for (let i = 0; i < scores.length; i++) {
    const at = Math.floor(i / size);
    if (scores[i] > maxima[at]) maxima[at] = scores[i];
  }
  return maxima;
}

/** Bounds of q . k for each query head and 16 entries: [Hq, pages]; where the cache's pages are whole they are its own. */
function logicalScores(step: Pick<AttentionStep, "q" | "cache" | "view" | "model">): HeadScores {
  const { cache, view, model } = step;
  if (cache) {
    const { data, rows, pages } = cache.pageScores(step.q);
    // after evictions by other methods pages of the cache lack entries, and are more than these
    if (pages === Math.ceil(Math.max(...headLengths(view, model.kvHeads)) / PAGE))
      return { data, heads: rows, keys: pages };
  }
  return pageBounds(step);
}
