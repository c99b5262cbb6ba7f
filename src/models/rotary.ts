import { FoveaError } from "../error.js";
import type { Fields } from "./fields.js";

/**
 * How the inverse frequencies of rotary embeddings are changed so that a model reads further than it was trained to.
 * `original` is the length the model was trained at before the change; `attention` is the factor on cos and on sin
 * (so logits gain its square).
 */
export type RotaryScaling =
  | { readonly type: "default" }
  /** Position Interpolation (Chen et al. 2023): frequencies divided by `factor`. */
  | { readonly type: "linear"; readonly factor: number }
  /** NTK-aware scaling with a fixed alpha: a larger base. */
  | { readonly type: "ntk"; readonly alpha: number }
  /** NTK-aware scaling whose base follows the current length once it exceeds `original`. */
  | { readonly type: "dynamic"; readonly factor: number; readonly original: number }
  /** YaRN (Peng et al. 2023): a ramp between interpolated and untouched frequencies. */
  | {
      readonly type: "yarn";
      readonly factor: number;
      readonly original: number;
      readonly betaFast: number;
      readonly betaSlow: number;
      readonly truncate: boolean;
      readonly attention: number;
    }
  /** Llama 3.1: by wavelength. */
  | {
      readonly type: "llama3";
      readonly factor: number;
      readonly original: number;
      readonly lowFrequency: number;
      readonly highFrequency: number;
    }
  /** LongRoPE (Ding et al. 2024): a divisor per frequency, one list up to `original` tokens and one beyond. */
  | {
      readonly type: "longrope";
      readonly short: readonly number[];
      readonly long: readonly number[];
      readonly original: number;
      readonly attention: number;
    }
  /** The first `pairs` pairs of the whole head rotate, frequencies divided by `factor`; the others stand still. */
  | { readonly type: "proportional"; readonly factor: number; readonly pairs: number }
  /** A divisor per frequency (GGUF's `rope_freqs` tensor). */
  | { readonly type: "factors"; readonly factors: readonly number[] };

/** Rotary embeddings of a model. Half-split layout: dimension i of a head pairs with i + dims / 2. */
export interface RotaryConfig {
  readonly base: number;
  /** Rotated dimensions of a head, even; the others pass unchanged. */
  readonly dims: number;
  readonly interleaved: false;
  readonly scaling: RotaryScaling;
  /** Base of the layers marked in `localLayers` (Gemma 3's sliding layers); they use `localScaling`. */
  readonly localBase?: number;
  readonly localScaling?: RotaryScaling;
  /** [layers] Which layers are local. Default none. */
  readonly localLayers?: readonly boolean[];
}

/** Inverse frequencies and the factor on cos and sin: angle = position * inverse[i]. */
export interface RotaryValues {
  /** [dims / 2] */
  readonly inverse: Float32Array;
  readonly multiplier: number;
  readonly dims: number;
}

/**
 * Inverse frequencies of a layer.
 * @param length tokens in the sequence when it is as long as it gets; "dynamic" and "longrope" depend on it. Keys cached
 *   under one length do not fit another beyond the switch. Default 0: short
 */
export function rotaryTable(rotary: RotaryConfig, layer: number, length = 0): RotaryValues {
  const base = rotaryBase(rotary, layer);
  const local = isLocal(rotary, layer);
  const scaling = local ? (rotary.localScaling ?? { type: "default" }) : rotary.scaling;
  const { inverse, multiplier } = frequencies(base, rotary.dims, scaling, length);
  return { inverse: Float32Array.from(inverse), multiplier, dims: rotary.dims };
}

/** The base of a layer's frequencies, before any scaling. */
export function rotaryBase(rotary: RotaryConfig, layer: number): number {
  return isLocal(rotary, layer) ? (rotary.localBase as number) : rotary.base;
}

function isLocal({ localBase, localLayers }: RotaryConfig, layer: number): boolean {
  return localBase !== undefined && localLayers?.[layer] === true;
}

/** cos and sin of positions, each [positions, dims / 2], multiplied by the attention factor. Angles are float64. */
export function rotaryCosSin(
  values: RotaryValues,
  positions: ArrayLike<number>,
): { cos: Float32Array; sin: Float32Array } {
  const half = values.dims / 2;
  const cos = new Float32Array(positions.length * half);
  const sin = new Float32Array(positions.length * half);
  for (let t = 0, at = 0; t < positions.length; t++) {
    for (let i = 0; i < half; i++, at++) {
      const angle = positions[t] * values.inverse[i];
      cos[at] = Math.cos(angle) * values.multiplier;
      sin[at] = Math.sin(angle) * values.multiplier;
    }
  }
  return { cos, sin };
}

/** The same in float64: frequencies of one base, `dims` rotated dimensions and a scaling. */
export function frequencies(
  base: number,
  dims: number,
  scaling: RotaryScaling,
  length: number,
): { inverse: number[]; multiplier: number } {
  const half = dims / 2;
  const plain = (b: number): number[] => Array.from({ length: half }, (_, i) => b ** ((-2 * i) / dims));
  const f = plain(base);
  switch (scaling.type) {
    case "default":
      return { inverse: f, multiplier: 1 };
    case "linear":
      return { inverse: f.map((x) => x / scaling.factor), multiplier: 1 };
    case "ntk":
      return { inverse: plain(ntkBase(base, dims, scaling.alpha)), multiplier: 1 };
    case "dynamic": {
      const n = Math.max(length, scaling.original);
      const alpha = (scaling.factor * n) / scaling.original - (scaling.factor - 1);
      return { inverse: plain(ntkBase(base, dims, alpha)), multiplier: 1 };
    }
    case "yarn": {
      const { low, high } = yarnRange(base, dims, scaling);
      const inverse = f.map((x, i) => {
        const ramp = Math.min(1, Math.max(0, (i - low) / (high - low)));
        return (x / scaling.factor) * ramp + x * (1 - ramp);
      });
      return { inverse, multiplier: scaling.attention };
    }
    case "llama3": {
      const { factor, original, lowFrequency, highFrequency } = scaling;
      const inverse = f.map((x) => {
        const wavelength = (2 * Math.PI) / x;
        if (wavelength < original / highFrequency) return x;
        if (wavelength > original / lowFrequency) return x / factor;
        const smooth = (original / wavelength - lowFrequency) / (highFrequency - lowFrequency);
        return ((1 - smooth) * x) / factor + smooth * x;
      });
      return { inverse, multiplier: 1 };
    }
    case "longrope": {
      const factors = length > scaling.original ? scaling.long : scaling.short;
      return { inverse: f.map((x, i) => x / factors[i]), multiplier: scaling.attention };
    }
    case "proportional":
      return { inverse: f.map((x, i) => (i < scaling.pairs ? x / scaling.factor : 0)), multiplier: 1 };
    case "factors":
      return { inverse: f.map((x, i) => x / scaling.factors[i]), multiplier: 1 };
  }
}

/** The base of NTK-aware scaling: base * alpha^(dims / (dims - 2)). */
export function ntkBase(base: number, dims: number, alpha: number): number {
  return base * alpha ** (dims / (dims - 2));
}

/** The indices of frequencies between which YaRN's ramp runs from 0 to 1. */
export function yarnRange(
  base: number,
  dims: number,
  yarn: { original: number; betaFast: number; betaSlow: number; truncate: boolean },
): { low: number; high: number } {
  const corr = (rotations: number): number =>
    (dims * Math.log(yarn.original / (rotations * 2 * Math.PI))) / (2 * Math.log(base));
  let low = corr(yarn.betaFast);
  let high = corr(yarn.betaSlow);
  if (yarn.truncate) {
    low = Math.floor(low);
    high = Math.ceil(high);
  }
  low = Math.max(low, 0);
  high = Math.min(high, dims - 1);
  return { low, high: low === high ? high + 0.001 : high };
}

/** YaRN's factor on cos and sin for a scale: 0.1 m ln(s) + 1. */
export function yarnAttention(scale: number, mscale = 1): number {
  return scale <= 1 ? 1 : 0.1 * mscale * Math.log(scale) + 1;
}

/** LongRoPE's factor on cos and sin: sqrt(1 + ln(s) / ln(L0)). */
export function longropeAttention(scale: number, original: number): number {
  return scale <= 1 ? 1 : Math.sqrt(1 + Math.log(scale) / Math.log(original));
}

/**
 * Slopes of ALiBi (Press et al. 2022), by BLOOM's rule for head counts that are no power of two: the logit of query i
 * and key j falls by slope * (i - j). The bias is not divided by sqrt(D). [heads]
 */
export function alibiSlopes(heads: number): Float32Array {
  const n = 2 ** Math.floor(Math.log2(heads));
  const slopes = new Float32Array(heads);
  for (let h = 0; h < heads; h++)
    slopes[h] = h < n ? 2 ** ((-8 * (h + 1)) / n) : 2 ** ((-8 * (2 * (h - n) + 1)) / (2 * n));
  return slopes;
}

/** What `parseScaling` must know of the model around it. */
export interface ScalingContext {
  readonly dims: number;
  readonly maxPositions: number;
  /** `original_max_position_embeddings` of the config's top level: it wins over the dictionary's. */
  readonly original?: number;
  /** Phi-3's older configs call longrope "su" or "yarn". */
  readonly phi?: boolean;
}

const FACTOR = { min: 1e-6, max: 1e6 };
const LENGTH = { min: 1, max: 2 ** 40 };

/** Names in config.json of the scaling types. */
const TYPES: Readonly<Record<string, RotaryScaling["type"]>> = {
  default: "default",
  linear: "linear",
  dynamic: "dynamic",
  yarn: "yarn",
  llama3: "llama3",
  longrope: "longrope",
  su: "longrope",
  proportional: "proportional",
};

/**
 * Reads `rope_scaling` or `rope_parameters` of a config.json.
 * @throws FoveaError "bad-file" naming the field; "unsupported" for a type that is not known
 */
export function parseScaling(f: Fields | undefined, context: ScalingContext): RotaryScaling {
  if (!f) return { type: "default" };
  const name = f.optionalString("rope_type") ?? f.optionalString("type") ?? "default";
  if (!Object.hasOwn(TYPES, name)) {
    throw new FoveaError("unsupported", `${f.where}: the rotary scaling type ${JSON.stringify(name)} is not known`, {
      hint: `Known types: ${Object.keys(TYPES).join(", ")}.`,
    });
  }
  const type = context.phi && name === "yarn" ? "longrope" : TYPES[name];
  const original =
    context.original ?? f.optionalInt("original_max_position_embeddings", LENGTH) ?? context.maxPositions;
  const half = context.dims / 2;
  switch (type) {
    case "linear":
      return { type, factor: f.number("factor", FACTOR) };
    case "dynamic":
      return { type, factor: f.number("factor", FACTOR), original: context.maxPositions };
    case "yarn": {
      const factor = f.number("factor", FACTOR, context.maxPositions / original);
      const mscale = f.optionalNumber("mscale", { min: 0, max: 100 });
      const all = f.optionalNumber("mscale_all_dim", { min: 0, max: 100 });
      const implied =
        mscale && all ? yarnAttention(factor, mscale) / yarnAttention(factor, all) : yarnAttention(factor);
      return {
        type,
        factor,
        original,
        betaFast: f.number("beta_fast", FACTOR, 32),
        betaSlow: f.number("beta_slow", FACTOR, 1),
        truncate: f.bool("truncate", true),
        attention: f.number("attention_factor", FACTOR, implied),
      };
    }
    case "llama3": {
      const lowFrequency = f.number("low_freq_factor", FACTOR);
      const highFrequency = f.number("high_freq_factor", FACTOR);
      if (highFrequency <= lowFrequency) {
        throw f.wrong("high_freq_factor", `a number above low_freq_factor (${lowFrequency})`, highFrequency);
      }
      return { type, factor: f.number("factor", FACTOR), original, lowFrequency, highFrequency };
    }
    case "longrope": {
      const scale = f.number("factor", FACTOR, context.maxPositions / original);
      return {
        type,
        short: f.numbers("short_factor", half, FACTOR),
        long: f.numbers("long_factor", half, FACTOR),
        original,
        attention: f.number("attention_factor", FACTOR, longropeAttention(scale, original)),
      };
    }
    case "proportional": {
      const partial = f.number("partial_rotary_factor", { min: 0, max: 1 }, 1);
      return { type, factor: f.number("factor", FACTOR, 1), pairs: Math.floor((partial * context.dims) / 2) };
    }
    default:
      return { type: "default" };
  }
}

/** The dictionary that `parseScaling` reads back as the same scaling; undefined for "default". */
export function scalingJson(scaling: RotaryScaling, dims: number): Record<string, unknown> | undefined {
  switch (scaling.type) {
    case "default":
      return undefined;
    case "linear":
      return { rope_type: "linear", factor: scaling.factor };
    case "dynamic":
      return { rope_type: "dynamic", factor: scaling.factor };
    case "yarn":
      return {
        rope_type: "yarn",
        factor: scaling.factor,
        original_max_position_embeddings: scaling.original,
        beta_fast: scaling.betaFast,
        beta_slow: scaling.betaSlow,
        truncate: scaling.truncate,
        attention_factor: scaling.attention,
      };
    case "llama3":
      return {
        rope_type: "llama3",
        factor: scaling.factor,
        low_freq_factor: scaling.lowFrequency,
        high_freq_factor: scaling.highFrequency,
        original_max_position_embeddings: scaling.original,
      };
    case "longrope":
      return {
        rope_type: "longrope",
        short_factor: [...scaling.short],
        long_factor: [...scaling.long],
        original_max_position_embeddings: scaling.original,
        attention_factor: scaling.attention,
      };
    case "factors":
      // config.json has no name for plain divisors; longrope with equal lists is the same thing.
      return {
        rope_type: "longrope",
        short_factor: [...scaling.factors],
        long_factor: [...scaling.factors],
        attention_factor: 1,
      };
    case "proportional":
      return {
        rope_type: "proportional",
        factor: scaling.factor,
        partial_rotary_factor: (2 * scaling.pairs) / dims,
      };
    case "ntk":
      throw new FoveaError("unsupported", "config.json has no form for NTK scaling with a fixed alpha", {
        hint: "Use a larger base instead: ntkBase(base, dims, alpha).",
      });
  }
}
