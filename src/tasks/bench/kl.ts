/** KL divergence of the distribution of `logits` from that of `reference`, in nats: how far a method is from full attention. */
export function klDivergence(reference: Float32Array, logits: Float32Array): number {
  const [p, q] = [logNormaliser(reference), logNormaliser(logits)];
  let sum = 0;
  for (let i = 0; i < reference.length; i++) {
    const log = reference[i] - p;
    sum += Math.exp(log) * (log - (logits[i] - q));
  }
  return Math.max(0, sum);
}

function logNormaliser(logits: Float32Array): number {
  let max = Number.NEGATIVE_INFINITY;
  for (const x of logits) if (x > max) max = x;
  let sum = 0;
  for (const x of logits) sum += Math.exp(x - max);
  return max + Math.log(sum);
}

/** The divergence at the first row of logits [rows, V], and the mean over the rows. */
export function klOfRows(
  reference: Float32Array,
  logits: Float32Array,
  vocab: number,
): { first: number; mean: number } {
  const rows = reference.length / vocab;
  const each = Array.from({ length: rows }, (_, r) =>
    klDivergence(reference.subarray(r * vocab, (r + 1) * vocab), logits.subarray(r * vocab, (r + 1) * vocab)),
  );
  return { first: each[0], mean: each.reduce((a, b) => a + b, 0) / rows };
}
