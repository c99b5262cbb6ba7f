import { BASE_WORD, ENTRY_WORDS, PAGE, SLOT_WORD } from "../kernels/layout.js";
import type { PagedMemory } from "../kernels/memory.js";
import { type HeadPages, pageAddress } from "./pages.js";
import type { StoredShape } from "./pages-bank.js";

/** Lower and upper bounds of the keys in each page of a head. See `LayerCache.bounds`. */
export interface PageBounds {
  readonly lower: Float32Array;
  readonly upper: Float32Array;
  readonly first: Int32Array;
}

/** An int8 page carries its bounds (middle and step of each channel); those of a float32 page are taken from its keys. */
export function pageBounds(memory: PagedMemory, shape: StoredShape, head: HeadPages): PageBounds {
  const { keyDim, storedKeyDim } = shape;
  const pages = head.count;
  const { u32, f32 } = memory;
  const halves = new Uint16Array(u32.buffer);
  const wide = new Uint32Array(1);
  const bf16 = new Float32Array(wide.buffer);
  const read = (at: number) => {
    wide[0] = halves[at] << 16;
    return bf16[0];
  };
  const lower = new Float32Array(pages * keyDim);
  const upper = new Float32Array(pages * keyDim);
  const first = new Int32Array(pages + 1);
  for (let p = 0, to = 0; p < pages; p++) {
    const entry = (head.table >>> 2) + p * ENTRY_WORDS;
    first[p] = u32[entry + BASE_WORD];
    const live = u32[entry + SLOT_WORD] >>> 16;
    const page = pageAddress(u32[entry]);
    if (u32[entry] & 1) {
      const middles = page >>> 1;
      for (let c = 0; c < keyDim; c++, to++) {
        const middle = read(middles + c);
        const reach = 127 * read(middles + storedKeyDim + c);
        lower[to] = middle - reach;
        upper[to] = middle + reach;
      }
      continue;
    }
    for (let c = 0; c < keyDim; c++, to++) {
      let low = Number.POSITIVE_INFINITY;
      let high = Number.NEGATIVE_INFINITY;
      for (let t = 0; t < PAGE; t++) {
        if (((live >> t) & 1) === 0) continue;
        const x = f32[(page >>> 2) + c * PAGE + t];
        low = Math.min(low, x);
        high = Math.max(high, x);
      }
      lower[to] = low;
      upper[to] = high;
    }
  }
  first[pages] = head.live;
  return { lower, upper, first };
}
