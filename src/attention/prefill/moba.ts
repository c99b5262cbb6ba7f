import { z } from "zod";
import type { AttentionStep, Part } from "../../engine/hooks.js";
import { rowRanges } from "../../engine/row-ranges.js";
import { method } from "../method.js";
import { denseLayers, entriesBelow, headKeys, headPositions, keyMeans } from "../select/index.js";
import { bestBlocks } from "./blocks.js";

const parameters = z.object({
  block: z.int().min(1).default(512).describe("keys in a block (B)"),
  top: z.int().min(1).default(3).describe("blocks that a query reads, its own included (k)"),
  decode: z
    .enum(["dense", "sparse"])
    .default("dense")
    .describe("decoded tokens read everything, as the released code has it, or blocks by the same rule"),
  ...denseLayers([-3, -2, -1]),
});
type Parameters = z.output<typeof parameters>;

/** Means of the complete blocks of a KV head's keys, [N, D], and the position of each block's last key. */
interface Means {
  means: Float32Array;
  ends: number[];
}
/** Per layer and KV head: blocks never change once they are complete, so decoding adds to them. */
type State = { layers: Means[][] };

/**
 * MoBA: each query reads its own block causally and the `top` - 1 past blocks whose mean key it has the largest product
 * with; every query head chooses for itself.
 */
export const moba = method<typeof parameters, State>({
  name: "moba",
  family: "prefill",
  does: "Each query reads its own block of keys and the past blocks with the best mean key.",
  paper: {
    title: "MoBA: Mixture of Block Attention for Long-Context LLMs",
    venue: "2025",
    url: "https://github.com/MoonshotAI/MoBA",
  },
  needs: "nothing to run; the paper trains with it, and says that a model that was not loses by it",
  cost: "a row times S / block means, then top * block keys a token instead of all",
  rows: { prefill: true, lastPromptRow: true, decode: false },
  facts: "the official code (naive and efficient form, wrapper); the dense last layers from memory of the report",
  deviations: [
    "decode=sparse, the same rule for one row over kept block means, is ours: the released code leaves it open",
    "blocks count cached entries, so that after an eviction they are blocks of what is left",
  ],
  budget: { parts: { block: 1 / 3 }, also: { decode: "sparse" }, sparse: { denseLayers: 0 } },
  exact: { top: 2 ** 30 },
  trials: [
    { parameters: { block: 8, top: 2, denseLayers: 0 } },
    { parameters: { block: 8, top: 3, denseLayers: 1, decode: "sparse" }, uniform: true },
  ],
  status: "not reproduced on nano",
  measured:
    "nano, 4096 tokens, 32 questions, each asked after the text was read: " +
    "with a quarter of the keys read 3.1% right (full attention 37.5%, random pages 0); the paper trains with it",
  parameters,
  hooks: ["select"],
  create: (params) => ({
    rowBlock: 1,
    denseLayers: params.denseLayers,
    state: (model) => ({ layers: Array.from({ length: model.layers }, () => []) }),
    select: (step) => mobaParts(step, params),
  }),
});

async function mobaParts(step: AttentionStep<State>, { block, top, decode }: Parameters): Promise<Part[]> {
  const { rows, positions, view, q } = step;
  const { heads, kvHeads, headDim } = step.model;
  if (step.phase === "decode" && decode === "dense") return [{}];
  const known = knownMeans(step, block);
  const most = Math.max(...known.map((m) => m.ends.length));
  const gates = most > 0 ? await step.products(q, padded(known, most, headDim), { heads: kvHeads }) : NONE; // [Hq, T, N]
  const ranges = rowRanges({ rows: 1, heads, blocks: rows, apart: true }, (row, head, add) => {
    const kv = Math.floor((head * kvHeads) / heads);
    const own = Math.floor((entriesBelow(headPositions(view, kv), positions[row] + 1) - 1) / block);
    const from = (head * rows + row) * most;
    // a past block counts once it is complete: own is beyond it
    const past = bestBlocks(gates, Math.min(top - 1, own), from, from + own);
    for (let i = 0; i < past.length; i++) add(past[i] * block, (past[i] + 1) * block);
    add(own * block, Math.min((own + 1) * block, view.length(kv)));
  });
  return [{ blocks: ranges }];
}

const NONE = new Float32Array(0);

/** Block means per KV head, those of complete blocks only; what is known from steps before is kept. */
function knownMeans({ state, layer, view, model }: AttentionStep<State>, block: number): Means[] {
  const layers = state.layers[layer];
  for (let kv = 0; kv < model.kvHeads; kv++) {
    const count = Math.floor(view.length(kv) / block);
    let known = layers[kv];
    const positions = headPositions(view, kv);
    const same = known?.ends.every((at, n) => positions[(n + 1) * block - 1] === at) ?? false;
    if (!same) known = { means: NONE, ends: [] };
    if (known.ends.length < count) known = extended(known, headKeys(view, kv), positions, block, count, model.headDim);
    layers[kv] = known;
  }
  return layers;
}

function extended(
  { means, ends }: Means,
  keys: Float32Array,
  positions: Int32Array,
  block: number,
  count: number,
  dim: number,
): Means {
  const all = new Float32Array(count * dim);
  all.set(means);
  all.set(keyMeans(keys.subarray(ends.length * block * dim, count * block * dim), dim, block), means.length);
  return { means: all, ends: Array.from({ length: count }, (_, n) => positions[(n + 1) * block - 1]) };
}

/** [Hkv, N, D]: heads that hold fewer blocks are filled up with zeros, which no row reaches. */
function padded(known: readonly Means[], blocks: number, dim: number): Float32Array {
  const all = new Float32Array(known.length * blocks * dim);
  known.forEach(({ means }, kv) => {
    all.set(means, kv * blocks * dim);
  });
  return all;
}
