import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { mergeParts } from "../kernels/merge.js";
import { type AttendRequest, type Cache, CachePool, type CacheType } from "./cache.js";
import { type Entries, entriesOf, type LogBias } from "./hooks.js";

/** Numbers from a small generator, normally distributed. */
function random(seed: number) {
  let state = seed >>> 0 || 1;
  const uniform = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state + 0.5) / 2 ** 32;
  };
  const normal = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  return {
    uniform,
    integer: (n: number) => Math.floor(uniform() * n),
    array: (n: number, scale = 1) => Float32Array.from({ length: n }, () => normal() * scale),
  };
}

function selected(entries: Entries, live: number): Uint8Array {
  const mask = new Uint8Array(live);
  if (entries === "all") return mask.fill(1);
  if ("ranges" in entries) for (const [a, b] of entries.ranges) mask.fill(1, Math.max(0, a), Math.min(live, b));
  else if ("pages" in entries) for (const p of entries.pages) mask.fill(1, p * 16, Math.min(live, p * 16 + 16));
  else for (const t of entries.tokens) mask[t] = 1;
  return mask;
}

/** Attention by its definition over what `read` gives. */
function plain(cache: Cache, request: AttendRequest) {
  const layer = cache.layer(0);
  const { kvHeads, keyDim, valueDim } = layer.shape;
  const { rows, q, scale, softcap, sink, bias, window } = request;
  const heads = q.length / rows / keyDim;
  const group = heads / kvHeads;
  const n = layer.keys;
  const logits = new Float32Array(rows * heads * n).fill(Number.NEGATIVE_INFINITY);
  const out = new Float32Array(rows * heads * valueDim);
  const lse = new Float32Array(rows * heads).fill(Number.NEGATIVE_INFINITY);
  const [from, to] = request.heads ?? [0, kvHeads];
  for (let g = from; g < to; g++) {
    const { k, v } = layer.read(g);
    const live = layer.length(g);
    const positions = layer.positions(g);
    for (let r = 0; r < rows; r++)
      for (let j = 0; j < group; j++) {
        const h = g * group + j;
        const at = (r * heads + h) * n;
        const mask = selected(entriesOf(request.entries ?? "all", h, heads), live);
        const position = layer.seen - rows + r;
        for (let i = 0; i < live; i++) {
          if (!mask[i] || (rows > 1 && i >= live - rows + r + 1)) continue;
          if (window && position - positions[i] >= window) continue;
          let s = 0;
          for (let d = 0; d < keyDim; d++) s += q[(r * heads + h) * keyDim + d] * k[i * keyDim + d];
          s *= scale;
          if (softcap) s = softcap * Math.tanh(s / softcap);
          if (bias) {
            const b = bias.heads === heads ? h : bias.heads === 1 ? 0 : g;
            const width = bias.data.length / (bias.heads * Math.max(1, bias.rows));
            s += bias.data[(b * Math.max(1, bias.rows) + (bias.rows ? r : 0)) * width + i];
          }
          logits[at + i] = s;
        }
        const row = logits.subarray(at, at + n);
        let max = sink ? sink[h] : Number.NEGATIVE_INFINITY;
        for (const s of row) max = Math.max(max, s);
        if (max === Number.NEGATIVE_INFINITY) continue;
        let sum = sink ? Math.exp(sink[h] - max) : 0;
        const acc = new Float64Array(valueDim);
        for (let i = 0; i < live; i++) {
          const p = Math.exp(row[i] - max);
          sum += p;
          for (let d = 0; d < valueDim; d++) acc[d] += p * v[i * valueDim + d];
        }
        lse[r * heads + h] = max + Math.log(sum);
        for (let d = 0; d < valueDim; d++) out[(r * heads + h) * valueDim + d] = acc[d] / sum;
      }
  }
  return { logits, out, lse };
}

function difference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  expect(a.length).toBe(b.length);
  let worst = 0;
  for (let i = 0; i < a.length; i++) {
    if (a[i] === b[i]) continue;
    const d = Math.abs(a[i] - b[i]);
    if (!(d <= worst)) worst = d;
  }
  return worst;
}

const pools: CachePool[] = [];
function pool(type: CacheType, kvHeads: number, keyDim: number, valueDim = keyDim, threads = 1, layers = 1): CachePool {
  const p = new CachePool({ layers: Array(layers).fill({ kvHeads, keyDim, valueDim }), type, threads });
  pools.push(p);
  return p;
}
afterAll(() => {
  for (const p of pools) p.close();
});

function filled(p: CachePool, n: number, seed = 1): Cache {
  const { kvHeads, keyDim, valueDim } = p.layers[0];
  const r = random(seed);
  const cache = p.create();
  cache.layer(0).append(r.array(n * kvHeads * keyDim), r.array(n * kvHeads * valueDim), n);
  return cache;
}

function check(cache: Cache, request: AttendRequest, tolerance = 1e-4) {
  const layer = cache.layer(0);
  const heads = request.q.length / request.rows / layer.shape.keyDim;
  const out = new Float32Array(request.rows * heads * layer.shape.valueDim);
  const lse = new Float32Array(request.rows * heads);
  layer.attend(request, out, lse);
  const want = plain(cache, request);
  expect(difference(lse, want.lse)).toBeLessThan(tolerance);
  expect(difference(out, want.out)).toBeLessThan(tolerance);
  if (!request.sink) {
    // queries are rounded to 15 bits for int8 keys: the error goes with the size of the logits
    const size = want.logits.reduce((m, x) => (Number.isFinite(x) ? Math.max(m, Math.abs(x)) : m), 1);
    expect(difference(layer.scores(request), want.logits)).toBeLessThan(tolerance * size);
  }
  return { out, lse };
}

for (const type of ["float32", "int8"] as const) {
  describe(`${type} cache`, () => {
    it.each([8, 64, 80, 96, 128, 256, 20])("attends with head dimension %i", (dim) => {
      const cache = filled(pool(type, 2, dim), 300);
      for (const rows of [1, 3]) check(cache, { q: random(2).array(rows * 6 * dim), rows, scale: dim ** -0.5 });
      cache.release();
    });

    it.each([1, 2, 3, 4, 5, 6, 7, 8, 11])("attends with %i query heads a KV head", (group) => {
      const cache = filled(pool(type, 2, 64), 1100);
      check(cache, { q: random(3).array(2 * group * 64), rows: 1, scale: 0.125 });
      cache.release();
    });

    it("applies soft-cap, bias, sink and window", () => {
      const cache = filled(pool(type, 2, 64, 32), 333);
      const r = random(4);
      const q = r.array(4 * 6 * 64);
      const scale = 0.125;
      const sink = r.array(6);
      const bias = (heads: number, rows: number): LogBias => ({
        data: r.array(heads * Math.max(1, rows) * 333),
        heads,
        rows,
      });
      const one = q.subarray(0, 6 * 64);
      check(cache, { q: one, rows: 1, scale, softcap: 5 });
      check(cache, { q: one, rows: 1, scale, sink });
      check(cache, { q: one, rows: 1, scale, window: 40 });
      for (const heads of [1, 2, 6]) check(cache, { q: one, rows: 1, scale, bias: bias(heads, 0) });
      for (const heads of [1, 2, 6])
        check(cache, { q, rows: 4, scale, bias: bias(heads, 4), window: 100, softcap: 20 });
      cache.release();
    });

    it("reads ranges, pages and tokens only", () => {
      const cache = filled(pool(type, 2, 64), 400);
      const q = random(5).array(6 * 64);
      const request = { q, rows: 1, scale: 0.125 };
      check(cache, {
        ...request,
        entries: {
          ranges: [
            [0, 4],
            [2, 9],
            [390, 500],
          ],
        },
      });
      check(cache, { ...request, entries: { pages: Int32Array.of(24, 3, 7) } });
      check(cache, { ...request, entries: { tokens: Int32Array.of(5, 399, 17, 16, 18, 200) } });
      check(cache, { ...request, entries: [{ ranges: [] }, { tokens: Int32Array.of(1) }] });
      check(cache, { ...request, heads: [1, 2] });
      // one list a query head, over one row and several, with a bias for each kind of head
      const own = Array.from({ length: 6 }, (_, h): Entries => {
        if (h === 4) return "all";
        return h % 2 ? { pages: Int32Array.of(h, 24) } : { ranges: [[h, 100 + h * 30]] };
      });
      check(cache, { ...request, entries: own });
      check(cache, { ...request, entries: own, heads: [1, 2] });
      const rows = random(6).array(3 * 6 * 64);
      for (const heads of [1, 2, 6]) {
        const bias = { data: random(7).array(heads * 3 * 400, 0.3), heads, rows: 3 };
        check(cache, { q: rows, rows: 3, scale: 0.125, entries: own, bias, window: 350 });
      }
      const layer = cache.layer(0);
      expect(() => layer.scores({ ...request, entries: own.slice(1) })).toThrow("5 selections were given");
      cache.release();
    });

    it("gives the same bits whatever the number of threads", () => {
      const q = random(6).array(6 * 64);
      const results = [1, 2, 3].map((threads) => {
        const cache = filled(pool(type, 2, 64, 64, threads), 5000);
        const out = new Float32Array(6 * 64);
        const lse = new Float32Array(6);
        for (let i = 0; i < 20; i++) cache.layer(0).attend({ q, rows: 1, scale: 0.125 }, out, lse);
        cache.release();
        return [...out, ...lse];
      });
      expect(results[1]).toEqual(results[0]);
      expect(results[2]).toEqual(results[0]);
    });

    it("merges any two parts of the entries to the whole", () => {
      const n = 150;
      const cache = filled(pool(type, 2, 16), n);
      const layer = cache.layer(0);
      const q = random(9).array(6 * 16);
      const attend = (entries: Entries) => {
        const out = new Float32Array(6 * 16);
        const lse = new Float32Array(6);
        layer.attend({ q, rows: 1, scale: 0.25, entries }, out, lse);
        return { output: out, lse };
      };
      const whole = attend("all");
      fc.assert(
        fc.property(fc.array(fc.boolean(), { minLength: n, maxLength: n }), (side) => {
          const part = (b: boolean) =>
            attend({ tokens: Int32Array.from({ length: n }, (_, i) => i).filter((i) => side[i] === b) });
          const merged = mergeParts([part(true), part(false)], 16);
          expect(difference(merged.output, whole.output)).toBeLessThan(type === "int8" ? 1e-4 : 2e-5);
          expect(difference(merged.lse, whole.lse)).toBeLessThan(type === "int8" ? 1e-4 : 2e-5);
        }),
        { numRuns: 40 },
      );
    });

    it("stores the same in pieces as whole", () => {
      const p = pool(type, 2, 64);
      const r = random(7);
      const n = 200;
      const k = r.array(n * 2 * 64);
      const v = r.array(n * 2 * 64);
      const whole = p.create();
      whole.layer(0).append(k, v, n);
      const pieces = p.create();
      for (let at = 0; at < n; ) {
        const rows = Math.min(n - at, 1 + r.integer(40));
        pieces.layer(0).append(k.subarray(at * 128, (at + rows) * 128), v.subarray(at * 128, (at + rows) * 128), rows);
        at += rows;
      }
      for (const h of [0, 1]) expect(pieces.layer(0).read(h)).toEqual(whole.layer(0).read(h));
      const last = whole.layer(0).read(1);
      for (let i = 0; i < 64; i++) expect(last.k[199 * 64 + i]).toBe(k[(199 * 2 + 1) * 64 + i]);
    });

    it("bounds the keys of each page, as stored and as given", () => {
      const p = pool(type, 2, 20);
      const r = random(10);
      const n = 100;
      const k = r.array(n * 2 * 20).map((x, i) => (i % 20 === 3 ? x + 50 : x)); // a channel far from 0
      const cache = p.create();
      const layer = cache.layer(0);
      layer.append(k, k, n);
      layer.keep(
        1,
        Int32Array.from({ length: n }, (_, i) => i).filter((i) => i % 3 > 0),
      );
      for (const h of [0, 1]) {
        const { lower, upper, first } = layer.bounds(h);
        const stored = layer.read(h).k;
        expect(first[first.length - 1]).toBe(layer.length(h));
        for (let page = 0; page + 1 < first.length; page++)
          for (let i = first[page]; i < first[page + 1]; i++)
            for (let c = 0; c < 20; c++)
              // entries that were moved to another page are bounded as they were stored
              for (const x of [stored[i * 20 + c], h === 0 ? k[i * 40 + c] : stored[i * 20 + c]]) {
                expect(x).toBeGreaterThanOrEqual(lower[page * 20 + c]);
                expect(x).toBeLessThanOrEqual(upper[page * 20 + c]);
                // bf16 steps: no wider than the keys' range plus a part in 64 of their size
                expect(upper[page * 20 + c] - lower[page * 20 + c]).toBeLessThan(7 + Math.abs(x) / 64);
              }
      }
      cache.release();
    });

    /** Page scores by their definition, from what `bounds` gives: rows of query heads. */
    const boundScores = (cache: Cache, q: Float32Array): number[][] => {
      const layer = cache.layer(0);
      const { kvHeads, keyDim } = layer.shape;
      const heads = q.length / keyDim;
      return Array.from({ length: heads }, (_, h) => {
        const { lower, upper } = layer.bounds(Math.floor((h * kvHeads) / heads));
        const row = Array<number>(lower.length / keyDim).fill(0);
        for (let i = 0; i < lower.length; i++) {
          const x = q[h * keyDim + (i % keyDim)];
          row[Math.floor(i / keyDim)] += Math.max(x * lower[i], x * upper[i]);
        }
        return row;
      });
    };

    it("scores and chooses pages by their bounds as the definition does", () => {
      for (const [kvHeads, group, dim, threads] of [
        [2, 1, 64, 1],
        [2, 3, 20, 2],
        [1, 4, 64, 1],
        [1, 12, 16, 2],
      ]) {
        const cache = filled(pool(type, kvHeads, dim, dim, threads), 1500, 11);
        const layer = cache.layer(0);
        const q = random(12).array(kvHeads * group * dim);
        for (const evict of [false, true]) {
          if (evict)
            layer.keep(
              0,
              Int32Array.from({ length: 1500 }, (_, i) => i).filter((i) => i % 5 > 0 && i < 1490),
            );
          const want = boundScores(cache, q);
          const reduced = (how: string) =>
            Array.from({ length: kvHeads }, (_, kv) =>
              want[kv * group].map((_, p) => {
                const all = want.slice(kv * group, (kv + 1) * group).map((row) => row[p]);
                const sum = all.reduce((a, b) => a + b, 0);
                return how === "max" ? Math.max(...all) : how === "sum" ? sum : sum / group;
              }),
            );
          for (const how of ["none", "sum", "max", "mean"] as const) {
            const rows = how === "none" ? want : reduced(how);
            const got = layer.pageScores(q, how);
            expect(got.rows).toBe(rows.length);
            for (const [r, row] of rows.entries()) {
              const line = got.data.subarray(r * got.pages, (r + 1) * got.pages);
              expect(difference(line.subarray(0, row.length), row)).toBeLessThan(2e-4);
              for (const x of line.subarray(row.length)) expect(x).toBe(Number.NEGATIVE_INFINITY);
            }
            const lists = layer.choosePages(q, { count: 9, reduce: how, first: 2, last: 1 });
            expect(lists.length).toBe(rows.length);
            for (const [r, entries] of lists.entries()) {
              const kv = Math.floor((r * kvHeads) / rows.length);
              const scores = got.data.subarray(r * got.pages, r * got.pages + rows[r].length);
              const best = [...scores.keys()].slice(2, -1).sort((a, b) => scores[b] - scores[a] || a - b);
              const pages = [0, 1, ...best.slice(0, 6), scores.length - 1].sort((a, b) => a - b);
              const { first } = layer.bounds(kv);
              const read = [...selected(entries, layer.length(kv)).entries()].flatMap(([i, on]) => (on ? [i] : []));
              expect(read).toEqual(
                pages.flatMap((p) => Array.from({ length: first[p + 1] - first[p] }, (_, i) => first[p] + i)),
              );
            }
          }
        }
        const few = layer.choosePages(q, { count: 1, first: 1, last: 1 });
        expect([...selected(few[0], layer.length(0))].lastIndexOf(1)).toBe(layer.length(0) - 1);
        expect(layer.choosePages(q, { count: 94 }).every((e) => e === "all")).toBe(true);
        expect(() => layer.choosePages(q, { count: 0 })).toThrow("0 pages were asked for");
        cache.release();
      }
    });

    it("gathers listed entries as reading all of them gives them, of pages with holes too", () => {
      const cache = filled(pool(type, 2, 20, 12), 300, 15);
      const layer = cache.layer(0);
      for (const evict of [false, true]) {
        if (evict)
          layer.keep(
            1,
            Int32Array.from({ length: 300 }, (_, i) => i).filter((i) => i % 4 > 0),
          );
        const list = Int32Array.of(0, 3, 4, 17, 40, 41, 130, 200, layer.length(1) - 1);
        const whole = layer.read(1);
        const got = layer.gather(1, list);
        for (const [i, e] of list.entries()) {
          expect(got.k.subarray(i * 20, (i + 1) * 20)).toEqual(whole.k.subarray(e * 20, (e + 1) * 20));
          expect(got.v.subarray(i * 12, (i + 1) * 12)).toEqual(whole.v.subarray(e * 12, (e + 1) * 12));
        }
      }
      expect(layer.gather(0, new Int32Array(0)).k.length).toBe(0);
      cache.release();
    });

    it("bounds dot products with stored keys, in the open page too", () => {
      const cache = filled(pool(type, 2, 64), 75, 13);
      const layer = cache.layer(0);
      const q = random(14).array(6 * 64);
      const { data, pages } = layer.pageScores(q);
      expect(pages).toBe(5);
      for (let h = 0; h < 6; h++) {
        const { k } = layer.read(Math.floor(h / 3));
        for (let i = 0; i < 75; i++) {
          let dot = 0;
          for (let d = 0; d < 64; d++) dot += q[h * 64 + d] * k[i * 64 + d];
          expect(data[h * pages + (i >> 4)]).toBeGreaterThan(dot - 1e-4);
        }
      }
      cache.release();
    });

    it("sums values under any weights", () => {
      const cache = filled(pool(type, 2, 64, 24), 1200);
      const layer = cache.layer(0);
      const rows = 2;
      const w = random(8).array(rows * 6 * 1200);
      const out = layer.sum(w, rows);
      const want = new Float32Array(rows * 6 * 24);
      for (let h = 0; h < 6; h++) {
        const { v } = layer.read(Math.floor(h / 3));
        for (let r = 0; r < rows; r++)
          for (let d = 0; d < 24; d++) {
            let s = 0;
            for (let i = 0; i < 1200; i++) s += w[(r * 6 + h) * 1200 + i] * v[i * 24 + d];
            want[(r * 6 + h) * 24 + d] = s;
          }
      }
      expect(difference(out, want)).toBeLessThan(0.01); // sums of 1200 terms of size 1
    });
  });
}
