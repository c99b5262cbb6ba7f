// Prints documents of each kind with their questions, to be read: node scripts/run.mjs scripts/sample-documents.ts [seed] [length]
import { generateDocument, KINDS, loadFiller, RENDERERS, trainingText } from "../src/tasks/index.js";

const [seed = "1", length = "900"] = process.argv.slice(2);
const filler = await loadFiller();

for (const [i, kind] of KINDS.entries()) {
  const made = generateDocument({
    seed: `${seed} ${kind}`,
    length: Number(length),
    kind,
    filler,
    questions: 3,
    renderers: [RENDERERS[(i + Number(seed)) % RENDERERS.length]],
  });
  console.log(`\n===== ${kind} (${made.renderer}${made.pseudo ? ", made-up words" : ""})\n\n${made.document}\n`);
  for (const question of made.questions) {
    const evidence = question.evidence.map(([start, end]) => JSON.stringify(made.document.slice(start, end))).join(" ");
    console.log(`Q: ${question.text}\nA: ${question.answer}   [oracle: ${made.oracle(question.text)}]\n   ${evidence}`);
  }
}

const held = generateDocument({ seed, length: 300, kind: "single", split: "held-out", filler, questions: 2 });
console.log(`\n===== as a training text, held out\n\n${trainingText(held).text}`);
