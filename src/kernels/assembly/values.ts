import { LOGIT_ROW, OUT_ROW, S_LOGITS, S_OUT, S_VALUES, S_WEIGHTS, WEIGHT_ROW } from "./layout";
import { dotAdd, mulAdd } from "./math";

// A page of int8 values: codes i8 [Dv/8][8 token pairs][8 channels][2 tokens], scale f32 [16]; value = scale * code.
// A page of float32 values: f32 [16][Dv].

// @ts-ignore: decorator
@inline
function addTo(to: usize, acc: v128, scale: v128): void {
  v128.store(to, mulAdd(v128.load(to), f32x4.convert_i32x4_s(acc), scale));
}

/** Adds N queries' weighted sums over `count` pages of int8 values to their rows of the output. */
// @ts-ignore: decorator
@inline
function sumInt8(N: i32, count: i32, dim: i32, scratch: usize, first: i32, scales: usize): void {
  const zero = i32x4.splat(0);
  const weights = scratch + S_WEIGHTS + <usize>first * WEIGHT_ROW;
  let out = scratch + S_OUT + <usize>first * OUT_ROW;
  const list = scratch + S_VALUES;
  const end = list + (<usize>count << 3);
  const codes = <usize>(dim << 4);
  for (let at: usize = 0; at < codes; at += 128, out += 32) {
    let a0 = zero;
    let a1 = zero;
    let b0 = zero;
    let b1 = zero;
    let c0 = zero;
    let c1 = zero;
    let d0 = zero;
    let d1 = zero;
    for (let i = list; i < end; i += 8) {
      const v = <usize>load<u32>(i) + at;
      const w = weights + <usize>load<u32>(i, 4);
      let t = v128.load8x8_s(v);
      let r = v128.load8x8_s(v, 8);
      let x = v128.load32_splat(w);
      a0 = dotAdd(a0, t, x);
      a1 = dotAdd(a1, r, x);
      if (N > 1) {
        x = v128.load32_splat(w, WEIGHT_ROW);
        b0 = dotAdd(b0, t, x);
        b1 = dotAdd(b1, r, x);
      }
      if (N > 2) {
        x = v128.load32_splat(w, 2 * WEIGHT_ROW);
        c0 = dotAdd(c0, t, x);
        c1 = dotAdd(c1, r, x);
      }
      if (N > 3) {
        x = v128.load32_splat(w, 3 * WEIGHT_ROW);
        d0 = dotAdd(d0, t, x);
        d1 = dotAdd(d1, r, x);
      }
      t = v128.load8x8_s(v, 16);
      r = v128.load8x8_s(v, 24);
      x = v128.load32_splat(w, 4);
      a0 = dotAdd(a0, t, x);
      a1 = dotAdd(a1, r, x);
      if (N > 1) {
        x = v128.load32_splat(w, WEIGHT_ROW + 4);
        b0 = dotAdd(b0, t, x);
        b1 = dotAdd(b1, r, x);
      }
      if (N > 2) {
        x = v128.load32_splat(w, 2 * WEIGHT_ROW + 4);
        c0 = dotAdd(c0, t, x);
        c1 = dotAdd(c1, r, x);
      }
      if (N > 3) {
        x = v128.load32_splat(w, 3 * WEIGHT_ROW + 4);
        d0 = dotAdd(d0, t, x);
        d1 = dotAdd(d1, r, x);
      }
      t = v128.load8x8_s(v, 32);
      r = v128.load8x8_s(v, 40);
      x = v128.load32_splat(w, 8);
      a0 = dotAdd(a0, t, x);
      a1 = dotAdd(a1, r, x);
      if (N > 1) {
        x = v128.load32_splat(w, WEIGHT_ROW + 8);
        b0 = dotAdd(b0, t, x);
        b1 = dotAdd(b1, r, x);
      }
      if (N > 2) {
        x = v128.load32_splat(w, 2 * WEIGHT_ROW + 8);
        c0 = dotAdd(c0, t, x);
        c1 = dotAdd(c1, r, x);
      }
      if (N > 3) {
        x = v128.load32_splat(w, 3 * WEIGHT_ROW + 8);
        d0 = dotAdd(d0, t, x);
        d1 = dotAdd(d1, r, x);
      }
      t = v128.load8x8_s(v, 48);
      r = v128.load8x8_s(v, 56);
      x = v128.load32_splat(w, 12);
      a0 = dotAdd(a0, t, x);
      a1 = dotAdd(a1, r, x);
      if (N > 1) {
        x = v128.load32_splat(w, WEIGHT_ROW + 12);
        b0 = dotAdd(b0, t, x);
        b1 = dotAdd(b1, r, x);
      }
      if (N > 2) {
        x = v128.load32_splat(w, 2 * WEIGHT_ROW + 12);
        c0 = dotAdd(c0, t, x);
        c1 = dotAdd(c1, r, x);
      }
      if (N > 3) {
        x = v128.load32_splat(w, 3 * WEIGHT_ROW + 12);
        d0 = dotAdd(d0, t, x);
        d1 = dotAdd(d1, r, x);
      }
      t = v128.load8x8_s(v, 64);
      r = v128.load8x8_s(v, 72);
      x = v128.load32_splat(w, 16);
      a0 = dotAdd(a0, t, x);
      a1 = dotAdd(a1, r, x);
      if (N > 1) {
        x = v128.load32_splat(w, WEIGHT_ROW + 16);
        b0 = dotAdd(b0, t, x);
        b1 = dotAdd(b1, r, x);
      }
      if (N > 2) {
        x = v128.load32_splat(w, 2 * WEIGHT_ROW + 16);
        c0 = dotAdd(c0, t, x);
        c1 = dotAdd(c1, r, x);
      }
      if (N > 3) {
        x = v128.load32_splat(w, 3 * WEIGHT_ROW + 16);
        d0 = dotAdd(d0, t, x);
        d1 = dotAdd(d1, r, x);
      }
      t = v128.load8x8_s(v, 80);
      r = v128.load8x8_s(v, 88);
      x = v128.load32_splat(w, 20);
      a0 = dotAdd(a0, t, x);
      a1 = dotAdd(a1, r, x);
      if (N > 1) {
        x = v128.load32_splat(w, WEIGHT_ROW + 20);
        b0 = dotAdd(b0, t, x);
        b1 = dotAdd(b1, r, x);
      }
      if (N > 2) {
        x = v128.load32_splat(w, 2 * WEIGHT_ROW + 20);
        c0 = dotAdd(c0, t, x);
        c1 = dotAdd(c1, r, x);
      }
      if (N > 3) {
        x = v128.load32_splat(w, 3 * WEIGHT_ROW + 20);
        d0 = dotAdd(d0, t, x);
        d1 = dotAdd(d1, r, x);
      }
      t = v128.load8x8_s(v, 96);
      r = v128.load8x8_s(v, 104);
      x = v128.load32_splat(w, 24);
      a0 = dotAdd(a0, t, x);
      a1 = dotAdd(a1, r, x);
      if (N > 1) {
        x = v128.load32_splat(w, WEIGHT_ROW + 24);
        b0 = dotAdd(b0, t, x);
        b1 = dotAdd(b1, r, x);
      }
      if (N > 2) {
        x = v128.load32_splat(w, 2 * WEIGHT_ROW + 24);
        c0 = dotAdd(c0, t, x);
        c1 = dotAdd(c1, r, x);
      }
      if (N > 3) {
        x = v128.load32_splat(w, 3 * WEIGHT_ROW + 24);
        d0 = dotAdd(d0, t, x);
        d1 = dotAdd(d1, r, x);
      }
      t = v128.load8x8_s(v, 112);
      r = v128.load8x8_s(v, 120);
      x = v128.load32_splat(w, 28);
      a0 = dotAdd(a0, t, x);
      a1 = dotAdd(a1, r, x);
      if (N > 1) {
        x = v128.load32_splat(w, WEIGHT_ROW + 28);
        b0 = dotAdd(b0, t, x);
        b1 = dotAdd(b1, r, x);
      }
      if (N > 2) {
        x = v128.load32_splat(w, 2 * WEIGHT_ROW + 28);
        c0 = dotAdd(c0, t, x);
        c1 = dotAdd(c1, r, x);
      }
      if (N > 3) {
        x = v128.load32_splat(w, 3 * WEIGHT_ROW + 28);
        d0 = dotAdd(d0, t, x);
        d1 = dotAdd(d1, r, x);
      }
    }
    let s = v128.load32_splat(scales);
    addTo(out, a0, s);
    addTo(out + 16, a1, s);
    if (N > 1) {
      s = v128.load32_splat(scales, 4);
      addTo(out + OUT_ROW, b0, s);
      addTo(out + OUT_ROW + 16, b1, s);
    }
    if (N > 2) {
      s = v128.load32_splat(scales, 8);
      addTo(out + 2 * OUT_ROW, c0, s);
      addTo(out + 2 * OUT_ROW + 16, c1, s);
    }
    if (N > 3) {
      s = v128.load32_splat(scales, 12);
      addTo(out + 3 * OUT_ROW, d0, s);
      addTo(out + 3 * OUT_ROW + 16, d1, s);
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

/** Adds the weighted sum of the slots in `mask` of a page of float32 values to each query's row of the output. */
export function sumPageFloat(page: usize, dim: i32, group: i32, scratch: usize, slot: usize, mask: u32): void {
  const bytes = <usize>dim << 2;
  for (let g = 0; g < group; g++) {
    const weights = scratch + S_LOGITS + <usize>g * LOGIT_ROW + slot;
    const out = scratch + S_OUT + <usize>g * OUT_ROW;
    for (let at: usize = 0; at < bytes; at += 32) {
      let a = v128.load(out + at);
      let b = v128.load(out + at, 16);
      let v = page + at;
      if (mask == 0xffff) {
        for (let t: usize = 0; t < 64; t += 4, v += bytes) {
          const w = v128.load32_splat(weights + t);
          a = mulAdd(a, v128.load(v), w);
          b = mulAdd(b, v128.load(v, 16), w);
        }
      } else {
        for (let m = mask; m != 0; m &= m - 1) {
          const t = <usize>ctz(m);
          const w = v128.load32_splat(weights + (t << 2));
          a = mulAdd(a, v128.load(v + t * bytes), w);
          b = mulAdd(b, v128.load(v + t * bytes, 16), w);
        }
      }
      v128.store(out + at, a);
      v128.store(out + at, b, 16);
    }
  }
}
