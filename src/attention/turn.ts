import type { Step } from "../engine/hooks.js";

/** Where a step's rows stand in the prompt or extension (the turn) that the engine may take in blocks and pieces. */
type Place = Pick<Step, "phase" | "rows" | "positions" | "firstRow" | "totalRows">;

/** Absolute position of the turn's first row. */
export function turnStart({ positions, firstRow }: Pick<Place, "positions" | "firstRow">): number {
  return positions[0] - firstRow;
}

/** True for rows of the prompt itself, in its later pieces too. */
export function inPrompt(step: Place): boolean {
  return step.phase !== "decode" && turnStart(step) === 0;
}

/** True when the step holds the turn's last row. */
export function endsTurn({ firstRow, rows, totalRows }: Place): boolean {
  return firstRow + rows >= totalRows;
}
