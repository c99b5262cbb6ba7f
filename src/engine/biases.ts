import { FoveaError } from "../error.js";
import type { LogBias } from "./hooks.js";

/** Sizes that selections and biases are laid out by. */
export interface HeadCounts {
  readonly heads: number;
  readonly kvHeads: number;
}

/** The sum of two log-biases, widened to the finer of their grids of heads and rows. */
export function addBiases(a: LogBias, b: LogBias, shape: HeadCounts): LogBias {
  const heads = Math.max(a.heads, b.heads);
  const rows = Math.max(a.rows, b.rows);
  const keys = a.data.length / (a.heads * Math.max(1, a.rows));
  if (keys !== b.data.length / (b.heads * Math.max(1, b.rows)))
    throw new FoveaError(
      "bad-shape",
      `two biases cover ${keys} and ${b.data.length / (b.heads * Math.max(1, b.rows))} keys`,
    );
  const start = (bias: LogBias, head: number, row: number) => {
    const own = bias.heads === heads ? head : bias.heads === 1 ? 0 : Math.floor(head / (shape.heads / shape.kvHeads));
    return (own * Math.max(1, bias.rows) + (bias.rows > 0 ? row : 0)) * keys;
  };
  const count = Math.max(1, rows);
  const data = new Float32Array(heads * count * keys);
  for (let head = 0, to = 0; head < heads; head++)
    for (let row = 0; row < count; row++, to += keys) {
      const x = start(a, head, row);
      const y = start(b, head, row);
      for (let i = 0; i < keys; i++) data[to + i] = a.data[x + i] + b.data[y + i];
    }
  return { data, heads, rows };
}
