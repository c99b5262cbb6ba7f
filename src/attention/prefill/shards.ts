import type { AttentionStep, Partial } from "../../engine/hooks.js";
import { mergeParts } from "../../kernels/index.js";

/** Rows that ask the holders of a context: rotated queries [T, Hq, D] of one layer, at these positions. */
export interface ShardQuery {
  readonly layer: number;
  readonly rows: number;
  readonly positions: Int32Array;
  readonly q: Float32Array;
}

/**
 * A holder of a part of the cached context, wherever it runs: it answers rows with attention over what it holds. What
 * goes over the wire per row and layer is a query there, one vector and one number per head back.
 */
export interface ContextShard {
  attend(query: ShardQuery): Promise<Partial>;
}

/** Attention over the union of what the shards hold, exactly. `valueDim`: width of a head's values. */
export async function attendShards(
  query: ShardQuery,
  shards: readonly ContextShard[],
  valueDim: number,
): Promise<Partial> {
  return mergeParts(await Promise.all(shards.map((shard) => shard.attend(query))), valueDim);
}

/** The shard of this machine: entries [start, end) of the cache of a step. */
export function localShard(step: AttentionStep, [start, end]: readonly [number, number]): ContextShard {
  return { attend: ({ q }) => step.attend({ query: q, entries: { ranges: [[start, end]] } }) };
}

/** [0, length) in so many ranges of like size, or fewer where there are not enough entries; never none. */
export function splitEntries(length: number, count: number): [start: number, end: number][] {
  const parts = Math.max(1, Math.min(count, length));
  const at = (i: number) => Math.floor((length * i) / parts);
  return Array.from({ length: parts }, (_, i) => [at(i), at(i + 1)]);
}
