import { FoveaError } from "../error.js";
import { halvesToFloats } from "./dtype.js";

/** Numbers per block of a quantised weight: each block of a row has one scale. */
export const BLOCK = 32;

/**
 * A parameter's value. Quantised ones are matrices [N, K] whose rows are cut into ceil(K/32) blocks of 32; a last block
 * that is not full is padded with codes that mean zero.
 */
export type WeightValue = FloatWeight | Q8Weight | Q4Weight;

/** Plain numbers, row-major; float16 as its 16 bits. */
export interface FloatWeight {
  kind: "float";
  dtype: "float32" | "float16";
  shape: readonly number[];
  data: Float32Array | Uint16Array;
}

/** 8 bits a weight: weight = scale * code. The layout of GGUF's Q8_0 with codes and scales apart. */
export interface Q8Weight {
  kind: "q8_0";
  shape: readonly [number, number];
  /** [N, ceil(K/32) * 32] */
  codes: Int8Array;
  /** [N, ceil(K/32)] */
  scales: Float32Array;
}

/** 4 bits a weight: weight = scale * (code - 8), or scale * code + min where there are minima. */
export interface Q4Weight {
  kind: "q4";
  shape: readonly [number, number];
  /** [N, ceil(K/32) * 16]: numbers 2i and 2i+1 of a row in the low and the high half of byte i. */
  codes: Uint8Array;
  /** [N, ceil(K/32)] */
  scales: Float32Array;
  /** [N, ceil(K/32)] */
  mins?: Float32Array;
}

/** Where the values of parameters come from, by name. A checkpoint is one; so is any map. */
export interface WeightSource {
  /** The value of a parameter. Throws `not-found` where there is none. */
  get(name: string): WeightValue;
  /** Called before any `get` of one compilation, so that a source may read from where reading takes time. */
  prefetch?(names: readonly string[]): Promise<void>;
}

/** A weight source over ready values; a bare Float32Array takes the shape that the parameter has. */
export function weightsFrom(values: Readonly<Record<string, WeightValue>>): WeightSource {
  return {
    get(name) {
      const value = values[name];
      if (value === undefined) throw missingWeight(name);
      return value;
    },
  };
}

/** A float32 weight. */
export function floatWeight(shape: readonly number[], data: Float32Array | readonly number[]): FloatWeight {
  return {
    kind: "float",
    dtype: "float32",
    shape,
    data: data instanceof Float32Array ? data : Float32Array.from(data),
  };
}

/** The error for a parameter that nobody gives a value. */
export function missingWeight(name: string): FoveaError {
  return new FoveaError("not-found", `no value for the parameter "${name}"`, {
    hint: "give compile({ weights }) a source that has it",
  });
}

/** How many blocks a row of K numbers has. */
export function blocksOf(K: number): number {
  return Math.ceil(K / BLOCK);
}

/** A weight's numbers as float32, row-major, without padding. The array may be the weight's own. */
export function toFloats(weight: WeightValue): Float32Array {
  if (weight.kind === "float") return weight.data instanceof Float32Array ? weight.data : halvesToFloats(weight.data);
  const [N, K] = weight.shape;
  const blocks = blocksOf(K);
  const floats = new Float32Array(N * K);
  for (let row = 0; row < N; row++) {
    for (let block = 0; block < blocks; block++) {
      const at = row * blocks + block;
      const scale = weight.scales[at];
      const start = block * BLOCK;
      const count = Math.min(BLOCK, K - start);
      const out = row * K + start;
      if (weight.kind === "q8_0") {
        for (let i = 0; i < count; i++) floats[out + i] = weight.codes[at * BLOCK + i] * scale;
      } else {
        const offset = weight.mins ? weight.mins[at] : -8 * scale;
        for (let i = 0; i < count; i++) {
          const byte = weight.codes[at * (BLOCK / 2) + (i >> 1)];
          floats[out + i] = (i & 1 ? byte >> 4 : byte & 15) * scale + offset;
        }
      }
    }
  }
  return floats;
}

/** Quantises rows of K float32 numbers to 8 bits: per block of 32, scale = max |x| / 127 (GGUF's Q8_0 rule). */
export function quantizeQ8(data: Float32Array, N: number, K: number): Q8Weight {
  const blocks = blocksOf(K);
  const codes = new Int8Array(N * blocks * BLOCK);
  const scales = new Float32Array(N * blocks);
  for (let row = 0; row < N; row++) {
    for (let block = 0; block < blocks; block++) {
      const from = row * K + block * BLOCK;
      const to = Math.min(from + BLOCK, (row + 1) * K);
      let largest = 0;
      for (let i = from; i < to; i++) {
        const size = Math.abs(data[i]);
        if (size > largest) largest = size;
      }
      if (largest === 0) continue;
      const at = row * blocks + block;
      const inverse = 127 / largest;
      scales[at] = largest / 127;
      for (let i = from, out = at * BLOCK; i < to; i++, out++) codes[out] = Math.round(data[i] * inverse);
    }
  }
  return { kind: "q8_0", shape: [N, K], codes, scales };
}

/**
 * Quantises rows of K float32 numbers to 4 bits: per block of 32 the number of largest magnitude becomes code 0, that
 * is -8 (GGUF's Q4_0 rule), which uses all 16 codes.
 */
export function quantizeQ4(data: Float32Array, N: number, K: number): Q4Weight {
  const blocks = blocksOf(K);
  const codes = new Uint8Array(N * blocks * (BLOCK / 2)).fill(0x88);
  const scales = new Float32Array(N * blocks);
  for (let row = 0; row < N; row++) {
    for (let block = 0; block < blocks; block++) {
      const from = row * K + block * BLOCK;
      const count = Math.min(BLOCK, (row + 1) * K - from);
      let extreme = 0;
      for (let i = 0; i < count; i++) if (Math.abs(data[from + i]) > Math.abs(extreme)) extreme = data[from + i];
      if (extreme === 0) continue;
      const at = row * blocks + block;
      const inverse = -8 / extreme;
      scales[at] = extreme / -8;
      for (let i = 0; i < count; i++) {
        const code = Math.min(15, Math.round(data[from + i] * inverse) + 8);
        const byte = at * (BLOCK / 2) + (i >> 1);
        codes[byte] = i & 1 ? (codes[byte] & 0x0f) | (code << 4) : (codes[byte] & 0xf0) | code;
      }
    }
  }
  return { kind: "q4", shape: [N, K], codes, scales, mins: undefined };
}

/** Signed 8-bit codes as the unsigned ones that MatMulNBits reads: code + 128. */
export function unsignedCodes(codes: Int8Array): Uint8Array {
  const copy = new Uint8Array(codes.length);
  if (codes.byteOffset % 4 === 0) {
    const words = codes.length >> 2;
    const from = new Uint32Array(codes.buffer, codes.byteOffset, words);
    const to = new Uint32Array(copy.buffer, 0, words);
    for (let i = 0; i < words; i++) to[i] = from[i] ^ 0x80808080;
    for (let i = words << 2; i < codes.length; i++) copy[i] = codes[i] + 128;
    return copy;
  }
  for (let i = 0; i < codes.length; i++) copy[i] = codes[i] + 128;
  return copy;
}
