import { S_INDICES, S_KEYS, S_MAXIMA } from "./layout";
import { exp4, logf, maxLane, sumLanes } from "./math";

/** Softmax of n floats in place; returns their log-sum-exp. A row of -Infinity becomes zeros. `row` has room for n + 3. */
export function softmaxRow(row: usize, n: i32): f32 {
  const end = row + (<usize>n << 2);
  const padded = row + (<usize>((n + 3) & ~3) << 2);
  for (let at = end; at < padded; at += 4) store<f32>(at, -Infinity);
  let top = f32x4.splat(-Infinity);
  for (let at = row; at < padded; at += 16) top = f32x4.pmax(top, v128.load(at));
  const maximum = maxLane(top);
  if (maximum == -Infinity) {
    memory.fill(row, 0, <usize>n << 2);
    return -Infinity;
  }
  const m = f32x4.splat(maximum);
  let sums = f32x4.splat(0);
  for (let at = row; at < padded; at += 16) {
    const e = exp4(f32x4.sub(v128.load(at), m));
    sums = f32x4.add(sums, e);
    v128.store(at, e);
  }
  const sum = sumLanes(sums);
  const inverse = f32x4.splat(1 / sum);
  for (let at = row; at < padded; at += 16) v128.store(at, f32x4.mul(v128.load(at), inverse));
  return maximum + logf(sum);
}

/** Four floats as integers of the same order; -0 counts as 0. */
// @ts-ignore: decorator
@inline
function order4(x: v128): v128 {
  const bits = f32x4.add(x, f32x4.splat(0));
  return v128.xor(bits, v128.and(i32x4.shr_s(bits, 31), i32x4.splat(0x7fffffff)));
}

/** The same of one float. */
// @ts-ignore: decorator
@inline
function order(at: usize): i32 {
  const bits = reinterpret<i32>(load<f32>(at) + <f32>0);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

// @ts-ignore: decorator
@inline
function total(counts: v128): i32 {
  return (
    i32x4.extract_lane(counts, 0) + i32x4.extract_lane(counts, 1) + i32x4.extract_lane(counts, 2) + i32x4.extract_lane(counts, 3)
  );
}

/** How many of `keys` (i32, bytes a multiple of 16) are `least` or more. */
function countKeys(keys: usize, bytes: usize, least: i32): i32 {
  const t = i32x4.splat(least);
  let counts = i32x4.splat(0);
  const end = keys + bytes;
  for (let at = keys; at < end; at += 16) counts = i32x4.sub(counts, i32x4.ge_s(v128.load(at), t));
  return total(counts);
}

/** The same of n floats, by their order. */
function countRow(row: usize, n: i32, least: i32): i32 {
  const t = i32x4.splat(least);
  let counts = i32x4.splat(0);
  const end = row + (<usize>(n & ~3) << 2);
  for (let at = row; at < end; at += 16) counts = i32x4.sub(counts, i32x4.ge_s(order4(v128.load(at)), t));
  let count = total(counts);
  for (let at = end; at < row + (<usize>n << 2); at += 4) count += <i32>(order(at) >= least);
  return count;
}

/** The k-th largest key, bit by bit: the largest number that k keys reach. `n` 0: of `keys`; else of a row of n floats. */
function kthLargest(keys: usize, bytes: usize, n: i32, k: i32): i32 {
  let least = i32.MIN_VALUE;
  for (let bit = 31; bit >= 0; bit--) {
    const tried = bit == 31 ? 0 : least | (1 << bit);
    const count = n > 0 ? countRow(keys, n, tried) : countKeys(keys, bytes, tried);
    if (count >= k) least = tried;
  }
  return least;
}

/** Floats of which one maximum is taken, and how many of those fit in the scratch. */
const GROUP: i32 = 8;
const MOST_MAXIMA: i32 = 12288;
const MOST_SURVIVORS: i32 = 8192;

/**
 * A key that k of n floats reach: the k-th largest of the maxima of groups of eight. The smallest number where there are
 * too few groups.
 */
function lowerBound(row: usize, n: i32, k: i32, maxima: usize): i32 {
  const blocks = min(n / (4 * GROUP), MOST_MAXIMA / 4);
  if (blocks * 4 < k) return i32.MIN_VALUE;
  let to = maxima;
  for (let b = 0; b < blocks; b++, row += 128, to += 16) {
    const w = f32x4.pmax(f32x4.pmax(v128.load(row), v128.load(row, 16)), f32x4.pmax(v128.load(row, 32), v128.load(row, 48)));
    const x = f32x4.pmax(f32x4.pmax(v128.load(row, 64), v128.load(row, 80)), f32x4.pmax(v128.load(row, 96), v128.load(row, 112)));
    v128.store(to, order4(f32x4.pmax(w, x)));
  }
  return kthLargest(maxima, to - maxima, 0, k);
}

/** Lists the floats whose key is `least` or more; returns their number, or -1 where there are more than fit. */
function survivors(row: usize, n: i32, least: i32, scratch: usize): i32 {
  const keys = scratch + S_KEYS;
  const indices = scratch + S_INDICES;
  const t = i32x4.splat(least);
  let count: usize = 0;
  let i = 0;
  for (; i + 4 <= n; i += 4) {
    const key = order4(v128.load(row + (<usize>i << 2)));
    let mask = i32x4.bitmask(i32x4.ge_s(key, t));
    if (mask == 0) continue;
    if (<i32>count + 4 > MOST_SURVIVORS) return -1;
    for (; mask != 0; mask &= mask - 1) {
      const index = i + ctz(mask);
      store<i32>(keys + (count << 2), order(row + (<usize>index << 2)));
      store<i32>(indices + (count << 2), index);
      count++;
    }
  }
  for (; i < n; i++) {
    const key = order(row + (<usize>i << 2));
    if (key < least) continue;
    if (<i32>count == MOST_SURVIVORS) return -1;
    store<i32>(keys + (count << 2), key);
    store<i32>(indices + (count << 2), i);
    count++;
  }
  return <i32>count;
}

/**
 * Indices of the k largest of n floats, ascending, ties to the lower index: u32 to `out`. No NaN; 0 < k <= n. A bound from
 * the maxima of groups leaves few floats to choose among.
 */
export function topK(row: usize, n: i32, k: i32, out: usize, scratch: usize): void {
  const count = survivors(row, n, lowerBound(row, n, k, scratch + S_MAXIMA), scratch);
  const keys = scratch + S_KEYS;
  let least: i32;
  let above: i32;
  if (count >= 0) {
    const bytes = ((<usize>count << 2) + 15) & ~(<usize>15);
    for (let at = <usize>count << 2; at < bytes; at += 4) store<i32>(keys + at, i32.MIN_VALUE);
    least = kthLargest(keys, bytes, 0, k);
    above = least == i32.MAX_VALUE ? 0 : countKeys(keys, bytes, least + 1);
  } else {
    least = kthLargest(row, 0, n, k);
    above = least == i32.MAX_VALUE ? 0 : countRow(row, n, least + 1);
  }
  let ties = k - above;
  const last = count >= 0 ? count : n;
  for (let i = 0; i < last; i++) {
    const at = <usize>i << 2;
    const key = count >= 0 ? load<i32>(keys + at) : order(row + at);
    if (key < least || (key == least && ties-- <= 0)) continue;
    store<i32>(out, count >= 0 ? load<i32>(scratch + S_INDICES + at) : i);
    out += 4;
  }
}
