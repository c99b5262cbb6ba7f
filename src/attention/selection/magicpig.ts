import { z } from "zod";
import type { AttentionStep, Entries, Hooks, Part } from "../../engine/hooks.js";
import { method } from "../method.js";
import { denseLayers, forcedTokens, isDense } from "../select/index.js";
import { collisionProbability, collisions, hashCodes, hyperplanes } from "./hash-tables.js";
import { dot, type HashedKeys, hashedKeys } from "./hashed-keys.js";

const parameters = z.object({
  bits: z.int().min(1).max(16).default(10).describe("hyperplanes a table, whose signs are a key's code (K)"),
  tables: z.int().min(2).default(150).describe("hash tables (L)"),
  ...forcedTokens(4, 64),
  ...denseLayers([0, 16, 32, 48, 64]),
  batch: z.int().min(1).default(64).describe("tokens that have left the window are hashed so many together"),
  seed: z.int().default(0).describe("of the hyperplanes"),
});
type Parameters = z.output<typeof parameters>;

type State = Map<number, HashedKeys[]>;

/** Under the logarithm, so that a key that is almost never sampled does not take over when it is. */
const FLOOR = 1e-4;

/**
 * MagicPIG: attention over far keys is estimated from a sample. A key is in it where its hash code equals the query's in
 * two tables or more; each sampled key's weight is divided by the probability of that, by a log-weight. Sinks, the newest
 * tokens and those not hashed yet are read as they are.
 */
export const magicpig = method({
  name: "magicpig",
  family: "selection-approximate",
  does: "Samples far keys by locality-sensitive hashing and weighs each by the inverse of its probability.",
  paper: {
    title: "MagicPIG: LSH Sampling for Efficient LLM Generation",
    venue: "ICLR 2025",
    url: "https://github.com/Infini-AI-Lab/MagicPIG",
  },
  cost:
    "per token and query head: K L D products for the query's codes, L buckets, the sampled keys twice; " +
    "4 L bytes a key and KV head for the tables",
  facts: "sheet, from the official code",
  deviations: [
    "generated tokens and later turns are hashed too, in batches, once they have left the window; the centre is taken anew when the keys have doubled",
    "keys are centred for their codes only: a shift of all logits changes no weight",
    "the cosine is taken from logits, so a model that caps its logits gets slightly wrong probabilities",
  ],
  rows: { prefill: false, lastPromptRow: false, decode: true },
  exact: { window: 2 ** 30 },
  budget: { parts: { tables: 1 }, range: { least: 2, most: 1000, step: 1 }, sparse: { denseLayers: 0 } },
  trials: [
    { parameters: { bits: 4, tables: 20, window: 16, batch: 8, denseLayers: [0] } },
    { parameters: { bits: 2, tables: 6, sinks: 0, window: 8, batch: 20, denseLayers: 0, seed: 7 } },
  ],
  status: "holds",
  measured:
    "nano, 4096 tokens, 32 questions, each asked after the text was read: " +
    "with a sixteenth of the keys read 37.5% right (full attention 37.5%, random pages 0)",
  parameters,
  hooks: ["select"],
  create(params): Hooks<State> {
    const byWidth = new Map<number, Float32Array>();
    const planesOf = (dim: number) => {
      const planes = byWidth.get(dim) ?? hyperplanes(params.tables, params.bits, dim, params.seed);
      byWidth.set(dim, planes);
      return planes;
    };
    return {
      state: () => new Map(),
      select: (step) => sampledParts(step, params, planesOf(step.model.headDim)),
    };
  },
});

/** What a decoded row reads: static entries as they are, and each query head's sample with its log-weights. */
async function sampledParts(step: AttentionStep<State>, params: Parameters, planes: Float32Array): Promise<Part[]> {
  const { heads, kvHeads, headDim } = step.model;
  if (step.phase !== "decode" || isDense(step.layer, params.denseLayers, step.model.layers)) return [{}];
  const layer = await hashedKeys(step, params, planes);
  if (layer.every(({ norms }) => norms.length === 0)) return [{}];
  const { bits, tables, sinks } = params;
  const kvOf = (head: number) => Math.floor(head / (heads / kvHeads));
  const query = (head: number) => step.q.subarray(head * headDim, (head + 1) * headDim);
  const samples = Array.from({ length: heads }, (_, head) =>
    collisions(layer[kvOf(head)].tables, hashCodes(query(head), planes, bits)),
  );
  const sampled = samples.map((list): Entries => ({ tokens: Int32Array.from(list, (i) => sinks + i) }));
  const logits = await step.score({ entries: sampled }); // [Hq, S]
  const keys = logits.length / heads;
  const data = new Float32Array(heads * keys);
  const entries = samples.map((list, head): Entries => {
    const { centre, norms } = layer[kvOf(head)];
    const q = query(head);
    const [length, shift] = [Math.sqrt(dot(q, q)), dot(q, centre)];
    for (const i of list) {
      const at = head * keys + sinks + i;
      const cosine = (logits[at] / step.scale - shift) / (length * norms[i]);
      data[at] = -Math.log(collisionProbability(cosine, bits, tables) + FLOOR);
    }
    return { tokens: withStatic(list, sinks, sinks + norms.length, step.view.length(kvOf(head))) };
  });
  return [{ entries, bias: { data, heads, rows: 0 } }];
}

/** The first `sinks` entries, a sample counted from there, and the entries [end, length). */
function withStatic(sample: Int32Array, sinks: number, end: number, length: number): Int32Array {
  const list = new Int32Array(sinks + sample.length + length - end);
  for (let i = 0; i < list.length; i++) {
    if (i < sinks) list[i] = i;
    else list[i] = i < sinks + sample.length ? sinks + sample[i - sinks] : end + i - sinks - sample.length;
  }
  return list;
}
