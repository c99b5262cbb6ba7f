import { z } from "zod";
import { concat, type Tensor } from "../../graph/index.js";
import type { MechanismInputs, MechanismShape, MechanismWeight } from "../../models/index.js";

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
  { width, heads, headDim }: MechanismShape,
  { convolution, output }: PartOptions,
): Record<string, MechanismWeight> {
  const weights: Record<string, MechanismWeight> = {};
  if (convolution > 0)
    for (const name of STREAMS)
      weights[`conv_${name}`] = { shape: [convolution, heads * headDim], first: 1 / convolution };
  if (output !== "plain") weights.norm = { shape: [headDim], first: 1 };
  if (output === "gated") weights.output_gate = { shape: [heads * headDim, width] };
  return weights;
}

/** The convolution's state: what it saw of q, k and v last. */
export function partState({ heads, headDim }: MechanismShape, { convolution }: PartOptions): Record<string, number[]> {
  if (convolution < 2) return {};
  return Object.fromEntries(STREAMS.map((name) => [`last_${name}`, [heads, convolution - 1, headDim]]));
}

/** q, k and v [B, H, T, D] after the convolution and silu, and its next state; as they are without a convolution. */
export function convolved(
  inputs: MechanismInputs,
  { convolution }: PartOptions,
): Record<"q" | "k" | "v", Tensor> & { readonly tails: Record<string, Tensor> } {
  const { q, k, v, documents } = inputs;
  const tails: Record<string, Tensor> = {};
  if (convolution === 0) return { q, k, v, tails };
  const before = convolution - 1;
  const own = documents && before > 0 ? sameAsBefore(documents, before) : undefined;
  const made = (name: "q" | "k" | "v"): Tensor => {
    const x = inputs[name];
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
