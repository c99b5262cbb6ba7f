import { z } from "zod";
import { type MechanismWeight, mechanism } from "../../models/index.js";
import { gatedState, withNormaliser } from "./gated-state.js";
import { convolved, partParameters, partState, partWeights, readOut } from "./parts.js";

/** Linear attention (Transformers are RNNs, ICML 2020): S += k v^T, out = q S, perhaps over q z with z += k. */
export const linearAttention = mechanism({
  name: "linear-attention",
  does: "A sum of key-value products instead of a cache.",
  rotary: false,
  parameters: z.object({
    feature: z
      .enum(["elu", "relu", "identity"])
      .default("elu")
      .describe("feature map of q and k: elu(x) + 1, relu, none"),
    normaliser: z.boolean().default(true).describe("divide by the keys' own sum; wants features that are not negative"),
    chunk: z.int().min(1).default(64).describe("rows of a chunk (C)"),
    ...partParameters({ convolution: 0, output: "plain" }),
  }),
  weights: (shape, parts): Record<string, MechanismWeight> => partWeights(shape, parts),
  state: (shape, parameters) => ({
    S: [shape.kvHeads, shape.headDim, shape.headDim + (parameters.normaliser ? 1 : 0)],
    ...partState(shape, parameters),
  }),
  forward(inputs, parameters) {
    const { state, documents, scale, longest } = inputs;
    const { feature, normaliser, chunk } = parameters;
    const { q, k, v, tails } = convolved(inputs, parameters);
    const map = { elu: (x: typeof q) => x.elu().add(1), relu: (x: typeof q) => x.relu(), identity: (x: typeof q) => x };
    const given = { q: map[feature](q).mul(scale), k: map[feature](k), v, state: state.S, documents, chunk, longest };
    const { out, state: S } = normaliser ? withNormaliser(given) : gatedState(given);
    return { out: readOut(out, inputs, parameters), state: { S, ...tails } };
  },
});
