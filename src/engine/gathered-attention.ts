import { type CompileOptions, concat, type GraphCut, input, type Tensor } from "../graph/index.js";
import { entriesBelow } from "./ascending.js";
import type { AttentionShape, BlockQuery, KeyBlock } from "./block-attention.js";
import { UNSEEN } from "./block-attention.js";
import type { ProductOptions, RowRanges } from "./hooks.js";
import { rangesOf } from "./row-ranges.js";
import { SegmentCache } from "./segment-cache.js";

/** Rows that share lists: from so many on their keys are gathered; below, rows are gathered for each range of keys. */
const GATHER_ROWS = 16;
/** Logits that pairs of a row and a head have at a time: so few that they stay in the processor's cache. */
const PAIR_LOGITS = 1 << 18;
const MASKED = -1e30;
const MASKED_BELOW = -1e29;

/** Rows that attend, and the keys, where each stands, and a head's rows of them. */
export interface GatheredInputs {
  readonly q: Float32Array; // [T, Hq, D]
  readonly rows: number;
  readonly rowPositions: Int32Array; // [T], ascending
  /** Positions of a KV head's entries, ascending; UNSEEN where it has none. [S] */
  positions(kvHead: number): Float32Array;
  readonly k: KeyBlock;
  readonly v: KeyBlock;
  /** A KV head's keys and values, [S, D] each. */
  head(kvHead: number): { readonly k: Float32Array; readonly v: Float32Array };
}

/** Attention of single pairs of a row and a head over one range: what `BlockAttention.attend` does. */
type Attend = (
  shape: AttentionShape,
  query: BlockQuery,
  k: KeyBlock,
  v: KeyBlock,
) => Promise<{ output: Float32Array; lse: Float32Array }>;

/**
 * Attention over keys that are listed by blocks of rows. Where a block has rows enough, its keys are gathered and
 * attended as one dense product; where each row has lists of its own, it is turned round: for each range of keys the rows
 * that list it are gathered, and their results merge by log-sum-exp. `withoutBlocks` is the plain form.
 */
export class GatheredAttention {
  readonly #segments: SegmentCache;
  readonly #attend: Attend;

  constructor(options: CompileOptions, attend: Attend) {
    // a prompt makes thousands of small runs: memory that each of them took anew and gave back cost as much as the products
    this.#segments = new SegmentCache({ ...options, arena: true });
    this.#attend = attend;
  }

  /** Writes `output` [T, Hq, Dv] and, where it is asked for, `lse` [T, Hq]. A row that sees nothing gives 0, -Infinity. */
  async attend(
    shape: AttentionShape,
    inputs: GatheredInputs,
    ranges: RowRanges,
    output: Float32Array,
    lse?: Float32Array,
  ): Promise<void> {
    if (ranges.rows < GATHER_ROWS && inputs.rows > ranges.rows)
      return this.#byRange(shape, inputs, ranges, output, lse);
    for (let block = 0, first = 0; first < inputs.rows; block++, first += ranges.rows) {
      const count = Math.min(ranges.rows, inputs.rows - first);
      await this.#block(shape, inputs, ranges, block, first, count, output, lse);
    }
  }

  /** Largest products of tiles, see `AttentionStep.products`; `queries`: Hq. */
  async products(
    a: Float32Array,
    b: Float32Array,
    queries: number,
    { heads, dim = 1, rows = 1, keys = 1, bias }: ProductOptions,
  ): Promise<Float32Array> {
    const form = { queries, heads, dim, rows, keys, biased: bias !== undefined };
    const key = ["products", ...Object.values(form)].join("|");
    const segment = await this.#segments.get(key, () => productGraph(form));
    const m = a.length / (queries * dim * rows);
    const n = b.length / (heads * dim * keys);
    const { out } = await segment.run({
      a: { data: a, dims: [m, rows, queries, dim] },
      b: { data: b, dims: [heads, n, keys, dim] },
      ...(bias && { bias: { data: bias, dims: [queries, m, n, keys] } }),
    });
    return out.data as Float32Array;
  }

  release(): Promise<void> {
    return this.#segments.release();
  }

  /** One block of rows over its gathered keys. */
  async #block(
    shape: AttentionShape,
    inputs: GatheredInputs,
    ranges: RowRanges,
    block: number,
    first: number,
    count: number,
    output: Float32Array,
    lse?: Float32Array,
  ): Promise<void> {
    const { heads, kvHeads, keyDim, valueDim } = shape;
    const at = inputs.rowPositions.subarray(first, first + count);
    const lists = ranges.heads > kvHeads ? heads : kvHeads;
    const gathered = gatherLists(shape, inputs, ranges, block, lists, at);
    const { seen, partial } = gathered;
    const to = output.subarray(first * heads * valueDim, (first + count) * heads * valueDim);
    const sums = lse?.subarray(first * heads, (first + count) * heads);
    if (seen + partial === 0) {
      to.fill(0);
      sums?.fill(Number.NEGATIVE_INFINITY);
      return;
    }
    // where a key is seen by all rows no row is empty, and its sum is not needed to find that out
    const withSums = sums !== undefined || seen === 0;
    const form: GatherForm = { lists, seen: seen > 0, partial: partial > 0, withSums };
    const { scale, softcap } = shape;
    const key = ["gather", heads, kvHeads, keyDim, valueDim, scale, softcap, ...Object.values(form)].join("|");
    const segment = await this.#segments.get(key, () => gatherGraph(shape, form));
    const q = inputs.q.subarray(first * heads * keyDim, (first + count) * heads * keyDim);
    const { k, v } = inputs;
    const results = await segment.run(
      {
        q: { data: q, dims: [count, heads, keyDim] },
        k: { data: k.data, dims: [k.keys * kvHeads, keyDim] },
        v: { data: v.data, dims: [v.keys * kvHeads, valueDim] },
        ...(seen > 0 && { seen: { data: gathered.seenRows, dims: [lists, seen] } }),
        ...(partial > 0 && {
          partial: { data: gathered.partialRows, dims: [lists, partial] },
          positions: { data: gathered.partialPositions, dims: [lists, partial] },
          rows: { data: Float32Array.from(at), dims: [count] },
          window: { data: Float32Array.of(shape.window ?? UNSEEN), dims: [1] },
        }),
      },
      { out: { data: to, dims: [count, heads, valueDim] } },
    );
    if (!withSums) return;
    const found = results.lse.data as Float32Array;
    for (let i = 0; i < found.length; i++)
      if (found[i] < MASKED_BELOW) {
        found[i] = Number.NEGATIVE_INFINITY;
        to.fill(0, i * valueDim, (i + 1) * valueDim);
      }
    sums?.set(found);
  }

  /** Rows gathered for each range of keys (query inversion), merged by log-sum-exp. */
  async #byRange(
    shape: AttentionShape,
    inputs: GatheredInputs,
    ranges: RowRanges,
    output: Float32Array,
    lse: Float32Array = new Float32Array(inputs.rows * shape.heads),
  ): Promise<void> {
    const { heads, kvHeads, keyDim, valueDim } = shape;
    const window = shape.window ?? UNSEEN;
    const single: AttentionShape = { ...shape, heads: 1, kvHeads: 1 };
    output.fill(0);
    lse.fill(Number.NEGATIVE_INFINITY);
    for (let kv = 0; kv < kvHeads; kv++) {
      const positions = inputs.positions(kv);
      const { k, v } = inputs.head(kv);
      for (const { start, end, pairs } of readers(shape, inputs.rows, ranges, kv)) {
        const last = inputs.rowPositions[Math.floor(pairs[pairs.length - 1] / heads)];
        const stop = Math.min(end, entriesBelow(positions, last + 1));
        if (stop <= start) continue;
        const keys = stop - start;
        const block = (x: Float32Array, dim: number): KeyBlock => ({
          data: x.subarray(start * dim, stop * dim),
          keys,
          layout: "tokens",
        });
        const size = Math.max(1, Math.floor(PAIR_LOGITS / keys));
        for (let from = 0; from < pairs.length; from += size) {
          const some = pairs.slice(from, from + size);
          const q = new Float32Array(some.length * keyDim);
          some.forEach((pair, i) => {
            q.set(inputs.q.subarray(pair * keyDim, (pair + 1) * keyDim), i * keyDim);
          });
          const rowPositions = Float32Array.from(some, (pair) => inputs.rowPositions[Math.floor(pair / heads)]);
          const every =
            positions[stop - 1] <= rowPositions[0] && rowPositions[rowPositions.length - 1] - positions[start] < window;
          const found = await this.#attend(
            single,
            { q, rows: some.length, rowPositions, keyPositions: positions.subarray(start, stop), every },
            block(k, keyDim),
            block(v, valueDim),
          );
          mergeAt(output, lse, some, found, valueDim);
        }
      }
    }
  }
}

/** The pairs row * Hq + head that list each range of a KV head's keys, ranges in order of their first reader. */
function readers({ heads, kvHeads }: AttentionShape, rows: number, ranges: RowRanges, kv: number) {
  const group = heads / kvHeads;
  const found = new Map<number, { start: number; end: number; pairs: number[] }>();
  for (let t = 0; t < rows; t++)
    for (let head = kv * group; head < (kv + 1) * group; head++) {
      const at = Math.floor(t / ranges.rows) * ranges.heads + Math.floor((head * ranges.heads) / heads);
      for (let i = ranges.offsets[at]; i < ranges.offsets[at + 1]; i++) {
        const [start, end] = [ranges.pairs[2 * i], ranges.pairs[2 * i + 1]];
        const key = start * UNSEEN + end;
        const list = found.get(key);
        if (list) list.pairs.push(t * heads + head);
        else found.set(key, { start, end, pairs: [t * heads + head] });
      }
    }
  return found.values();
}

function mergeAt(
  output: Float32Array,
  lse: Float32Array,
  pairs: readonly number[],
  found: { readonly output: Float32Array; readonly lse: Float32Array },
  dim: number,
): void {
  for (const [i, pair] of pairs.entries()) {
    const b = found.lse[i];
    if (b === Number.NEGATIVE_INFINITY) continue;
    const a = lse[pair];
    const max = Math.max(a, b);
    const wa = Math.exp(a - max);
    const wb = Math.exp(b - max);
    const sum = wa + wb;
    const [to, from] = [pair * dim, i * dim];
    for (let d = 0; d < dim; d++) output[to + d] = (output[to + d] * wa + found.output[from + d] * wb) / sum;
    lse[pair] = max + Math.log(sum);
  }
}

/**
 * The rows of flat keys [S * Hkv, D] that a block of rows attends to, per list: first those that all rows see, as many in
 * every list, then those that a graph masks by position, padded with unseen ones.
 */
function gatherLists(
  { heads, kvHeads, window = UNSEEN }: AttentionShape,
  { k, positions }: GatheredInputs,
  ranges: RowRanges,
  block: number,
  lists: number,
  at: Int32Array,
) {
  const [oldest, newest] = [at[0], at[at.length - 1]];
  const every: number[][] = [];
  const some: number[][] = [];
  const places: Float32Array[] = [];
  for (let list = 0; list < lists; list++) {
    const head = (list * heads) / lists;
    const where = positions(Math.floor((head * kvHeads) / heads));
    // entries [from, low) and [high, to) are seen by some rows, [low, high) by all
    const from = entriesBelow(where, oldest - window + 1);
    const low = entriesBelow(where, newest - window + 1);
    const high = Math.max(low, entriesBelow(where, oldest + 1));
    const to = entriesBelow(where, newest + 1);
    const all: number[] = [];
    const rest: number[] = [];
    for (const [start, end] of rangesOf(ranges, block, head, heads)) {
      for (let e = Math.max(start, from); e < Math.min(end, low); e++) rest.push(e);
      for (let e = Math.max(start, low); e < Math.min(end, high); e++) all.push(e);
      for (let e = Math.max(start, high); e < Math.min(end, to); e++) rest.push(e);
    }
    every.push(all);
    some.push(rest);
    places.push(where);
  }
  const seen = Math.min(...every.map((e) => e.length));
  every.forEach((list, i) => {
    some[i].push(...list.splice(seen));
  });
  const partial = Math.max(...some.map((e) => e.length));
  const flat = (entry: number, list: number) => {
    const kv = Math.floor((list * kvHeads) / lists);
    return k.layout === "tokens" ? entry * kvHeads + kv : kv * k.keys + entry;
  };
  const seenRows = new Int32Array(lists * seen);
  const partialRows = new Int32Array(lists * partial);
  const partialPositions = new Float32Array(lists * partial).fill(UNSEEN);
  for (let list = 0; list < lists; list++) {
    for (let i = 0; i < seen; i++) seenRows[list * seen + i] = flat(every[list][i], list);
    for (const [i, entry] of some[list].entries()) {
      partialRows[list * partial + i] = flat(entry, list);
      partialPositions[list * partial + i] = places[list][entry];
    }
  }
  return { seen, partial, seenRows, partialRows, partialPositions };
}

/** What decides a gathering graph's shape beside the layer's. */
interface GatherForm {
  /** Lists of keys: Hkv or Hq. */
  readonly lists: number;
  readonly seen: boolean;
  readonly partial: boolean;
  readonly withSums: boolean;
}

/** T rows over P1 keys that all of them see and P2 that are masked by position. */
function gatherGraph(shape: AttentionShape, { lists, seen, partial, withSums }: GatherForm): GraphCut {
  const { heads, keyDim, valueDim, scale, softcap } = shape;
  const group = heads / lists;
  const inputs: Record<string, Tensor> = {
    q: input("q", ["T", heads, keyDim]),
    k: input("k", ["R", keyDim]),
    v: input("v", ["R", valueDim]),
  };
  const q = inputs.q.mul(scale).transpose(1, 0, 2).reshape([lists, -1, keyDim]); // [H, G*T, D]
  const score = (rows: Tensor) => {
    const logits = q.matmul(inputs.k.gather(rows).transpose(0, 2, 1)); // [H, G*T, P]
    return softcap ? logits.div(softcap).tanh().mul(softcap) : logits;
  };
  const logits: Tensor[] = [];
  const indices: Tensor[] = [];
  if (seen) {
    inputs.seen = input("seen", [lists, "P1"], "int32");
    logits.push(score(inputs.seen));
    indices.push(inputs.seen);
  }
  if (partial) {
    inputs.partial = input("partial", [lists, "P2"], "int32");
    inputs.positions = input("positions", [lists, "P2"]);
    inputs.rows = input("rows", ["T"]);
    inputs.window = input("window", [1]);
    const distance = inputs.rows.reshape([1, 1, "T", 1]).sub(inputs.positions.reshape([lists, 1, 1, "P2"]));
    const visible = distance.greaterEqual(0).and(distance.less(inputs.window)); // [H, 1, T, P2]
    const masked = visible.where(score(inputs.partial).reshape([lists, group, "T", "P2"]), MASKED);
    logits.push(masked.reshape([lists, -1, "P2"]));
    indices.push(inputs.partial);
  }
  const all = logits.length > 1 ? concat(logits, -1) : logits[0]; // [H, G*T, P]
  const values = inputs.v.gather(indices.length > 1 ? concat(indices, -1) : indices[0]); // [H, P, Dv]
  const byRow = (x: Tensor, dim: number) => x.reshape([heads, "T", dim]).transpose(1, 0, 2); // [T, Hq, dim]
  const pattern = all.softmax(-1);
  const out = byRow(pattern.matmul(values), valueDim);
  // the largest weight is exp(largest logit - lse)
  const lse = () => byRow(all.max(-1, { keep: true }).sub(pattern.max(-1, { keep: true }).log()), 1);
  return { inputs, outputs: withSums ? { out, lse: lse() } : { out } };
}

interface ProductForm {
  readonly queries: number;
  readonly heads: number;
  readonly dim: number;
  readonly rows: number;
  readonly keys: number;
  readonly biased: boolean;
}

/** a [M, rows, Hq, D], b [H, N, keys, D]: [Hq, M, N], the largest product of each tile. */
function productGraph({ queries, heads, dim, rows, keys, biased }: ProductForm): GraphCut {
  const inputs: Record<string, Tensor> = {
    a: input("a", ["M", rows, queries, dim]),
    b: input("b", [heads, "N", keys, dim]),
  };
  const flat = inputs.a.transpose(2, 0, 1, 3).reshape([heads, -1, dim]); // [H, G*M*rows, D]
  const products = flat.matmul(inputs.b.reshape([heads, -1, dim]).transpose(0, 2, 1)); // [H, G*M*rows, N*keys]
  let out = products.reshape([queries, "M", rows, "N", keys]);
  if (biased) {
    inputs.bias = input("bias", [queries, "M", "N", keys]);
    out = out.add(inputs.bias.unsqueeze(2));
  }
  if (keys > 1) out = out.max(-1, { keep: true });
  if (rows > 1) out = out.max(2, { keep: true });
  return { inputs, outputs: { out: out.reshape([queries, "M", "N"]) } };
}
