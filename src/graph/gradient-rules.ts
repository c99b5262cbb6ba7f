import { FoveaError } from "../error.js";
import { type Dim, productOfDims } from "./dims.js";
import type { GradientRule } from "./op.js";
import type { OpName } from "./ops.js";
import { scanGradient } from "./scan.js";
import { einsum, Tensor, zerosLike } from "./tensor.js";

/**
 * How each operation passes a gradient on: from the gradient `g` of a node's result, the gradient of each input. A list
 * has one rule per input; one rule alone serves all inputs and is told which. `null` says that nothing passes: the
 * result is an integer or a truth value, or it is constant in steps. `"plain"` differentiates the plain definition.
 *
 * A rule may return a gradient that is as large as the result where the input was broadcast: `gradients` sums it. It
 * may also return one with axes of size 1 that stand for equal numbers all along the input's axis.
 */
export const gradientRules: Readonly<Record<OpName, GradientRule>> = {
  // Leaves
  input: null,
  parameter: null,
  constant: null,

  // Two operands
  add: (g) => g,
  sub: [(g) => g, (g) => g.neg()],
  mul: [(g, { inputs: [, b] }) => g.mul(b), (g, { inputs: [a] }) => g.mul(a)],
  div: [(g, { inputs: [, b] }) => g.div(b), (g, y) => g.mul(y).div(y.inputs[1]).neg()],
  mod: [(g) => g, (g, y) => g.mul(y.sub(y.inputs[0]).div(y.inputs[1]).round())],
  pow: [(g, { inputs: [a, b] }) => g.mul(powerSlope(a, b)), (g, y) => g.mul(y).mul(safeLog(y.inputs[0]))],
  minimum: (g, y, i) => chosen(g, y.inputs[i].less(y.inputs[1 - i]), y),
  maximum: (g, y, i) => chosen(g, y.inputs[i].greater(y.inputs[1 - i]), y),
  where: [null, (g, y) => (masksSoftmax(g, y) ? g : y.inputs[0].where(g, 0)), (g, { inputs: [c] }) => c.where(0, g)],
  equal: null,
  less: null,
  greater: null,
  lessEqual: null,
  greaterEqual: null,
  and: null,
  or: null,
  xor: null,

  // One operand
  not: null,
  isNaN: null,
  sign: null,
  floor: null,
  ceil: null,
  round: null,
  stopGradient: null,
  after: [(g) => g, null],
  neg: (g) => g.neg(),
  abs: (g, { inputs: [x] }) => g.mul(x.sign()),
  exp: (g, y) => g.mul(y),
  log: (g, { inputs: [x] }) => g.div(x),
  sqrt: (g, y) => g.mul(0.5).div(y),
  rsqrt: (g, y) => g.mul(-0.5).mul(y).div(y.inputs[0]),
  reciprocal: (g, y) => g.mul(y).mul(y).neg(),
  square: (g, { inputs: [x] }) => g.mul(2).mul(x),
  sin: (g, { inputs: [x] }) => g.mul(x.cos()),
  cos: (g, { inputs: [x] }) => g.mul(x.sin()).neg(),
  tanh: (g, y) => g.sub(g.mul(y).mul(y)),
  sigmoid: (g, y) => g.mul(y.sub(y.mul(y))),
  relu: (g, y) => y.greater(0).where(g, 0),
  erf: (g, { inputs: [x] }) =>
    g.mul(
      x
        .mul(x)
        .neg()
        .exp()
        .mul(2 / Math.sqrt(Math.PI)),
    ),
  softplus: (g, { inputs: [x] }) => g.mul(x.sigmoid()),
  elu: (g, y) => y.greater(0).where(g, g.mul(y.add(y.attrs.alpha as number))),
  silu: (g, y) => g.mul(siluSlope(y)),
  gelu: (g, y) => g.mul(geluSlope(y)),
  cast: (g, { inputs: [x] }) => g.cast(x.dtype),
  identity: (g) => g,

  // Reductions
  sum: (g, y) => keptAxes(g, y),
  mean: (g, y) => divideByCount(keptAxes(g, y), y),
  max: (g, y) => sharedByTies(g, y),
  min: (g, y) => sharedByTies(g, y),
  prod: (g, y) => keptAxes(g, y).mul(productOfOthers(y)),
  logSumExp: (g, y) => keptAxes(g, y).mul(y.inputs[0].sub(keptAxes(y, y)).exp()),
  argmax: null,
  argmin: null,
  cumsum: (g, { attrs }) => new Tensor("cumsum", [g], { ...attrs, reverse: !attrs.reverse }),
  softmax: (g, y) => y.mul(g.sub(g.mul(y).sum(y.attrs.axis as number, { keep: true }))),
  logSoftmax: (g, y) => g.sub(y.exp().mul(g.sum(y.attrs.axis as number, { keep: true }))),
  topk: (g, y) => (y.attrs.output === "values" ? fromLargest(g, y) : null),

  // Products
  matmul: [(g, { inputs: [, b] }) => leftGradient(g, b), (g, { inputs: [a, b] }) => rightGradient(g, a, b)],
  linear: [
    (g, { inputs: [, weight] }) => linearInput(g, weight),
    (g, { inputs: [x] }) => flatRows(g).transpose().matmul(flatRows(x)),
    (g) => g,
  ],
  einsum: (g, y, i) => einsumGradient(g, y, i),
  conv: "plain",

  // Layout
  transpose: (g, { attrs }) => g.transpose(...inverse(attrs.permutation as number[])),
  reshape: (g, { inputs: [x] }) => g.reshape(x),
  unsqueeze: (g, { inputs: [x], attrs }) => (g.rank === x.rank ? g : g.squeeze(...(attrs.axes as number[]))),
  squeeze: (g, { inputs: [x], attrs }) => (g.rank === x.rank ? g : g.unsqueeze(...(attrs.axes as number[]))),
  slice: (g, y) => unsliced(g, y),
  unslice: [(g, { attrs }) => new Tensor("slice", [g], attrs), null],
  concat: (g, { inputs, attrs }, index) => new Tensor("splitLike", [g, ...inputs], { ...attrs, index }),
  splitLike: (g, y, i) => (i === 0 ? new Tensor("concat", onlyPart(g, y), { axis: y.attrs.axis }) : null),
  expand: [(g) => g, null],
  sumLike: [(g, { inputs: [x] }) => g.expand(x), null],
  tile: (g, { inputs: [x], attrs }) => sumOfRepeats(g, x, attrs.repeats as number[]),
  pad: (g, y) => withoutPadding(g, y),
  triangle: (g, { attrs }) => new Tensor("triangle", [g], attrs),
  range: null,
  size: null,

  // Indexing
  gather: [(g, { inputs: [x, indices], attrs }) => scatterAlong(g, x, indices, attrs.axis as number), null],
  gatherElements: [
    (g, { inputs: [x, indices], attrs }) =>
      zerosLike(x).scatterElements(indices, g, attrs.axis as number, { reduction: "add" }),
    null,
  ],
  scatterElements: [
    (g, { inputs: [, indices, updates], attrs }) =>
      attrs.reduction === "add" ? g : g.scatterElements(indices, zerosLike(updates), attrs.axis as number),
    null,
    (g, { inputs: [, indices], attrs }) => g.gatherElements(indices, attrs.axis as number),
  ],

  // Blocks of models
  rmsNorm: [(g, y) => rmsNormInput(g, y), (g, y) => g.mul(normalized(y))],
  layerNorm: [(g, y) => layerNormInput(g, y), (g, y) => g.mul(standardized(y)), (g) => g],
  rotary: [
    // A rotation is undone by the opposite one, which is also its transpose.
    (g, { inputs: [, cos, sin], attrs }) => new Tensor("rotary", [g, cos, sin.neg()], attrs),
    "plain",
    "plain",
  ],
  groupQueryAttention: "plain",
  scan: (g, y, i, needed) => scanGradient(g, y, i, needed),
  crossEntropy: [(g, y) => crossEntropyLogits(g, y), null],
};

/**
 * Whether a node puts -Infinity into places of a softmax and `g` is that softmax's gradient, which is 0 there already:
 * masking it again would cost a pass over all attention weights.
 */
function masksSoftmax(g: Tensor, node: Tensor): boolean {
  const no = node.inputs[2];
  const hides = no.op === "constant" && no.rank === 0 && no.dtype === "float32" && readNumber(no) === -Infinity;
  if (!hides || g.op !== "mul") return false;
  let [source] = g.inputs;
  if (source.op !== "softmax") return false;
  do [source] = source.inputs;
  while (source.op === "identity");
  return source === node;
}

function readNumber(tensor: Tensor): number {
  return (tensor.attrs.data as Float32Array)[0];
}

/** The gradient of minimum or maximum: to the operand that was chosen, halved where both are equal. */
function chosen(g: Tensor, strictly: Tensor, { inputs: [a, b] }: Tensor): Tensor {
  return strictly.where(g, a.equal(b).where(g.mul(0.5), 0));
}

/** b a^(b - 1), and 0 where b is 0. */
function powerSlope(a: Tensor, b: Tensor): Tensor {
  if (b.op === "constant" && b.rank === 0 && b.dtype === "float32") {
    const exponent = readNumber(b);
    return exponent === 2 ? a.mul(2) : a.pow(exponent - 1).mul(exponent);
  }
  return b.equal(0).where(0, b.mul(a.pow(b.sub(1))));
}

/** log a where a is positive, else 0: what a power's gradient by its exponent is made of. */
function safeLog(a: Tensor): Tensor {
  return a.greater(0).where(a, 1).log();
}

/** s + y (1 - s) for s = sigmoid(x). */
function siluSlope(y: Tensor): Tensor {
  const s = y.inputs[0].sigmoid();
  return y.mul(s.like(1).sub(s)).add(s);
}

function geluSlope({ inputs: [x], attrs }: Tensor): Tensor {
  if (attrs.approximate !== "tanh") {
    const density = x
      .mul(x)
      .mul(-0.5)
      .exp()
      .mul(1 / Math.sqrt(2 * Math.PI));
    return x.mul(Math.SQRT1_2).erf().add(1).mul(0.5).add(x.mul(density));
  }
  const scale = Math.sqrt(2 / Math.PI);
  const squared = x.mul(x);
  const t = x.mul(squared.mul(0.044715 * scale).add(scale)).tanh();
  const slope = squared.mul(3 * 0.044715 * scale).add(scale);
  const rest = t.mul(t).neg().add(1).mul(x).mul(slope);
  return t.add(1).add(rest).mul(0.5);
}

/** A reduction's result, or its gradient, with the reduced axes as axes of size 1. */
function keptAxes(tensor: Tensor, { attrs }: Tensor): Tensor {
  const axes = attrs.axes as number[];
  return attrs.keep || axes.length === 0 ? tensor : tensor.unsqueeze(...axes);
}

/** g over the number of elements that a mean was taken of. */
function divideByCount(g: Tensor, { inputs: [x], attrs }: Tensor): Tensor {
  const axes = attrs.axes as number[];
  const count = productOfDims(axes.map((axis) => x.shape[axis]));
  if (typeof count === "number") return g.mul(1 / count);
  return g.div(
    axes
      .map((axis) => x.size(axis))
      .reduce((product, size) => product.mul(size))
      .cast(x.dtype),
  );
}

/** The gradient of max or min: shared by all elements that are equal to the extreme. */
function sharedByTies(g: Tensor, y: Tensor): Tensor {
  const [x] = y.inputs;
  const hit = x.equal(keptAxes(y, y));
  const ties = hit.cast(x.dtype).sum(y.attrs.axes as number[], { keep: true });
  return hit.where(keptAxes(g, y).div(ties), 0);
}

/** For each element the product of the others, zeros among them included. */
function productOfOthers({ inputs: [x], attrs }: Tensor): Tensor {
  const axes = attrs.axes as number[];
  const zero = x.equal(0);
  const zeros = zero.cast(x.dtype).sum(axes, { keep: true });
  const safe = zero.where(1, x);
  const product = safe.prod(axes, { keep: true });
  return zero.where(zeros.equal(1).where(product, 0), zeros.equal(0).where(product.div(safe), 0));
}

function fromLargest(g: Tensor, { inputs: [x], attrs }: Tensor): Tensor {
  const indices = new Tensor("topk", [x], { ...attrs, output: "indices" });
  return zerosLike(x).scatterElements(indices, g, attrs.axis as number);
}

/** [..., K] as rows [N, K]. */
export function flatRows(x: Tensor): Tensor {
  return x.rank === 2 ? x : x.reshape([-1, x.shape[x.rank - 1]]);
}

/** Of a matrix product by its first operand: g bᵀ. */
function leftGradient(g: Tensor, b: Tensor): Tensor {
  return b.rank === 2 ? g.linear(b) : g.matmul(b.transpose());
}

/** Of a matrix product by its second operand: aᵀ g; a matrix that all rows share takes them as one product. */
function rightGradient(g: Tensor, a: Tensor, b: Tensor): Tensor {
  return b.rank === 2 ? flatRows(a).transpose().matmul(flatRows(g)) : a.transpose().matmul(g);
}

/** Of `linear` by x: g W. */
function linearInput(g: Tensor, weight: Tensor): Tensor {
  return g.rank === 1 ? g.unsqueeze(0).matmul(weight).squeeze(0) : g.matmul(weight);
}

/** Einstein's sum of the gradient and the other operands, over the letters of operand i. */
function einsumGradient(g: Tensor, { inputs, attrs }: Tensor, i: number): Tensor {
  const [terms, result] = splitEquation(attrs.equation as string);
  const own = terms[i];
  if (new Set(own).size !== own.length) {
    throw new FoveaError("unsupported", `einsum "${attrs.equation}": no gradient for a term that repeats a letter`, {
      hint: "take the diagonal by other means first",
    });
  }
  const others = [...terms.keys()].filter((j) => j !== i);
  const given = [result, ...others.map((j) => terms[j])];
  // A letter that only this operand has was summed over: its gradient is the same all along that axis.
  const found = [...own].filter((letter) => given.some((term) => term.includes(letter))).join("");
  const product = einsum(`${given.join(",")}->${found}`, g, ...others.map((j) => inputs[j]));
  const missing = [...own].flatMap((letter, axis) => (found.includes(letter) ? [] : [axis]));
  return missing.length === 0 ? product : product.unsqueeze(...missing);
}

function splitEquation(equation: string): [string[], string] {
  const [terms, result] = equation.split("->");
  return [terms.split(","), result];
}

function inverse(permutation: readonly number[]): number[] {
  return permutation.map((_, axis) => permutation.indexOf(axis));
}

/** The parts that a joined tensor is made of, where only one is not zero. */
function onlyPart(g: Tensor, { inputs: [, ...parts], attrs }: Tensor): Tensor[] {
  return parts.map((part, i) => (i === attrs.index ? g : zerosLike(part)));
}

function sumOfRepeats(g: Tensor, x: Tensor, repeats: readonly number[]): Tensor {
  const shape: Dim[] = [];
  const axes: number[] = [];
  repeats.forEach((count, axis) => {
    if (count !== 1) {
      axes.push(shape.length);
      shape.push(count);
    }
    shape.push(x.shape[axis]);
  });
  return axes.length === 0 ? g : g.reshape(shape).sum(axes);
}

/** Zeros of the whole tensor's shape, with g where the slice was taken. */
function unsliced(g: Tensor, { inputs: [x], attrs }: Tensor): Tensor {
  if (attrs.step === 1) return new Tensor("unslice", [g, x], attrs);
  const axis = attrs.axis as number;
  const places = new Tensor("slice", [x.range(axis)], { ...attrs, axis: 0 });
  const spread = places.reshape(x.shape.map((_, i) => (i === axis ? -1 : 1))).expand(g);
  return zerosLike(x).scatterElements(spread, g, axis);
}

function withoutPadding(g: Tensor, { attrs }: Tensor): Tensor {
  const after = attrs.after as number;
  return g.slice({
    axis: attrs.axis as number,
    start: attrs.before as number,
    end: after === 0 ? undefined : -after,
  });
}

/** The sum of g over all places that an index was looked up from, in the shape of x. */
function scatterAlong(g: Tensor, x: Tensor, indices: Tensor, axis: number): Tensor {
  const rows = g.reshape([...x.shape.slice(0, axis), -1, ...x.shape.slice(axis + 1)]);
  const places = indices.reshape(x.shape.map((_, i) => (i === axis ? -1 : 1))).expand(rows);
  return zerosLike(x).scatterElements(places, rows, axis, { reduction: "add" });
}

/** 1 / rms(x) [..., 1] */
function inverseRms({ inputs: [x], attrs }: Tensor): Tensor {
  return x
    .mul(x)
    .mean(-1, { keep: true })
    .add(attrs.eps as number)
    .rsqrt();
}

function normalized(y: Tensor): Tensor {
  return y.inputs[0].mul(inverseRms(y));
}

function rmsNormInput(g: Tensor, y: Tensor): Tensor {
  const [, weight] = y.inputs;
  const unit = normalized(y);
  const u = g.mul(y.attrs.offset === 0 ? weight : weight.add(y.attrs.offset as number));
  return u.sub(unit.mul(u.mul(unit).mean(-1, { keep: true }))).mul(inverseRms(y));
}

/** x - mean(x), and 1 / std(x) [..., 1] */
function centred({ inputs: [x], attrs }: Tensor): { centre: Tensor; scale: Tensor } {
  const centre = x.sub(x.mean(-1, { keep: true }));
  const scale = centre
    .mul(centre)
    .mean(-1, { keep: true })
    .add(attrs.eps as number)
    .rsqrt();
  return { centre, scale };
}

function standardized(y: Tensor): Tensor {
  const { centre, scale } = centred(y);
  return centre.mul(scale);
}

function layerNormInput(g: Tensor, y: Tensor): Tensor {
  const { centre, scale } = centred(y);
  const unit = centre.mul(scale);
  const u = g.mul(y.inputs[1]);
  const along = unit.mul(u.mul(unit).mean(-1, { keep: true }));
  return u
    .sub(u.mean(-1, { keep: true }))
    .sub(along)
    .mul(scale);
}

/** (softmax - onehot) g, without the onehot. */
function crossEntropyLogits(g: Tensor, { inputs: [logits, targets] }: Tensor): Tensor {
  const row = g.unsqueeze(-1); // [..., 1]
  const spread = logits.logSoftmax(-1).exp().mul(row);
  return spread.scatterElements(targets.unsqueeze(-1), row.neg(), -1, { reduction: "add" });
}
