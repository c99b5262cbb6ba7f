import { expect, it } from "vitest";
import { toFloats } from "../graph/index.js";
import type { Batch } from "./batch.js";
import { sgd } from "./optimizer.js";
import { TrainingStep } from "./step.js";
import { counting } from "./testing.js";
import { decoder } from "./trainable.js";

/** All weights after one step of plain gradient descent on a batch, and its loss. */
async function after(batch: Batch): Promise<{ loss: number; weights: Map<string, Float32Array> }> {
  const model = decoder({ layers: 2, width: 32, heads: 2, vocabulary: 300 });
  const optimizer = sgd({ rate: 1, momentum: 0, clip: Number.POSITIVE_INFINITY });
  const step = new TrainingStep({ ...model, optimizer, threads: 1 }, (name) =>
    model.trained.includes(name) ? toFloats(model.weights.get(name)) : undefined,
  );
  const { loss } = await step.run([batch], 1, 1);
  const weights = new Map([...step.values].map(([name, { data }]) => [name, data.slice()]));
  await step.release();
  return { loss, weights };
}

const furthest = (a: Map<string, Float32Array>, b: Map<string, Float32Array>): number =>
  Math.max(...[...a].flatMap(([name, x]) => Array.from(x, (value, i) => Math.abs(value - (b.get(name)?.[i] ?? 0)))));

it("takes texts packed into a row as it takes them in rows of their own", async () => {
  const apart = counting({ rows: 2, length: 8 }).batch(0) as Batch;
  const packed: Batch = {
    ...apart,
    rows: 1,
    length: 16,
    documents: Int32Array.from({ length: 16 }, (_, i) => (i < 8 ? 0 : 1)),
    positions: Int32Array.from({ length: 16 }, (_, i) => i % 8),
  };
  const wanted = await after(apart);
  const found = await after(packed);
  expect(found.loss).toBeCloseTo(wanted.loss, 5);
  expect(furthest(found.weights, wanted.weights)).toBeLessThan(1e-5);
  // without the documents' numbers the second text reads the first
  const leaking = await after({ ...packed, documents: new Int32Array(16) });
  expect(furthest(leaking.weights, wanted.weights)).toBeGreaterThan(1e-4);
});
