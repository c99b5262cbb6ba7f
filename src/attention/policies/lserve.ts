import { z } from "zod";
import type { AttentionStep, Entries, Part, RetainStep } from "../../engine/hooks.js";
import { rowRanges } from "../../engine/row-ranges.js";
import { oncePerModel } from "../files.js";
import { method } from "../method.js";
import { entriesBelow, groupReduction, headLengths, headPositions, PAGE, readingBudget } from "../select/index.js";
import { roomForWindow, trimToWindow } from "../streaming/streaming-llm.js";
import { endsTurn, inPrompt } from "../turn.js";
import { headPolicyParameters, SOME_HEADS, streamingHeads } from "./duoattention.js";
import { chosenPages, type PageChoice } from "./logical-pages.js";

const parameters = z.object({
  ...headPolicyParameters,
  ...readingBudget(4096, "tokens that a retrieval head reads, in whole pages, the newest page included"),
  page: z
    .int()
    .min(PAGE)
    .refine((p) => p % PAGE === 0, `expected a multiple of ${PAGE}`)
    .default(64)
    .describe("tokens of a page that is read or not (P); its bounds are those of 16 tokens each"),
  minPages: z.int().min(1).default(3).describe("pages that are read at least"),
  interval: z.int().min(1).default(4).describe("pages are chosen at lengths that are multiples of this"),
  sinks: z.int().min(0).default(128).describe("first tokens that streaming heads keep"),
  window: z.int().min(1).default(256).describe("newest tokens that they keep while decoding, the current one included"),
  local: z.int().min(1).default(8192).describe("tokens before a block of 64 prompt rows that they read besides"),
  ...groupReduction("none"),
});
type Parameters = z.output<typeof parameters>;

/** Rows of a prompt that share what streaming heads read. */
const BLOCK = 64;

type State = Map<number, PageChoice>;

/**
 * LServe: some heads stream, in the prompt and while decoding (DuoAttention); the others read a constant number of pages,
 * whose bounds are those of small logical pages (Quest), chosen anew every few tokens.
 */
export const lserve = method({
  name: "lserve",
  family: "policies",
  does: "Streams half of the heads and lets the others read the pages whose small parts can fit the query best.",
  paper: {
    title: "LServe: Efficient Long-sequence LLM Serving with Unified Sparse Attention",
    venue: "MLSys 2025",
    url: "https://github.com/mit-han-lab/omniserve",
  },
  needs: "gates of the model, found once by gradient: `optimiseGates` writes them as a head list",
  cost: "for retrieval heads `tokens` keys, and 2 D numbers per 16 tokens every `interval` tokens; sinks + window for the others",
  facts: "a sheet made from the official code; its kernels were skimmed",
  deviations: [
    "logical pages are the cache's own, 16 tokens",
    "streaming heads count tokens while decoding, not blocks",
    "weights and cache keep their own types: quantisation is the engine's",
  ],
  exact: { heads: [], window: 2 ** 30, local: 2 ** 30, tokens: 2 ** 30 },
  trials: [
    { parameters: { heads: SOME_HEADS, tokens: 32, page: 16, minPages: 1, sinks: 2, window: 12, local: 16 } },
    {
      parameters: {
        ...{ heads: SOME_HEADS, share: 1 / 2, page: 32, minPages: 1, interval: 1 },
        ...{ sinks: 2, window: 12, local: 16, group: "max" },
      },
    },
  ],
  status: "experimental",
  parameters,
  scope: "layers",
  hooks: ["select", "retain"],
  check: (model, params) => void streamingHeads("lserve", params, model),
  create(params) {
    const streaming = oncePerModel((model) => streamingHeads("lserve", params, model));
    return {
      rowBlock: BLOCK,
      state: (): State => new Map(),
      select: (step) => {
        const streams = streaming(step.model)[step.layer];
        if (step.phase !== "decode") return blockParts(step, streams, params);
        return decodeParts(step as AttentionStep<State>, streams, params);
      },
      retain: (step) => trimStreams(step, streaming(step.model)[step.layer], params),
    };
  },
});

/** Rows of a prompt or turn: streaming heads read sinks and the blocks before their own, the others everything. */
function blockParts(step: AttentionStep, streaming: readonly boolean[], params: Parameters): Part[] {
  const { rows, positions, view } = step;
  const near = inPrompt(step) ? params.local : params.window;
  if (!streaming.includes(true) || positions[rows - 1] < params.sinks + near) return [{}];
  const { kvHeads } = step.model;
  const blocks = rowRanges({ rows: BLOCK, heads: kvHeads, blocks: Math.ceil(rows / BLOCK) }, (block, head, add) => {
    const held = headPositions(view, head);
    const end = entriesBelow(held, positions[Math.min(rows, (block + 1) * BLOCK) - 1] + 1);
    if (!streaming[head]) return add(0, end);
    const first = Math.max(params.sinks, positions[block * BLOCK] - near);
    add(0, entriesBelow(held, params.sinks));
    add(entriesBelow(held, first), end);
  });
  return [{ blocks }];
}

/** A decoded row: one part, in which each head has its own list. */
function decodeParts(step: AttentionStep<State>, streaming: readonly boolean[], params: Parameters): Part[] {
  const { view, model } = step;
  const lengths = headLengths(view, model.kvHeads);
  const pages = streaming.includes(false) ? chosenPages(step, lengths, params) : undefined;
  const lists = pages?.length ?? model.kvHeads;
  const entries = Array.from({ length: lists }, (_, i): Entries => {
    const head = Math.floor((i * model.kvHeads) / lists);
    if (!streaming[head]) return pages ? { ranges: pageRanges(pages[i], params.page, lengths[head]) } : "all";
    const held = view.positions(head);
    const sinks = entriesBelow(held, params.sinks);
    return {
      ranges: [
        [0, sinks],
        [Math.max(sinks, lengths[head] - params.window), lengths[head]],
      ],
    };
  });
  return [{ entries }];
}

function pageRanges(pages: Int32Array, size: number, length: number): [number, number][] {
  return Array.from(pages, (p): [number, number] => [p * size, Math.min(length, (p + 1) * size)]);
}

/** Frees what streaming heads will not read any more: during a prompt or turn what the next block still needs stays. */
function trimStreams(step: RetainStep, streaming: readonly boolean[], { sinks, window, local }: Parameters): void {
  const decoding = roomForWindow(step, { window, prompt: "masked" });
  const during = (inPrompt(step) ? local : window) + BLOCK;
  const room = step.phase === "decode" || (step.when === "after" && endsTurn(step)) ? decoding : during;
  if (room === undefined) return;
  for (const [head, streams] of streaming.entries()) if (streams) trimToWindow(step, head, sinks, room);
}
