import { load } from "fovea";
import { generateDocument } from "fovea/tasks";
import { askOne } from "./nano/measure.js";
const [dir, docs = "60"] = process.argv.slice(2);
const model = await load(dir, { threads: 1 });
for (const n of [2, 4, 7]) for (const forms of [["active"], ["passive"], ["cleft"], ["pronoun"]] as const) {
  const c = new Map<string, [number, number]>();
  for (let i = 0; i < Number(docs); i++) {
    const d = generateDocument({ seed: `few ${i}`, length: 200 * n + 100, kind: "single", questions: Math.min(n, 4), facts: n, slots: ["who", "what"], split: "held-out", pseudo: 0, forms, renderers: ["prose"] });
    for (const a of await askOne(model, d.document, d.questions)) for (const k of ["all", String(a.question.slot)]) { const x = c.get(k) ?? [0, 0]; x[1]++; if (a.right) x[0]++; c.set(k, x); }
  }
  console.log(n, forms.join(), [...c].map(([k, [r, m]]) => `${k} ${(r / m).toFixed(2)}/${m}`).join("  "));
}
model.close();
