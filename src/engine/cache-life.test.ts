import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { FoveaError } from "../error.js";
import { Cache, type CacheMark, CachePool, type CacheType } from "./cache.js";

const KV = 2;
const DIM = 8;
const LAYERS = 2;

const pools: CachePool[] = [];
function pool(type: CacheType, limitBytes?: number): CachePool {
  const p = new CachePool({
    layers: Array(LAYERS).fill({ kvHeads: KV, keyDim: DIM, valueDim: DIM }),
    type,
    limitBytes,
  });
  pools.push(p);
  return p;
}
afterAll(() => {
  for (const p of pools) p.close();
});

/** A number in [-1, 1] that depends on where it stands and on who wrote it. */
function value(seed: number, layer: number, head: number, position: number, channel: number): number {
  let x = Math.imul(seed + 1, 0x9e3779b1) ^ Math.imul(layer * 64 + head * 8 + channel + 1, 0x85ebca6b);
  x = Math.imul((x ^ (x >>> 15)) + position, 0xc2b2ae35);
  x = Math.imul(x ^ (x >>> 13), 0x27d4eb2f);
  return ((x ^ (x >>> 16)) >>> 0) / 2 ** 31 - 1;
}

/** The cache as plain lists: what is stored in each layer and head. */
interface Entry {
  readonly seed: number;
  readonly position: number;
}
interface Plain {
  seen: number;
  heads: Entry[][][]; // [layer][head]
}
const emptyPlain = (): Plain => ({
  seen: 0,
  heads: Array.from({ length: LAYERS }, () => Array.from({ length: KV }, () => [])),
});
const copyPlain = (p: Plain): Plain => ({ seen: p.seen, heads: p.heads.map((l) => l.map((h) => [...h])) });

function rows(seed: number, layer: number, first: number, n: number, keys: boolean): Float32Array {
  const out = new Float32Array(n * KV * DIM);
  for (let i = 0, at = 0; i < n; i++)
    for (let h = 0; h < KV; h++)
      for (let c = 0; c < DIM; c++, at++) out[at] = value(seed, layer, h, first + i, keys ? c : c + DIM);
  return out;
}

function append(cache: Cache, plain: Plain, n: number, seed: number): void {
  for (let l = 0; l < LAYERS; l++) {
    cache.layer(l).append(rows(seed, l, plain.seen, n, true), rows(seed, l, plain.seen, n, false), n);
    for (let h = 0; h < KV; h++) for (let i = 0; i < n; i++) plain.heads[l][h].push({ seed, position: plain.seen + i });
  }
  plain.seen += n;
}

/** A choice of some of n indices, from a number. */
function choose(n: number, pattern: number, share: number): Int32Array {
  return Int32Array.from({ length: n }, (_, i) => i).filter((i) => value(pattern, 0, 0, i, 0) < share * 2 - 1);
}

function expectSame(cache: Cache, plain: Plain, tolerance: number): void {
  expect(cache.length).toBe(plain.seen);
  for (let l = 0; l < LAYERS; l++)
    for (let h = 0; h < KV; h++) {
      const layer = cache.layer(l);
      const want = plain.heads[l][h];
      expect(layer.length(h)).toBe(want.length);
      expect([...layer.positions(h)]).toEqual(want.map((e) => e.position));
      const { k, v } = layer.read(h);
      let worst = 0;
      for (const [i, e] of want.entries())
        for (let c = 0; c < DIM; c++) {
          const dk = Math.abs(k[i * DIM + c] - Math.fround(value(e.seed, l, h, e.position, c)));
          const dv = Math.abs(v[i * DIM + c] - Math.fround(value(e.seed, l, h, e.position, c + DIM)));
          worst = Math.max(worst, dk, dv);
        }
      expect(worst).toBeLessThanOrEqual(tolerance);
      expectFound(cache, l, h, k);
    }
}

/** Entries asked for by index are the ones that are read. */
function expectFound(cache: Cache, l: number, h: number, k: Float32Array): void {
  const layer = cache.layer(l);
  const n = layer.keys;
  const live = layer.length(h);
  if (n === 0) return;
  const q = new Float32Array(KV * DIM);
  q[h * DIM] = 1;
  const from = Math.floor(live / 3);
  const to = Math.ceil((2 * live) / 3);
  const logits = layer.scores({ q, rows: 1, scale: 1, heads: [h, h + 1], entries: { ranges: [[from, to]] } });
  for (let i = 0; i < n; i++) {
    const logit = logits[h * n + i];
    if (i < from || i >= to) expect(logit).toBe(Number.NEGATIVE_INFINITY);
    else if (!(Math.abs(logit - k[i * DIM]) < 1e-3)) expect(logit).toBeCloseTo(k[i * DIM], 3);
  }
}

type Op =
  | { kind: "append"; n: number }
  | { kind: "selected"; n: number; pattern: number; share: number }
  | { kind: "keep"; layer: number; head: number; pattern: number; share: number }
  | { kind: "drop"; head: number; from: number; count: number }
  | { kind: "fork" | "release" | "switch" | "snapshot" | "rollback" | "forget" | "reopen" };

const life = fc.record({
  kind: fc.constantFrom(
    "fork" as const,
    "release" as const,
    "switch" as const,
    "snapshot" as const,
    "snapshot" as const,
    "rollback" as const,
    "rollback" as const,
    "forget" as const,
    "reopen" as const,
  ),
});

const op: fc.Arbitrary<Op> = fc.oneof(
  { arbitrary: life, weight: 6 },
  fc.record({ kind: fc.constant("append" as const), n: fc.integer({ min: 1, max: 50 }) }),
  fc.record({ kind: fc.constant("append" as const), n: fc.constant(1) }),
  fc.record({
    kind: fc.constant("selected" as const),
    n: fc.integer({ min: 1, max: 40 }),
    pattern: fc.nat(1000),
    share: fc.double({ min: 0, max: 1, noNaN: true }),
  }),
  fc.record({
    kind: fc.constant("keep" as const),
    layer: fc.nat(LAYERS - 1),
    head: fc.nat(KV - 1),
    pattern: fc.nat(1000),
    share: fc.double({ min: 0, max: 1, noNaN: true }),
  }),
  fc.record({
    kind: fc.constant("drop" as const),
    head: fc.nat(KV - 1),
    from: fc.nat(60),
    count: fc.integer({ min: 1, max: 20 }),
  }),
);

interface Live {
  cache: Cache;
  plain: Plain;
  marks: { mark: CacheMark; plain: Plain }[];
}

function run(p: CachePool, ops: readonly Op[], tolerance: number): void {
  const live: Live[] = [{ cache: p.create(), plain: emptyPlain(), marks: [] }];
  let at = 0;
  for (const [seed, o] of ops.entries()) {
    const it = live[at];
    switch (o.kind) {
      case "append":
        append(it.cache, it.plain, o.n, seed);
        break;
      case "selected": {
        for (let l = 0; l < LAYERS; l++) {
          const list = choose(o.n, o.pattern + l, o.share);
          const k = rows(seed, l, it.plain.seen, o.n, true);
          const v = rows(seed, l, it.plain.seen, o.n, false);
          it.cache.layer(l).appendSelected(k, v, o.n, [list, undefined]);
          for (let i = 0; i < o.n; i++) it.plain.heads[l][1].push({ seed, position: it.plain.seen + i });
          for (const i of list) it.plain.heads[l][0].push({ seed, position: it.plain.seen + i });
        }
        it.plain.seen += o.n;
        break;
      }
      case "keep": {
        const entries = it.plain.heads[o.layer][o.head];
        const kept = choose(entries.length, o.pattern, o.share);
        it.cache.layer(o.layer).keep(o.head, kept);
        it.plain.heads[o.layer][o.head] = [...kept].map((i) => entries[i]);
        break;
      }
      case "drop":
        for (let l = 0; l < LAYERS; l++) {
          const entries = it.plain.heads[l][o.head];
          const kept = entries.map((_, i) => i).filter((i) => i < o.from || i >= o.from + o.count);
          it.cache.layer(l).keep(o.head, Int32Array.from(kept));
          it.plain.heads[l][o.head] = kept.map((i) => entries[i]);
        }
        break;
      case "fork":
        if (live.length < 4) live.push({ cache: it.cache.fork(), plain: copyPlain(it.plain), marks: [] });
        break;
      case "release":
        if (live.length > 1) {
          it.cache.release();
          live.splice(at, 1);
          at = 0;
        }
        break;
      case "switch":
        at = (at + 1) % live.length;
        break;
      case "snapshot":
        it.marks.push({ mark: it.cache.snapshot(), plain: copyPlain(it.plain) });
        break;
      case "rollback": {
        const point = it.marks.pop();
        if (point) {
          it.cache.rollback(point.mark);
          it.plain = point.plain;
        }
        break;
      }
      case "forget": {
        const point = it.marks.shift();
        if (point) it.cache.forget(point.mark);
        break;
      }
      case "reopen": {
        const chunks = it.cache.serialize();
        it.cache.release();
        it.cache = Cache.deserialize(p, chunks);
        it.marks = [];
        break;
      }
    }
    for (const x of live) expectSame(x.cache, x.plain, tolerance);
  }
  for (const x of live) x.cache.release();
}

describe.each([
  ["float32", 0],
  ["int8", 0.08], // values in [-1, 1], encoded anew a few times
] as const)("%s cache against lists", (type, tolerance) => {
  it("does what lists do, whatever happens to it, and gives every byte back", () => {
    const p = pool(type);
    p.create().release();
    fc.assert(
      fc.property(fc.array(op, { minLength: 5, maxLength: 60, size: "max" }), (ops) => {
        run(p, ops, tolerance);
        p.trim();
        expect(p.bytesUsed).toBe(baseline);
      }),
      { numRuns: 50 },
    );
  });
  const baseline = (() => {
    const p = pool(type);
    return p.bytesUsed;
  })();
});

describe("cache", () => {
  it("leaves shared and untouched pages alone when entries are dropped", () => {
    const p = pool("int8");
    const cache = p.create();
    const plain = emptyPlain();
    append(cache, plain, 320, 1);
    const before = cache.layer(0).read(0);
    const used = p.bytesUsed;
    const fork = cache.fork();
    expect(p.bytesUsed - used).toBeLessThan(2 * LAYERS * KV * (20 * 16 + 256)); // tables and headers only
    // sinks and the newest 100: pages between go, kept ones keep their very codes
    const kept = Int32Array.from({ length: 104 }, (_, i) => (i < 4 ? i : 320 - 104 + i));
    fork.layer(0).keep(0, kept);
    const after = fork.layer(0).read(0);
    for (const [i, from] of kept.entries())
      expect(after.k.subarray(i * DIM, (i + 1) * DIM)).toEqual(before.k.subarray(from * DIM, (from + 1) * DIM));
    expect(cache.layer(0).read(0)).toEqual(before);
    cache.release();
    expect(fork.layer(0).read(0)).toEqual(after);
    fork.release();
  });

  it("really frees what is dropped", () => {
    const p = pool("int8");
    const cache = p.create();
    append(cache, emptyPlain(), 4000, 1);
    const full = cache.bytes;
    for (let l = 0; l < LAYERS; l++)
      for (let h = 0; h < KV; h++)
        cache.layer(l).keep(
          h,
          Int32Array.from({ length: 400 }, (_, i) => i * 10),
        );
    expect(cache.bytes).toBeLessThan(full * 0.3); // tables keep their size; one entry in ten keeps its bytes
    cache.release();
  });

  it("refuses what does not fit, says what it would take, and stays as it was", () => {
    const limit = 3_000_000;
    const p = pool("int8", limit);
    const cache = p.create();
    const plain = emptyPlain();
    append(cache, plain, 500, 1);
    const n = 20_000;
    const k = new Float32Array(n * KV * DIM);
    let error: unknown;
    try {
      cache.layer(0).append(k, k, n);
    } catch (e) {
      error = e;
    }
    expect(error).toBeInstanceOf(FoveaError);
    expect((error as FoveaError).code).toBe("out-of-memory");
    expect((error as FoveaError).message).toMatch(/needs \d+ bytes; its limit is 3000000/);
    expectSame(cache, plain, 0.02);
    expect(p.bytesReserved).toBeLessThanOrEqual(limit);
    append(cache, plain, 100, 2);
    expectSame(cache, plain, 0.02);
    cache.release();
  });

  it("fills memory to the limit and gives it back, again and again", () => {
    const p = pool("int8", 4_000_000);
    for (let round = 0; round < 5; round++) {
      const caches: Cache[] = [];
      expect(() => {
        for (let i = 0; i < 1000; i++) {
          const cache = p.create();
          caches.push(cache);
          append(cache, emptyPlain(), 300, i);
        }
      }).toThrow(/bytes/);
      expect(caches.length).toBeGreaterThan(10);
      for (const cache of caches) cache.release();
    }
    expect(p.bytesReserved).toBeLessThan(2_000_000);
  });

  it("does not grow over thousands of sequences", () => {
    const p = pool("int8");
    let first = 0;
    for (let i = 0; i < 3000; i++) {
      const cache = p.create();
      append(cache, emptyPlain(), 40, 1);
      const fork = cache.fork();
      const mark = fork.snapshot();
      append(fork, { ...emptyPlain(), seen: 40 }, 20, 2);
      fork.rollback(mark);
      cache.release();
      fork.release();
      if (i === 10) first = p.bytesReserved;
    }
    expect(p.bytesReserved).toBe(first);
  });

  it("continues a saved cache bit for bit", () => {
    const p = pool("int8");
    const cache = p.create();
    const plain = emptyPlain();
    append(cache, plain, 200, 1);
    cache.layer(1).keep(0, choose(200, 3, 0.7));
    const other = Cache.deserialize(pool("int8"), cache.serialize());
    const q = Float32Array.from({ length: 4 * DIM }, (_, i) => Math.sin(i));
    for (const c of [cache, other]) append(c, copyPlain(plain), 37, 5);
    for (let l = 0; l < LAYERS; l++) {
      const outs = [cache, other].map((c) => {
        const out = new Float32Array(4 * DIM);
        const lse = new Float32Array(4);
        c.layer(l).attend({ q, rows: 1, scale: 0.5 }, out, lse);
        return [...out, ...lse];
      });
      expect(outs[1]).toEqual(outs[0]);
    }
  });

  it("refuses damaged or foreign saved caches", () => {
    const p = pool("int8");
    const cache = p.create();
    append(cache, emptyPlain(), 100, 1);
    cache.layer(0).keep(0, choose(100, 3, 0.5));
    const chunks = cache.serialize();
    const used = p.bytesUsed;
    expect(() => Cache.deserialize(pool("float32"), chunks)).toThrow(/type int8/);
    fc.assert(
      fc.property(
        fc.nat(chunks.length - 1),
        fc.nat(),
        fc.integer({ min: 0, max: 255 }),
        fc.boolean(),
        (c, at, byte, cut) => {
          const bad = chunks.map((x) => x.slice());
          if (cut) bad[c] = bad[c].subarray(0, at % bad[c].length);
          else bad[c][at % bad[c].length] = byte;
          try {
            Cache.deserialize(p, bad).release(); // a changed code is no damage that can be seen here
          } catch (error) {
            expect(error).toBeInstanceOf(FoveaError);
          }
          expect(p.bytesUsed).toBe(used);
        },
      ),
      { numRuns: 500 },
    );
  });

  it("refuses wrong shapes and uses after release", () => {
    const p = pool("int8");
    const cache = p.create();
    expect(() => cache.layer(0).append(new Float32Array(3), new Float32Array(3), 1)).toThrow(/keys/);
    append(cache, emptyPlain(), 3, 1);
    expect(() => cache.layer(0).keep(0, Int32Array.of(2, 1))).toThrow(/ascend/);
    expect(() => cache.layer(0).keep(0, Int32Array.of(3))).toThrow(/0 to 2/);
    expect(() => cache.layer(0).attend({ q: new Float32Array(5), rows: 1, scale: 1 }, new Float32Array(5))).toThrow(
      /queries/,
    );
    const mark = cache.snapshot();
    cache.rollback(mark);
    expect(() => cache.rollback(mark)).toThrow(/used up/);
    cache.release();
    cache.release();
    expect(() => cache.layer(0).read(0)).toThrow(/released/);
  });
});
