import { existsSync, readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { convert, openCheckpoint } from "../src/models/index.js";
import { compileWhole, greedy, logitsOf } from "./whole-model.js";

const FOLDER = join(import.meta.dirname, "../../shared/checkpoints/stories260K");

interface Reference {
  prompt: string;
  prompt_ids: number[];
  last_prompt_logits: number[];
  prompt_nll: number;
  greedy_ids: number[];
  greedy_text: string;
}

// The reference comes from running the checkpoint with the code that it was trained with.
describe.skipIf(!existsSync(FOLDER))("stories260K, uncut graph", () => {
  let folder = "";
  let reference: Reference;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "fovea-stories-"));
    reference = JSON.parse(readFileSync(join(FOLDER, "reference.json"), "utf8"));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  async function check(name: string, tolerance: number): Promise<void> {
    const checkpoint = await openCheckpoint(name);
    try {
      const model = await compileWhole(checkpoint.config, checkpoint.weights);
      expect(checkpoint.tokenizer.encode(reference.prompt).ids).toEqual(reference.prompt_ids);
      const logits = await logitsOf(model, reference.prompt_ids);
      const last = logits.subarray(-checkpoint.config.vocab);
      const worst = Math.max(...reference.last_prompt_logits.map((x, i) => Math.abs(x - last[i])));
      expect(worst).toBeLessThan(tolerance);
      const ids = await greedy(model, reference.prompt_ids, tolerance < 0.01 ? 96 : 16);
      expect(ids).toEqual(reference.greedy_ids.slice(0, ids.length));
      if (ids.length === 96) expect(checkpoint.tokenizer.decode(ids, { start: false })).toBe(reference.greedy_text);
      await model.segment.release();
    } finally {
      await checkpoint.close();
    }
  }

  it("gives the reference's logits and text from safetensors", () => check(FOLDER, 1e-3));

  it("and from a GGUF file written by convert", async () => {
    await convert(FOLDER, join(folder, "stories.gguf"), { type: "f32" });
    await check(join(folder, "stories.gguf"), 1e-3);
  });

  it("and from a folder written from that GGUF file", async () => {
    await convert(join(folder, "stories.gguf"), join(folder, "again"));
    await check(join(folder, "again"), 1e-3);
  });

  it("nearly from Q8_0, whose codes survive another round exactly", async () => {
    await convert(FOLDER, join(folder, "q8.gguf"), { type: "q8_0" });
    await check(join(folder, "q8.gguf"), 0.5);
    await convert(join(folder, "q8.gguf"), join(folder, "q8-again.gguf"), { type: "q8_0" });
    const [a, b] = [readFileSync(join(folder, "q8.gguf")), readFileSync(join(folder, "q8-again.gguf"))];
    // The files differ in nothing but the model's name, which is the file's.
    expect(b.subarray(-200_000).equals(a.subarray(-200_000))).toBe(true);
  });
});
