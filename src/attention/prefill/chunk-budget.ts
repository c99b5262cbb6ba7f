/**
 * Ranges of the `budget` tokens to read of [0, last), ascending: the newest `local`, the first `global`, then the tokens of
 * the best chunks, the last of which may be cut.
 */
export function bestTokens(
  scores: Float32Array,
  starts: readonly number[],
  last: number,
  budget: number,
  { local, global }: { readonly local: number; readonly global: number },
): [number, number][] {
  const newest = Math.max(0, last - Math.min(local, budget));
  const oldest = Math.min(global, Math.max(0, budget - (last - newest)), newest);
  const chosen: [number, number][] = [
    [0, oldest],
    [newest, last],
  ];
  let left = budget - oldest - (last - newest);
  const order = Array.from(starts, (_, i) => i).sort((a, b) => scores[b] - scores[a] || a - b);
  for (const c of order) {
    if (left <= 0) break;
    const from = Math.max(oldest, starts[c]);
    const to = Math.min(newest, starts[c + 1] ?? last, from + left);
    if (to <= from) continue;
    chosen.push([from, to]);
    left -= to - from;
  }
  return chosen.filter(([a, b]) => a < b).sort(([a], [b]) => a - b);
}
