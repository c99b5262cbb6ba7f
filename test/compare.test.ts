import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { deltaRule, gatedLinearAttention, linearAttention, softmaxAttention } from "../src/attention/linear/index.js";
import { run } from "../src/cli/run.js";
import { parameterCount } from "../src/models/index.js";
import {
  type ComparedRun,
  compareMechanisms,
  decoder,
  equalModel,
  induction,
  meanInterval,
  mechanismString,
  parseMechanisms,
  stateBytes,
} from "../src/train/index.js";
import { capture } from "./capture.js";

const SIZES = { layers: 2, width: 32, heads: 2, mlp: 64, vocabulary: 40 };

describe("mechanism strings", () => {
  it("name mechanisms and the parameters that are no defaults", () => {
    const uses = [
      softmaxAttention(),
      gatedLinearAttention({ gate: "fixed", chunk: 8 }),
      linearAttention({ normaliser: false }),
    ];
    const text = uses.map(mechanismString).join("+");
    expect(text).toBe("softmax+gated-linear-attention(gate=fixed,chunk=8)+linear-attention(normaliser=false)");
    expect(parseMechanisms(text)).toEqual(uses);
    expect(() => parseMechanisms("delta-rules")).toThrow(/no mechanism is called "delta-rules"/);
    expect(() => parseMechanisms("delta-rule(chunks=3)")).toThrow(/chunks/);
  });
});

describe("one budget", () => {
  it("gives a mechanism with weights of its own a narrower MLP", () => {
    const budget = parameterCount(decoder(SIZES).config);
    for (const use of [deltaRule(), gatedLinearAttention(), linearAttention()]) {
      const model = equalModel(use, SIZES);
      // one neuron of the gated MLP is 3 * 32 parameters a layer
      expect(Math.abs(parameterCount(model.config) - budget)).toBeLessThanOrEqual(96);
    }
    expect(equalModel(deltaRule(), SIZES).config.mlpWidth).toBeLessThan(64);
    expect(equalModel(softmaxAttention(), SIZES).config.mlpWidth).toBe(64);
  });

  it("counts what a sequence leaves behind", () => {
    const bytes = (use: Parameters<typeof equalModel>[0]) => stateBytes(equalModel(use, SIZES), 10);
    expect(bytes(softmaxAttention())).toBe(2 * 2 * 16 * 2 * 4 * 10); // layers, heads, width, k and v, float32, tokens
    expect(bytes(linearAttention({ normaliser: false }))).toBe(2 * 2 * 16 * 16 * 4);
    expect(bytes(linearAttention())).toBe(2 * 2 * 16 * 17 * 4); // and the normaliser
    expect(bytes(deltaRule())).toBe(2 * 2 * (16 * 16 + 3 * 3 * 16) * 4); // and three rows of q, k and v
  });

  it("means and intervals are Student's", () => {
    expect(meanInterval([0.4])).toEqual({ mean: 0.4, half: undefined });
    const { mean, half } = meanInterval([1, 2, 3]); // deviation 1, two degrees of freedom
    expect(mean).toBe(2);
    expect(half).toBeCloseTo(4.303 / Math.sqrt(3), 9);
  });
});

describe("a comparison", () => {
  const options = {
    mechanisms: [softmaxAttention(), deltaRule()],
    tasks: { induction: (seed: number) => induction({ length: 4, symbols: 8, rows: 4, seed }) },
    steps: 6,
    seeds: [1, 2],
    model: { layers: 1, width: 16, heads: 2 },
    threads: 1,
  };

  it("trains every mechanism from every seed, the same each time, and none twice", async () => {
    const runs = await compareMechanisms(options);
    expect(runs.map((r) => [r.mechanism, r.seed])).toEqual([
      ["softmax", 1],
      ["delta-rule", 1],
      ["softmax", 2],
      ["delta-rule", 2],
    ]);
    for (const { accuracy, loss, curve } of runs) {
      expect(curve.at(-1)).toEqual([6, accuracy]);
      expect(accuracy).toBeLessThan(0.6); // nothing is learnt in six steps
      expect(loss).toBeGreaterThan(1.5);
      expect(loss).toBeLessThan(2.5); // ln 8 is 2.08
    }
    const made: ComparedRun[] = [];
    const again = await compareMechanisms({ ...options, known: runs.slice(0, 3), onRun: (r) => void made.push(r) });
    expect(made.map((r) => [r.mechanism, r.seed])).toEqual([["delta-rule", 2]]);
    expect(again[3].loss).toBe(runs[3].loss);
    expect(again.slice(0, 3)).toEqual(runs.slice(0, 3));
  });

  it("prints a table, draws a plot, and goes on in its folder", async () => {
    const folder = await mkdtemp(join(tmpdir(), "fovea-compare-"));
    const args = ["compare", "--mechanisms", "softmax+delta-rule(chunk=4)", "--tasks", "induction,copying"];
    args.push("--length", "4", "--rows", "4", "--steps", "3", "--seeds", "2", "--width", "16", "--layers", "1");
    args.push("--threads", "1", "--folder", join(folder, "runs"));
    const stop = new AbortController();
    const first = capture(stop.signal);
    const progress = { ...first, errTty: true, err: () => stop.abort() }; // stopped while the first run is under way
    expect(await run(args, progress)).toBe(130);
    const io = capture();
    expect(await run([...args, "--plot", join(folder, "plot.svg")], io)).toBe(0);
    expect(io.text()).toMatch(/^task +mechanism +accuracy % +\+- +seeds +parameters +tokens\/s +state$/m);
    expect(io.text()).toMatch(/^copying +delta-rule\(chunk=4\) +\d/m);
    const svg = await readFile(join(folder, "plot.svg"), "utf8");
    expect(svg.match(/<rect x="[^"]+" y="[^"]+" width="[\d.]+" height="[\d.]+" fill="#/g)?.length).toBe(4 + 2);
    const lines = await readFile(join(folder, "runs", "runs.jsonl"), "utf8");
    expect(lines.trim().split("\n")).toHaveLength(1 + 8);
    const asJson = capture();
    await run([...args, "--json"], asJson);
    expect(await readFile(join(folder, "runs", "runs.jsonl"), "utf8")).toBe(lines); // nothing was run again
    const { runs, summary } = JSON.parse(asJson.text());
    expect(runs).toHaveLength(8);
    expect(summary[0].accuracy).toBeCloseTo(
      (runs[0].accuracy +
        runs.find((r: ComparedRun) => r.task === "induction" && r.mechanism === "softmax" && r.seed === 2).accuracy) /
        2,
      9,
    );
    const other = capture();
    expect(await run([...args, "--steps", "4"], other)).toBe(1);
    expect(other.errors()).toMatch(/other settings/);
    const wrong = capture();
    expect(await run(["compare", "--tasks", "recal"], wrong)).toBe(2);
    await rm(folder, { recursive: true });
  });
});
