import { dimsAgree, isUnknown } from "../dims.js";
import type { Emitter } from "../emit.js";
import { type OpRow, rows } from "../op.js";
import { float } from "../proto.js";
import { needDType, ShapeError, sameDType } from "../shape.js";
import { concat, type Tensor } from "../tensor.js";

/** Norms over the last axis: x, weight [d] and perhaps bias [d]. */
function norm(op: string): OpRow["shape"] {
  return (inputs) => {
    const [x, ...gains] = inputs;
    sameDType(op, inputs);
    needDType(op, inputs, ["float32", "float16"]);
    const width = x.shape[x.rank - 1];
    if (x.rank < 1 || gains.some((gain) => gain.rank !== 1 || !dimsAgree(gain.shape[0], width))) {
      throw new ShapeError(op, `weight and bias must be [${width}], the last dimension of x`, inputs);
    }
    return x;
  };
}

/** Blocks of models over the last axis. */
export const normOps = rows({
  rmsNorm: {
    shape: norm("rmsNorm"),
    extension: true,
    onnx: ({ inputs: [x, weight], attrs }, emitter) => {
      const gain = emitter.value(weight);
      const offset = attrs.offset as number;
      const scale = offset === 0 ? gain : emitter.node("Add", [gain, emitter.scalar(offset, weight.dtype)]);
      const attributes = { axis: -1, epsilon: float(attrs.eps as number), stash_type: 1 };
      // ONNX Runtime's own operation, although it lies in the standard's domain.
      return emitter.node("SimplifiedLayerNormalization", [emitter.value(x), scale], attributes);
    },
    plain: ({ inputs: [x, weight], attrs }) => {
      const scale = x
        .mul(x)
        .mean(-1, { keep: true })
        .add(attrs.eps as number)
        .rsqrt();
      return x.mul(scale).mul(attrs.offset === 0 ? weight : weight.add(attrs.offset as number));
    },
  },
  layerNorm: {
    shape: norm("layerNorm"),
    onnx: ({ inputs, attrs }, emitter) =>
      emitter.node(
        "LayerNormalization",
        inputs.map((tensor) => emitter.value(tensor)),
        { axis: -1, epsilon: float(attrs.eps as number) },
      ),
    plain: ({ inputs: [x, weight, bias], attrs }) => {
      const centred = x.sub(x.mean(-1, { keep: true }));
      const variance = centred.mul(centred).mean(-1, { keep: true });
      const scaled = centred.mul(variance.add(attrs.eps as number).rsqrt()).mul(weight);
      return bias ? scaled.add(bias) : scaled;
    },
  },
  rotary: {
    shape: (inputs, attributes) => {
      const [x, cos, sin] = inputs;
      sameDType("rotary", inputs);
      const dims = attributes.dims ?? x.shape[x.rank - 1];
      const width = x.shape[x.rank - 1];
      if (typeof dims !== "number" || dims % 2 !== 0 || (typeof width === "number" && dims > width)) {
        throw new ShapeError(
          "rotary",
          `${dims} of ${width} dimensions cannot be rotated: the count must be even`,
          inputs,
        );
      }
      for (const table of [cos, sin]) {
        const fits = table.rank === 2 && dimsAgree(table.shape[1], dims / 2) && x.rank >= 3;
        if (!fits || !(dimsAgree(table.shape[0], x.shape[x.rank - 3]) || table.shape[0] === 1)) {
          throw new ShapeError("rotary", `x must be [T, H, D], cos and sin [T, ${dims / 2}]`, inputs);
        }
      }
      return x;
    },
    extension: true,
    avoid: (node, provider) => provider !== "cpu" || !fusedRotaryFits(node),
    onnx: fusedRotary,
    plain: rotary,
  },
});

/** Whether the fused form can tell heads apart, and has a row of the tables for each position. */
function fusedRotaryFits({ inputs: [x, cos, sin] }: Tensor): boolean {
  const [T, ...head] = x.shape.slice(-3);
  const rows = cos.shape[0] === T && sin.shape[0] === T && !isUnknown(T);
  return rows && x.rank <= 4 && head.every((dim) => typeof dim === "number");
}

/** ONNX Runtime's rotation of [N, T, H*D], one pass over the data. */
function fusedRotary({ inputs: [x, cos, sin], attrs }: Tensor, emitter: Emitter): string {
  const [H, D] = x.shape.slice(-2) as number[];
  const flat = emitter.ints(x.rank === 3 ? [1, -1, H * D] : [0, 0, H * D]);
  const apart = emitter.ints(x.rank === 3 ? [-1, H, D] : [0, 0, H, D]);
  const dims = (attrs.dims ?? D) as number;
  const turned = emitter.node(
    "RotaryEmbedding",
    [emitter.node("Reshape", [emitter.value(x), flat]), emitter.ints([0]), emitter.value(cos), emitter.value(sin)],
    { num_heads: H, rotary_embedding_dim: dims === D ? 0 : dims, interleaved: attrs.interleaved ? 1 : 0 },
    { domain: "com.microsoft" },
  );
  return emitter.node("Reshape", [turned, apart]);
}

function rotary({ inputs: [x, cosTable, sinTable], attrs }: Tensor): Tensor {
  const width = x.shape[x.rank - 1];
  const dims = (attrs.dims ?? width) as number;
  const half = dims / 2;
  const axis = x.rank - 1;
  const cos = cosTable.unsqueeze(-2); // [T, 1, dims/2]
  const sin = sinTable.unsqueeze(-2);
  const part = (tensor: Tensor, start: number, end: number): Tensor =>
    start === 0 && end === tensor.shape[tensor.rank - 1] ? tensor : tensor.slice({ axis: -1, start, end });
  const rotated = part(x, 0, dims);
  let turned: Tensor;
  if (attrs.interleaved) {
    const pairs = rotated.reshape([...x.shape.slice(0, -1), half, 2]); // [T, H, dims/2, 2]
    const even = pairs.at(0, -1);
    const odd = pairs.at(1, -1);
    const both = [even.mul(cos).sub(odd.mul(sin)), odd.mul(cos).add(even.mul(sin))];
    turned = concat(
      both.map((tensor) => tensor.unsqueeze(-1)),
      axis + 1,
    ).reshape(rotated.shape);
  } else {
    const first = part(rotated, 0, half);
    const second = part(rotated, half, dims);
    turned = concat([first.mul(cos).sub(second.mul(sin)), second.mul(cos).add(first.mul(sin))], axis);
  }
  return dims === width ? turned : concat([turned, x.slice({ axis: -1, start: dims })], axis);
}
