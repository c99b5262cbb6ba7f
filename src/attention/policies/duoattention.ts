import { z } from "zod";
import type { AttentionStep, Entries, ModelShape, Part, RetainStep } from "../../engine/hooks.js";
import { FoveaError } from "../../error.js";
import { oncePerModel } from "../files.js";
import { headsOf, headsParameter } from "../heads/head-list.js";
import { method } from "../method.js";
import { countSinks, roomForWindow, trimToWindow } from "../streaming/streaming-llm.js";
import { endsTurn, inPrompt } from "../turn.js";

/** Which heads keep everything: parameters that methods with streaming heads share. */
export const headPolicyParameters = {
  heads: headsParameter
    .optional()
    .describe("retrieval heads, best first: a head-list file of gates, or heads as heads=[3.0-2,4.7]"),
  gates: z.array(z.number()).optional().describe("or a gate for each KV head, layer by layer (a)"),
  sparsity: z
    .number()
    .min(0)
    .max(1)
    .optional()
    .describe(
      "share of streaming heads; default 0.5 with grouped queries and 0.75 without where every KV head is ranked, else all that are not listed",
    ),
};

const parameters = z.object({
  ...headPolicyParameters,
  sinks: z.int().min(0).default(64).describe("first tokens that streaming heads keep (s)"),
  window: z.int().min(1).default(256).describe("newest tokens that they keep, the current one included (w)"),
  prompt: z
    .enum(["masked", "dense"])
    .default("masked")
    .describe("prompt rows of streaming heads: sinks and window, or everything, truncated at the prompt's end"),
});
type Parameters = z.output<typeof parameters>;

/** Retrieval heads of the trials. */
export const SOME_HEADS = [
  { layer: 0, head: 1 },
  { layer: 1, head: 3 },
];

/**
 * DuoAttention: the KV heads with the largest gates keep and read everything; the others keep and read sinks and a
 * window, at true positions.
 */
export const duoattention = method({
  name: "duoattention",
  family: "policies",
  does: "Keeps the full cache for retrieval heads; all other heads keep the first and the newest tokens.",
  paper: {
    title: "DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads",
    venue: "ICLR 2025",
    url: "https://github.com/mit-han-lab/duo-attention",
  },
  needs: "gates of the model, found once by gradient: `optimiseGates` writes them as a head list",
  cost: "all keys for retrieval heads, sinks + window for the others; the cache the same",
  facts: "a sheet made from the official code",
  deviations: [
    "heads are not permuted: retention and selection differ per head",
    "while decoding, tokens that left a window are freed sixteen at a time; they are never read",
  ],
  exact: { heads: [], window: 2 ** 30 },
  trials: [
    { parameters: { heads: SOME_HEADS, sinks: 2, window: 12 }, uniform: true },
    { parameters: { heads: SOME_HEADS, sinks: 2, window: 12, prompt: "dense" } },
  ],
  status: "experimental",
  parameters,
  scope: "layers",
  hooks: ["select", "retain"],
  check: (model, params) => void streamingHeads("duoattention", params, model),
  create(params) {
    const streaming = oncePerModel((model) => streamingHeads("duoattention", params, model));
    return {
      select: (step) => sinksAndWindow(step, streaming(step.model)[step.layer], params),
      retain: (step) => trimStreaming(step, streaming(step.model)[step.layer], params),
    };
  },
});

/**
 * True for the KV heads [L][Hkv] that stream. A KV head is a retrieval head where its gate, or the list's rank of one of
 * its query heads, is among the first (1 - sparsity) of all.
 *
 * @throws FoveaError `bad-input` without heads and gates, for gates of the wrong number, and as `headsOf`
 */
export function streamingHeads(
  name: string,
  { heads, gates, sparsity }: Pick<Parameters, "heads" | "gates" | "sparsity">,
  model: ModelShape,
): boolean[][] {
  const { layers, kvHeads } = model;
  const total = layers * kvHeads;
  if ((heads === undefined) === (gates === undefined))
    throw new FoveaError("bad-input", `${name} needs retrieval heads or gates, and takes one of the two`, {
      hint: `for example ${name}(heads=heads/retrieval.json); optimiseGates of fovea/train finds and writes them`,
    });
  if (gates && gates.length !== total)
    throw new FoveaError("bad-input", `${name}: ${gates.length} gates; the model has ${total} KV heads`, {
      hint: `one for each KV head, layer by layer: ${layers} layers of ${kvHeads}`,
    });
  const ranked = gates ? rankedByGate(gates) : rankedByList(headsOf(heads ?? [], model), model);
  const share = sparsity ?? (ranked.length < total ? 0 : kvHeads < model.heads ? 0.5 : 0.75);
  const retrieval = new Set(ranked.slice(0, Math.round((1 - share) * total)));
  return Array.from({ length: layers }, (_, l) =>
    Array.from({ length: kvHeads }, (_, h) => !retrieval.has(l * kvHeads + h)),
  );
}

function rankedByGate(gates: readonly number[]): number[] {
  return gates.map((_, i) => i).sort((a, b) => gates[b] - gates[a] || a - b);
}

function rankedByList(heads: readonly { layer: number; head: number }[], model: ModelShape): number[] {
  const group = model.heads / model.kvHeads;
  const at = heads.map(({ layer, head }) => {
    const l = layer < 0 ? layer + model.layers : layer;
    if (!(l >= 0 && l < model.layers && head >= 0 && head < model.heads))
      throw new FoveaError("bad-input", `there is no head ${layer}.${head}`, {
        hint: `layers are 0 to ${model.layers - 1}, heads 0 to ${model.heads - 1}`,
      });
    return l * model.kvHeads + Math.floor(head / group);
  });
  return [...new Set(at)];
}

/** What rows read: streaming heads the sinks and the window, the others everything. Three parts, however heads lie. */
export function sinksAndWindow(
  step: Pick<AttentionStep, "phase" | "rows" | "positions" | "firstRow" | "totalRows" | "view" | "model">,
  streaming: readonly boolean[],
  { sinks, window, prompt }: Pick<Parameters, "sinks" | "window" | "prompt">,
): Part[] {
  const newest = step.positions[step.rows - 1];
  if (newest < sinks + window || !streaming.includes(true) || (inPrompt(step) && prompt === "dense")) return [{}];
  const parts = streaming.map((streams, head) => {
    const length = step.view.length(head);
    if (!streams) return { all: [[0, length]], near: [], first: [] };
    const first = countSinks(step.view, head, sinks);
    const start = step.rows === 1 ? Math.max(first, length - window) : first;
    return { all: [], near: [[start, length]], first: first > 0 ? [[0, first]] : [] };
  }) satisfies Record<"all" | "near" | "first", number[][]>[];
  const entries = (...keys: ("all" | "near" | "first")[]): Entries[] =>
    parts.map((own) => ({ ranges: keys.flatMap((key) => own[key]) as [number, number][] }));
  // a single row needs no mask: all its heads are one call
  if (step.rows === 1) return [{ entries: entries("all", "first", "near") }];
  return [{ entries: entries("all", "first") }, { entries: entries("near"), window }];
}

/** Frees what streaming heads will not read any more. */
export function trimStreaming(
  step: RetainStep,
  streaming: readonly boolean[],
  { sinks, window, prompt }: Pick<Parameters, "sinks" | "window" | "prompt">,
): void {
  const whole = inPrompt(step) && prompt === "dense";
  const atEnd = step.when === "after" && endsTurn(step) ? window : undefined;
  const room = whole ? atEnd : roomForWindow(step, { window, prompt: "masked" });
  if (room === undefined) return;
  for (const [head, streams] of streaming.entries()) if (streams) trimToWindow(step, head, sinks, room);
}
