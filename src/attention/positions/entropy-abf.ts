import { z } from "zod";
import { method } from "../method.js";
import { baseParameter, inverseOf, logScale, needsRotary, plansOf } from "./plans.js";

const parameters = z.object({
  base: baseParameter().default(500000).describe("rotary base; `own` leaves the model's frequencies"),
  trained: z
    .int()
    .min(2)
    .optional()
    .describe("trained length (c), up to which queries stay; default the model's context"),
  exemptLayers: z.int().min(0).default(2).describe("first layers whose queries are not scaled"),
});

/**
 * Entropy-ABF: a larger rotary base, and queries at position p multiplied by lambda(p) = max(1, ln(p + 1) / ln(c)), so
 * that attention stays as sharp over a long text as over a short one. The first layers keep lambda = 1: their entropy
 * grows with the text in the unmodified model too.
 */
export const entropyAbf = method({
  name: "entropy-abf",
  family: "positions",
  does: "Raises the rotary base and scales queries by their position, so that attention stays sharp over long texts.",
  paper: {
    title: "Extending LLMs' Context Window with 100 Samples",
    venue: "arXiv 2024",
    url: "https://github.com/GAIR-NLP/Entropy-ABF",
  },
  needs: "some hundred long samples of training for the paper's quality; base=own needs none",
  cost: "one multiplication per query vector",
  facts: "the official code; the exempt layers as the paper has them, which its released patch does not honour",
  deviations: [],
  exact: { base: "own", trained: 2 ** 30 },
  trials: [
    { parameters: {}, uniform: true },
    { parameters: { base: "own", trained: 16 }, uniform: true },
  ],
  status: "experimental",
  parameters,
  scope: "layers",
  hooks: ["position"],
  beyondContext: () => true,
  check: (model) => needsRotary("entropy-abf", model),
  create({ base, trained, exemptLayers }) {
    const plans = plansOf();
    return {
      position({ plan, layer, model }) {
        if (!plan) return undefined;
        const exempt = layer < exemptLayers;
        const length = trained ?? model.maxPositions;
        return {
          plan: plans(plan, exempt ? "exempt" : `${length}`, () => ({
            ...plan,
            inverse: inverseOf(plan, base),
            ...(!exempt && { queryScale: (position: number) => logScale(position, length) }),
          })),
        };
      },
    };
  },
});
