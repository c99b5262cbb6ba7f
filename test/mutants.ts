import { floatWeight, toFloats, type WeightSource } from "../src/graph/index.js";
import type { ModelConfig } from "../src/models/index.js";

/** A model that is wrong in one way. */
export interface Mutant {
  readonly config: ModelConfig;
  readonly weights: WeightSource;
}

/** Makes a mutant of a model. */
export type Mutation = (config: ModelConfig, weights: WeightSource) => Mutant;

/** Another config, the same weights. */
export const withConfig =
  (change: (config: ModelConfig) => Partial<ModelConfig>): Mutation =>
  (config, weights) => ({ config: { ...config, ...change(config) }, weights });

const attention = (change: (a: ModelConfig["attention"]) => Partial<ModelConfig["attention"]>): Mutation =>
  withConfig((config) => ({ attention: { ...config.attention, ...change(config.attention) } }));

const rotary = (
  change: (r: NonNullable<ModelConfig["rotary"]>) => Partial<NonNullable<ModelConfig["rotary"]>>,
): Mutation => withConfig((config) => ({ rotary: config.rotary && { ...config.rotary, ...change(config.rotary) } }));

/** The same weights with the rows of some moved: row r of the mutant is row `row(r)` of the model. */
function movedRows(weights: WeightSource, matches: RegExp, row: (r: number, name: string) => number): WeightSource {
  return {
    get(name) {
      const value = weights.get(name);
      if (!matches.test(name)) return value;
      const data = toFloats(value);
      const columns = value.shape[1] ?? 1;
      const out = new Float32Array(data.length);
      for (let r = 0; r < value.shape[0]; r++) {
        const from = row(r, name) * columns;
        out.set(data.subarray(from, from + columns), r * columns);
      }
      return floatWeight(value.shape, out);
    },
  };
}

/** The same weights, some under each other's names. */
function swapped(weights: WeightSource, a: string, b: string): WeightSource {
  const other = (name: string): string => {
    const [, layer, kind] = name.match(/^(layers\.\d+\.)(.*)$/) ?? [];
    return kind === a ? layer + b : kind === b ? layer + a : name;
  };
  return { get: (name) => weights.get(other(name)) };
}

/** The same weights with those that match changed value by value. */
function changed(weights: WeightSource, matches: RegExp, change: (x: number) => number): WeightSource {
  return {
    get(name) {
      const value = weights.get(name);
      return matches.test(name) ? floatWeight(value.shape, toFloats(value).map(change)) : value;
    },
  };
}

/** Ways to be wrong, by name. */
export const MUTATIONS = {
  "rotary base 1.5 times": rotary((r) => ({ base: r.base * 1.5 })),
  "no rotary": withConfig(() => ({ rotary: null })),
  "rotary scaling left out": rotary(() => ({ scaling: { type: "default" } })),
  "rotary attention factor left out": rotary((r) => ({
    scaling: "attention" in r.scaling ? { ...r.scaling, attention: 1 } : r.scaling,
  })),
  "interleaved rotary layout": (config, weights) => {
    const { headDim } = config;
    const half = (config.rotary?.dims ?? headDim) / 2;
    const row = (r: number): number => {
      const i = r % headDim;
      return i < 2 * half ? r - i + (i < half ? 2 * i : 2 * (i - half) + 1) : r;
    };
    return { config, weights: movedRows(weights, /\.(q|k)(\.bias)?$/, row) };
  },
  "rotates whole heads": rotary((r) => ({ dims: r.dims * 2 })),
  "local layers at the global base": rotary((r) => ({ localBase: r.base })),
  "global layers at the local base": rotary((r) => ({ base: r.localBase as number })),
  "query heads on the wrong key heads": (config, weights) => {
    // Query head h reads key head h mod Hkv instead of floor(h / G).
    const { headDim, heads, kvHeads } = config;
    const group = heads / kvHeads;
    const row = (r: number): number => {
      const h = Math.floor(r / headDim);
      return ((h % group) * kvHeads + Math.floor(h / group)) * headDim + (r % headDim);
    };
    const moved = movedRows(weights, /\.q(\.bias)?$/, row);
    return { config, weights: moved };
  },
  "attention scale 1.2 times": attention((a) => ({ scale: a.scale * 1.2 })),
  "no attention cap": attention(() => ({ softcap: undefined })),
  "no final cap": withConfig(() => ({ finalSoftcap: undefined })),
  "no window": attention((a) => ({ windowLayers: a.windowLayers.map(() => false) })),
  "window one larger": attention((a) => ({ window: (a.window as number) + 1 })),
  "windows in the other layers": attention((a) => ({ windowLayers: a.windowLayers.map((on) => !on) })),
  "norms without their offset": withConfig(() => ({ normOffset: 0 })),
  "norms with an offset": withConfig(() => ({ normOffset: 1 })),
  "no query and key norm": attention(() => ({ qkNorm: "none" })),
  "query and key norms swapped": (config, weights) => ({ config, weights: swapped(weights, "q_norm", "k_norm") }),
  "RMS norms for layer norms": withConfig(() => ({ norm: "rms" })),
  "norm epsilon 0.1": withConfig(() => ({ normEps: 0.1 })),
  silu: withConfig(() => ({ activation: "silu" })),
  "gelu for silu": withConfig(() => ({ activation: "gelu" })),
  relu: withConfig(() => ({ activation: "relu" })),
  "gate and up swapped": (config, weights) => ({ config, weights: swapped(weights, "gate", "up") }),
  "post norms swapped": (config, weights) => ({ config, weights: swapped(weights, "post_attn_norm", "post_mlp_norm") }),
  "embeddings not scaled": withConfig(() => ({ embeddingScale: 1 })),
  "sequential residual": withConfig(() => ({ parallelResidual: false })),
  "parallel residual": withConfig(() => ({ parallelResidual: true })),
  "no biases of q, k, v": (config, weights) => ({ config, weights: changed(weights, /\.(q|k|v)\.bias$/, () => 0) }),
  "no bias of o": (config, weights) => ({ config, weights: changed(weights, /\.o\.bias$/, () => 0) }),
  "no biases of the MLP": (config, weights) => ({ config, weights: changed(weights, /\.(up|down)\.bias$/, () => 0) }),
  "no biases of norms": (config, weights) => ({ config, weights: changed(weights, /norm\.bias$/, () => 0) }),
  "no positions": (config, weights) => ({ config, weights: changed(weights, /embed_positions/, () => 0) }),
  "positions off by one": (config, weights) => ({
    config,
    weights: movedRows(weights, /embed_positions/, (r) => Math.max(0, r - 1)),
  }),
} satisfies Record<string, Mutation>;

export type MutationName = keyof typeof MUTATIONS;
