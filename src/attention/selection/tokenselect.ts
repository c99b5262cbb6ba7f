import { z } from "zod";
import type { AttentionStep, Hooks, Part, Partial, RotaryPlan } from "../../engine/hooks.js";
import { RotaryTable } from "../../engine/rotary.js";
import { FoveaError } from "../../error.js";
import { largest } from "../budget.js";
import { method } from "../method.js";
import { entriesAt, exactScores, headLengths, positionsOf, turnedKeys } from "../select/index.js";
import { cosine, pooled, softVote } from "./soft-vote.js";

const parameters = z.object({
  tokens: z.int().min(1).default(2048).describe("tokens chosen beside sinks and newest ones (k)"),
  sinks: z.int().min(0).default(128).describe("first tokens that are always read (n_init)"),
  window: z.int().min(1).default(512).describe("newest tokens that are always read (n_local)"),
  similarity: z
    .number()
    .default(0.9)
    .describe(
      "a layer's choice holds while queries have this cosine or more with the one that chose; above 1: choose always (theta)",
    ),
  pool: z.int().min(1).default(1).describe("width over which votes are pooled by their maximum; 1: none"),
  scaled: z.boolean().default(false).describe("divide the logits of the vote by sqrt(D)"),
  positions: z
    .enum(["rank", "true"])
    .default("rank")
    .describe("what is read stands at its rank among what is read, or where it stands in the text"),
});
type Parameters = z.output<typeof parameters>;

/** The last choice of a layer: absolute positions, and the query that made it [Hq, D]. */
interface Choice {
  readonly query: Float32Array;
  readonly positions: Int32Array;
}
type State = Map<number, Choice>;

/**
 * TokenSelect: all heads of a layer vote for single tokens with their softmaxed scores, and the row reads the winners
 * between the sinks and the newest tokens.
 *
 * With positions=rank keys lie unrotated in the cache. The vote sees every candidate at a distance of `window`, and what
 * is read is numbered anew in its order, so that no distance exceeds sinks + tokens + window, however long the text.
 */
export const tokenselect = method({
  name: "tokenselect",
  family: "selection",
  does: "Reads single tokens that the heads of a layer vote for, at positions inside what is read.",
  paper: {
    title:
      "TokenSelect: Efficient Long-Context Inference and Length Extrapolation for LLMs via Dynamic Token-Level KV Cache Selection",
    venue: "arXiv 2024",
    url: "https://github.com/pzs19/TokenSelect",
  },
  cost: "scores of all keys in steps that choose; sinks + tokens + window keys and values, which positions=rank copies and turns; nothing is freed",
  facts: "the sheet, from the official code; the selection cache from the paper",
  deviations: [
    "prompts and turns of several tokens are dense at true positions: choices are made while decoding",
    "query head h reads KV head floor(h / G), where the released kernel takes h mod Hkv",
  ],
  rows: { prefill: false, lastPromptRow: false, decode: true },
  scope: "layers",
  exact: { tokens: 2 ** 30 },
  budget: { parts: { tokens: 1 / 2, window: 3 / 8, sinks: 1 / 8 } },
  trials: [
    { parameters: { tokens: 12, sinks: 2, window: 10 } },
    { parameters: { tokens: 12, sinks: 2, window: 10, positions: "true", similarity: 2, pool: 3, scaled: true } },
  ],
  status: "holds",
  measured:
    "nano, 4096 tokens, 32 questions, each asked after the text was read: " +
    "with a sixteenth of the keys read 50.0% right (full attention 37.5%, random pages 0)",
  parameters,
  hooks: ["select", "position"],
  check(model, { positions }) {
    if (positions === "rank" && !model.rotary)
      throw new FoveaError(
        "unsupported",
        "tokenselect cannot number tokens anew: this model adds positions to its embeddings",
        {
          hint: "use positions=true",
        },
      );
  },
  create(params): Hooks<State> {
    const state = (): State => new Map();
    if (params.positions === "true") return { state, select: (step) => selectedParts(step, params) };
    // a layer's plan, from this step's position hook to its select: the same object at every step
    const plans = new Map<number, RotaryPlan>();
    const tables = new WeakMap<RotaryPlan, RotaryTable>();
    return {
      state,
      position(step) {
        if (!step.plan) return undefined;
        plans.set(step.layer, step.plan);
        const key = new Int32Array(step.rows);
        const all = step.phase !== "decode" || step.positions[0] + 1 <= params.sinks + params.tokens + params.window;
        return all ? { key, near: { window: 2 ** 30, stored: () => 0 } } : { key };
      },
      async select(step) {
        const plan = plans.get(step.layer);
        const found = await chosenTokens(step, params);
        if (!found || !plan) return [{}];
        // a plan's factor is in the stored keys already
        const table = tables.get(plan) ?? new RotaryTable({ ...plan, multiplier: 1 });
        tables.set(plan, table);
        const ranks = found[0].map((_, rank) => rank); // key j of R stands at position j
        const keys = turnedKeys(step, found, ranks, table.plan, table);
        return [await step.attendTo({ ...keys, query: step.rotate(Int32Array.of(ranks.length - 1)) })];
      },
    };
  },
});

async function selectedParts(step: AttentionStep<State>, params: Parameters): Promise<(Part | Partial)[]> {
  const lists = await chosenTokens(step, params);
  return [lists ? { entries: lists.map((tokens) => ({ tokens })) } : {}];
}

/** R: the entries of each KV head that a decoded row reads; undefined for all. */
async function chosenTokens(step: AttentionStep<State>, params: Parameters): Promise<Int32Array[] | undefined> {
  const { sinks, tokens, window } = params;
  const { kvHeads } = step.model;
  const length = Math.min(...headLengths(step.view, kvHeads)); // N
  if (step.phase !== "decode" || sinks + tokens + window >= length) return undefined;
  const rank = params.positions === "rank";
  const query = rank ? step.rotate(Int32Array.of(window)) : step.q; // all candidates look `window` tokens away
  const held = step.state.get(step.layer);
  let chosen = held?.positions;
  if (!held || cosine(query, held.query) < params.similarity) {
    const z = await votes(step, query, params, length);
    chosen = positionsOf(step.view, 0, largest(z, tokens, sinks, length - window)); // T
    step.state.set(step.layer, { query: query.slice(), positions: chosen });
  }
  return Array.from({ length: kvHeads }, (_, kv) => {
    const own = entriesAt(step.view, kv, chosen ?? new Int32Array(0)).filter((e) => e >= sinks && e < length - window);
    const list = new Int32Array(sinks + own.length + window);
    for (let i = 0; i < sinks; i++) list[i] = i;
    list.set(own, sinks);
    for (let i = 0; i < window; i++) list[sinks + own.length + i] = step.view.length(kv) - window + i;
    return list;
  });
}

async function votes(step: AttentionStep<State>, query: Float32Array, params: Parameters, length: number) {
  const { data, heads, keys } = await exactScores(step, query);
  const factor = params.scaled ? 1 : 1 / step.scale;
  return pooled(softVote(data, heads, keys, params.sinks, length - params.window, factor), params.pool);
}
