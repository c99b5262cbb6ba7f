import { z } from "zod";
import { type MechanismWeight, mechanism } from "../../models/index.js";
import { gatedState, perHead, projectHeads } from "./gated-state.js";
import { convolved, groupsOf, partParameters, partState, partWeights, readOut } from "./parts.js";

/**
 * Gated linear attention: the state decays. `fixed`: one rate per head, 1 - 2^(-5 - h) (RetNet, arXiv:2307.08621);
 * `scalar`: one per head and token (Mamba-2, "simple GLA"); `key`: one per key channel (GLA, ICML 2024); `value`: one per
 * value channel (the first pass of gated slot attention). The log-gate is logsigmoid(W2 W1 x + b) / 16, W1 of low rank.
 */
export const gatedLinearAttention = mechanism({
  name: "gated-linear-attention",
  does: "Linear attention whose state decays, by rates that the text decides.",
  rotary: false,
  parameters: z.object({
    gate: z.enum(["fixed", "scalar", "key", "value"]).default("key").describe("what decays at a rate of its own"),
    rank: z.int().min(1).default(16).describe("inner width of the gate's projection"),
    normalizer: z.number().positive().default(16).describe("divides the log-gate: slower forgetting"),
    chunk: z.int().min(1).default(64).describe("rows of a chunk (C)"),
    ...partParameters({ convolution: 0, output: "gated" }),
  }),
  weights(shape, { gate, rank, ...parts }): Record<string, MechanismWeight> {
    const { width, kvHeads, headDim } = shape;
    if (gate === "fixed") return partWeights(shape, parts);
    const gates = gate === "scalar" ? kvHeads : kvHeads * headDim;
    return {
      gate_down: { shape: [rank, width] },
      gate_up: { shape: [gates, rank] },
      gate_bias: { shape: [gates], first: 0 },
      ...partWeights(shape, parts),
    };
  },
  state: (shape, parts) => ({ S: [shape.kvHeads, shape.headDim, shape.headDim], ...partState(shape, parts) }),
  forward(inputs, parameters) {
    const { x, state, documents, weights, scale, longest } = inputs;
    const { gate, normalizer, chunk } = parameters;
    const { q, k, v, tails } = convolved(inputs, parameters);
    const heads = groupsOf(inputs);
    const logits = () => projectHeads(x.linear(weights.gate_down), weights.gate_up, heads, weights.gate_bias);
    const log =
      gate === "fixed"
        ? k
            .slice({ axis: 3, start: 0, end: 1 })
            .mul(0)
            .add(perHead(Array.from({ length: heads }, (_, h) => Math.log(1 - 2 ** (-5 - h)))))
        : logits().neg().softplus().neg().div(normalizer); // [B, H, T, 1 or D]
    const side = gate === "key" || gate === "value" ? gate : "scalar";
    const result = gatedState({
      q: q.mul(scale),
      k,
      v,
      gate: { log, side },
      state: state.S,
      documents,
      chunk,
      longest,
    });
    return { out: readOut(result.out, inputs, parameters), state: { S: result.state, ...tails } };
  },
});
