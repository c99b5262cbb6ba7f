// Read a document once, ask many questions: a prefilled text is a value that answers, forks, is saved and opened.
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { load } from "fovea";

const model = await load(process.argv[2] ?? "models/tiny");
const folder = await mkdtemp(join(tmpdir(), "fovea-"));
try {
  const report = await model.read(await readFile("examples/harbour.txt", "utf8"));
  for (const question of ["The keeper of the south light is", "The name of the pilot boat is"]) {
    const { text, timings } = await report.generate(`\n${question}`, { maxTokens: 16, stop: ["."] }).result;
    console.log(`${question}${text}. (${timings.prompt_tokens} tokens read)`);
  }

  await report.save(join(folder, "report.cache"));
  const opened = await model.open(join(folder, "report.cache"));
  const { text } = await opened.generate("\nThe captain of the ferry is", { maxTokens: 16, stop: ["."] }).result;
  console.log(`opened again: The captain of the ferry is${text}.`);
} finally {
  await rm(folder, { recursive: true, force: true });
  await model.close();
}
