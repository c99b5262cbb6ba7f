import type { Model } from "../../engine/api.js";
import { FoveaError } from "../../error.js";
import type { Measurement, Setting } from "./measure.js";

/** A method of ours as a setting; `attachMs` is what attaching it took. The model is closed by its owner. */
export interface FoveaSetting extends Setting {
  readonly attachMs: number;
}

/** Attaches a method to a loaded model. What that takes is the first small run with it beyond a second one. */
export async function foveaSetting(model: Model, method: string): Promise<FoveaSetting> {
  await model.logits([0]);
  const first = await milliseconds(() => model.with(method).logits([0]));
  const attached = model.with(method);
  const second = await milliseconds(() => attached.logits([0]));
  return {
    engine: "fovea",
    method,
    attachMs: Math.max(0, first - second),
    measure: (ids, decodeTokens, signal) => measure(attached, ids, decodeTokens, signal),
    close: async () => {},
  };
}

async function milliseconds(run: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await run();
  return performance.now() - start;
}

/** Reads all ids but the last, then generates from the last one on. */
async function measure(
  model: Model,
  ids: readonly number[],
  decodeTokens: number,
  signal: AbortSignal,
): Promise<Measurement> {
  const depth = ids.length - 1;
  const start = performance.now();
  const reading = await model.read(ids.slice(0, depth), { signal });
  const prefill = depth / ((performance.now() - start) / 1000);
  try {
    const cacheBytes = reading.bytes;
    const generation = reading.generate(ids.slice(depth), { maxTokens: decodeTokens + 1, ignoreEos: true, signal });
    let first = 0;
    let last = 0;
    let pieces = 0;
    for await (const _ of generation) {
      last = performance.now();
      if (pieces++ === 0) first = last;
    }
    if (pieces !== decodeTokens + 1) {
      throw new FoveaError("internal", `${pieces} tokens were generated instead of ${decodeTokens + 1}`);
    }
    return { prefill, decode: decodeTokens / ((last - first) / 1000), cacheBytes };
  } finally {
    await reading.close();
  }
}
