/** Attention over a part of the keys: outputs [n, Dv] and log-sum-exps [n], -Infinity where nothing was read. */
export interface AttendedPart {
  readonly output: Float32Array;
  readonly lse: Float32Array;
}

/**
 * Attention over the union of disjoint parts, exactly: outputs are averaged with weights exp(lse). Always in the order
 * given. A row that no part reads gives 0 and -Infinity.
 */
export function mergeParts(parts: readonly AttendedPart[], valueDim: number): AttendedPart {
  const rows = parts[0].lse.length;
  const output = new Float32Array(rows * valueDim);
  const lse = new Float32Array(rows).fill(Number.NEGATIVE_INFINITY);
  for (let r = 0; r < rows; r++) {
    let max = Number.NEGATIVE_INFINITY;
    for (const part of parts) max = Math.max(max, part.lse[r]);
    if (max === Number.NEGATIVE_INFINITY) continue;
    let sum = 0;
    for (const part of parts) sum += Math.exp(part.lse[r] - max);
    for (const part of parts) {
      const weight = Math.exp(part.lse[r] - max) / sum;
      if (weight === 0) continue;
      for (let d = r * valueDim; d < (r + 1) * valueDim; d++) output[d] += weight * part.output[d];
    }
    lse[r] = max + Math.log(sum);
  }
  return { output, lse };
}
