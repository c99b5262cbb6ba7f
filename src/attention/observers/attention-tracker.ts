import type { Reducer } from "../../engine/api.js";
import { FoveaError } from "../../error.js";
import type { HeadName } from "../string.js";
import { type HeadTable, headTable } from "./head-table.js";
import { spanMass } from "./reducers.js";

/**
 * Attention Tracker (Findings of NAACL 2025, arXiv:2411.00348): a prompt injection shows in a few heads of the last
 * prompt row, which stop reading the instruction and read the data. Spans are token ranges in the rendered prompt; a
 * prefix such as "Data: " and the chat template's tail belong to neither.
 */
export interface TrackedPrompt {
  readonly instruction: readonly [start: number, end: number];
  /** Undefined where there is no data. */
  readonly data?: readonly [start: number, end: number];
}

/** Per head inst / (inst + data) of the last row's attention: [L, Hq]; 0 where neither is read. */
export function instructionShare({ instruction, data }: TrackedPrompt): Reducer<HeadTable> {
  return {
    name: "instruction-share",
    start(model, tokens) {
      const runs = [instruction, ...(data ? [data] : [])].map((span) => spanMass(span).start(model, tokens));
      return {
        observe: (step) => {
          for (const run of runs) run.observe(step);
        },
        finish() {
          const [inst, other] = runs.map((run) => run.finish().data);
          const share = inst.map((x, i) => x / (x + (other?.[i] ?? 0) + 1e-8));
          return headTable(share, model.layers, model.heads);
        },
      };
    },
  };
}

/** Focus score of a prompt: the mean share over the important heads. An injection is suspected at 0.5 and below. */
export function focusScore(share: HeadTable, heads: readonly HeadName[]): number {
  if (heads.length === 0) throw new FoveaError("bad-input", "a focus score needs at least one important head");
  return heads.reduce((sum, head) => sum + share.at(head), 0) / heads.length;
}

/** How far apart a head holds the two kinds of prompt. */
export interface TrackerHead extends HeadName {
  /** (mean - n std) of the normal prompts less (mean + n std) of the attacked ones: above 0 for important heads. */
  readonly margin: number;
}

/**
 * Important heads, best first: those whose shares on normal and on attacked prompts stay apart by `n` standard
 * deviations of each (population ones). Calibrate on some thirty sentences, with and without an attack behind them.
 *
 * @param n default 4, the paper's
 */
export function importantHeads(normal: readonly HeadTable[], attacked: readonly HeadTable[], n = 4): TrackerHead[] {
  if (normal.length === 0 || attacked.length === 0)
    throw new FoveaError("bad-input", "heads are chosen by normal and by attacked prompts; one kind is missing");
  const { layers, heads } = normal[0];
  const found: TrackerHead[] = [];
  for (let i = 0; i < layers * heads; i++) {
    const a = moments(normal.map((t) => t.data[i]));
    const b = moments(attacked.map((t) => t.data[i]));
    const margin = a.mean - b.mean - n * (a.deviation + b.deviation);
    if (margin > 0) found.push({ layer: Math.floor(i / heads), head: i % heads, margin });
  }
  return found.sort((x, y) => y.margin - x.margin);
}

function moments(values: readonly number[]): { mean: number; deviation: number } {
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  const variance = values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / values.length;
  return { mean, deviation: Math.sqrt(variance) };
}
