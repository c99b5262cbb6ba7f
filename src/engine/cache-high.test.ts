import { expect, it } from "vitest";
import { CachePool } from "./cache.js";

it("works above 2 GiB", () => {
  const run = (filler: boolean, threads: number) => {
    const pool = new CachePool({
      layers: [{ kvHeads: 2, keyDim: 64, valueDim: 64 }],
      type: "int8",
      threads,
      limitBytes: 3 * 2 ** 30,
    });
    const { memory } = pool.bank(0);
    if (filler) for (let i = 0; i < 5; i++) memory.alloc(500 * 2 ** 20);
    const cache = pool.create();
    const n = 2100;
    const x = Float32Array.from({ length: n * 128 }, (_, i) => Math.sin(i * i));
    cache.layer(0).append(x, x, n);
    cache.layer(0).keep(
      0,
      Int32Array.from({ length: n / 2 }, (_, i) => i * 2),
    );
    const fork = cache.fork();
    const mark = fork.snapshot();
    fork.layer(0).append(x, x, 20);
    fork.rollback(mark);
    cache.release();
    const q = x.subarray(0, 6 * 64);
    const out = new Float32Array(6 * 64);
    fork.layer(0).attend({ q, rows: 1, scale: 0.2 }, out);
    const scores = fork
      .layer(0)
      .scores({ q, rows: 1, scale: 0.2, bias: { data: new Float32Array(n), heads: 1, rows: 0 } });
    const result = [...out, ...scores, ...fork.layer(0).read(1).k.subarray(0, 500), ...fork.layer(0).bounds(0).lower];
    if (filler) expect(fork.layer(0).pages[0].table).toBeGreaterThan(2 ** 31);
    fork.release();
    pool.close();
    return result;
  };
  const want = run(false, 1);
  expect(run(true, 1)).toEqual(want);
  expect(run(true, 2)).toEqual(want);
});

it("spreads layers over several memories under one limit", () => {
  const limitBytes = 7 * 2 ** 30;
  const shape = { kvHeads: 1, keyDim: 8, valueDim: 8 };
  const pool = new CachePool({ layers: [shape, shape, shape], type: "float32", limitBytes });
  expect(new Set([0, 1, 2].map((l) => pool.bank(l).memory)).size).toBe(3);
  const cache = pool.create();
  for (const l of [0, 1, 2]) cache.layer(l).append(new Float32Array(160).fill(l), new Float32Array(160).fill(l), 20);
  const fork = cache.fork();
  for (const l of [0, 1, 2]) expect(fork.layer(l).read(0).k).toEqual(new Float32Array(160).fill(l));
  const { memory } = pool.bank(0);
  const blocks = Array.from({ length: 7 }, () => memory.alloc(2 ** 29)); // 3.5 GiB of the 7
  expect(() => pool.bank(1).memory.alloc(3.6 * 2 ** 30)).toThrow(/limit is 7516192768/);
  for (const block of blocks) memory.free(block);
  pool.close();
});
