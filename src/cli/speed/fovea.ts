import type { Model } from "../../engine/api.js";
import { FoveaError } from "../../error.js";
import type { Measurement, Setting } from "./measure.js";

/** A method of ours as a setting; `attachMs` is what attaching it took. The model is closed by its owner. */
export interface FoveaSetting extends Setting {
  readonly attachMs: number;
}

/** Attaches a method to a loaded model, timed. */
export function foveaSetting(model: Model, method: string): FoveaSetting {
  const before = performance.now();
  const attached = model.with(method);
  const attachMs = performance.now() - before;
  return {
    engine: "fovea",
    method,
    attachMs,
    measure: (ids, decodeTokens, signal) => measure(attached, ids, decodeTokens, signal),
    close: async () => {},
  };
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
