import { FoveaError } from "../error.js";

/** Elements per block of the simple quantised types, and per super-block of the K ones. */
export const BLOCK = 32;
const SUPER = 256;

/** How one data type lies in a file. A row of a tensor is a whole number of blocks. */
export interface DTypeRow {
  /** Elements per block (1 for plain types). */
  readonly block: number;
  /** Bytes per block. */
  readonly bytes: number;
  /** The type's number in GGUF; undefined when GGUF does not know it. */
  readonly gguf?: number;
  /** True when safetensors knows it. */
  readonly safetensors?: boolean;
  /** Writes `out.length` elements; undefined when reading values of this type is not supported. */
  readonly decode?: (bytes: Uint8Array, out: Float32Array) => void;
  /** Writes values of this type; undefined when writing is not supported. */
  readonly encode?: (values: Float32Array, out: Uint8Array) => void;
}

/**
 * Every data type a checkpoint file may name, with the block layouts of ggml. Types without `decode` are listed so that
 * a file which holds them among others still opens.
 */
export const DTYPES: Readonly<Record<string, DTypeRow>> = {
  F32: { block: 1, bytes: 4, gguf: 0, safetensors: true, decode: decodeF32, encode: encodeF32 },
  F16: { block: 1, bytes: 2, gguf: 1, safetensors: true, decode: decodeF16, encode: encodeF16 },
  BF16: { block: 1, bytes: 2, gguf: 30, safetensors: true, decode: decodeBF16, encode: encodeBF16 },
  F64: { block: 1, bytes: 8, gguf: 28, safetensors: true, decode: decodeWith(8, (v, at) => v.getFloat64(at, true)) },
  I8: { block: 1, bytes: 1, gguf: 24, safetensors: true, decode: decodeWith(1, (v, at) => v.getInt8(at)) },
  I16: { block: 1, bytes: 2, gguf: 25, safetensors: true, decode: decodeWith(2, (v, at) => v.getInt16(at, true)) },
  I32: { block: 1, bytes: 4, gguf: 26, safetensors: true, decode: decodeWith(4, (v, at) => v.getInt32(at, true)) },
  I64: {
    block: 1,
    bytes: 8,
    gguf: 27,
    safetensors: true,
    decode: decodeWith(8, (v, at) => Number(v.getBigInt64(at, true))),
  },
  BOOL: { block: 1, bytes: 1, safetensors: true, decode: decodeWith(1, (v, at) => v.getUint8(at)) },
  U8: { block: 1, bytes: 1, safetensors: true, decode: decodeWith(1, (v, at) => v.getUint8(at)) },
  U16: { block: 1, bytes: 2, safetensors: true, decode: decodeWith(2, (v, at) => v.getUint16(at, true)) },
  U32: { block: 1, bytes: 4, safetensors: true, decode: decodeWith(4, (v, at) => v.getUint32(at, true)) },
  U64: { block: 1, bytes: 8, safetensors: true, decode: decodeWith(8, (v, at) => Number(v.getBigUint64(at, true))) },
  F8_E4M3: { block: 1, bytes: 1, safetensors: true },
  F8_E5M2: { block: 1, bytes: 1, safetensors: true },
  F8_E8M0: { block: 1, bytes: 1, safetensors: true },
  C64: { block: 1, bytes: 8, safetensors: true },
  Q4_0: { block: BLOCK, bytes: 18, gguf: 2, decode: decodeQ4_0 },
  Q4_1: { block: BLOCK, bytes: 20, gguf: 3, decode: decodeQ4_1 },
  Q5_0: { block: BLOCK, bytes: 22, gguf: 6, decode: decodeQ5_0 },
  Q5_1: { block: BLOCK, bytes: 24, gguf: 7, decode: decodeQ5_1 },
  Q8_0: { block: BLOCK, bytes: 34, gguf: 8, decode: decodeQ8_0, encode: encodeQ8_0 },
  Q8_1: { block: BLOCK, bytes: 36, gguf: 9 },
  Q2_K: { block: SUPER, bytes: 84, gguf: 10 },
  Q3_K: { block: SUPER, bytes: 110, gguf: 11 },
  Q4_K: { block: SUPER, bytes: 144, gguf: 12, decode: decodeQ4_K },
  Q5_K: { block: SUPER, bytes: 176, gguf: 13, decode: decodeQ5_K },
  Q6_K: { block: SUPER, bytes: 210, gguf: 14, decode: decodeQ6_K },
  Q8_K: { block: SUPER, bytes: 292, gguf: 15 },
  IQ2_XXS: { block: SUPER, bytes: 66, gguf: 16 },
  IQ2_XS: { block: SUPER, bytes: 74, gguf: 17 },
  IQ3_XXS: { block: SUPER, bytes: 98, gguf: 18 },
  IQ1_S: { block: SUPER, bytes: 50, gguf: 19 },
  IQ4_NL: { block: BLOCK, bytes: 18, gguf: 20 },
  IQ3_S: { block: SUPER, bytes: 110, gguf: 21 },
  IQ2_S: { block: SUPER, bytes: 82, gguf: 22 },
  IQ4_XS: { block: SUPER, bytes: 136, gguf: 23 },
  IQ1_M: { block: SUPER, bytes: 56, gguf: 29 },
  TQ1_0: { block: SUPER, bytes: 54, gguf: 34 },
  TQ2_0: { block: SUPER, bytes: 66, gguf: 35 },
  MXFP4: { block: BLOCK, bytes: 17, gguf: 39 },
};

/** The row of `DTYPES` with this name, without being fooled by names such as "constructor". */
export function dtypeRow(dtype: string): DTypeRow | undefined {
  return Object.hasOwn(DTYPES, dtype) ? DTYPES[dtype] : undefined;
}

/** The data types whose values can be read, for error messages. */
export function readableDTypes(): string[] {
  return Object.keys(DTYPES).filter((name) => DTYPES[name].decode);
}

/**
 * Bytes that `elements` values of a type take.
 * @throws FoveaError "bad-input" when the type is unknown or `elements` is not a whole number of blocks
 */
export function byteLength(dtype: string, elements: number): number {
  const row = dtypeRow(dtype);
  if (!row) throw new FoveaError("bad-input", `unknown data type ${dtype}`);
  if (elements % row.block !== 0) {
    throw new FoveaError("bad-input", `${elements} elements are not a whole number of ${dtype} blocks of ${row.block}`);
  }
  return (elements / row.block) * row.bytes;
}

/**
 * Widens values of any readable type to float32.
 * @param bytes the values as they lie in the file
 * @param elements how many there are
 * @throws FoveaError "unsupported" for a type that cannot be read, "bad-input" when the byte count does not fit
 */
export function dequantize(dtype: string, bytes: Uint8Array, elements: number): Float32Array<ArrayBuffer> {
  const decode = dtypeRow(dtype)?.decode;
  if (!decode) {
    throw new FoveaError("unsupported", `values of type ${dtype} cannot be read`, {
      hint: `Types that can be read: ${readableDTypes().join(", ")}. Convert the checkpoint to one of them.`,
    });
  }
  const expected = byteLength(dtype, elements);
  if (bytes.byteLength !== expected) {
    throw new FoveaError(
      "bad-input",
      `${elements} values of type ${dtype} take ${expected} bytes, but ${bytes.byteLength} were given`,
    );
  }
  const out = new Float32Array(elements);
  decode(bytes, out);
  return out;
}

/**
 * Encodes float32 values as F32, F16, BF16 or Q8_0 (rows must then be a multiple of 32 long; this is the caller's care).
 * F16 and BF16 round to nearest even; Q8_0 is ggml's reference rounding, bit for bit.
 * @throws FoveaError "unsupported" for other types
 */
export function quantize(dtype: string, values: Float32Array): Uint8Array<ArrayBuffer> {
  const encode = dtypeRow(dtype)?.encode;
  if (!encode) {
    const writable = Object.keys(DTYPES).filter((name) => DTYPES[name].encode);
    throw new FoveaError("unsupported", `cannot write values of type ${dtype}`, {
      hint: `Types that can be written: ${writable.join(", ")}.`,
    });
  }
  const out = new Uint8Array(byteLength(dtype, values.length));
  encode(values, out);
  return out;
}

/** Codes and scales of a symmetric 8-bit or 4-bit tensor: value = code * scale of its block of 32. */
export interface BlockCodes {
  /** One code per element: -128..127 for Q8_0, -8..7 for Q4_0. */
  codes: Int8Array<ArrayBuffer>;
  /** One scale per block of 32, widened from float16. */
  scales: Float32Array<ArrayBuffer>;
}

/** Takes Q8_0 blocks (float16 scale, 32 signed bytes) apart, exactly. */
export function readQ8_0(bytes: Uint8Array): BlockCodes {
  const blocks = wholeBlocks(bytes, "Q8_0");
  const codes = new Int8Array(blocks * BLOCK);
  const scales = new Float32Array(blocks);
  const signed = new Int8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let b = 0; b < blocks; b++) {
    const at = b * 34;
    scales[b] = half(bytes, at);
    codes.set(signed.subarray(at + 2, at + 34), b * BLOCK);
  }
  return { codes, scales };
}

/** Takes Q4_0 blocks (float16 scale, 32 nibbles with zero point 8) apart, exactly. */
export function readQ4_0(bytes: Uint8Array): BlockCodes {
  const blocks = wholeBlocks(bytes, "Q4_0");
  const codes = new Int8Array(blocks * BLOCK);
  const scales = new Float32Array(blocks);
  for (let b = 0; b < blocks; b++) {
    const at = b * 18;
    const to = b * BLOCK;
    scales[b] = half(bytes, at);
    for (let i = 0; i < 16; i++) {
      const pair = bytes[at + 2 + i];
      codes[to + i] = (pair & 15) - 8;
      codes[to + i + 16] = (pair >> 4) - 8;
    }
  }
  return { codes, scales };
}

/** Puts codes and scales together into Q8_0 blocks. The scales must be float16 values (others are rounded). */
export function writeQ8_0({ codes, scales }: BlockCodes): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(scales.length * 34);
  const unsigned = new Uint8Array(codes.buffer, codes.byteOffset, codes.byteLength);
  for (let b = 0; b < scales.length; b++) {
    const bits = toHalf(scales[b]);
    out[b * 34] = bits & 255;
    out[b * 34 + 1] = bits >> 8;
    out.set(unsigned.subarray(b * BLOCK, (b + 1) * BLOCK), b * 34 + 2);
  }
  return out;
}

function wholeBlocks(bytes: Uint8Array, dtype: string): number {
  const size = DTYPES[dtype].bytes;
  if (bytes.byteLength % size !== 0) {
    throw new FoveaError("bad-input", `${bytes.byteLength} bytes are not a whole number of ${dtype} blocks of ${size}`);
  }
  return bytes.byteLength / size;
}

// ---- float16 and bfloat16 ----

const bits = new Uint32Array(1);
const float = new Float32Array(bits.buffer);
let halfTable: Float32Array | undefined;

/** The float32 value of every float16, by its bits. */
function halves(): Float32Array {
  if (halfTable) return halfTable;
  halfTable = new Float32Array(65536);
  for (let h = 0; h < 65536; h++) {
    const sign = h >> 15 ? -1 : 1;
    const exponent = (h >> 10) & 31;
    const fraction = h & 1023;
    if (exponent === 31) halfTable[h] = fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
    else if (exponent === 0) halfTable[h] = sign * fraction * 2 ** -24;
    else halfTable[h] = sign * (1024 + fraction) * 2 ** (exponent - 25);
  }
  return halfTable;
}

/** The float32 value of a float16's 16 bits. */
export function fromHalf(half: number): number {
  return halves()[half];
}

/** The 16 bits of the float16 nearest to a float32 value, ties to even; too large gives infinity. */
export function toHalf(value: number): number {
  float[0] = value;
  const x = bits[0];
  const sign = (x >>> 16) & 0x8000;
  const rest = x & 0x7fffffff;
  if (rest > 0x7f800000) return sign | 0x7e00;
  // 65520 is half way between the largest float16 and what would follow it.
  if (rest >= 0x477ff000) return sign | 0x7c00;
  if (rest >= 0x38800000) {
    const rounded = rest + 0xfff + ((rest >> 13) & 1);
    return sign | ((rounded >> 13) - (112 << 10));
  }
  if (rest <= 0x33000000) return sign;
  // Below the smallest normal float16: the fraction is shifted into place, the part shifted out decides the rounding.
  const shift = 126 - (rest >> 23);
  const fraction = (rest & 0x7fffff) | 0x800000;
  const kept = fraction >> shift;
  const lost = fraction & ((1 << shift) - 1);
  const middle = 1 << (shift - 1);
  return sign | (kept + (lost > middle || (lost === middle && kept & 1) ? 1 : 0));
}

/** The 16 bits of the bfloat16 nearest to a float32 value, ties to even. */
export function toBFloat16(value: number): number {
  float[0] = value;
  const x = bits[0];
  if ((x & 0x7fffffff) > 0x7f800000) return (x >>> 16) | 64;
  return ((x + 0x7fff + ((x >>> 16) & 1)) >>> 16) & 0xffff;
}

/** The float16 at a byte offset. */
function half(bytes: Uint8Array, at: number): number {
  return halves()[bytes[at] | (bytes[at + 1] << 8)];
}

// ---- plain types ----

function decodeWith(size: number, get: (view: DataView, at: number) => number) {
  return (bytes: Uint8Array, out: Float32Array): void => {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let i = 0; i < out.length; i++) out[i] = get(view, i * size);
  };
}

// The bytes of a tensor may start anywhere, so values are copied as bytes: every engine this runs on is little-endian.
function decodeF32(bytes: Uint8Array, out: Float32Array): void {
  new Uint8Array(out.buffer, out.byteOffset, out.byteLength).set(bytes);
}

function encodeF32(values: Float32Array, out: Uint8Array): void {
  out.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
}

function decodeF16(bytes: Uint8Array, out: Float32Array): void {
  const table = halves();
  for (let i = 0; i < out.length; i++) out[i] = table[bytes[2 * i] | (bytes[2 * i + 1] << 8)];
}

function encodeF16(values: Float32Array, out: Uint8Array): void {
  for (let i = 0; i < values.length; i++) {
    const h = toHalf(values[i]);
    out[2 * i] = h & 255;
    out[2 * i + 1] = h >> 8;
  }
}

function decodeBF16(bytes: Uint8Array, out: Float32Array): void {
  const wide = new Uint8Array(out.buffer, out.byteOffset, out.byteLength);
  for (let i = 0; i < out.length; i++) {
    wide[4 * i + 2] = bytes[2 * i];
    wide[4 * i + 3] = bytes[2 * i + 1];
  }
}

function encodeBF16(values: Float32Array, out: Uint8Array): void {
  for (let i = 0; i < values.length; i++) {
    const h = toBFloat16(values[i]);
    out[2 * i] = h & 255;
    out[2 * i + 1] = h >> 8;
  }
}

// ---- blocks of 32 ----

function decodeQ8_0(bytes: Uint8Array, out: Float32Array): void {
  for (let at = 0, to = 0; to < out.length; at += 34) {
    const d = half(bytes, at);
    for (let i = 2; i < 34; i++) out[to++] = d * ((bytes[at + i] << 24) >> 24);
  }
}

/** scale = max|x| / 127, codes rounded half away from zero; the codes use the scale before it is rounded to float16. */
function encodeQ8_0(values: Float32Array, out: Uint8Array): void {
  for (let from = 0, at = 0; from < values.length; from += BLOCK, at += 34) {
    let largest = 0;
    for (let i = 0; i < BLOCK; i++) largest = Math.max(largest, Math.abs(values[from + i]));
    const d = Math.fround(largest / 127);
    const inverse = d === 0 ? 0 : Math.fround(1 / d);
    const h = toHalf(d);
    out[at] = h & 255;
    out[at + 1] = h >> 8;
    for (let i = 0; i < BLOCK; i++) {
      const x = Math.fround(values[from + i] * inverse);
      out[at + 2 + i] = x < 0 ? -Math.floor(0.5 - x) : Math.floor(x + 0.5);
    }
  }
}

function decodeQ4_0(bytes: Uint8Array, out: Float32Array): void {
  for (let at = 0, to = 0; to < out.length; at += 18, to += BLOCK) {
    const d = half(bytes, at);
    for (let i = 0; i < 16; i++) {
      const pair = bytes[at + 2 + i];
      out[to + i] = d * ((pair & 15) - 8);
      out[to + i + 16] = d * ((pair >> 4) - 8);
    }
  }
}

function decodeQ4_1(bytes: Uint8Array, out: Float32Array): void {
  for (let at = 0, to = 0; to < out.length; at += 20, to += BLOCK) {
    const d = half(bytes, at);
    const m = half(bytes, at + 2);
    for (let i = 0; i < 16; i++) {
      const pair = bytes[at + 4 + i];
      out[to + i] = d * (pair & 15) + m;
      out[to + i + 16] = d * (pair >> 4) + m;
    }
  }
}

/** The 32 fifth bits of a block, element i in bit i. */
function highBits(bytes: Uint8Array, at: number): number {
  return bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24);
}

function decodeQ5_0(bytes: Uint8Array, out: Float32Array): void {
  for (let at = 0, to = 0; to < out.length; at += 22, to += BLOCK) {
    const d = half(bytes, at);
    const high = highBits(bytes, at + 2);
    for (let i = 0; i < 16; i++) {
      const pair = bytes[at + 6 + i];
      out[to + i] = d * (((pair & 15) | (((high >>> i) & 1) << 4)) - 16);
      out[to + i + 16] = d * (((pair >> 4) | (((high >>> (i + 16)) & 1) << 4)) - 16);
    }
  }
}

function decodeQ5_1(bytes: Uint8Array, out: Float32Array): void {
  for (let at = 0, to = 0; to < out.length; at += 24, to += BLOCK) {
    const d = half(bytes, at);
    const m = half(bytes, at + 2);
    const high = highBits(bytes, at + 4);
    for (let i = 0; i < 16; i++) {
      const pair = bytes[at + 8 + i];
      out[to + i] = d * ((pair & 15) | (((high >>> i) & 1) << 4)) + m;
      out[to + i + 16] = d * ((pair >> 4) | (((high >>> (i + 16)) & 1) << 4)) + m;
    }
  }
}

// ---- super-blocks of 256 ----

/** The 6-bit scale of sub-block j of eight; twelve bytes hold eight scales and eight minima. */
function scale6(bytes: Uint8Array, at: number, j: number): number {
  return j < 4 ? bytes[at + j] & 63 : (bytes[at + j + 4] & 15) | ((bytes[at + j - 4] >> 6) << 4);
}

/** The 6-bit minimum of sub-block j of eight. */
function min6(bytes: Uint8Array, at: number, j: number): number {
  return j < 4 ? bytes[at + j + 4] & 63 : (bytes[at + j + 4] >> 4) | ((bytes[at + j] >> 6) << 4);
}

function decodeQ4_K(bytes: Uint8Array, out: Float32Array): void {
  for (let at = 0, to = 0; to < out.length; at += 144, to += SUPER) {
    const d = half(bytes, at);
    const dmin = half(bytes, at + 2);
    for (let j = 0; j < 8; j++) {
      const scale = d * scale6(bytes, at + 4, j);
      const min = dmin * min6(bytes, at + 4, j);
      // Sub-blocks 2i and 2i + 1 are the low and the high nibbles of the same 32 bytes.
      const codes = at + 16 + (j >> 1) * 32;
      const shift = (j & 1) * 4;
      for (let i = 0; i < 32; i++) out[to + j * 32 + i] = scale * ((bytes[codes + i] >> shift) & 15) - min;
    }
  }
}

function decodeQ5_K(bytes: Uint8Array, out: Float32Array): void {
  for (let at = 0, to = 0; to < out.length; at += 176, to += SUPER) {
    const d = half(bytes, at);
    const dmin = half(bytes, at + 2);
    for (let j = 0; j < 8; j++) {
      const scale = d * scale6(bytes, at + 4, j);
      const min = dmin * min6(bytes, at + 4, j);
      const codes = at + 48 + (j >> 1) * 32;
      const shift = (j & 1) * 4;
      for (let i = 0; i < 32; i++) {
        const code = ((bytes[codes + i] >> shift) & 15) | (((bytes[at + 16 + i] >> j) & 1) << 4);
        out[to + j * 32 + i] = scale * code - min;
      }
    }
  }
}

function decodeQ6_K(bytes: Uint8Array, out: Float32Array): void {
  for (let at = 0, to = 0; to < out.length; at += 210, to += SUPER) {
    const d = half(bytes, at + 208);
    for (let part = 0; part < 2; part++) {
      const low = at + part * 64;
      const high = at + 128 + part * 32;
      const scales = at + 192 + part * 8;
      // Four runs of 32: the low nibbles of 64 bytes, then their high nibbles; two more bits each from 32 bytes.
      for (let run = 0; run < 4; run++) {
        const from = low + (run & 1) * 32;
        const nibble = (run >> 1) * 4;
        for (let i = 0; i < 32; i++) {
          const code = ((bytes[from + i] >> nibble) & 15) | (((bytes[high + i] >> (run * 2)) & 3) << 4);
          const scale = (bytes[scales + run * 2 + (i >> 4)] << 24) >> 24;
          out[to + part * 128 + run * 32 + i] = d * scale * (code - 32);
        }
      }
    }
  }
}
