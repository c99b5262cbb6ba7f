import { describe, expect, test } from "vitest";
import { runCase, targets } from "./fuzzing.js";

/** Cases of each target. The long run is `node scripts/run.mjs scripts/fuzz.ts --minutes 60`. */
const CASES = 300;

describe("mutated files give a result or a FoveaError", async () => {
  test.each((await targets()).map((target) => [target.name, target] as const))("%s", async (_, target) => {
    const wrong: string[] = [];
    for (let seed = 1; seed <= CASES && wrong.length < 5; seed++) {
      const problem = await runCase(target, seed);
      if (problem) wrong.push(problem);
    }
    expect(wrong).toEqual([]);
  });
});
