import { FoveaError } from "../error.js";
import { type Dim, dimsAgree, formatShape, replaceSymbols } from "./dims.js";
import { isFloat } from "./dtype.js";
import { substitute } from "./function.js";
import { walkBack } from "./gradients.js";
import { normalizeAxis, ShapeError, type ShapeResult } from "./shape.js";
import { input, Tensor, zerosLike } from "./tensor.js";

let bodies = 0;

/** What `scan` is given. */
export interface ScanOptions<Carry extends string, In extends string, Out extends string> {
  /** The state before the first step. */
  carry: Readonly<Record<Carry, Tensor>>;
  /** At least one; all are as long along `axis`. A step is given one place of each, without that axis. */
  inputs: Readonly<Record<In, Tensor>>;
  /**
   * One step: from the state and the inputs of a place the new state, in the same shapes, and what is put out there. It
   * is called once, on symbols. What it takes from outside is the same in every step; what it computes from such things
   * alone is computed once.
   */
  step(
    carry: Record<Carry, Tensor>,
    inputs: Record<In, Tensor>,
  ): { carry: Record<Carry, Tensor>; outputs?: Record<Out, Tensor> };
  /** The axis of the inputs that is walked along, and along which the outputs are put together. Default 0. */
  axis?: number;
  /** Walks from the last place to the first (default false). */
  reverse?: boolean;
}

/**
 * A recurrence: runs a step at every place of an axis, which may be of symbolic length, and passes a state on. The
 * gradient is a recurrence in the other direction over the states, which are kept.
 *
 * @example
 * // h_t = tanh(x_t Wᵀ + h_(t-1) Uᵀ) for x [T, B, d]; products that need no state are cheaper outside, all at once
 * const { outputs } = scan({
 *   carry: { h: zeros },
 *   inputs: { a: x.linear(W) },
 *   step: ({ h }, { a }) => {
 *     const next = a.add(h.linear(U)).tanh();
 *     return { carry: { h: next }, outputs: { h: next } };
 *   },
 * });
 * outputs.h; // [T, B, d]
 *
 * @returns the state after the last step, and the outputs of all steps
 * @throws ShapeError where a step changes the state's shape or inputs differ in length, `bad-input` without inputs
 */
export function scan<Carry extends string, In extends string, Out extends string = never>(
  options: ScanOptions<Carry, In, Out>,
): { carry: Record<Carry, Tensor>; outputs: Record<Out, Tensor> } {
  const { carry, inputs, step, axis = 0, reverse = false } = options;
  const [carryNames, inputNames] = [Object.keys(carry) as Carry[], Object.keys(inputs) as In[]];
  const starts = carryNames.map((name) => carry[name]);
  const sequences = inputNames.map((name) => inputs[name]);
  if (sequences.length === 0) throw new FoveaError("bad-input", "scan: no inputs to walk along");
  const axes = sequences.map((tensor) => normalizeAxis("scan", tensor, axis));
  if (sequences.some(({ shape }, i) => !dimsAgree(shape[axes[i]], sequences[0].shape[axes[0]]))) {
    throw new ShapeError("scan", `the inputs differ in length along axis ${axis}`, sequences);
  }
  const states = starts.map(({ shape, dtype }, i) => input(`${carryNames[i]}`, shape, dtype));
  const places = sequences.map(({ shape, dtype }, i) => input(inputNames[i], shape.toSpliced(axes[i], 1), dtype));
  const result = step(named(carryNames, states), named(inputNames, places));
  const outputs: Partial<Record<Out, Tensor>> = result.outputs ?? {};
  const outputNames = Object.keys(outputs) as Out[];
  const stacked = outputNames.map((name) => outputs[name] as Tensor);
  const next = carryNames.map((name, i) => sameState(name, states[i], result.carry[name]));
  const made = recurrence(
    { starts, sequences, outer: new Map() },
    { states, places, next, stacked, inAxes: axes, outAxes: stacked.map(() => axis), reverse },
  );
  return {
    carry: named(
      carryNames,
      carryNames.map((_, i) => made(i)),
    ),
    outputs: named(
      outputNames,
      outputNames.map((_, i) => made(carryNames.length + i)),
    ),
  };
}

function named<Name extends string>(names: readonly Name[], tensors: readonly Tensor[]): Record<Name, Tensor> {
  return Object.fromEntries(names.map((name, i) => [name, tensors[i]])) as Record<Name, Tensor>;
}

function sameState(name: string, before: Tensor, after: Tensor | undefined): Tensor {
  if (!after) throw new FoveaError("bad-input", `scan: the step returns no "${name}"`);
  const fits = after.rank === before.rank && after.shape.every((dim, axis) => dimsAgree(dim, before.shape[axis]));
  if (!fits || after.dtype !== before.dtype) {
    throw new ShapeError("scan", `a step must keep "${name}" ${formatShape(before.shape)} ${before.dtype}`, [after]);
  }
  return after;
}

/** One step of a recurrence, over tensors that stand for what it is given. */
interface StepGraph {
  states: readonly Tensor[];
  places: readonly Tensor[];
  /** The states after the step. */
  next: readonly Tensor[];
  /** What is put out at each place. */
  stacked: readonly Tensor[];
  inAxes: readonly number[];
  outAxes: readonly number[];
  reverse: boolean;
}

/**
 * The step of a recurrence as an attribute of its node. The node's inputs are the first states, the sequences and the
 * values that every step shares. It has several results, and one tensor for each, told apart by the attribute `output`:
 * the last states, then the stacked outputs, then the states before every step, which gradients need.
 */
export class ScanBody implements StepGraph {
  /** Tells bodies apart. */
  readonly id = ++bodies;
  readonly states: readonly Tensor[];
  readonly places: readonly Tensor[];
  readonly next: readonly Tensor[];
  readonly stacked: readonly Tensor[];
  readonly inAxes: readonly number[];
  readonly outAxes: readonly number[];
  readonly reverse: boolean;
  /** Tensors from outside the step, as the step was built on them. */
  readonly shared: readonly Tensor[];

  constructor(step: StepGraph, shared: readonly Tensor[]) {
    this.states = step.states;
    this.places = step.places;
    this.next = step.next;
    this.stacked = [...step.stacked, ...step.states];
    this.inAxes = step.inAxes;
    this.outAxes = [...step.outAxes, ...step.states.map(() => 0)];
    this.reverse = step.reverse;
    this.shared = shared;
  }

  /** The shape of result number `output`, for a node with these inputs. */
  shape(inputs: readonly Tensor[], output: number): ShapeResult {
    const count = this.states.length;
    if (output < count) return inputs[output];
    const tensor = this.stacked[output - count];
    const meanings = new Map<string, Dim>();
    const steps = inputs.map(({ shape }, i) => {
      const place = i - count;
      return place >= 0 && place < this.places.length ? shape.toSpliced(this.inAxes[place], 1) : shape;
    });
    for (const [i, { shape }] of [...this.states, ...this.places, ...this.shared].entries()) {
      match(shape, steps[i], meanings);
    }
    const shape = tensor.shape.map((dim) => replaceSymbols(dim, meanings));
    const length = inputs[count].shape[this.inAxes[0]];
    return { shape: shape.toSpliced(this.outAxes[output - count], 0, length), dtype: tensor.dtype };
  }
}

function match(formal: readonly Dim[], actual: readonly Dim[], meanings: Map<string, Dim>): void {
  formal.forEach((dim, axis) => {
    if (typeof dim === "string" && !meanings.has(dim)) meanings.set(dim, actual[axis]);
  });
}

/** What a recurrence runs on. `outer`: what stands for tensors that the step was built on, where it was moved. */
interface ScanGiven {
  starts: readonly Tensor[];
  sequences: readonly Tensor[];
  outer: ReadonlyMap<Tensor, Tensor>;
}

/** The results of a recurrence by their number. */
function recurrence({ starts, sequences, outer }: ScanGiven, step: StepGraph): (output: number) => Tensor {
  const shared = independent([...step.next, ...step.stacked], new Set([...step.states, ...step.places]));
  const body = new ScanBody(step, shared);
  const moved = substitute(Object.fromEntries(shared.map((tensor, i) => [i, tensor])), { tensors: outer });
  const inputs = [...starts, ...sequences, ...shared.map((_, i) => moved[i])];
  return (output) => new Tensor("scan", inputs, { body, output });
}

/** The tensors that a step takes from outside: those that depend on no placeholder, where they meet such that do. */
function independent(results: readonly Tensor[], placeholders: ReadonlySet<Tensor>): Tensor[] {
  const depends = new Map<Tensor, boolean>();
  for (const placeholder of placeholders) depends.set(placeholder, true);
  const open: { tensor: Tensor; next: number }[] = [];
  const enter = (tensor: Tensor): void => {
    if (depends.has(tensor)) return;
    depends.set(tensor, false);
    open.push({ tensor, next: 0 });
  };
  const within: Tensor[] = [];
  for (const result of results) {
    enter(result);
    while (open.length > 0) {
      const top = open[open.length - 1];
      if (top.next < top.tensor.inputs.length) {
        enter(top.tensor.inputs[top.next++]);
        continue;
      }
      open.pop();
      if (!top.tensor.inputs.some((from) => depends.get(from))) continue;
      depends.set(top.tensor, true);
      within.push(top.tensor);
    }
  }
  const met = [...results, ...within.flatMap(({ inputs }) => inputs)];
  return [...new Set(met)].filter((tensor) => !depends.get(tensor) && tensor.op !== "constant");
}

type Parts = ReadonlyMap<number, Tensor>;

/** The gradients of a recurrence's inputs, by their number, for each gradient of one of its results. */
const known = new WeakMap<Tensor, Map<Tensor, Parts>>();

/** The gradient of a recurrence by input number `index`. All of them come from one recurrence that walks back. */
export function scanGradient(
  g: Tensor,
  node: Tensor,
  index: number,
  needed: (index: number) => boolean,
): Tensor | null {
  const byNode = known.get(g) ?? new Map<Tensor, Parts>();
  known.set(g, byNode);
  const parts = byNode.get(node) ?? walkRecurrenceBack(g, node, needed);
  byNode.set(node, parts);
  return parts.get(index) ?? null;
}

function walkRecurrenceBack(g: Tensor, node: Tensor, needed: (index: number) => boolean): Parts {
  const body = node.attrs.body as ScanBody;
  const output = node.attrs.output as number;
  const { states, places, shared, next, stacked } = body;
  const count = states.length;
  const first = count + places.length; // the number of the first shared input
  const floats = [...states.keys()].filter((i) => isFloat(states[i].dtype));
  const weights = [...shared.keys()].filter((i) => isFloat(shared[i].dtype) && needed(first + i));
  const wanted = [...places.keys()].filter((i) => isFloat(places[i].dtype) && needed(count + i));

  // One step back, from the gradients of a step's results to those of what it was given.
  const after = floats.map((i) => input(`d state ${i}`, states[i].shape, states[i].dtype));
  const sums = weights.map((i) => input(`d shared ${i}`, shared[i].shape, shared[i].dtype));
  const ends = floats.map((i, at): [Tensor, Tensor] => [next[i], after[at]]);
  const here = output < count ? undefined : stacked[output - count];
  const dHere = here && input("d output", here.shape, here.dtype);
  if (here && dHere) ends.push([here, dHere]);
  const leaves = [...floats.map((i) => states[i]), ...wanted.map((i) => places[i]), ...weights.map((i) => shared[i])];
  const found = walkBack(ends, leaves, true);
  const gradientOf = (tensor: Tensor): Tensor => found.get(tensor)?.expand(tensor) ?? zerosLike(tensor);

  const all = (i: number): Tensor => new Tensor("scan", node.inputs, { body, output: stacked.length + i });
  const outAxis = output < count ? 0 : body.outAxes[output - count];
  const made = recurrence(
    {
      starts: [
        ...floats.map((i) => (i === output ? g : zerosLike(node.inputs[i]))),
        ...weights.map((i) => zerosLike(node.inputs[first + i])),
      ],
      sequences: [...states.map((_, i) => all(i)), ...node.inputs.slice(count, first), ...(dHere ? [g] : [])],
      outer: new Map(shared.map((tensor, i) => [tensor, node.inputs[first + i]])),
    },
    {
      states: [...after, ...sums],
      places: [...states, ...places, ...(dHere ? [dHere] : [])],
      next: [
        ...floats.map((i) => gradientOf(states[i])),
        ...weights.map((i, at) => sums[at].add(gradientOf(shared[i]))),
      ],
      stacked: wanted.map((i) => gradientOf(places[i])),
      inAxes: [...states.map(() => 0), ...body.inAxes, ...(dHere ? [outAxis] : [])],
      outAxes: wanted.map((i) => body.inAxes[i]),
      reverse: !body.reverse,
    },
  );
  const carried = floats.length + weights.length;
  return new Map([
    ...floats.map((i, at) => [i, made(at)] as const),
    ...weights.map((i, at) => [first + i, made(floats.length + at)] as const),
    ...wanted.map((i, at) => [count + i, made(carried + at)] as const),
  ]);
}
