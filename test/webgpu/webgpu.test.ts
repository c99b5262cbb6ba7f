import { existsSync } from "node:fs";
import { afterAll, describe, expect, test } from "vitest";
import { compile, floatWeight, input, parameter, weightsFrom } from "../../src/graph/index.js";
import { load } from "../../src/load.js";

// the model tests on WebGPU: `npm run test:webgpu` (a GPU, or SwiftShader without one)
const MODELS = ["models/tiny", "../shared/checkpoints/stories260K"];
const IDS = [1, 4, 9, 16, 25, 36, 49, 64, 81, 100, 121, 144];

test("a dense segment on WebGPU gives the processor's numbers", async () => {
  const w = Float32Array.from({ length: 64 * 96 }, (_, i) => Math.sin(i * 0.7) / 8);
  const data = Float32Array.from({ length: 5 * 64 }, (_, i) => Math.cos(i));
  const x = input("x", ["T", 64]);
  const cut = { inputs: { x }, outputs: { y: x.linear(parameter("w", [96, 64])).silu() } };
  const weights = weightsFrom({ w: floatWeight([96, 64], w) });
  const results: Float32Array[] = [];
  for (const provider of ["cpu", "webgpu"] as const) {
    const segment = await compile(cut, { weights, provider });
    results.push((await segment.run({ x: { data, dims: [5, 64] } })).y.data as Float32Array);
    await segment.release();
  }
  results[0].forEach((value, i) => {
    expect(Math.abs(value - results[1][i])).toBeLessThan(1e-4);
  });
});

describe.each(MODELS)("%s", (folder) => {
  const there = existsSync(folder);
  const open: { close(): Promise<void> }[] = [];
  afterAll(async () => {
    for (const model of open) await model.close();
  });

  for (const precision of ["float32", "int8"] as const)
    test.skipIf(!there)(`${precision}: logits and greedy tokens are the processor's`, async () => {
      const options = { worker: false, precision, cache: "float32", threads: 1 } as const;
      const cpu = await load(folder, options);
      const gpu = await load(folder, { ...options, provider: "webgpu" });
      open.push(cpu, gpu);
      expect(gpu.info.provider).toBe("webgpu");
      const ids = IDS.map((i) => i % cpu.info.shape.vocab);
      const [a, b] = [await cpu.logits(ids), await gpu.logits(ids)];
      // on the processor int8 matmuls quantise activations too; on a GPU they do not
      const tolerance = precision === "float32" ? 2e-3 : 0.5;
      const spread = Math.max(...a) - Math.min(...a);
      for (let i = 0; i < a.length; i++)
        expect(Math.abs(a[i] - b[i])).toBeLessThan(tolerance * Math.max(1, spread / 10));
      if (precision === "int8") return;
      const greedy = async (model: typeof cpu) =>
        (await model.generate(ids, { maxTokens: 16, ignoreEos: true }).result).ids;
      expect(await greedy(gpu)).toEqual(await greedy(cpu));
      const sparse = "streaming-llm(sinks=2,window=6)";
      expect(await greedy(gpu.with(sparse))).toEqual(await greedy(cpu.with(sparse)));
    });
});
