import { z } from "zod";
import type { LogBias } from "../../engine/hooks.js";
import { headsOf, headsOnce, headsParameter } from "../heads/head-list.js";
import { method } from "../method.js";
import { headsInScope } from "../scope.js";
import { inSpans, spansOf, spansParameter } from "../spans.js";

/** How many tokens the prompt has: generated ones are never penalised. */
interface State {
  prompt: number;
}

const parameters = z.object({
  span: spansParameter.describe(
    "tokens to highlight, [start, end) or a list of such: prompt.span(text) gives them (G)",
  ),
  heads: headsParameter.describe("steered heads, as heads=[3.0-2,4.7] or a head-list file (H)"),
  alpha: z.number().positive().max(1).default(0.01).describe("factor on what is not highlighted (alpha)"),
});

/**
 * PASTA: in some heads the weights of all prompt tokens that the user did not highlight are multiplied by alpha and the
 * row is normalised again, which is the same as adding ln(alpha) to their logits. Generated tokens keep their weight.
 */
export const pasta = method({
  name: "pasta",
  family: "steering",
  does: "Makes chosen heads read what the user highlights.",
  paper: {
    title: "Tell Your Model Where to Attend: Post-hoc Attention Steering for LLMs",
    venue: "ICLR 2024",
    url: "https://github.com/QingruZhang/PASTA",
  },
  needs: "a head list of the model, found once by searching heads on labelled examples",
  cost: "one addition per steered head and key",
  facts: "the official code; the rule that ranks heads from the paper",
  deviations: ["several spans are one highlight, their union; the released code penalises each span's complement"],
  exact: { alpha: 1, span: [0, 1], heads: [{ layer: 0, head: 0 }] },
  trials: [
    {
      parameters: {
        span: [20, 30],
        heads: [
          { layer: 0, head: 0 },
          { layer: 1, head: 2 },
        ],
      },
    },
  ],
  status: "experimental",
  parameters,
  scope: "layers",
  hooks: ["scores"],
  check: (model, { heads }) => void headsOf(heads, model),
  create({ span, heads, alpha }) {
    const spans = spansOf(span);
    const penalty = Math.log(alpha);
    const chosen = headsOnce(heads);
    return {
      state: (): State => ({ prompt: 0 }),
      bias(step): LogBias | undefined {
        const state = step.state as State;
        if (step.phase === "prompt") state.prompt = step.totalRows;
        const { model, view, layer } = step;
        const { query } = headsInScope(chosen(model), layer, model);
        if (penalty === 0 || !query.includes(true)) return undefined;
        const group = model.heads / model.kvHeads;
        const keys = Math.max(...Array.from({ length: model.kvHeads }, (_, kv) => view.length(kv)));
        const data = new Float32Array(model.heads * keys);
        for (let h = 0; h < model.heads; h++) {
          if (!query[h]) continue;
          const positions = view.positions(Math.floor(h / group));
          for (let i = 0; i < positions.length; i++)
            if (positions[i] < state.prompt && !inSpans(spans, positions[i])) data[h * keys + i] = penalty;
        }
        return { data, heads: model.heads, rows: 0 };
      },
    };
  },
});
