import type { KeyView } from "../../engine/hooks.js";

export { entriesBelow } from "../../engine/ascending.js";

/**
 * Something made of one head's keys, once for all blocks of rows that are selected for on the same view: a prompt's keys
 * of a layer do not change while its rows attend.
 */
export function perView<T>(make: (view: KeyView, head: number) => T): (view: KeyView, head: number) => T {
  const made = new WeakMap<KeyView, Map<number, T>>();
  return (view, head) => {
    let ofView = made.get(view);
    if (!ofView) made.set(view, (ofView = new Map()));
    let found = ofView.get(head);
    if (found === undefined) ofView.set(head, (found = make(view, head)));
    return found;
  };
}

/** A head's positions and keys [n, D], read out once a view. */
export const headPositions = perView((view, head) => view.positions(head));
export const headKeys = perView((view, head) => view.keys(head));
