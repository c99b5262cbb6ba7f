import { z } from "zod";
import { concat, type Tensor } from "../../graph/index.js";
import type { MechanismInputs, MechanismShape, MechanismWeight } from "../../models/index.js";
import { oncePerGroup } from "./gated-state.js";

/** What surrounds the state: a short convolution before it, a norm and a gate behind it. */
export interface PartOptions {
  readonly convolution: number;
  readonly output: "plain" | "norm" | "gated";
}

/** Parameters of the parts, with a mechanism's own defaults. */
export function partParameters({ convolution, output }: PartOptions) {
  return {
    convolution: z
      .int()
      .min(0)
      .default(convolution)
      .describe("tokens that a causal convolution of q, k and v sees, each channel by itself; 0: none"),
    output: z
      .enum(["plain", "norm", "gated"])
      .default(output)
      .describe("outputs as they are, under an RMS norm per head, or that times silu(W x)"),
  };
}

const STREAMS = ["q", "k", "v"] as const;

export function partWeights(
  { width, heads, kvHeads, headDim }: MechanismShape,
  { convolution, output }: PartOptions,
): Record<string, MechanismWeight> {
  const weights: Record<string, MechanismWeight> = {};
  if (convolution > 0)
    for (const name of STREAMS) {
      const channels = (name === "q" ? heads : kvHeads) * headDim;
      weights[`conv_${name}`] = { shape: [convolution, channels], first: 1 / convolution };
    }
  if (output !== "plain") weights.norm = { shape: [headDim], first: 1 };
  if (output === "gated") weights.output_gate = { shape: [heads * headDim, width] };
  return weights;
}

/** The convolution's state: what it saw of q, k and v last. */
export function partState(
  { heads, kvHeads, headDim }: MechanismShape,
  { convolution }: PartOptions,
): Record<string, number[]> {
  if (convolution < 2) return {};
  const of = (name: string): number[] => [name === "q" ? heads : kvHeads, convolution - 1, headDim];
  return Object.fromEntries(STREAMS.map((name) => [`last_${name}`, of(name)]));
}

/**
 * q [B, H, T, D], k and v [B, Hkv, T, D] after the convolution and silu, and its next state; as they are without a
 * convolution.
 */
export function convolved(
  inputs: MechanismInputs,
  { convolution }: PartOptions,
): Record<"q" | "k" | "v", Tensor> & { readonly tails: Record<string, Tensor> } {
  const { documents } = inputs;
  const kvHeads = groupsOf(inputs);
  const given = { q: inputs.q, k: oncePerGroup(inputs.k, kvHeads), v: oncePerGroup(inputs.v, kvHeads) };
  const tails: Record<string, Tensor> = {};
  if (convolution === 0) return { ...given, tails };
  const before = convolution - 1;
  const own = documents && before > 0 ? sameAsBefore(documents, before) : undefined;
  const made = (name: "q" | "k" | "v"): Tensor => {
    const x = given[name];
    const weight = inputs.weights[`conv_${name}`];
    const joined = before > 0 ? concat([inputs.state[`last_${name}`], x], 2) : x;
    if (before > 0) tails[`last_${name}`] = joined.slice({ axis: 2, start: -before });
    const [, heads, , headDim] = x.shape;
    let sum: Tensor | undefined;
    for (let i = 0; i < convolution; i++) {
      const back = before - i; // rows that this tap looks back
      const rows = joined.slice({ axis: 2, start: i, ...(back > 0 && { end: -back }) });
      const factor = weight.slice({ axis: 0, start: i, end: i + 1 }).reshape([1, heads, 1, headDim]);
      const seen = back > 0 && own ? rows.mul(own(back)) : rows;
      sum = sum ? sum.add(seen.mul(factor)) : seen.mul(factor);
    }
    return (sum as Tensor).silu();
  };
  return { q: made("q"), k: made("k"), v: made("v"), tails };
}

/** Key-value heads: those of the state S [B, Hkv, K, V]. */
export function groupsOf({ state }: MechanismInputs): number {
  return state.S.shape[1] as number;
}

/** 1 where the row so many rows before is of the same document [B, 1, T, 1]; before the first row there is nothing. */
function sameAsBefore(documents: Tensor, before: number): (back: number) => Tensor {
  const first = documents.slice({ axis: 1, start: 0, end: 1 });
  const joined = concat([...Array.from({ length: before }, () => first), documents], 1);
  return (back) =>
    joined
      .slice({ axis: 1, start: before - back, end: -back })
      .equal(documents)
      .cast("float32")
      .unsqueeze(1)
      .unsqueeze(3);
}

/** Outputs [B, H, T, D] under the norm and the gate. */
export function readOut(out: Tensor, { x, weights, q }: MechanismInputs, { output }: PartOptions): Tensor {
  if (output === "plain") return out;
  const normed = out.rmsNorm(weights.norm, { eps: 1e-5 });
  if (output === "norm") return normed;
  const [B, heads, T, headDim] = q.shape;
  const gate = x.linear(weights.output_gate).reshape([B, T, heads, headDim]).transpose(0, 2, 1, 3);
  return normed.mul(gate.silu());
}
