import type { Reducer } from "../../engine/api.js";
import { FoveaError } from "../../error.js";
import { chooseRows, headIndex, type RowChoice } from "./head-table.js";
import { eachRow } from "./row-mean.js";

/** Rows of one head's attention map. */
export interface AttentionRows {
  readonly layer: number;
  readonly head: number;
  /** Rows [firstRow, firstRow + rows) of the text. */
  readonly firstRow: number;
  readonly rows: number;
  readonly columns: number;
  /** [rows, columns]: what each row read, by the key's position. Empty where rows were handed to `each`. */
  readonly data: Float32Array;
  /** What the row of a position read, [columns]. */
  row(position: number): Float32Array;
}

export interface AttentionRowsOptions {
  /** Negative layers count from the last. */
  layer: number;
  head: number;
  /** Default "last": the row that predicts the next token. "all" holds the whole map, [T, T]. */
  rows?: RowChoice;
  /** Takes each row [columns] as it passes (a view, valid during the call); then none is held. */
  each?: (position: number, weights: Float32Array) => void;
}

/** Exact attention rows of one head. A row sums to 1 unless a method edited the weights; keys that were not read are 0. */
export function attentionRows(options: AttentionRowsOptions): Reducer<AttentionRows> {
  const { head, rows = "last", each } = options;
  return {
    name: "attention-rows",
    layers: [options.layer],
    start(model, tokens) {
      const layer = Math.floor(headIndex(options, model.layers, model.heads) / model.heads);
      const [start, end] = chooseRows(rows, tokens);
      const held = each ? 1 : end - start;
      const data = new Float32Array(held * tokens);
      return {
        observe(step) {
          if (step.layer !== layer) return;
          eachRow(
            step,
            (_, { weights, keys, position }) => {
              if (position < start || position >= end) return;
              const at = each ? 0 : (position - start) * tokens;
              if (each) data.fill(0);
              // entries of later tokens weigh nothing; a text longer than announced has no column
              for (let i = 0; i < keys.length; i++) if (keys[i] < tokens) data[at + keys[i]] = weights[i];
              each?.(position, data);
            },
            head,
          );
        },
        finish: () => ({
          layer,
          head,
          firstRow: start,
          rows: each ? 0 : end - start,
          columns: tokens,
          data: each ? new Float32Array(0) : data,
          row(position) {
            if (each || !(position >= start && position < end))
              throw new FoveaError(
                "bad-input",
                `row ${position} was not kept; ${each ? "rows went to `each`" : `rows are ${start} to ${end - 1}`}`,
              );
            return data.subarray((position - start) * tokens, (position - start + 1) * tokens);
          },
        }),
      };
    },
  };
}
