import { z } from "zod";
import type { ModelShape } from "../engine/hooks.js";
import { FoveaError } from "../error.js";
import { checkModelHash, readParameterFile } from "./files.js";

const fileSchema = z.object({
  format: z.literal("fovea-calibration"),
  /** Hash of the checkpoint that was measured. */
  model: z.string(),
  /** The method that the numbers are for. */
  method: z.string(),
  /** One number for each layer. */
  layers: z.array(z.number()).min(1),
  /** The command that makes the file anew. */
  madeBy: z.string(),
});

/** What a method measured of a model, one number for each layer: bound to the checkpoint by its hash. */
export interface Calibration {
  readonly model: string;
  readonly method: string;
  /** [L] */
  readonly layers: readonly number[];
  readonly madeBy: string;
}

/** A calibration as the text of its JSON file. */
export function printCalibration({ model, method, layers, madeBy }: Calibration): string {
  const file: z.input<typeof fileSchema> = {
    format: "fovea-calibration",
    ...{ model, method, madeBy },
    layers: layers.map((x) => Number(x.toPrecision(6))),
  };
  return `${JSON.stringify(file, null, 1)}\n`;
}

/**
 * Reads a calibration. With `model`, refuses one that was made for another checkpoint.
 *
 * @param method the method that asks; a calibration of another one is refused
 * @throws FoveaError `bad-file` for text that is no calibration, `bad-input` for one of another model or method
 */
export function parseCalibration(
  text: string,
  method: string,
  model?: ModelShape,
  from = "the calibration",
): Calibration {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new FoveaError("bad-file", `${from} is no JSON`, { cause, hint: "expected a file that a calibration wrote" });
  }
  const parsed = fileSchema.safeParse(json);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw new FoveaError("bad-file", `${from} is no calibration: ${issue.path.join(".") || "it"}: ${issue.message}`, {
      hint: 'expected {"format": "fovea-calibration", "model": hash, "method", "layers": [numbers], "madeBy"}',
    });
  }
  const { format: _, ...found } = parsed.data;
  if (found.method !== method)
    throw new FoveaError("bad-input", `${from} is a calibration of ${found.method}; expected one of ${method}`);
  if (model) {
    checkModelHash(from, found, model.hash);
    checkLayers(found.layers, model, from);
  }
  return found;
}

function checkLayers(list: readonly number[], model: ModelShape, from: string): void {
  if (list.length !== model.layers)
    throw new FoveaError("bad-input", `${from} has ${list.length} numbers; the model has ${model.layers} layers`, {
      hint: "give one number for each layer",
    });
}

/** One number for each layer as a parameter takes them: the list, or the name of a calibration file. */
export const layersParameter = z.union([z.string().min(1), z.array(z.number())]);

/**
 * The numbers [L] that a parameter stands for in this model.
 *
 * @throws FoveaError `not-found`, and as `parseCalibration`; `bad-input` for a list of the wrong length
 */
export function layerNumbers(
  parameter: z.output<typeof layersParameter>,
  method: string,
  model: ModelShape,
): readonly number[] {
  if (typeof parameter !== "string") {
    checkLayers(parameter, model, `${method}: the list`);
    return parameter;
  }
  const make = "give the path of a file that the method's calibration wrote, or the numbers themselves";
  const text = new TextDecoder().decode(readParameterFile(parameter, "calibration", make));
  return parseCalibration(text, method, model, parameter).layers;
}
