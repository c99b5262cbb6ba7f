import { z } from "zod";
import type { ActivationsStep, ModelShape } from "../../engine/hooks.js";
import { FoveaError } from "../../error.js";
import { oncePerModel } from "../files.js";
import { method } from "../method.js";
import { readMethodTensors, tensorOf } from "../method-tensors.js";
import { needsRotary, plansOf } from "../positions/plans.js";
import { choosePairs, partialPlan } from "./rotary-pairs.js";
import { projectOnto } from "./symmetric.js";

export const NAME = "mha2mla";

const parameters = z.object({
  rotary: z
    .number()
    .positive()
    .default(1 / 8)
    .describe("dimensions of a head that keep their position, or their share below 1; with a basis the file's (d_r)"),
  pairs: z
    .enum(["uniform", "high", "low"])
    .default("uniform")
    .describe("which pairs keep it: evenly spread, the fastest or the slowest; with a basis the file's"),
  basis: z
    .string()
    .min(1)
    .optional()
    .describe("pairs chosen by 2-norm and the joint basis of the model, a file that latentBases writes"),
  rank: z
    .int()
    .min(1)
    .optional()
    .describe(
      "numbers of the latent per token and KV head, with a basis; default: all of them, which changes nothing (low_rank)",
    ),
});
type Parameters = z.output<typeof parameters>;

/**
 * MHA2MLA, training-free: of each head's rotary pairs a few keep their position; the rest of the keys lose it and share
 * one low-rank latent with the values. As U^T [k; v] = S z for the truncated W = U S V^T, the latent z of the paper is a
 * projection of the ordinary k and v, and U turns it back: that is what is computed here.
 */
export const mha2mla = method({
  name: NAME,
  family: "compression",
  does: "Keeps positions in a few dimensions of each head; the other keys and all values become one low-rank latent.",
  paper: {
    title:
      "Towards Economical Inference: Enabling DeepSeek's Multi-Head Latent Attention in Any Transformer-based LLMs",
    venue: "ACL 2025",
    url: "https://github.com/JT-Ushio/MHA2MLA",
  },
  needs: "for latents a basis of the model's weights, once (`latentBases`); the paper fine-tunes afterwards",
  cost: "4 n r multiplications per token and layer, n = Hkv (2 D - d_r), r = rank Hkv; cache bytes are not saved yet",
  facts: "a sheet made from the official code",
  deviations: [
    "the cache holds the keys and values that a latent stands for, at full size: what is computed is exact, memory is not saved yet",
    "no fine-tuning: the training-free form",
    "without a basis pairs are chosen alike in all heads, and nothing is truncated",
  ],
  exact: { rotary: 2 ** 20 },
  trials: [
    { parameters: { rotary: 1 / 2 }, uniform: true },
    { parameters: { rotary: 4, pairs: "high" }, uniform: true },
  ],
  status: "experimental",
  measured:
    "not yet measured on nano. stories260K, five texts of 200 tokens, half of the positions: 1.76 nats a token with uniform pairs, " +
    "2.54 by 2-norm, 2.71 with the slowest, 1.02 in full; that 2-norm is best is not reproduced there",
  parameters,
  scope: "layers",
  hooks: ["position", "activations"],
  check(model, params) {
    needsRotary(NAME, model);
    if (params.rank !== undefined && params.basis === undefined)
      throw new FoveaError("bad-input", `${NAME}: a rank needs the basis that it is the rank of`, {
        hint: "latentBases finds one for a model; basis=FILE names it",
      });
    latentsOf(params, model);
  },
  create(params) {
    const plans = plansOf();
    const latents = oncePerModel((model) => latentsOf(params, model));
    return {
      position({ plan, layer, model }) {
        if (!plan) return undefined;
        const own = latents(model)?.[layer];
        const kept = () => own?.kept ?? new Array<number[]>(model.kvHeads).fill(choosePairs(plan.dims / 2, params));
        return { plan: plans(plan, `${own ? layer : ""}`, () => partialPlan(plan, kept())) };
      },
      activations(step) {
        const own = latents(step.model)?.[step.layer];
        if (own) throughLatent(step, own);
      },
    };
  },
});

/** What a layer's latent stands for: see `latentBases`. */
interface Latent {
  /** Pairs that keep their position, for each KV head. */
  readonly kept: readonly (readonly number[])[];
  /** Places of the plain keys in k [Hkv * D]; all of v follow. */
  readonly plain: readonly number[];
  /** U [n, columns], n = plain keys and values. */
  readonly basis: Float32Array;
  readonly columns: number;
  /** Columns that are used: the latent's width. */
  readonly width: number;
  /** [n] what the projections add to W x. */
  readonly bias: Float32Array;
}

function latentsOf({ basis, rank }: Parameters, model: ModelShape): Latent[] | undefined {
  if (basis === undefined) return undefined;
  const { kvHeads, headDim } = model;
  const file = readMethodTensors(basis, NAME, model);
  return Array.from({ length: model.layers }, (_, l): Latent => {
    const pairs = tensorOf(file, `pairs.${l}`, [kvHeads, null]);
    const plain = tensorOf(file, `plain.${l}`, [null]);
    const n = plain.length + kvHeads * headDim;
    const data = tensorOf(file, `basis.${l}`, [n, null]);
    const [columns, count] = [data.length / n, pairs.length / kvHeads];
    const width = rank === undefined ? columns : rank * kvHeads;
    if (width > columns)
      throw new FoveaError(
        "bad-input",
        `${NAME}: a rank of ${rank} for each of ${kvHeads} KV heads; ${basis} has ${columns}`,
        {
          hint: `give at most rank=${Math.floor(columns / kvHeads)}`,
        },
      );
    return {
      kept: Array.from({ length: kvHeads }, (_, h) => Array.from(pairs.subarray(h * count, (h + 1) * count))),
      plain: Array.from(plain),
      ...{ basis: data, columns, width, bias: tensorOf(file, `bias.${l}`, [n]) },
    };
  });
}

/** Plain keys and values of each row through the latent and back. */
function throughLatent({ k, v, rows }: ActivationsStep, { plain, basis, columns, width, bias }: Latent): void {
  const [wide, values] = [k.length / rows, v.length / rows];
  const x = new Float32Array(plain.length + values);
  for (let t = 0; t < rows; t++) {
    for (const [i, at] of plain.entries()) x[i] = k[t * wide + at];
    x.set(v.subarray(t * values, (t + 1) * values), plain.length);
    for (let i = 0; i < x.length; i++) x[i] -= bias[i];
    projectOnto(x, basis, columns, width);
    for (let i = 0; i < x.length; i++) x[i] += bias[i];
    for (const [i, at] of plain.entries()) k[t * wide + at] = x[i];
    v.set(x.subarray(plain.length), t * values);
  }
}
