import type { ModelShape } from "../engine/hooks.js";
import { FoveaError } from "../error.js";
import { encodeSafetensors, parseSafetensors } from "../models/index.js";
import { checkModelHash, readParameterFile } from "./files.js";

/** Tensors that a method found for a model, as a safetensors file bound to the checkpoint by its hash. */
export interface MethodTensors {
  readonly model: string;
  readonly method: string;
  /** The command that makes the file anew. */
  readonly madeBy: string;
  readonly tensors: ReadonlyMap<string, { readonly shape: readonly number[]; readonly data: Float32Array }>;
}

/** The bytes of the file. */
export function encodeMethodTensors({
  model,
  method,
  madeBy,
  tensors,
}: MethodTensors): Promise<Uint8Array<ArrayBuffer>> {
  const list = [...tensors].map(([name, { shape, data }]) => ({ name, dtype: "F32", shape, data }));
  return encodeSafetensors(list, { format: "fovea-method", model, method, madeBy });
}

/**
 * Reads such a file. With `model`, refuses one that was made for another checkpoint.
 *
 * @throws FoveaError `bad-file` for what is no such file, `bad-input` for one of another method or model
 */
export function parseMethodTensors(
  bytes: Uint8Array<ArrayBuffer>,
  method: string,
  model?: ModelShape,
  from = "the file",
): MethodTensors {
  const { tensors, metadata } = parseSafetensors(bytes, from);
  const { format, madeBy = "", model: hash = "", method: own } = metadata;
  if (format !== "fovea-method")
    throw new FoveaError("bad-file", `${from} is a safetensors file, but none that a method's calibration wrote`);
  if (own !== method) throw new FoveaError("bad-input", `${from} was made for ${own}; expected one of ${method}`);
  if (model) checkModelHash(from, { model: hash, madeBy }, model.hash);
  return { model: hash, method, madeBy, tensors };
}

/** The same from the file that a parameter names. Throws as `readParameterFile` too. */
export function readMethodTensors(path: string, method: string, model: ModelShape): MethodTensors {
  const bytes = readParameterFile(path, "calibration", `give the path of a file that ${method}'s calibration wrote`);
  return parseMethodTensors(bytes, method, model, path);
}

/** A tensor of the file. Throws bad-file where it is missing or of another shape. */
export function tensorOf(file: MethodTensors, name: string, shape: readonly (number | null)[]): Float32Array {
  const found = file.tensors.get(name);
  const fits = found?.shape.length === shape.length && shape.every((n, i) => n === null || n === found.shape[i]);
  if (!found || !fits)
    throw new FoveaError(
      "bad-file",
      `${file.method}'s file has ${found ? `${name} [${found.shape.join(", ")}]` : `no ${name}`}; expected [${shape.map((n) => n ?? "any").join(", ")}]`,
      { hint: file.madeBy && `make it anew: ${file.madeBy}` },
    );
  return found.data;
}
