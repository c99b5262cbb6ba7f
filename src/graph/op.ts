import type { Dim } from "./dims.js";
import type { TensorData } from "./dtype.js";
import type { Emitter } from "./emit.js";
import type { RealProvider } from "./runtime.js";
import type { ScanBody } from "./scan.js";
import type { ShapeResult } from "./shape.js";
import type { Tensor } from "./tensor.js";

/** What an operation's attribute may hold. */
export type AttributeValue = number | string | boolean | readonly Dim[] | TensorData | ScanBody | undefined;

/** An operation's attributes: everything that decides its result besides its inputs. */
export type Attributes = Readonly<Record<string, AttributeValue>>;

/**
 * From the gradient of a node's result the gradient of its input number `index`; null where nothing passes. `needed` says
 * of which inputs, by their number, gradients are wanted.
 */
export type Gradient = (
  gradient: Tensor,
  node: Tensor,
  index: number,
  needed: (index: number) => boolean,
) => Tensor | null;

/** How an operation passes a gradient to one input, or to each of its inputs: see gradient-rules.ts. */
export type GradientRule = null | "plain" | Gradient | readonly (null | "plain" | Gradient)[];

/** One row of the table of operations. It has `onnx`, `plain`, or both. */
export interface OpRow {
  /** The shape and type of the result. Throws ShapeError where the inputs do not fit. */
  shape(inputs: readonly Tensor[], attributes: Attributes): ShapeResult;
  /** Emits ONNX nodes for the operation and returns the name of the value that holds the result. */
  onnx?(node: Tensor, emitter: Emitter): string;
  /**
   * The definition in other operations. It is what is emitted where there is no `onnx`, or where `onnx` is not
   * standard ONNX and a standard file is asked for; tests hold `onnx` to it.
   */
  plain?(node: Tensor): Tensor;
  /** `onnx` emits operations that only ONNX Runtime knows. */
  extension?: boolean;
  /** Whether a provider computes `onnx` wrongly for this node, so that `plain` has to be emitted there. */
  avoid?(node: Tensor, provider: RealProvider): boolean;
}

/** A part of the table: keeps the names of the rows as a type. */
export function rows<Name extends string>(table: Record<Name, OpRow>): Readonly<Record<Name, OpRow>> {
  return table;
}
