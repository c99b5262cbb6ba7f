import { FoveaError } from "../error.js";
import { type Dim, dimTerms, formatShape } from "./dims.js";
import { type DType, dtypes, isFloat, type TensorData, toTypedArray } from "./dtype.js";
import { ops } from "./ops.js";
import {
  attributeProto,
  encodeModel,
  type GraphProto,
  isGraph,
  type NodeAttribute,
  type NodeProto,
  subgraphProto,
  type TensorProto,
  tensorProto,
  type ValueProto,
  valueProto,
} from "./proto.js";
import type { RealProvider } from "./runtime.js";
import type { ScanBody } from "./scan.js";
import { describe, ShapeError } from "./shape.js";
import type { Tensor } from "./tensor.js";
import { missingWeight, toFloats, type WeightSource, type WeightValue } from "./weights.js";

/**
 * How the weights of `linear` are held: "stored" leaves quantised values as the source has them and keeps floats as
 * float32; "float32" widens everything; "int8" and "int4" quantise floats in blocks of 32 (an int4 value stays int4).
 */
export type Precision = "stored" | "float32" | "int8" | "int4";

/** A part of a graph of tensors: from `inputs` (inner tensors become inputs) to `outputs`. */
export interface GraphCut {
  inputs?: Readonly<Record<string, Tensor | undefined>>;
  /** At least one; undefined ones are left out. */
  outputs: Readonly<Record<string, Tensor | undefined>>;
}

/** What emission needs to know. */
export interface EmitOptions {
  weights?: WeightSource;
  /** One precision for all, or one for each weight by the parameter's name. */
  precision?: Precision | ((parameter: string) => Precision);
  /** Emit only operations of the ONNX standard where there is a choice (quantised weights have none). */
  standard?: boolean;
}

/** An input or output of an emitted model. */
export interface Port {
  name: string;
  shape: readonly Dim[];
  dtype: DType;
}

/** A model file and what goes in and out of it. */
export interface EmittedModel {
  bytes: Uint8Array;
  inputs: Port[];
  outputs: Port[];
}

/** Options of `Emitter.node`. */
export interface NodeOptions {
  domain?: "com.microsoft";
  /** How many results the node has; `node` returns the name of the first, `nodes` all names. Default 1. */
  outputs?: number;
}

const MAX_MODEL_BYTES = 2 ** 31 - 2 ** 20;

/**
 * Writes one ONNX graph. Rows of the operation table use it to add nodes and constants; equal nodes on equal inputs are
 * written once.
 */
export class Emitter {
  readonly standard: boolean;
  /** Where the graph is to run. */
  readonly provider: RealProvider;
  private readonly options: EmitOptions;
  private readonly initializers: TensorProto[] = [];
  // These four change for the time of a subgraph.
  private protoNodes: NodeProto[] = [];
  private values = new Map<Tensor, string>();
  private known = new Map<string, string[]>();
  /** Where a symbolic dimension can be read: a value and its axis. */
  private dims = new Map<string, { value: string; axis: number }>();
  /** Names that values may not be given: the graph's inputs and outputs, and constants. */
  private readonly taken = new Set<string>();
  private readonly remembered = new Map<string, unknown>();
  private readonly weights = new Map<string, WeightValue>();
  private readonly fed = new Set<Tensor>();
  /** The results that something reads of the recurrences in the graph. */
  private readonly read = new Map<ScanBody, Set<number>>();
  private counter = 0;
  private weightBytes = 0;
  private extension = false;
  private hint: string | undefined;

  constructor(options: EmitOptions, provider: RealProvider = "cpu") {
    this.options = options;
    this.provider = provider;
    this.standard = options.standard ?? false;
  }

  /** The name of the value that holds a tensor, which is an input of the node being emitted (or made of such). */
  value(tensor: Tensor): string {
    const name = this.values.get(tensor);
    if (name !== undefined) return name;
    if (tensor.op === "constant") {
      return this.bind(tensor, this.constant(tensor.attrs.data as TensorData, tensor.shape as number[], tensor.dtype));
    }
    if (tensor.op === "parameter") return this.bind(tensor, this.parameterValue(tensor));
    throw new FoveaError("internal", `${describe(tensor)} was used before it was emitted`);
  }

  /** Registers the value that holds a tensor. */
  bind(tensor: Tensor, value: string): string {
    this.values.set(tensor, value);
    for (let axis = 0; axis < tensor.shape.length; axis++) {
      const dim = tensor.shape[axis];
      if (typeof dim === "string" && !this.dims.has(dim)) this.dims.set(dim, { value, axis });
    }
    return value;
  }

  /** Adds a node and returns the name of its (first) result. Empty input names stand for inputs left out. */
  node(
    opType: string,
    inputs: readonly string[],
    attributes: Readonly<Record<string, NodeAttribute | undefined>> = {},
    options: NodeOptions = {},
  ): string {
    return this.nodes(opType, inputs, attributes, options)[0];
  }

  /** Adds a node and returns the names of all its results. */
  nodes(
    opType: string,
    inputs: readonly string[],
    attributes: Readonly<Record<string, NodeAttribute | undefined>> = {},
    options: NodeOptions = {},
  ): string[] {
    const given = Object.entries(attributes).filter(
      (entry): entry is [string, NodeAttribute] => entry[1] !== undefined,
    );
    // Graphs are told apart by their callers.
    const comparable = !given.some(([, value]) => isGraph(value));
    const key = `${opType} ${inputs.join(" ")} ${comparable ? given.map(([name, value]) => `${name}=${JSON.stringify(value)}`).join(" ") : ""}`;
    const known = comparable ? this.known.get(key) : undefined;
    if (known) return known;
    const base = this.fresh(this.hint ?? opType);
    const count = options.outputs ?? 1;
    const outputs = Array.from({ length: count }, (_, i) => (i === 0 ? base : `${base}:${i}`));
    if (options.domain) this.extension = true;
    this.protoNodes.push({
      name: base,
      opType,
      domain: options.domain ?? "",
      input: [...inputs],
      output: outputs,
      attribute: given.map(([name, value]) => attributeProto(name, value)),
    });
    if (comparable) this.known.set(key, outputs);
    return outputs;
  }

  /** A constant value. Small equal ones are written once. */
  constant(data: TensorData, shape: readonly number[], dtype: DType): string {
    const key = data.length <= 16 ? `constant ${dtype} ${shape.join("x")} ${data.join(" ")}` : undefined;
    const known = key === undefined ? undefined : this.known.get(key);
    if (known) return known[0];
    const name = this.initializer(this.fresh("constant"), dtype, shape, data);
    if (key !== undefined) this.known.set(key, [name]);
    return name;
  }

  /** Integers as an int64 vector: axes, shapes, sizes. */
  ints(values: readonly number[]): string {
    return this.constant(toTypedArray(values, "int64"), [values.length], "int64");
  }

  /** One number of a type. */
  scalar(value: number, dtype: DType): string {
    return this.constant(toTypedArray([value], dtype), [], dtype);
  }

  /** The size of a tensor's axis at run time, as an int64 vector of one. */
  dimOf(tensor: Tensor, axis: number): string {
    const dim = tensor.shape[axis];
    if (typeof dim === "number") return this.ints([dim]);
    return this.node("Shape", [this.value(tensor)], { start: axis, end: axis + 1 });
  }

  /** A dimension at run time, as an int64 vector of one: read off a value that has it, or computed from such. */
  dim(dim: Dim, node: Tensor): string {
    if (typeof dim === "number") return this.ints([dim]);
    const found = this.readDim(dim);
    if (found !== undefined) return found;
    let sum: string | undefined;
    for (const { coefficient, symbols } of dimTerms(dim)) {
      let product = this.ints([coefficient]);
      for (const symbol of symbols) {
        const factor = this.readDim(symbol);
        if (factor === undefined) {
          throw new ShapeError(node.op, `nothing that is computed before says how large ${symbol} is`, [node], {
            hint: `let an input of the graph have a dimension "${symbol}"`,
          });
        }
        product = this.node("Mul", [product, factor]);
      }
      sum = sum === undefined ? product : this.node("Add", [sum, product]);
    }
    return sum ?? this.ints([0]);
  }

  private readDim(dim: string): string | undefined {
    const place = this.dims.get(dim);
    return place && this.node("Shape", [place.value], { start: place.axis, end: place.axis + 1 });
  }

  /** A shape at run time, as an int64 vector. */
  shape(shape: readonly Dim[], node: Tensor): string {
    if (shape.every((dim) => typeof dim === "number")) return this.ints(shape);
    return this.node(
      "Concat",
      shape.map((dim) => this.dim(dim, node)),
      { axis: 0 },
    );
  }

  /** A value in another type. */
  cast(value: string, dtype: DType): string {
    return this.node("Cast", [value], { to: dtypes[dtype].onnx });
  }

  /** An int64 vector of one as a scalar. */
  asScalar(value: string): string {
    return this.node("Squeeze", [value, this.ints([0])]);
  }

  /** The value of a parameter, checked against its shape; undefined where the tensor is no parameter, or is fed. */
  weight(tensor: Tensor): WeightValue | undefined {
    if (tensor.op !== "parameter" || this.fed.has(tensor)) return undefined;
    const name = tensor.attrs.name as string;
    const value = this.weights.get(name) ?? this.options.weights?.get(name);
    if (!value) throw missingWeight(name);
    if (value.shape.length !== tensor.rank || value.shape.some((size, i) => size !== tensor.shape[i])) {
      throw new ShapeError("parameter", `the weight source has ${formatShape(value.shape)}`, [tensor]);
    }
    this.weights.set(name, value);
    return value;
  }

  /** The precision asked for a parameter. */
  precision(tensor: Tensor): Precision {
    const { precision = "stored" } = this.options;
    return typeof precision === "string" ? precision : precision(tensor.attrs.name as string);
  }

  /** The result of `make` the first time; the same result every other time. */
  remember<Value>(key: string, make: () => Value): Value {
    if (!this.remembered.has(key)) this.remembered.set(key, make());
    return this.remembered.get(key) as Value;
  }

  private parameterValue(tensor: Tensor): string {
    const value = this.weight(tensor);
    if (!value) throw new FoveaError("internal", `${describe(tensor)} is no parameter`);
    const name = tensor.attrs.name as string;
    if (!isFloat(tensor.dtype)) {
      throw new ShapeError("parameter", "a parameter must be float32 or float16", [tensor]);
    }
    return this.remember(`parameter ${tensor.dtype} ${name}`, () => {
      const shape = tensor.shape as number[];
      if (tensor.dtype === "float32") return this.initializer(name, "float32", shape, toFloats(value));
      const stored = value.kind === "float" && value.data instanceof Uint16Array ? value.data : undefined;
      return this.initializer(name, "float16", shape, stored ?? toTypedArray(toFloats(value), "float16"));
    });
  }

  /** Adds a constant, under this name if it is free, and returns its name. The array is not copied. */
  initializer(wanted: string, dtype: DType, shape: readonly number[], data: TensorData): string {
    const name = this.taken.has(wanted) ? this.fresh(wanted) : wanted;
    this.taken.add(name);
    const count = shape.reduce((product, size) => product * size, 1);
    if (count !== data.length) {
      throw new FoveaError("bad-shape", `"${name}": ${data.length} numbers do not fill ${formatShape(shape)}`);
    }
    this.weightBytes += data.byteLength;
    if (this.weightBytes > MAX_MODEL_BYTES) {
      throw new FoveaError("too-large", `"${name}" takes this graph past 2 GiB, the limit of one ONNX file`, {
        hint: "compile the model in several segments, or quantise it: precision int8 or int4",
      });
    }
    this.initializers.push(tensorProto(name, dtype, shape, data));
    return name;
  }

  private fresh(base: string): string {
    let name: string;
    do {
      this.counter++;
      name = `${base}_${this.counter}`;
    } while (this.taken.has(name));
    return name;
  }

  /** Emits everything between the cut and the outputs, and writes the file. */
  async build(cut: GraphCut): Promise<EmittedModel> {
    const { order, inputs } = schedule(cut, this);
    await this.options.weights?.prefetch?.(parameterNames(order));
    return this.write(cut, order, inputs);
  }

  /** As `build`, for weight sources that need no prefetch. */
  buildNow(cut: GraphCut): EmittedModel {
    const { order, inputs } = schedule(cut, this);
    return this.write(cut, order, inputs);
  }

  private write(cut: GraphCut, order: readonly Step[], inputs: readonly [string, Tensor][]): EmittedModel {
    const ports: Port[] = [];
    for (const [name] of [...inputs, ...given(cut.outputs)]) this.taken.add(name);
    for (const [name, tensor] of inputs) {
      ports.push({ name, shape: tensor.shape, dtype: tensor.dtype });
      this.enter(tensor, name);
    }
    this.emit(order);
    const outputs = this.nameOutputs(cut, ports);
    const protos = (list: readonly Port[]): ValueProto[] =>
      list.map(({ name, dtype, shape }) => valueProto(name, dtype, shape));
    const bytes = encodeModel({
      nodes: this.protoNodes,
      initializers: this.initializers,
      inputs: protos(ports),
      outputs: protos(outputs),
      extension: this.extension,
    });
    return { bytes, inputs: ports, outputs };
  }

  private emit(order: readonly Step[]): void {
    for (const { tensor } of order) {
      if (tensor.op !== "scan") continue;
      const body = tensor.attrs.body as ScanBody;
      this.read.set(body, (this.read.get(body) ?? new Set()).add(tensor.attrs.output as number));
    }
    for (const { tensor, plain } of order) {
      if (plain) {
        this.bind(tensor, this.value(plain));
        continue;
      }
      const row = ops[tensor.op];
      if (!row.onnx) continue; // inputs, parameters and constants are written where they are used
      this.hint = tensor.name;
      this.bind(tensor, row.onnx(tensor, this));
      this.hint = undefined;
    }
  }

  /** The numbers of a recurrence's results that something in the graph reads. */
  resultsRead(body: ScanBody): ReadonlySet<number> {
    return this.read.get(body) ?? new Set();
  }

  /**
   * A graph that a node of this one runs again and again, over inputs of its own. `outer` are the values of this graph
   * that stand for tensors in it.
   */
  subgraph(
    inputs: readonly Tensor[],
    outer: readonly (readonly [Tensor, string])[],
    outputs: readonly Tensor[],
  ): GraphProto {
    const { protoNodes, values, known, dims, hint } = this;
    this.protoNodes = [];
    [this.values, this.known, this.dims] = [new Map(values), new Map(known), new Map(dims)];
    for (const [tensor, value] of outer) this.enter(tensor, value);
    const names = inputs.map((tensor) => this.enter(tensor, this.fresh("step")));
    const stops = [...inputs, ...outer.map(([tensor]) => tensor)];
    const cut = { inputs: byPlace(stops), outputs: byPlace(outputs) };
    this.emit(schedule(cut, this).order);
    const made = new Set(this.protoNodes.flatMap(({ output }) => output ?? []));
    const results = outputs.map((tensor) => {
      const value = this.value(tensor);
      // Every result is to be a value of its own, made in this graph.
      return made.delete(value) ? value : this.copy(value);
    });
    const graph = subgraphProto(
      this.protoNodes,
      names.map((name, i) => [name, inputs[i].dtype]),
      results.map((name, i) => [name, outputs[i].dtype]),
    );
    Object.assign(this, { protoNodes, values, known, dims, hint });
    return graph;
  }

  /** Enters a tensor whose value is given, as an input or from around a subgraph. */
  private enter(tensor: Tensor, value: string): string {
    this.fed.add(tensor);
    return this.bind(tensor, value);
  }

  /** Renames the values that are outputs; an output that is an input, a weight or a second name gets a copy. */
  private nameOutputs(cut: GraphCut, inputs: readonly Port[]): Port[] {
    const inputNames = new Set(inputs.map(({ name }) => name));
    const constants = (): Set<string> => new Set(this.initializers.map(({ name }) => name ?? ""));
    const renamed = new Map<string, string>();
    const ports: Port[] = [];
    for (const [name, tensor] of given(cut.outputs)) {
      if (inputNames.has(name)) {
        throw new FoveaError("bad-input", `"${name}" is the name of both an input and an output of the graph`, {
          hint: "give one of them another name",
        });
      }
      let value = this.value(tensor);
      if (inputNames.has(value) || constants().has(value) || renamed.has(value)) value = this.copy(value);
      renamed.set(value, name);
      ports.push({ name, shape: tensor.shape, dtype: tensor.dtype });
    }
    renameValues(this.protoNodes, renamed);
    return ports;
  }

  private copy(value: string): string {
    const name = this.fresh("copy");
    this.protoNodes.push({ name, opType: "Identity", domain: "", input: [value], output: [name], attribute: [] });
    return name;
  }
}

/** Renames values in nodes, and in the graphs that these run. */
function renameValues(nodes: readonly NodeProto[], names: ReadonlyMap<string, string>): void {
  for (const node of nodes) {
    node.input = node.input?.map((value) => names.get(value) ?? value);
    node.output = node.output?.map((value) => names.get(value) ?? value);
    for (const { g } of node.attribute ?? []) if (g) renameValues(g.node ?? [], names);
  }
}

function byPlace(tensors: readonly Tensor[]): Record<string, Tensor> {
  return Object.fromEntries(tensors.map((tensor, i) => [`${i}`, tensor]));
}

/** One step of emission: a tensor, or a tensor whose value is that of its plain definition. */
interface Step {
  tensor: Tensor;
  plain?: Tensor;
}

/** The tensors between the cut and the outputs, each after its inputs, and the graph's inputs. Never recursive. */
function schedule(cut: GraphCut, emitter: Emitter): { order: Step[]; inputs: [string, Tensor][] } {
  const inputs = given(cut.inputs ?? {});
  const stops = new Set(inputs.map(([, tensor]) => tensor));
  const names = new Map(inputs);
  const order: Step[] = [];
  const seen = new Set<Tensor>(stops);
  const open: { step: Step; waits: readonly Tensor[]; next: number }[] = [];
  const enter = (tensor: Tensor): void => {
    if (seen.has(tensor)) return;
    seen.add(tensor);
    if (tensor.op === "input") {
      const name = tensor.attrs.name as string;
      if (names.has(name)) {
        throw new FoveaError("bad-input", `two different inputs of the graph are called "${name}"`, {
          hint: "make the input() once and use it everywhere, or list both under `inputs` with different names",
        });
      }
      names.set(name, tensor);
      inputs.push([name, tensor]);
      return;
    }
    const plain = plainForm(tensor, emitter);
    open.push({ step: { tensor, plain }, waits: plain ? [plain] : tensor.inputs, next: 0 });
  };
  const outputs = given(cut.outputs);
  if (outputs.length === 0) throw new FoveaError("bad-input", "a graph needs at least one output");
  for (const [, output] of outputs) {
    enter(output);
    while (open.length > 0) {
      const top = open[open.length - 1];
      if (top.next < top.waits.length) {
        enter(top.waits[top.next++]);
      } else {
        order.push(top.step);
        open.pop();
      }
    }
  }
  return { order, inputs };
}

function given(tensors: Readonly<Record<string, Tensor | undefined>>): [string, Tensor][] {
  return Object.entries(tensors).filter((entry): entry is [string, Tensor] => entry[1] !== undefined);
}

function plainForm(tensor: Tensor, emitter: Emitter): Tensor | undefined {
  const row = ops[tensor.op];
  const usePlain =
    row.plain && (!row.onnx || (emitter.standard && row.extension) || row.avoid?.(tensor, emitter.provider));
  return usePlain ? row.plain?.(tensor) : undefined;
}

function parameterNames(order: readonly Step[]): string[] {
  const names = new Set<string>();
  for (const { tensor } of order) if (tensor.op === "parameter") names.add(tensor.attrs.name as string);
  return [...names];
}
