import { Random } from "../engine/sampling.js";
import { FoveaError } from "../error.js";
import type { Batch, DataSource } from "./batch.js";
import { mix } from "./data.js";

/** A task whose answers are known: rows of random symbols, with weight on the tokens that can be told. */
export interface Task extends DataSource {
  /** Batches that training never sees. */
  heldOut(index: number): Batch;
}

interface TaskOptions {
  /** Sequences in a batch. Default 64. */
  readonly rows?: number;
  /** Default 1. */
  readonly seed?: number;
}

/**
 * Multi-query associative recall (Zoology, ICLR 2024): key-value pairs, then every key once more in another order; after
 * each the model is to say its value. Rows of 4 * pairs tokens. Defaults: 8 pairs of 64 keys and 64 values.
 */
export function recall(
  options: TaskOptions & { readonly pairs?: number; readonly keys?: number; readonly values?: number } = {},
): Task {
  const { pairs = 8, keys = 64, values = 64 } = options;
  if (pairs > keys) throw new FoveaError("bad-input", `${pairs} pairs cannot have different keys out of ${keys}`);
  return task(
    `recall(pairs=${pairs},keys=${keys},values=${values})`,
    keys + values,
    4 * pairs,
    options,
    (random, put) => {
      const chosen = draw(pairs, keys, random);
      const held = chosen.map(() => keys + Math.floor(random.next() * values));
      for (const [i, key] of chosen.entries()) {
        put(key);
        put(held[i]);
      }
      for (const i of draw(pairs, pairs, random)) {
        put(chosen[i]);
        put(held[i], true);
      }
    },
  );
}

/** Induction: random symbols, and the same ones again; from the second symbol of the copy on all can be told. */
export function induction(options: TaskOptions & { readonly length?: number; readonly symbols?: number } = {}): Task {
  const { length = 16, symbols = 64 } = options;
  return task(`induction(length=${length},symbols=${symbols})`, symbols, 2 * length, options, (random, put) => {
    const list = draw(Math.min(length, symbols), symbols, random);
    for (const x of list) put(x);
    list.forEach((x, i) => {
      put(x, i > 0);
    });
  });
}

/** Copying: random symbols, a mark, and the symbols again; all of the copy can be told. Symbols may repeat. */
export function copying(options: TaskOptions & { readonly length?: number; readonly symbols?: number } = {}): Task {
  const { length = 16, symbols = 32 } = options;
  return task(`copying(length=${length},symbols=${symbols})`, symbols + 1, 2 * length + 1, options, (random, put) => {
    const list = Array.from({ length }, () => Math.floor(random.next() * symbols));
    for (const x of list) put(x);
    put(symbols);
    for (const x of list) put(x, true);
  });
}

/** Share of the answers of a batch that were predicted. */
export function accuracy(batch: Batch, predicted: ArrayLike<number>): number {
  let [right, all] = [0, 0];
  for (let i = 0; i < batch.weights.length; i++) {
    if (!(batch.weights[i] > 0)) continue;
    all++;
    if (predicted[i] === batch.targets[i]) right++;
  }
  return all > 0 ? right / all : 0;
}

function task(
  name: string,
  vocabulary: number,
  length: number,
  { rows = 64, seed = 1 }: TaskOptions,
  write: (random: Random, put: (token: number, answer?: boolean) => void) => void,
): Task {
  const make = (stream: number): Batch => {
    const random = new Random(stream);
    const ids = new Int32Array(rows * length);
    const targets = new Int32Array(rows * length).fill(-1);
    const weights = new Float32Array(rows * length);
    for (let r = 0; r < rows; r++) {
      let at = r * length;
      write(random, (token, answer = false) => {
        if (answer) {
          targets[at - 1] = token;
          weights[at - 1] = 1;
        }
        ids[at++] = token;
      });
    }
    return { rows, length, ids, targets, weights };
  };
  return {
    name: `${name}(rows=${rows},seed=${seed})`,
    vocabulary,
    // even streams train, odd ones are held out
    batch: (step) => make(mix(seed, 2 * step)),
    heldOut: (index) => make(mix(seed, 2 * index + 1)),
  };
}

/** `count` different numbers below n, in random order. */
function draw(count: number, n: number, random: Random): number[] {
  const all = Array.from({ length: n }, (_, i) => i);
  for (let i = 0; i < count; i++) {
    const j = i + Math.floor(random.next() * (n - i));
    [all[i], all[j]] = [all[j], all[i]];
  }
  return all.slice(0, count);
}
