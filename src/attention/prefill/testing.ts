import type { AttachedMethod, AttentionStep, Part } from "../../engine/hooks.js";
import { isPartial } from "../../engine/hooks.js";
import { rangesOf } from "../../engine/row-ranges.js";
import { PlainLayer, type PlainRows } from "../plain.js";

/** What each row reads of a prompt, per query head, as sorted entries: of one plain layer without rotation. */
export async function readsOf(
  attached: AttachedMethod,
  rows: PlainRows,
  shape: { heads: number; kvHeads: number; headDim: number },
  blockRows?: number,
): Promise<{ output: Float32Array; reads: number[][][] }> {
  const reads: number[][][] = [];
  const { select } = attached.hooks;
  if (!select) throw new Error("the method does not select");
  const watched: AttachedMethod = {
    ...attached,
    hooks: {
      ...attached.hooks,
      select: async (step) => {
        const parts = await select(step);
        for (let t = 0; t < step.rows; t++)
          reads[step.positions[t]] = Array.from({ length: shape.heads }, (_, h) =>
            entriesOfRow(step, parts as Part[], t, h),
          );
        return parts;
      },
    },
  };
  const layer = new PlainLayer(shape, [watched], { rotaryBase: null, ...(blockRows && { blockRows }) });
  const output = await layer.step(rows);
  return { output, reads };
}

function entriesOfRow(step: AttentionStep, parts: readonly Part[], row: number, head: number): number[] {
  const { heads } = step.model;
  const found: number[] = [];
  for (const part of parts) {
    if (isPartial(part)) throw new Error("a ready result lists no entries");
    const ranges = part.blocks
      ? rangesOf(part.blocks, Math.floor(row / part.blocks.rows), head, heads)
      : [[0, step.view.length(0)]];
    for (const [start, end] of ranges)
      for (let e = start; e < end; e++) if (step.view.positions(0)[e] <= step.positions[row]) found.push(e);
  }
  return found;
}
