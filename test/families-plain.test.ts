import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  type Checkpoint,
  convert,
  openCheckpoint,
  openSafetensors,
  randomConfig,
  randomWeights,
  tinyTokenizer,
} from "../src/models/index.js";
import { MUTATIONS, type MutationName } from "./mutants.js";
import { plainMistral, plainOpt, type Tensors } from "./plain-forward.js";
import { compileWhole, greedy, logProbabilities, logSoftmax } from "./whole-model.js";

// llama.cpp knows no OPT and applies no window to Mistral: here the oracle is a forward pass in plain loops.
const TOLERANCE = 1e-3;
const MUTANT = 0.1;
const TEXT = "The cat went down to the water, and every evening it came back.";

const WINDOW = 7;
const CASES: {
  name: string;
  config: ReturnType<typeof randomConfig>;
  plain: (get: Tensors, config: ReturnType<typeof randomConfig>, ids: number[]) => Float64Array[];
  mutations: MutationName[];
}[] = [
  {
    name: "opt",
    config: randomConfig("opt"),
    plain: (get, config, ids) => plainOpt(get, config, ids),
    mutations: [
      "attention scale 1.2 times",
      "silu",
      "RMS norms for layer norms",
      "norm epsilon 0.1",
      "no biases of q, k, v",
      "no bias of o",
      "no biases of the MLP",
      "no biases of norms",
      "no positions",
      "positions off by one",
    ],
  },
  {
    name: "mistral with a window",
    config: randomConfig("llama", {}, { architectures: ["MistralForCausalLM"], sliding_window: WINDOW }),
    plain: (get, config, ids) =>
      plainMistral(get, { ...config, eps: config.normEps, base: 10000, window: WINDOW }, ids),
    mutations: [
      "no window",
      "window one larger",
      "interleaved rotary layout",
      "query heads on the wrong key heads",
      "gate and up swapped",
    ],
  },
];

describe.each(CASES)("$name against plain loops", ({ name, config, plain, mutations }) => {
  let folder = "";
  let checkpoint: Checkpoint;
  let ids: number[];
  let theirs: Float64Array[];

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "fovea-plain-"));
    const tokenizer = tinyTokenizer(config.vocab);
    await convert({ name, config, weights: randomWeights(config, 3), tokenizer }, join(folder, "model"));
    checkpoint = await openCheckpoint(join(folder, "model"));
    ids = checkpoint.tokenizer.encode(TEXT).ids;
    const file = await openSafetensors(join(folder, "model"));
    const values = new Map<string, Float64Array>();
    const get: Tensors = (tensor) => {
      const known = values.get(tensor) ?? Float64Array.from(file.readSync(tensor));
      values.set(tensor, known);
      return known;
    };
    theirs = plain(get, config, ids).map(logSoftmax);
    await file.close();
  });
  afterAll(async () => {
    await checkpoint.close();
    await rm(folder, { recursive: true, force: true });
  });

  it("reads back the config that was written", () => {
    expect(checkpoint.config).toEqual(config);
  });

  it("gives the same log-probabilities and the same most likely tokens", async () => {
    const whole = await compileWhole(checkpoint.config, checkpoint.weights);
    const ours = await logProbabilities(whole, ids);
    for (const [t, row] of ours.entries()) {
      for (let v = 0; v < row.length; v++) expect(Math.abs(row[v] - theirs[t][v])).toBeLessThan(TOLERANCE);
    }
    const [next] = await greedy(whole, ids, 1);
    const last = theirs.at(-1) as Float64Array;
    expect(next).toBe(last.indexOf(Math.max(...last)));
    await whole.segment.release();
  });

  it.each(mutations)("mutant: %s", async (mutation) => {
    const mutant = MUTATIONS[mutation](config, checkpoint.weights);
    const whole = await compileWhole(mutant.config, mutant.weights);
    const ours = await logProbabilities(whole, ids);
    await whole.segment.release();
    const moved = Math.max(...ours.slice(0, -1).map((row, t) => Math.abs(row[ids[t + 1]] - theirs[t][ids[t + 1]])));
    expect(moved).toBeGreaterThan(MUTANT);
  });
});
