import { existsSync, readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Model } from "../src/engine/api.js";
import { load } from "../src/load.js";

// a real third-party checkpoint beside the project, with results of an independent C program
const FOLDER = "../shared/checkpoints/stories260K";

interface Reference {
  prompt: string;
  prompt_ids: number[];
  last_prompt_logits: number[];
  greedy_text?: string;
  [key: string]: unknown;
}

describe.skipIf(!existsSync(FOLDER))("stories260K", () => {
  const reference: Reference = existsSync(FOLDER)
    ? JSON.parse(readFileSync(`${FOLDER}/reference.json`, "utf8"))
    : undefined;
  const models: Record<string, Model> = {};
  beforeAll(async () => {
    models.float = await load(FOLDER, { worker: false, precision: "float32", cache: "float32" });
    models.int8 = await load(FOLDER, { worker: false, precision: "float32", cache: "int8" });
    models.worker = await load(FOLDER, { precision: "float32", cache: "float32" });
  });
  afterAll(async () => {
    for (const model of Object.values(models)) await model.close();
  });

  test("token ids are the reference's", () => {
    expect(models.float.prompt(reference.prompt).ids).toEqual(reference.prompt_ids);
  });

  test("all logits of the last prompt position are within 1e-3", async () => {
    const logits = await models.float.logits(reference.prompt);
    expect(logits.length).toBe(512);
    for (let i = 0; i < 512; i++) expect(Math.abs(logits[i] - reference.last_prompt_logits[i])).toBeLessThan(1e-3);
  });

  test("logits fed token by token are those of the prompt at once", async () => {
    const reading = await models.float.read(reference.prompt_ids.slice(0, 1));
    await reading.extend(reference.prompt_ids.slice(1, 9));
    for (const id of reference.prompt_ids.slice(9, -1)) await reading.extend([id]);
    const last = await reading.score([reference.prompt_ids.at(-1) as number]);
    const whole = await models.float.score(reference.prompt_ids);
    expect(last.tokens[0].logprob).toBeCloseTo(whole.tokens.at(-1)?.logprob ?? Number.NaN, 4);
    await reading.close();
  });

  for (const kind of ["float", "int8", "worker"])
    test(`greedy text is the reference's (${kind})`, async () => {
      const generation = models[kind].generate(reference.prompt, { maxTokens: 96 });
      let streamed = "";
      for await (const piece of generation) streamed += piece.text;
      const result = await generation.result;
      expect(result.prompt_ids).toEqual(reference.prompt_ids);
      expect(streamed).toBe(result.text);
      expect(result.ids).toEqual(reference.greedy_ids);
    });
});
