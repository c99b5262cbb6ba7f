import { describe, expect, it } from "vitest";
import { engineFor, randomCheckpoint, someIds } from "../../test/random-checkpoint.js";
import { duoattention, parseHeadList, printHeadList } from "../attention/index.js";
import { compile } from "../graph/index.js";
import { batchFeeds, openCheckpoint } from "../models/index.js";
import type { Batch } from "./batch.js";
import { gateLoss, gateTrainable, optimiseGates } from "./duoattention.js";
import { sgd } from "./optimizer.js";
import { passkeys } from "./passkeys.js";
import { TrainingStep } from "./step.js";

const checkpoint = randomCheckpoint("llama", { layers: 2, heads: 4, kvHeads: 2 });
const LENGTH = 48;
const MASK = { sinks: 2, window: 6 };

function batchOf(seed: number): Batch {
  const ids = Int32Array.from(someIds(LENGTH, checkpoint.config.vocab, seed));
  const targets = Int32Array.from(ids, (_, i) => ids[i + 1] ?? -1);
  return { rows: 1, length: LENGTH, ids, targets, weights: Float32Array.from(ids, (_, i) => Number(i > 30)) };
}

/** The loss at some gates, and how one step of plain descent moves them: by the gradient. */
async function lossAt(gates: Float32Array, l1: number) {
  const model = gateTrainable(checkpoint, MASK, gates);
  const optimizer = sgd({ rate: 1, momentum: 0, clip: Number.POSITIVE_INFINITY });
  const step = new TrainingStep({ ...model, optimizer, loss: gateLoss(l1), threads: 1 }, () => gates);
  const { loss } = await step.run([batchOf(3)], 1, 1);
  const after = step.values.get("gates")?.data as Float32Array;
  const gradient = gates.map((g, i) => g - after[i]);
  await step.release();
  return { loss, gradient };
}

describe("DuoAttention's gates", () => {
  it("cost nothing at 1 but their own weight", async () => {
    const { loss } = await lossAt(new Float32Array(4).fill(1), 0);
    expect(loss).toBeLessThan(1e-10);
    expect((await lossAt(new Float32Array(4).fill(1), 0.05)).loss).toBeCloseTo(0.05, 6);
    expect((await lossAt(new Float32Array(4), 0)).loss).toBeGreaterThan(1e-4);
  });

  it("have the gradient that finite differences give", async () => {
    const gates = Float32Array.of(0.8, 0.3, 0.5, 0.6);
    const { gradient } = await lossAt(gates, 0.05);
    for (let i = 0; i < gates.length; i++) {
      const moved = (by: number) =>
        lossAt(
          gates.map((g, j) => (j === i ? g + by : g)),
          0.05,
        );
      const [up, down] = [await moved(0.02), await moved(-0.02)];
      expect(gradient[i]).toBeCloseTo((up.loss - down.loss) / 0.04, 3);
    }
  });

  it("at 0 are the runtime with all heads streaming", async () => {
    const { config } = checkpoint;
    const graph = gateTrainable(checkpoint, MASK, new Float32Array(4)).build(LENGTH);
    const batch = batchOf(3);
    const model = gateTrainable(checkpoint, MASK, new Float32Array(4));
    const segment = await compile(
      { inputs: graph.inputs, outputs: { logits: graph.logits } },
      { weights: model.weights, threads: 1 },
    );
    const feeds = batchFeeds(config, batch);
    const { logits } = await segment.run(Object.fromEntries(segment.inputNames.map((n) => [n, feeds[n]])));
    await segment.release();
    const engine = await engineFor(checkpoint);
    const sequence = engine.sequence(engine.compose([duoattention({ heads: [], ...MASK })]));
    const wanted = new Float32Array(LENGTH * config.vocab);
    await engine.prefill(sequence, [...batch.ids], {
      wanted: "all",
      onLogits: (first, rows, data) => wanted.set(data.subarray(0, rows * config.vocab), first * config.vocab),
    });
    const got = logits.data as Float32Array;
    let worst = 0;
    for (let i = 0; i < wanted.length; i++) worst = Math.max(worst, Math.abs(wanted[i] - got[i]));
    expect(worst).toBeLessThan(1e-4);
    sequence.close();
    await engine.close();
  });
});

describe("optimiseGates on models/tiny, whose first layer reads the token before and whose second copies", () => {
  it("keeps the gate of the head that retrieves and lets the local one fall", async () => {
    const model = await openCheckpoint("models/tiny");
    const text = "birds sing at dawn and rain falls on the hills. the boat came from the west. ";
    const data = passkeys({ tokenizer: model.tokenizer, text, length: 160, passkeys: 2, words: 2 });
    const seen: number[] = [];
    const { gates, list } = await optimiseGates({
      ...{ model, data, steps: 40, rate: 0.08, l1: 0.05, sinks: 2, window: 12, madeBy: "the test", threads: 1 },
      onProgress: ({ loss }) => seen.push(loss),
    });
    expect(gates.length).toBe(2);
    expect(gates[0]).toBeLessThan(0.2);
    expect(gates[1]).toBeGreaterThan(0.5);
    expect(list.heads[0]).toEqual({ layer: 1, head: 0 });
    expect(seen.at(-1)).toBeLessThan(seen[0]);
    const read = parseHeadList(printHeadList(list));
    expect(read.heads).toEqual(list.heads);
    expect(read.model).toBe(model.hash);
    await model.close();
  });
});

describe("passkeys", () => {
  it("hide each passkey in the text and put weight on questions and answers alone", async () => {
    const model = await openCheckpoint("models/tiny");
    const { tokenizer } = model;
    const data = passkeys({ tokenizer, text: "the tide is low. ", length: [160, 176], passkeys: 3, words: 2, seed: 5 });
    const lengths = new Set<number>();
    for (let i = 0; i < 8; i++) {
      const { ids, length, weights, targets } = await data.batch(i);
      lengths.add(length);
      const text = tokenizer.decode([...ids]);
      const told = [...text.matchAll(/Remember the (\w+) passkey: ([a-z]+ [a-z]+)\./g)];
      expect(told.map(([, ordinal]) => ordinal)).toEqual(["first", "second", "third"]);
      for (const [, ordinal, words] of told) expect(text).toContain(`What is the ${ordinal} passkey? ${words}.`);
      const first = weights.indexOf(1);
      expect(tokenizer.decode([...targets.subarray(first, length - 1)])).toMatch(/^\s*What is the first passkey/);
      expect(weights.subarray(first, length - 1).every((w) => w === 1)).toBe(true);
      expect(weights[length - 1]).toBe(0);
    }
    expect([...lengths].sort()).toEqual([160, 176]);
    expect(await data.batch(3)).toEqual(await data.batch(3));
    await model.close();
    expect(() => passkeys({ tokenizer, text: "x", length: 20 }).batch(0)).toThrow(/cannot hold 10 passkeys/);
  });
});
