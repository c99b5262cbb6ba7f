import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { convert } from "../../models/index.js";

/** Calls `use` with the model as a GGUF file: itself if it is one, else a temporary conversion to Q8_0. */
export async function withQ8Gguf<T>(model: string, use: (file: string) => Promise<T>): Promise<T> {
  if (/\.gguf$/i.test(model)) return use(model);
  const folder = await mkdtemp(join(tmpdir(), "fovea-bench-"));
  try {
    const file = join(folder, "model-q8_0.gguf");
    await convert(model, file, { type: "q8_0" });
    return await use(file);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
