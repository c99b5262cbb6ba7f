import { z } from "zod";
import { type MechanismInputs, type MechanismWeight, mechanism } from "../../models/index.js";
import { type GatedState, gatedState, projectHeads, unitLength } from "./gated-state.js";
import { convolved, groupsOf, type PartOptions, partParameters, partState, partWeights, readOut } from "./parts.js";

const chunk = z.int().min(1).default(32).describe("rows of a chunk (C)");

/**
 * The delta rule (Parallelizing Linear Transformers with the Delta Rule, NeurIPS 2024): what the state says of a key is
 * corrected towards the new value, S += beta k (v - k S)^T, with keys of unit length and beta = sigmoid(W x).
 */
export const deltaRule = mechanism({
  name: "delta-rule",
  does: "A state that is corrected instead of added to.",
  rotary: false,
  parameters: z.object({ chunk, ...partParameters({ convolution: 4, output: "norm" }) }),
  weights: (shape, parts): Record<string, MechanismWeight> => ({
    beta: { shape: [shape.kvHeads, shape.width] },
    ...partWeights(shape, parts),
  }),
  state: (shape, parts) => ({ S: [shape.kvHeads, shape.headDim, shape.headDim], ...partState(shape, parts) }),
  forward: (inputs, parameters) => corrected(inputs, parameters),
});

/** Gated delta rule (Gated Delta Networks, ICLR 2025): the state decays by exp(-exp(A) softplus(W x + b)) first. */
export const gatedDeltaRule = mechanism({
  name: "gated-delta-rule",
  does: "The delta rule on a state that decays.",
  rotary: false,
  parameters: z.object({ chunk, ...partParameters({ convolution: 4, output: "gated" }) }),
  weights: (shape, parts): Record<string, MechanismWeight> => ({
    beta: { shape: [shape.kvHeads, shape.width] },
    decay: { shape: [shape.kvHeads, shape.width] },
    decay_bias: { shape: [shape.kvHeads], first: -4 },
    decay_log: { shape: [shape.kvHeads], first: 0 },
    ...partWeights(shape, parts),
  }),
  state: (shape, parts) => ({ S: [shape.kvHeads, shape.headDim, shape.headDim], ...partState(shape, parts) }),
  forward(inputs, parameters) {
    const { x, weights } = inputs;
    const heads = groupsOf(inputs);
    const speed = weights.decay_log.exp().neg().reshape([1, heads, 1, 1]);
    const log = projectHeads(x, weights.decay, heads, weights.decay_bias).softplus().mul(speed);
    return corrected(inputs, parameters, { log, side: "scalar" });
  },
});

function corrected(inputs: MechanismInputs, options: PartOptions & { chunk: number }, gate?: GatedState["gate"]) {
  const { x, weights, state, documents, longest } = inputs;
  const { q, k, v, tails } = convolved(inputs, options);
  const result = gatedState({
    q: unitLength(options.convolution > 0 ? q : q.silu()),
    k: unitLength(options.convolution > 0 ? k : k.silu()),
    v,
    beta: projectHeads(x, weights.beta, groupsOf(inputs)).sigmoid(), // [B, H, T, 1]
    ...(gate && { gate }),
    state: state.S,
    documents,
    chunk: options.chunk,
    longest,
  });
  return { out: readOut(result.out, inputs, options), state: { S: result.state, ...tails } };
}
