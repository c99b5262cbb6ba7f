import type { Reducer } from "../../engine/api.js";
import { chooseRows, type HeadTable, headTable, includesLayer, type RowChoice } from "./head-table.js";

export interface ObserverOptions {
  /** Layers that are read; negative ones count from the last. Default all. */
  layers?: readonly number[];
  /** Rows that are read. */
  rows?: RowChoice;
}

/** One row of weights as a query used it. */
export interface ObservedRow {
  /** [S], by cached entry. */
  readonly weights: Float32Array;
  /** Positions of the entries, ascending; entries of later positions have weight 0. */
  readonly keys: Int32Array;
  /** The row's own position. */
  readonly position: number;
}

/** A reducer that measures each row by one number and gives the mean over rows: a table [L, Hq]. */
export function rowMean(
  name: string,
  options: ObserverOptions & { rows: RowChoice },
  measure: (row: ObservedRow) => number,
): Reducer<HeadTable> {
  return {
    name,
    layers: options.layers,
    start(model, tokens) {
      const sums = new Float64Array(model.layers * model.heads);
      const counts = new Uint32Array(model.layers * model.heads);
      const [start, end] = chooseRows(options.rows, tokens);
      return {
        observe(step) {
          if (!includesLayer(options.layers, step.layer, model)) return;
          eachRow(step, (head, row) => {
            if (row.position < start || row.position >= end) return;
            const at = step.layer * model.heads + head;
            sums[at] += measure(row);
            counts[at]++;
          });
        },
        finish: () =>
          headTable(
            Float32Array.from(sums, (sum, i) => (counts[i] > 0 ? sum / counts[i] : Number.NaN)),
            model.layers,
            model.heads,
          ),
      };
    },
  };
}

/** The sum over `rows` rows of what a reducer gives the mean of, or any other multiple of it. */
export function summed(mean: Reducer<HeadTable>, rows: number): Reducer<HeadTable> {
  return {
    ...mean,
    start(model, tokens) {
      const run = mean.start(model, tokens);
      return {
        observe: (step) => run.observe(step),
        finish() {
          const table = run.finish();
          table.data.forEach((x, i) => {
            table.data[i] = x * rows;
          });
          return table;
        },
      };
    },
  };
}

type Observed = Parameters<ReturnType<Reducer<unknown>["start"]>["observe"]>[0];

/** Calls `visit` for each query head and row of an observed block. */
export function eachRow(step: Observed, visit: (head: number, row: ObservedRow) => void, only?: number): void {
  const { data, heads, rows, keys } = step.weights;
  const group = heads / step.model.kvHeads;
  for (let head = only ?? 0; head < (only === undefined ? heads : only + 1); head++) {
    const positions = step.keyPositions(Math.floor(head / group));
    for (let t = 0; t < rows; t++) {
      const at = (head * rows + t) * keys;
      visit(head, { weights: data.subarray(at, at + positions.length), keys: positions, position: step.positions[t] });
    }
  }
}
