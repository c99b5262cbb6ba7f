/** For tests only: data that a tiny model learns at once. */
import type { Batch, DataSource } from "./batch.js";

/** Rows that count upwards from a random byte: the next token is the one before plus one. */
export function counting(options: { rows: number; length: number; seed?: number; ragged?: boolean }): DataSource {
  const { rows, length, seed = 1, ragged = false } = options;
  return {
    name: `counting(${rows},${length},${seed})`,
    vocabulary: 300,
    batch(step): Batch {
      const ids = new Int32Array(rows * length);
      const targets = new Int32Array(rows * length);
      const weights = new Float32Array(rows * length);
      for (let r = 0; r < rows; r++) {
        const start = 2 + (((step * rows + r + seed * 131) * 2654435761) % 200);
        for (let t = 0; t < length; t++) {
          const last = t === length - 1;
          ids[r * length + t] = start + t;
          targets[r * length + t] = last ? -1 : start + t + 1;
          weights[r * length + t] = last || (ragged && t > 3 * (r + 1)) ? 0 : 1 + (ragged ? r / 2 : 0);
        }
      }
      return { rows, length, ids, targets, weights };
    },
  };
}
