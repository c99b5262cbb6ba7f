import { z } from "zod";
import { method } from "../method.js";
import { headsInScope } from "../scope.js";
import { headsOf, headsOnce, headsParameter } from "./head-list.js";

/** Heads' outputs set to zero: what a model cannot do without them, they did (or helped to do). */
export const knockOut = method({
  name: "knock-out",
  family: "heads",
  kind: "analysis",
  does: "Sets the outputs of single heads to zero.",
  paper: {
    title: "Are Sixteen Heads Really Better than One?",
    venue: "NeurIPS 2019",
    url: "https://arxiv.org/abs/1905.10650",
  },
  cost: "nothing",
  facts: "the paper: a gate of 0 on a head's output",
  exact: { heads: [] },
  trials: [
    {
      parameters: {
        heads: [
          { layer: 0, head: 1 },
          { layer: 1, head: 0 },
        ],
      },
      uniform: true,
    },
  ],
  status: "holds",
  parameters: z.object({
    heads: headsParameter
      .default([])
      .describe("heads, as heads=[3.0-2,4.7] or a head-list file; none: nothing changes"),
  }),
  hooks: ["heads"],
  check: (model, { heads }) => void headsOf(heads, model),
  create({ heads: parameter }) {
    const chosen = headsOnce(parameter);
    return {
      heads({ layer, model, rows, heads: out }) {
        const { query } = headsInScope(chosen(model), layer, model);
        const width = out.length / rows / model.heads;
        for (let t = 0; t < rows; t++)
          for (let h = 0; h < model.heads; h++)
            if (query[h]) out.fill(0, (t * model.heads + h) * width, (t * model.heads + h + 1) * width);
      },
    };
  },
});
