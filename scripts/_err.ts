import { load } from "fovea";
import { loadFiller, generateDocument, type Kind } from "fovea/tasks";
import { askOne } from "./nano/measure.js";
const [dir, kind, bare, tokens, docs, q, show] = process.argv.slice(2);
const model = await load(dir);
const filler = await loadFiller("data/filler");
const c: Record<string, number> = {};
const add = (k: string) => { c[k] = (c[k] ?? 0) + 1; };
for (const split of ["train", "held-out"] as const) for (let i = 0; i < Number(docs); i++) {
  const d = generateDocument({ seed: `err ${i}`, length: Math.floor((Number(tokens) - 60) * (kind==="pairs"||kind==="reversed"?1.75:2.75)), kind: kind as Kind, split, questions: Number(q), ...(bare === "prose" && { filler }) });
  for (const a of await askOne(model, d.document, d.questions)) {
    add(`${split} all`);
    const t = a.right ? "right" : d.document.includes(a.answer) ? "other span" : "garbled";
    add(`${split} ${t}`);
    if (t !== "right" && show) console.log(t, "|", a.question.text, "|", a.question.answer, "|", a.answer);
  }
}
console.log(process.argv.slice(2).join(" "), JSON.stringify(c));
model.close();
