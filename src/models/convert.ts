import { checkAbort, FoveaError } from "../error.js";
import { toFloats, type WeightValue } from "../graph/index.js";
import { configJson, type ModelConfig } from "./config.js";
import { FAMILIES } from "./families.js";
import { type GgufValue, writeGguf } from "./gguf.js";
import { ggufFromConfig } from "./gguf-config.js";
import { tokenizerToGguf } from "./gguf-tokenizer.js";
import { type Checkpoint, openCheckpoint } from "./load.js";
import { type FileTensor, fileTensors } from "./names.js";
import { byteLength, writeQ8_0 } from "./quants.js";
import { writeSafetensors } from "./safetensors.js";
import { hasNode } from "./source.js";
import type { TensorToWrite } from "./tensor-file.js";

/** Types that weights are written in. */
export type ConvertType = "f32" | "f16" | "bf16" | "q8_0";

export interface ConvertOptions {
  /**
   * Type of the matrices; norms and biases are always float32 in GGUF. "q8_0" is for GGUF only, "bf16" for safetensors.
   * Default: "f32" for safetensors, "f16" for GGUF.
   */
  type?: ConvertType;
  /** Replace a folder that is there already. Default false. A GGUF file is always replaced. */
  overwrite?: boolean;
  signal?: AbortSignal;
  onProgress?: (progress: { done: number; total: number; label?: string }) => void;
}

export interface Converted {
  readonly path: string;
  readonly format: "safetensors" | "gguf";
  readonly tensors: number;
  /** Bytes of the weights. */
  readonly bytes: number;
}

/** What `convert` reads of a checkpoint. */
export type ConvertSource = Pick<Checkpoint, "config" | "weights" | "tokenizer" | "chatTemplate" | "name">;

/**
 * Writes a checkpoint in another format, one tensor at a time: a GGUF file that llama.cpp runs when `to` ends in .gguf,
 * else a folder in Hugging Face's layout (config.json, model.safetensors, tokenizer.json, tokenizer_config.json). The
 * result takes its place only when it is whole; a failure leaves nothing behind.
 * @param from a checkpoint, or a name as `openCheckpoint` takes it
 * @throws FoveaError "unsupported" where the format, or llama.cpp, has no form for the model; "bad-input" for a folder
 *   that is there already
 */
export async function convert(
  from: string | ConvertSource,
  to: string,
  options: ConvertOptions = {},
): Promise<Converted> {
  if (!hasNode()) throw new FoveaError("unsupported", `cannot write ${to}: there is no file system here`);
  if (typeof from !== "string") return to.endsWith(".gguf") ? toGguf(from, to, options) : toFolder(from, to, options);
  const checkpoint = await openCheckpoint(from, { signal: options.signal, onProgress: options.onProgress });
  try {
    return await convert(checkpoint, to, options);
  } finally {
    await checkpoint.close();
  }
}

async function toGguf(from: ConvertSource, path: string, options: ConvertOptions): Promise<Converted> {
  const type = options.type ?? "f16";
  if (type === "bf16")
    throw new FoveaError("bad-input", "convert: a GGUF file is written as f32, f16 or q8_0, not bf16");
  const { config } = from;
  const description = ggufFromConfig(config);
  const metadata: Record<string, GgufValue> = {
    ...Object.fromEntries(description.metadata),
    "general.name": { type: "string", value: safeName(from) },
    "general.file_type": { type: "u32", value: { f32: 0, f16: 1, q8_0: 7 }[type] },
    "general.quantization_version": { type: "u32", value: 2 },
    ...tokenizerToGguf(from.tokenizer, { vocabSize: config.vocab, chatTemplate: from.chatTemplate }),
  };
  const tensors: TensorToWrite[] = [...description.factors].map(([name, data]) => ({
    name,
    dtype: "F32",
    shape: [data.length],
    data,
  }));
  for (const tensor of fileTensors(config, "gguf")) tensors.push(toWrite(tensor, ggufType(tensor, type), from));
  await writeGguf(path, { metadata, tensors: watched(tensors, options) });
  return result(path, "gguf", tensors);
}

/**
 * The model's name for people. llama.cpp reads it too: a name like "phi-3" makes it look up tokens of that model's
 * vocabulary, and it cannot load a file that lacks them.
 */
function safeName({ name, tokenizer }: ConvertSource): string {
  const last = name.replace(/^.*[/\\]/, "");
  const complete = ["<unk>", "<s>", "<|endoftext|>"].every((token) => tokenizer.id(token) !== undefined);
  return /phi-?3/i.test(last) && !complete ? "model" : last;
}

/** The type of one tensor in a GGUF file: what llama.cpp adds or looks up position by position stays float32. */
function ggufType(tensor: FileTensor, type: ConvertType): string {
  if (tensor.shape.length === 1 || tensor.name === "position_embd.weight") return "F32";
  if (type === "q8_0" && tensor.shape[1] % 32 !== 0) return "F16";
  return type.toUpperCase();
}

async function toFolder(from: ConvertSource, folder: string, options: ConvertOptions): Promise<Converted> {
  const type = options.type ?? "f32";
  if (type === "q8_0")
    throw new FoveaError("bad-input", "convert: a safetensors folder is written as f32, f16 or bf16, not q8_0");
  const { mkdir, readdir, rename, rm, writeFile } = await import("node:fs/promises");
  const path = folder.replace(/[/\\]+$/, "");
  const there = await readdir(path).catch(() => undefined);
  if (there && there.length > 0 && !options.overwrite) {
    throw new FoveaError("bad-input", `convert: the folder ${path} is there already and not empty`, {
      hint: "Name another one, or allow it to be replaced (overwrite).",
    });
  }
  const temporary = `${path}.${process.pid}-${Math.random().toString(36).slice(2)}.tmp`;
  const tensors = fileTensors(from.config, "hf").map((tensor) => toWrite(tensor, type.toUpperCase(), from));
  const { tokenizer, config } = from.tokenizer.files;
  const tokenizerConfig = from.chatTemplate === undefined ? config : { ...config, chat_template: from.chatTemplate };
  try {
    await mkdir(temporary, { recursive: true });
    await writeSafetensors(`${temporary}/model.safetensors`, watched(tensors, options), { format: "pt" });
    const write = (file: string, json: unknown): Promise<void> =>
      writeFile(`${temporary}/${file}`, `${JSON.stringify(json, null, 2)}\n`);
    const torch = { f32: "float32", f16: "float16", bf16: "bfloat16" }[type];
    await write("config.json", { ...configJson(from.config), torch_dtype: torch });
    await write("tokenizer.json", tokenizer);
    await write("tokenizer_config.json", tokenizerConfig);
    // Renaming onto a folder works only while it is empty: the old one steps aside until the new one is in place.
    const old = `${temporary}.old`;
    if (there) await rename(path, old);
    await rename(temporary, path);
    await rm(old, { recursive: true, force: true });
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    throw error;
  }
  return result(path, "safetensors", tensors);
}

function result(path: string, format: Converted["format"], tensors: readonly TensorToWrite[]): Converted {
  const bytes = tensors.reduce(
    (sum, t) =>
      sum +
      byteLength(
        t.dtype,
        t.shape.reduce((a, b) => a * b, 1),
      ),
    0,
  );
  return { path, format, tensors: tensors.length, bytes };
}

/** The same tensors, which report when they are taken and stop when the signal says so. */
function watched(tensors: readonly TensorToWrite[], options: ConvertOptions): TensorToWrite[] {
  return tensors.map((tensor, done) => ({
    ...tensor,
    data: async () => {
      checkAbort(options.signal);
      options.onProgress?.({ done, total: tensors.length, label: tensor.name });
      return typeof tensor.data === "function" ? tensor.data() : tensor.data;
    },
  }));
}

/** A file's tensor, put together from the canonical weights when its turn comes. */
function toWrite(tensor: FileTensor, dtype: string, { weights }: ConvertSource): TensorToWrite {
  return {
    name: tensor.name,
    dtype,
    shape: tensor.shape,
    data: async () => {
      await weights.prefetch?.(tensor.parts.map((part) => part.name));
      const values = tensor.parts.map((part) => weights.get(part.name));
      return (dtype === "Q8_0" && codesAsTheyAre(tensor, values)) || floats(tensor, values);
    },
  };
}

/** Q8_0 weights keep their very codes: rows move, nothing is quantised again. */
function codesAsTheyAre(tensor: FileTensor, values: readonly WeightValue[]): Uint8Array | undefined {
  if (tensor.transposed || tensor.shift !== 0) return undefined;
  const [rows, columns] = tensor.shape;
  const codes = new Int8Array(rows * columns);
  const scales = new Float32Array((rows * columns) / 32);
  for (const [p, value] of values.entries()) {
    if (value.kind !== "q8_0") return undefined;
    const part = tensor.parts[p];
    for (let r = 0; r < part.shape[0]; r++) {
      const to = part.row(r);
      codes.set(value.codes.subarray(r * columns, (r + 1) * columns), to * columns);
      scales.set(value.scales.subarray((r * columns) / 32, ((r + 1) * columns) / 32), (to * columns) / 32);
    }
  }
  return writeQ8_0({ codes, scales });
}

function floats(tensor: FileTensor, values: readonly WeightValue[]): Float32Array {
  const total = tensor.shape.reduce((a, b) => a * b, 1);
  const out = new Float32Array(total);
  const rows = tensor.transposed ? tensor.shape[1] : tensor.shape[0];
  const columns = total / rows;
  for (const [p, value] of values.entries()) {
    const part = tensor.parts[p];
    const data = toFloats(value);
    for (let r = 0; r < part.shape[0]; r++) {
      const to = part.row(r);
      for (let c = 0; c < columns; c++) {
        out[tensor.transposed ? c * rows + to : to * columns + c] = data[r * columns + c] + tensor.shift;
      }
    }
  }
  return out;
}

/** True when llama.cpp knows the model's family, so that `convert` can write it as GGUF. */
export function hasGgufForm(config: ModelConfig): boolean {
  return FAMILIES[config.family].gguf !== undefined;
}
