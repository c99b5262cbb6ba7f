import { z } from "zod";
import { mechanism } from "../../models/index.js";
import { gatedState, withNormaliser } from "./gated-state.js";

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
  }),
  state: ({ heads, headDim }, { normaliser }) => ({ S: [heads, headDim, headDim + (normaliser ? 1 : 0)] }),
  forward({ q, k, v, state, documents, scale, longest }, { feature, normaliser, chunk }) {
    const map = { elu: (x: typeof q) => x.elu().add(1), relu: (x: typeof q) => x.relu(), identity: (x: typeof q) => x };
    const inputs = { q: map[feature](q).mul(scale), k: map[feature](k), v, state: state.S, documents, chunk, longest };
    const { out, state: S } = normaliser ? withNormaliser(inputs) : gatedState(inputs);
    return { out, state: { S } };
  },
});
