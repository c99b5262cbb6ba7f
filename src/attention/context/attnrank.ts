import { z } from "zod";
import { FoveaError } from "../../error.js";
import { method } from "../method.js";

const span = z
  .array(z.int().min(0))
  .length(2)
  .refine(([start, end]) => start < end, "expected [start, end) with start below end");

const parameters = z.object({
  items: z.array(span).min(1).describe("token spans [start, end) of the passages or examples, in their order"),
  relevance: z.array(z.number()).min(1).describe("how relevant each item is: a retriever's score (s)"),
  profile: z
    .array(z.number().min(0))
    .min(1)
    .describe("attention that each slot of a list gets in this model, first to last (P): basinProfile measures it"),
  worst: z.boolean().default(false).describe("the most relevant item in the least attended slot, as a control"),
});

/**
 * AttnRank: a model attends to the first and the last items of a list more than to those between, whatever they say. The
 * most relevant item is put where most attention goes, the next where the next most goes, and so on.
 */
export const attnrank = method({
  name: "attnrank",
  family: "context",
  does: "Orders the passages of a prompt so that the most relevant one stands where the model attends most.",
  paper: { title: "Attention Basin: Why Contextual Position Matters in Large Language Models", venue: "arXiv 2025" },
  needs: "a profile of the model and template, from some hundred unlabelled prompts, and relevance scores",
  cost: "nothing: an order",
  facts: "the paper's abstract and figures; no official code was found",
  deviations: ["a profile of another number of items is interpolated over relative positions"],
  exact: { items: [[0, 1]], relevance: [0], profile: [1] },
  trials: [
    {
      parameters: {
        items: [
          [2, 12],
          [12, 20],
          [22, 32],
        ],
        relevance: [0.1, 0.5, 0.9],
        profile: [0.5, 0.2, 0.3],
      },
      uniform: true,
    },
  ],
  status: "experimental",
  parameters,
  scope: "layers",
  hooks: ["context"],
  check(_model, { items, relevance }) {
    if (items.length !== relevance.length)
      throw new FoveaError("bad-input", `attnrank: ${items.length} items and ${relevance.length} relevance scores`, {
        hint: "give one score for each item, in the same order",
      });
    for (let i = 1; i < items.length; i++)
      if (items[i][0] < items[i - 1][1])
        throw new FoveaError("bad-input", `attnrank: item ${i} begins at ${items[i][0]}, before the one ahead ends`);
  },
  create: ({ items, relevance, profile, worst }) => ({
    context: ({ ids }) => reordered(ids, items, attentionOrder(relevance, profile, worst)),
  }),
});

/**
 * Which item goes into each slot: slots by attention and items by relevance, both descending and stable, are paired.
 *
 * @param worst slots by attention ascending instead
 */
export function attentionOrder(relevance: readonly number[], profile: readonly number[], worst = false): number[] {
  const slots = slotProfile(profile, relevance.length);
  const bySlot = ranked(worst ? slots.map((x) => -x) : slots);
  const order = new Array<number>(relevance.length);
  for (const [rank, item] of ranked(relevance).entries()) order[bySlot[rank]] = item;
  return order;
}

/** Indices by value, descending; equal ones keep their order. */
function ranked(values: readonly number[]): number[] {
  return values.map((_, i) => i).sort((a, b) => values[b] - values[a] || a - b);
}

/** A profile for another number of slots: interpolated over relative positions i / (k - 1). */
export function slotProfile(profile: readonly number[], slots: number): number[] {
  if (profile.length === slots) return [...profile];
  return Array.from({ length: slots }, (_, i) => {
    const at = slots === 1 ? 0 : (i / (slots - 1)) * (profile.length - 1);
    const below = Math.floor(at);
    const above = Math.min(profile.length - 1, below + 1);
    return profile[below] + (at - below) * (profile[above] - profile[below]);
  });
}

/** The ids with other items in the items' places; what stands between them stays. */
function reordered(ids: readonly number[], items: readonly number[][], order: readonly number[]): readonly number[] {
  const end = items[items.length - 1][1];
  if (end > ids.length)
    throw new FoveaError("bad-input", `attnrank: the last item ends at ${end}; the prompt has ${ids.length} tokens`, {
      hint: "prompt.span(text) gives the spans of a prompt's passages",
    });
  const out: number[] = [];
  let at = 0;
  for (const [slot, item] of order.entries()) {
    out.push(...ids.slice(at, items[slot][0]), ...ids.slice(...(items[item] as [number, number])));
    at = items[slot][1];
  }
  return [...out, ...ids.slice(at)];
}
