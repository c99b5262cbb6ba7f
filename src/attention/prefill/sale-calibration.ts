import type { AttachedMethod, AttentionStep, Partial } from "../../engine/hooks.js";
import { FoveaError } from "../../error.js";
import { method } from "../method.js";
import { endsTurn } from "../turn.js";
import { sale, saleParts } from "./sale.js";

export interface SaleCalibrationOptions {
  /** Error that a head's outputs may have, summed over the prompt, per token (theta). Default 0.4. */
  readonly error?: number;
  /** The largest threshold that is tried; it is halved until the error fits. Default 0.008. */
  readonly threshold?: number;
  /** Sizes of tiles and of what is always read: those that `sale` will run with. */
  readonly queries?: number;
  readonly keys?: number;
  readonly local?: number;
  readonly from?: number;
}

/** Thresholds at or below this become 0: the head is dense. */
const LEAST = 1e-4;

/**
 * Finds SALE's thresholds: attach `attached` and read prompts; outputs stay those of full attention. `thresholds()` then
 * gives one per layer and query head, [L * Hq], for `sale({ threshold })`: the largest at which each prompt's error was
 * small enough.
 *
 * @example
 * const calibration = saleCalibration();
 * for (const prompt of prompts) await model.with(calibration.attached).read(prompt);
 * const faster = model.with(sale({ threshold: calibration.thresholds() }));
 */
export function saleCalibration(options: SaleCalibrationOptions = {}): {
  readonly attached: AttachedMethod;
  thresholds(): number[];
} {
  const { error = 0.4, threshold = 0.008, queries = 64, keys = 32, local = 128, from = 1024 } = options;
  const tried: number[] = [];
  for (let tau = threshold; tau > LEAST; tau /= 2) tried.push(tau);
  /** Per layer: index into `tried` per head so far, and this prompt's errors [tried, Hq]. */
  const layers = new Map<number, { chosen: number[]; errors: Float64Array }>();
  let shape: AttentionStep["model"] | undefined;

  async function compare(step: AttentionStep): Promise<Partial[]> {
    const exact = await step.attend({});
    if (step.phase === "decode") return [exact];
    const { heads, headDim } = step.model;
    shape = step.model;
    let layer = layers.get(step.layer);
    if (!layer || step.firstRow === 0)
      layers.set(
        step.layer,
        (layer = {
          chosen: layer?.chosen ?? Array<number>(heads).fill(0),
          errors: new Float64Array(tried.length * heads),
        }),
      );
    for (const [i, tau] of tried.entries()) {
      const params = { threshold: tau, queries, keys, local, from, denseLayers: 0 };
      const sparse = await step.attend((await saleParts(step, params))[0]);
      for (let at = 0; at < exact.output.length; at++)
        layer.errors[i * heads + (Math.floor(at / headDim) % heads)] += Math.abs(sparse.output[at] - exact.output[at]);
    }
    if (endsTurn(step))
      for (let h = 0; h < heads; h++)
        while (layer.chosen[h] < tried.length && layer.errors[layer.chosen[h] * heads + h] >= error * step.totalRows)
          layer.chosen[h]++;
    return [exact];
  }

  const calibrating = method({
    name: "sale-calibration",
    does: "Compares outputs at several thresholds with full attention's, and gives the latter.",
    paper: sale.card.paper,
    hooks: ["select"],
    create: () => ({ rowBlock: queries, select: compare }),
  });
  return {
    attached: calibrating(),
    thresholds() {
      if (!shape)
        throw new FoveaError("bad-input", "no prompt has been read yet", {
          hint: "attach it to a model and read prompts first",
        });
      const { heads } = shape;
      return Array.from({ length: shape.layers * heads }, (_, i) => {
        const layer = layers.get(Math.floor(i / heads));
        return layer ? (tried[layer.chosen[i % heads]] ?? 0) : 0;
      });
    },
  };
}
