import {
  A_KEY_DIM,
  A_KEY_STRIDE,
  A_RECORDS,
  A_VALUE_DIM,
  A_VALUE_STRIDE,
  CHUNK,
  ENTRY_BYTES,
  R_COUNT,
  R_ENTRIES,
  R_KEYS,
  R_VALUES,
  field,
} from "./layout";
import { maxLane } from "./math";

// A record of APPEND, 32 bytes: first source row of keys, of values; rows; slot of the first; open float32 page of keys,
// of values (0: none); int8 page to seal into, of keys, of values (0: not full yet).

// @ts-ignore: decorator
@inline
function roundedBits(x: v128): v128 {
  return i32x4.sub(f32x4.add(x, f32x4.splat(12582912.0)), i32x4.splat(0x4b400000));
}

// @ts-ignore: decorator
@inline
function bf16(at: usize): f32 {
  return reinterpret<f32>(<u32>load<u16>(at) << 16);
}

/** bf16 bits (in i32 lanes) nearest to x */
// @ts-ignore: decorator
@inline
function bf16Nearest(x: v128): v128 {
  const odd = v128.and(i32x4.shr_u(x, 16), i32x4.splat(1));
  return i32x4.shr_u(i32x4.add(i32x4.add(x, i32x4.splat(0x7fff)), odd), 16);
}

/** bf16 bits of the smallest bf16 that is not below x >= 0 */
// @ts-ignore: decorator
@inline
function bf16Up(x: v128): v128 {
  return i32x4.shr_u(i32x4.add(x, i32x4.splat(0xffff)), 16);
}

/** Middle and step of four channels with these bounds: to the page's header at `at` (bytes); returns the middle. */
// @ts-ignore: decorator
@inline
function storeBounds(lo: v128, hi: v128, middles: usize, steps: usize): v128 {
  const m = bf16Nearest(f32x4.mul(f32x4.add(lo, hi), f32x4.splat(0.5)));
  const middle = i32x4.shl(m, 16);
  const half = f32x4.pmax(f32x4.sub(hi, middle), f32x4.sub(middle, lo));
  const s = bf16Up(f32x4.mul(half, f32x4.splat(0.0078740235))); // a little over 1 / 127
  v128.store64_lane(middles, i16x8.narrow_i32x4_u(m, m), 0);
  v128.store64_lane(steps, i16x8.narrow_i32x4_u(s, s), 0);
  return middle;
}

// @ts-ignore: decorator
@inline
function inverseOf(step: v128): v128 {
  return v128.and(f32x4.div(f32x4.splat(1), step), f32x4.gt(step, f32x4.splat(0)));
}

// @ts-ignore: decorator
@inline
function loadSteps(steps: usize): v128 {
  return i32x4.shl(v128.load16x4_u(steps), 16);
}

/** Quantises `count` (1..16) rows of keys into an int8 page; missing rows repeat the last one. */
function quantiseKeys(source: usize, stride: usize, count: i32, dim: i32, page: usize): void {
  const middles = page;
  const steps = page + <usize>(dim * 2);
  const codes = page + <usize>(dim * 4);
  for (let c = 0; c < dim; c += 8) {
    let row = source + (<usize>c << 2);
    const first = row;
    let lo0 = v128.load(row);
    let hi0 = lo0;
    let lo1 = v128.load(row, 16);
    let hi1 = lo1;
    for (let t = 1; t < count; t++) {
      row += stride;
      const x = v128.load(row);
      const y = v128.load(row, 16);
      lo0 = f32x4.pmin(lo0, x);
      hi0 = f32x4.pmax(hi0, x);
      lo1 = f32x4.pmin(lo1, y);
      hi1 = f32x4.pmax(hi1, y);
    }
    const at = <usize>(c << 1);
    const m0 = storeBounds(lo0, hi0, middles + at, steps + at);
    const m1 = storeBounds(lo1, hi1, middles + at + 8, steps + at + 8);
    const i0 = inverseOf(loadSteps(steps + at));
    const i1 = inverseOf(loadSteps(steps + at + 8));
    row = first;
    let to = codes + (<usize>c << 4);
    for (let t = 0; t < 16; t++) {
      const a = roundedBits(f32x4.mul(f32x4.sub(v128.load(row), m0), i0));
      const b = roundedBits(f32x4.mul(f32x4.sub(v128.load(row, 16), m1), i1));
      // bytes of channel c + p and c + p + 4 side by side, in the low half of lane p
      const pairs = v128.or(v128.and(a, i32x4.splat(0xff)), i32x4.shl(b, 8));
      v128.store16_lane(to, pairs, 0);
      v128.store16_lane(to, pairs, 2, 32);
      v128.store16_lane(to, pairs, 4, 64);
      v128.store16_lane(to, pairs, 6, 96);
      to += 2;
      if (t + 1 < count) row += stride;
    }
  }
}

/** Codes of one channel's 16 tokens */
// @ts-ignore: decorator
@inline
function channelCodes(from: usize, middleAt: usize, stepAt: usize): v128 {
  const middle = f32x4.splat(bf16(middleAt));
  const inverse = inverseOf(f32x4.splat(bf16(stepAt)));
  const a = roundedBits(f32x4.mul(f32x4.sub(v128.load(from), middle), inverse));
  const b = roundedBits(f32x4.mul(f32x4.sub(v128.load(from, 16), middle), inverse));
  const c = roundedBits(f32x4.mul(f32x4.sub(v128.load(from, 32), middle), inverse));
  const d = roundedBits(f32x4.mul(f32x4.sub(v128.load(from, 48), middle), inverse));
  return i8x16.narrow_i16x8_s(i16x8.narrow_i32x4_s(a, b), i16x8.narrow_i32x4_s(c, d));
}

// @ts-ignore: decorator
@inline
function low(from: usize): v128 {
  return f32x4.pmin(f32x4.pmin(v128.load(from), v128.load(from, 16)), f32x4.pmin(v128.load(from, 32), v128.load(from, 48)));
}
// @ts-ignore: decorator
@inline
function high(from: usize): v128 {
  return f32x4.pmax(f32x4.pmax(v128.load(from), v128.load(from, 16)), f32x4.pmax(v128.load(from, 32), v128.load(from, 48)));
}

/** [min of a, min of b, min of c, min of d] of four vectors: a transposition in halves. */
// @ts-ignore: decorator
@inline
function least(a: v128, b: v128, c: v128, d: v128): v128 {
  const ab = f32x4.pmin(v128.shuffle<u32>(a, b, 0, 4, 1, 5), v128.shuffle<u32>(a, b, 2, 6, 3, 7));
  const cd = f32x4.pmin(v128.shuffle<u32>(c, d, 0, 4, 1, 5), v128.shuffle<u32>(c, d, 2, 6, 3, 7));
  return f32x4.pmin(v128.shuffle<u32>(ab, cd, 0, 1, 4, 5), v128.shuffle<u32>(ab, cd, 2, 3, 6, 7));
}
// @ts-ignore: decorator
@inline
function greatest(a: v128, b: v128, c: v128, d: v128): v128 {
  const ab = f32x4.pmax(v128.shuffle<u32>(a, b, 0, 4, 1, 5), v128.shuffle<u32>(a, b, 2, 6, 3, 7));
  const cd = f32x4.pmax(v128.shuffle<u32>(c, d, 0, 4, 1, 5), v128.shuffle<u32>(c, d, 2, 6, 3, 7));
  return f32x4.pmax(v128.shuffle<u32>(ab, cd, 0, 1, 4, 5), v128.shuffle<u32>(ab, cd, 2, 3, 6, 7));
}

/** Interleaves the codes of two channels into a row of pairs. */
// @ts-ignore: decorator
@inline
function storePairs(to: usize, a: v128, b: v128): void {
  v128.store(to, v128.shuffle<u8>(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
  v128.store(to, v128.shuffle<u8>(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), 16);
}

/** Quantises a full float32 page of keys, [D][16], into an int8 page: the same bytes as from rows. */
function sealKeys(open: usize, dim: i32, page: usize): void {
  const middles = page;
  const steps = page + <usize>(dim * 2);
  const codes = page + <usize>(dim * 4);
  for (let c = 0; c < dim; c += 4) {
    const from = open + (<usize>c << 6);
    const lo = least(low(from), low(from + 64), low(from + 128), low(from + 192));
    const hi = greatest(high(from), high(from + 64), high(from + 128), high(from + 192));
    const at = <usize>(c << 1);
    storeBounds(lo, hi, middles + at, steps + at);
  }
  for (let c = 0; c < dim; c += 8) {
    let from = open + (<usize>c << 6);
    let to = codes + (<usize>c << 4);
    let at = <usize>(c << 1);
    for (let p = 0; p < 4; p++, from += 64, to += 32, at += 2) {
      storePairs(to, channelCodes(from, middles + at, steps + at), channelCodes(from + 256, middles + at + 8, steps + at + 8));
    }
  }
}

/** 127 / largest magnitude of a row of values, in slices of 8 channels; its inverse is stored as the scale. */
// @ts-ignore: decorator
@inline
function valueFactor(row: usize, slices: i32, sliceBytes: usize, scale: usize): v128 {
  let top = f32x4.splat(0);
  for (let s = 0; s < slices; s++, row += sliceBytes) {
    top = f32x4.pmax(top, f32x4.pmax(f32x4.abs(v128.load(row)), f32x4.abs(v128.load(row, 16))));
  }
  const m = maxLane(top);
  store<f32>(scale, m / 127);
  return f32x4.splat(m > 0 ? 127 / m : 0);
}

// @ts-ignore: decorator
@inline
function valueCodes(row: usize, factor: v128): v128 {
  return i16x8.narrow_i32x4_s(
    roundedBits(f32x4.mul(v128.load(row), factor)),
    roundedBits(f32x4.mul(v128.load(row, 16), factor)),
  );
}

/**
 * Quantises `count` (1..16) rows of values into an int8 page; missing rows repeat the last one. `sliceBytes`: from 8
 * channels of a row to the next 8.
 */
function quantiseValues(source: usize, stride: usize, sliceBytes: usize, count: i32, dim: i32, page: usize): void {
  const slices = dim >> 3;
  const codes = page + 64;
  for (let t = 0; t < 16; t += 2) {
    let a = source + <usize>min(t, count - 1) * stride;
    let b = source + <usize>min(t + 1, count - 1) * stride;
    const fa = valueFactor(a, slices, sliceBytes, page + (<usize>t << 2));
    const fb = valueFactor(b, slices, sliceBytes, page + (<usize>t << 2) + 4);
    let to = codes + (<usize>t << 3);
    for (let s = 0; s < slices; s++, a += sliceBytes, b += sliceBytes, to += 128) {
      const both = i8x16.narrow_i16x8_s(valueCodes(a, fa), valueCodes(b, fb));
      v128.store(to, v128.shuffle<u8>(both, both, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
    }
  }
}

/** Writes rows of values into a float32 page. */
function copyValues(source: usize, stride: usize, count: i32, dim: i32, page: usize, slot: i32): void {
  for (let t = 0; t < count; t++, source += stride) {
    let to = page + (<usize>(slot + t) << 5);
    for (let at: usize = 0; at < <usize>dim << 2; at += 32, to += 512) {
      v128.store(to, v128.load(source + at));
      v128.store(to, v128.load(source + at, 16), 16);
    }
  }
}

/** Writes rows of keys as columns of a float32 page. */
function copyKeys(source: usize, stride: usize, count: i32, dim: i32, page: usize, slot: i32): void {
  for (let t = 0; t < count; t++, source += stride) {
    let to = page + (<usize>(slot + t) << 2);
    for (let c = 0; c < dim; c += 4, to += 256) {
      const x = v128.load(source + (<usize>c << 2));
      v128.store32_lane(to, x, 0);
      v128.store32_lane(to, x, 1, 64);
      v128.store32_lane(to, x, 2, 128);
      v128.store32_lane(to, x, 3, 192);
    }
  }
}

/** One record: rows into an open page, and into an int8 page when that fills it. */
export function appendTask(task: i32): void {
  const record = <usize>field(A_RECORDS) + (<usize>task << 5);
  const keyDim = <i32>field(A_KEY_DIM);
  const valueDim = <i32>field(A_VALUE_DIM);
  const keyStride = <usize>field(A_KEY_STRIDE);
  const valueStride = <usize>field(A_VALUE_STRIDE);
  const keys = <usize>load<u32>(record);
  const values = <usize>load<u32>(record, 4);
  const count = load<i32>(record, 8);
  const slot = load<i32>(record, 12);
  const openK = <usize>load<u32>(record, 16);
  const openV = <usize>load<u32>(record, 20);
  const sealK = <usize>load<u32>(record, 24);
  const sealV = <usize>load<u32>(record, 28);
  if (openK == 0) {
    quantiseKeys(keys, keyStride, count, keyDim, sealK);
    quantiseValues(values, valueStride, 32, count, valueDim, sealV);
    return;
  }
  copyKeys(keys, keyStride, count, keyDim, openK, slot);
  copyValues(values, valueStride, count, valueDim, openV, slot);
  if (sealK == 0) return;
  sealKeys(openK, keyDim, sealK);
  quantiseValues(openV, 32, 512, 16, valueDim, sealV);
}

function readKeys(k: u32, live: u32, dim: i32, to: usize): void {
  if (k & 1) {
    const page = <usize>(k - 1);
    const middles = page;
    const steps = page + <usize>(dim * 2);
    const codes = page + <usize>(dim * 4);
    for (let m = live; m != 0; m &= m - 1) {
      let from = codes + (<usize>ctz(m) << 1);
      for (let c = 0; c < dim; c += 8, to += 16) {
        let at = <usize>c << 1;
        for (let p = 0; p < 4; p++, at += 2, from += 32, to += 4) {
          store<f32>(to, bf16(middles + at) + bf16(steps + at) * <f32>load<i8>(from));
          store<f32>(to, bf16(middles + at + 8) + bf16(steps + at + 8) * <f32>load<i8>(from, 1), 16);
        }
      }
    }
    return;
  }
  for (let m = live; m != 0; m &= m - 1) {
    let from = <usize>k + (<usize>ctz(m) << 2);
    for (let c = 0; c < dim; c++, from += 64, to += 4) store<f32>(to, load<f32>(from));
  }
}

function readValues(v: u32, live: u32, dim: i32, to: usize): void {
  const bytes = <usize>dim << 2;
  const page = <usize>(v & ~1);
  for (let m = live; m != 0; m &= m - 1) {
    const t = <usize>ctz(m);
    if (!(v & 1)) {
      let from = page + (t << 5);
      for (let at: usize = 0; at < bytes; at += 32, from += 512, to += 32) {
        v128.store(to, v128.load(from));
        v128.store(to, v128.load(from, 16), 16);
      }
      continue;
    }
    const scale = load<f32>(page + (t << 2));
    let from = page + 64 + ((t >> 1) << 4) + (t & 1);
    for (let c = 0; c < dim; c += 8, from += 128) {
      for (let u: usize = 0; u < 16; u += 2, to += 4) store<f32>(to, scale * <f32>load<i8>(from + u));
    }
  }
}

/** Widens CHUNK entries to float32 rows in the order of stored entries. */
export function readTask(task: i32): void {
  const keyDim = <i32>field(A_KEY_DIM);
  const valueDim = <i32>field(A_VALUE_DIM);
  const keys = <usize>field(R_KEYS);
  const values = <usize>field(R_VALUES);
  const first = task * CHUNK;
  const last = min(first + CHUNK, <i32>field(R_COUNT));
  let e = <usize>field(R_ENTRIES) + <usize>first * ENTRY_BYTES;
  for (let i = first; i < last; i++, e += ENTRY_BYTES) {
    const live = load<u32>(e, 8) >> 16;
    const base = <usize>load<u32>(e, 12);
    if (keys != 0) readKeys(load<u32>(e), live, keyDim, keys + base * (<usize>keyDim << 2));
    if (values != 0) readValues(load<u32>(e, 4), live, valueDim, values + base * (<usize>valueDim << 2));
  }
}
