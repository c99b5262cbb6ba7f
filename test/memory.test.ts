import { expect, test } from "vitest";
import { load } from "../src/load.js";

test("generations, readings and aborts in one process leave no memory behind", async () => {
  await using model = await load("models/tiny", { worker: false, threads: 1 });
  const round = async (n: number) => {
    for (let i = 0; i < n; i++) {
      await model.generate(`key ${i}: red. key two: blue. key ${i}:`, { maxTokens: 4, ignoreEos: true }).result;
      if (i % 10 === 0) {
        await using reading = await model.read("key one: red.");
        await using fork = await reading.fork();
        await fork.extend(" key two: blue.");
      }
      if (i % 25 === 0) {
        const abort = new AbortController();
        const generation = model.generate("key one:", { maxTokens: 1000, ignoreEos: true, signal: abort.signal });
        for await (const _ of generation) abort.abort();
        await generation.result;
      }
    }
    (globalThis as { gc?: () => void }).gc?.();
    return process.memoryUsage().rss;
  };
  const generations = Number(process.env.FOVEA_GENERATIONS ?? 300);
  await round(100);
  const before = await round(50);
  const after = await round(generations);
  console.log(
    `resident memory: ${(before / 2 ** 20).toFixed(0)} MiB, ${(after / 2 ** 20).toFixed(0)} MiB after ${generations} more generations`,
  );
  // what one generation holds (cache pages, activations) is above 100 KiB: growth by a tenth of it would show
  expect(after - before).toBeLessThan(Math.max(24 * 2 ** 20, generations * 10 * 1024));
});
