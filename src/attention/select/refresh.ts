/** A choice that holds for some steps: part of a method's state, so plain data. */
export interface Held<T> {
  /** Absolute position of the row that chose. */
  readonly at: number;
  readonly value: T;
}

/**
 * The choice of a layer, made anew when it is `interval` steps old (1: at every step) or was made at `position` or behind it,
 * which happens after a rollback of the text alone. What a held choice cannot know, the tokens since, the caller adds.
 */
export function heldChoice<T>(
  choices: Map<number, Held<T>>,
  layer: number,
  position: number,
  interval: number,
  choose: () => T,
): T {
  const held = choices.get(layer);
  if (held && position > held.at && position - held.at < interval) return held.value;
  const value = choose();
  if (interval > 1) choices.set(layer, { at: position, value });
  return value;
}

/** Chosen entries (ascending) with those that came since: `before` entries there were when they were chosen. */
export function withNewer(chosen: Int32Array, before: number, now: number): Int32Array {
  if (now <= before) return chosen;
  const all = new Int32Array(chosen.length + now - before);
  all.set(chosen);
  for (let i = before; i < now; i++) all[chosen.length + i - before] = i;
  return all;
}
