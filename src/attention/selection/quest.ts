import { z } from "zod";
import type { AttentionStep, Entries, Part } from "../../engine/hooks.js";
import { method } from "../method.js";
import {
  denseLayers,
  type GroupReduction,
  groupReduction,
  type Held,
  headLengths,
  heldChoice,
  isDense,
  PAGE,
  pageBounds,
  readingBudget,
  readTokens,
  reduceGroups,
  refresh,
  topPerHead,
  withNewer,
} from "../select/index.js";

const parameters = z.object({
  ...readingBudget(1024, "tokens read per head and step, in whole pages of 16, the newest page included"),
  minPages: z.int().min(1).default(3).describe("pages that are read at least"),
  ...denseLayers(2),
  ...groupReduction("none"),
  ...refresh(),
});
type Parameters = z.output<typeof parameters>;

/** Pages chosen in a layer, for each (KV) head, and the entries that the KV heads held then. */
interface Choice {
  readonly entries: Entries[];
  readonly lengths: number[];
}
type State = Map<number, Held<Choice>>;

/**
 * Quest: a page's elementwise minimum m and maximum M bound the dot product of the query with any of its keys,
 * sum_d max(q_d m_d, q_d M_d). While decoding, each head reads the pages with the largest bounds and the newest page.
 *
 * The bounds are those that int8 pages carry anyway, so nothing is kept for them, and they hold for the keys as stored.
 */
export const quest = method({
  name: "quest",
  family: "selection",
  does: "Reads the pages of 16 tokens whose keys can fit the query best, by the bounds of each page's keys.",
  paper: {
    title: "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference",
    venue: "ICML 2024",
    url: "https://github.com/mit-han-lab/Quest",
  },
  cost: "2 D numbers per page of the cache and KV head, and `tokens` keys and values per head; nothing is freed",
  facts: "the sheet, from the official code; choices for a whole group of query heads are inferred",
  deviations: [
    "a page is the cache's own, 16 tokens; other sizes cannot be set",
    "of int8 keys the bounds are those of the stored codes: a little wider than the keys'",
  ],
  rows: { prefill: false, lastPromptRow: false, decode: true },
  exact: { tokens: 2 ** 30 },
  trials: [
    { parameters: { tokens: 48, denseLayers: 1 } },
    { parameters: { share: 1 / 3, denseLayers: 0, group: "sum", refresh: 3 } },
  ],
  status: "holds",
  measured:
    "nano, 4096 tokens, 32 questions, each asked after the text was read: " +
    "with a sixteenth of the keys read 43.8% right (full attention 37.5%, random pages 0)",
  parameters,
  state: (): State => new Map(),
  select: (step, params) => questParts(step, params),
});

function questParts(step: AttentionStep<State>, params: Parameters): Part[] {
  const { layer, model, phase, positions } = step;
  if (phase !== "decode" || isDense(layer, params.denseLayers, model.layers)) return [{}];
  const lengths = headLengths(step.view, model.kvHeads);
  const length = Math.max(...lengths);
  const tokens = readTokens(params, length);
  const count = Math.max(params.minPages, Math.floor(tokens / PAGE));
  if (tokens >= length || count >= Math.ceil(length / PAGE)) return [{}];
  const held = heldChoice(step.state, layer, positions[0], params.refresh, () => ({
    entries: choosePages(step, count, params.group),
    lengths,
  }));
  return [{ entries: held.lengths === lengths ? held.entries : withNewest(held, lengths) }];
}

/** The `count` pages with the largest bounds, the newest among them: entries for each query head or KV head. */
export function choosePages(
  step: Pick<AttentionStep, "q" | "cache" | "view" | "model">,
  count: number,
  group: GroupReduction,
): Entries[] {
  return step.cache
    ? step.cache.choosePages(step.q, { count, reduce: group, last: 1 })
    : choosePagesPlainly(step, count, group);
}

/** The same by the definition, from keys read out. */
export function choosePagesPlainly(
  step: Pick<AttentionStep, "q" | "view" | "model">,
  count: number,
  group: GroupReduction,
): Entries[] {
  const { kvHeads } = step.model;
  const lengths = headLengths(step.view, kvHeads).map((n) => Math.ceil(n / PAGE));
  const scores = reduceGroups(pageBounds(step), kvHeads, group);
  return topPerHead(scores, count, { window: 1 }, lengths).map((pages) => ({ pages }));
}

/** A held choice with what came since: new tokens of the newest page are in it, pages begun since are added. */
function withNewest({ entries, lengths }: Choice, now: readonly number[]): Entries[] {
  return entries.map((chosen, i): Entries => {
    const head = Math.floor((i * now.length) / entries.length);
    if (chosen === "all" || now[head] <= lengths[head]) return chosen;
    if ("pages" in chosen)
      return { pages: withNewer(chosen.pages, Math.ceil(lengths[head] / PAGE), Math.ceil(now[head] / PAGE)) };
    return "ranges" in chosen ? { ranges: [...chosen.ranges, [lengths[head], now[head]]] } : chosen;
  });
}
