import { z } from "zod";
import type { ContextStep } from "../../engine/hooks.js";
import { FoveaError } from "../../error.js";
import { budget, budgetTokens, largest } from "../budget.js";
import { pool } from "../eviction/snapkv.js";
import { method } from "../method.js";

/** Llama 3.1's filter layer, as a share of its depth: where another model's is looked for first. */
const DEPTH = 13 / 32;

const parameters = z.object({
  tokens: budget().default(1024).describe("prompt tokens that stay, or their share (k)"),
  layer: z.int().min(0).optional().describe("layer whose last row chooses (r); default at 13/32 of the depth"),
  kernel: z
    .int()
    .min(1)
    .refine((k) => k % 2 === 1, "expected an odd width")
    .default(5)
    .describe("width over which scores are averaged along the text"),
  first: z.int().min(0).default(0).describe("first tokens that stay whatever their score (a chat template's head)"),
  last: z.int().min(0).default(0).describe("last tokens that stay whatever their score"),
});
type Parameters = z.output<typeof parameters>;

/**
 * GemFilter: the first layers read the whole prompt once; the tokens that its last row looks at in layer r, in their
 * order, become the prompt that the whole model reads, from position 0 and with an empty cache.
 */
export const gemfilter = method({
  name: "gemfilter",
  family: "context",
  does: "Reads the prompt with the first layers only, and starts over with the tokens that its last row looks at there.",
  paper: {
    title: "Discovering the Gems in Early Layers: Accelerating Long-Context LLMs with 1000x Input Token Reduction",
    venue: "arXiv 2024",
    url: "https://github.com/SalesforceAIResearch/GemFilter",
  },
  cost: "layers 0 to r over the whole prompt, once; then a prompt of `tokens`",
  facts: "the official code; the layer's default is Llama 3.1's share of the depth",
  deviations: ["`first` and `last` may force tokens; the paper forces none"],
  exact: { tokens: 2 ** 30 },
  trials: [{ parameters: { tokens: 24, layer: 2 } }, { parameters: { tokens: 1 / 4, layer: 1, first: 2, last: 4 } }],
  status: "experimental",
  parameters,
  scope: "layers",
  hooks: ["context"],
  check(model, { layer }) {
    if (layer !== undefined && layer >= model.layers)
      throw new FoveaError("bad-input", `gemfilter: layer is ${layer}; the model has layers 0 to ${model.layers - 1}`);
  },
  create: (params) => ({ context: (step) => filterContext(step, params) }),
});

async function filterContext({ ids, model, probe }: ContextStep, params: Parameters): Promise<readonly number[]> {
  const count = budgetTokens(params.tokens, ids.length);
  if (ids.length <= count) return ids;
  const layer = params.layer ?? Math.floor(model.layers * DEPTH);
  const { lastRow } = await probe(ids, { layers: layer, lastRow: [layer] });
  const scores = sumHeads(lastRow[0].products, model.heads, ids.length);
  return Array.from(chosenTokens(scores, count, params), (i) => ids[i]);
}

/** Sums of raw products [Hq, S] over query heads: [S]. */
function sumHeads(products: Float32Array, heads: number, tokens: number): Float32Array {
  const sums = new Float32Array(tokens);
  for (let h = 0; h < heads; h++) for (let i = 0; i < tokens; i++) sums[i] += products[h * tokens + i];
  return sums;
}

/** The `count` tokens with the largest averaged scores, ascending; forced ones are counted first. */
export function chosenTokens(
  scores: Float32Array,
  count: number,
  { kernel, first, last }: Pick<Parameters, "kernel" | "first" | "last">,
): Int32Array {
  const smooth = pool(scores, kernel, "avg");
  for (let i = 0; i < smooth.length; i++)
    if (i < first || i >= smooth.length - last) smooth[i] = Number.POSITIVE_INFINITY;
  return largest(smooth, Math.min(count, smooth.length));
}
