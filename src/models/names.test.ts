import { describe, expect, it } from "vitest";
import { FAMILIES, type FamilyName } from "./families.js";
import { canonicalTensors, type FileTensor, fileTensors } from "./names.js";
import { randomConfig } from "./random.js";

function tensor(family: FamilyName, format: "hf" | "gguf", name: string): FileTensor {
  const config = randomConfig(family, {
    layers: 2,
    width: 8,
    heads: 2,
    kvHeads: 1,
    headDim: 4,
    mlpWidth: 6,
    vocab: 10,
  });
  const found = fileTensors(config, format).find((t) => t.names.includes(name));
  if (!found) throw new Error(`${family} has no ${name}`);
  return found;
}

/** File rows of each part. */
function layout({ parts }: FileTensor): Record<string, number[]> {
  return Object.fromEntries(
    parts.map(({ name, shape, row }) => [name, Array.from({ length: shape[0] }, (_, r) => row(r))]),
  );
}

describe("fileTensors", () => {
  it("GPT-NeoX: query, key and value alternate head by head", () => {
    const neox = tensor("gpt-neox", "hf", "gpt_neox.layers.1.attention.query_key_value.weight");
    expect(neox.shape).toEqual([24, 8]);
    expect(layout(neox)).toEqual({
      "layers.1.q": [0, 1, 2, 3, 12, 13, 14, 15],
      "layers.1.k": [4, 5, 6, 7, 16, 17, 18, 19],
      "layers.1.v": [8, 9, 10, 11, 20, 21, 22, 23],
    });
    const bias = tensor("gpt-neox", "hf", "gpt_neox.layers.1.attention.query_key_value.bias");
    expect(bias.shape).toEqual([24]);
    expect(layout(bias)["layers.1.k.bias"]).toEqual([4, 5, 6, 7, 16, 17, 18, 19]);
  });

  it("GPT-NeoX in GGUF: all queries, then all keys, then all values", () => {
    const neox = tensor("gpt-neox", "gguf", "blk.0.attn_qkv.weight");
    expect(layout(neox)["layers.0.k"]).toEqual([8, 9, 10, 11, 12, 13, 14, 15]);
  });

  it("GPT-2: stored [in, out], queries, keys and values side by side", () => {
    const fused = tensor("gpt2", "hf", "transformer.h.0.attn.c_attn.weight");
    expect(fused).toMatchObject({ shape: [8, 24], transposed: true });
    expect(fused.names).toEqual(["transformer.h.0.attn.c_attn.weight", "h.0.attn.c_attn.weight"]);
    expect(layout(fused)["layers.0.v"]).toEqual([16, 17, 18, 19, 20, 21, 22, 23]);
    expect(tensor("gpt2", "hf", "transformer.h.0.attn.c_attn.bias")).toMatchObject({ shape: [24], transposed: false });
    expect(tensor("gpt2", "gguf", "blk.0.attn_qkv.weight")).toMatchObject({ shape: [24, 8], transposed: false });
  });

  it("Phi-3: query, key, value; gate, then up", () => {
    expect(layout(tensor("phi3", "hf", "model.layers.0.self_attn.qkv_proj.weight"))).toEqual({
      "layers.0.q": [0, 1, 2, 3, 4, 5, 6, 7],
      "layers.0.k": [8, 9, 10, 11],
      "layers.0.v": [12, 13, 14, 15],
    });
    for (const name of ["model.layers.0.mlp.gate_up_proj.weight", "blk.0.ffn_up.weight"]) {
      expect(layout(tensor("phi3", name.startsWith("blk") ? "gguf" : "hf", name))).toEqual({
        "layers.0.gate": [0, 1, 2, 3, 4, 5],
        "layers.0.up": [6, 7, 8, 9, 10, 11],
      });
    }
  });

  it("Llama in GGUF: the halves of a head interleaved, in q and k only", () => {
    // Rows of a head by their place in the half-split order: 0 1 | 2 3 becomes 0 2 1 3.
    expect(layout(tensor("llama", "gguf", "blk.1.attn_q.weight"))["layers.1.q"]).toEqual([0, 2, 1, 3, 4, 6, 5, 7]);
    expect(layout(tensor("llama", "gguf", "blk.1.attn_k.weight"))["layers.1.k"]).toEqual([0, 2, 1, 3]);
    expect(layout(tensor("llama", "gguf", "blk.1.attn_v.weight"))["layers.1.v"]).toEqual([0, 1, 2, 3]);
    expect(layout(tensor("qwen2", "gguf", "blk.1.attn_q.weight"))["layers.1.q"]).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
  });

  it("Gemma in GGUF: norms are stored plus one, nothing else is", () => {
    for (const { name, shift } of fileTensors(randomConfig("gemma3"), "gguf")) {
      expect(shift, name).toBe(name.includes("norm") ? 1 : 0);
    }
    for (const { shift } of fileTensors(randomConfig("gemma3"), "hf")) expect(shift).toBe(0);
  });

  it("Gemma 2: the norms around attention and MLP", () => {
    const names = [
      "input_layernorm",
      "post_attention_layernorm",
      "pre_feedforward_layernorm",
      "post_feedforward_layernorm",
    ];
    const parts = names.map((name) => tensor("gemma2", "hf", `model.layers.0.${name}.weight`).parts[0].name);
    expect(parts).toEqual(["attn_norm", "post_attn_norm", "mlp_norm", "post_mlp_norm"].map((n) => `layers.0.${n}`));
  });

  it("OPT: final_layer_norm is a layer's MLP norm and, outside the layers, the last norm", () => {
    expect(tensor("opt", "hf", "model.decoder.layers.0.final_layer_norm.weight").parts[0].name).toBe(
      "layers.0.mlp_norm",
    );
    expect(tensor("opt", "hf", "model.decoder.final_layer_norm.bias").parts[0].name).toBe("norm.bias");
  });
});

describe.each(Object.keys(FAMILIES) as FamilyName[])("%s", (family) => {
  const config = randomConfig(family);
  const formats = FAMILIES[family].gguf ? (["hf", "gguf"] as const) : (["hf"] as const);

  it.each(formats)("every weight has one place in %s, and every row one source", (format) => {
    const places = new Map<string, number>();
    for (const { parts, shape, transposed } of fileTensors(config, format)) {
      const rows = new Set<number>();
      for (const { name, shape: part, row } of parts) {
        places.set(name, (places.get(name) ?? 0) + 1);
        for (let r = 0; r < part[0]; r++) rows.add(row(r));
      }
      const count = transposed ? shape[1] : shape[0];
      expect(rows.size).toBe(count);
      expect(Math.max(...rows)).toBe(count - 1);
    }
    expect([...places.keys()].sort()).toEqual(
      canonicalTensors(config)
        .map(({ name }) => name)
        .sort(),
    );
    expect([...places.values()].every((n) => n === 1)).toBe(true);
  });
});
