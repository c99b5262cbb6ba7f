/** 2^f for f in [-0.5, 0.5]: minimax polynomial of degree 5. */
// @ts-ignore: decorator
@inline
function power(f: v128): v128 {
  let p = f32x4.splat(0.00132647);
  p = f32x4.add(f32x4.mul(p, f), f32x4.splat(0.00967151));
  p = f32x4.add(f32x4.mul(p, f), f32x4.splat(0.05550734));
  p = f32x4.add(f32x4.mul(p, f), f32x4.splat(0.24022242));
  p = f32x4.add(f32x4.mul(p, f), f32x4.splat(0.69314698));
  return f32x4.add(f32x4.mul(p, f), f32x4.splat(1.0));
}

/** exp(x) for four x; relative error below 1e-6; exactly 0 below -87. */
// @ts-ignore: decorator
@inline
export function exp4(x: v128): v128 {
  const t = f32x4.mul(x, f32x4.splat(1.4426950408889634));
  const clamped = f32x4.pmax(f32x4.pmin(t, f32x4.splat(127.0)), f32x4.splat(-126.0));
  const magic = f32x4.splat(12582912.0); // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const shifted = f32x4.add(clamped, magic);
  const f = f32x4.sub(clamped, f32x4.sub(shifted, magic)); // [-0.5, 0.5]
  // the magic's own bits are shifted out
  const result = i32x4.add(power(f), i32x4.shl(shifted, 23));
  return v128.and(result, f32x4.ge(t, f32x4.splat(-126.0)));
}

/** exp(x) for four x <= 0 as the softmax needs it: below -69 it stays 2^-100, which no sum notices. */
// @ts-ignore: decorator
@inline
export function expNegative4(x: v128): v128 {
  const t = f32x4.pmax(f32x4.mul(x, f32x4.splat(1.4426950408889634)), f32x4.splat(-100.0));
  const magic = f32x4.splat(12582912.0);
  const shifted = f32x4.add(t, magic);
  return i32x4.add(power(f32x4.sub(t, f32x4.sub(shifted, magic))), i32x4.shl(shifted, 23));
}

// @ts-ignore: decorator
@inline
export function expf(x: f32): f32 {
  return f32x4.extract_lane(exp4(f32x4.splat(x)), 0);
}

/** ln(x) of a positive normal number, relative error about 1e-7. */
export function logf(x: f32): f32 {
  if (x <= 0) return -Infinity;
  const bits = reinterpret<i32>(x);
  let e = (bits >> 23) - 127;
  let m = reinterpret<f32>((bits & 0x7fffff) | 0x3f800000); // [1, 2)
  if (m > 1.4142135) {
    m *= 0.5;
    e++;
  }
  // ln(m) = 2 atanh(s), s = (m - 1) / (m + 1), in double: this runs once a head and row
  const s = (<f64>m - 1.0) / (<f64>m + 1.0);
  const s2 = s * s;
  const series = 1.0 + s2 * (1.0 / 3.0 + s2 * (1.0 / 5.0 + s2 * (1.0 / 7.0 + s2 * (1.0 / 9.0 + s2 * (1.0 / 11.0)))));
  return <f32>(2.0 * s * series + <f64>e * 0.6931471805599453);
}

/** cap * tanh(x / cap) */
// @ts-ignore: decorator
@inline
export function softcap4(x: v128, cap: v128, twoOverCap: v128): v128 {
  const e = exp4(f32x4.pmin(f32x4.mul(x, twoOverCap), f32x4.splat(60.0)));
  const one = f32x4.splat(1.0);
  return f32x4.mul(cap, f32x4.div(f32x4.sub(e, one), f32x4.add(e, one)));
}

// @ts-ignore: decorator
@inline
export function maxLane(x: v128): f32 {
  return max(
    max(f32x4.extract_lane(x, 0), f32x4.extract_lane(x, 1)),
    max(f32x4.extract_lane(x, 2), f32x4.extract_lane(x, 3)),
  );
}

// @ts-ignore: decorator
@inline
export function sumLanes(x: v128): f32 {
  return (
    f32x4.extract_lane(x, 0) + f32x4.extract_lane(x, 1) + (f32x4.extract_lane(x, 2) + f32x4.extract_lane(x, 3))
  );
}

/** Four f32 from the low / high four bf16 of x. */
// @ts-ignore: decorator
@inline
export function bf16Low(x: v128): v128 {
  return v128.shuffle<u16>(i32x4.splat(0), x, 0, 8, 1, 9, 2, 10, 3, 11);
}
// @ts-ignore: decorator
@inline
export function bf16High(x: v128): v128 {
  return v128.shuffle<u16>(i32x4.splat(0), x, 4, 12, 5, 13, 6, 14, 7, 15);
}

/** a + b * c */
// @ts-ignore: decorator
@inline
export function mulAdd(a: v128, b: v128, c: v128): v128 {
  return f32x4.add(a, f32x4.mul(b, c));
}
// @ts-ignore: decorator
@inline
export function dotAdd(acc: v128, x: v128, y: v128): v128 {
  return i32x4.add(acc, i32x4.dot_i16x8_s(x, y));
}
