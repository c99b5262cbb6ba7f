/** For tests only: arrays computed by plain loops, as the oracle that operations are held to. */
import { type CompileOptions, compile } from "./compile.js";
import { type Dim, replaceSymbols } from "./dims.js";
import { type DType, toTypedArray } from "./dtype.js";
import type { Provider, RuntimeTensor } from "./runtime.js";
import { input, type Tensor } from "./tensor.js";

/** Numbers in row-major order. */
export interface NDArray {
  shape: readonly number[];
  data: readonly number[];
}

/** All index lists of a shape, in row-major order. */
export function indices(shape: readonly number[]): number[][] {
  let all: number[][] = [[]];
  for (const size of shape) all = all.flatMap((index) => Array.from({ length: size }, (_, i) => [...index, i]));
  return all;
}

/** An array from a function of its indices. */
export function generate(shape: readonly number[], at: (...index: number[]) => number): NDArray {
  return { shape, data: indices(shape).map((index) => at(...index)) };
}

/** The element at an index list. */
export function at(array: NDArray, ...index: number[]): number {
  return array.data[index.reduce((offset, i, axis) => offset * array.shape[axis] + i, 0)];
}

/** The shape that shapes broadcast to: NumPy's rule, from the right. */
export function broadcastShapes(...shapes: (readonly number[])[]): number[] {
  const rank = Math.max(...shapes.map((shape) => shape.length));
  return Array.from({ length: rank }, (_, i) => {
    const sizes = shapes.map((shape) => shape[i - rank + shape.length] ?? 1);
    const size = sizes.find((s) => s !== 1) ?? 1;
    if (sizes.some((s) => s !== 1 && s !== size)) throw new Error(`${sizes} do not broadcast`);
    return size;
  });
}

/** f of broadcast elements. */
export function elementwise(f: (...values: number[]) => number, ...arrays: NDArray[]): NDArray {
  const shape = broadcastShapes(...arrays.map((array) => array.shape));
  return generate(shape, (...index) =>
    f(
      ...arrays.map((array) => {
        const own = index.slice(index.length - array.shape.length);
        return at(array, ...own.map((i, axis) => (array.shape[axis] === 1 ? 0 : i)));
      }),
    ),
  );
}

/** f of all the elements along axes. */
export function reduce(array: NDArray, axes: readonly number[], keep: boolean, f: (v: number[]) => number): NDArray {
  const kept = array.shape.map((size, axis) => (axes.includes(axis) ? 1 : size));
  const groups = new Map<string, number[]>();
  indices(array.shape).forEach((index, i) => {
    const key = index.map((place, axis) => (axes.includes(axis) ? 0 : place)).join();
    groups.set(key, [...(groups.get(key) ?? []), array.data[i]]);
  });
  const data = indices(kept).map((index) => f(groups.get(index.join()) ?? []));
  return { shape: keep ? kept : array.shape.filter((_, axis) => !axes.includes(axis)), data };
}

/** [..., M, K] x [..., K, N]. */
export function matmul(a: NDArray, b: NDArray): NDArray {
  const batch = broadcastShapes(a.shape.slice(0, -2), b.shape.slice(0, -2));
  const [M, K, N] = [a.shape.at(-2)!, a.shape.at(-1)!, b.shape.at(-1)!];
  const place = (array: NDArray, index: number[]): number[] => {
    const own = index.slice(index.length - (array.shape.length - 2));
    return own.map((i, axis) => (array.shape[axis] === 1 ? 0 : i));
  };
  return generate([...batch, M, N], (...index) => {
    const [m, n] = index.slice(-2);
    const lead = index.slice(0, -2);
    let sum = 0;
    for (let k = 0; k < K; k++) sum += at(a, ...place(a, lead), m, k) * at(b, ...place(b, lead), k, n);
    return sum;
  });
}

/** Repeatable random numbers in 0..1 (mulberry32). */
export function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Random float32 numbers, -1..1. */
export function randomFloats(count: number, seed = 1): Float32Array {
  const next = random(seed);
  return Float32Array.from({ length: count }, () => next() * 2 - 1);
}

/** The largest difference of two lists. */
export function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) return Number.POSITIVE_INFINITY;
  let largest = 0;
  for (let i = 0; i < a.length; i++) {
    if (Object.is(a[i], b[i]) || a[i] === b[i]) continue;
    const difference = Math.abs(a[i] - b[i]);
    if (!(difference <= largest)) largest = Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference;
  }
  return largest;
}

/** One value to feed: its declared shape (with symbols), its type and its numbers. */
export interface Given {
  shape: readonly Dim[];
  dtype?: DType;
  array: NDArray;
}

/** Compiles a graph over inputs a, b, c, ..., runs it and returns all outputs as plain arrays. */
export async function evaluate(
  given: readonly Given[],
  build: (...inputs: Tensor[]) => Tensor | Record<string, Tensor>,
  options: CompileOptions = {},
): Promise<{ arrays: Record<string, NDArray>; tensors: Record<string, Tensor> }> {
  const names = given.map((_, i) => String.fromCharCode(97 + i));
  const inputs = given.map(({ shape, dtype }, i) => input(names[i], shape, dtype));
  const built = build(...inputs);
  const tensors = isRecord(built) ? built : { out: built };
  await using segment = await compile(
    { inputs: Object.fromEntries(inputs.map((t) => [t.name, t])), outputs: tensors },
    { threads: 1, provider: testProvider(), ...options },
  );
  const feeds = Object.fromEntries(
    segment.inputNames.map((name) => {
      const { array, dtype = "float32" } = given[names.indexOf(name)];
      return [name, { data: toTypedArray(array.data, dtype), dims: array.shape }];
    }),
  );
  const results = await segment.run(feeds);
  const arrays = Object.fromEntries(Object.entries(results).map(([name, tensor]) => [name, toArray(tensor)]));
  return { arrays, tensors };
}

/** The provider that tests run on: FOVEA_PROVIDER, or the processor. */
export function testProvider(): Provider {
  const name = process.env.FOVEA_PROVIDER;
  return name === "webgpu" || name === "cuda" || name === "auto" ? name : "cpu";
}

function isRecord(built: Tensor | Record<string, Tensor>): built is Record<string, Tensor> {
  return !("op" in built && typeof built.op === "string");
}

/** ONNX Runtime's tensor as a plain array. */
export function toArray(tensor: RuntimeTensor): NDArray {
  return { shape: tensor.dims, data: Array.from(tensor.data as ArrayLike<number | bigint>, Number) };
}

/** A shape with symbols replaced by numbers. */
export function concrete(shape: readonly Dim[], sizes: Readonly<Record<string, number>>): Dim[] {
  const meanings = new Map(Object.entries(sizes));
  return shape.map((dim) => replaceSymbols(dim, meanings));
}
