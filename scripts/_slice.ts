import { load } from "fovea";
import { generateDocument, loadFiller } from "fovea/tasks";
import { askOne } from "./nano/measure.js";
const [dir, tokens = "256", docs = "100", mode = "bare", kind = "single", split = "held-out"] = process.argv.slice(2);
const model = await load(dir, { threads: 1 });
const filler = await loadFiller("data/filler");
const c = new Map<string, [number, number]>();
const add = (k: string, right: boolean) => { const x = c.get(k) ?? [0, 0]; x[1]++; if (right) x[0]++; c.set(k, x); };
for (let i = 0; i < Number(docs); i++) {
  const d = generateDocument({ seed: `slice ${i}`, length: Math.floor((Number(tokens) - 60) * 2.75), kind: kind as never, questions: 4, split: split as never, ...(mode === "prose" && { filler }) });
  for (const a of await askOne(model, d.document, d.questions)) {
    add("all", a.right); add(`layout ${d.renderer}`, a.right); add(`slot ${a.question.slot}`, a.right); add(`pseudo ${d.pseudo}`, a.right);
    if (!a.right) add(a.answer === "not stated" ? "err: not stated" : d.document.includes(a.answer) ? "err: other span" : "err: garbled", false);
  }
}
console.log([...c].sort().map(([k, [r, n]]) => `${k}: ${(r / n).toFixed(2)} of ${n}`).join("\n"));
model.close();
