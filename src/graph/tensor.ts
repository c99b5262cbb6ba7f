import { FoveaError } from "../error.js";
import {
  addDims,
  canonicalDim,
  type Dim,
  dimsAgree,
  divideDims,
  formatShape,
  productOfDims,
  unknownDim,
} from "./dims.js";
import { type DType, dtypeOf, type TensorData, toTypedArray } from "./dtype.js";
import type { Attributes } from "./op.js";
import { type OpName, ops } from "./ops.js";
import { normalizeAxis, ShapeError } from "./shape.js";

/** A tensor, or a number that takes the other operand's type. */
export type TensorLike = Tensor | number;

/** Nested lists of numbers, as deep as the tensor has dimensions. */
export type NestedNumbers = number | boolean | readonly NestedNumbers[];

/** Options of reductions. `keep` keeps the reduced axes with size 1 (default false). */
export interface ReduceOptions {
  keep?: boolean;
}

/** Options of `conv`; lists have one number per convolved axis. */
export interface ConvOptions {
  bias?: Tensor;
  /** Default all 1. */
  strides?: readonly number[];
  /** Default all 1. */
  dilations?: readonly number[];
  /** Zeros added before each axis (default none). */
  before?: readonly number[];
  /** Zeros added after each axis (default none). */
  after?: readonly number[];
  /** Default 1. */
  groups?: number;
}

/** Which part of an axis to take. `start` and `end` may be negative (from the end); `end` is not included. */
export interface SliceOptions {
  axis: number;
  /** Default: the first (with a negative step the last). A symbolic dimension is computed at run time. */
  start?: Dim;
  /** Default: to the end. */
  end?: Dim;
  /** Default 1. Negative steps walk backwards. */
  step?: number;
}

/**
 * A symbolic tensor: one result in a graph of operations. It holds no numbers; `compile` turns the graph that ends in
 * some tensors into a session. Methods build new tensors and never change old ones.
 */
export class Tensor {
  readonly op: OpName;
  readonly inputs: readonly Tensor[];
  readonly attrs: Attributes;
  readonly shape: readonly Dim[];
  readonly dtype: DType;
  /** For inputs and parameters their name; for others the name of a tap, used in errors and files. */
  name?: string;

  /** Use the functions and methods; this constructor is for code that adds operations. Throws ShapeError. */
  constructor(op: OpName, inputs: readonly Tensor[], attrs: Attributes = {}, name?: string) {
    this.op = op;
    this.inputs = inputs;
    this.attrs = attrs;
    if (name !== undefined) this.name = name;
    const { shape, dtype } = ops[op].shape(inputs, attrs);
    this.shape = shape;
    this.dtype = dtype;
  }

  /** Number of dimensions. */
  get rank(): number {
    return this.shape.length;
  }

  private unary(op: OpName, attrs?: Attributes): Tensor {
    return new Tensor(op, [this], attrs);
  }

  private binary(op: OpName, other: TensorLike): Tensor {
    return new Tensor(op, [this, this.like(other)]);
  }

  /** A number as a constant of this tensor's type; a tensor as it is. */
  like(value: TensorLike): Tensor {
    return value instanceof Tensor ? value : constant(value, [], this.dtype);
  }

  // Arithmetic. Operands broadcast as in NumPy; both have one type (a number takes the tensor's).
  add(other: TensorLike): Tensor {
    return this.binary("add", other);
  }
  sub(other: TensorLike): Tensor {
    return this.binary("sub", other);
  }
  mul(other: TensorLike): Tensor {
    return this.binary("mul", other);
  }
  /** Quotient; for integers rounded towards zero. */
  div(other: TensorLike): Tensor {
    return this.binary("div", other);
  }
  /** Remainder with the divisor's sign (integers), or with the dividend's (floats). */
  mod(other: TensorLike): Tensor {
    return this.binary("mod", other);
  }
  pow(other: TensorLike): Tensor {
    return this.binary("pow", other);
  }
  minimum(other: TensorLike): Tensor {
    return this.binary("minimum", other);
  }
  maximum(other: TensorLike): Tensor {
    return this.binary("maximum", other);
  }
  /** Limits every element to low..high. */
  clip(low: number, high: number): Tensor {
    return this.maximum(low).minimum(high);
  }

  // Comparisons: bool results.
  equal(other: TensorLike): Tensor {
    return this.binary("equal", other);
  }
  less(other: TensorLike): Tensor {
    return this.binary("less", other);
  }
  greater(other: TensorLike): Tensor {
    return this.binary("greater", other);
  }
  lessEqual(other: TensorLike): Tensor {
    return this.binary("lessEqual", other);
  }
  greaterEqual(other: TensorLike): Tensor {
    return this.binary("greaterEqual", other);
  }
  and(other: Tensor): Tensor {
    return this.binary("and", other);
  }
  or(other: Tensor): Tensor {
    return this.binary("or", other);
  }
  xor(other: Tensor): Tensor {
    return this.binary("xor", other);
  }
  not(): Tensor {
    return this.unary("not");
  }
  /** Where this bool tensor is true `yes`, else `no`; all three broadcast. Two bare numbers are float32. */
  where(yes: TensorLike, no: TensorLike): Tensor {
    const first = yes instanceof Tensor ? yes : no instanceof Tensor ? no.like(yes) : constant(yes);
    return new Tensor("where", [this, first, first.like(no)]);
  }

  // One number to one number.
  neg(): Tensor {
    return this.unary("neg");
  }
  exp(): Tensor {
    return this.unary("exp");
  }
  log(): Tensor {
    return this.unary("log");
  }
  sqrt(): Tensor {
    return this.unary("sqrt");
  }
  /** 1 / sqrt(x) */
  rsqrt(): Tensor {
    return this.unary("rsqrt");
  }
  reciprocal(): Tensor {
    return this.unary("reciprocal");
  }
  abs(): Tensor {
    return this.unary("abs");
  }
  square(): Tensor {
    return this.unary("square");
  }
  sin(): Tensor {
    return this.unary("sin");
  }
  cos(): Tensor {
    return this.unary("cos");
  }
  tanh(): Tensor {
    return this.unary("tanh");
  }
  sigmoid(): Tensor {
    return this.unary("sigmoid");
  }
  relu(): Tensor {
    return this.unary("relu");
  }
  /** x Φ(x); `approximate: "tanh"` is the tanh formula (GPT-2, Gemma). */
  gelu(options: { approximate?: "none" | "tanh" } = {}): Tensor {
    return this.unary("gelu", { approximate: options.approximate ?? "none" });
  }
  /** x sigmoid(x) */
  silu(): Tensor {
    return this.unary("silu");
  }
  erf(): Tensor {
    return this.unary("erf");
  }
  /** log(1 + exp(x)) */
  softplus(): Tensor {
    return this.unary("softplus");
  }
  /** ELU: x above 0, alpha (exp(x) - 1) below. */
  elu(alpha = 1): Tensor {
    return this.unary("elu", { alpha });
  }
  floor(): Tensor {
    return this.unary("floor");
  }
  ceil(): Tensor {
    return this.unary("ceil");
  }
  /** To the nearest integer, ties to even. */
  round(): Tensor {
    return this.unary("round");
  }
  sign(): Tensor {
    return this.unary("sign");
  }
  isNaN(): Tensor {
    return this.unary("isNaN");
  }
  /** The same numbers, which gradients take as constants. */
  stopGradient(): Tensor {
    return this.unary("stopGradient");
  }
  cast(dtype: DType): Tensor {
    return dtype === this.dtype ? this : this.unary("cast", { dtype });
  }
  /** The same numbers; a new node, so that a cut or a tap may stand here. */
  identity(): Tensor {
    return this.unary("identity");
  }
  /** The same numbers, with dimensions that the caller knows better: it unites symbolic names. */
  withShape(shape: readonly Dim[]): Tensor {
    return this.unary("identity", { shape: shape.map(canonicalDim) });
  }

  // Reductions. No axes: all of them.
  sum(axes?: number | readonly number[], options: ReduceOptions = {}): Tensor {
    return this.reduce("sum", axes, options);
  }
  mean(axes?: number | readonly number[], options: ReduceOptions = {}): Tensor {
    return this.reduce("mean", axes, options);
  }
  max(axes?: number | readonly number[], options: ReduceOptions = {}): Tensor {
    return this.reduce("max", axes, options);
  }
  min(axes?: number | readonly number[], options: ReduceOptions = {}): Tensor {
    return this.reduce("min", axes, options);
  }
  prod(axes?: number | readonly number[], options: ReduceOptions = {}): Tensor {
    return this.reduce("prod", axes, options);
  }
  /** log(sum(exp(x))), without overflow. */
  logSumExp(axes?: number | readonly number[], options: ReduceOptions = {}): Tensor {
    return this.reduce("logSumExp", axes, options);
  }

  private reduce(op: OpName, axes: number | readonly number[] | undefined, { keep = false }: ReduceOptions): Tensor {
    const list = axes === undefined ? this.shape.map((_, i) => i) : typeof axes === "number" ? [axes] : axes;
    const sorted = list.map((axis) => normalizeAxis(op, this, axis)).sort((a, b) => a - b);
    return this.unary(op, { axes: sorted, keep });
  }

  /** Index (int64) of the largest element; of equal ones the first. */
  argmax(axis = -1, { keep = false }: ReduceOptions = {}): Tensor {
    return this.unary("argmax", { axis: normalizeAxis("argmax", this, axis), keep });
  }
  /** Index (int64) of the smallest element; of equal ones the first. */
  argmin(axis = -1, { keep = false }: ReduceOptions = {}): Tensor {
    return this.unary("argmin", { axis: normalizeAxis("argmin", this, axis), keep });
  }
  /** Running sum; `exclusive` leaves out the element itself, `reverse` runs from the end. */
  cumsum(axis: number, options: { exclusive?: boolean; reverse?: boolean } = {}): Tensor {
    const { exclusive = false, reverse = false } = options;
    return this.unary("cumsum", { axis: normalizeAxis("cumsum", this, axis), exclusive, reverse });
  }
  softmax(axis = -1): Tensor {
    return this.unary("softmax", { axis: normalizeAxis("softmax", this, axis) });
  }
  logSoftmax(axis = -1): Tensor {
    return this.unary("logSoftmax", { axis: normalizeAxis("logSoftmax", this, axis) });
  }
  /** The k largest (or smallest) elements along an axis and their indices (int64), best first. k may be symbolic. */
  topk(k: Dim, options: { axis?: number; largest?: boolean } = {}): { values: Tensor; indices: Tensor } {
    const axis = normalizeAxis("topk", this, options.axis ?? -1);
    const attrs = { k: canonicalDim(k), axis, largest: options.largest ?? true };
    return {
      values: this.unary("topk", { ...attrs, output: "values" }),
      indices: this.unary("topk", { ...attrs, output: "indices" }),
    };
  }

  // Products.
  /** Matrix product of the last two axes: [..., M, K] x [..., K, N] -> [..., M, N]; the others broadcast. */
  matmul(other: Tensor): Tensor {
    return new Tensor("matmul", [this, other]);
  }
  /**
   * x Wᵀ + b for x [..., K], weight [N, K], bias [N] -> [..., N]. A weight that is a parameter is quantised as `compile`
   * is told.
   */
  linear(weight: Tensor, bias?: Tensor): Tensor {
    return new Tensor("linear", bias ? [this, weight, bias] : [this, weight]);
  }
  /**
   * Convolution (cross-correlation, as everywhere in this field) over the axes after the first two: x [N, C, ...size],
   * weight [M, C / groups, ...kernel], bias [M] -> [N, M, ...]. A causal convolution over T pads k - 1 before.
   */
  conv(weight: Tensor, options: ConvOptions = {}): Tensor {
    const { bias, strides, dilations, before, after, groups = 1 } = options;
    const inputs = bias ? [this, weight, bias] : [this, weight];
    return new Tensor("conv", inputs, { strides, dilations, before, after, groups });
  }

  // Layout.
  /** Permutes the axes; without arguments swaps the last two. */
  transpose(...permutation: number[]): Tensor {
    const { rank } = this;
    if (permutation.length > 0) return this.unary("transpose", { permutation });
    if (rank < 2) throw new ShapeError("transpose", "fewer than two axes", [this]);
    return this.unary("transpose", { permutation: [...Array(rank - 2).keys(), rank - 1, rank - 2] });
  }
  /** A new shape of as many elements, or a tensor's. One -1 is computed; 0 keeps the dimension at that place. */
  reshape(shape: readonly Dim[] | Tensor): Tensor {
    if (shape instanceof Tensor) return new Tensor("reshape", [this, shape], { shape: shape.shape });
    return this.unary("reshape", { shape: resolveReshape(this, shape) });
  }
  /** Inserts axes of size 1 at these places of the result. */
  unsqueeze(...axes: number[]): Tensor {
    const rank = this.rank + axes.length;
    const sorted = axes.map((axis) => normalizeAxis("unsqueeze", this, axis, rank)).sort((a, b) => a - b);
    return this.unary("unsqueeze", { axes: sorted });
  }
  /** Drops axes of size 1; without arguments all of them. */
  squeeze(...axes: number[]): Tensor {
    const list = axes.length > 0 ? axes : [...this.shape.keys()].filter((axis) => this.shape[axis] === 1);
    const sorted = list.map((axis) => normalizeAxis("squeeze", this, axis)).sort((a, b) => a - b);
    return this.unary("squeeze", { axes: sorted });
  }
  /** A part of one axis. With a symbolic size, `start` and `end` are taken to lie within it. */
  slice({ axis, start, end, step = 1 }: SliceOptions): Tensor {
    return this.unary("slice", { axis: normalizeAxis("slice", this, axis), start, end, step });
  }
  /** One place of an axis, which is dropped. */
  at(index: number, axis = 0): Tensor {
    const place = normalizeAxis("at", this, axis);
    return this.slice({ axis: place, start: index, end: index === -1 ? undefined : index + 1 }).squeeze(place);
  }
  /** Cuts an axis into parts of the given sizes, or into so many equal parts. */
  split(parts: number | readonly Dim[], axis = -1): Tensor[] {
    const place = normalizeAxis("split", this, axis);
    const sizes = typeof parts === "number" ? equalParts(this, place, parts) : parts;
    const total = sizes.reduce<Dim>((sum, size) => addDims(sum, size), 0);
    if (!dimsAgree(total, this.shape[place])) {
      throw new ShapeError("split", `the parts ${formatShape(sizes)} do not add up to axis ${place}`, [this]);
    }
    let start: Dim = 0;
    return sizes.map((size, i) => {
      const from = start;
      start = i === sizes.length - 1 ? this.shape[place] : addDims(from, size);
      return this.slice({ axis: place, start: from, end: start });
    });
  }
  /** The elements of an axis at these indices (integers of any shape): embedding lookup is `table.gather(ids)`. */
  gather(indices: Tensor, axis = 0): Tensor {
    return new Tensor("gather", [this, indices], { axis: normalizeAxis("gather", this, axis) });
  }
  /** out[i][j] = this[indices[i][j]][j] for axis 0; indices have this tensor's rank. */
  gatherElements(indices: Tensor, axis: number): Tensor {
    return new Tensor("gatherElements", [this, indices], { axis: normalizeAxis("gatherElements", this, axis) });
  }
  /**
   * A copy with `updates` written (or with `reduction: "add"` added) at `indices` along an axis; duplicates add up
   * exactly. indices and updates have one shape.
   */
  scatterElements(
    indices: Tensor,
    updates: Tensor,
    axis: number,
    options: { reduction?: "none" | "add" } = {},
  ): Tensor {
    const attrs = { axis: normalizeAxis("scatterElements", this, axis), reduction: options.reduction ?? "none" };
    return new Tensor("scatterElements", [this, indices, updates], attrs);
  }
  /** Broadcasts to a shape, or to a tensor's. */
  expand(shape: readonly Dim[] | Tensor): Tensor {
    if (shape instanceof Tensor) return new Tensor("expand", [this, shape], { shape: shape.shape });
    return this.unary("expand", { shape: shape.map(canonicalDim) });
  }
  /** Repeats each axis so many times. */
  tile(repeats: readonly number[]): Tensor {
    return this.unary("tile", { repeats });
  }
  /** Adds elements before and after an axis. */
  pad(options: { axis: number; before?: number; after?: number; value?: number }): Tensor {
    const { before = 0, after = 0, value = 0 } = options;
    return this.unary("pad", { axis: normalizeAxis("pad", this, options.axis), before, after, value });
  }
  /** Keeps the elements on and above diagonal k of the last two axes; zero elsewhere. */
  triu(k = 0): Tensor {
    return this.unary("triangle", { upper: true, k });
  }
  /** Keeps the elements on and below diagonal k of the last two axes; zero elsewhere. */
  tril(k = 0): Tensor {
    return this.unary("triangle", { upper: false, k });
  }
  /** The numbers 0, 1, ... along an axis of this tensor: int64 [size of the axis]. */
  range(axis: number): Tensor {
    return this.unary("range", { axis: normalizeAxis("range", this, axis) });
  }
  /** The size of an axis at run time: int64 []. */
  size(axis: number): Tensor {
    return this.unary("size", { axis: normalizeAxis("size", this, axis) });
  }

  // Blocks of models.
  /** x / rms(x) * (weight + offset) over the last axis; offset 1 is Gemma's. */
  rmsNorm(weight: Tensor, options: { eps: number; offset?: number }): Tensor {
    return new Tensor("rmsNorm", [this, weight], { eps: options.eps, offset: options.offset ?? 0 });
  }
  /** (x - mean(x)) / std(x) * weight + bias over the last axis. */
  layerNorm(weight: Tensor, bias: Tensor | undefined, options: { eps: number }): Tensor {
    return new Tensor("layerNorm", bias ? [this, weight, bias] : [this, weight], { eps: options.eps });
  }
  /**
   * Rotary positions (RoFormer, arXiv:2104.09864): rotates the first `dims` of the last axis.
   * x [T, H, D], cos and sin [T, dims/2]. Pairs are (i, i + dims/2), or (2i, 2i + 1) where `interleaved`.
   */
  rotary(cos: Tensor, sin: Tensor, options: { dims?: number; interleaved?: boolean } = {}): Tensor {
    const attrs = { dims: options.dims, interleaved: options.interleaved ?? false };
    return new Tensor("rotary", [this, cos, sin], attrs);
  }
  /**
   * ONNX Runtime's fused causal attention: q (this) [T, Hq*D], k and v [T, Hkv*D] -> [T, Hq*D]. The plain definition is
   * `attention`. `scale` defaults to 1/sqrt(D); `window`: how many keys a query sees, itself included; `bias`
   * [1 or Hq, T, T] is added to the scaled logits (after the soft-cap). D must be a multiple of 8.
   */
  groupQueryAttention(options: GroupQueryAttentionOptions): Tensor {
    const { k, v, bias, heads, kvHeads, scale, softcap, window } = options;
    return new Tensor("groupQueryAttention", bias ? [this, k, v, bias] : [this, k, v], {
      heads,
      kvHeads,
      scale,
      softcap,
      window,
    });
  }

  toString(): string {
    return `${this.name ?? this.op} ${formatShape(this.shape)} ${this.dtype}`;
  }
}

/** Options of `groupQueryAttention`. */
export interface GroupQueryAttentionOptions {
  k: Tensor;
  v: Tensor;
  /** Query heads Hq, a multiple of kvHeads. */
  heads: number;
  /** Key and value heads Hkv. */
  kvHeads: number;
  scale?: number;
  softcap?: number;
  window?: number;
  bias?: Tensor;
}

function equalParts(tensor: Tensor, axis: number, parts: number): Dim[] {
  const size = tensor.shape[axis];
  if (typeof size !== "number" || size % parts !== 0) {
    throw new ShapeError("split", `axis ${axis} cannot be cut into ${parts} equal parts`, [tensor]);
  }
  return new Array(parts).fill(size / parts);
}

/** The full shape that `reshape` asks for: 0 and -1 replaced. */
function resolveReshape(tensor: Tensor, wanted: readonly Dim[]): Dim[] {
  const shape = wanted.map((dim, i) => {
    if (dim !== 0) return canonicalDim(dim);
    // A tensor that is empty anyway may be asked for as such; otherwise 0 means "as it was".
    if (i >= tensor.rank) throw new ShapeError("reshape", `0 at place ${i}, where there is no dimension`, [tensor]);
    return tensor.shape[i];
  });
  const open = shape.indexOf(-1);
  if (open < 0) return shape;
  if (shape.indexOf(-1, open + 1) >= 0) {
    throw new ShapeError("reshape", `more than one -1 in ${formatShape(wanted)}`, [tensor]);
  }
  const others = productOfDims(shape.filter((_, i) => i !== open));
  shape[open] = quotientDim(tensor, productOfDims(tensor.shape), others, wanted);
  return shape;
}

function quotientDim(tensor: Tensor, total: Dim, others: Dim, wanted: readonly Dim[]): Dim {
  const quotient = others === 0 ? undefined : divideDims(total, others);
  if (quotient !== undefined) return quotient;
  if (typeof total === "string" && others !== 0) return unknownDim();
  throw new ShapeError("reshape", `${total} elements do not fill ${formatShape(wanted)}`, [tensor]);
}

/**
 * A graph's input, fed at each run. Dimensions with a name are free, and one name is one size in the whole graph.
 *
 * @example input("x", ["T", 64])
 */
export function input(name: string, shape: readonly Dim[], dtype: DType = "float32"): Tensor {
  return new Tensor("input", [], { name, shape: shape.map(canonicalDim), dtype }, name);
}

/** A weight: its value comes from the weight source that `compile` is given. Its shape is made of numbers. */
export function parameter(name: string, shape: readonly number[], dtype: DType = "float32"): Tensor {
  return new Tensor("parameter", [], { name, shape, dtype }, name);
}

/** A tensor of fixed numbers: a number, nested lists, or a typed array with a shape (default: one dimension). */
export function constant(data: NestedNumbers | TensorData, shape?: readonly number[], dtype?: DType): Tensor {
  if (ArrayBuffer.isView(data)) {
    const type = dtype ?? dtypeOf(data);
    const array = type === dtypeOf(data) || type === "bool" ? data : toTypedArray(data, type);
    return new Tensor("constant", [], { data: array, shape: shape ?? [data.length], dtype: type });
  }
  const flat: (number | boolean)[] = [];
  const found: number[] = [];
  flatten(data, flat, found, 0);
  const type = dtype ?? (typeof flat[0] === "boolean" ? "bool" : "float32");
  const array = toTypedArray(flat, type);
  return new Tensor("constant", [], { data: array, shape: shape ?? found, dtype: type });
}

function flatten(data: NestedNumbers, flat: (number | boolean)[], shape: number[], depth: number): void {
  if (typeof data === "number" || typeof data === "boolean") {
    if (depth !== shape.length) throw raggedList();
    flat.push(data);
    return;
  }
  if (shape.length === depth) {
    if (flat.length > 0) throw raggedList();
    shape.push(data.length);
  }
  if (shape[depth] !== data.length) throw raggedList();
  for (const part of data) flatten(part, flat, shape, depth + 1);
}

function raggedList(): FoveaError {
  return new FoveaError("bad-input", "constant: the nested lists are not all of one length");
}

/** Zeros of a tensor's shape and type. */
export function zerosLike(tensor: Tensor): Tensor {
  return constant(0, [], tensor.dtype).expand(tensor);
}

/** Joins tensors along an axis. */
export function concat(tensors: readonly Tensor[], axis: number): Tensor {
  if (tensors.length === 0) throw new FoveaError("bad-input", "concat: no tensors given");
  if (tensors.length === 1) return tensors[0];
  return new Tensor("concat", tensors, { axis: normalizeAxis("concat", tensors[0], axis) });
}

/**
 * Einstein's sum: products summed over the letters that the result leaves out.
 *
 * @example einsum("thd,shd->hts", q, k)
 */
export function einsum(equation: string, ...tensors: Tensor[]): Tensor {
  return new Tensor("einsum", tensors, { equation: equation.replace(/\s+/g, "") });
}

/** Puts tensors of one shape side by side along a new axis. */
export function stack(tensors: readonly Tensor[], axis: number): Tensor {
  return concat(
    tensors.map((tensor) => tensor.unsqueeze(axis)),
    axis,
  );
}

/**
 * Names an inner tensor, so that it can be found, cut at and read. A tensor that has a name already gets an alias of
 * its own, which is returned: build on with the result. With `into`, the tap is also entered there.
 */
export function tap(tensor: Tensor, name: string, into?: Map<string, Tensor>): Tensor {
  const tapped = tensor.name === undefined || tensor.name === name ? tensor : tensor.identity();
  tapped.name = name;
  into?.set(name, tapped);
  return tapped;
}
