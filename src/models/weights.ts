import { FoveaError } from "../error.js";
import { missingWeight, type WeightSource, type WeightValue } from "../graph/index.js";
import type { ModelConfig } from "./config.js";
import { type FileTensor, fileTensors, type TensorPart } from "./names.js";
import { readQ4_0, readQ8_0 } from "./quants.js";
import type { TensorFile, TensorInfo } from "./tensor-file.js";

/** Where a canonical tensor is found. */
interface Found {
  readonly tensor: FileTensor;
  readonly part: TensorPart;
  readonly info: TensorInfo;
}

/**
 * The weights of a checkpoint file under their canonical names, read when asked for. Q8_0 and Q4_0 matrices are handed
 * through as codes and scales, float16 as float16; everything else is widened to float32. Where the file cannot be read
 * at once (a blob or URL in a browser), call `prefetch` first; what one call has prefetched is handed out once.
 * @throws FoveaError "bad-file" naming tensor and both shapes when the file does not hold what the config describes
 */
export function checkpointWeights(file: TensorFile, config: ModelConfig): WeightSource {
  const index = locate(file, config);
  const ready = new Map<string, WeightValue[]>();
  const find = (name: string): Found => {
    const found = index.get(name) ?? (name === "head" && config.tiedEmbeddings ? index.get("embed") : undefined);
    if (!found) throw missingWeight(name);
    return found;
  };
  return {
    get(name) {
      const value = ready.get(name)?.pop();
      if (value) return value;
      const found = find(name);
      const { info } = found;
      return isRaw(info) ? fromRaw(found, file.readRawSync(info.name)) : fromFloats(found, file.readSync(info.name));
    },
    async prefetch(names) {
      if (file.sync) return;
      for (const name of names) {
        const found = find(name);
        const { info } = found;
        const value = isRaw(info)
          ? fromRaw(found, await file.readRaw(info.name))
          : fromFloats(found, await file.read(info.name));
        ready.set(name, [...(ready.get(name) ?? []), value]);
      }
    },
  };
}

/** Finds every tensor of the model in the file and checks its shape. */
function locate(file: TensorFile, config: ModelConfig): Map<string, Found> {
  const index = new Map<string, Found>();
  for (const tensor of fileTensors(config, file.kind === "gguf" ? "gguf" : "hf")) {
    const name = tensor.names.find((candidate) => file.tensors.has(candidate));
    const info = name === undefined ? undefined : file.tensors.get(name);
    if (!info) {
      throw new FoveaError(
        "bad-file",
        `${file.name} has no tensor ${tensor.name}, which a ${config.family} model needs`,
        {
          hint: `It has ${file.tensors.size} tensors, for example ${[...file.tensors.keys()].slice(0, 3).join(", ")}.`,
        },
      );
    }
    if (info.shape.join() !== tensor.shape.join()) {
      throw new FoveaError(
        "bad-file",
        `${file.name}: tensor ${info.name} is [${info.shape.join(", ")}]; the config describes [${tensor.shape.join(", ")}]`,
        { hint: "The config and the weights do not belong together." },
      );
    }
    for (const part of tensor.parts) index.set(part.name, { tensor, part, info });
  }
  return index;
}

/** Types whose codes are handed through. */
function isRaw(info: TensorInfo): boolean {
  return info.dtype === "F16" || ((info.dtype === "Q8_0" || info.dtype === "Q4_0") && info.shape.length === 2);
}

function fromRaw(found: Found, bytes: Uint8Array<ArrayBuffer>): WeightValue {
  const { tensor, part, info } = found;
  if (info.dtype === "F16") {
    const halves = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 2);
    if (tensor.shift !== 0) throw new FoveaError("bad-file", `tensor ${info.name} is F16; norms are expected in F32`);
    const data = takePart(tensor, part, halves, (n) => new Uint16Array(n));
    return { kind: "float", dtype: "float16", shape: part.shape, data };
  }
  const shape = [part.shape[0], part.shape[1]] as const;
  const blocks = shape[1] / 32;
  const { codes, scales } = info.dtype === "Q8_0" ? readQ8_0(bytes) : readQ4_0(bytes);
  const partCodes = takeRows(part, codes, blocks * 32, (n) => new Int8Array(n));
  const partScales = takeRows(part, scales, blocks, (n) => new Float32Array(n));
  if (info.dtype === "Q8_0") return { kind: "q8_0", shape, codes: partCodes, scales: partScales };
  const packed = new Uint8Array(partCodes.length / 2);
  for (let i = 0; i < packed.length; i++) packed[i] = (partCodes[2 * i] + 8) | ((partCodes[2 * i + 1] + 8) << 4);
  return { kind: "q4", shape, codes: packed, scales: partScales };
}

function fromFloats({ tensor, part }: Found, values: Float32Array): WeightValue {
  const data = takePart(tensor, part, values, (n) => new Float32Array(n));
  if (tensor.shift !== 0) for (let i = 0; i < data.length; i++) data[i] -= tensor.shift;
  return { kind: "float", dtype: "float32", shape: part.shape, data };
}

interface Numbers {
  [index: number]: number;
  readonly length: number;
  set(values: ArrayLike<number>, at: number): void;
}

/** The part's values, [out, in] whatever the file's layout. */
function takePart<A extends Numbers & { subarray(from: number, to: number): A }>(
  tensor: FileTensor,
  part: TensorPart,
  values: A,
  make: (length: number) => A,
): A {
  const [rows, columns = 1] = part.shape;
  if (!tensor.transposed) return takeRows(part, values, columns, make);
  const total = tensor.shape[1];
  const out = make(rows * columns);
  for (let r = 0; r < rows; r++) {
    const from = part.row(r);
    for (let c = 0; c < columns; c++) out[r * columns + c] = values[c * total + from];
  }
  return out;
}

/** The part's rows, each `stride` values long. */
function takeRows<A extends Numbers & { subarray(from: number, to: number): A }>(
  part: TensorPart,
  values: A,
  stride: number,
  make: (length: number) => A,
): A {
  const [rows] = part.shape;
  if (part.contiguous && values.length === rows * stride) return values;
  const out = make(rows * stride);
  if (part.contiguous) {
    const from = part.row(0) * stride;
    out.set(values.subarray(from, from + rows * stride), 0);
    return out;
  }
  for (let r = 0; r < rows; r++) {
    const from = part.row(r) * stride;
    out.set(values.subarray(from, from + stride), r * stride);
  }
  return out;
}
