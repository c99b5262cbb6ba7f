import type { KeyView } from "../../engine/hooks.js";
import { headKeys, perView } from "../select/index.js";
import { boundaryScores, chooseBoundaries } from "./boundaries.js";

/** How keys are cut into chunks. */
interface Cutting {
  /** Entries that are cut for themselves, span by span. */
  readonly queries: number;
  readonly boundaries: "cosine" | "fixed";
  /** Length of fixed chunks. */
  readonly chunk: number;
  readonly side: number;
  readonly apart: number;
  readonly most: number;
  readonly threshold: number;
}

/** Keys of all KV heads side by side, [n, Hkv * D]: boundaries are sought in them. */
const wideKeys = perView((view, kvHeads) => {
  const heads = Array.from({ length: kvHeads }, (_, h) => headKeys(view, h));
  const n = Math.min(...Array.from({ length: kvHeads }, (_, h) => view.length(h)));
  const dim = heads[0].length / Math.max(1, view.length(0));
  const wide = new Float32Array(n * kvHeads * dim);
  for (let t = 0; t < n; t++)
    for (let h = 0; h < kvHeads; h++) wide.set(heads[h].subarray(t * dim, (t + 1) * dim), (t * kvHeads + h) * dim);
  return wide;
});

/** Starts of the complete spans' chunks, kept while the keys are: later blocks of queries see the same ones. */
const spanStarts = perView((_view, _head) => new Map<string, number[]>());

/** Where chunks of entries [0, last) begin; the last one ends at `last`. */
export function chunkStarts(
  view: KeyView,
  params: Cutting,
  last: number,
  model: { readonly kvHeads: number; readonly headDim: number },
): number[] {
  const { queries: span, boundaries, chunk, side, apart, most, threshold } = params;
  const known = spanStarts(view, 0);
  const settings = [span, boundaries, chunk, side, apart, most, threshold].join();
  const starts: number[] = [];
  for (let from = 0; from < last; from += span) {
    const to = Math.min(from + span, last);
    // a span that the rows have not reached the end of is cut anew for the next block of them
    const key = to === from + span ? `${settings}|${from}` : "";
    let own = known.get(key);
    if (!own || key === "") {
      if (boundaries === "fixed") own = Array.from({ length: Math.ceil((to - from) / chunk) }, (_, i) => i * chunk);
      else {
        const width = model.kvHeads * model.headDim;
        const scores = boundaryScores(wideKeys(view, model.kvHeads).subarray(from * width, to * width), width, side);
        own = [0, ...chooseBoundaries(scores, { threshold, apart, most })];
      }
      if (key !== "") known.set(key, own);
    }
    for (const start of own) starts.push(from + start);
  }
  return starts;
}
