import type { Reducer } from "../engine/api.js";
import { cellEdges, type HeatMap } from "./heatmap.js";

/** What a pass over a prompt leaves: a picture of bounded size and the last row's exact weights. */
export interface ObservedMap extends HeatMap {
  /** [tokens] Weights of the last reading token. */
  readonly last: Float32Array;
}

interface MapOptions {
  readonly layer: number;
  /** A query head, or the average of the layer's heads. */
  readonly head: number | "mean";
  /** Reading tokens [from, to); default all. */
  readonly rows?: readonly [number, number];
  /** Most rows and columns of the picture; tokens beyond share a cell. */
  readonly cells: number;
}

/** Draws a map while the rows stream: memory grows with the picture, not with the square of the text. */
export function mapReducer({ layer, head, rows, cells }: MapOptions): Reducer<ObservedMap> {
  return {
    name: "map",
    layers: [layer],
    start(model, tokens) {
      const [from, to] = rows ?? [0, tokens];
      const rowEdges = cellEdges(from, to, cells);
      const columnEdges = cellEdges(0, tokens, cells);
      const [rowCell, columnCell] = [cellOf(rowEdges, tokens), cellOf(columnEdges, tokens)];
      const columns = columnEdges.length - 1;
      const data = new Float32Array((rowEdges.length - 1) * columns);
      const last = new Float32Array(tokens);
      const heads = head === "mean" ? Array.from({ length: model.heads }, (_, h) => h) : [head];
      const group = model.heads / model.kvHeads;
      return {
        observe(step) {
          if (step.layer !== layer) return;
          const { weights } = step;
          for (const h of heads) {
            const positions = step.keyPositions(Math.floor(h / group));
            // An observer of one head may be given that head's rows alone.
            const at = weights.heads === model.heads ? h : 0;
            for (let i = 0; i < weights.rows; i++) {
              const token = step.positions[i];
              if (token < from || token >= to) continue;
              const cell = rowCell[token];
              const share = 1 / heads.length;
              const mean = share / (rowEdges[cell + 1] - rowEdges[cell]);
              const row = (at * weights.rows + i) * weights.keys;
              for (let j = 0; j < weights.keys; j++) {
                const weight = weights.data[row + j];
                if (weight === 0) continue;
                data[cell * columns + columnCell[positions[j]]] += weight * mean;
                if (token === to - 1) last[positions[j]] += weight * share;
              }
            }
          }
        },
        finish: () => ({ rows: rowEdges.length - 1, columns, data, rowEdges, columnEdges, last }),
      };
    },
  };
}

/** [tokens] The cell that each token lies in. */
function cellOf(edges: readonly number[], tokens: number): Int32Array {
  const cells = new Int32Array(tokens);
  for (let cell = 0; cell + 1 < edges.length; cell++) cells.fill(cell, edges[cell], edges[cell + 1]);
  return cells;
}
