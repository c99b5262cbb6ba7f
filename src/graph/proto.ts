import onnxProto from "onnx-proto";
import { type DType, dtypes, type TensorData } from "./dtype.js";

const { onnx } = onnxProto;

export type NodeProto = onnxProto.onnx.INodeProto;
export type TensorProto = onnxProto.onnx.ITensorProto;
export type GraphProto = onnxProto.onnx.IGraphProto;
export type ValueProto = onnxProto.onnx.IValueInfoProto;
type AttributeProto = onnxProto.onnx.IAttributeProto;

/** ONNX operator set that graphs are written in. */
export const OPSET = 21;
const IR_VERSION = 10;

/** A number that ONNX must read as a float attribute; a bare number is an integer attribute. */
export class Float {
  readonly value: number;
  constructor(value: number) {
    this.value = value;
  }
}

/** Marks a number as a float attribute. */
export function float(value: number): Float {
  return new Float(value);
}

/** What a node's attribute may be given as. */
export type NodeAttribute = number | Float | string | readonly number[] | TensorProto | GraphProto;

/** A node's attribute: integers, floats, strings, lists of integers, tensors. */
export function attributeProto(name: string, value: NodeAttribute): AttributeProto {
  const types = onnx.AttributeProto.AttributeType;
  if (typeof value === "number") return { name, type: types.INT, i: value };
  if (typeof value === "string") return { name, type: types.STRING, s: new TextEncoder().encode(value) };
  if (value instanceof Float) return { name, type: types.FLOAT, f: value.value };
  if (isList(value)) return { name, type: types.INTS, ints: [...value] };
  if (isGraph(value)) return { name, type: types.GRAPH, g: value };
  return { name, type: types.TENSOR, t: value };
}

function isList(value: readonly number[] | TensorProto | GraphProto): value is readonly number[] {
  return Array.isArray(value);
}

/** Whether an attribute is a graph that the node runs. */
export function isGraph(value: NodeAttribute): value is GraphProto {
  return typeof value === "object" && "node" in value;
}

/** A graph that a node runs. Its values have types; their shapes are inferred from where it stands. */
export function subgraphProto(
  node: NodeProto[],
  inputs: readonly (readonly [string, DType])[],
  outputs: readonly (readonly [string, DType])[],
): GraphProto {
  const typed = ([name, dtype]: readonly [string, DType]): ValueProto => ({
    name,
    type: { tensorType: { elemType: dtypes[dtype].onnx } },
  });
  return { name: "step", node, input: inputs.map(typed), output: outputs.map(typed) };
}

/** A tensor whose bytes are those of the array: nothing is copied until the model is written. */
export function tensorProto(name: string, dtype: DType, shape: readonly number[], data: TensorData): TensorProto {
  const rawData = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return { name, dataType: dtypes[dtype].onnx, dims: [...shape], rawData };
}

/** A graph's input or output. */
export function valueProto(name: string, dtype: DType, shape: readonly (number | string)[]): ValueProto {
  const dim = shape.map((d) => (typeof d === "number" ? { dimValue: d } : { dimParam: d }));
  return { name, type: { tensorType: { elemType: dtypes[dtype].onnx, shape: { dim } } } };
}

/** The parts of a graph. */
export interface GraphParts {
  nodes: NodeProto[];
  initializers: TensorProto[];
  inputs: ValueProto[];
  outputs: ValueProto[];
  extension: boolean;
}

/** The bytes of a model file. */
export function encodeModel(parts: GraphParts): Uint8Array {
  const opsetImport = [{ domain: "", version: OPSET }];
  if (parts.extension) opsetImport.push({ domain: "com.microsoft", version: 1 });
  return onnx.ModelProto.encode({
    irVersion: IR_VERSION,
    producerName: "fovea",
    opsetImport,
    graph: {
      name: "fovea",
      node: parts.nodes,
      initializer: parts.initializers,
      input: parts.inputs,
      output: parts.outputs,
    },
  }).finish();
}
