import { FoveaError } from "../error.js";
import type { WeightSource } from "../graph/index.js";
import { chatTemplateOf } from "./chat.js";
import { type ModelConfig, parameterCount, parseConfig } from "./config.js";
import { embeddedPlace } from "./embedded.js";
import { openGguf } from "./gguf.js";
import { configFromGguf, type RotaryFactors } from "./gguf-config.js";
import { tokenizerFromGguf } from "./gguf-tokenizer.js";
import { fetchCheckpoint } from "./hub.js";
import { openSafetensors } from "./safetensors.js";
import { hasNode, openSource } from "./source.js";
import type { TensorFile } from "./tensor-file.js";
import { loadTokenizer, readJson, type Tokenizer } from "./tokenizer.js";
import { checkpointWeights } from "./weights.js";

/** A checkpoint that is open for reading: weights are read when asked for. */
export interface Checkpoint {
  /** As it was asked for. */
  readonly name: string;
  readonly config: ModelConfig;
  readonly weights: WeightSource;
  readonly tokenizer: Tokenizer;
  /** Jinja template of the chat format, where the checkpoint has one. */
  readonly chatTemplate?: string;
  /** Number of weights. */
  readonly parameters: number;
  /** Identity of config and weights, in hexadecimal: another for any other checkpoint, the same wherever it lies. */
  readonly hash: string;
  readonly source: { readonly kind: "safetensors" | "gguf"; readonly path: string };
  /** What the checkpoint says about generating. */
  readonly generation: GenerationDefaults;
  /** The open file, for tools that look at tensors under their own names. */
  readonly file: TensorFile;
  close(): Promise<void>;
}

/** Sampling settings that a checkpoint recommends. */
export interface GenerationDefaults {
  readonly temperature?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly repetitionPenalty?: number;
  /** Tokens that end a text. */
  readonly eos: readonly number[];
}

export interface OpenOptions {
  /** Folder of downloaded checkpoints. Default: `$FOVEA_CACHE`, else `~/.cache/fovea`. */
  cacheFolder?: string;
  /** Use only what is in the cache folder. Default: true when `$HF_HUB_OFFLINE` is 1. */
  offline?: boolean;
  signal?: AbortSignal;
  onProgress?: (progress: { done: number; total: number; label?: string }) => void;
}

/**
 * Opens a checkpoint.
 * @param name "nano", the model that comes with the package; a folder with config.json, *.safetensors and tokenizer.json (or
 *   with one .gguf file); a `.gguf` file; a `.safetensors` file beside its config.json; `hf:owner/name`, `hf:owner/name@revision` or `hf:owner/name:file.gguf`,
 *   which is downloaded once; or the URL of a .gguf file or of a folder (a blob: URL ends in "#.gguf")
 * @example
 * const checkpoint = await openCheckpoint("hf:Qwen/Qwen2.5-0.5B-Instruct");
 * const graph = buildModel(checkpoint.config);
 * @throws FoveaError "not-found", "unknown-model" (naming the known families), "bad-file" (naming file and field or
 *   tensor), "unsupported"
 */
export async function openCheckpoint(name: string, options: OpenOptions = {}): Promise<Checkpoint> {
  const path = name.startsWith("hf:") ? await download(name, options) : ((await embeddedPlace(name)) ?? name);
  const file = await findFile(path);
  const checkpoint = file.endsWith(".gguf") ? await openGgufCheckpoint(file) : await openFolder(path, file);
  return { ...checkpoint, name };
}

async function download(name: string, options: OpenOptions): Promise<string> {
  const { onProgress } = options;
  const { path } = await fetchCheckpoint(name, {
    ...(options.cacheFolder !== undefined && { cache: options.cacheFolder }),
    ...(options.offline !== undefined && { offline: options.offline }),
    signal: options.signal,
    onProgress: onProgress && (({ received, total, file }) => onProgress({ done: received, total, label: file })),
  });
  return path;
}

/** The weights file that a path means. */
async function findFile(path: string): Promise<string> {
  if (isUrl(path) || !hasNode()) {
    return /\.(gguf|safetensors)$/i.test(path) ? path : `${path.replace(/\/+$/, "")}/model.safetensors`;
  }
  const { stat, readdir } = await import("node:fs/promises");
  const info = await stat(path).catch(() => undefined);
  if (!info) {
    throw new FoveaError("not-found", `there is no checkpoint at ${path}`, {
      hint: "Give a folder, a .gguf or .safetensors file, or hf:owner/name.",
    });
  }
  if (!info.isDirectory()) {
    if (/\.(gguf|safetensors|safetensors\.index\.json)$/i.test(path)) return path;
    throw new FoveaError("bad-input", `${path} is no checkpoint; expected a folder, a .gguf or a .safetensors file`);
  }
  const files = await readdir(path);
  if (files.includes("config.json")) return path;
  const gguf = files.filter((file) => file.endsWith(".gguf"));
  if (gguf.length === 1) return `${path}/${gguf[0]}`;
  const found =
    gguf.length === 0 ? "neither config.json nor a .gguf file" : `${gguf.length} .gguf files: ${gguf.join(", ")}`;
  throw new FoveaError("not-found", `the folder ${path} holds ${found}`, {
    hint: gguf.length > 1 ? "Name the file." : "A checkpoint folder has config.json, *.safetensors and tokenizer.json.",
  });
}

type Opened = Omit<Checkpoint, "name">;

/** The weights; of a folder that is a URL, which cannot be listed, the shards where there is no single file. */
async function openTensors(file: string): Promise<TensorFile> {
  try {
    return await openSafetensors(file);
  } catch (error) {
    const missing = error instanceof FoveaError && error.code === "not-found";
    if (!missing || !isUrl(file) || !file.endsWith("/model.safetensors")) throw error;
    return openSafetensors(`${file}.index.json`).catch((cause: unknown) => {
      throw cause instanceof FoveaError && cause.code === "not-found" ? error : cause;
    });
  }
}

function isUrl(path: string): boolean {
  return /^(https?|blob):/i.test(path);
}

async function openFolder(path: string, file: string): Promise<Opened> {
  const folder = file === path && !/\.(safetensors|json)$/i.test(path) ? path : (file.match(/^(.*)[/\\]/)?.[1] ?? ".");
  const json = await readJson(`${folder}/config.json`);
  if (!json) {
    throw new FoveaError("not-found", `${folder} has no config.json`, {
      hint: "A safetensors checkpoint needs the config.json that was published with it.",
    });
  }
  const generation = (await readJson(`${folder}/generation_config.json`)) ?? {};
  const config = withEos(parseConfig(json, `${folder}/config.json`), generation.eos_token_id);
  const tensors = await openTensors(file);
  try {
    const weights = checkpointWeights(tensors, config);
    const tokenizer = await loadTokenizer(folder);
    const chatTemplate = chatTemplateOf(tokenizer.files.config, {
      file: await readText(`${folder}/chat_template.jinja`),
    });
    return {
      config,
      weights,
      tokenizer,
      chatTemplate,
      parameters: parameterCount(config),
      hash: await identity(config, tensors),
      source: { kind: "safetensors", path: file },
      generation: generationDefaults(generation, config),
      file: tensors,
      close: () => tensors.close(),
    };
  } catch (error) {
    await tensors.close();
    throw error;
  }
}

async function openGgufCheckpoint(path: string): Promise<Opened> {
  const file = await openGguf(path);
  try {
    const factors: Record<string, readonly number[]> = {};
    for (const [key, name] of [
      ["all", "rope_freqs.weight"],
      ["short", "rope_factors_short.weight"],
      ["long", "rope_factors_long.weight"],
    ]) {
      // A head has at most a few hundred frequencies; anything larger is no such list.
      const info = file.tensors.get(name);
      if (info && info.bytes <= 1 << 16) factors[key] = Array.from(await file.read(name));
    }
    const config = configFromGguf(file.metadata, file.tensors, factors satisfies RotaryFactors, path);
    const weights = checkpointWeights(file, config);
    const template = file.metadata["tokenizer.chat_template"];
    return {
      config,
      weights,
      tokenizer: tokenizerFromGguf(file.metadata),
      chatTemplate: typeof template === "string" ? template : undefined,
      parameters: parameterCount(config),
      hash: await identity(config, file),
      source: { kind: "gguf", path },
      generation: { eos: config.eos },
      file,
      close: () => file.close(),
    };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** generation_config.json knows tokens that end a turn which config.json does not name. */
function withEos(config: ModelConfig, more: unknown): ModelConfig {
  const ids = (Array.isArray(more) ? more : [more]).filter(
    (id): id is number => Number.isSafeInteger(id) && id >= 0 && id < config.vocab,
  );
  return { ...config, eos: [...new Set([...config.eos, ...ids.slice(0, 64)])] };
}

function generationDefaults(json: Record<string, unknown>, config: ModelConfig): GenerationDefaults {
  const number = (key: string, max: number): number | undefined => {
    const value = json[key];
    return typeof value === "number" && value >= 0 && value <= max ? value : undefined;
  };
  return {
    temperature: number("temperature", 100),
    topK: number("top_k", 2 ** 24),
    topP: number("top_p", 1),
    repetitionPenalty: number("repetition_penalty", 100),
    eos: config.eos,
  };
}

async function readText(path: string): Promise<string | undefined> {
  try {
    const source = await openSource(path);
    try {
      if (source.size > 1 << 22)
        throw new FoveaError("too-large", `${path}: ${source.size} bytes of template are too many`);
      return new TextDecoder().decode(await source.read(0, source.size));
    } finally {
      await source.close();
    }
  } catch (error) {
    if (error instanceof FoveaError && error.code === "not-found") return undefined;
    throw error;
  }
}

/** Bytes that are hashed of each tensor: a piece from somewhere within it. */
const SAMPLE = 1024;

/**
 * SHA-256 over config, tensor names, types and shapes, and a piece of every tensor; the first 32 hexadecimal digits.
 * Reading a checkpoint whole would take longer than all the rest of loading it.
 */
async function identity(config: ModelConfig, file: TensorFile): Promise<string> {
  const infos = [...file.tensors.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  const header = new TextEncoder().encode(JSON.stringify([config, infos]));
  const all = new Uint8Array(header.length + infos.length * SAMPLE);
  all.set(header);
  const sample = async (i: number): Promise<void> => {
    const info = infos[i];
    const free = Math.max(0, info.bytes - SAMPLE);
    // Different places in different tensors: a golden-ratio sequence.
    const start = Math.floor(free * ((i * 0.6180339887498949) % 1));
    all.set(await file.readRaw(info.name, start, SAMPLE), header.length + i * SAMPLE);
  };
  // Several at a time: by URL each is a request.
  for (let i = 0; i < infos.length; i += 16) {
    await Promise.all(infos.slice(i, i + 16).map((_, k) => sample(i + k)));
  }
  if (!crypto.subtle) {
    throw new FoveaError("unsupported", "this page has no crypto.subtle, which identifies checkpoints", {
      hint: "Serve the page by https, or from localhost.",
    });
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", all));
  return Array.from(digest.subarray(0, 16), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
