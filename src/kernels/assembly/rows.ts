import { S_HISTOGRAM } from "./layout";
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

/** A float's bits as an unsigned integer of the same order. */
// @ts-ignore: decorator
@inline
function orderOf(at: usize): u32 {
  const x = load<f32>(at);
  const bits = reinterpret<u32>(x == 0 ? <f32>0 : x); // -0 ties with 0
  return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

/** Finds the digit of the k-th largest key among those with the given higher digits; returns digit << 16 | rank within. */
function selectDigit(row: usize, n: i32, prefix: u32, prefixShift: u32, shift: u32, bits: u32, k: u32, counts: usize): u64 {
  const size = <u32>1 << bits;
  memory.fill(counts, 0, <usize>size << 2);
  const end = row + (<usize>n << 2);
  for (let at = row; at < end; at += 4) {
    const key = orderOf(at);
    if (prefixShift < 32 && key >> prefixShift != prefix) continue;
    const slot = counts + (<usize>((key >> shift) & (size - 1)) << 2);
    store<u32>(slot, load<u32>(slot) + 1);
  }
  let digit = size;
  let left = k;
  while (digit > 0) {
    digit--;
    const count = load<u32>(counts + (<usize>digit << 2));
    if (count >= left) break;
    left -= count;
  }
  return (<u64>digit << 32) | <u64>left;
}

/** Indices of the k largest of n floats, ascending, ties to the lower index: u32 to `out`. No NaN; 0 < k <= n. */
export function topK(row: usize, n: i32, k: i32, out: usize, scratch: usize): void {
  const counts = scratch + S_HISTOGRAM;
  let r = selectDigit(row, n, 0, 32, 21, 11, k, counts);
  let key = <u32>(r >> 32);
  r = selectDigit(row, n, key, 21, 10, 11, <u32>r, counts);
  key = (key << 11) | <u32>(r >> 32);
  r = selectDigit(row, n, key, 10, 0, 10, <u32>r, counts);
  key = (key << 10) | <u32>(r >> 32);
  let ties = <u32>r;
  for (let i = 0; i < n; i++) {
    const x = orderOf(row + (<usize>i << 2));
    if (x < key) continue;
    if (x == key) {
      if (ties == 0) continue;
      ties--;
    }
    store<u32>(out, i);
    out += 4;
  }
}
