import type { Entries, KeyView } from "../../engine/hooks.js";

/**
 * Absolute positions as entries of a KV head's cache (both ascending): layers hold the same entries unless something was
 * evicted, and then positions that are gone are left out.
 */
export function entriesAt(view: KeyView, kvHead: number, positions: Int32Array): Int32Array {
  const held = view.positions(kvHead);
  // nothing was evicted: entry i stands at position i
  if (held.length === 0 || held[held.length - 1] === held.length - 1) return positions;
  const entries: number[] = [];
  for (let i = 0, at = 0; i < positions.length && at < held.length; ) {
    if (held[at] === positions[i]) {
      entries.push(at++);
      i++;
    } else if (held[at] < positions[i]) at++;
    else i++;
  }
  return Int32Array.from(entries);
}

/** Absolute positions of entries of a KV head. */
export function positionsOf(view: KeyView, kvHead: number, entries: Int32Array): Int32Array {
  const held = view.positions(kvHead);
  return entries.map((entry) => held[entry]);
}

/** Lists of tokens, one a head, as entries. */
export function tokenEntries(lists: readonly Int32Array[]): Entries[] {
  return lists.map((tokens) => ({ tokens }));
}

/** The layer that a method chooses anew in where none is given: 0.4 of the way up. */
export function middleLayer(layers: number): number {
  return Math.round(0.4 * layers);
}

/** What a layer chose, for the layers behind it in the same decode step. */
export interface LayerChoice {
  /** Absolute position of the step's row. */
  readonly step: number;
  /** Absolute positions to read, ascending: one list for all heads, or one a KV head, or one a query head. */
  readonly positions: readonly Int32Array[];
}

/** The entries that a choice names in this layer, or undefined where it was made in another step. */
export function chosenEntries(
  choice: LayerChoice | null,
  step: number,
  view: KeyView,
  kvHeads: number,
): Entries[] | undefined {
  if (choice?.step !== step) return undefined;
  const count = Math.max(kvHeads, choice.positions.length);
  return Array.from({ length: count }, (_, i): Entries => {
    const own = choice.positions[Math.floor((i * choice.positions.length) / count)];
    return { tokens: entriesAt(view, Math.floor((i * kvHeads) / count), own) };
  });
}
