import { z } from "zod";
import { mechanism } from "../../models/index.js";
import { gatedState, projectHeads, unitLength } from "./gated-state.js";

const parameters = z.object({ chunk: z.int().min(1).default(32).describe("rows of a chunk (C)") });

/**
 * The delta rule (Parallelizing Linear Transformers with the Delta Rule, NeurIPS 2024): what the state says of a key is
 * corrected towards the new value, S += beta k (v - k S)^T, with keys of unit length and beta = sigmoid(W x).
 */
export const deltaRule = mechanism({
  name: "delta-rule",
  does: "A state that is corrected instead of added to.",
  rotary: false,
  rows: 32,
  parameters,
  weights: ({ width, heads }) => ({ beta: { shape: [heads, width] } }),
  state: ({ heads, headDim }) => ({ S: [heads, headDim, headDim] }),
  forward({ q, k, v, x, state, documents, weights, longest }, { chunk }) {
    const beta = projectHeads(x, weights.beta, q.shape[1] as number).sigmoid(); // [B, H, T, 1]
    const inputs = {
      q: unitLength(q.silu()),
      k: unitLength(k.silu()),
      v,
      beta,
      state: state.S,
      documents,
      chunk,
      longest,
    };
    const { out, state: S } = gatedState(inputs);
    return { out, state: { S } };
  },
});

/** Gated delta rule (Gated Delta Networks, ICLR 2025): the state decays by exp(-exp(A) softplus(W x + b)) first. */
export const gatedDeltaRule = mechanism({
  name: "gated-delta-rule",
  does: "The delta rule on a state that decays.",
  rotary: false,
  rows: 32,
  parameters,
  weights: ({ width, heads }) => ({
    beta: { shape: [heads, width] },
    decay: { shape: [heads, width] },
    decay_bias: { shape: [heads], first: -4 },
    decay_log: { shape: [heads], first: 0 },
  }),
  state: ({ heads, headDim }) => ({ S: [heads, headDim, headDim] }),
  forward({ q, k, v, x, state, documents, weights, longest }, { chunk }) {
    const heads = q.shape[1] as number;
    const beta = projectHeads(x, weights.beta, heads).sigmoid();
    const speed = weights.decay_log.exp().neg().reshape([1, heads, 1, 1]);
    const log = projectHeads(x, weights.decay, heads, weights.decay_bias).softplus().mul(speed);
    const gate = { log, side: "scalar" } as const;
    const inputs = {
      q: unitLength(q.silu()),
      k: unitLength(k.silu()),
      v,
      beta,
      gate,
      state: state.S,
      documents,
      chunk,
      longest,
    };
    const { out, state: S } = gatedState(inputs);
    return { out, state: { S } };
  },
});
