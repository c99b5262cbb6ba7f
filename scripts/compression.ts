/**
 * Prints the figures of docs/methods/compression.md: what methods that compress the cache cost on a small trained model,
 * in nats a token.
 *
 *     node scripts/run.mjs scripts/compression.ts CHECKPOINT
 */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { load } from "fovea";
import { encodeMethodTensors, kvHeadBases, latentBases, layerSimilarity } from "fovea/attention";
import { openCheckpoint } from "fovea/models";

const STARTS = ["Once upon a time", "One day", "There was a", "Tom and Lily", "A little dog", "The big bear", "Once"];

const [path] = process.argv.slice(2);
if (!path) throw new Error("usage: node scripts/run.mjs scripts/compression.ts CHECKPOINT");
const checkpoint = await openCheckpoint(path);
const model = await load(path, { worker: false, precision: "float32", cache: "float32" });
const folder = await mkdtemp(join(tmpdir(), "fovea-compression-"));
try {
  const texts: string[] = [];
  for (const [i, start] of STARTS.entries()) {
    const told = await model.generate(start, { maxTokens: 200, temperature: 0.7, seed: i + 1 }).result;
    texts.push(start + told.text);
  }
  // the first two texts calibrate, the others measure
  const measured = texts.slice(2);
  const show = async (attention: string, label = attention) => {
    const each: number[] = [];
    for (const text of measured) {
      const { logprob, tokens } = await model.with(attention).score(text);
      each.push(-logprob / tokens.length);
    }
    const mean = each.reduce((a, b) => a + b, 0) / each.length;
    console.log(`${label.padEnd(48)} ${mean.toFixed(2)}   ${each.map((x) => x.toFixed(2)).join(" ")}`);
  };
  const calibration = { texts: texts.slice(0, 2), madeBy: "scripts/compression.ts" };
  const { file } = await kvHeadBases(model, calibration.texts, { merge: 2, madeBy: calibration.madeBy });
  const bases = join(folder, "bases.safetensors");
  await writeFile(bases, await encodeMethodTensors(file));
  const latent = join(folder, "latent.safetensors");
  await writeFile(
    latent,
    await encodeMethodTensors(await latentBases(model, checkpoint, { ...calibration, rotary: 1 / 2 })),
  );

  console.log(`${measured.length} texts of 200 tokens, nats a token: the mean, and each`);
  await show("full");
  for (let l = 1; l < model.info.shape.layers; l++) await show(`shared-attention(sharing=${l})`);
  await show("compress-kv-heads(merge=2)", "compress-kv-heads, 2 heads into 1, averaged");
  await show(`compress-kv-heads(merge=2,basis="${bases}")`, "compress-kv-heads, 2 heads into 1, directions");
  for (const pairs of ["uniform", "high", "low"])
    await show(`mha2mla(rotary=1/2,pairs=${pairs})`, `mha2mla, half of the positions, ${pairs}`);
  await show(`mha2mla(basis="${latent}")`, "mha2mla, half of the positions, 2-norm");
  for (const text of measured) {
    const { alike } = await model.observe(text, { alike: layerSimilarity() });
    const next = Array.from({ length: alike.layers - 1 }, (_, l) => alike.data[l * alike.layers + l + 1].toFixed(2));
    console.log(`likeness of each layer and the next: ${next.join(" ")}`);
  }
} finally {
  await model.close();
  await checkpoint.close();
  await rm(folder, { recursive: true, force: true });
}
