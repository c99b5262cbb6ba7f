import type { AttentionStep } from "../../engine/hooks.js";
import { Random } from "../../engine/sampling.js";

/**
 * Locality-sensitive hash tables over vectors: K hyperplanes a table, L tables. A vector's code in a table is the K signs
 * of its products with the table's hyperplanes; two vectors at an angle t share it with probability (1 - t / pi)^K.
 */
export interface HashTables {
  /** K. */
  readonly bits: number;
  /** Vectors that the tables hold. */
  readonly count: number;
  /** Where each code's bucket begins, [L, 2^K + 1]. */
  readonly starts: Uint32Array;
  /** Indices of the vectors by code, ascending in a bucket, [L, count]. */
  readonly buckets: Uint32Array;
}

/** Gaussian hyperplanes [L, K, D], the same for the same seed. */
export function hyperplanes(tables: number, bits: number, dim: number, seed: number): Float32Array {
  const random = new Random(seed);
  return Float32Array.from(
    { length: tables * bits * dim },
    // Box-Muller; 1 - u is never 0
    () => Math.sqrt(-2 * Math.log(1 - random.next())) * Math.cos(2 * Math.PI * random.next()),
  );
}

/** Codes of a vector [D] in each table, [L]: the signs of its products with the planes. */
export function hashCodes(x: Float32Array, planes: Float32Array, bits: number): Uint16Array {
  const dim = x.length;
  const codes = new Uint16Array(planes.length / dim / bits);
  for (let p = 0, at = 0; at < planes.length; p++) {
    let dot = 0;
    for (let d = 0; d < dim; d++, at++) dot += x[d] * planes[at];
    if (dot > 0) codes[Math.floor(p / bits)] |= 1 << (p % bits);
  }
  return codes;
}

/** Numbers that the products of one call may take. */
const CALL = 1 << 22;

/** `hashCodes` of many vectors, [n, D] for each KV head, by matrix products: codes [L, n] each. */
export async function manyCodes(
  step: Pick<AttentionStep, "products" | "model">,
  planes: Float32Array,
  bits: number,
  vectors: readonly Float32Array[],
): Promise<Uint16Array[]> {
  const { heads, kvHeads, headDim } = step.model;
  const group = heads / kvHeads;
  const count = planes.length / headDim;
  const counts = vectors.map((x) => x.length / headDim);
  const most = Math.max(...counts);
  const keys = new Float32Array(kvHeads * most * headDim);
  for (const [kv, x] of vectors.entries()) keys.set(x, kv * most * headDim);
  const codes = counts.map((n) => new Uint16Array((count / bits) * n));
  // planes take the places of queries, so that those of a group's heads are different ones
  const size = Math.max(1, Math.floor(CALL / (heads * most)));
  for (let first = 0; first < count; first += size * group) {
    const rows = Math.min(size, Math.ceil((count - first) / group));
    const queries = new Float32Array(rows * heads * headDim);
    for (let row = 0; row < rows; row++) {
      const own = planes.subarray((first + row * group) * headDim, (first + (row + 1) * group) * headDim);
      for (let kv = 0; kv < kvHeads; kv++) queries.set(own, (row * heads + kv * group) * headDim);
    }
    const dots = await step.products(queries, keys, { heads: kvHeads, dim: headDim }); // [Hq, rows, most]
    for (let head = 0; head < heads; head++)
      for (let row = 0; row < rows; row++) {
        const p = first + row * group + (head % group);
        if (p >= count) continue;
        const kv = Math.floor(head / group);
        const to = Math.floor(p / bits) * counts[kv];
        const at = (head * rows + row) * most;
        for (let i = 0; i < counts[kv]; i++) if (dots[at + i] > 0) codes[kv][to + i] |= 1 << (p % bits);
      }
  }
  return codes;
}

/** Tables without vectors. */
export function emptyTables(tables: number, bits: number): HashTables {
  return { bits, count: 0, starts: new Uint32Array(tables * (2 ** bits + 1)), buckets: new Uint32Array(0) };
}

/** The tables with n vectors more, whose codes are [L, n]; they take the next indices. */
export function addToTables(old: HashTables, codes: Uint16Array): HashTables {
  const width = 2 ** old.bits + 1;
  const tables = old.starts.length / width;
  const n = codes.length / tables;
  const count = old.count + n;
  const starts = new Uint32Array(tables * width);
  const buckets = new Uint32Array(tables * count);
  for (let t = 0; t < tables; t++) {
    const own = codes.subarray(t * n, (t + 1) * n);
    const [from, to] = [old.starts.subarray(t * width, (t + 1) * width), starts.subarray(t * width, (t + 1) * width)];
    for (const code of own) to[code + 1]++;
    for (let c = 0; c + 1 < width; c++) to[c + 1] += to[c] + from[c + 1] - from[c];
    const next = to.slice(0, -1);
    const bucket = buckets.subarray(t * count, (t + 1) * count);
    for (let c = 0; c + 1 < width; c++) {
      bucket.set(old.buckets.subarray(t * old.count + from[c], t * old.count + from[c + 1]), next[c]);
      next[c] += from[c + 1] - from[c];
    }
    for (const [i, code] of own.entries()) bucket[next[code]++] = old.count + i;
  }
  return { bits: old.bits, count, starts, buckets };
}

/** Vectors whose code equals the query's in at least `hits` tables, ascending. */
export function collisions(tables: HashTables, codes: Uint16Array, hits = 2): Int32Array {
  const width = 2 ** tables.bits + 1;
  const seen = new Uint8Array(tables.count);
  const found: number[] = [];
  for (const [t, code] of codes.entries()) {
    const end = tables.starts[t * width + code + 1];
    for (let i = tables.starts[t * width + code]; i < end; i++) {
      const at = tables.buckets[t * tables.count + i];
      if (seen[at] < hits && ++seen[at] === hits) found.push(at);
    }
  }
  return Int32Array.from(found).sort();
}

/** Probability that vectors at this cosine share their code in at least two of L tables of K bits: u. */
export function collisionProbability(cosine: number, bits: number, tables: number): number {
  // rounding may take the cosine of nearly parallel vectors beyond 1
  const near = 1 - Math.acos(Math.max(-1, Math.min(1, cosine))) / Math.PI;
  const t = near ** bits;
  return 1 - (1 - t) ** tables - tables * t * (1 - t) ** (tables - 1);
}
