import { FoveaError } from "../error.js";
import { constant, exportOnnx, input, Tensor, type WeightSource } from "../graph/index.js";
import { buildModel } from "./block.js";
import type { ModelConfig } from "./config.js";
import { canonicalTensors } from "./names.js";
import { rotaryTable } from "./rotary.js";

export interface ExportOptions {
  /** Default float32: a file that runs wherever ONNX does. int8 and int4 need ONNX Runtime. */
  precision?: "float32" | "int8" | "int4";
  /** Names of taps to give out, e.g. "logits" or "pattern.3". Default logits. */
  outputs?: readonly string[];
}

/**
 * A whole model as one ONNX file: `ids` (int64 [T]) in, `logits` ([T, V]) out, or any other taps. Positions count from
 * 0 and are part of the graph, so a plain ONNX session needs nothing but the ids, and `memory` ([M, m]) where the model's
 * mechanism reads one.
 *
 * @throws FoveaError "bad-input" for an unknown output, "too-large" past 2 GiB
 */
export async function exportModel(
  config: ModelConfig,
  weights: WeightSource,
  { precision = "float32", outputs = ["logits"] }: ExportOptions = {},
): Promise<Uint8Array> {
  const graph = buildModel(config);
  const missing = outputs.find((name) => !graph.taps.has(name));
  if (missing !== undefined || outputs.length === 0) {
    throw new FoveaError("bad-input", `the model has no tap ${JSON.stringify(missing ?? "")}`, {
      hint: "taps are logits, final_norm, embeddings, and per layer l: residual.l, q.l, k.l, v.l, pattern.l, heads.l, attn_out.l, mlp_out.l",
    });
  }
  await weights.prefetch?.(canonicalTensors(config).map(({ name }) => name));
  const ids = input("ids", ["T"], "int64");
  const replace = substitution(new Map([[graph.ids, ids], ...positionInputs(config, graph.inputs, ids)]));
  const taps = outputs.map((name) => [name, replace(graph.taps.get(name) as Tensor)]);
  const { memory } = graph.inputs;
  return exportOnnx(
    { inputs: { ids, ...(memory && { memory }) }, outputs: Object.fromEntries(taps) },
    { weights, precision },
  );
}

/** What stands for the inputs that depend on positions: the same values, computed from the number of ids. */
function positionInputs(
  config: ModelConfig,
  inputs: Readonly<Record<string, Tensor>>,
  ids: Tensor,
): [Tensor, Tensor][] {
  const positions = ids.range(0); // [T]
  const replaced: [Tensor, Tensor][] = [];
  if (inputs.positions) replaced.push([inputs.positions, positions]);
  const { rotary } = config;
  if (!rotary) return replaced;
  const layers = Array.from({ length: config.layers }, (_, l) => l);
  for (const local of [false, true]) {
    const [cos, sin] = local ? [inputs.cos_local, inputs.sin_local] : [inputs.cos, inputs.sin];
    if (!cos || !sin) continue;
    const isLocal = (l: number): boolean => rotary.localBase !== undefined && rotary.localLayers?.[l] === true;
    const layer = layers.find((l) => isLocal(l) === local) as number;
    const { inverse, multiplier } = rotaryTable(rotary, layer);
    const angles = positions
      .cast("float32")
      .unsqueeze(1)
      .mul(constant(inverse, [1, inverse.length])); // [T, dims / 2]
    replaced.push([cos, angles.cos().mul(multiplier)], [sin, angles.sin().mul(multiplier)]);
  }
  return replaced;
}

/** Rebuilds graphs with some tensors replaced by others of the same shape. */
function substitution(by: ReadonlyMap<Tensor, Tensor>): (tensor: Tensor) => Tensor {
  const done = new Map(by);
  return function replace(tensor: Tensor): Tensor {
    const known = done.get(tensor);
    if (known) return known;
    const inputs = tensor.inputs.map(replace);
    const same = inputs.every((each, i) => each === tensor.inputs[i]);
    const result = same ? tensor : new Tensor(tensor.op, inputs, tensor.attrs, tensor.name);
    done.set(tensor, result);
    return result;
  };
}
