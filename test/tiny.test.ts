import { spawnSync } from "node:child_process";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));

it("models/tiny is what its script makes", async () => {
  const folder = await mkdtemp(join(tmpdir(), "fovea-tiny-"));
  try {
    const args = ["scripts/run.mjs", "scripts/make-tiny.ts", folder];
    const { status, stderr } = spawnSync(process.execPath, args, { cwd: root, encoding: "utf8" });
    expect([status, stderr]).toEqual([0, ""]);
    const files = await readdir(folder);
    expect(files.sort()).toEqual(["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
    for (const file of files) {
      const [made, kept] = [await readFile(join(folder, file)), await readFile(join(root, "models", "tiny", file))];
      expect(made.equals(kept), file).toBe(true);
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});
