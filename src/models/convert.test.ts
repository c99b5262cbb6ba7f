import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { toFloats } from "../graph/index.js";
import { convert } from "./convert.js";
import { FAMILIES, type FamilyName } from "./families.js";
import { openGguf } from "./gguf.js";
import { openCheckpoint } from "./load.js";
import { canonicalTensors } from "./names.js";
import { randomConfig, randomWeights } from "./random.js";
import { tinyTokenizer } from "./tiny-tokenizer.js";

let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "fovea-convert-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

function random(family: FamilyName) {
  const config = randomConfig(family, { layers: 2 });
  const tokenizer = tinyTokenizer(config.vocab);
  return { name: family, config, weights: randomWeights(config, 9), tokenizer };
}

describe.each(Object.keys(FAMILIES) as FamilyName[])("%s", (family) => {
  it("keeps every weight through safetensors, and through GGUF and back", async () => {
    const source = random(family);
    await convert(source, join(folder, family));
    const names = [join(folder, family)];
    if (FAMILIES[family].gguf) {
      await convert(source, join(folder, `${family}.gguf`), { type: "f32" });
      await convert(join(folder, `${family}.gguf`), join(folder, `${family}-back`));
      names.push(join(folder, `${family}.gguf`), join(folder, `${family}-back`));
    }
    // A norm stored as weight + 1 is rounded once.
    const tolerance = source.config.normOffset === 1 ? 2e-7 : 0;
    for (const name of names) {
      const checkpoint = await openCheckpoint(name);
      for (const { name: weight } of canonicalTensors(source.config)) {
        const [a, b] = [toFloats(checkpoint.weights.get(weight)), toFloats(source.weights.get(weight))];
        expect(a.length).toBe(b.length);
        const worst = a.reduce((max, x, i) => Math.max(max, Math.abs(x - b[i])), 0);
        expect(worst, `${weight} in ${name}`).toBeLessThanOrEqual(tolerance);
      }
      await checkpoint.close();
    }
  });
});

describe("convert", () => {
  it("writes norms and positions in float32 whatever the type", async () => {
    await convert(random("gpt2"), join(folder, "types.gguf"), { type: "q8_0" });
    const file = await openGguf(join(folder, "types.gguf"));
    const type = (name: string): string | undefined => file.tensors.get(name)?.dtype;
    expect(type("blk.0.attn_norm.weight")).toBe("F32");
    expect(type("blk.0.attn_qkv.bias")).toBe("F32");
    expect(type("position_embd.weight")).toBe("F32");
    expect(type("blk.0.attn_qkv.weight")).toBe("Q8_0");
    expect(file.metadata["general.file_type"]).toBe(7);
    await file.close();
  });

  it("takes F16 for rows that are no whole number of Q8_0 blocks", async () => {
    const source = random("llama");
    const config = randomConfig("llama", { layers: 1, mlpWidth: 100 });
    await convert({ ...source, config, weights: randomWeights(config) }, join(folder, "odd.gguf"), { type: "q8_0" });
    const file = await openGguf(join(folder, "odd.gguf"));
    expect(file.tensors.get("blk.0.ffn_down.weight")?.dtype).toBe("F16");
    expect(file.tensors.get("blk.0.ffn_up.weight")?.dtype).toBe("Q8_0");
    await file.close();
  });

  it("reports its progress and the size of what it wrote", async () => {
    const labels: string[] = [];
    const result = await convert(random("llama"), join(folder, "progress"), {
      type: "bf16",
      onProgress: ({ done, total, label }) => labels.push(`${done}/${total} ${label}`),
    });
    expect(labels[0]).toBe("0/21 model.embed_tokens.weight");
    expect(labels).toHaveLength(21);
    expect(result).toMatchObject({ format: "safetensors", tensors: 21 });
    const config = JSON.parse(await readFile(join(folder, "progress/config.json"), "utf8"));
    expect(config.torch_dtype).toBe("bfloat16");
  });

  it("does not touch a folder that is there, unless told to", async () => {
    const path = join(folder, "there");
    await mkdir(path);
    await writeFile(join(path, "mine.txt"), "mine");
    await expect(convert(random("llama"), path)).rejects.toThrow(/is there already/);
    expect(await readdir(path)).toEqual(["mine.txt"]);
    await convert(random("llama"), path, { overwrite: true });
    expect((await readdir(path)).sort()).toEqual([
      "config.json",
      "model.safetensors",
      "tokenizer.json",
      "tokenizer_config.json",
    ]);
  });

  it.each(["aborted", "aborted.gguf"])("leaves nothing behind when it is stopped: %s", async (name) => {
    const path = await mkdtemp(join(folder, "stopped-"));
    const controller = new AbortController();
    const onProgress = ({ done }: { done: number }): void => {
      if (done === 3) controller.abort();
    };
    const running = convert(random("llama"), join(path, name), { signal: controller.signal, onProgress });
    await expect(running).rejects.toMatchObject({ code: "aborted" });
    expect(await readdir(path)).toEqual([]);
  });

  it("refuses what it cannot write", async () => {
    await expect(convert(random("opt"), join(folder, "opt.gguf"))).rejects.toThrow(/no architecture for OPT/);
    await expect(convert(random("llama"), join(folder, "x"), { type: "q8_0" })).rejects.toThrow(/not q8_0/);
    await expect(convert(random("llama"), join(folder, "x.gguf"), { type: "bf16" })).rejects.toThrow(/not bf16/);
    await expect(convert(join(folder, "nowhere"), join(folder, "x"))).rejects.toMatchObject({ code: "not-found" });
  });
});
