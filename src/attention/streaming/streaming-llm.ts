import { z } from "zod";
import type { AttentionStep, KeyView, Part, RetainStep } from "../../engine/hooks.js";
import { FoveaError } from "../../error.js";
import { method } from "../method.js";
import { entriesBelow } from "../select/index.js";
import { endsTurn, inPrompt } from "../turn.js";

const parameters = z.object({
  sinks: z.int().min(0).default(4).describe("first tokens that always stay (s)"),
  window: z.int().min(1).default(512).describe("newest tokens that stay, the current one included (w)"),
  positions: z
    .enum(["rank", "true"])
    .default("rank")
    .describe("positions inside the cache, as the paper has them, or those of the text"),
  prompt: z
    .enum(["stream", "masked", "dense"])
    .default("stream")
    .describe(
      "prompt rows as if fed token by token; by sinks and window at true positions; or dense, and later turns at once after making room",
    ),
});
type Parameters = z.output<typeof parameters>;

/** While decoding, this many tokens leave together: reading is exact through `select`, and whole pages become free. */
const TOGETHER = 16;

/**
 * StreamingLLM: the first `sinks` and the last `window` tokens are cached and read, everything between is freed.
 *
 * Keys lie in the cache rotated at their true positions. Positions inside the cache differ from those by one constant
 * for the sinks and by another for the window, so a row is two parts: the sinks, read with the query rotated at its
 * rank in the cache, and the window, whose distances are the true ones anyway. Nothing is rotated again.
 */
export const streamingLlm = method({
  name: "streaming-llm",
  family: "streaming",
  does: "Keeps the first and the newest tokens, at positions inside the cache, so that a stream may go on without end.",
  paper: {
    title: "Efficient Streaming Language Models with Attention Sinks",
    venue: "ICLR 2024",
    url: "https://github.com/mit-han-lab/streaming-llm",
  },
  cost: "sinks + window keys per token, no scoring",
  facts: "the official code",
  deviations: [
    "keys are not rotated anew at each step: a second query rotation for the sinks gives the same logits",
    "while decoding, tokens that left the window are freed sixteen at a time; they are never read",
  ],
  exact: { window: 2 ** 30 },
  budget: { parts: { window: 1 } },
  trials: [
    { parameters: { window: 24 }, uniform: true },
    { parameters: { window: 24, positions: "true" }, uniform: true },
    { parameters: { window: 24, prompt: "masked" } },
    { parameters: { window: 24, prompt: "dense" } },
  ],
  status: "holds",
  measured:
    "stories260K, trained at 512 tokens, over 5120: 0.95 to 1.22 nats a token throughout with sinks=4, window=252; full " +
    "attention goes from 0.91 to 7.2, positions=true to 8.2. The collapse at sinks=0 is not reproduced: this model has no " +
    "sinks (sink rate 0), and a window of 256 alone does as well.",
  parameters,
  beyondContext: ({ positions }) => positions === "rank",
  check(model, { positions }) {
    if (positions === "rank" && !model.rotary)
      throw new FoveaError(
        "unsupported",
        "streaming-llm cannot use positions inside the cache: this model adds positions to its embeddings",
        {
          hint: "use positions=true",
        },
      );
  },
  select: (step, params) => streamingParts(step, params),
  retain(step, params) {
    const room = roomForWindow(step, params);
    if (room === undefined) return;
    for (let head = 0; head < step.model.kvHeads; head++) trimToWindow(step, head, params.sinks, room);
  },
});

/** What one row or block reads: everything, or the sinks at the query's rank in the cache and the window. */
export function streamingParts(
  step: Pick<AttentionStep, "phase" | "rows" | "positions" | "firstRow" | "totalRows" | "view" | "model" | "rotate">,
  { sinks, window, positions, prompt }: Parameters,
): Part[] {
  const newest = step.positions[step.rows - 1];
  const early = inPrompt(step);
  if (newest < sinks + window || (early && prompt === "dense")) return [{}];
  const turn = step.phase === "extend" && prompt === "dense";
  // a turn fed at once reads all that room was left for; its rows' ranks count on
  const rank = turn ? turnRanks(step) : step.positions.map((p) => Math.min(p, sinks + window - 1));
  const rotated = positions === "rank" && !(early && prompt === "masked");
  const query = rotated && sinks > 0 ? step.rotate(rank) : undefined;
  const parts: Part[] = [];
  const { kvHeads } = step.model;
  for (let from = 0; from < kvHeads; ) {
    // heads hold the same entries unless another method evicts too
    const first = countSinks(step.view, from, sinks);
    const length = step.view.length(from);
    let to = from + 1;
    while (to < kvHeads && step.view.length(to) === length && countSinks(step.view, to, sinks) === first) to++;
    const heads = from === 0 && to === kvHeads ? {} : { heads: [from, to] as const };
    const start = step.rows === 1 && !turn ? Math.max(first, length - window) : first;
    // the long part first, while the kernels' threads are still awake from storing the token
    parts.push({ ...heads, entries: { ranges: [[start, length]] }, ...(turn ? {} : { window }) });
    if (first > 0) parts.push({ ...heads, entries: { ranges: [[0, first]] }, ...(query && { query }) });
    from = to;
  }
  return parts;
}

/** Ranks of a turn's rows: how many entries stand before each in the cache. */
function turnRanks(step: Pick<AttentionStep, "positions" | "view">): Int32Array {
  const entries = step.view.positions(0);
  return step.positions.map((p) => entriesBelow(entries, p));
}

/**
 * How many of the newest entries may stay beside the sinks, so that sinks and window hold once the incoming rows are
 * in; undefined when nothing leaves now. Rows fed as a stream each need the window before them; a turn fed at once
 * makes room for all of its rows.
 */
export function roomForWindow(
  step: Pick<RetainStep, "when" | "phase" | "rows" | "positions" | "firstRow" | "totalRows">,
  { window, prompt }: Pick<Parameters, "window" | "prompt">,
): number | undefined {
  const atOnce = prompt === "dense" && step.phase !== "decode";
  if (step.when === "after") return step.phase === "decode" || (atOnce && !endsTurn(step)) ? undefined : window;
  if (!atOnce) return window - 1;
  return inPrompt(step) || step.firstRow > 0 ? undefined : Math.max(0, window - step.totalRows);
}

/** Frees a KV head's entries between the sinks and the `room` newest; while decoding, several together. */
export function trimToWindow(
  step: Pick<RetainStep, "phase" | "view" | "keep">,
  head: number,
  sinks: number,
  room: number,
): void {
  const length = step.view.length(head);
  const least = step.phase === "decode" ? TOGETHER : 1;
  // most decoded rows end here, without a look at the positions
  if (length - room < least) return;
  const first = countSinks(step.view, head, sinks);
  if (length - first - room >= least) step.keep(head, keptEntries(length, first, room));
}

/** Entries that stay of `length`: the first `sinks` and the last `room`. */
export function keptEntries(length: number, sinks: number, room: number): Int32Array {
  const first = Math.max(sinks, length - room);
  const kept = new Int32Array(sinks + length - first);
  for (let i = 0; i < kept.length; i++) kept[i] = i < sinks ? i : first + i - sinks;
  return kept;
}

/** Entries of a head that are sinks: those of the text's first `sinks` tokens. */
export function countSinks(view: KeyView, head: number, sinks: number): number {
  return sinks === 0 ? 0 : entriesBelow(view.positions(head), sinks);
}
