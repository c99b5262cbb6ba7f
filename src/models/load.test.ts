import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { FoveaError } from "../error.js";
import { toFloats } from "../graph/index.js";
import { type ModelConfig, parseConfig } from "./config.js";
import { convert } from "./convert.js";
import { encodeGguf, openGguf } from "./gguf.js";
import { openCheckpoint } from "./load.js";
import { canonicalTensors, fileTensors } from "./names.js";
import { randomConfig, randomWeights } from "./random.js";
import { encodeSafetensors, openSafetensors, writeSafetensors } from "./safetensors.js";
import type { TensorToWrite } from "./tensor-file.js";
import { tinyTokenizer } from "./tiny-tokenizer.js";
import { checkpointWeights } from "./weights.js";

let folder = "";
const config = randomConfig("llama", { layers: 2 });
const source = {
  name: "tiny",
  config,
  weights: randomWeights(config, 5),
  tokenizer: tinyTokenizer(config.vocab),
  chatTemplate: "{{ messages }}",
};

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "fovea-load-"));
  await convert(source, join(folder, "hf"));
  await convert(source, join(folder, "model.gguf"), { type: "f32" });
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function refusal(name: string): Promise<FoveaError> {
  try {
    const checkpoint = await openCheckpoint(name);
    await checkpoint.close();
  } catch (error) {
    return error as FoveaError;
  }
  throw new Error("it was opened");
}

/** A copy of the folder with one file replaced. */
async function spoilt(name: string, file: string, content: string): Promise<string> {
  const path = join(folder, name);
  await cp(join(folder, "hf"), path, { recursive: true });
  await writeFile(join(path, file), content);
  return path;
}

describe("openCheckpoint", () => {
  it.each(["hf", "hf/model.safetensors", "model.gguf"])("opens %s", async (name) => {
    const checkpoint = await openCheckpoint(join(folder, name));
    expect(checkpoint.config.layers).toBe(2);
    expect(checkpoint.parameters).toBe(
      canonicalTensors(config).reduce((n, t) => n + t.shape.reduce((a, b) => a * b), 0),
    );
    expect(checkpoint.chatTemplate).toBe("{{ messages }}");
    expect(checkpoint.source.kind).toBe(name.endsWith("gguf") ? "gguf" : "safetensors");
    for (const { name: weight, shape } of canonicalTensors(config)) {
      const value = checkpoint.weights.get(weight);
      expect(value.shape).toEqual(shape);
      expect(toFloats(value)).toEqual(toFloats(source.weights.get(weight)));
    }
    await checkpoint.close();
  });

  it("opens a folder with a single GGUF file, and asks when there are several", async () => {
    const path = await mkdtemp(join(folder, "gguf-"));
    await cp(join(folder, "model.gguf"), join(path, "a.gguf"));
    await (await openCheckpoint(path)).close();
    await cp(join(folder, "model.gguf"), join(path, "b.gguf"));
    expect((await refusal(path)).message).toMatch(/2 \.gguf files/);
  });

  it("gives one hash to one checkpoint, wherever it lies, and another to any other", async () => {
    const hash = async (name: string): Promise<string> => {
      const checkpoint = await openCheckpoint(name);
      await checkpoint.close();
      return checkpoint.hash;
    };
    await cp(join(folder, "hf"), join(folder, "copy"), { recursive: true });
    await convert({ ...source, weights: randomWeights(config, 6) }, join(folder, "other"));
    const first = await hash(join(folder, "hf"));
    expect(first).toMatch(/^[0-9a-f]{32}$/);
    expect(await hash(join(folder, "copy"))).toBe(first);
    expect(await hash(join(folder, "other"))).not.toBe(first);
  });

  it("adds generation_config.json's settings and end tokens", async () => {
    const json = { temperature: 0.7, top_k: 20, top_p: "much", eos_token_id: [1, 5, 5, 10 ** 9, "x"] };
    const checkpoint = await openCheckpoint(await spoilt("generation", "generation_config.json", JSON.stringify(json)));
    await checkpoint.close();
    expect(checkpoint.generation).toEqual({ temperature: 0.7, topK: 20, topP: undefined, eos: [1, 5] });
  });

  it.each([
    ["nothing there", () => join(folder, "nowhere"), "not-found", /no checkpoint at/],
    ["another kind of file", () => join(folder, "hf/config.json"), "bad-input", /is no checkpoint/],
    ["an empty folder", () => mkdtemp(join(folder, "empty-")), "not-found", /neither config.json nor a .gguf file/],
    ["a broken config", () => spoilt("broken", "config.json", '{"architectures": ['), "bad-file", /config.json/],
    ["a config that is a list", () => spoilt("list", "config.json", "[]"), "bad-file", /config.json/],
    [
      "a config of another size",
      () => spoilt("wide", "config.json", JSON.stringify({ ...CONFIG, intermediate_size: 100 })),
      "bad-file",
      /mlp\.gate_proj\.weight is \[128, 64\]; the config describes \[100, 64\]/,
    ],
    [
      "a config with more layers",
      () => spoilt("deep", "config.json", JSON.stringify({ ...CONFIG, num_hidden_layers: 3 })),
      "bad-file",
      /has no tensor model\.layers\.2\.input_layernorm\.weight/,
    ],
    [
      "a truncated file",
      () => spoilt("cut", "model.safetensors", "\x10\0\0\0\0\0\0\0{"),
      "bad-file",
      /model.safetensors/,
    ],
    ["a broken tokenizer", () => spoilt("tokenizer", "tokenizer.json", '{"model": 7}'), "bad-file", /tokenizer/],
  ] as const)("refuses %s", async (_, path, code, message) => {
    const error = await refusal(await path());
    expect(error.message).toMatch(message);
    expect(error.code).toBe(code);
  });
});

const CONFIG = {
  architectures: ["LlamaForCausalLM"],
  hidden_size: 64,
  intermediate_size: 128,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: 384,
  max_position_embeddings: 512,
};

describe("checkpointWeights", () => {
  it("finds names with other prefixes, and fused tensors that only hold part of what they could", async () => {
    const gemma = parseConfig({
      architectures: ["Gemma3ForCausalLM"],
      hidden_size: 32,
      intermediate_size: 64,
      num_hidden_layers: 1,
      num_attention_heads: 2,
      num_key_value_heads: 1,
      head_dim: 16,
      vocab_size: 40,
      sliding_window: 8,
    });
    const weights = randomWeights(gemma, 1);
    for (const prefix of ["language_model.model.", "model.language_model.", ""]) {
      const list = await written(gemma, (name) => name.replace(/^model\./, prefix));
      const file = await openSafetensors(await encodeSafetensors(list));
      expect(toFloats(checkpointWeights(file, gemma).get("layers.0.k"))).toEqual(toFloats(weights.get("layers.0.k")));
    }
  });

  it("serves prefetched values where the file cannot be read at once", async () => {
    const file = await openSafetensors(new Blob([await readFile(join(folder, "hf/model.safetensors"))]));
    const weights = checkpointWeights(file, config);
    expect(() => weights.get("norm")).toThrow(/asynchronously/);
    await weights.prefetch?.(["norm", "layers.1.q"]);
    expect(toFloats(weights.get("layers.1.q"))).toEqual(toFloats(source.weights.get("layers.1.q")));
    expect(() => weights.get("layers.0.q")).toThrow(/asynchronously/);
  });

  it("hands float16, Q8_0 and Q4_0 through as they are, with llama.cpp's row order undone", async () => {
    for (const type of ["F16", "Q8_0", "Q4_0"]) {
      const list: TensorToWrite[] = fileTensors(config, "gguf").map((tensor) => {
        if (tensor.shape.length === 1)
          return { name: tensor.name, dtype: "F32", shape: tensor.shape, data: new Float32Array(tensor.shape[0]) };
        const [rows, columns] = tensor.shape;
        const bytes = (rows * columns * { F16: 64, Q8_0: 34, Q4_0: 18 }[type as "F16"]) / 32;
        // Any bytes are codes; scales are kept finite by clearing the top exponent bit.
        const data = Uint8Array.from({ length: bytes }, (_, i) => ((i * 2654435761) >>> 13) & 0xbf);
        return { name: tensor.name, dtype: type, shape: tensor.shape, data };
      });
      const file = await openGguf(await encodeGguf({ metadata: {}, tensors: list }));
      const weights = checkpointWeights(file, config);
      const all = file.readSync("blk.1.attn_k.weight").map((x) => x + 0);
      const value = weights.get("layers.1.k");
      expect(value.kind).toBe({ F16: "float", Q8_0: "q8_0", Q4_0: "q4" }[type]);
      // Adding 0 makes no difference of 0 and -0.
      const rows = toFloats(value).map((x) => x + 0);
      const half = config.headDim / 2;
      for (let r = 0; r < 2 * config.headDim; r++) {
        const [h, i] = [Math.floor(r / config.headDim), r % config.headDim];
        const from = (h * config.headDim + 2 * (i % half) + Math.floor(i / half)) * config.width;
        expect(rows.subarray(r * config.width, (r + 1) * config.width)).toEqual(
          all.subarray(from, from + config.width),
        );
      }
    }
  });

  it("refuses an unknown name", async () => {
    const file = await openSafetensors(join(folder, "hf"));
    expect(() => checkpointWeights(file, config).get("layers.7.q")).toThrow(/layers\.7\.q/);
    await file.close();
  });
});

/** The tensors of a random model's safetensors file, under other names. */
async function written(model: ModelConfig, rename: (name: string) => string): Promise<TensorToWrite[]> {
  const path = await mkdtemp(join(folder, "renamed-"));
  await convert({ ...source, config: model, weights: randomWeights(model, 1) }, join(path, "m"));
  const file = await openSafetensors(join(path, "m"));
  const list: TensorToWrite[] = [];
  for (const { name, dtype, shape } of file.tensors.values()) {
    list.push({ name: rename(name), dtype, shape, data: await file.read(name) });
  }
  await file.close();
  return list;
}

describe("shards", () => {
  it("are one checkpoint", async () => {
    const path = join(folder, "sharded");
    await cp(join(folder, "hf"), path, { recursive: true });
    const file = await openSafetensors(path);
    const shards: TensorToWrite[][] = [[], []];
    const map: Record<string, string> = {};
    let i = 0;
    for (const { name, dtype, shape } of file.tensors.values()) {
      map[name] = `model-0000${(i % 2) + 1}-of-00002.safetensors`;
      shards[i++ % 2].push({ name, dtype, shape, data: await file.read(name) });
    }
    await file.close();
    for (const [s, list] of shards.entries())
      await writeSafetensors(join(path, `model-0000${s + 1}-of-00002.safetensors`), list);
    await writeFile(join(path, "model.safetensors.index.json"), JSON.stringify({ weight_map: map }));
    await rm(join(path, "model.safetensors"));
    const checkpoint = await openCheckpoint(path);
    expect(toFloats(checkpoint.weights.get("layers.1.down"))).toEqual(toFloats(source.weights.get("layers.1.down")));
    await checkpoint.close();
  });
});
