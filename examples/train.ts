// A small model from nothing: a tokenizer and weights trained on one text, then saved, loaded and run like any other.
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { load } from "fovea";
import { adamW, cosineSchedule, decoder, texts, train, trainTokenizer } from "fovea/train";

const text = await readFile(new URL("harbour.txt", import.meta.url), "utf8");
const tokenizer = trainTokenizer([text], { vocabulary: 400 });
const folder = await mkdtemp(join(tmpdir(), "fovea-"));

const steps = 150;
const trained = await train({
  model: decoder({ layers: 2, width: 64, heads: 4, tokenizer }),
  data: texts([text], { tokenizer, rows: 4, length: 64 }),
  steps,
  optimizer: adamW({ rate: 5e-3 }),
  schedule: cosineSchedule({ steps, warmup: 10 }),
  folder: join(folder, "run"), // checkpoints and metrics; run again, it goes on where it stopped
});
const losses = trained.metrics.map(({ loss = Number.NaN }) => loss.toFixed(2));
console.log(`loss ${losses[0]} -> ${losses.at(-1)}`);

await trained.save(join(folder, "harbour")); // config.json, model.safetensors, tokenizer.json
const model = await load(join(folder, "harbour"), { worker: false });
const prompt = "Logbook of Saint Brannoc Harbour, kept";
const { text: more } = await model.generate(prompt, { maxTokens: 8, stop: ["."] }).result;
console.log(`${prompt}${more}`);
await model.close();
await rm(folder, { recursive: true });
