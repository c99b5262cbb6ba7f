// A mechanism of one's own: attention replaced, written once over graph tensors, then trained, run and exported.
import { mkdtemp, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { load, mechanism } from "fovea";
import { accuracy, adamW, decoder, recall, train } from "fovea/train";

export const squared = mechanism({
  name: "squared-relu-attention",
  does: "Squared ReLU of the logits, normalised, instead of their softmax.",
  forward: ({ q, k, v, mask }) => {
    const pattern = q.matmul(k.transpose()).relu().square().mul(mask); // [B, H, T, S]
    return pattern.div(pattern.sum(-1, { keep: true }).add(1e-6)).matmul(v); // [B, H, T, D]
  },
});

// two pairs of key and value, then both keys again: the model is to say their values
const data = recall({ pairs: 2, keys: 8, values: 8 });
const model = decoder({ mechanism: squared, layers: 2, width: 32, heads: 2, vocabulary: data.vocabulary });
const steps = 900;
const trained = await train({
  ...{ model, data, steps, optimizer: adamW({ rate: 3e-3 }) },
  evaluate: {
    every: steps,
    measure: async (trainer) => {
      const batch = data.heldOut(0);
      return { accuracy: accuracy(batch, (await trainer.evaluate(batch)).predicted) };
    },
  },
});
console.log(`accuracy ${trained.metrics.at(-1)?.accuracy?.toFixed(2)}`);

const folder = await mkdtemp(join(tmpdir(), "squared-"));
await trained.export(join(folder, "squared.onnx"));
console.log(`squared.onnx, ${(await stat(join(folder, "squared.onnx"))).size} bytes`);

// the folder's config.json names the mechanism, which this thread knows
await trained.save(join(folder, "model"));
const loaded = await load(join(folder, "model"), { worker: false });
const [key, value, ...rest] = data.heldOut(1).ids.subarray(0, 4);
const logits = await loaded.logits([key, value, ...rest, key]);
console.log(`${key} was given ${value}; the model says ${logits.indexOf(Math.max(...logits))}`);
await loaded.close();
await rm(folder, { recursive: true });
