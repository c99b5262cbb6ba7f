import { LOGIT_ROW, OUT_ROW, S_LOGITS, S_OUT, S_SUMS, S_VALUES, S_WEIGHTS, WEIGHT_ROW } from "./layout";
import { dotAdd, mulAdd } from "./math";

// A page of int8 values: scale f32 [16], codes i8 [Dv/8][8 token pairs][8 channels][2 tokens]; value = scale * code.
// A page of float32 values: f32 [Dv/8][16 tokens][8 channels].

/** Bytes of a page's scales. */
const SCALES: usize = 64;

/** Adds N queries' weighted sums over `count` pages of int8 values to their rows of the output. */
// @ts-ignore: decorator
@inline
function sumInt8(N: i32, count: i32, dim: i32, scratch: usize, first: i32, scales: usize): void {
  const weights = scratch + S_WEIGHTS + <usize>first * WEIGHT_ROW;
  const sums = scratch + S_SUMS;
  const list = scratch + S_VALUES;
  const end = list + (<usize>count << 3);
  const last = sums + <usize>(dim * 4 * N);
  memory.fill(sums, 0, last - sums);
  // page after page, so that memory is read in order; the integer sums wait in the cache
  for (let i = list; i < end; i += 8) {
    let v = <usize>load<u32>(i) + SCALES;
    const from = weights + <usize>load<u32>(i, 4);
    const to = from + 32;
    for (let s = sums; s < last; s += 32 * N) {
      let a0 = v128.load(s);
      let a1 = v128.load(s, 16);
      let b0 = N > 1 ? v128.load(s, 32) : a0;
      let b1 = N > 1 ? v128.load(s, 48) : a0;
      let c0 = N > 2 ? v128.load(s, 64) : a0;
      let c1 = N > 2 ? v128.load(s, 80) : a0;
      let d0 = N > 3 ? v128.load(s, 96) : a0;
      let d1 = N > 3 ? v128.load(s, 112) : a0;
      // not unrolled: see keys.ts
      for (let w = from; w < to; w += 4, v += 16) {
        const t = v128.load8x8_s(v);
        const r = v128.load8x8_s(v, 8);
        const x = v128.load32_splat(w);
        a0 = dotAdd(a0, t, x);
        a1 = dotAdd(a1, r, x);
        if (N > 1) {
          const y = v128.load32_splat(w, WEIGHT_ROW);
          b0 = dotAdd(b0, t, y);
          b1 = dotAdd(b1, r, y);
        }
        if (N > 2) {
          const z = v128.load32_splat(w, 2 * WEIGHT_ROW);
          c0 = dotAdd(c0, t, z);
          c1 = dotAdd(c1, r, z);
        }
        if (N > 3) {
          const u = v128.load32_splat(w, 3 * WEIGHT_ROW);
          d0 = dotAdd(d0, t, u);
          d1 = dotAdd(d1, r, u);
        }
      }
      v128.store(s, a0);
      v128.store(s, a1, 16);
      if (N > 1) {
        v128.store(s, b0, 32);
        v128.store(s, b1, 48);
      }
      if (N > 2) {
        v128.store(s, c0, 64);
        v128.store(s, c1, 80);
      }
      if (N > 3) {
        v128.store(s, d0, 96);
        v128.store(s, d1, 112);
      }
    }
  }
  for (let n: usize = 0; n < <usize>N; n++) {
    const scale = v128.load32_splat(scales + (n << 2));
    let out = scratch + S_OUT + (<usize>first + n) * OUT_ROW;
    for (let s = sums + (n << 5); s < last; s += 32 * N, out += 32) {
      v128.store(out, mulAdd(v128.load(out), f32x4.convert_i32x4_s(v128.load(s)), scale));
      v128.store(out, mulAdd(v128.load(out, 16), f32x4.convert_i32x4_s(v128.load(s, 16)), scale), 16);
    }
  }
}

function sumInt8x1(count: i32, dim: i32, scratch: usize, first: i32, scales: usize): void {
  sumInt8(1, count, dim, scratch, first, scales);
}
function sumInt8x2(count: i32, dim: i32, scratch: usize, first: i32, scales: usize): void {
  sumInt8(2, count, dim, scratch, first, scales);
}
function sumInt8x3(count: i32, dim: i32, scratch: usize, first: i32, scales: usize): void {
  sumInt8(3, count, dim, scratch, first, scales);
}
function sumInt8x4(count: i32, dim: i32, scratch: usize, first: i32, scales: usize): void {
  sumInt8(4, count, dim, scratch, first, scales);
}

/** Adds the weighted sums over the block's pages of int8 values (S_VALUES) to all rows of the output. */
export function sumPagesInt8(count: i32, dim: i32, group: i32, scratch: usize, scales: usize): void {
  let first = 0;
  while (first < group) {
    const n = group - first;
    const s = scales + (<usize>first << 2);
    if (n >= 6 || n == 4) {
      sumInt8x4(count, dim, scratch, first, s);
      first += 4;
    } else if (n >= 3) {
      sumInt8x3(count, dim, scratch, first, s);
      first += 3;
    } else if (n == 2) {
      sumInt8x2(count, dim, scratch, first, s);
      first += 2;
    } else {
      sumInt8x1(count, dim, scratch, first, s);
      first += 1;
    }
  }
}

/** Adds N queries' weighted sums over the slots in `mask` of a page of float32 values to their rows of the output. */
// @ts-ignore: decorator
@inline
function sumFloat(N: i32, page: usize, dim: i32, weights: usize, out: usize, mask: u32): void {
  const bytes = <usize>dim << 2;
  const end = out + bytes;
  for (; out < end; out += 32, page += 512) {
    let a0 = v128.load(out);
    let a1 = v128.load(out, 16);
    let b0 = N > 1 ? v128.load(out, OUT_ROW) : a0;
    let b1 = N > 1 ? v128.load(out, OUT_ROW + 16) : a0;
    let c0 = N > 2 ? v128.load(out, 2 * OUT_ROW) : a0;
    let c1 = N > 2 ? v128.load(out, 2 * OUT_ROW + 16) : a0;
    let d0 = N > 3 ? v128.load(out, 3 * OUT_ROW) : a0;
    let d1 = N > 3 ? v128.load(out, 3 * OUT_ROW + 16) : a0;
    for (let m = mask; m != 0; m &= m - 1) {
      const slot = <usize>ctz(m);
      const v = page + (slot << 5);
      const w = weights + (slot << 2);
      const t = v128.load(v);
      const r = v128.load(v, 16);
      const x = v128.load32_splat(w);
      a0 = mulAdd(a0, t, x);
      a1 = mulAdd(a1, r, x);
      if (N > 1) {
        const y = v128.load32_splat(w, LOGIT_ROW);
        b0 = mulAdd(b0, t, y);
        b1 = mulAdd(b1, r, y);
      }
      if (N > 2) {
        const z = v128.load32_splat(w, 2 * LOGIT_ROW);
        c0 = mulAdd(c0, t, z);
        c1 = mulAdd(c1, r, z);
      }
      if (N > 3) {
        const u = v128.load32_splat(w, 3 * LOGIT_ROW);
        d0 = mulAdd(d0, t, u);
        d1 = mulAdd(d1, r, u);
      }
    }
    v128.store(out, a0);
    v128.store(out, a1, 16);
    if (N > 1) {
      v128.store(out, b0, OUT_ROW);
      v128.store(out, b1, OUT_ROW + 16);
    }
    if (N > 2) {
      v128.store(out, c0, 2 * OUT_ROW);
      v128.store(out, c1, 2 * OUT_ROW + 16);
    }
    if (N > 3) {
      v128.store(out, d0, 3 * OUT_ROW);
      v128.store(out, d1, 3 * OUT_ROW + 16);
    }
  }
}

function sumFloatx1(page: usize, dim: i32, weights: usize, out: usize, mask: u32): void {
  sumFloat(1, page, dim, weights, out, mask);
}
function sumFloatx2(page: usize, dim: i32, weights: usize, out: usize, mask: u32): void {
  sumFloat(2, page, dim, weights, out, mask);
}
function sumFloatx3(page: usize, dim: i32, weights: usize, out: usize, mask: u32): void {
  sumFloat(3, page, dim, weights, out, mask);
}
function sumFloatx4(page: usize, dim: i32, weights: usize, out: usize, mask: u32): void {
  sumFloat(4, page, dim, weights, out, mask);
}

/** Adds the weighted sum of the slots in `mask` of a page of float32 values to each query's row of the output. */
export function sumPageFloat(page: usize, dim: i32, group: i32, scratch: usize, slot: usize, mask: u32): void {
  let first = 0;
  while (first < group) {
    const weights = scratch + S_LOGITS + <usize>first * LOGIT_ROW + slot;
    const out = scratch + S_OUT + <usize>first * OUT_ROW;
    const n = group - first;
    if (n >= 6 || n == 4) {
      sumFloatx4(page, dim, weights, out, mask);
      first += 4;
    } else if (n >= 3) {
      sumFloatx3(page, dim, weights, out, mask);
      first += 3;
    } else if (n == 2) {
      sumFloatx2(page, dim, weights, out, mask);
      first += 2;
    } else {
      sumFloatx1(page, dim, weights, out, mask);
      first += 1;
    }
  }
}
