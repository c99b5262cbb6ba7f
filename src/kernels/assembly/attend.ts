import { maxSteps, scorePageFloat, scorePageInt8 } from "./keys";
import {
  BLOCK,
  ENTRY_BYTES,
  F_BIAS,
  F_BIAS_KV,
  F_BIAS_QUERY,
  F_BIAS_ROW,
  F_CHUNKS,
  F_GROUP,
  F_HEADS,
  F_HEAD_FROM,
  F_KEY_DIM,
  F_KIND,
  F_KV_HEADS,
  F_LIMITS,
  F_LOGITS,
  F_LOGIT_HEAD,
  F_LOGIT_ROW,
  F_LSE,
  F_OUT,
  F_PARTIALS,
  F_QUERY,
  F_ROWS,
  F_SCALE,
  F_SINK,
  F_SIZE,
  F_SOFTCAP,
  F_TABLES,
  F_VALUE_DIM,
  LOGIT_ROW,
  MAX_GROUP,
  OUT_ROW,
  QUERY_ROW,
  SCORES,
  SUM,
  S_ENTRIES,
  S_KEY_SCALE,
  S_LOGITS,
  S_MAX,
  S_OUT,
  S_QUERY,
  S_QUERY_SCALED,
  S_STEPS,
  S_SUM,
  S_SUMS,
  S_VALUES,
  S_WEIGHTS,
  S_WEIGHT_SCALE,
  WEIGHT_ROW,
  field,
  fieldF32,
} from "./layout";
import { expNegative4, expf, logf, maxLane, mulAdd, softcap4, sumLanes } from "./math";
import { sumPageFloat, sumPagesInt8 } from "./values";

// One task is (part of a KV head's query group, chunk of its entries, row): up to 8 queries over up to 64 pages.
// A chunk is read in three passes: logits of all its keys, softmax, values.

/** The largest magnitude of quantised queries and weights. */
const LARGEST: f32 = 32700;

// @ts-ignore: decorator
@inline
function groupParts(): i32 {
  return (<i32>field(F_GROUP) + MAX_GROUP - 1) / MAX_GROUP;
}

/** Bytes of one task's partial result: maxima [8], sums [8], outputs [8][Dv]. */
// @ts-ignore: decorator
@inline
function partialBytes(): usize {
  return 64 + <usize>(field(F_VALUE_DIM) * MAX_GROUP * 4);
}

/** Slots of an entry whose rank among the stored entries is in [from, to). */
function withinLimits(slots: u32, base: i32, from: i32, to: i32): u32 {
  const live = slots >> 16;
  const count = popcnt(live);
  if (base >= to || base + <i32>count <= from) return slots & 0xffff0000;
  if (base >= from && base + <i32>count <= to) return slots;
  let read: u32 = slots & 0xffff;
  let rank = base;
  for (let m = live; m != 0; m &= m - 1) {
    if (rank < from || rank >= to) read &= ~(1 << ctz(m));
    rank++;
  }
  return (slots & 0xffff0000) | read;
}

/** Collects the entries of a chunk that are read into S_ENTRIES; returns their number. */
function gather(entries: usize, count: i32, limits: usize, scratch: usize): i32 {
  let to = scratch + S_ENTRIES;
  const start = to;
  for (let i = 0; i < count; i++, entries += ENTRY_BYTES) {
    const e = v128.load(entries);
    let slots: u32 = i32x4.extract_lane(e, 2);
    if (limits != 0) slots = withinLimits(slots, i32x4.extract_lane(e, 3), load<i32>(limits), load<i32>(limits, 4));
    if ((slots & 0xffff) == 0) continue;
    v128.store(to, i32x4.replace_lane(e, 2, slots));
    to += 16;
  }
  return <i32>((to - start) >> 4);
}

/** Copies a row of queries times the attention scale. */
function loadQueries(from: usize, group: i32, dim: i32, scratch: usize): void {
  const scale = f32x4.splat(fieldF32(F_SCALE));
  const bytes = <usize>dim << 2;
  for (let g = 0; g < group; g++, from += bytes) {
    const to = scratch + S_QUERY + <usize>g * QUERY_ROW;
    for (let at: usize = 0; at < bytes; at += 16) v128.store(to + at, f32x4.mul(v128.load(from + at), scale));
  }
}

/** Chooses the integer scale of each query for a chunk: its largest product with a channel's largest step. */
function scaleQueries(group: i32, dim: i32, scratch: usize): void {
  const bytes = <usize>dim << 2;
  const steps = scratch + S_STEPS;
  for (let g = 0; g < group; g++) {
    const query = scratch + S_QUERY + <usize>g * QUERY_ROW;
    const scaled = scratch + S_QUERY_SCALED + <usize>g * QUERY_ROW;
    let largest = f32x4.splat(0);
    for (let at: usize = 0; at < bytes; at += 16) {
      const product = f32x4.mul(v128.load(query + at), v128.load(steps + at));
      largest = f32x4.pmax(largest, f32x4.abs(product));
    }
    const m = maxLane(largest);
    const factor = m > 0 ? LARGEST / m : 0;
    store<f32>(scratch + S_KEY_SCALE + (<usize>g << 2), m > 0 ? m / LARGEST : 0);
    const f = f32x4.splat(factor);
    for (let at: usize = 0; at < bytes; at += 16) v128.store(scaled + at, f32x4.mul(v128.load(query + at), f));
  }
}

/** Raw logits of the chunk's entries into S_LOGITS. */
function scoreChunk(n: i32, group: i32, dim: i32, scratch: usize): void {
  const list = scratch + S_ENTRIES;
  const end = list + (<usize>n << 4);
  let quantised = false;
  for (let e = list; e < end; e += 16) {
    const k = load<u32>(e);
    if (k & 1) {
      if (!quantised) memory.fill(scratch + S_STEPS, 0, <usize>dim << 2);
      quantised = true;
      maxSteps(<usize>(k - 1), dim, scratch + S_STEPS);
    }
  }
  if (quantised) scaleQueries(group, dim, scratch);
  let slot: usize = 0;
  for (let e = list; e < end; e += 16, slot += 64) {
    const k = load<u32>(e);
    if (k & 1) scorePageInt8(<usize>(k - 1), dim, group, scratch, slot, scratch + S_KEY_SCALE);
    else scorePageFloat(<usize>k, dim, group, scratch, slot);
  }
}

// @ts-ignore: decorator
@inline
function addBias(logits: usize, bias: usize, live: u32): void {
  if ((live & (live + 1)) == 0) {
    // slots without holes: entries are consecutive
    v128.store(logits, f32x4.add(v128.load(logits), v128.load(bias)));
    v128.store(logits, f32x4.add(v128.load(logits, 16), v128.load(bias, 16)), 16);
    v128.store(logits, f32x4.add(v128.load(logits, 32), v128.load(bias, 32)), 32);
    v128.store(logits, f32x4.add(v128.load(logits, 48), v128.load(bias, 48)), 48);
    return;
  }
  for (let m = live; m != 0; m &= m - 1) {
    const at = logits + (<usize>ctz(m) << 2);
    store<f32>(at, load<f32>(at) + load<f32>(bias));
    bias += 4;
  }
}

/** Soft-cap, bias and mask of the chunk's logits. `bias`: that of the first query, or 0. */
function editChunk(n: i32, group: i32, scratch: usize, bias: usize): void {
  const cap = fieldF32(F_SOFTCAP);
  const list = scratch + S_ENTRIES;
  for (let g = 0; g < group; g++) {
    const row = scratch + S_LOGITS + <usize>g * LOGIT_ROW;
    if (cap > 0) {
      const c = f32x4.splat(cap);
      const t = f32x4.splat(2.0 / cap);
      const end = row + (<usize>n << 6);
      for (let at = row; at < end; at += 16) v128.store(at, softcap4(v128.load(at), c, t));
    }
    for (let i = 0; i < n; i++) {
      const e = list + (<usize>i << 4);
      const slots = load<u32>(e, 8);
      const at = row + (<usize>i << 6);
      if (bias != 0) addBias(at, bias + (<usize>load<u32>(e, 12) << 2), slots >> 16);
      for (let m = ~slots & 0xffff; m != 0; m &= m - 1) store<f32>(at + (<usize>ctz(m) << 2), -Infinity);
    }
    if (bias != 0) bias += <usize>field(F_BIAS_QUERY) << 2;
  }
}

/** Lists the int8 pages of values of entries [from, to) in S_VALUES; returns their number. */
function listValues(from: i32, to: i32, scratch: usize): i32 {
  let at = scratch + S_VALUES;
  const start = at;
  for (let i = from; i < to; i++) {
    const v = load<u32>(scratch + S_ENTRIES + (<usize>i << 4), 4);
    if (v & 1) {
      store<u32>(at, v - 1);
      store<u32>(at, <u32>i << 5, 4);
      at += 8;
    }
  }
  return <i32>((at - start) >> 3);
}

/**
 * Weights f32 of a row of n entries to i16, with a scale for each block; those of float32 pages, which S_LOGITS keeps,
 * come out as numbers that nobody reads. `largest`: vectors of each block's largest magnitudes.
 */
function quantiseWeights(row: usize, weights: usize, n: i32, largest: usize, scales: usize): void {
  const magic = f32x4.splat(12582912.0);
  const bits = i32x4.splat(0x4b400000);
  for (let from = 0; from < n; from += BLOCK, largest += 16, scales += 32) {
    const m = maxLane(v128.load(largest));
    store<f32>(scales, m / LARGEST);
    const f = f32x4.splat(m > 0 ? LARGEST / m : 0);
    const end = row + (<usize>min(BLOCK, n - from) << 6);
    for (; row < end; row += 32, weights += 16) {
      const a = i32x4.sub(f32x4.add(f32x4.mul(v128.load(row), f), magic), bits);
      const b = i32x4.sub(f32x4.add(f32x4.mul(v128.load(row, 16), f), magic), bits);
      v128.store(weights, i16x8.narrow_i32x4_s(a, b));
    }
  }
}

/** Softmax of the chunk's logits: weights to S_WEIGHTS (int8 pages) and S_LOGITS (float32 pages), S_MAX and S_SUM. */
function softmaxChunk(n: i32, group: i32, scratch: usize): void {
  const list = scratch + S_ENTRIES;
  const largest = scratch + S_SUMS; // free until the values are summed
  for (let g = 0; g < group; g++) {
    const row = scratch + S_LOGITS + <usize>g * LOGIT_ROW;
    const end = row + (<usize>n << 6);
    let top = v128.load(row);
    for (let at = row; at < end; at += 64) {
      const a = f32x4.pmax(v128.load(at), v128.load(at, 16));
      const b = f32x4.pmax(v128.load(at, 32), v128.load(at, 48));
      top = f32x4.pmax(top, f32x4.pmax(a, b));
    }
    const state = <usize>g << 2;
    const maximum = maxLane(top);
    store<f32>(scratch + S_MAX + state, maximum);
    if (maximum == -Infinity) {
      memory.fill(row, 0, <usize>n << 6);
      memory.fill(largest, 0, 64);
    } else {
      const m = f32x4.splat(maximum);
      let sum = f32x4.splat(0);
      let e = list;
      let to = largest;
      for (let at = row; at < end; to += 16) {
        const stop = min(end, at + (BLOCK << 6));
        let most = f32x4.splat(0);
        for (; at < stop; at += 64, e += 16) {
          const a = expNegative4(f32x4.sub(v128.load(at), m));
          const b = expNegative4(f32x4.sub(v128.load(at, 16), m));
          const c = expNegative4(f32x4.sub(v128.load(at, 32), m));
          const d = expNegative4(f32x4.sub(v128.load(at, 48), m));
          sum = f32x4.add(sum, f32x4.add(f32x4.add(a, b), f32x4.add(c, d)));
          const v = load<u32>(e, 4);
          if (v & 1) {
            const s = <usize>(v - 1);
            const wa = f32x4.mul(a, v128.load(s));
            const wb = f32x4.mul(b, v128.load(s, 16));
            const wc = f32x4.mul(c, v128.load(s, 32));
            const wd = f32x4.mul(d, v128.load(s, 48));
            most = f32x4.pmax(most, f32x4.pmax(f32x4.pmax(wa, wb), f32x4.pmax(wc, wd)));
            v128.store(at, wa);
            v128.store(at, wb, 16);
            v128.store(at, wc, 32);
            v128.store(at, wd, 48);
          } else {
            v128.store(at, a);
            v128.store(at, b, 16);
            v128.store(at, c, 32);
            v128.store(at, d, 48);
          }
        }
        v128.store(to, most);
      }
      store<f32>(scratch + S_SUM + state, sumLanes(sum));
    }
    quantiseWeights(row, scratch + S_WEIGHTS + <usize>g * WEIGHT_ROW, n, largest, scratch + S_WEIGHT_SCALE + state);
  }
}

/** Weights as given (job SUM) instead of a softmax: to S_WEIGHTS and S_LOGITS. `from`: the first query's row. */
function givenWeights(n: i32, group: i32, scratch: usize, from: usize, rowBytes: usize): void {
  const list = scratch + S_ENTRIES;
  const largest = scratch + S_SUMS;
  for (let g = 0; g < group; g++, from += rowBytes) {
    const row = scratch + S_LOGITS + <usize>g * LOGIT_ROW;
    memory.fill(row, 0, <usize>n << 6);
    memory.fill(largest, 0, 64);
    for (let i = 0; i < n; i++) {
      const e = list + (<usize>i << 4);
      const slots = load<u32>(e, 8);
      const v = load<u32>(e, 4);
      const at = row + (<usize>i << 6);
      const most = largest + (<usize>(i / BLOCK) << 4);
      let w = from + (<usize>load<u32>(e, 12) << 2);
      for (let m = slots >> 16; m != 0; m &= m - 1, w += 4) {
        const t = <usize>ctz(m) << 2;
        if (((slots >> (<u32>t >> 2)) & 1) == 0) continue;
        let x = load<f32>(w);
        if (v & 1) {
          x *= load<f32>(<usize>(v - 1) + t);
          store<f32>(most, max(load<f32>(most), abs(x)));
        }
        store<f32>(at + t, x);
      }
    }
    quantiseWeights(row, scratch + S_WEIGHTS + <usize>g * WEIGHT_ROW, n, largest, scratch + S_WEIGHT_SCALE + (<usize>g << 2));
  }
}

/** Adds the chunk's weighted values to S_OUT, a block at a time. */
function sumChunk(n: i32, group: i32, dim: i32, scratch: usize): void {
  let scales = scratch + S_WEIGHT_SCALE;
  for (let from = 0; from < n; from += BLOCK, scales += 32) {
    const to = min(n, from + BLOCK);
    const quantised = listValues(from, to, scratch);
    if (quantised > 0) sumPagesInt8(quantised, dim, group, scratch, scales);
    if (quantised == to - from) continue;
    for (let i = from; i < to; i++) {
      const e = scratch + S_ENTRIES + (<usize>i << 4);
      const v = load<u32>(e, 4);
      if (!(v & 1)) sumPageFloat(<usize>v, dim, group, scratch, <usize>i << 6, load<u32>(e, 8) & 0xffff);
    }
  }
}

/** Writes the chunk's logits to the rows of the result, in the order of stored entries. */
function writeLogits(n: i32, group: i32, scratch: usize, to: usize, rowBytes: usize): void {
  for (let g = 0; g < group; g++, to += rowBytes) {
    const row = scratch + S_LOGITS + <usize>g * LOGIT_ROW;
    for (let i = 0; i < n; i++) {
      const e = scratch + S_ENTRIES + (<usize>i << 4);
      const live = load<u32>(e, 8) >> 16;
      let out = to + (<usize>load<u32>(e, 12) << 2);
      const from = row + (<usize>i << 6);
      if (live == 0xffff) {
        v128.store(out, v128.load(from));
        v128.store(out, v128.load(from, 16), 16);
        v128.store(out, v128.load(from, 32), 32);
        v128.store(out, v128.load(from, 48), 48);
      } else {
        for (let m = live; m != 0; m &= m - 1, out += 4) store<f32>(out, load<f32>(from + (<usize>ctz(m) << 2)));
      }
    }
  }
}

/** One task of a job over entries. */
export function attendTask(task: i32, scratch: usize): void {
  const kind = <i32>field(F_KIND);
  const rows = <i32>field(F_ROWS);
  const chunks = <i32>field(F_CHUNKS);
  const kvHeads = <i32>field(F_KV_HEADS);
  const wholeGroup = <i32>field(F_GROUP);
  const keyDim = <i32>field(F_KEY_DIM);
  const valueDim = <i32>field(F_VALUE_DIM);
  const parts = groupParts();
  const row = task % rows;
  const rest = task / rows;
  const chunk = rest % chunks;
  const unit = rest / chunks; // (KV head, part of its group)
  const head = <i32>field(F_HEAD_FROM) + unit / parts;
  const firstQuery = (unit % parts) * MAX_GROUP;
  const group = min(wholeGroup - firstQuery, MAX_GROUP);
  const queryHead = head * wholeGroup + firstQuery;
  const queryHeads = kvHeads * wholeGroup;

  const table = <usize>field(F_TABLES) + (<usize>head << 3);
  const total = load<i32>(table, 4);
  const size = <i32>field(F_SIZE);
  const first = chunk * size;
  const last = min(first + size, total);
  const entries = <usize>load<u32>(table);
  let limits = <usize>field(F_LIMITS);
  if (limits != 0) limits += <usize>(row * kvHeads + head) << 3;
  let bias = <usize>field(F_BIAS);
  if (bias != 0) {
    bias += <usize>(field(F_BIAS_KV) * head + field(F_BIAS_QUERY) * firstQuery + field(F_BIAS_ROW) * row) << 2;
  }
  const rowBytes = <usize>field(F_LOGIT_HEAD) << 2;
  const logits = <usize>field(F_LOGITS) + (<usize>(row * field(F_LOGIT_ROW)) << 2) + <usize>queryHead * rowBytes;

  memory.fill(scratch + S_SUM, 0, 32);
  for (let g: usize = 0; g < 32; g += 4) store<f32>(scratch + S_MAX + g, -Infinity);
  for (let g = 0; g < group; g++) memory.fill(scratch + S_OUT + <usize>g * OUT_ROW, 0, <usize>valueDim << 2);
  const n = first < last ? gather(entries + <usize>first * ENTRY_BYTES, last - first, limits, scratch) : 0;
  if (n > 0) {
    if (kind == SUM) {
      givenWeights(n, group, scratch, logits, rowBytes);
    } else {
      loadQueries(<usize>field(F_QUERY) + (<usize>((row * queryHeads + queryHead) * keyDim) << 2), group, keyDim, scratch);
      scoreChunk(n, group, keyDim, scratch);
      editChunk(n, group, scratch, bias);
      if (kind == SCORES) {
        writeLogits(n, group, scratch, logits, rowBytes);
        return;
      }
      softmaxChunk(n, group, scratch);
    }
    sumChunk(n, group, valueDim, scratch);
  }
  if (kind == SCORES) return;
  const partial = <usize>field(F_PARTIALS) + <usize>((unit * rows + row) * chunks + chunk) * partialBytes();
  memory.copy(partial, scratch + S_MAX, 64);
  for (let g = 0; g < group; g++) {
    memory.copy(partial + 64 + <usize>(g * valueDim * 4), scratch + S_OUT + <usize>g * OUT_ROW, <usize>valueDim << 2);
  }
}

/** Merges the chunks' partial results, always in the same order, and writes outputs and log-sum-exps. */
export function mergeChunks(): void {
  const kind = <i32>field(F_KIND);
  if (kind == SCORES) return;
  const rows = <i32>field(F_ROWS);
  const chunks = <i32>field(F_CHUNKS);
  const wholeGroup = <i32>field(F_GROUP);
  const parts = groupParts();
  const units = <i32>field(F_HEADS) * parts;
  const queryHeads = <i32>field(F_KV_HEADS) * wholeGroup;
  const bytes = <usize>field(F_VALUE_DIM) << 2;
  const size = partialBytes();
  const sinks = <usize>field(F_SINK);
  let partial = <usize>field(F_PARTIALS);
  for (let unit = 0; unit < units; unit++) {
    const firstQuery = (unit % parts) * MAX_GROUP;
    const group = min(wholeGroup - firstQuery, MAX_GROUP);
    const queryHead = (<i32>field(F_HEAD_FROM) + unit / parts) * wholeGroup + firstQuery;
    for (let row = 0; row < rows; row++, partial += <usize>chunks * size) {
      for (let g = 0; g < group; g++) {
        const at = row * queryHeads + queryHead + g;
        const out = <usize>field(F_OUT) + <usize>at * bytes;
        const state = partial + (<usize>g << 2);
        const values = partial + 64 + <usize>g * bytes;
        if (kind == SUM) {
          memory.copy(out, values, bytes);
          for (let c = 1; c < chunks; c++) {
            const more = values + <usize>c * size;
            for (let i: usize = 0; i < bytes; i += 16) {
              v128.store(out + i, f32x4.add(v128.load(out + i), v128.load(more + i)));
            }
          }
          continue;
        }
        let maximum: f32 = sinks != 0 ? load<f32>(sinks + (<usize>(queryHead + g) << 2)) : -Infinity;
        const sink = maximum;
        for (let c = 0; c < chunks; c++) maximum = max(maximum, load<f32>(state + <usize>c * size));
        const lse = <usize>field(F_LSE) + (<usize>at << 2);
        memory.fill(out, 0, bytes);
        if (maximum == -Infinity) {
          store<f32>(lse, -Infinity);
          continue;
        }
        let sum: f32 = expf(sink - maximum);
        for (let c = 0; c < chunks; c++) {
          const s = state + <usize>c * size;
          const weight = expf(load<f32>(s) - maximum);
          if (weight == 0) continue;
          sum += weight * load<f32>(s, 32);
          const more = values + <usize>c * size;
          const w = f32x4.splat(weight);
          for (let i: usize = 0; i < bytes; i += 16) v128.store(out + i, mulAdd(v128.load(out + i), v128.load(more + i), w));
        }
        const inverse = f32x4.splat(1 / sum);
        for (let i: usize = 0; i < bytes; i += 16) v128.store(out + i, f32x4.mul(v128.load(out + i), inverse));
        store<f32>(lse, maximum + logf(sum));
      }
    }
  }
}
