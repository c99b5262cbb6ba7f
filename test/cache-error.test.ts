import { existsSync, readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { load } from "../src/load.js";

const FOLDER = "../shared/checkpoints/stories260K";

describe.skipIf(!existsSync(FOLDER))("the int8 cache on stories260K's own text", () => {
  test("log-probabilities differ by 0.01 on average and 0.1 at the 99th percentile at most", async () => {
    const reference = JSON.parse(readFileSync(`${FOLDER}/reference.json`, "utf8"));
    const ids: number[] = [...reference.prompt_ids, ...reference.greedy_ids];
    const logprobs: Record<string, number[]> = {};
    for (const cache of ["float32", "int8"] as const) {
      await using model = await load(FOLDER, { worker: false, precision: "float32", cache });
      // more of the model's own text, sampled, so that some hundred positions are compared
      const more = await model.generate(ids, { maxTokens: 300, temperature: 1, seed: 4, ignoreEos: true }).result;
      logprobs.text ??= more.ids;
      // token by token behind a short prompt, so that every position reads pages (a prompt reads float32)
      const text = [...ids, ...logprobs.text];
      const reading = await model.read(text.slice(0, 8));
      logprobs[cache] = [];
      for (const id of text.slice(8)) {
        logprobs[cache].push((await reading.score([id])).tokens[0].logprob);
        await reading.extend([id]);
      }
      await reading.close();
    }
    const differences = logprobs.float32.map((x, i) => Math.abs(x - logprobs.int8[i])).sort((a, b) => a - b);
    expect(differences.length).toBe(404);
    const mean = differences.reduce((a, b) => a + b, 0) / differences.length;
    const p99 = differences[Math.floor(differences.length * 0.99)];
    console.log(
      `int8 cache: mean ${mean.toFixed(4)}, 99th percentile ${p99.toFixed(4)}, largest ${differences.at(-1)?.toFixed(4)}`,
    );
    expect(mean).toBeLessThanOrEqual(0.01);
    expect(p99).toBeLessThanOrEqual(0.1);
    // zero would mean that no page was ever read
    expect(mean).toBeGreaterThan(1e-5);
  });
});
