/**
 * A second implementation of two kinds of model, for tests: plain loops over numbers, one token after another, written
 * from the published descriptions and reading tensors under their published names. It shares no code with the library.
 */

/** Tensors by their name in a safetensors file, flat, row-major. */
export type Tensors = (name: string) => Float64Array;

type Vector = Float64Array;

const row = (matrix: Float64Array, index: number, width: number): Vector =>
  matrix.slice(index * width, (index + 1) * width);

const plus = (a: Vector, b: Vector): Vector => a.map((x, i) => x + b[i]);

/** W x + b, W [out, in] */
function affine(x: Vector, W: Float64Array, b?: Float64Array): Vector {
  const out = new Float64Array(W.length / x.length);
  for (let o = 0; o < out.length; o++) {
    let sum = b ? b[o] : 0;
    for (let i = 0; i < x.length; i++) sum += W[o * x.length + i] * x[i];
    out[o] = sum;
  }
  return out;
}

function layerNorm(x: Vector, gain: Float64Array, bias: Float64Array): Vector {
  const mean = x.reduce((a, b) => a + b) / x.length;
  const variance = x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length;
  return x.map((value, i) => ((value - mean) / Math.sqrt(variance + 1e-5)) * gain[i] + bias[i]);
}

function rmsNorm(x: Vector, gain: Float64Array, eps: number): Vector {
  const mean = x.reduce((sum, value) => sum + value * value, 0) / x.length;
  return x.map((value, i) => (value / Math.sqrt(mean + eps)) * gain[i]);
}

/** Attention of the last position over the cached keys and values from `first` on; one head. */
function attend(query: Vector, keys: Vector[], values: Vector[], first: number): Vector {
  const logits: number[] = [];
  for (let j = first; j < keys.length; j++) {
    let dot = 0;
    for (let i = 0; i < query.length; i++) dot += query[i] * keys[j][i];
    logits.push(dot / Math.sqrt(query.length));
  }
  const largest = Math.max(...logits);
  const weights = logits.map((x) => Math.exp(x - largest));
  const total = weights.reduce((a, b) => a + b);
  const out = new Float64Array(query.length);
  for (const [j, weight] of weights.entries()) {
    for (let i = 0; i < out.length; i++) out[i] += (weight / total) * values[first + j][i];
  }
  return out;
}

/** OPT (Zhang et al. 2022), pre-norm variant: logits after each token. */
export function plainOpt(
  get: Tensors,
  shape: { layers: number; width: number; heads: number },
  ids: number[],
): Vector[] {
  const { layers, width, heads } = shape;
  const D = width / heads;
  const caches = Array.from({ length: layers * heads }, () => ({ k: [] as Vector[], v: [] as Vector[] }));
  const embed = get("model.decoder.embed_tokens.weight");
  return ids.map((id, t) => {
    // OPT's table of positions starts with two unused rows.
    let x = plus(row(embed, id, width), row(get("model.decoder.embed_positions.weight"), t + 2, width));
    for (let l = 0; l < layers; l++) {
      const w = (name: string): Float64Array => get(`model.decoder.layers.${l}.${name}`);
      const linear = (input: Vector, name: string): Vector => affine(input, w(`${name}.weight`), w(`${name}.bias`));
      const a = layerNorm(x, w("self_attn_layer_norm.weight"), w("self_attn_layer_norm.bias"));
      const [q, k, v] = ["q_proj", "k_proj", "v_proj"].map((name) => linear(a, `self_attn.${name}`));
      const mixed = new Float64Array(width);
      for (let h = 0; h < heads; h++) {
        const cache = caches[l * heads + h];
        cache.k.push(row(k, h, D));
        cache.v.push(row(v, h, D));
        mixed.set(attend(row(q, h, D), cache.k, cache.v, 0), h * D);
      }
      x = plus(x, linear(mixed, "self_attn.out_proj"));
      const m = layerNorm(x, w("final_layer_norm.weight"), w("final_layer_norm.bias"));
      x = plus(
        x,
        linear(
          linear(m, "fc1").map((y) => Math.max(0, y)),
          "fc2",
        ),
      );
    }
    const last = layerNorm(x, get("model.decoder.final_layer_norm.weight"), get("model.decoder.final_layer_norm.bias"));
    return affine(last, embed);
  });
}

/** Llama and Mistral (Jiang et al. 2023): each token reads itself and the `window` - 1 before it. Logits after each token. */
export function plainMistral(
  get: Tensors,
  shape: { layers: number; width: number; heads: number; kvHeads: number; eps: number; base: number; window: number },
  ids: number[],
): Vector[] {
  const { layers, width, heads, kvHeads } = shape;
  const D = width / heads;
  const caches = Array.from({ length: layers * kvHeads }, () => ({ k: [] as Vector[], v: [] as Vector[] }));
  const turn = (x: Vector, position: number): Vector => {
    const out = x.slice();
    for (let i = 0; i < D / 2; i++) {
      const angle = position / shape.base ** ((2 * i) / D);
      out[i] = x[i] * Math.cos(angle) - x[i + D / 2] * Math.sin(angle);
      out[i + D / 2] = x[i + D / 2] * Math.cos(angle) + x[i] * Math.sin(angle);
    }
    return out;
  };
  return ids.map((id, t) => {
    let x = row(get("model.embed_tokens.weight"), id, width);
    for (let l = 0; l < layers; l++) {
      const w = (name: string): Float64Array => get(`model.layers.${l}.${name}.weight`);
      const a = rmsNorm(x, w("input_layernorm"), shape.eps);
      const [q, k, v] = ["q_proj", "k_proj", "v_proj"].map((name) => affine(a, w(`self_attn.${name}`)));
      for (let h = 0; h < kvHeads; h++) {
        caches[l * kvHeads + h].k.push(turn(row(k, h, D), t));
        caches[l * kvHeads + h].v.push(row(v, h, D));
      }
      const mixed = new Float64Array(width);
      for (let h = 0; h < heads; h++) {
        const cache = caches[l * kvHeads + Math.floor((h * kvHeads) / heads)];
        mixed.set(attend(turn(row(q, h, D), t), cache.k, cache.v, Math.max(0, t + 1 - shape.window)), h * D);
      }
      x = plus(x, affine(mixed, w("self_attn.o_proj")));
      const m = rmsNorm(x, w("post_attention_layernorm"), shape.eps);
      const up = affine(m, w("mlp.up_proj"));
      const gated = affine(m, w("mlp.gate_proj")).map((g, i) => (g / (1 + Math.exp(-g))) * up[i]);
      x = plus(x, affine(gated, w("mlp.down_proj")));
    }
    return affine(rmsNorm(x, get("model.norm.weight"), shape.eps), get("lm_head.weight"));
  });
}
