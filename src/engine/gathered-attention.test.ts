import { afterAll, describe, expect, test } from "vitest";
import { plainProducts } from "../attention/plain.js";
import { type AttentionShape, BlockAttention, type KeyBlock, UNSEEN } from "./block-attention.js";
import { combineSelections } from "./compose.js";
import type { KeyView, RowRanges } from "./hooks.js";
import { FloatKeys } from "./key-source.js";
import { limitRanges, rangesOf, rowRanges, withoutBlocks } from "./row-ranges.js";
import { Random } from "./sampling.js";

const blocks = new BlockAttention({ threads: 1 });
afterAll(() => blocks.release());

const random = new Random(5);
const noise = (n: number) => Float32Array.from({ length: n }, () => random.next() * 4 - 2);

/** Attention over listed keys by its definition. `k`, `v`: [Hkv][S][D]. */
function loops(
  { heads, kvHeads, keyDim, valueDim, scale, softcap, window = UNSEEN }: AttentionShape,
  q: Float32Array,
  rowsAt: Int32Array,
  k: Float32Array[],
  v: Float32Array[],
  keysAt: Float32Array[],
  ranges: RowRanges,
) {
  const output = new Float32Array(rowsAt.length * heads * valueDim);
  const lse = new Float32Array(rowsAt.length * heads).fill(Number.NEGATIVE_INFINITY);
  rowsAt.forEach((at, t) => {
    for (let h = 0; h < heads; h++) {
      const kv = Math.floor((h * kvHeads) / heads);
      const logits = new Map<number, number>();
      for (const [start, end] of rangesOf(ranges, Math.floor(t / ranges.rows), h, heads))
        for (let e = start; e < Math.min(end, keysAt[kv].length); e++) {
          const distance = at - keysAt[kv][e];
          if (distance < 0 || distance >= window) continue;
          let dot = 0;
          for (let d = 0; d < keyDim; d++) dot += q[(t * heads + h) * keyDim + d] * k[kv][e * keyDim + d];
          logits.set(e, softcap ? softcap * Math.tanh((dot * scale) / softcap) : dot * scale);
        }
      let sum = 0;
      for (const x of logits.values()) sum += Math.exp(x);
      if (sum === 0) continue;
      lse[t * heads + h] = Math.log(sum);
      for (const [e, x] of logits)
        for (let d = 0; d < valueDim; d++)
          output[(t * heads + h) * valueDim + d] += (Math.exp(x) / sum) * v[kv][e * valueDim + d];
    }
  });
  return { output, lse };
}

function close(a: Float32Array, b: Float32Array) {
  expect(a.length).toBe(b.length);
  for (let i = 0; i < a.length; i++)
    if (a[i] !== b[i] && !(Math.abs(a[i] - b[i]) < 1e-4)) throw new Error(`${a[i]} at ${i}; expected ${b[i]}`);
}

const T = 40;
const S = 64;
const shapes: Record<string, AttentionShape> = {
  grouped: { heads: 6, kvHeads: 2, keyDim: 8, valueDim: 8, scale: 0.3 },
  "capped and windowed": { heads: 4, kvHeads: 4, keyDim: 8, valueDim: 16, scale: 0.3, softcap: 3, window: 21 },
};

/** Rows S-T..S over keys 0..S, tokens first or, with gaps and lengths of its own per head, heads first. */
function setting(shape: AttentionShape, layout: KeyBlock["layout"]) {
  const { kvHeads, keyDim, valueDim, heads } = shape;
  const lengths = Array.from({ length: kvHeads }, (_, h) => (layout === "tokens" ? S : S - h));
  const keysAt = lengths.map((n) => Float32Array.from({ length: n }, (_, i) => (layout === "tokens" ? i : i + S - n)));
  const k = lengths.map((n) => noise(n * keyDim));
  const v = lengths.map((n) => noise(n * valueDim));
  const flat = (x: Float32Array[], dim: number) => {
    const out = new Float32Array(S * kvHeads * dim);
    x.forEach((head, h) => {
      for (let e = 0; e < lengths[h]; e++)
        out.set(head.subarray(e * dim, (e + 1) * dim), (layout === "tokens" ? e * kvHeads + h : h * S + e) * dim);
    });
    return { data: out, keys: S, layout };
  };
  const positions =
    layout === "tokens"
      ? keysAt[0]
      : Float32Array.from(keysAt.flatMap((at) => [...at, ...Array(S - at.length).fill(UNSEEN)]));
  const source = new FloatKeys(shape, blocks, flat(k, keyDim), flat(v, valueDim), positions, lengths);
  const rowsAt = Int32Array.from({ length: T }, (_, i) => S - T + i);
  return { source, query: { q: noise(T * heads * keyDim), rows: T, positions: rowsAt }, k, v, keysAt };
}

/** Random lists; some are empty, some reach beyond the rows. */
function someRanges(rows: number, heads: number): RowRanges {
  return rowRanges({ rows, heads, blocks: Math.ceil(T / rows) }, (block, _head, add) => {
    if (block === 1 && rows < T) return;
    let at = Math.floor(random.next() * 6);
    while (at < S) {
      const end = at + 1 + Math.floor(random.next() * 9);
      add(at, Math.min(S, end));
      at = end + Math.floor(random.next() * 9);
    }
  });
}

describe.each(Object.entries(shapes))("%s", (_name, shape) => {
  describe.each(["tokens", "heads"] as const)("keys with %s first", (layout) => {
    const lists = [...new Set([1, shape.kvHeads, shape.heads])];
    test.each([1, 5, 16, 40].flatMap((rows) => lists.map((heads) => [rows, heads] as const)))(
      "blocks of %i rows, %i lists: gathered keys, and gathered rows, are attention by its definition",
      async (rows, heads) => {
        const { source, query, k, v, keysAt } = setting(shape, layout);
        const ranges = someRanges(rows, heads);
        const expected = loops(shape, query.q, query.positions, k, v, keysAt, ranges);
        const output = new Float32Array(expected.output.length).fill(7);
        const lse = new Float32Array(expected.lse.length).fill(7);
        await source.attendBlocks(query, { blocks: ranges }, output, lse);
        close(output, expected.output);
        close(lse, expected.lse);
        output.fill(7);
        await source.attendBlocks(query, { blocks: ranges }, output);
        close(output, expected.output);
        const plain = await source.attend(query, withoutBlocks({ blocks: ranges }, T, S, shape));
        close(plain.output, expected.output);
        close(plain.lse, expected.lse);
      },
    );

    test("a part limited to some KV heads leaves the others unread", async () => {
      const { source, query, k, v, keysAt } = setting(shape, layout);
      const ranges = someRanges(16, 1);
      const expected = loops(shape, query.q, query.positions, k, v, keysAt, limitRanges(ranges, shape, [1, 2]));
      const output = new Float32Array(expected.output.length);
      const lse = new Float32Array(expected.lse.length);
      await source.attendBlocks(query, { blocks: ranges, heads: [1, 2] }, output, lse);
      close(output, expected.output);
      close(lse, expected.lse);
      expect(lse[0]).toBe(Number.NEGATIVE_INFINITY);
      expect(lse[shape.heads / shape.kvHeads]).toBeGreaterThan(-100);
    });
  });
});

test("rows over more keys than fit at a time attend in turns", async () => {
  const shape: AttentionShape = { heads: 2, kvHeads: 1, keyDim: 8, valueDim: 8, scale: 0.3 };
  const n = 2600; // 2 * n * n * 4 bytes of logits are more than 48 MiB
  const at = Float32Array.from({ length: n }, (_, i) => i);
  const block = (): KeyBlock => ({ data: noise(n * 8), keys: n, layout: "tokens" });
  const source = new FloatKeys(shape, blocks, block(), block(), at);
  const query = { q: noise(n * 16), rows: n, positions: Int32Array.from(at) };
  const whole = await source.attend(query, {});
  const last = await source.attend(
    { q: query.q.subarray((n - 3) * 16), rows: 3, positions: query.positions.subarray(n - 3) },
    {},
  );
  close(whole.output.subarray((n - 3) * 16), last.output);
  close(whole.lse.subarray((n - 3) * 2), last.lse);
});

test("products are the largest of each tile", async () => {
  const [heads, kvHeads, dim] = [6, 2, 5];
  const a = noise(8 * heads * dim);
  for (const [own, rows, keys] of [
    [kvHeads, 1, 1],
    [kvHeads, 4, 3],
    [heads, 2, 1],
    [heads, 1, 6],
  ]) {
    const b = noise(own * 12 * dim);
    const options = { heads: own, dim, rows, keys };
    close(await blocks.gathered.products(a, b, heads, options), plainProducts(a, b, heads, options));
    const biased = { ...options, bias: noise(heads * (8 / rows) * 12) };
    close(await blocks.gathered.products(a, b, heads, biased), plainProducts(a, b, heads, biased));
  }
  const one = await blocks.gathered.products(Float32Array.of(1, 2, 3, 4), Float32Array.of(1, 1, 2, 0), 1, {
    heads: 1,
    dim: 2,
  });
  expect([...one]).toEqual([3, 2, 7, 6]);
});

describe("selections by blocks of rows among others", () => {
  const view: KeyView = {
    length: () => S,
    positions: () => Int32Array.from({ length: S }, (_, i) => i),
    keys: () => new Float32Array(0),
    values: () => new Float32Array(0),
  };
  const shape = { heads: 4, kvHeads: 2 };
  const ranges = someRanges(16, 2);
  const positions = Int32Array.from({ length: T }, (_, i) => S - T + i);

  test("stay as they are beside a selection of everything", () => {
    const own = [{ blocks: ranges }];
    expect(combineSelections([[{}], own], view, shape, positions)).toBe(own);
  });

  test("intersect with entries and windows", () => {
    const parts = combineSelections(
      [[{ blocks: ranges }], [{ entries: { ranges: [[3, 30]] } }]],
      view,
      shape,
      positions,
    );
    expect(parts).toHaveLength(1);
    const [part] = parts;
    if ("lse" in part || !part.bias || part.entries === "all" || !part.entries)
      throw new Error("expected a masked part");
    expect(part.entries).toEqual({ ranges: [[3, 30]] });
    for (let h = 0; h < 2; h++)
      for (let t = 0; t < T; t++) {
        const listed = rangesOf(ranges, Math.floor(t / 16), h, 2);
        for (let e = 0; e < S; e++)
          expect(part.bias.data[(h * T + t) * S + e] === 0).toBe(listed.some(([a, b]) => a <= e && e < b));
      }
  });

  test("are refused beside forced keys, with the reason", () => {
    const forced = [{ entries: { ranges: [[0, 4]] as [number, number][] }, forced: true }];
    expect(() => combineSelections([[{ blocks: ranges }], forced], view, shape, positions)).toThrow(/blocks of rows/);
  });
});
