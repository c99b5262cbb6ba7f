import { existsSync, readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { conformance } from "../src/attention/conformance.js";
import { catalog } from "../src/attention/index.js";
import { Engine } from "../src/engine/engine.js";
import { type Checkpoint, openCheckpoint } from "../src/models/index.js";
import { randomCheckpoint } from "./random-checkpoint.js";

const STORIES = new URL("../../shared/checkpoints/stories260K/", import.meta.url).pathname;
/** A model of random weights, and a trained one where it is there. */
const MODELS = {
  "random weights": () => randomCheckpoint("llama", { layers: 5, heads: 8, kvHeads: 4, maxPositions: 512 }),
  stories260K: () => openCheckpoint(STORIES),
};
const TEXT =
  "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her red ball. One day, " +
  "her mom said it was going to rain. Lily was sad, but her friend Tom had an idea. They made a big boat out of paper and " +
  "put it in the water. The boat went far away and they ran after it. Then they saw a small frog on the boat. The frog " +
  "was happy and said thank you. Lily and Tom laughed and went home to eat cake with mom.";

describe.each(Object.entries(MODELS))("every method of the catalog, on %s", (name, open) => {
  const there = name !== "stories260K" || existsSync(STORIES);
  let checkpoint: Checkpoint;
  let engine: Engine;
  let ids: number[];

  beforeAll(async () => {
    if (!there) return;
    checkpoint = await open();
    engine = await Engine.create(checkpoint, { threads: 2, memory: 2 ** 30, precision: "float32", cache: "float32" });
    // as many as the trained model has for this text; a tokenizer of bytes has more
    ids = checkpoint.tokenizer.encode(TEXT, { special: true }).ids.slice(0, 160);
    expect(ids.length).toBeGreaterThan(100);
  });
  afterAll(async () => {
    await engine?.close();
    await checkpoint?.close();
  });

  it.skipIf(!there).each([...catalog.keys()])("%s keeps what all methods promise", async (name) => {
    const factory = catalog.get(name);
    if (!factory) throw new Error(name);
    const results = await conformance(engine, factory, { ids });
    expect(results.length).toBeGreaterThanOrEqual(5);
    expect(results.filter((r) => !r.passed)).toEqual([]);
  });
});

it("stands in docs/methods.md", () => {
  const text = readFileSync(new URL("../docs/methods.md", import.meta.url), "utf8");
  const named = [...text.matchAll(/^\| `([\w-]+)` \| /gm)].map(([, name]) => name);
  expect(named.sort()).toEqual([...catalog.keys()].sort());
});
