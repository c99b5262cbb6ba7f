import { FoveaError } from "../error.js";
import { type Dim, dimsAgree, formatShape, replaceSymbols } from "./dims.js";
import type { Attributes, AttributeValue } from "./op.js";
import { describe, ShapeError } from "./shape.js";
import { Tensor } from "./tensor.js";

/** What `substitute` puts in place of what. */
export interface Substitution {
  /** Inner tensors (or inputs, or parameters) and what stands in their place. */
  tensors?: ReadonlyMap<Tensor, Tensor>;
  /** Symbolic dimensions and what stands in their place. */
  dims?: ReadonlyMap<string, Dim>;
  /** New names for parameters and taps. */
  rename?: (name: string) => string;
}

/**
 * Builds outputs anew with some tensors of their graphs replaced. What does not depend on a replacement is shared with
 * the old graph; shapes are inferred again. Throws ShapeError where a replacement does not fit.
 */
export function substitute<Name extends string>(
  outputs: Readonly<Record<Name, Tensor>>,
  substitution: Substitution,
): Record<Name, Tensor> {
  const { tensors, dims, rename } = substitution;
  const built = new Map<Tensor, Tensor>(tensors);
  const rebuild = (tensor: Tensor): Tensor => {
    const inputs = tensor.inputs.map((from) => built.get(from) ?? from);
    const moved = rename !== undefined && tensor.op === "parameter";
    const attrs = dims && dims.size > 0 ? withDims(tensor.attrs, dims) : tensor.attrs;
    if (!moved && attrs === tensor.attrs && inputs.every((to, i) => to === tensor.inputs[i])) return tensor;
    const name = tensor.name === undefined ? undefined : (rename?.(tensor.name) ?? tensor.name);
    return new Tensor(tensor.op, inputs, moved ? { ...attrs, name } : attrs, name);
  };
  // A stack instead of recursion: graphs may be deep.
  const open: { tensor: Tensor; next: number }[] = [];
  const seen = new Set<Tensor>(built.keys());
  for (const output of Object.values<Tensor>(outputs)) {
    const enter = (tensor: Tensor): void => {
      if (seen.has(tensor)) return;
      seen.add(tensor);
      open.push({ tensor, next: 0 });
    };
    enter(output);
    while (open.length > 0) {
      const top = open[open.length - 1];
      if (top.next < top.tensor.inputs.length) enter(top.tensor.inputs[top.next++]);
      else {
        built.set(top.tensor, rebuild(top.tensor));
        open.pop();
      }
    }
  }
  const entries = Object.entries<Tensor>(outputs).map(([name, tensor]) => [name, built.get(tensor) ?? tensor]);
  return Object.fromEntries(entries) as Record<Name, Tensor>;
}

/** Attributes with symbols replaced in all that are dimensions; the same object where there are none. */
function withDims(attributes: Attributes, dims: ReadonlyMap<string, Dim>): Attributes {
  const changed: Record<string, AttributeValue> = {};
  for (const key of ["shape", "start", "end", "k"]) {
    const value = attributes[key];
    if (isDimList(value)) {
      const replaced = value.map((dim) => replaceSymbols(dim, dims));
      if (replaced.some((dim, i) => dim !== value[i])) changed[key] = replaced;
    } else if (typeof value === "string") {
      const replaced = replaceSymbols(value, dims);
      if (replaced !== value) changed[key] = replaced;
    }
  }
  return Object.keys(changed).length > 0 ? { ...attributes, ...changed } : attributes;
}

function isDimList(value: AttributeValue): value is readonly Dim[] {
  return Array.isArray(value);
}

/**
 * A piece of graph that is defined once and used many times: on other tensors, other sizes, and with weights of its own
 * in each place.
 */
export class GraphFunction<In extends string = string, Out extends string = string> {
  readonly name: string;
  readonly inputs: Readonly<Record<In, Tensor>>;
  readonly outputs: Readonly<Record<Out, Tensor>>;

  constructor(name: string, inputs: Readonly<Record<In, Tensor>>, outputs: Readonly<Record<Out, Tensor>>) {
    this.name = name;
    this.inputs = inputs;
    this.outputs = outputs;
  }

  /**
   * The outputs for these arguments. Symbolic dimensions of the function's inputs take the arguments' sizes. `scope` is
   * put before the names of its parameters and taps: "layers.0" makes "layers.0.weight" of "weight".
   *
   * @throws ShapeError where an argument does not fit, `bad-input` where one is missing
   */
  call(args: Readonly<Record<In, Tensor>>, options: { scope?: string } = {}): Record<Out, Tensor> {
    const { scope } = options;
    const tensors = new Map<Tensor, Tensor>();
    const dims = new Map<string, Dim>();
    for (const [name, formal] of Object.entries<Tensor>(this.inputs)) {
      const actual: Tensor | undefined = args[name as In];
      if (!actual) throw new FoveaError("bad-input", `${this.name}: the argument "${name}" is missing`);
      tensors.set(formal, actual);
      formal.shape.forEach((dim, axis) => {
        if (typeof dim === "string" && axis < actual.rank && !dims.has(dim)) dims.set(dim, actual.shape[axis]);
      });
    }
    for (const [name, formal] of Object.entries<Tensor>(this.inputs)) {
      const actual = args[name as In];
      const shape = formal.shape.map((dim) => replaceSymbols(dim, dims));
      const fits = actual.rank === shape.length && shape.every((dim, axis) => dimsAgree(dim, actual.shape[axis]));
      if (!fits || actual.dtype !== formal.dtype) {
        throw new ShapeError(
          this.name,
          `the argument "${name}" must be ${describe(formal)}, here ${formatShape(shape)}`,
          [actual],
        );
      }
    }
    return substitute(this.outputs, {
      tensors,
      dims,
      rename: scope === undefined ? undefined : (name) => `${scope}.${name}`,
    });
  }
}

/**
 * Makes a function of a graph: its inputs are `input()` tensors that `outputs` are made of.
 *
 * @example
 * const x = input("x", ["T", 64]);
 * const block = graphFunction("block", { x }, { y: x.linear(parameter("weight", [64, 64])).relu() });
 * const { y } = block.call({ x: residual }, { scope: "layers.0" });
 */
export function graphFunction<In extends string, Out extends string>(
  name: string,
  inputs: Readonly<Record<In, Tensor>>,
  outputs: Readonly<Record<Out, Tensor>>,
): GraphFunction<In, Out> {
  return new GraphFunction(name, inputs, outputs);
}
