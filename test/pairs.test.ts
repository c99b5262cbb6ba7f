import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type AnyMethod, catalog } from "../src/attention/index.js";
import { Engine } from "../src/engine/engine.js";
import { FoveaError } from "../src/error.js";
import { type Checkpoint, openCheckpoint } from "../src/models/index.js";

const MODEL = fileURLToPath(new URL("../models/tiny", import.meta.url));
const TEXT =
  "The harbour has two lights. The keeper of the north light is Ada Moreau, and she counts the boats. ".repeat(3);

/** Hooks of which only one method may act in a layer. */
const ONE_ONLY = new Set(["position", "mechanism"]);

describe("any two methods of the catalog", () => {
  let checkpoint: Checkpoint;
  let engine: Engine;
  let ids: number[];

  beforeAll(async () => {
    checkpoint = await openCheckpoint(MODEL);
    engine = await Engine.create(checkpoint, { threads: 1, memory: 2 ** 30, precision: "float32", cache: "float32" });
    ids = checkpoint.tokenizer.encode(TEXT, { special: true }).ids.slice(0, 60);
  });
  afterAll(async () => {
    await engine?.close();
    await checkpoint?.close();
  });

  /** A method as its first trial has it, where this model can run it. */
  function attached(factory: AnyMethod) {
    const made = factory.from(factory.card.trials[0]?.parameters ?? factory.card.exact ?? {});
    try {
      made.check?.(engine.shape);
    } catch (error) {
      if (error instanceof FoveaError) return undefined;
      throw error;
    }
    return made;
  }

  const names = [...catalog.keys()].filter((name) => name !== "full");

  it.each(names)("%s composes with every other, or says why not", async (name) => {
    const one = catalog.get(name) as AnyMethod;
    let ran = 0;
    for (const other of names) {
      const two = catalog.get(other) as AnyMethod;
      const pair = [attached(one), attached(two)];
      const [first, second] = pair;
      if (!first || !second || name === other) continue;
      const shared = one.card.hooks.filter((hook) => two.card.hooks.includes(hook));
      const pairName = `${name} + ${other}`;
      let composed: ReturnType<Engine["compose"]>;
      try {
        composed = engine.compose([first, second]);
      } catch (error) {
        // a refusal is one of the law's, with both names and a reason
        const { message } = refusal(error, pairName);
        expect(message).toContain(name);
        expect(message).toContain(other);
        expect(shared, `${message}: methods of different hooks compose`).not.toEqual([]);
        continue;
      }
      expect(
        shared.filter((hook) => ONE_ONLY.has(hook)),
        `${pairName}: only one may act`,
      ).toEqual([]);
      const sequence = engine.sequence(composed);
      try {
        await engine.prefill(sequence, await engine.prompt(sequence, ids), { wanted: "last" });
        for (const id of ids.slice(0, 2)) {
          const [logits] = await engine.decode([{ sequence, id }]);
          expect(logits.every(Number.isFinite), pairName).toBe(true);
        }
        ran++;
      } catch (error) {
        // what a method asks for in a step (ready results, queries of its own) is known in the step only
        refusal(error, pairName);
      } finally {
        sequence.close();
      }
    }
    // most pairs run; a method that this model cannot run, runs with none
    if (attached(one)) expect(ran).toBeGreaterThan(names.length / 3);
  });

  /** An error that says that two methods do not go together. */
  function refusal(error: unknown, pairName: string): FoveaError {
    expect(error, `${pairName}: ${error}`).toBeInstanceOf(FoveaError);
    const refused = error as FoveaError;
    expect(["unsupported", "bad-input"], `${pairName}: ${refused.message}`).toContain(refused.code);
    expect(refused.message.length).toBeGreaterThan(20);
    return refused;
  }
});
