import { readFile, rename, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";

const FILE = fileURLToPath(new URL("../docs/benchmarks.md", import.meta.url));

/** Replaces the part of docs/benchmarks.md between `<!-- name:begin -->` and `<!-- name:end -->`. */
export async function writeSection(name: string, content: string, file = FILE): Promise<void> {
  const [begin, end] = [`<!-- ${name}:begin -->`, `<!-- ${name}:end -->`];
  const text = await readFile(file, "utf8");
  const [from, to] = [text.indexOf(begin), text.indexOf(end)];
  if (from < 0 || to < from) throw new Error(`${file} has no section between ${begin} and ${end}`);
  await writeFile(`${file}.tmp`, `${text.slice(0, from + begin.length)}\n${content}\n${text.slice(to)}`);
  await rename(`${file}.tmp`, file);
}
