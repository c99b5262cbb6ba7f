import type { Dim } from "../dims.js";
import { dimsAgree, isUnknown } from "../dims.js";
import type { DType } from "../dtype.js";
import { type AttributeValue, type OpRow, rows } from "../op.js";
import { float } from "../proto.js";
import { broadcast, needDType, ShapeError, sameDType } from "../shape.js";

const FLOATS: readonly DType[] = ["float32", "float16"];
const NUMBERS: readonly DType[] = ["float32", "float16", "int64", "int32"];
const ALL: readonly DType[] = ["float32", "float16", "int64", "int32", "uint8", "int8", "bool"];

/** x -> f(x), same shape and type. */
function unary(op: string, onnxType: string, allowed: readonly DType[] = FLOATS): OpRow {
  return {
    shape: (inputs) => {
      needDType(op, inputs, allowed);
      return inputs[0];
    },
    onnx: (node, emitter) => emitter.node(onnxType, [emitter.value(node.inputs[0])]),
  };
}

/** (a, b) -> f(a, b) with broadcasting. */
function binary(op: string, onnxType: string, allowed: readonly DType[] = NUMBERS, result?: DType): OpRow {
  return {
    shape: (inputs) => {
      const dtype = sameDType(op, inputs);
      needDType(op, inputs, allowed);
      return { shape: broadcast(op, inputs), dtype: result ?? dtype };
    },
    onnx: (node, emitter) => {
      const [a, b] = node.inputs;
      return emitter.node(onnxType, [emitter.value(a), emitter.value(b)]);
    },
  };
}

/** Operations on single elements: they broadcast as in NumPy. */
export const elementwiseOps = rows({
  add: binary("add", "Add"),
  sub: binary("sub", "Sub"),
  mul: binary("mul", "Mul"),
  div: binary("div", "Div"),
  mod: {
    ...binary("mod", "Mod"),
    onnx: (node, emitter) => {
      const [a, b] = node.inputs;
      return emitter.node("Mod", [emitter.value(a), emitter.value(b)], { fmod: FLOATS.includes(a.dtype) ? 1 : 0 });
    },
  },
  pow: binary("pow", "Pow"),
  minimum: binary("minimum", "Min"),
  maximum: binary("maximum", "Max"),
  equal: binary("equal", "Equal", ALL, "bool"),
  less: binary("less", "Less", NUMBERS, "bool"),
  greater: binary("greater", "Greater", NUMBERS, "bool"),
  lessEqual: binary("lessEqual", "LessOrEqual", NUMBERS, "bool"),
  greaterEqual: binary("greaterEqual", "GreaterOrEqual", NUMBERS, "bool"),
  and: binary("and", "And", ["bool"]),
  or: binary("or", "Or", ["bool"]),
  xor: binary("xor", "Xor", ["bool"]),
  not: unary("not", "Not", ["bool"]),
  where: {
    shape: (inputs) => {
      needDType("where", [inputs[0]], ["bool"]);
      const dtype = sameDType("where", [inputs[1], inputs[2]]);
      return { shape: broadcast("where", inputs), dtype };
    },
    onnx: (node, emitter) =>
      emitter.node(
        "Where",
        node.inputs.map((tensor) => emitter.value(tensor)),
      ),
  },

  neg: unary("neg", "Neg", NUMBERS),
  abs: unary("abs", "Abs", NUMBERS),
  sign: unary("sign", "Sign", NUMBERS),
  exp: unary("exp", "Exp"),
  log: unary("log", "Log"),
  sqrt: unary("sqrt", "Sqrt"),
  reciprocal: unary("reciprocal", "Reciprocal"),
  sin: unary("sin", "Sin"),
  cos: unary("cos", "Cos"),
  tanh: unary("tanh", "Tanh"),
  sigmoid: unary("sigmoid", "Sigmoid"),
  relu: unary("relu", "Relu"),
  erf: unary("erf", "Erf"),
  softplus: unary("softplus", "Softplus"),
  floor: unary("floor", "Floor"),
  ceil: unary("ceil", "Ceil"),
  round: unary("round", "Round"),
  rsqrt: { ...unary("rsqrt", "Rsqrt"), onnx: undefined, plain: (node) => node.inputs[0].sqrt().reciprocal() },
  square: { ...unary("square", "Mul", NUMBERS), onnx: undefined, plain: ({ inputs: [x] }) => x.mul(x) },
  elu: {
    ...unary("elu", "Elu"),
    onnx: (node, emitter) =>
      emitter.node("Elu", [emitter.value(node.inputs[0])], { alpha: float(node.attrs.alpha as number) }),
  },
  silu: {
    ...unary("silu", "QuickGelu"),
    extension: true,
    onnx: (node, emitter) =>
      emitter.node("QuickGelu", [emitter.value(node.inputs[0])], { alpha: float(1) }, { domain: "com.microsoft" }),
    plain: ({ inputs: [x] }) => x.mul(x.sigmoid()),
  },
  gelu: {
    ...unary("gelu", "Gelu"),
    extension: true,
    onnx: (node, emitter) => {
      const opType = node.attrs.approximate === "tanh" ? "FastGelu" : "Gelu";
      return emitter.node(opType, [emitter.value(node.inputs[0])], {}, { domain: "com.microsoft" });
    },
    plain: ({ inputs: [x], attrs }) => {
      if (attrs.approximate !== "tanh") return x.mul(0.5).mul(x.mul(Math.SQRT1_2).erf().add(1));
      const inner = x.add(x.mul(x).mul(x).mul(0.044715)).mul(Math.sqrt(2 / Math.PI));
      return x.mul(0.5).mul(inner.tanh().add(1));
    },
  },
  isNaN: {
    shape: (inputs) => {
      needDType("isNaN", inputs, FLOATS);
      return { shape: inputs[0].shape, dtype: "bool" };
    },
    onnx: (node, emitter) => emitter.node("IsNaN", [emitter.value(node.inputs[0])]),
  },
  cast: {
    shape: (inputs, attributes) => ({ shape: inputs[0].shape, dtype: attributes.dtype as DType }),
    onnx: (node, emitter) => emitter.cast(emitter.value(node.inputs[0]), node.dtype),
  },
  identity: {
    shape: (inputs, attributes) => ({ shape: renamed(inputs[0].shape, attributes.shape), dtype: inputs[0].dtype }),
    // No node: the value is the input's own.
    onnx: (node, emitter) => emitter.value(node.inputs[0]),
  },
  stopGradient: {
    shape: (inputs) => inputs[0],
    onnx: (node, emitter) => emitter.value(node.inputs[0]),
  },
  // (x, other) -> x, which can be computed only after the other. No optimiser may find that out.
  after: {
    shape: (inputs) => inputs[0],
    onnx: ({ inputs: [x, other] }, emitter) => {
      const all = [...other.shape.keys()];
      let one = emitter.value(other);
      if (all.length > 0) {
        const [starts, ends] = [emitter.ints(all.map(() => 0)), emitter.ints(all.map(() => 1))];
        one = emitter.node("Reshape", [
          emitter.node("Slice", [one, starts, ends, emitter.ints(all)]),
          emitter.ints([]),
        ]);
      }
      const value = emitter.value(x);
      return emitter.node("Where", [emitter.node("IsNaN", [one]), value, value]);
    },
  },
});

/** A shape with names that the caller knows better. A number may not be replaced by another one. */
function renamed(shape: readonly Dim[], wanted: AttributeValue): readonly Dim[] {
  if (wanted === undefined) return shape;
  const names = wanted as readonly Dim[];
  const fits =
    names.length === shape.length && shape.every((dim, i) => typeof dim === "string" || dimsAgree(dim, names[i]));
  if (!fits) throw new ShapeError("withShape", `[${names.join(", ")}] contradicts [${shape.join(", ")}]`, []);
  return names.map((dim, i) => (isUnknown(dim) ? shape[i] : dim));
}
