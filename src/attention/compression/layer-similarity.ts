import type { Reducer } from "../../engine/api.js";
import { FoveaError } from "../../error.js";
import { eachRow } from "../observers/row-mean.js";

/** How alike the attention of each two layers is. */
export interface LayerSimilarity {
  readonly layers: number;
  /** [L, L], symmetric, 1 on the diagonal. */
  readonly data: Float32Array;
}

/**
 * Cosine similarity of attention rows of each two layers, same head and same query, mean over heads and over the last
 * `rows` rows of the text (default 64): rows of all layers are held for it, rows x tokens x heads x layers numbers.
 *
 * @example
 * const { alike } = await model.observe(text, { alike: layerSimilarity() });
 * const [from, to] = bestSpan(alike, 4);
 * model.with(`shared-attention(sharing=${from}-${to})`);
 */
export function layerSimilarity({ rows = 64 }: { rows?: number } = {}): Reducer<LayerSimilarity> {
  return {
    name: "layer-similarity",
    start({ layers }, tokens) {
      const kept = new Map<string, Float32Array>();
      return {
        observe(step) {
          eachRow(step, (head, { weights, position }) => {
            if (position >= tokens - rows) kept.set(`${step.layer} ${head} ${position}`, unit(weights));
          });
        },
        finish: () => ({ layers, data: meanCosines(kept, layers) }),
      };
    },
  };
}

function unit(row: Float32Array): Float32Array {
  const length = Math.sqrt(row.reduce((sum, x) => sum + x * x, 0));
  return row.map((x) => x / (length || 1));
}

/** Means [L, L] over heads and positions of the products of unit rows, kept by "layer head position". */
function meanCosines(kept: ReadonlyMap<string, Float32Array>, layers: number): Float32Array {
  const sums = new Float64Array(layers * layers);
  let count = 0;
  for (const [key, first] of kept) {
    const [layer, ...place] = key.split(" ");
    if (layer !== "0") continue;
    const rows = Array.from({ length: layers }, (_, l) => kept.get([l, ...place].join(" ")) ?? first);
    for (let a = 0; a < layers; a++)
      for (let b = 0; b < layers; b++) sums[a * layers + b] += rows[a].reduce((sum, x, i) => sum + x * rows[b][i], 0);
    count++;
  }
  return Float32Array.from(sums, (sum) => sum / Math.max(1, count));
}

/**
 * The span of `length` layers whose attention is most like that of the layer before it: [first, last], both sharing.
 *
 * @throws FoveaError `bad-input` where no such span exists
 */
export function bestSpan({ layers, data }: LayerSimilarity, length: number): readonly [first: number, last: number] {
  if (!(Number.isInteger(length) && length >= 1 && length < layers))
    throw new FoveaError(
      "bad-input",
      `a span of ${length} layers in a model of ${layers}; expected 1 to ${layers - 1}`,
    );
  let best = 1;
  const value = (first: number): number => {
    let sum = 0;
    for (let l = first; l < first + length; l++) sum += data[(first - 1) * layers + l];
    return sum;
  };
  for (let first = 2; first + length <= layers; first++) if (value(first) > value(best)) best = first;
  return [best, best + length - 1];
}
