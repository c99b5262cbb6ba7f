import type { Reducer } from "../../engine/api.js";
import { FoveaError } from "../../error.js";
import { chooseRows, type HeadTable, headIndex, headTable, includesLayer } from "./head-table.js";
import { eachRow, type ObserverOptions, rowMean } from "./row-mean.js";

/**
 * Attention mass on the tokens [start, end): the sum of a row's weights on them, mean over `rows` (default: the last
 * row, the one that the next token is predicted from).
 */
export function spanMass(
  span: readonly [start: number, end: number],
  options: ObserverOptions = {},
): Reducer<HeadTable> {
  const [start, end] = span;
  if (!(Number.isInteger(start) && Number.isInteger(end) && start >= 0 && start < end))
    throw new FoveaError("bad-input", `a span of tokens ${start} to ${end}; expected whole numbers, start below end`);
  return rowMean("span-mass", { rows: "last", ...options }, ({ weights, keys }) => {
    let mass = 0;
    for (let i = 0; i < keys.length; i++) if (keys[i] >= start && keys[i] < end) mass += weights[i];
    return mass;
  });
}

/** Entropy of a row's weights in nats, mean over rows (default all). */
export function entropy(options: ObserverOptions = {}): Reducer<HeadTable> {
  return rowMean("entropy", { rows: "all", ...options }, ({ weights }) => {
    let sum = 0;
    for (const w of weights) if (w > 0) sum -= w * Math.log(w);
    return sum;
  });
}

/** Mean distance in tokens from a row to what it reads, weighted by attention; mean over rows (default all). */
export function distance(options: ObserverOptions = {}): Reducer<HeadTable> {
  return rowMean("distance", { rows: "all", ...options }, ({ weights, keys, position }) => {
    let sum = 0;
    for (let i = 0; i < keys.length; i++) sum += weights[i] * (position - keys[i]);
    return sum;
  });
}

/** Attention that each token receives. */
export interface Received {
  readonly layers: number;
  readonly heads: number;
  readonly tokens: number;
  /** [L, Hq, S]: column sums over the observed rows. */
  readonly data: Float32Array;
  /** The sums of one head, [S]. */
  at(where: { layer: number; head: number }): Float32Array;
}

/** Column sums of the weights over rows (default all): [L, Hq, S]. */
export function received(options: ObserverOptions = {}): Reducer<Received> {
  return {
    name: "received",
    layers: options.layers,
    start(model, tokens) {
      const { layers, heads } = model;
      const data = new Float32Array(layers * heads * tokens);
      const [start, end] = chooseRows(options.rows ?? "all", tokens);
      return {
        observe(step) {
          if (!includesLayer(options.layers, step.layer, model)) return;
          eachRow(step, (head, { weights, keys, position }) => {
            if (position < start || position >= end) return;
            const at = (step.layer * heads + head) * tokens;
            for (let i = 0; i < keys.length; i++) data[at + keys[i]] += weights[i];
          });
        },
        finish: () => ({
          layers,
          heads,
          tokens,
          data,
          at(where) {
            const at = headIndex(where, layers, heads) * tokens;
            return data.subarray(at, at + tokens);
          },
        }),
      };
    },
  };
}

/** How much of a model's attention goes to a sink. */
export interface SinkRate extends HeadTable {
  /** Share of heads whose mean weight on the token is above the threshold, 0 to 1. */
  readonly rate: number;
  readonly threshold: number;
}

/**
 * Sink rate (When Attention Sink Emerges in Language Models, ICLR 2025): a head's weight on one token (default the
 * first), mean over the rows that can see it; a head counts as a sink above `threshold` (default 0.3).
 */
export function sinkRate(
  options: { threshold?: number; token?: number; layers?: readonly number[] } = {},
): Reducer<SinkRate> {
  const { threshold = 0.3, token = 0, layers } = options;
  return {
    name: "sink-rate",
    layers,
    start(model, tokens) {
      const mean = spanMass([token, token + 1], { layers, rows: { from: token } }).start(model, tokens);
      return {
        observe: (step) => mean.observe(step),
        finish() {
          const { data } = mean.finish();
          const seen = data.filter((x) => !Number.isNaN(x));
          const rate = seen.filter((x) => x > threshold).length / Math.max(1, seen.length);
          return { ...headTable(data, model.layers, model.heads), rate, threshold };
        },
      };
    },
  };
}
