import type { ModelShape } from "../../engine/hooks.js";
import { FoveaError } from "../../error.js";

/** One number per layer and query head. */
export interface HeadTable {
  readonly layers: number;
  readonly heads: number;
  /** [L, Hq]; NaN where nothing was observed. */
  readonly data: Float32Array;
  /** Negative layers count from the last. */
  at(where: { layer: number; head: number }): number;
}

/** A table over data [L, Hq]. */
export function headTable(data: Float32Array, layers: number, heads: number): HeadTable {
  return { layers, heads, data, at: (where) => data[headIndex(where, layers, heads)] };
}

/** Index of a head in [L, Hq]. Throws bad-input for a head that the model does not have. */
export function headIndex({ layer, head }: { layer: number; head: number }, layers: number, heads: number): number {
  const at = layer < 0 ? layer + layers : layer;
  if (!(at >= 0 && at < layers && head >= 0 && head < heads))
    throw new FoveaError(
      "bad-input",
      `there is no head ${layer}.${head}; layers are 0 to ${layers - 1}, heads 0 to ${heads - 1}`,
    );
  return at * heads + head;
}

/** Which rows of a prompt a reducer reads: all, the last, those from one on, or [start, end). */
export type RowChoice = "all" | "last" | { readonly from: number } | readonly [start: number, end: number];

/** Rows [start, end) of a text of `tokens`. Throws bad-input where there are none. */
export function chooseRows(choice: RowChoice, tokens: number): readonly [number, number] {
  const [start, end] =
    choice === "all"
      ? [0, tokens]
      : choice === "last"
        ? [tokens - 1, tokens]
        : "from" in choice
          ? [choice.from, tokens]
          : choice;
  if (!(Number.isInteger(start) && Number.isInteger(end) && start >= 0 && start < end && end <= tokens))
    throw new FoveaError(
      "bad-input",
      `rows ${start} to ${end} of a text of ${tokens} tokens; expected some rows within it`,
    );
  return [start, end];
}

/** Layers of an observer; negative ones count from the last. */
export function includesLayer(layers: readonly number[] | undefined, layer: number, model: ModelShape): boolean {
  return !layers || layers.some((l) => (l < 0 ? l + model.layers : l) === layer);
}
