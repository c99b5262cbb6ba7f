// A mechanism of one's own: attention replaced, written over graph tensors, compiled and run by ONNX Runtime.
import { load, method } from "fovea";

/** Squared ReLU instead of softmax; a model would have to be trained with it to be any good. */
export const squared = method({
  name: "squared-relu",
  does: "Squared ReLU of the logits, normalised, instead of their softmax.",
  mechanism: ({ q, k, v, mask, scale }) => {
    const pattern = q.matmul(k.transpose()).mul(scale).relu().square().mul(mask); // [Hq, T, S]; k and v [1, S, D]
    return pattern.div(pattern.sum(-1, { keep: true }).add(1e-6)).matmul(v); // [Hq, T, D]
  },
});

const model = await load(process.argv[2] ?? "models/tiny", { worker: false });
for (const attached of [model, model.with(squared())]) {
  const { text } = await attached.generate("red green blue. red green", { maxTokens: 8, stop: ["."] }).result;
  console.log(`${attached.info.methods.join(" + ") || "softmax"}:${text}`);
}
await model.close();
