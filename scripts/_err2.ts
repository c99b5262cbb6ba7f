import { load } from "fovea";
import { generateDocument, loadFiller } from "fovea/tasks";
import { askOne } from "./nano/measure.js";
const [dir, tokens = "256", docs = "24", mode = "bare", kind = "single"] = process.argv.slice(2);
const model = await load(dir);
const filler = await loadFiller("data/filler");
for (const o of [
  { split: "train", frames: "train", pseudo: 0 }, { split: "train", frames: "held-out", pseudo: 0 }, { split: "held-out", frames: "train", pseudo: 0 },
  { split: "held-out", frames: "held-out", pseudo: 0 }, { split: "train", frames: "train", pseudo: 1 }, { split: "held-out", frames: "held-out", pseudo: 1 }] as const) {
  let right = 0, all = 0;
  for (let i = 0; i < Number(docs); i++) {
    const d = generateDocument({ seed: `err ${i}`, length: Math.floor((Number(tokens) - 60) * 2.75), kind: kind as never, questions: 4, ...o, ...(mode === "prose" && { filler }) });
    for (const a of await askOne(model, d.document, d.questions)) { all++; if (a.right) right++; }
  }
  console.log(JSON.stringify(o), (right / all).toFixed(3), all);
}
model.close();
