import { Random } from "../engine/sampling.js";
import { FoveaError } from "../error.js";
import type { Tokenizer } from "../models/index.js";
import type { Batch, DataSource } from "./batch.js";

/** A document as tokens, with the weight of each token as a target (default 1). */
export interface TokenDocument {
  readonly ids: ArrayLike<number>;
  readonly weights?: ArrayLike<number>;
}

/** How documents are packed into batches. */
export interface PackingOptions {
  /** Sequences in a batch (B). */
  readonly rows: number;
  /** Tokens of a sequence (T). */
  readonly length: number;
  /** Default 1. */
  readonly seed?: number;
  /**
   * Positions of a document: from 0 on, or from a random place on so that it ends before `upTo`. With `gaps`, up to that
   * many leaps at random tokens, of sizes drawn on a logarithmic scale, spread a document over more positions than it has tokens (PoSE,
   * arXiv:2309.10400): what is learnt on short sequences is learnt for distances up to `upTo`. Default no gaps.
   */
  readonly positions?: { readonly upTo: number; readonly gaps?: number };
}

/**
 * Documents made one after the other: `make(i)` gives document i, a pure function of i. A batch holds as many as it has
 * room for; the last one of a row is cut off.
 */
export function generated(
  name: string,
  vocabulary: number,
  make: (index: number, random: Random) => TokenDocument,
  options: PackingOptions & {
    /** Documents drawn for a batch of B rows of T tokens: enough to fill it. Default: as many as are needed. */
    readonly batch?: (step: number) => Partial<Pick<PackingOptions, "rows" | "length">>;
  },
): DataSource {
  check(options);
  const { seed = 1 } = options;
  return {
    name: `${name}(rows=${options.rows},length=${options.length},seed=${seed})`,
    vocabulary,
    batch(step) {
      const { rows = options.rows, length = options.length } = options.batch?.(step) ?? {};
      const random = new Random(mix(seed, step));
      const builder = new BatchBuilder(rows, length, random, options.positions);
      for (let r = 0; r < rows; r++)
        while (builder.room(r) > 1) {
          const document = make(Math.floor(random.next() * 2 ** 32), random);
          if (document.ids.length === 0) throw new FoveaError("bad-input", `${name} made a document without tokens`);
          builder.add(r, document);
        }
      return builder.batch();
    },
  };
}

/**
 * Texts in random order, epoch after epoch: each epoch is another permutation, cut into sequences of T tokens. A text
 * longer than a sequence goes on in the next. BOS begins each text where the tokenizer says so.
 *
 * @throws FoveaError `bad-input` where the texts hold too few tokens for one batch
 */
export function texts(
  documents: readonly string[],
  options: PackingOptions & {
    readonly tokenizer: Tokenizer;
    /** Share of the documents that is left out, for measuring: `heldOut` takes exactly those. Default 0. */
    readonly holdOut?: number;
    /** Use the documents that are left out instead. */
    readonly heldOut?: boolean;
    readonly name?: string;
  },
): DataSource {
  check(options);
  const { tokenizer, rows, length, seed = 1, holdOut = 0, heldOut = false, name = "texts" } = options;
  const chosen = documents.filter((_, i) => new Random(mix(i, 77)).next() < holdOut === heldOut);
  const encoded = chosen.map((text) => Int32Array.from(tokenizer.encode(text).ids));
  const total = encoded.reduce((sum, ids) => sum + ids.length, 0);
  const size = rows * length;
  const perEpoch = Math.floor(total / size);
  if (perEpoch < 1)
    throw new FoveaError(
      "bad-input",
      `${chosen.length} texts hold ${total} tokens; a batch of ${rows} x ${length} needs ${size}`,
      {
        hint: "give more text, or smaller batches",
      },
    );
  let epoch: { number: number; order: Int32Array; starts: Float64Array } | undefined;
  const epochOf = (number: number) => {
    if (epoch?.number !== number) {
      const order = permutation(encoded.length, new Random(mix(seed, number)));
      const starts = new Float64Array(order.length + 1);
      for (let i = 0; i < order.length; i++) starts[i + 1] = starts[i] + encoded[order[i]].length;
      epoch = { number, order, starts };
    }
    return epoch;
  };
  return {
    name: `${name}(rows=${rows},length=${length},seed=${seed},tokens=${total})`,
    vocabulary: tokenizer.vocabSize,
    batch(step) {
      const { order, starts } = epochOf(Math.floor(step / perEpoch));
      const random = new Random(mix(seed + 1, step));
      const builder = new BatchBuilder(rows, length, random, options.positions);
      let at = (step % perEpoch) * size;
      let d = lastAtMost(starts, at);
      for (let r = 0; r < rows; r++)
        while (builder.room(r) > 0) {
          const ids = encoded[order[d]];
          const from = at - starts[d];
          const count = Math.min(builder.room(r), ids.length - from);
          // one token more than fits, so that the last one has a target too
          builder.add(r, { ids: ids.subarray(from, from + count + 1) }, count);
          at += count;
          if (at >= starts[d + 1]) d++;
        }
      return builder.batch();
    },
  };
}

/** Fills the rows of a batch with documents. */
export class BatchBuilder {
  readonly #rows: number;
  readonly #length: number;
  readonly #random: Random;
  readonly #positions: PackingOptions["positions"];
  readonly #filled: number[];
  readonly #counts: number[];
  readonly #batch: Required<Omit<Batch, "extras">>;

  constructor(rows: number, length: number, random: Random, positions?: PackingOptions["positions"]) {
    this.#rows = rows;
    this.#length = length;
    this.#random = random;
    this.#positions = positions;
    this.#filled = new Array<number>(rows).fill(0);
    this.#counts = new Array<number>(rows).fill(0);
    const n = rows * length;
    this.#batch = {
      rows,
      length,
      ids: new Int32Array(n),
      targets: new Int32Array(n).fill(-1),
      weights: new Float32Array(n),
      documents: new Int32Array(n).fill(-1),
      positions: new Int32Array(n),
    };
  }

  /** Tokens that a row has room for. */
  room(row: number): number {
    return this.#length - this.#filled[row];
  }

  /**
   * Puts a document behind what a row holds, cut off where the row ends. Token i is to predict token i + 1, with the
   * weight of token i + 1. `count`: tokens that take a place; one more may be given as the last one's target.
   */
  add(row: number, { ids, weights }: TokenDocument, count = ids.length): void {
    const n = Math.min(count, this.room(row));
    const batch = this.#batch;
    const start = row * this.#length + this.#filled[row];
    const positions = this.#places(n);
    for (let i = 0; i < n; i++) {
      batch.ids[start + i] = ids[i];
      batch.documents[start + i] = this.#counts[row];
      batch.positions[start + i] = positions(i);
      if (i + 1 >= ids.length) continue;
      const weight = weights ? weights[i + 1] : 1;
      batch.targets[start + i] = ids[i + 1];
      batch.weights[start + i] = weight;
    }
    this.#filled[row] += n;
    this.#counts[row]++;
  }

  /** Where the tokens of a document of `count` lie; called with 0, 1, 2, ... */
  #places(count: number): (i: number) => number {
    if (!this.#positions) return (i) => i;
    const { upTo, gaps = 0 } = this.#positions;
    const random = (below: number): number => Math.floor(this.#random.next() * below);
    const leaps = new Map<number, number>();
    // what a leap leaves of the free positions is for the next one, and at last for the place where the document begins
    let left = Math.max(0, upTo - count);
    for (let g = gaps > 0 ? random(gaps + 1) : 0; g > 0; g--) {
      const size = Math.floor((left + 1) ** this.#random.next()) - 1;
      left -= size;
      const at = random(count);
      leaps.set(at, (leaps.get(at) ?? 0) + size);
    }
    let offset = random(left + 1);
    return (i) => (offset += leaps.get(i) ?? 0) + i;
  }

  /** The batch; places that are left over hold token 0, weigh nothing and are texts of their own. */
  batch(): Batch {
    for (let r = 0; r < this.#rows; r++)
      for (let i = this.#filled[r]; i < this.#length; i++) this.#batch.documents[r * this.#length + i] = 1_000_000 + i;
    return this.#batch;
  }
}

function check({ rows, length, positions }: PackingOptions): void {
  for (const [name, value] of Object.entries({ rows, length }))
    if (!(Number.isInteger(value) && value >= 1))
      throw new FoveaError("bad-input", `${name} is ${value}; expected a whole number of at least 1`);
  if (positions && !(positions.upTo >= length))
    throw new FoveaError(
      "bad-input",
      `positions up to ${positions.upTo} have no room for sequences of ${length} tokens`,
    );
}

/** A random order of 0 ... n - 1 (Fisher and Yates). */
export function permutation(n: number, random: Random): Int32Array {
  const order = Int32Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1; i > 0; i--) {
    const j = Math.floor(random.next() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

/** One seed of two numbers, so that neighbouring steps have unrelated streams. */
export function mix(a: number, b: number): number {
  let h = Math.imul(a ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(b + 0x7f4a7c15, 0xc2b2ae35);
  h = Math.imul(h ^ (h >>> 15), 0x2c1b3c6d);
  return (h ^ (h >>> 13)) >>> 0;
}

/** Index of the last value at most `limit`, in an ascending list. */
function lastAtMost(values: Float64Array, limit: number): number {
  let [low, high] = [0, values.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (values[middle] <= limit) low = middle;
    else high = middle - 1;
  }
  return low;
}
