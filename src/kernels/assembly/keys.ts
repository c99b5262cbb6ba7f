import { CODE_ROW, LOGIT_ROW, QUERY_ROW as ROW, S_CODES, S_LOGITS, S_QUERY, S_QUERY_SCALED } from "./layout";
import { bf16High, bf16Low, dotAdd, mulAdd } from "./math";

// A page of int8 keys: middle bf16 [D], step bf16 [D], codes i8 [D/8][4 pairs][16 tokens][2 channels]; key = middle +
// step * code. A pair is channels c and c + 4 of a group of 8: that is how two vectors of queries interleave.
// A page of float32 keys: f32 [D][16 tokens].

/** Widens `largest` [D] to the page's steps. */
export function maxSteps(page: usize, dim: i32, largest: usize): void {
  let from = page + <usize>(dim * 2);
  const end = from + <usize>(dim * 2);
  while (from < end) {
    const s = v128.load(from);
    v128.store(largest, f32x4.pmax(v128.load(largest), bf16Low(s)));
    v128.store(largest, f32x4.pmax(v128.load(largest, 16), bf16High(s)), 16);
    from += 16;
    largest += 32;
  }
}

/** Codes of 8 channels of one query, rounded by adding 1.5 * 2^23, which leaves the integer in a float's low bits. */
// @ts-ignore: decorator
@inline
function codesOf(a: v128, b: v128, s0: v128, s1: v128): v128 {
  const magic = f32x4.splat(12582912.0);
  const low = f32x4.add(f32x4.mul(a, s0), magic);
  const high = i32x4.shl(f32x4.add(f32x4.mul(b, s1), magic), 16);
  return v128.shuffle<u16>(low, high, 0, 9, 2, 11, 4, 13, 6, 15);
}

// @ts-ignore: decorator
@inline
function sum4(x: v128): v128 {
  const y = f32x4.add(x, v128.shuffle<u32>(x, x, 2, 3, 0, 1));
  return f32x4.add(y, v128.shuffle<u32>(y, y, 1, 0, 3, 2));
}

// @ts-ignore: decorator
@inline
function logits(acc: v128, scale: v128, offset: v128): v128 {
  return f32x4.add(f32x4.mul(f32x4.convert_i32x4_s(acc), scale), offset);
}

/**
 * Logits of N queries (from query `first` of the group) against a page of int8 keys. `scales` f32 [8]: what a unit of
 * the integer dot product is worth for each query.
 */
// @ts-ignore: decorator
@inline
function scoreInt8(N: i32, page: usize, dim: i32, scratch: usize, first: i32, slot: usize, scales: usize): void {
  const base = scratch + <usize>first * ROW;
  const codes = scratch + S_CODES + <usize>first * CODE_ROW;
  const zero = i32x4.splat(0);
  let o0 = zero;
  let o1 = zero;
  let o2 = zero;
  let o3 = zero;
  let header = page;
  const steps = <usize>(dim << 1);
  let q = base;
  let c = codes;
  const last = codes + steps;
  while (c < last) {
    const m = v128.load(header);
    const s = v128.load(header + steps);
    const m0 = bf16Low(m);
    const m1 = bf16High(m);
    const s0 = bf16Low(s);
    const s1 = bf16High(s);
    v128.store(c, codesOf(v128.load(q, S_QUERY_SCALED), v128.load(q, S_QUERY_SCALED + 16), s0, s1));
    o0 = mulAdd(mulAdd(o0, v128.load(q, S_QUERY), m0), v128.load(q, S_QUERY + 16), m1);
    if (N > 1) {
      v128.store(c, codesOf(v128.load(q, S_QUERY_SCALED + ROW), v128.load(q, S_QUERY_SCALED + 16 + ROW), s0, s1), CODE_ROW);
      o1 = mulAdd(mulAdd(o1, v128.load(q, S_QUERY + ROW), m0), v128.load(q, S_QUERY + 16 + ROW), m1);
    }
    if (N > 2) {
      v128.store(c, codesOf(v128.load(q, S_QUERY_SCALED + 2 * ROW), v128.load(q, S_QUERY_SCALED + 16 + 2 * ROW), s0, s1), 2 * CODE_ROW);
      o2 = mulAdd(mulAdd(o2, v128.load(q, S_QUERY + 2 * ROW), m0), v128.load(q, S_QUERY + 16 + 2 * ROW), m1);
    }
    if (N > 3) {
      v128.store(c, codesOf(v128.load(q, S_QUERY_SCALED + 3 * ROW), v128.load(q, S_QUERY_SCALED + 16 + 3 * ROW), s0, s1), 3 * CODE_ROW);
      o3 = mulAdd(mulAdd(o3, v128.load(q, S_QUERY + 3 * ROW), m0), v128.load(q, S_QUERY + 16 + 3 * ROW), m1);
    }
    header += 16;
    q += 32;
    c += 16;
  }
  o0 = sum4(o0);
  o1 = sum4(o1);
  o2 = sum4(o2);
  o3 = sum4(o3);
  const out = scratch + S_LOGITS + <usize>first * LOGIT_ROW + slot;
  const k0 = v128.load32_splat(scales);
  const k1 = v128.load32_splat(scales, 4);
  const k2 = v128.load32_splat(scales, 8);
  const k3 = v128.load32_splat(scales, 12);
  // The loops are not unrolled: V8 moves the loads of a block to its start, and more of them than registers would spill.
  if (N <= 2) {
    let a0 = zero;
    let a1 = zero;
    let a2 = zero;
    let a3 = zero;
    let b0 = zero;
    let b1 = zero;
    let b2 = zero;
    let b3 = zero;
    let k = header + steps;
    for (c = codes; c < last; c += 4, k += 32) {
      const x = v128.load32_splat(c);
      const t0 = v128.load8x8_s(k);
      const t1 = v128.load8x8_s(k, 8);
      const t2 = v128.load8x8_s(k, 16);
      const t3 = v128.load8x8_s(k, 24);
      a0 = dotAdd(a0, t0, x);
      a1 = dotAdd(a1, t1, x);
      a2 = dotAdd(a2, t2, x);
      a3 = dotAdd(a3, t3, x);
      if (N > 1) {
        const y = v128.load32_splat(c, CODE_ROW);
        b0 = dotAdd(b0, t0, y);
        b1 = dotAdd(b1, t1, y);
        b2 = dotAdd(b2, t2, y);
        b3 = dotAdd(b3, t3, y);
      }
    }
    v128.store(out, logits(a0, k0, o0));
    v128.store(out, logits(a1, k0, o0), 16);
    v128.store(out, logits(a2, k0, o0), 32);
    v128.store(out, logits(a3, k0, o0), 48);
    if (N > 1) {
      v128.store(out, logits(b0, k1, o1), LOGIT_ROW);
      v128.store(out, logits(b1, k1, o1), LOGIT_ROW + 16);
      v128.store(out, logits(b2, k1, o1), LOGIT_ROW + 32);
      v128.store(out, logits(b3, k1, o1), LOGIT_ROW + 48);
    }
    return;
  }
  // 3 and 4 queries: eight tokens at a time, so that sums, queries and keys stay in 15 registers
  for (let half: usize = 0; half < 32; half += 16) {
    let a0 = zero;
    let a1 = zero;
    let b0 = zero;
    let b1 = zero;
    let c0 = zero;
    let c1 = zero;
    let d0 = zero;
    let d1 = zero;
    let k = header + steps + half;
    for (c = codes; c < last; c += 4, k += 32) {
      const t = v128.load8x8_s(k);
      const w = v128.load8x8_s(k, 8);
      const x = v128.load32_splat(c);
      a0 = dotAdd(a0, t, x);
      a1 = dotAdd(a1, w, x);
      const y = v128.load32_splat(c, CODE_ROW);
      b0 = dotAdd(b0, t, y);
      b1 = dotAdd(b1, w, y);
      const z = v128.load32_splat(c, 2 * CODE_ROW);
      c0 = dotAdd(c0, t, z);
      c1 = dotAdd(c1, w, z);
      if (N > 3) {
        const u = v128.load32_splat(c, 3 * CODE_ROW);
        d0 = dotAdd(d0, t, u);
        d1 = dotAdd(d1, w, u);
      }
    }
    const to = out + half * 2;
    v128.store(to, logits(a0, k0, o0));
    v128.store(to, logits(a1, k0, o0), 16);
    v128.store(to, logits(b0, k1, o1), LOGIT_ROW);
    v128.store(to, logits(b1, k1, o1), LOGIT_ROW + 16);
    v128.store(to, logits(c0, k2, o2), 2 * LOGIT_ROW);
    v128.store(to, logits(c1, k2, o2), 2 * LOGIT_ROW + 16);
    if (N > 3) {
      v128.store(to, logits(d0, k3, o3), 3 * LOGIT_ROW);
      v128.store(to, logits(d1, k3, o3), 3 * LOGIT_ROW + 16);
    }
  }
}

function scoreInt8x1(page: usize, dim: i32, scratch: usize, first: i32, slot: usize, scales: usize): void {
  scoreInt8(1, page, dim, scratch, first, slot, scales);
}
function scoreInt8x2(page: usize, dim: i32, scratch: usize, first: i32, slot: usize, scales: usize): void {
  scoreInt8(2, page, dim, scratch, first, slot, scales);
}
function scoreInt8x3(page: usize, dim: i32, scratch: usize, first: i32, slot: usize, scales: usize): void {
  scoreInt8(3, page, dim, scratch, first, slot, scales);
}
function scoreInt8x4(page: usize, dim: i32, scratch: usize, first: i32, slot: usize, scales: usize): void {
  scoreInt8(4, page, dim, scratch, first, slot, scales);
}

/** Logits of all queries of a group against a page of int8 keys, into column `slot` (bytes) of the block's rows. */
export function scorePageInt8(page: usize, dim: i32, group: i32, scratch: usize, slot: usize, scales: usize): void {
  let first = 0;
  while (first < group) {
    const n = group - first;
    const s = scales + (<usize>first << 2);
    if (n >= 6 || n == 4) {
      scoreInt8x4(page, dim, scratch, first, slot, s);
      first += 4;
    } else if (n >= 3) {
      scoreInt8x3(page, dim, scratch, first, slot, s);
      first += 3;
    } else if (n == 2) {
      scoreInt8x2(page, dim, scratch, first, slot, s);
      first += 2;
    } else {
      scoreInt8x1(page, dim, scratch, first, slot, s);
      first += 1;
    }
  }
}

/** Logits of N queries against a page of float32 keys, eight tokens at a time. */
// @ts-ignore: decorator
@inline
function scoreFloat(N: i32, page: usize, dim: i32, query: usize, out: usize): void {
  const zero = f32x4.splat(0);
  const end = query + (<usize>dim << 2);
  for (let half: usize = 0; half < 64; half += 32) {
    let a0 = zero;
    let a1 = zero;
    let b0 = zero;
    let b1 = zero;
    let c0 = zero;
    let c1 = zero;
    let d0 = zero;
    let d1 = zero;
    let k = page + half;
    for (let q = query; q < end; q += 4, k += 64) {
      const t = v128.load(k);
      const w = v128.load(k, 16);
      const x = v128.load32_splat(q);
      a0 = mulAdd(a0, t, x);
      a1 = mulAdd(a1, w, x);
      if (N > 1) {
        const y = v128.load32_splat(q, ROW);
        b0 = mulAdd(b0, t, y);
        b1 = mulAdd(b1, w, y);
      }
      if (N > 2) {
        const z = v128.load32_splat(q, 2 * ROW);
        c0 = mulAdd(c0, t, z);
        c1 = mulAdd(c1, w, z);
      }
      if (N > 3) {
        const u = v128.load32_splat(q, 3 * ROW);
        d0 = mulAdd(d0, t, u);
        d1 = mulAdd(d1, w, u);
      }
    }
    const to = out + half;
    v128.store(to, a0);
    v128.store(to, a1, 16);
    if (N > 1) {
      v128.store(to, b0, LOGIT_ROW);
      v128.store(to, b1, LOGIT_ROW + 16);
    }
    if (N > 2) {
      v128.store(to, c0, 2 * LOGIT_ROW);
      v128.store(to, c1, 2 * LOGIT_ROW + 16);
    }
    if (N > 3) {
      v128.store(to, d0, 3 * LOGIT_ROW);
      v128.store(to, d1, 3 * LOGIT_ROW + 16);
    }
  }
}

function scoreFloatx1(page: usize, dim: i32, query: usize, out: usize): void {
  scoreFloat(1, page, dim, query, out);
}
function scoreFloatx2(page: usize, dim: i32, query: usize, out: usize): void {
  scoreFloat(2, page, dim, query, out);
}
function scoreFloatx3(page: usize, dim: i32, query: usize, out: usize): void {
  scoreFloat(3, page, dim, query, out);
}
function scoreFloatx4(page: usize, dim: i32, query: usize, out: usize): void {
  scoreFloat(4, page, dim, query, out);
}

/** Logits of all queries of a group against a page of float32 keys. */
export function scorePageFloat(page: usize, dim: i32, group: i32, scratch: usize, slot: usize): void {
  let first = 0;
  while (first < group) {
    const query = scratch + S_QUERY + <usize>first * ROW;
    const out = scratch + S_LOGITS + <usize>first * LOGIT_ROW + slot;
    const n = group - first;
    if (n >= 6 || n == 4) {
      scoreFloatx4(page, dim, query, out);
      first += 4;
    } else if (n >= 3) {
      scoreFloatx3(page, dim, query, out);
      first += 3;
    } else if (n == 2) {
      scoreFloatx2(page, dim, query, out);
      first += 2;
    } else {
      scoreFloatx1(page, dim, query, out);
      first += 1;
    }
  }
}
