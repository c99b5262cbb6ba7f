import { describe, expect, it } from "vitest";
import { h2o } from "./eviction/h2o.js";
import { snapkv } from "./eviction/snapkv.js";
import { full } from "./full.js";
import { PlainLayer } from "./plain.js";
import { streamingLlm } from "./streaming/streaming-llm.js";
import { maxDifference, randomRows, sliceRows } from "./testing.js";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 8 };
const WIDTH = SHAPE.heads * SHAPE.headDim;

/** A very long prompt comes in pieces, the later ones as extensions; methods must not see a difference. */
describe("a prompt in pieces", () => {
  const small = { sinks: 2, window: 9 };
  it.each([
    full(),
    streamingLlm(small),
    streamingLlm({ ...small, positions: "true" }),
    streamingLlm({ ...small, prompt: "masked" }),
    streamingLlm({ ...small, prompt: "dense" }),
    h2o({ heavy: 1 / 8, recent: 1 / 8 }),
    h2o({ heavy: 5, recent: 4, variant: "mask" }),
    h2o({ heavy: 1 / 8, recent: 1 / 8, variant: "mask" }),
    snapkv({ capacity: 1 / 4, window: 6 }),
  ])("equals the prompt as a whole: $spec", async (attached) => {
    const tokens = 64;
    const rows = randomRows(tokens, SHAPE, 31);
    const whole = new PlainLayer(SHAPE, [attached]);
    const wanted = await whole.step(sliceRows(rows, tokens, 0, 54));
    const pieces = new PlainLayer(SHAPE, [attached], { blockRows: 7 });
    const got = new Float32Array(54 * WIDTH);
    for (let at = 0; at < 54; at += 18)
      got.set(await pieces.step(sliceRows(rows, tokens, at, at + 18), { firstRow: at, totalRows: 54 }), at * WIDTH);
    expect(maxDifference(got, wanted)).toBeLessThan(2e-6);
    for (let kv = 0; kv < SHAPE.kvHeads; kv++) expect([...pieces.positions(kv)]).toEqual([...whole.positions(kv)]);
    for (let t = 54; t < tokens; t++) {
      const row = sliceRows(rows, tokens, t, t + 1);
      expect(maxDifference(await pieces.step(row), await whole.step(row))).toBeLessThan(2e-6);
    }
  });
});
