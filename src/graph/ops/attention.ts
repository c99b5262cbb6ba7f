import { attention } from "../attention.js";
import { dimsAgree, formatShape, isUnknown } from "../dims.js";
import type { Emitter } from "../emit.js";
import { rows } from "../op.js";
import { float } from "../proto.js";
import { needDType, ShapeError, sameDType } from "../shape.js";
import type { Tensor } from "../tensor.js";

const MICROSOFT = { domain: "com.microsoft" } as const;

/** Fused forms of attention. The definition is in attention.ts. */
export const attentionOps = rows({
  groupQueryAttention: {
    shape: (inputs, { heads, kvHeads }) => {
      const [q, k, v, bias] = inputs;
      sameDType("groupQueryAttention", inputs);
      needDType("groupQueryAttention", inputs, ["float32", "float16"]);
      const [Hq, Hkv] = [heads as number, kvHeads as number];
      const fail = (problem: string): never => {
        throw new ShapeError("groupQueryAttention", problem, inputs);
      };
      if (Hq % Hkv !== 0) fail(`${Hq} query heads are no multiple of ${Hkv} key heads`);
      if (q.rank !== 2 || k.rank !== 2 || v.rank !== 2) fail("q must be [T, Hq*D], k and v [T, Hkv*D]");
      const width = q.shape[1];
      if (typeof width !== "number" || width % Hq !== 0) fail(`${width} is no multiple of ${Hq} heads`);
      const D = (width as number) / Hq;
      if (D % 8 !== 0) fail(`the head size ${D} is no multiple of 8`);
      for (const tensor of [k, v]) {
        if (!dimsAgree(tensor.shape[0], q.shape[0]) || !dimsAgree(tensor.shape[1], Hkv * D)) {
          fail(`k and v must be ${formatShape([q.shape[0], Hkv * D])}`);
        }
      }
      if (bias) {
        const [T, S] = [q.shape[0], k.shape[0]];
        const fits = bias.rank === 3 && dimsAgree(bias.shape[1], T) && dimsAgree(bias.shape[2], S);
        if (!fits || (bias.shape[0] !== 1 && bias.shape[0] !== Hq && !isUnknown(bias.shape[0]))) {
          fail(`the bias must be ${formatShape(["1 or Hq", T, S])}`);
        }
      }
      return q;
    },
    extension: true,
    // The WebGPU kernel leaves the soft-cap out without a word.
    avoid: ({ attrs }, provider) => provider === "webgpu" && attrs.softcap !== undefined,
    onnx: fused,
    plain: ({ inputs: [q, k, v, bias], attrs }) => {
      const [Hq, Hkv] = [attrs.heads as number, attrs.kvHeads as number];
      const D = (q.shape[1] as number) / Hq;
      const apart = (x: Tensor, H: number): Tensor => x.reshape([x.shape[0], H, D]);
      const { heads } = attention(apart(q, Hq), apart(k, Hkv), apart(v, Hkv), {
        causal: true,
        scale: attrs.scale as number | undefined,
        softcap: attrs.softcap as number | undefined,
        window: attrs.window as number | undefined,
        bias,
      });
      return heads.reshape(q.shape);
    },
  },
});

function fused({ inputs: [q, k, v, bias], attrs }: Tensor, emitter: Emitter): string {
  const front = emitter.ints([0]);
  const batched = (tensor: Tensor): string => emitter.node("Unsqueeze", [emitter.value(tensor), front]); // [1, T, H*D]
  // The operation is told the number of keys twice: the index of the last one per sequence, and the count.
  const count = emitter.cast(emitter.dimOf(q, 0), "int32"); // [1]
  const last = emitter.node("Sub", [count, emitter.constant(new Int32Array([1]), [1], "int32")]);
  const total = emitter.asScalar(count);
  const inputs = [batched(q), batched(k), batched(v), "", "", last, total];
  if (bias) inputs.push("", "", "", batched(bias));
  const [scale, softcap] = [attrs.scale as number | undefined, attrs.softcap as number | undefined];
  const [output] = emitter.nodes(
    "GroupQueryAttention",
    inputs,
    {
      num_heads: attrs.heads as number,
      kv_num_heads: attrs.kvHeads as number,
      scale: scale === undefined ? undefined : float(scale),
      softcap: softcap === undefined ? undefined : float(softcap),
      local_window_size: attrs.window as number | undefined,
    },
    { ...MICROSOFT, outputs: 3 },
  );
  return emitter.node("Squeeze", [output, front]);
}
