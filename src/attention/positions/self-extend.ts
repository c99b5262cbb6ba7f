import { z } from "zod";
import { method } from "../method.js";
import { logScale, needsRotary, plansOf } from "./plans.js";

const parameters = z.object({
  group: z.int().min(1).default(8).describe("far positions that count as one (G)"),
  window: z.int().min(1).default(1024).describe("newest tokens, whose positions stay exact (W)"),
  scaleBase: z
    .int()
    .min(2)
    .optional()
    .describe("trained length, to scale queries by ln(i + 1) / ln(scaleBase) beyond it; default off"),
});

/**
 * Self-Extend: a key nearer than W is read at its distance i - j, one farther away at
 * floor(i/G) - floor(j/G) + W - floor(W/G), in one softmax, so that no distance is larger than those trained.
 *
 * Keys lie in the cache rotated at floor(j/G), as far rows read them; the newest W are turned to j at each step.
 */
export const selfExtend = method({
  name: "self-extend",
  family: "positions",
  does: "Reads far beyond the trained length: near tokens at exact positions, far ones at grouped positions.",
  paper: {
    title: "LLM Maybe LongLM: Self-Extend LLM Context Window Without Tuning",
    venue: "ICML 2024",
    url: "https://github.com/datamllab/LongLM",
  },
  cost: "all keys, and at each step the last `window` ones are turned; a prompt's scores are computed twice",
  facts: "the official code",
  deviations: [
    "floor(W/G) throughout; the official prefill divides, which differs where G does not divide W",
    "keys lie at grouped positions and near ones are turned; the official decode turns all keys",
    "a model's own sliding window stays; the official code needs it off",
  ],
  exact: { group: 1 },
  trials: [
    { parameters: { group: 4, window: 16 }, uniform: true },
    { parameters: { group: 3, window: 8, scaleBase: 32 }, uniform: true },
  ],
  status: "experimental",
  parameters,
  scope: "layers",
  hooks: ["position"],
  beyondContext: ({ group }) => group > 1,
  check: (model) => needsRotary("self-extend", model),
  create({ group, window, scaleBase }) {
    const plans = plansOf();
    const shift = window - Math.floor(window / group);
    const stored = (position: number) => Math.floor(position / group);
    const queryScale = scaleBase ? (position: number) => logScale(position, scaleBase) : undefined;
    return {
      position({ plan: own, positions }) {
        const plan = own && queryScale && plans(own, "", () => ({ ...own, queryScale }));
        const placed = plan ? { plan } : {};
        // groups of one leave every position as it is
        if (group === 1) return placed;
        const key = positions.map(stored);
        return { ...placed, key, query: key.map((p) => p + shift), near: { window, stored } };
      },
    };
  },
});
