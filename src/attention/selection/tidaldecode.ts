import { z } from "zod";
import type { AttentionStep, Part } from "../../engine/hooks.js";
import { method } from "../method.js";
import {
  chosenEntries,
  exactScores,
  groupReduction,
  headLengths,
  type LayerChoice,
  middleLayer,
  positionsOf,
  readingBudget,
  readTokens,
  reduceGroups,
  topPerHead,
} from "../select/index.js";

const parameters = z.object({
  ...readingBudget(512, "tokens read per head in the sparse layers, the current one included (k)"),
  choose: z.int().min(0).default(2).describe("layer that chooses; the layers before it are dense (a)"),
  again: z.int().min(0).optional().describe("layer that chooses again (b); default 0.4 of the way up"),
  ...groupReduction("none"),
});
type Parameters = z.output<typeof parameters>;

/**
 * TidalDecode: two layers of a decode step attend to everything, and keep the positions P_h of each head's top-k logits;
 * the layers behind them read only those positions of their own keys and values. P lives for one step.
 */
export const tidaldecode = method({
  name: "tidaldecode",
  family: "selection",
  does: "Chooses tokens by exact logits in two layers and reads the same positions in the layers behind them.",
  paper: {
    title: "TidalDecode: Fast and Accurate LLM Decoding with Position Persistent Sparse Attention",
    venue: "ICLR 2025",
    url: "https://github.com/DerrickYLJ/TidalDecode",
  },
  cost: "choose + 2 dense layers, `tokens` keys and values per head in the others; nothing is freed",
  facts:
    "the sheet, from the official code; the place of the second choice without a calibration, and one choice for a whole group, are inferred",
  deviations: [
    "the current token is always read, as in the authors' follow-up repository",
    "sparse tokens' keys and values are not computed again (cache correction): the released scripts do not either",
  ],
  rows: { prefill: false, lastPromptRow: false, decode: true },
  scope: "layers",
  exact: { tokens: 2 ** 30 },
  budget: { parts: { tokens: 1 }, sparse: { choose: 0 } },
  trials: [
    { parameters: { tokens: 12, choose: 1, again: 3 } },
    { parameters: { share: 1 / 8, choose: 0, group: "max" } },
  ],
  status: "experimental",
  parameters,
  state: (): LayerChoice | null => null,
  select: (step, params) => tidalParts(step, params),
});

async function tidalParts(step: AttentionStep<LayerChoice | null>, params: Parameters): Promise<Part[]> {
  const { layer, phase, view, positions } = step;
  const { layers, kvHeads } = step.model;
  if (phase !== "decode" || layer < params.choose) return [{}];
  if (layer !== params.choose && layer !== (params.again ?? middleLayer(layers))) {
    const entries = chosenEntries(step.state, positions[0], view, kvHeads);
    return [entries ? { entries } : {}];
  }
  const lengths = headLengths(view, kvHeads);
  const count = readTokens(params, Math.max(...lengths));
  if (count >= Math.max(...lengths)) {
    step.state = null;
    return [{}];
  }
  const scores = reduceGroups(await exactScores(step), kvHeads, params.group);
  const lists = topPerHead(scores, count, { window: 1 }, lengths);
  const kvOf = (i: number) => Math.floor((i * kvHeads) / lists.length);
  step.state = { step: positions[0], positions: lists.map((list, i) => positionsOf(view, kvOf(i), list)) }; // P_h
  return [{}];
}
