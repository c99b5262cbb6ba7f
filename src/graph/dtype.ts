import { FoveaError } from "../error.js";

/** The type of a tensor's elements. */
export type DType = "float32" | "float16" | "int64" | "int32" | "uint8" | "int8" | "bool";

/** The array that holds elements of each type; float16 as its 16 bits, bool as 0 and 1. */
export interface DTypeArrays {
  float32: Float32Array;
  float16: Uint16Array;
  int64: BigInt64Array;
  int32: Int32Array;
  uint8: Uint8Array;
  int8: Int8Array;
  bool: Uint8Array;
}

/** Any array that holds a tensor's elements. */
export type TensorData = DTypeArrays[DType];

/** Number, code in ONNX's TensorProto, and bytes of an element. */
export const dtypes: Readonly<Record<DType, { onnx: number; bytes: number }>> = {
  float32: { onnx: 1, bytes: 4 },
  uint8: { onnx: 2, bytes: 1 },
  int8: { onnx: 3, bytes: 1 },
  int32: { onnx: 6, bytes: 4 },
  int64: { onnx: 7, bytes: 8 },
  bool: { onnx: 9, bytes: 1 },
  float16: { onnx: 10, bytes: 2 },
};

/** Whether arithmetic with fractions is defined on the type. */
export function isFloat(dtype: DType): boolean {
  return dtype === "float32" || dtype === "float16";
}

/** The type that a typed array holds. A Uint16Array is float16. */
export function dtypeOf(data: ArrayBufferView): DType {
  if (data instanceof Float32Array) return "float32";
  if (data instanceof BigInt64Array) return "int64";
  if (data instanceof Int32Array) return "int32";
  if (data instanceof Uint8Array) return "uint8";
  if (data instanceof Int8Array) return "int8";
  if (data instanceof Uint16Array) return "float16";
  throw new FoveaError("bad-input", `${data.constructor.name} holds no tensor's elements`, {
    hint: "give a Float32Array, BigInt64Array, Int32Array, Uint8Array, Int8Array or (float16) a Uint16Array",
  });
}

/** The elements of a list as the array that a type is held in. */
export function toTypedArray(values: ArrayLike<number | bigint | boolean>, dtype: DType): TensorData {
  const count = values.length;
  if (dtype === "int64") {
    const data = new BigInt64Array(count);
    for (let i = 0; i < count; i++) data[i] = BigInt(values[i]);
    return data;
  }
  const data = newTypedArray(dtype, count);
  for (let i = 0; i < count; i++) {
    const value = Number(values[i]);
    data[i] = dtype === "float16" ? toHalf(value) : dtype === "bool" ? Number(value !== 0) : value;
  }
  return data;
}

/** An array of zeros for a type other than int64, or for any type when the type is not known statically. */
export function newTypedArray(dtype: Exclude<DType, "int64">, count: number): Exclude<TensorData, BigInt64Array> {
  if (dtype === "float32") return new Float32Array(count);
  if (dtype === "int32") return new Int32Array(count);
  if (dtype === "int8") return new Int8Array(count);
  return dtype === "float16" ? new Uint16Array(count) : new Uint8Array(count);
}

const floatBits = new Float32Array(1);
const intBits = new Uint32Array(floatBits.buffer);

/** The 16 bits of the float16 nearest to a number (ties to even). */
export function toHalf(value: number): number {
  floatBits[0] = value;
  const bits = intBits[0];
  const sign = (bits >>> 16) & 0x8000;
  const size = bits & 0x7fffffff;
  if (size > 0x7f800000) return sign | 0x7e00;
  if (size >= 0x477ff000) return sign | 0x7c00;
  if (size < 0x38800000) {
    // A subnormal float16 is a multiple of 2^-24; Math.round would take ties away from even.
    const scaled = Math.abs(floatBits[0]) * 2 ** 24;
    const low = Math.floor(scaled);
    const rest = scaled - low;
    return sign | (rest > 0.5 || (rest === 0.5 && low % 2 === 1) ? low + 1 : low);
  }
  const rounded = size - 0x38000000 + 0xfff + ((size >>> 13) & 1);
  return sign | (rounded >>> 13);
}

let halfTable: Float32Array | undefined;

/** All 65536 float16 values as float32, by their bits. */
function halves(): Float32Array {
  if (halfTable) return halfTable;
  halfTable = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >>> 10) & 31;
    const mantissa = bits & 1023;
    if (exponent === 0) halfTable[bits] = sign * mantissa * 2 ** -24;
    else if (exponent === 31) halfTable[bits] = mantissa ? Number.NaN : sign * Number.POSITIVE_INFINITY;
    else halfTable[bits] = sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
  }
  return halfTable;
}

/** The number that 16 bits of float16 stand for. */
export function halfToFloat(bits: number): number {
  return halves()[bits];
}

/** float16 bits widened to float32. */
export function halvesToFloats(data: Uint16Array): Float32Array {
  const table = halves();
  const floats = new Float32Array(data.length);
  for (let i = 0; i < data.length; i++) floats[i] = table[data[i]];
  return floats;
}
