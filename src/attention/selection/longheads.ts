import { z } from "zod";
import type { AttentionStep, Hooks, Part } from "../../engine/hooks.js";
import { rowRanges } from "../../engine/row-ranges.js";
import { FoveaError } from "../../error.js";
import { largest } from "../budget.js";
import { method } from "../method.js";
import { entriesBelow, headPositions } from "../select/index.js";
import { addRows, type ChunkState, summarise } from "./chunk-vectors.js";

const parameters = z.object({
  chunk: z.int().min(1).default(256).describe("tokens of a chunk (w)"),
  length: z.int().min(3).default(4096).describe("tokens that a head reads, at most what the model was trained at"),
  begin: z.int().min(0).default(4096).describe("rows before this position read everything"),
});
type Parameters = z.output<typeof parameters>;

type State = Map<number, ChunkState>;

/**
 * LongHeads: each head reads a few chunks of its own choice, the first one, and the newest two, renumbered so that no
 * distance exceeds the length that the model knows. A chunk stands for itself by a vector made of its keys, which queries
 * are compared with.
 *
 * Keys lie rotated at their true positions; a chunk moved from place c to rank r is read with the query moved as far the
 * other way, so that nothing is rotated again.
 */
export const longheads = method({
  name: "longheads",
  family: "selection-approximate",
  does: "Lets each head choose a few chunks by their vectors and renumbers them to the trained length.",
  paper: {
    title: "LongHeads: Multi-Head Attention is Secretly a Long Context Processor",
    venue: "Findings of EMNLP 2024",
    url: "https://github.com/LuLuLuyi/LongHeads",
  },
  cost: "per token and head S / w products and `length` keys; once a chunk 2 w^2 D for its vector",
  facts: "sheet, from the official code, whose models have no grouped queries",
  deviations: [
    "query heads that share keys share chunks, chosen and summarised by the mean of their queries (inferred)",
    "a row reads its own key in the prompt too; the official prompt's list stops before it",
    "a token that fills its chunk counts it as the current one, in decoding as in the prompt",
    "one chunk of queries is kept, not all",
  ],
  scope: "layers",
  exact: { begin: 2 ** 30 },
  budget: { parts: { length: 1, chunk: 1 / 8 }, range: { least: 24, step: 1 }, also: { begin: 0 } },
  trials: [
    { parameters: { chunk: 8, length: 40, begin: 48 }, uniform: true },
    { parameters: { chunk: 6, length: 24, begin: 0 }, uniform: true },
  ],
  status: "not reproduced on nano",
  measured:
    "nano, 4096 tokens, 32 questions, each asked after the text was read: " +
    "with a quarter of the keys read 12.5% right (full attention 37.5%, random pages 0)",
  parameters,
  beyondContext: ({ begin, length }) => begin <= length,
  check(model, { chunk, length }) {
    if (!model.rotary)
      throw new FoveaError("unsupported", "longheads renumbers rotary positions; this model has none", {
        hint: "use a method that reads tokens at their true positions, such as quest",
      });
    if (length < 3 * chunk)
      throw new FoveaError(
        "bad-input",
        `longheads: length is ${length} and chunk ${chunk}; a head reads 3 chunks or more`,
        {
          hint: `give it length=${3 * chunk} or more, or smaller chunks`,
        },
      );
  },
  hooks: ["activations", "position", "select"],
  create: (params): Hooks<State> => ({
    rowBlock: 1,
    state: () => new Map(),
    activations: addRows,
    // nothing moves here: this is where the rotary plan is known, by which full chunks are summarised
    position: (step) => summarise(step, params.chunk),
    select: (step) => chunkParts(step, params),
  }),
});

/** The rows' parts: the first chunk, each chosen one by its rank, and what is at its true place. */
function chunkParts(step: AttentionStep<State>, { chunk, length, begin }: Parameters): Part[] {
  const { rows, positions, view } = step;
  const { heads, kvHeads } = step.model;
  const count = Math.floor(length / chunk);
  const current = Array.from(positions, (p) => Math.floor(p / chunk));
  const selects = current.map((c, t) => positions[t] >= begin && c >= count);
  if (!selects.includes(true)) return [{}];
  const chosen = chooseChunks(step, current, selects, count - 3);
  const entry = (kv: number, c: number) => entriesBelow(headPositions(view, kv), c * chunk);
  const listing = (list: (t: number, kv: number) => readonly [number, number] | undefined) =>
    rowRanges({ rows: 1, heads: kvHeads, blocks: rows }, (t, kv, add) => {
      const range = list(t, kv);
      if (range) add(...range);
    });
  /** Queries as seen from chunk c at rank r: at their place behind count - 1 chunks, moved by c - r chunks. */
  const moved = (by: (t: number, kv: number) => number) => {
    const query = new Float32Array(step.q.length);
    const [group, dim] = [heads / kvHeads, step.q.length / (rows * heads)];
    for (let kv = 0; kv < kvHeads; kv++) {
      const at = positions.map((p, t) => (selects[t] ? (count - 1 + by(t, kv)) * chunk + (p % chunk) : p));
      const turned = step.rotate(at);
      for (let t = 0; t < rows; t++) {
        const from = (t * heads + kv * group) * dim;
        query.set(turned.subarray(from, from + group * dim), from);
      }
    }
    return query;
  };
  const near = listing((t, kv) => [selects[t] ? entry(kv, current[t] - 1) : 0, view.length(kv)]);
  const first = listing((t, kv) => (selects[t] ? [0, entry(kv, 1)] : undefined));
  const parts: Part[] = [{ blocks: near }, { blocks: first, query: moved(() => 0) }];
  for (let rank = 1; rank <= count - 3; rank++) {
    const own = (t: number, kv: number) => chosen[t]?.[kv][rank - 1] ?? 0;
    const blocks = listing((t, kv) => (selects[t] ? [entry(kv, own(t, kv)), entry(kv, own(t, kv) + 1)] : undefined));
    parts.push({ blocks, query: moved((t, kv) => (selects[t] ? own(t, kv) - rank : 0)) });
  }
  return parts;
}

/** Chunks that each row and KV head chooses between the first and the one before its own: [T][Hkv], ascending. */
function chooseChunks(
  step: AttentionStep<State>,
  current: readonly number[],
  selects: readonly boolean[],
  count: number,
): (Int32Array[] | undefined)[] {
  const { heads, kvHeads, headDim } = step.model;
  const group = heads / kvHeads;
  const vectors = step.state.get(step.layer)?.vectors ?? new Float32Array(0);
  const q = step.rotate(new Int32Array(step.rows)); // position 0: unrotated
  return current.map((own, t) => {
    if (!selects[t]) return undefined;
    return Array.from({ length: kvHeads }, (_, kv) => {
      const scores = new Float32Array(own - 1);
      for (let c = 1; c < scores.length; c++)
        for (let i = 0; i < group * headDim; i++)
          scores[c] +=
            q[(t * heads + kv * group) * headDim + i] * vectors[(c * kvHeads + kv) * headDim + (i % headDim)];
      return largest(scores, count, 1);
    });
  });
}
