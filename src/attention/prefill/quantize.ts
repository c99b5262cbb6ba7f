/** Mean of rows x [n, width]. */
export function meanRow(x: Float32Array, width: number): Float32Array {
  const sum = new Float64Array(width);
  for (let i = 0; i < x.length; i++) sum[i % width] += x[i];
  const rows = Math.max(1, x.length / width);
  return Float32Array.from(sum, (s) => s / rows);
}

/**
 * x [n, D] through signed 4-bit integers: each row becomes code * scale with codes from -7 to 7 and scale = max|x| / 7,
 * so that no element moves by more than scale / 2.
 */
export function quantize4(x: Float32Array, dim: number): Float32Array {
  const out = new Float32Array(x.length);
  for (let from = 0; from < x.length; from += dim) {
    let max = 0;
    for (let i = from; i < from + dim; i++) max = Math.max(max, Math.abs(x[i]));
    const scale = max / 7;
    if (scale > 0) for (let i = from; i < from + dim; i++) out[i] = Math.round(x[i] / scale) * scale;
  }
  return out;
}
