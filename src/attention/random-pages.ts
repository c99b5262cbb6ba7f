import { z } from "zod";
import type { Part, RetainStep } from "../engine/hooks.js";
import { budget, budgetTokens } from "./budget.js";
import { method } from "./method.js";
import { PAGE, topEntries } from "./select/index.js";
import { endsTurn, inPrompt } from "./turn.js";

const parameters = z.object({
  tokens: budget().default(512).describe("tokens in pages of 16, the newest page included, or their share of the text"),
  action: z
    .enum(["read", "keep"])
    .default("read")
    .describe("read other pages in every step, or keep some once, after the prompt"),
  seed: z.int().min(0).default(1).describe("which pages"),
});

/**
 * The control that every choice of pages must beat: pages by lot, in every KV head its own, and the newest one. Where
 * evidence is found at this budget, it would be found by any method.
 */
export const randomPages = method({
  name: "random-pages",
  family: "control",
  kind: "control",
  does: "Reads or keeps random pages and the newest one.",
  cost: "the budget per token, no scoring",
  facts: "definition",
  rows: { prefill: false, lastPromptRow: false, decode: true },
  exact: { tokens: 2 ** 30 },
  budget: { parts: { tokens: 1 }, keeps: { action: "keep" } },
  trials: [{ parameters: { tokens: 32 } }, { parameters: { tokens: 48, action: "keep" } }],
  status: "holds",
  parameters,
  hooks: ["select", "retain"],
  scope: "layers",
  create({ tokens, action, seed }) {
    if (action === "keep")
      return {
        retain(step: RetainStep) {
          if (step.when !== "after" || !inPrompt(step) || !endsTurn(step)) return;
          for (let head = 0; head < step.model.kvHeads; head++) {
            const length = step.view.length(head);
            if (budgetTokens(tokens, length) >= length) continue;
            // by lot, and not by where the prompt ended: pieces and wholes choose alike
            const pages = pagesByLot(length, budgetTokens(tokens, length), `${seed} ${step.layer} ${head}`);
            step.keep(head, entriesOfPages(pages, length));
          }
        },
      };
    return {
      select(step) {
        if (step.phase !== "decode") return [{}];
        return Array.from({ length: step.model.kvHeads }, (_, head): Part => {
          const length = step.view.length(head);
          const lot = `${seed} ${step.layer} ${head} ${step.positions[0]}`;
          return { heads: [head, head + 1], entries: { pages: pagesByLot(length, budgetTokens(tokens, length), lot) } };
        });
      },
    };
  },
});

/** Pages of 16 entries by lot, about `tokens` entries in all, the last page among them. Ascending. */
export function pagesByLot(length: number, tokens: number, lot: string): Int32Array {
  const pages = Math.ceil(length / PAGE);
  const count = Math.min(pages, Math.max(1, Math.round(tokens / PAGE)));
  let state = hash(lot);
  const scores = Float32Array.from({ length: pages }, () => {
    // mulberry32
    state = (state + 0x6d2b79f5) >>> 0;
    let x = state;
    x = Math.imul(x ^ (x >>> 15), x | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  });
  return topEntries(scores, count, { window: 1 });
}

function entriesOfPages(pages: Int32Array, length: number): Int32Array {
  const entries: number[] = [];
  for (const page of pages) for (let i = page * PAGE; i < Math.min(length, (page + 1) * PAGE); i++) entries.push(i);
  return Int32Array.from(entries);
}

/** FNV-1a with a last mixing. */
function hash(text: string): number {
  let h = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
  h = Math.imul(h ^ (h >>> 16), 0x7feb352d);
  return (h ^ (h >>> 15)) >>> 0;
}
