import { FoveaError } from "../error.js";
import { type Dim, isUnknown } from "./dims.js";
import { isFloat } from "./dtype.js";
import { gradientRules } from "./gradient-rules.js";
import type { Gradient } from "./op.js";
import { elementwiseOps } from "./ops/elementwise.js";
import { ops } from "./ops.js";
import { recomputedBlocks } from "./recompute.js";
import { describe } from "./shape.js";
import { constant, Tensor, zerosLike } from "./tensor.js";

/** Options of `gradients`. */
export interface GradientOptions {
  /** The gradient of the result itself, in its shape. Default 1, for which the result must be one number. */
  seed?: Tensor;
}

/**
 * The gradients of a loss with respect to tensors of its graph, each in its tensor's shape: reverse-mode differentiation
 * by the rules in gradient-rules.ts. `wrt` may be parameters, inputs or inner tensors (embeddings, activations, attention
 * weights); the gradient of an inner tensor is that of everything that is computed from it. Where no path leads from a
 * tensor to the loss, its gradient is zero. Gradients are graphs themselves and can be differentiated again.
 *
 * @example
 * const [dw, db] = gradients(x.linear(w, b).square().mean(), [w, b]);
 *
 * @throws FoveaError `bad-input` for a loss that is no single number, or tensors without fractions; `unsupported` for an
 *   operation without a gradient
 */
export function gradients(loss: Tensor, wrt: readonly Tensor[], options: GradientOptions = {}): Tensor[] {
  for (const tensor of [loss, ...wrt]) {
    if (!isFloat(tensor.dtype)) {
      throw new FoveaError("bad-input", `gradients: ${describe(tensor)} is no tensor of fractions`, {
        hint: "differentiate float32 or float16 tensors; integers have no gradient",
      });
    }
  }
  if (!options.seed && loss.shape.some((dim) => dim !== 1)) {
    throw new FoveaError("bad-input", `gradients: the loss must be one number, not ${describe(loss)}`, {
      hint: "sum it or take its mean, or give the gradient of the result as `seed`",
    });
  }
  const seed = options.seed ?? constant(1, [], loss.dtype).reshape(loss.shape);
  const found = walkBack([[loss, seed]], wrt, false);
  return wrt.map((tensor) => {
    const gradient = found.get(tensor);
    return gradient ? full(gradient, tensor) : zerosLike(tensor);
  });
}

/**
 * The gradient at each tensor of `wrt` that a path leads to, from ends of a graph with their own gradients. With `leaves`,
 * what the tensors are computed from is not looked at: they are taken as independent of one another.
 */
export function walkBack(
  ends: readonly (readonly [Tensor, Tensor])[],
  wrt: readonly Tensor[],
  leaves: boolean,
): Map<Tensor, Tensor> {
  const wanted = new Set(wrt);
  const order = dependants(
    ends.map(([end]) => end),
    wanted,
    leaves,
  );
  const found = new Map<Tensor, Tensor>();
  if (order.length === 0) return found;
  const active = new Set(order);
  const blocks = recomputedBlocks(order);
  const sums = new Map<Tensor, Tensor>();
  const add = (tensor: Tensor, part: Tensor): void => {
    const known = sums.get(tensor);
    sums.set(tensor, known ? known.add(part) : part);
  };
  for (const [end, seed] of ends) add(end, renamed(seed, end.shape));
  for (const node of order.reverse()) {
    const sum = sums.get(node);
    if (!sum) continue;
    sums.delete(node);
    if (wanted.has(node)) found.set(node, sum);
    if (leaves && wanted.has(node)) continue;
    const gradient = takesNarrow(node, active) ? sum : full(sum, node);
    const values = blocks.get(node)?.copyOf(node, gradient) ?? node;
    for (const [input, part] of pull(gradient, node, values, active)) add(input, part);
  }
  return found;
}

/** The tensors that lie between `wanted` ones and the ends, each after its inputs. Never recursive: graphs are deep. */
function dependants(ends: readonly Tensor[], wanted: ReadonlySet<Tensor>, leaves: boolean): Tensor[] {
  const order: Tensor[] = [];
  const depends = new Map<Tensor, boolean>();
  const open: { tensor: Tensor; next: number }[] = [];
  const enter = (tensor: Tensor): void => {
    if (depends.has(tensor)) return;
    depends.set(tensor, false);
    open.push({ tensor, next: 0 });
  };
  for (const end of ends) {
    enter(end);
    while (open.length > 0) {
      const top = open[open.length - 1];
      const { tensor } = top;
      const stops = !isFloat(tensor.dtype) || (leaves && wanted.has(tensor));
      if (!stops && top.next < tensor.inputs.length) {
        enter(tensor.inputs[top.next++]);
        continue;
      }
      open.pop();
      const reached = !stops && tensor.inputs.some((input, i) => depends.get(input) && ruleOf(tensor, i) !== null);
      if (!reached && !wanted.has(tensor)) continue;
      depends.set(tensor, true);
      order.push(tensor);
    }
  }
  return order;
}

function ruleOf(node: Tensor, index: number): Gradient | "plain" | null {
  const rule = gradientRules[node.op];
  return isList(rule) ? rule[index] : rule;
}

function isList(rule: unknown): rule is readonly (Gradient | "plain" | null)[] {
  return Array.isArray(rule);
}

/** The gradients that a node passes to its inputs. The rules read `values`, which is the node or a copy of it. */
function pull(
  gradient: Tensor,
  node: Tensor,
  values: Tensor,
  active: ReadonlySet<Tensor>,
): (readonly [Tensor, Tensor])[] {
  const parts: (readonly [Tensor, Tensor])[] = [];
  const byPlain: number[] = [];
  node.inputs.forEach((input, index) => {
    if (!active.has(input)) return;
    const rule = ruleOf(node, index);
    if (rule === "plain") byPlain.push(index);
    else if (rule) {
      const part = rule(gradient, values, index, (at) => active.has(node.inputs[at]));
      if (part) parts.push([input, fitted(part, input, node)]);
    }
  });
  if (byPlain.length === 0) return parts;
  const plain = ops[node.op].plain?.(values);
  if (!plain) throw new FoveaError("unsupported", `${node.op} has no gradient`);
  const wanted = new Map(byPlain.map((index) => [values.inputs[index], node.inputs[index]]));
  const found = walkBack([[plain, gradient]], [...wanted.keys()], true);
  return [...parts, ...[...found].map(([value, part]) => [wanted.get(value) ?? value, part] as const)];
}

/** Operations whose operands are broadcast to the shape of the result. */
function broadcasts(node: Tensor): boolean {
  return node.op in elementwiseOps || node.op === "matmul" || node.op === "expand";
}

/** Whether a node may be given a gradient that is narrow: one whose axes of size 1 stand for equal numbers. */
function takesNarrow(node: Tensor, active: ReadonlySet<Tensor>): boolean {
  if (!(node.op in elementwiseOps) || node.shape.some(isUnknown)) return false;
  return node.inputs.every((input) => !active.has(input) || sameShape(input.shape, node.shape));
}

/** A gradient in the full shape of its tensor. */
function full(gradient: Tensor, tensor: Tensor): Tensor {
  return sameShape(gradient.shape, tensor.shape) ? gradient : gradient.expand(tensor);
}

/** A gradient summed over the axes along which the node broadcast its input. */
function fitted(gradient: Tensor, input: Tensor, node: Tensor): Tensor {
  // An unknown size may turn out to be 1: only the run can tell which axes were broadcast.
  if (broadcasts(node) && input.shape.some(isUnknown)) return new Tensor("sumLike", [gradient, input]);
  const extra = gradient.rank - input.rank;
  const lead = Array.from({ length: extra }, (_, axis) => axis);
  const axes = input.shape.flatMap((dim, axis) =>
    dim === 1 && gradient.shape[axis + extra] !== 1 ? [axis + extra] : [],
  );
  let sum = gradient;
  if (axes.length > 0) {
    sum = sum.sum([...lead, ...axes], { keep: true });
    if (extra > 0) sum = sum.squeeze(...lead);
  } else if (extra > 0) sum = sum.sum(lead);
  return renamed(sum, input.shape);
}

/** The gradient with the dimensions' names that its tensor has. Axes of size 1 stay. */
function renamed(gradient: Tensor, shape: readonly Dim[]): Tensor {
  const wanted = shape.map((dim, axis) => (gradient.shape[axis] === 1 ? 1 : dim));
  return sameShape(wanted, gradient.shape) ? gradient : gradient.withShape(wanted);
}

function sameShape(a: readonly Dim[], b: readonly Dim[]): boolean {
  return a.length === b.length && a.every((dim, axis) => dim === b[axis]);
}
