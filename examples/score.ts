// How probable is a text? Log-probabilities of each token, and of continuations over one reading.
import { load } from "fovea";

const model = await load(process.argv[2] ?? "models/tiny");
const { tokens, logprob } = await model.score("one two three, one two three");
for (const { text, logprob: each } of tokens) console.log(`${JSON.stringify(text)} ${each.toFixed(3)}`);
console.log(`sum ${logprob.toFixed(3)}`);

const reading = await model.read("The gate is green. The door is blue. The gate is");
for (const continuation of [" green", " blue"]) {
  const { logprob: sum } = await reading.score(continuation);
  console.log(`${continuation}: ${sum.toFixed(3)}`);
}
await model.close();
