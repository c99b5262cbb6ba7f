// A method of one's own: its parameters give types and the method string. A function cannot cross into the engine's
// worker, so the model runs in this thread.
import { load, method } from "fovea";
import { z } from "zod";

export const recent = method({
  name: "recent",
  does: "Reads the newest tokens only.",
  parameters: z.object({ window: z.int().min(1).default(512).describe("cached tokens read, newest first") }),
  select: (_step, { window }) => [{ window }],
});

const model = await load(process.argv[2] ?? "models/tiny", { worker: false });
const text = "red green blue. one two three four five six seven eight. red green";
for (const attached of [model, model.with(recent({ window: 64 })), model.with(recent({ window: 4 }))]) {
  const { text: answer } = await attached.generate(text, { maxTokens: 8, stop: ["."] }).result;
  console.log(`${attached.info.methods.join(" + ") || "full"}:${answer}`);
}
await model.close();
