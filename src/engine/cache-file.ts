import { FoveaError } from "../error.js";
import { ENTRY_WORDS, PAGE, SLOT_WORD } from "../kernels/layout.js";
import type { CachePool } from "./cache.js";
import type { LayerCache } from "./cache-layer.js";
import { countBits, type HeadPages, pageAddress } from "./pages.js";
import type { StoredShape } from "./pages-bank.js";

/** Per head: [pages of the table, rows of the open page, 1 when positions are listed]. */
type HeadHeader = [pages: number, fill: number, positions: 0 | 1];

interface Header {
  version: 1;
  type: string;
  layers: { kvHeads: number; keyDim: number; valueDim: number; seen: number; heads: HeadHeader[] }[];
}

/** A JSON header, then a chunk a layer: for each head slots words, positions, and each page's keys and values. */
export function serializeCache(pool: CachePool, layers: readonly LayerCache[]): Uint8Array[] {
  const header: Header = {
    version: 1,
    type: pool.type,
    layers: layers.map((layer) => ({
      kvHeads: layer.shape.kvHeads,
      keyDim: layer.shape.keyDim,
      valueDim: layer.shape.valueDim,
      seen: layer.seen,
      heads: layer.pages.map((h): HeadHeader => [h.count, h.fill, h.explicitPositions ? 1 : 0]),
    })),
  };
  const chunks = [new TextEncoder().encode(JSON.stringify(header))];
  for (const layer of layers) {
    const { shape } = layer;
    const { memory } = layer.bank;
    let size = 0;
    for (const h of layer.pages) size += headBytes(shape, h.count, h.fill, h.explicitPositions ? h.live : 0);
    const out = new Uint8Array(size);
    let at = 0;
    for (const h of layer.pages) {
      const table = h.table >>> 2;
      const slots = new Uint32Array(h.count);
      for (let p = 0; p < h.count; p++) slots[p] = memory.u32[table + p * ENTRY_WORDS + SLOT_WORD];
      out.set(new Uint8Array(slots.buffer), at);
      at += slots.byteLength;
      if (h.explicitPositions) {
        const positions = h.positions.slice();
        out.set(new Uint8Array(positions.buffer), at);
        at += positions.byteLength;
      }
      eachPage(shape, h, memory.u32, (address, bytes) => {
        out.set(memory.u8.subarray(address, address + bytes), at);
        at += bytes;
      });
    }
    chunks.push(out);
  }
  return chunks;
}

/** Calls `visit` for each page's keys and values, in order. */
function eachPage(
  shape: StoredShape,
  head: HeadPages,
  words: Uint32Array,
  visit: (address: number, bytes: number) => void,
): void {
  const table = head.table >>> 2;
  for (let p = 0; p < head.count; p++) {
    const open = p >= head.sealed;
    visit(pageAddress(words[table + p * ENTRY_WORDS]), open ? shape.openKeyBytes : shape.keyBytes);
    visit(pageAddress(words[table + p * ENTRY_WORDS + 1]), open ? shape.openValueBytes : shape.valueBytes);
  }
}

function headBytes(shape: StoredShape, pages: number, fill: number, positions: number): number {
  const open = fill > 0 ? 1 : 0;
  return (
    pages * 4 +
    positions * 4 +
    (pages - open) * (shape.keyBytes + shape.valueBytes) +
    open * (shape.openKeyBytes + shape.openValueBytes)
  );
}

function damaged(why: string): FoveaError {
  return new FoveaError("bad-file", `not a usable saved cache: ${why}`, { hint: "read the text again and save it" });
}

/** Fills empty layers from what `serializeCache` wrote. On an error the caller releases them. */
export function deserializeCache(pool: CachePool, chunks: readonly Uint8Array[], layers: readonly LayerCache[]): void {
  let header: Header;
  try {
    header = JSON.parse(new TextDecoder().decode(chunks[0]));
  } catch (cause) {
    throw new FoveaError("bad-file", "not a usable saved cache: its header is no JSON", { cause });
  }
  if (header?.version !== 1 || !Array.isArray(header.layers)) throw damaged("its header is not one of version 1");
  if (header.type !== pool.type)
    throw new FoveaError("mismatch", `the saved cache is of type ${header.type}; this model's is ${pool.type}`, {
      hint: "open it with the cache type that it was made with",
    });
  if (header.layers.length !== layers.length)
    throw new FoveaError(
      "mismatch",
      `the saved cache has ${header.layers.length} layers; this model has ${layers.length}`,
    );
  if (chunks.length !== layers.length + 1)
    throw damaged(`it has ${chunks.length} parts instead of ${layers.length + 1}`);
  for (const [l, layer] of layers.entries()) readLayer(l, layer, header.layers[l], chunks[l + 1]);
}

function readLayer(l: number, layer: LayerCache, saved: Header["layers"][number], chunk: Uint8Array): void {
  const { shape } = layer;
  for (const key of ["kvHeads", "keyDim", "valueDim"] as const)
    if (saved?.[key] !== shape[key])
      throw new FoveaError(
        "mismatch",
        `layer ${l} of the saved cache has ${key} ${saved?.[key]}; this model has ${shape[key]}`,
      );
  if (!Number.isInteger(saved.seen) || saved.seen < 0 || saved.seen > 2 ** 31 - 1 || !Array.isArray(saved.heads))
    throw damaged(`layer ${l} has a damaged header`);
  if (saved.heads.length !== shape.kvHeads) throw damaged(`layer ${l} has ${saved.heads.length} heads`);
  // a copy by the constructor: a Buffer's own slice() would be a view of the same bytes
  const bytes = chunk.byteOffset % 4 === 0 ? chunk : new Uint8Array(chunk);
  let at = 0;
  const words = (count: number) => {
    if (count * 4 > bytes.length - at) throw damaged(`layer ${l} is cut short`);
    at += count * 4;
    return new Uint32Array(bytes.buffer, bytes.byteOffset + at - count * 4, count).slice();
  };
  for (const [h, head] of layer.pages.entries()) {
    const [pages, fill, listed] = Array.isArray(saved.heads[h]) ? saved.heads[h] : [-1, 0, 0];
    const whole = (x: unknown, most: number) => typeof x === "number" && Number.isInteger(x) && x >= 0 && x <= most;
    if (
      !whole(pages, bytes.length / 4) ||
      !whole(fill, PAGE - 1) ||
      (listed !== 0 && listed !== 1) ||
      (fill > 0 && pages === 0)
    )
      throw damaged(`head ${h} of layer ${l} has a damaged header`);
    const slots = words(pages);
    let live = 0;
    for (let p = 0; p < pages; p++) {
      const stored = slots[p] >>> 16;
      const rows = p === pages - 1 && fill > 0 ? fill : PAGE;
      if (stored === 0 || stored !== (slots[p] & 0xffff) || stored >= 2 ** rows)
        throw damaged(`page ${p} of head ${h} of layer ${l} is no page`);
      live += countBits(stored);
    }
    if (live > saved.seen) throw damaged(`head ${h} of layer ${l} holds more entries than it has seen`);
    let positions: Int32Array | undefined;
    if (listed) {
      positions = new Int32Array(words(live).buffer);
      for (let i = 0; i < live; i++)
        if (positions[i] < 0 || positions[i] >= saved.seen || (i > 0 && positions[i] <= positions[i - 1]))
          throw damaged(`the positions of head ${h} of layer ${l} do not ascend`);
    }
    if (headBytes(shape, pages, fill, 0) - pages * 4 > bytes.length - at) throw damaged(`layer ${l} is cut short`);
    head.restore(slots, fill, positions);
    const { memory } = layer.bank;
    eachPage(shape, head, memory.u32, (address, size) => {
      memory.u8.set(bytes.subarray(at, at + size), address);
      at += size;
    });
  }
  if (at !== bytes.length) throw damaged(`${bytes.length - at} bytes stand after the end of layer ${l}`);
  layer.restoreSeen(saved.seen);
}
