import { maxLane, mulAdd, sumLanes, bf16High, bf16Low } from "./math";
import {
  CHUNK,
  ENTRY_BYTES,
  F_CHUNKS,
  F_GROUP,
  F_KEY_DIM,
  F_LOGITS,
  F_LOGIT_HEAD,
  F_QUERY,
  F_REDUCE,
  F_TABLES,
  LOGIT_ROW,
  MAX_GROUP,
  QUERY_ROW as ROW,
  S_LOGITS,
  S_QUERY,
  S_QUERY_SCALED,
  field,
} from "./layout";

// The largest dot product that a key within a page's bounds can have with a query: sum of max(q * lower, q * upper) over
// channels. An int8 page carries its bounds as middle and step: middle +- 127 steps, so that the sum is q * middle +
// 127 |q| * step. One task is (KV head, chunk of its pages) with all query heads of the group.

/** Copies queries to S_QUERY and 127 times their magnitudes to S_QUERY_SCALED. */
function loadQueries(from: usize, group: i32, dim: i32, scratch: usize): void {
  const reach = f32x4.splat(127);
  const bytes = <usize>dim << 2;
  for (let g = 0; g < group; g++, from += bytes) {
    const to = scratch + <usize>g * ROW;
    for (let at: usize = 0; at < bytes; at += 16) {
      const q = v128.load(from + at);
      v128.store(to + at, q, S_QUERY);
      v128.store(to + at, f32x4.mul(f32x4.abs(q), reach), S_QUERY_SCALED);
    }
  }
}

// @ts-ignore: decorator
@inline
function boundInt8(N: i32, page: usize, dim: i32, query: usize, out: usize): void {
  let a = f32x4.splat(0);
  let b = a;
  let c = a;
  let d = a;
  let e = a;
  let f = a;
  const steps = <usize>(dim << 1);
  const end = page + steps;
  for (let q = query; page < end; page += 16, q += 32) {
    const m = v128.load(page);
    const s = v128.load(page + steps);
    const m0 = bf16Low(m);
    const m1 = bf16High(m);
    const s0 = bf16Low(s);
    const s1 = bf16High(s);
    a = mulAdd(mulAdd(a, v128.load(q, S_QUERY), m0), v128.load(q, S_QUERY + 16), m1);
    b = mulAdd(mulAdd(b, v128.load(q, S_QUERY_SCALED), s0), v128.load(q, S_QUERY_SCALED + 16), s1);
    if (N > 1) {
      c = mulAdd(mulAdd(c, v128.load(q, S_QUERY + ROW), m0), v128.load(q, S_QUERY + 16 + ROW), m1);
      d = mulAdd(mulAdd(d, v128.load(q, S_QUERY_SCALED + ROW), s0), v128.load(q, S_QUERY_SCALED + 16 + ROW), s1);
    }
    if (N > 2) {
      e = mulAdd(mulAdd(e, v128.load(q, S_QUERY + 2 * ROW), m0), v128.load(q, S_QUERY + 16 + 2 * ROW), m1);
      f = mulAdd(mulAdd(f, v128.load(q, S_QUERY_SCALED + 2 * ROW), s0), v128.load(q, S_QUERY_SCALED + 16 + 2 * ROW), s1);
    }
  }
  store<f32>(out, sumLanes(f32x4.add(a, b)));
  if (N > 1) store<f32>(out, sumLanes(f32x4.add(c, d)), LOGIT_ROW);
  if (N > 2) store<f32>(out, sumLanes(f32x4.add(e, f)), 2 * LOGIT_ROW);
}

function boundInt8x1(page: usize, dim: i32, query: usize, out: usize): void {
  boundInt8(1, page, dim, query, out);
}
function boundInt8x2(page: usize, dim: i32, query: usize, out: usize): void {
  boundInt8(2, page, dim, query, out);
}
function boundInt8x3(page: usize, dim: i32, query: usize, out: usize): void {
  boundInt8(3, page, dim, query, out);
}

/** Lanes of x where `slots` has a bit, from its lowest; `other` elsewhere. */
// @ts-ignore: decorator
@inline
function where(slots: u32, x: v128, other: v128): v128 {
  const bits = i32x4(1, 2, 4, 8);
  return v128.bitselect(x, other, i32x4.eq(v128.and(i32x4.splat(slots), bits), bits));
}

/** A float32 page's bounds are taken from its keys, f32 [D][16 tokens]. */
function boundFloat(page: usize, dim: i32, live: u32, group: i32, scratch: usize, out: usize): void {
  for (let g = 0; g < group; g++) store<f32>(out + <usize>g * LOGIT_ROW, 0);
  const least = f32x4.splat(-Infinity);
  const most = f32x4.splat(Infinity);
  let query = scratch + S_QUERY;
  for (let d = 0; d < dim; d++, page += 64, query += 4) {
    const a = v128.load(page);
    const b = v128.load(page, 16);
    const c = v128.load(page, 32);
    const e = v128.load(page, 48);
    const high = f32x4.pmax(
      f32x4.pmax(where(live, a, least), where(live >> 4, b, least)),
      f32x4.pmax(where(live >> 8, c, least), where(live >> 12, e, least)),
    );
    const low = f32x4.pmin(
      f32x4.pmin(where(live, a, most), where(live >> 4, b, most)),
      f32x4.pmin(where(live >> 8, c, most), where(live >> 12, e, most)),
    );
    const upper = maxLane(high);
    const lower = -maxLane(f32x4.neg(low));
    for (let g = 0; g < group; g++) {
      const q = load<f32>(query + <usize>g * ROW);
      const to = out + <usize>g * LOGIT_ROW;
      store<f32>(to, load<f32>(to) + max(q * lower, q * upper));
    }
  }
}

/** Scores of a group's queries against a page, into column `out` of S_LOGITS. */
function boundPage(entry: usize, dim: i32, group: i32, scratch: usize, out: usize): void {
  const k = load<u32>(entry);
  if (!(k & 1)) {
    boundFloat(<usize>k, dim, load<u32>(entry, 8) >> 16, group, scratch, out);
    return;
  }
  const page = <usize>(k - 1);
  let query = scratch;
  let left = group;
  while (left > 0) {
    const n = min(left, left == 4 ? 2 : 3);
    if (n == 3) boundInt8x3(page, dim, query, out);
    else if (n == 2) boundInt8x2(page, dim, query, out);
    else boundInt8x1(page, dim, query, out);
    query += <usize>n * ROW;
    out += <usize>n * LOGIT_ROW;
    left -= n;
  }
}

/** Writes rows of a chunk's scores, each query's own (reduce 0) or their sum (1), maximum (2) or mean (3) over the group. */
function writeScores(n: i32, first: i32, group: i32, wholeGroup: i32, scratch: usize, to: usize): void {
  const reduce = <i32>field(F_REDUCE);
  const rowBytes = <usize>field(F_LOGIT_HEAD) << 2;
  const bytes = <usize>n << 2;
  if (reduce == 0) {
    to += <usize>first * rowBytes;
    for (let g = 0; g < group; g++, to += rowBytes) memory.copy(to, scratch + S_LOGITS + <usize>g * LOGIT_ROW, bytes);
    return;
  }
  for (let at: usize = 0; at < bytes; at += 4) {
    let x: f32 = first > 0 ? load<f32>(to + at) : reduce == 2 ? -Infinity : 0;
    for (let g = 0; g < group; g++) {
      const y = load<f32>(scratch + S_LOGITS + <usize>g * LOGIT_ROW + at);
      x = reduce == 2 ? max(x, y) : x + y;
    }
    store<f32>(to + at, reduce == 3 && first + group == wholeGroup ? x / <f32>wholeGroup : x);
  }
}

/** One task of a job over the pages of all KV heads: rows [Hq or Hkv, pages] to F_LOGITS. */
export function boundsTask(task: i32, scratch: usize): void {
  const chunks = <i32>field(F_CHUNKS);
  const wholeGroup = <i32>field(F_GROUP);
  const dim = <i32>field(F_KEY_DIM);
  const head = task / chunks;
  const table = <usize>field(F_TABLES) + (<usize>head << 3);
  const start = (task % chunks) * CHUNK;
  const n = min(load<i32>(table, 4) - start, CHUNK);
  if (n <= 0) return;
  const entries = <usize>load<u32>(table) + <usize>start * ENTRY_BYTES;
  const rows = field(F_REDUCE) == 0 ? wholeGroup : 1;
  const to = <usize>field(F_LOGITS) + (<usize>((<u32>(head * rows)) * field(F_LOGIT_HEAD) + <u32>start) << 2);
  for (let first = 0; first < wholeGroup; first += MAX_GROUP) {
    const group = min(wholeGroup - first, MAX_GROUP);
    loadQueries(<usize>field(F_QUERY) + (<usize>((head * wholeGroup + first) * dim) << 2), group, dim, scratch);
    for (let i = 0; i < n; i++) {
      boundPage(entries + <usize>i * ENTRY_BYTES, dim, group, scratch, scratch + S_LOGITS + (<usize>i << 2));
    }
    writeScores(n, first, group, wholeGroup, scratch, to);
  }
}
