import { load } from "fovea";
import { generateDocument } from "fovea/tasks";
import { askOne } from "./nano/measure.js";
const [dir, docs = "60"] = process.argv.slice(2);
const model = await load(dir, { threads: 1 });
for (const o of [{ pseudo: 0.4, coined: 0.5 }, { pseudo: 0, coined: 0 }, { pseudo: 1, coined: 1 }]) for (const split of ["train", "held-out"] as const) {
  const c = new Map<string, [number, number]>();
  for (let i = 0; i < Number(docs); i++) {
    const d = generateDocument({ seed: `few ${i}`, length: 162, kind: "single", questions: 2, facts: 2, split, slots: ["who", "what"], renderers: ["prose"], ...o });
    for (const [j, a] of (await askOne(model, d.document, d.questions)).entries()) for (const k of ["all", `q${j}`, String(a.question.slot)]) { const x = c.get(k) ?? [0, 0]; x[1]++; if (a.right) x[0]++; c.set(k, x); }
    if (i < 1) console.log(d.document, d.questions.map((q) => q.text));
  }
  console.log(JSON.stringify(o), split, [...c].map(([k, [r, m]]) => `${k} ${(r / m).toFixed(2)}/${m}`).join("  "));
}
model.close();
