import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { run } from "../src/cli/run.js";
import { convert, openCheckpoint } from "../src/models/index.js";
import { adamW, fineTune, readMetrics, texts, train } from "../src/train/index.js";
import { capture } from "./capture.js";
import { openOracle } from "./llama-oracle.js";
import { compileWhole, logProbabilities, logSoftmax } from "./whole-model.js";

const STORIES = join(import.meta.dirname, "../../shared/checkpoints/stories260K");
const PAGE = `The lighthouse keeper kept a red book. Every night he wrote in the red book how many ships had passed. When the
fog came he rang the bell. The bell was old and the rope was new. One night no ship passed, and he wrote a nought in the
red book and went to sleep. In the morning a small boat lay on the sand below the lighthouse, and in the boat there sat
a grey cat. The keeper gave the cat some fish. The cat slept beside the red book from then on.`;

let folder = "";
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "fovea-training-"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

async function fovea(...args: string[]) {
  const io = capture();
  const code = await run(args, io);
  return { code, out: io.text(), err: io.errors() };
}

describe.skipIf(!existsSync(STORIES))("fine-tuning stories260K on a page of text", () => {
  it("lowers its loss there, and llama.cpp gives the result's log-probabilities", async () => {
    const checkpoint = await openCheckpoint(STORIES);
    const data = texts([PAGE], { tokenizer: checkpoint.tokenizer, rows: 1, length: 128 });
    const trained = await train({
      model: fineTune(checkpoint),
      data,
      steps: 40,
      optimizer: adamW({ rate: 1e-3 }),
      logEvery: 1,
    });
    await checkpoint.close();
    const losses = trained.metrics.map((m) => m.loss as number);
    expect(losses[0]).toBeGreaterThan(2);
    expect(losses[losses.length - 1]).toBeLessThan(losses[0] / 3);
    await trained.save(join(folder, "tuned"));
    await convert(join(folder, "tuned"), join(folder, "tuned.gguf"), { type: "f32" });
    const tuned = await openCheckpoint(join(folder, "tuned.gguf"));
    const ids = tuned.tokenizer.encode(PAGE).ids.slice(0, 100);
    const ours = await logProbabilities(await compileWhole(tuned.config, tuned.weights), ids);
    const oracle = await openOracle(join(folder, "tuned.gguf"), tuned.config.vocab);
    const theirs = (await oracle.logits(ids)).map(logSoftmax);
    await oracle.close();
    await tuned.close();
    for (const [t, row] of ours.entries())
      for (const [v, x] of row.entries()) expect(Math.abs(x - theirs[t][v])).toBeLessThan(1e-2);
  });
});

describe("fovea train", () => {
  const recipe = {
    model: { layers: 1, width: 32, heads: 2 },
    tokenizer: { vocabulary: 300 },
    data: { files: ["page.txt", "lines.jsonl"], holdOut: 0.2 },
    rows: 2,
    length: 32,
    steps: 12,
    logEvery: 2,
    saveEvery: 5,
    optimizer: { name: "adamw", rate: 0.01 },
    schedule: { name: "wsd", warmup: 2 },
    folder: "run",
  };

  beforeEach(async () => {
    await writeFile(join(folder, "page.txt"), PAGE);
    const lines = Array.from({ length: 12 }, (_, i) => `${JSON.stringify({ text: `${PAGE} Page ${i}.` })}\n`);
    await writeFile(join(folder, "lines.jsonl"), lines.join(""));
    await writeFile(join(folder, "recipe.json"), JSON.stringify(recipe));
  });

  it("trains as a recipe says, into a folder that generate loads and plot draws", async () => {
    const trained = await fovea("train", join(folder, "recipe.json"), "--json");
    expect([trained.code, trained.err]).toEqual([0, expect.stringContaining("held_out_loss")]);
    expect(JSON.parse(trained.out)).toMatchObject({ step: 12, finished: true, metrics: { step: 12 } });
    const generated = await fovea("generate", "-m", join(folder, "run/step-0000012"), "-p", "The", "--max-tokens", "4");
    expect(generated.code).toBe(0);
    const drawn = await fovea(
      "plot",
      join(folder, "run"),
      "--metrics",
      "loss,held_out_loss",
      "-o",
      join(folder, "p.svg"),
    );
    expect(drawn.out).toContain("loss (6 points)");
    expect(await readFile(join(folder, "p.svg"), "utf8")).toMatch(/^<svg[\s\S]*held_out_loss[\s\S]*<\/svg>\n$/);
    // more steps: the run goes on where it ended
    const more = await fovea("train", join(folder, "recipe.json"), "--steps", "14");
    expect(more.out).toMatch(/^trained 14 steps/);
    expect((await readMetrics(join(folder, "run/metrics.jsonl"))).map((m) => m.step)).toEqual([2, 4, 6, 8, 10, 12, 14]);
  });

  it("takes a module that exports options, and tasks", async () => {
    await writeFile(
      join(folder, "task.mjs"),
      'export default async () => ({ model: { layers: 1, width: 32 }, data: { task: "recall", pairs: 2, keys: 8, values: 8 }, rows: 8, steps: 3 });',
    );
    const { code, err } = await fovea("train", join(folder, "task.mjs"), "--folder", join(folder, "task"), "--json");
    expect([code, err]).toEqual([0, expect.stringContaining("accuracy")]);
  });

  it("trains a mechanism, which the engine then runs from the checkpoint", async () => {
    const model = { ...recipe.model, mechanism: { name: "gated-delta-rule", parameters: { chunk: 8 } } };
    await writeFile(join(folder, "delta.json"), JSON.stringify({ ...recipe, model, steps: 3 }));
    expect((await fovea("train", join(folder, "delta.json"))).code).toBe(0);
    const text = await fovea(
      "generate",
      "-m",
      join(folder, "run/step-0000003"),
      "-p",
      "The",
      "--max-tokens",
      "4",
      "--json",
    );
    expect(JSON.parse(text.out)).toMatchObject({ finish: "length" });
    const unknown = { ...recipe, model: { mechanism: { name: "delta" } } };
    await writeFile(join(folder, "delta.json"), JSON.stringify(unknown));
    expect((await fovea("train", join(folder, "delta.json"))).err).toMatch(/no mechanism is called "delta"/);
  });

  it("says what is wrong with a recipe", async () => {
    const tell = async (change: object, ...more: string[]) => {
      await writeFile(join(folder, "bad.json"), JSON.stringify({ ...recipe, ...change }));
      const { code, err } = await fovea("train", join(folder, "bad.json"), ...more);
      return `${code} ${err}`;
    };
    expect(await tell({ steps: 0 })).toMatch(/^1 error: .*bad\.json: steps: /);
    expect(await tell({ model: { layer: 2 } })).toMatch(/model: Unrecognized key: "layer"/);
    expect(await tell({ data: { files: ["nowhere.txt"] } })).toMatch(/cannot read the data file .*nowhere\.txt/);
    expect(await tell({ model: undefined })).toMatch(/neither "model" nor|neither "model" and "fineTune"/);
    expect(await tell({ optimizer: { name: "adam" } })).toMatch(/optimizer\.name/);
    expect(await tell({ folder: undefined })).toMatch(/^2 error: where do checkpoints go/);
    expect((await fovea("train", join(folder, "none.json"))).err).toMatch(/cannot read .*none\.json/);
    expect((await fovea("plot", join(folder, "none"), "-o", "x.svg")).err).toMatch(/there is no run/);
  });
});
