import { z } from "zod";
import type { AttentionStep, ModelShape, Rows } from "../../engine/hooks.js";
import { FoveaError } from "../../error.js";
import { layerNumbers } from "../calibration.js";
import { oncePerModel } from "../files.js";
import { method } from "../method.js";
import { clusterHeads, cosineDistances } from "./head-clusters.js";

const parameters = z.object({
  clusters: z
    .union([z.string().min(1), z.array(z.int().min(1)), z.number().positive()])
    .default(1 / 8)
    .describe(
      "clusters of each layer: a calibration file, a list, or one number or share of the heads for all layers (c)",
    ),
  first: z
    .number()
    .min(0)
    .max(1)
    .default(18 / 32)
    .describe("where `clusters` is one number: the share of first layers that keep all their heads"),
  probe: z.int().min(2).default(5).describe("first tokens whose attention tells which heads are alike"),
});
type Parameters = z.output<typeof parameters>;

/** What a layer knows of its heads: the probe's weights while they come in, then who stands for whom. */
interface LayerState {
  /** [Hq, probe, probe], while rows are missing. */
  probe?: Float32Array;
  seen: number;
  /** [Hq] each head's representative. */
  representative?: Int32Array;
}
interface State {
  layers: Map<number, LayerState>;
}

/**
 * CHAI: heads whose attention to the first few tokens is alike are a cluster; from then on its first head's weights are
 * those of the whole cluster, and each head sums its own values by them.
 */
export const chai = method({
  name: "chai",
  family: "compression",
  does: "Lets heads that look alike in the first tokens share one head's attention weights.",
  paper: {
    title: "CHAI: Clustered Head Attention for Efficient LLM Inference",
    venue: "ICML 2024",
    url: "https://github.com/facebookresearch/chai",
  },
  needs:
    "numbers of clusters of the model's layers, once (`clusterCounts`); which heads they hold is found in each text",
  cost: "weights of every row: more time than full attention; keys that nobody reads are not freed yet",
  facts: "a sheet made from the official code (a patch to LLaMA-1); parts of the paper from memory",
  deviations: [
    "the probe's weights are causal; the released code leaves its mask out",
    "rows of the probe itself keep all their heads",
    "query heads are clustered, also where they share keys",
    "the default is LLaMA-7B's shipped setting, scaled: all heads in the first 18 of 32 layers, an eighth after them",
  ],
  exact: { clusters: 1, first: 1 },
  trials: [
    { parameters: { clusters: 1 / 2, first: 0 }, uniform: true },
    { parameters: { clusters: 2, first: 0.5 }, uniform: true },
  ],
  status: "experimental",
  parameters,
  scope: "layers",
  hooks: ["pattern"],
  replacesPattern: true,
  check: (model, params) => void layerClusters(params, model),
  create(params) {
    const counts = oncePerModel((model) => layerClusters(params, model));
    return {
      replacesPattern: true,
      state: (): State => ({ layers: new Map() }),
      pattern(step, rows) {
        const count = counts(step.model)[step.layer];
        if (count < step.model.heads) shareRows(step as AttentionStep<State>, rows, count, params.probe);
      },
    };
  },
});

/** Clusters of each layer [L], at most its heads. Throws bad-input for numbers that are none. */
export function layerClusters({ clusters, first }: Parameters, model: ModelShape): number[] {
  const { layers, heads } = model;
  if (typeof clusters !== "number") {
    const list = layerNumbers(clusters, "chai", model);
    const wrong = list.find((c) => !(Number.isInteger(c) && c >= 1));
    if (wrong !== undefined)
      throw new FoveaError("bad-input", `chai: ${wrong} clusters; expected a whole number of them`);
    return list.map((c) => Math.min(c, heads));
  }
  const own = clusters < 1 ? Math.max(1, Math.round(clusters * heads)) : Math.min(heads, Math.round(clusters));
  return Array.from({ length: layers }, (_, l) => (l < Math.round(first * layers) ? heads : own));
}

/** Rows of the probe are kept and left alone; the rows after them take their representatives' weights. */
function shareRows(step: AttentionStep<State>, rows: Rows, count: number, probe: number): void {
  const known = step.state.layers.get(step.layer);
  const own: LayerState = known ?? { probe: new Float32Array(rows.heads * probe * probe), seen: 0 };
  if (!known) step.state.layers.set(step.layer, own);
  for (let t = 0; t < rows.rows; t++) {
    const position = step.positions[t];
    if (position < probe) keepProbe(own, rows, t, position, probe);
    else shareRow(representativesOf(own, rows.heads, count), rows, t, step);
  }
}

function keepProbe(own: LayerState, { data, heads, rows, keys }: Rows, row: number, position: number, probe: number) {
  if (!own.probe) return;
  for (let h = 0; h < heads; h++)
    for (let s = 0; s <= position && s < keys; s++)
      own.probe[(h * probe + position) * probe + s] = data[(h * rows + row) * keys + s];
  own.seen++;
}

/** Who stands for whom, once all of the probe was seen; a text that began without it stays as it is. */
function representativesOf(own: LayerState, heads: number, count: number): Int32Array {
  if (own.representative) return own.representative;
  const { probe } = own;
  const complete = probe && own.seen * own.seen * heads === probe.length;
  own.representative = complete
    ? clusterHeads(cosineDistances(probe, heads), count)
    : Int32Array.from({ length: heads }, (_, h) => h);
  own.probe = undefined;
  return own.representative;
}

function shareRow(representative: Int32Array, rows: Rows, row: number, { view, model }: AttentionStep): void {
  const { data, heads, keys } = rows;
  const group = heads / model.kvHeads;
  for (let h = 0; h < heads; h++) {
    const from = representative[h];
    if (from === h) continue;
    const [own, other] = [Math.floor(h / group), Math.floor(from / group)];
    if (view.length(own) !== view.length(other))
      throw new FoveaError("unsupported", "chai shares attention weights between heads that keep different tokens", {
        hint: "attach it without methods that keep tokens for each head apart",
      });
    const at = (head: number) => (head * rows.rows + row) * keys;
    data.copyWithin(at(h), at(from), at(from) + keys);
  }
}
