/** How many of ascending positions are below `limit`: the index of the first that is `limit` or later. */
export function entriesBelow(positions: Int32Array | Float32Array, limit: number): number {
  let from = 0;
  let to = positions.length;
  while (from < to) {
    const middle = (from + to) >> 1;
    if (positions[middle] < limit) from = middle + 1;
    else to = middle;
  }
  return from;
}
