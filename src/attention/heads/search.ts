import type { AttachedMethod, ModelShape } from "../../engine/hooks.js";
import { aborted, FoveaError } from "../../error.js";
import type { HeadName } from "../string.js";
import type { HeadList } from "./head-list.js";

/** One head and what was measured with the edit on it alone. */
export interface MeasuredHead extends HeadName {
  readonly value: number;
}

/** A search over heads: apply an edit to one head at a time, measure, rank. */
export interface HeadSearch<M> {
  /** The model without edits; `with` attaches one. */
  readonly model: M & { readonly info: { readonly shape: ModelShape }; with(...methods: AttachedMethod[]): M };
  /** The edit of one head, e.g. (head) => knockOut({ heads: [head] }). */
  readonly edit: (head: HeadName) => AttachedMethod;
  /** One number for a model with an edit; the same examples every time. */
  readonly measure: (model: M, signal?: AbortSignal) => Promise<number>;
  /** Heads that are tried. Default all. */
  readonly heads?: readonly HeadName[];
  /** Heads that were measured before, by a search that was stopped: they are not measured again. */
  readonly done?: readonly MeasuredHead[];
  /** Called after each head with all that is known: write it to a file, and a stopped search can go on. */
  readonly onProgress?: (progress: { readonly done: readonly MeasuredHead[]; readonly total: number }) => void;
  readonly signal?: AbortSignal;
}

/** What a search found. */
export interface HeadSearchResult {
  /** The measure without any edit. */
  readonly base: number;
  /** All heads tried, those that changed the measure most upwards first. */
  readonly heads: readonly MeasuredHead[];
}

/**
 * Applies an edit to each head alone and measures. Ranks by value, highest first (a measure that should fall, such as
 * accuracy under knock-out, is negated by the caller).
 *
 * @throws FoveaError `aborted` when the signal fires; what was measured has been given to `onProgress`
 */
export async function searchHeads<M>(search: HeadSearch<M>): Promise<HeadSearchResult> {
  const { model, edit, measure, signal, onProgress } = search;
  const heads = search.heads ?? allHeads(model.info.shape);
  if (heads.length === 0) throw new FoveaError("bad-input", "a search needs heads to try");
  const base = await measure(model, signal);
  const known = new Map((search.done ?? []).map((m) => [`${m.layer}.${m.head}`, m]));
  const done: MeasuredHead[] = [];
  for (const { layer, head } of heads) {
    if (signal?.aborted) throw aborted(signal);
    const value = known.get(`${layer}.${head}`)?.value ?? (await measure(model.with(edit({ layer, head })), signal));
    done.push({ layer, head, value });
    onProgress?.({ done: [...done], total: heads.length });
  }
  const rank = (a: MeasuredHead, b: MeasuredHead) => b.value - a.value || a.layer - b.layer || a.head - b.head;
  return { base, heads: done.sort(rank) };
}

/** All heads of a model, layer by layer. */
export function allHeads({ layers, heads }: Pick<ModelShape, "layers" | "heads">): HeadName[] {
  return Array.from({ length: layers * heads }, (_, i) => ({ layer: Math.floor(i / heads), head: i % heads }));
}

/** The best `keep` heads as a list that can be written to a file. */
export function toHeadList(
  ranked: readonly MeasuredHead[],
  about: { readonly model: ModelShape; readonly name: string; readonly keep: number; readonly madeBy: string },
): HeadList {
  const best = ranked.slice(0, about.keep);
  return {
    model: about.model.hash,
    name: about.name,
    heads: best.map(({ layer, head }) => ({ layer, head })),
    scores: best.map(({ value }) => value),
    madeBy: about.madeBy,
  };
}
