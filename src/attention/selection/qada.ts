import { z } from "zod";
import type { AttentionStep, Hooks, Part } from "../../engine/hooks.js";
import { rowRanges } from "../../engine/row-ranges.js";
import { method } from "../method.js";
import { forcedTokens } from "../select/index.js";
import { inPrompt } from "../turn.js";
import { addKeys, farLogMass, farModel, type KeyMoments, logAdd, nearShare, noMoments } from "./key-moments.js";

const parameters = z.object({
  ...forcedTokens(16, 112),
  tau: z.number().default(0.9).describe("a head reads near keys only where their predicted share is this or more"),
  batch: z.int().min(1).default(64).describe("keys that have left the window join the moments so many together"),
});
type Parameters = z.output<typeof parameters>;

type State = Map<number, KeyMoments[]>;

/**
 * QAdA: for each query, each head reads either everything or only the first and the newest tokens. It is decided before
 * any far key is read: far keys are modelled as normally distributed, which gives their summed weight in closed form, and
 * near keys' share of the whole is compared with `tau`.
 */
export const qada = method({
  name: "qada",
  family: "selection-approximate",
  does: "Decides for each query and head, from the moments of far keys, whether near keys are enough.",
  paper: {
    title: "Unveiling Simplicities of Attention: Adaptive Long-Context Head Identification",
    venue: "2025",
    url: "https://arxiv.org/abs/2502.09647",
  },
  cost: "per query head the near keys and D^2 for the quadratic form; all keys where a head reads on",
  facts: "sheet, from summaries of the paper; formulas re-derived; tau's default is inferred",
  deviations: [
    "moments are those of the text's own far keys, brought up to date in batches; a prompt of random words is not offered",
    "a model that caps its logits is predicted as if it did not",
  ],
  rows: { prefill: false, lastPromptRow: false, decode: true },
  exact: { tau: 2 },
  budget: { parts: { tau: 1 }, range: { least: 0, most: 1.2, step: 0.01 } },
  trials: [
    { parameters: { sinks: 2, window: 12, tau: 0.05, batch: 8 } },
    { parameters: { sinks: 0, window: 16, tau: 0 } },
  ],
  status: "not reproduced on nano",
  measured:
    "nano, 4096 tokens, 32 questions, each asked after the text was read: " +
    "with 40.7% of the keys read 12.5% right (full attention 37.5%, random pages 0). " +
    "Not reproduced on stories260K, whose heads are 8 wide: the normal model takes far keys for " +
    "more than they are where queries are long, so that few rows stay near. For the few with q'Cq / D below 4 the share " +
    "foretold goes with the true one (correlation above 0.9)",
  parameters,
  hooks: ["select"],
  create: (params): Hooks<State> => ({
    rowBlock: 1,
    state: () => new Map(),
    select: (step) => (inPrompt(step) ? [{}] : adaptiveParts(step, params)),
  }),
});

/** What rows behind the prompt read: row by row and head by head, everything or the near keys. */
async function adaptiveParts(step: AttentionStep<State>, params: Parameters): Promise<Part[]> {
  const { heads, kvHeads, headDim } = step.model;
  const { rows, view, scale, q } = step;
  const spans = Array.from({ length: kvHeads }, (_, kv) => farSpans(step, kv, params));
  if (spans.every(({ start, ends }) => ends[rows - 1] <= start)) return [{}];
  const moments = keyMoments(step, params, spans);
  const near = await nearLogMass(step, params, spans); // lA [T, Hq]
  const models = moments.map(farModel);
  const blocks = rowRanges({ rows: 1, heads, blocks: rows }, (t, head, add) => {
    const kv = Math.floor(head / (heads / kvHeads));
    const { start, ends } = spans[kv];
    const at = (t * heads + head) * headDim;
    const count = ends[t] - start;
    // rows of a long extension may see mostly keys that no moments know yet
    const known = count > 0 && 4 * moments[kv].count >= count;
    const mass = known ? farLogMass(q.subarray(at, at + headDim), models[kv], count, scale) : 0; // lB
    if (known && nearShare(near[t * heads + head], mass) >= params.tau) {
      add(0, start);
      add(ends[t], view.length(kv));
    } else add(0, view.length(kv));
  });
  return [{ blocks }];
}

/** Far entries of a KV head: [start, ends[t]) for row t, between the sinks and its window. */
function farSpans({ view, positions }: AttentionStep, kv: number, { sinks, window }: Parameters) {
  const at = view.positions(kv);
  let start = 0;
  while (start < at.length && at[start] < sinks) start++;
  let end = start;
  const ends = Array.from(positions, (p) => {
    while (end < at.length && p - at[end] >= window) end++;
    return end;
  });
  return { start, ends };
}

/** Log-sum-exp of the logits of sinks and window, [T, Hq]. */
async function nearLogMass(step: AttentionStep, { window }: Parameters, spans: readonly { start: number }[]) {
  const { view } = step;
  const recent = spans.map(({ start }, kv) => ({ ranges: [[start, view.length(kv)]] as [number, number][] }));
  const first = spans.map(({ start }) => ({ ranges: [[0, start]] as [number, number][] }));
  const { lse } = window > 0 ? await step.attend({ entries: recent, window }) : await step.attend({ entries: first });
  if (window === 0 || spans.every(({ start }) => start === 0)) return lse;
  const sinks = await step.attend({ entries: first });
  return lse.map((a, i) => logAdd(a, sinks.lse[i]));
}

/** Moments of the keys that are far from the step's first row, up to date but for a batch. */
function keyMoments(
  step: AttentionStep<State>,
  { batch }: Parameters,
  spans: readonly { start: number; ends: number[] }[],
) {
  const { kvHeads, headDim } = step.model;
  const none = () => noMoments(headDim);
  const layer = step.state.get(step.layer) ?? Array.from({ length: kvHeads }, none);
  step.state.set(step.layer, layer);
  for (const [kv, { start, ends }] of spans.entries()) {
    const far = ends[0] - start;
    if (far < layer[kv].count) layer[kv] = none();
    if (far - layer[kv].count < (layer[kv].count > 0 ? batch : 1)) continue;
    addKeys(layer[kv], step.view.keys(kv).subarray((start + layer[kv].count) * headDim, (start + far) * headDim));
  }
  return layer;
}
