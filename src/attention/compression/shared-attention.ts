import { z } from "zod";
import type { ActivationsStep, ModelShape } from "../../engine/hooks.js";
import { FoveaError } from "../../error.js";
import { method } from "../method.js";

const parameters = z.object({
  sharing: z
    .union([z.array(z.int().min(1)), z.int().min(1), z.literal("late")])
    .default("late")
    .describe(
      "layers that reuse the attention weights of the last layer before them, e.g. sharing=23-26; late: the paper's span, scaled to the model's depth",
    ),
});

/** The paper's span in Llama-2-7B: layers 23 to 26 of 32. */
const LATE = [23 / 32, 27 / 32] as const;

/** Queries and keys of the layer whose attention is shared, until the next layer has taken them. */
interface Slot {
  layer: number;
  q: Float32Array; // [T, Hq, D]
  k: Float32Array; // [T, Hkv, D]
}
interface State {
  slot?: Slot;
}

/**
 * Shared Attention: in a run of layers, the attention weights are those of the layer just before the run; each layer
 * sums its own values by them.
 *
 * Weights are a function of queries and keys, so those are what is handed on: the same weights come out, head by head,
 * and no map of them is ever held.
 */
export const sharedAttention = method({
  name: "shared-attention",
  family: "compression",
  does: "Lets runs of layers use the attention weights of the layer before them, with their own values.",
  paper: {
    title: "Beyond KV Caching: Shared Attention for Efficient LLMs",
    venue: "arXiv 2407.12866, 2024",
    url: "https://github.com/metacarbon/shareAtt",
  },
  needs: "nothing; the paper recommends fine-tuning. `layerSimilarity` finds spans that lose little",
  cost: "as full attention; the cached keys of sharing layers are copies and are not saved yet",
  facts: "a sheet made from the official code",
  deviations: [
    "queries and keys are shared instead of the weights that follow from them: the same weights, without a map in memory",
    "biases and edits of other methods act in each layer where they are given, not in the first one alone",
  ],
  exact: { sharing: [] },
  budget: null,
  trials: [
    { parameters: { sharing: [1] }, uniform: true },
    { parameters: { sharing: "late" }, uniform: true },
  ],
  status: "experimental",
  measured:
    "not yet measured on nano. stories260K, five texts of 200 tokens: 1.02 nats a token in full; 1.39, 1.30, 1.22 and 1.23 with " +
    "layer 1, 2, 3 or 4 of 5 sharing; that likeness of layers foretells the loss is not reproduced there",
  parameters,
  scope: "layers",
  check: (model, { sharing }) => void sharingLayers(sharing, model),
  state: (): State => ({}),
  activations(step: ActivationsStep<State>, { sharing }) {
    const sharers = sharingLayers(sharing, step.model);
    const { layer, state } = step;
    if (sharers.has(layer)) {
      // the layer before has run for the same rows just now, whether it shares itself or is the first of them
      const { slot } = state;
      if (slot?.layer !== layer - 1 || slot.q.length !== step.q.length)
        throw new FoveaError("unsupported", `shared-attention acts in layer ${layer} but not in the one before it`, {
          hint: "name the layers by `sharing`; `layers` must hold the layer before each run too",
        });
      step.q.set(slot.q);
      step.k.set(slot.k);
    }
    state.slot = sharers.has(layer + 1) ? { layer, q: step.q.slice(), k: step.k.slice() } : undefined;
  },
});

/** The layers that share. Throws bad-input for layers that the model does not have. */
export function sharingLayers(
  sharing: z.output<typeof parameters>["sharing"],
  { layers }: Pick<ModelShape, "layers">,
): ReadonlySet<number> {
  if (sharing === "late") {
    const [from, to] = LATE.map((share) => Math.round(share * layers));
    const first = Math.max(1, Math.min(from, layers - 1));
    return new Set(Array.from({ length: Math.max(layers > 1 ? 1 : 0, to - first) }, (_, i) => first + i));
  }
  const list = typeof sharing === "number" ? [sharing] : sharing;
  const wrong = list.find((l) => l >= layers);
  if (wrong !== undefined)
    throw new FoveaError("bad-input", `shared-attention: layer ${wrong} does not exist; the model has ${layers}`, {
      hint: `sharing layers are 1 to ${layers - 1}: the first layer has none before it`,
    });
  return new Set(list);
}
