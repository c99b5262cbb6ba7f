import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { createKernels, Kernels, mergeParts } from "./index.js";
import { Budget, PagedMemory } from "./memory.js";

const kernels = createKernels();
afterAll(() => kernels.close());

const row = fc.array(fc.float({ min: -50, max: 50, noNaN: true }), { minLength: 1, maxLength: 60 });

describe("softmax", () => {
  it("is the softmax, with the log-sum-exp", () => {
    fc.assert(
      fc.property(row, fc.nat(3), (list, gaps) => {
        const x = Float32Array.from(list, (v, i) => (i % 4 < gaps ? Number.NEGATIVE_INFINITY : v));
        const got = x.slice();
        const [lse] = kernels.softmax(got, 1);
        const max = Math.max(...x);
        if (max === Number.NEGATIVE_INFINITY) {
          expect(lse).toBe(max);
          expect([...got].every((v) => v === 0)).toBe(true);
          return;
        }
        const sum = x.reduce((s, v) => s + Math.exp(v - max), 0);
        expect(lse).toBeCloseTo(max + Math.log(sum), 4);
        for (const [i, v] of x.entries()) {
          const want = Math.exp(v - max) / sum;
          if (v === Number.NEGATIVE_INFINITY) expect(got[i]).toBe(0);
          else if (want > 1e-30) expect(Math.abs(got[i] / want - 1)).toBeLessThan(1e-5); // the argument's own rounding
        }
      }),
    );
  });

  it("takes the exponential to a few parts in a million", () => {
    for (let x = 0; x > -20; x -= 0.0137) {
      const at = Math.fround(x);
      const [a, b] = pair(at);
      expect(Math.abs(b / a / Math.exp(at) - 1)).toBeLessThan(2.5e-6);
    }
    function pair(x: number): Float32Array {
      const data = Float32Array.of(0, x);
      kernels.softmax(data, 1);
      return data;
    }
  });
});

describe("topK", () => {
  it("gives the largest, ties to the lower index, in ascending order of index", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: -4, max: 4 }), { minLength: 1, maxLength: 80 }), fc.nat(90), (list, k) => {
        const data = Float32Array.from(list, (x) => (x === -4 ? Number.NEGATIVE_INFINITY : x / 3));
        const want = [...data.keys()]
          .sort((a, b) => (data[a] === data[b] ? a - b : data[b] > data[a] ? 1 : -1))
          .slice(0, k)
          .sort((a, b) => a - b);
        expect([...kernels.topK(data, 1, k)]).toEqual(want);
      }),
    );
  });

  it("finds them where groups bound them, where too few groups do, and where too many tie", () => {
    const kinds: Record<string, (i: number) => number> = {
      waves: (i) => Math.sin(i * 1.7) * (i % 91),
      negative: (i) => -1 - ((i * 7919) % 4999),
      ties: (i) => (i % 3 === 0 ? 0 : i % 3 === 1 ? -0 : Number.NEGATIVE_INFINITY),
      equal: () => 2.5,
    };
    for (const [name, of] of Object.entries(kinds))
      for (const n of [33, 500, 2049, 20_000])
        for (const k of [1, 7, 64, n >> 1, n - 1]) {
          const x = Float32Array.from({ length: n }, (_, i) => of(i));
          const want = [...x.keys()].sort((a, b) => (x[a] === x[b] ? a - b : x[b] > x[a] ? 1 : -1)).slice(0, k);
          expect([...kernels.topK(x, 1, Math.min(k, n))], `${name} ${n} ${k}`).toEqual(want.sort((a, b) => a - b));
        }
  });

  it("finds them among many, row by row", () => {
    const n = 5000;
    const data = Float32Array.from({ length: 2 * n }, (_, i) => Math.sin(i * 1.7) * (i % 91));
    const got = kernels.topK(data, 2, 37);
    for (const r of [0, 1]) {
      const x = data.subarray(r * n, (r + 1) * n);
      const want = [...x.keys()].sort((a, b) => x[b] - x[a] || a - b).slice(0, 37);
      expect([...got.subarray(r * 37, (r + 1) * 37)]).toEqual(want.sort((a, b) => a - b));
    }
  });
});

describe("mergeParts", () => {
  it("weighs by exp(lse) and ignores empty parts", () => {
    const none = { output: Float32Array.of(9), lse: Float32Array.of(Number.NEGATIVE_INFINITY) };
    const a = { output: Float32Array.of(1), lse: Float32Array.of(Math.log(1)) };
    const b = { output: Float32Array.of(5), lse: Float32Array.of(Math.log(3)) };
    const merged = mergeParts([none, a, b], 1);
    expect(merged.output[0]).toBeCloseTo(4, 6);
    expect(merged.lse[0]).toBeCloseTo(Math.log(4), 6);
    expect(mergeParts([none, none], 1)).toEqual({ output: Float32Array.of(0), lse: none.lse });
  });
});

describe("PagedMemory", () => {
  it("hands out blocks that do not overlap, counts them, and takes them all back", () => {
    const step = fc.record({ bytes: fc.integer({ min: 1, max: 200_000 }), free: fc.nat() });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 120 }), (steps) => {
        const memory = new PagedMemory();
        const blocks: { at: number; bytes: number; mark: number }[] = [];
        for (const [i, { bytes, free }] of steps.entries()) {
          if (free % 3 === 0 && blocks.length > 0) {
            const [block] = blocks.splice(free % blocks.length, 1);
            expect(memory.u8[block.at]).toBe(block.mark);
            expect(memory.u8[block.at + block.bytes - 1]).toBe(block.mark);
            memory.free(block.at);
            continue;
          }
          const at = memory.alloc(bytes);
          expect(at % 64).toBe(0);
          expect(at).toBeGreaterThanOrEqual(65_536);
          memory.u8.fill(i & 255, at, at + bytes);
          blocks.push({ at, bytes, mark: i & 255 });
        }
        expect(memory.bytesInUse).toBeGreaterThanOrEqual(blocks.reduce((n, b) => n + b.bytes, 0));
        expect(memory.bytesReserved).toBeGreaterThanOrEqual(memory.bytesInUse);
        for (const block of blocks) memory.free(block.at);
        expect(memory.bytesInUse).toBe(0);
        expect(memory.bytesReserved).toBe(0);
      }),
    );
  });

  it("gives an empty slab to blocks of another size", () => {
    const memory = new PagedMemory({ maximumBytes: 300_000 });
    for (const size of [64, 1280, 4096, 16_384, 64, 250_000]) {
      const blocks: number[] = [];
      for (let i = 0; i < 1; i++) blocks.push(memory.alloc(size));
      for (const b of blocks) memory.free(b);
    }
    expect(memory.bytesReserved).toBe(0);
  });

  it("keeps a block as long as it has owners, and notices one owner too few", () => {
    const memory = new PagedMemory();
    const at = memory.alloc(100);
    memory.retain(at);
    memory.free(at);
    expect(memory.references(at)).toBe(1);
    const other = memory.alloc(100);
    memory.free(at);
    expect(memory.references(at)).toBe(0);
    expect(() => memory.free(at)).toThrow(/twice/);
    memory.free(other);
  });

  it("shares a limit and stays usable beyond it", () => {
    const budget = new Budget(600_000);
    const a = new PagedMemory({ budget });
    const b = new PagedMemory({ budget });
    const block = a.alloc(300_000);
    expect(() => b.alloc(400_000)).toThrow(/limit is 600000/);
    expect(budget.reserved).toBe(a.bytesReserved);
    a.free(block);
    b.free(b.alloc(400_000));
    expect(budget.reserved).toBe(0);
  });
});

describe("Kernels", () => {
  it("says what is wrong with a number of threads", () => {
    expect(() => new Kernels({ threads: 0 })).toThrow(/at least 1/);
  });

  it("refuses work after it was closed, and closes twice", () => {
    const k = createKernels({ threads: 2 });
    expect(k.threads).toBe(2);
    k.close();
    k.close();
    expect(() => k.run(true)).toThrow(/closed/);
  });
});
