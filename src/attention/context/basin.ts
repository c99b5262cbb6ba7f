import type { Model, Reducer } from "../../engine/api.js";
import { FoveaError } from "../../error.js";
import { includesLayer } from "../observers/head-table.js";
import { eachRow } from "../observers/row-mean.js";

export interface ItemAttentionOptions {
  /** Layers that are averaged; negative ones count from the last. Default all. */
  layers?: readonly number[];
  /** Attention of all of an item's tokens, or their mean where items differ in length. Default "sum". */
  reduce?: "sum" | "mean";
}

/** Attention of a prompt's last row on each item of a list, mean over query heads. */
export interface ItemAttention {
  readonly layers: number;
  readonly items: number;
  /** [L, k]; NaN in layers that were not observed. */
  readonly data: Float32Array;
}

/** Reduces a prompt's last row to its attention on the items, token spans [start, end), of every layer. */
export function itemAttention(
  items: readonly (readonly [start: number, end: number])[],
  { layers, reduce = "sum" }: ItemAttentionOptions = {},
): Reducer<ItemAttention> {
  if (items.length === 0) throw new FoveaError("bad-input", "there is no item to measure; expected at least one span");
  return {
    name: "item-attention",
    layers,
    start(model, tokens) {
      const data = new Float32Array(model.layers * items.length).fill(Number.NaN);
      return {
        observe(step) {
          if (!includesLayer(layers, step.layer, model)) return;
          eachRow(step, (head, { weights, keys, position }) => {
            if (position !== tokens - 1) return;
            for (const [i, [start, end]] of items.entries()) {
              let sum = 0;
              for (let s = 0; s < keys.length; s++) if (keys[s] >= start && keys[s] < end) sum += weights[s];
              const at = step.layer * items.length + i;
              const share = sum / (reduce === "mean" ? end - start : 1) / model.heads;
              data[at] = head === 0 ? share : data[at] + share;
            }
          });
        },
        finish: () => ({ layers: model.layers, items: items.length, data }),
      };
    },
  };
}

/** A calibration prompt: k items in the deployment template, in an order shuffled for this prompt. */
export interface BasinPrompt {
  readonly ids: readonly number[];
  readonly items: readonly (readonly [start: number, end: number])[];
}

/**
 * How much attention each slot of a list gets in a model, first to last, [k], summing to 1: AttnRank's profile. Each
 * prompt's attention on its items, mean over layers, is brought to a sum of 1; the prompts' mean is the profile.
 *
 * It belongs to the model and the template. Shuffle the items in every prompt, so that what they say averages out; keep
 * an instruction before the first one, which else takes the first token's sink; leave the question and delimiters out.
 */
export async function basinProfile(
  model: Pick<Model, "observe">,
  prompts: Iterable<BasinPrompt>,
  options: ItemAttentionOptions = {},
): Promise<number[]> {
  let profile: number[] | undefined;
  let count = 0;
  for (const { ids, items } of prompts) {
    if (profile && items.length !== profile.length)
      throw new FoveaError("bad-input", `a prompt of ${items.length} items among prompts of ${profile.length}`, {
        hint: "calibrate each number of items for itself, or let attnrank interpolate",
      });
    const { attention } = await model.observe([...ids], { attention: itemAttention(items, options) });
    const share = itemShares(attention);
    profile = share.map((x, i) => x + (profile?.[i] ?? 0));
    count++;
  }
  if (!profile) throw new FoveaError("bad-input", "there is no calibration prompt; expected at least one");
  return profile.map((x) => x / count);
}

/** Mean over the observed layers, brought to a sum of 1: [k]. */
export function itemShares({ layers, items, data }: ItemAttention): number[] {
  const sums = new Array<number>(items).fill(0);
  for (let l = 0; l < layers; l++)
    if (!Number.isNaN(data[l * items])) for (let i = 0; i < items; i++) sums[i] += data[l * items + i];
  const total = sums.reduce((a, b) => a + b, 0);
  return sums.map((x) => (total > 0 ? x / total : 1 / items));
}

/** Attention on the outer slots over that on the inner ones: above 1 where there is a basin. NaN for fewer than three. */
export function basinDepth(profile: readonly number[]): number {
  const inner = profile.slice(1, -1);
  if (inner.length === 0) return Number.NaN;
  return (profile[0] + profile[profile.length - 1]) / 2 / (inner.reduce((a, b) => a + b, 0) / inner.length);
}
