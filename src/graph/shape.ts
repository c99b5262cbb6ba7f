import { FoveaError } from "../error.js";
import { type Dim, dimsAgree, formatShape, isUnknown } from "./dims.js";
import type { DType } from "./dtype.js";
import type { Tensor } from "./tensor.js";

/** What a shape rule gives: the shape and type of an operation's result. */
export interface ShapeResult {
  shape: readonly Dim[];
  dtype: DType;
}

/** A tensor as errors name it: its name or operation, its shape, and its type. */
export function describe(tensor: Tensor): string {
  const name = tensor.name === undefined ? `a result of ${tensor.op}` : `"${tensor.name}"`;
  return `${name} ${formatShape(tensor.shape)} ${tensor.dtype}`;
}

/**
 * Tensors whose shapes or types an operation cannot take. The message names the operation, every tensor and every
 * shape; `op`, `names` and `shapes` hold the same for programs.
 */
export class ShapeError extends FoveaError {
  readonly op: string;
  readonly names: readonly (string | undefined)[];
  readonly shapes: readonly (readonly Dim[])[];

  constructor(op: string, problem: string, tensors: readonly Tensor[], options: { hint?: string } = {}) {
    const given = tensors.map(describe).join(" and ");
    super("bad-shape", `${op}: ${problem}${given ? `; given ${given}` : ""}`, options);
    this.op = op;
    this.names = tensors.map((tensor) => tensor.name);
    this.shapes = tensors.map((tensor) => tensor.shape);
  }
}

/** The dimension that two dimensions broadcast to; undefined where they do not. */
export function broadcastDim(a: Dim, b: Dim): Dim | undefined {
  if (a === b || b === 1) return a;
  if (a === 1) return b;
  if (isUnknown(a)) return b;
  return isUnknown(b) ? a : undefined;
}

/** The shape that tensors broadcast to, by the rule of NumPy and ONNX. Throws ShapeError. */
export function broadcast(op: string, tensors: readonly Tensor[], skipLast = 0): Dim[] {
  const shapes = tensors.map((tensor) => tensor.shape.slice(0, tensor.shape.length - skipLast));
  const rank = Math.max(...shapes.map((shape) => shape.length));
  const result: Dim[] = [];
  for (let i = 1; i <= rank; i++) {
    let dim: Dim = 1;
    for (const shape of shapes) {
      if (shape.length < i) continue;
      const both = broadcastDim(dim, shape[shape.length - i]);
      if (both === undefined) {
        throw new ShapeError(op, `dimensions ${dim} and ${shape[shape.length - i]} do not broadcast`, tensors, {
          hint: "make the dimensions equal or 1 (reshape, unsqueeze, transpose); symbolic dimensions must have one name",
        });
      }
      dim = both;
    }
    result.unshift(dim);
  }
  return result;
}

/** An axis counted from the front. Throws ShapeError where the tensor has no such axis. */
export function normalizeAxis(op: string, tensor: Tensor, axis: number, rank = tensor.shape.length): number {
  const index = axis < 0 ? axis + rank : axis;
  if (!Number.isInteger(axis) || index < 0 || index >= rank) {
    throw new ShapeError(op, `axis ${axis} does not exist in a tensor of ${rank} dimensions`, [tensor]);
  }
  return index;
}

/** Throws ShapeError unless all tensors have the same type, which it returns. */
export function sameDType(op: string, tensors: readonly Tensor[]): DType {
  const { dtype } = tensors[0];
  if (tensors.some((tensor) => tensor.dtype !== dtype)) {
    throw new ShapeError(op, "types differ", tensors, { hint: "cast one of them: t.cast(dtype)" });
  }
  return dtype;
}

/** Throws ShapeError unless every tensor has one of the types. */
export function needDType(op: string, tensors: readonly Tensor[], allowed: readonly DType[]): void {
  for (const tensor of tensors) {
    if (!allowed.includes(tensor.dtype)) {
      throw new ShapeError(op, `the type must be ${allowed.join(" or ")}`, [tensor], {
        hint: "cast it: t.cast(dtype)",
      });
    }
  }
}

/** Throws ShapeError unless two dimensions may be the same. */
export function needSameDim(op: string, what: string, a: Dim, b: Dim, tensors: readonly Tensor[]): void {
  if (!dimsAgree(a, b)) throw new ShapeError(op, `${what}: ${a} and ${b} differ`, tensors);
}
