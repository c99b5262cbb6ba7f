import { Engine } from "../src/engine/engine.js";
import { type Checkpoint, type ModelConfig, randomConfig, randomWeights, tinyTokenizer } from "../src/models/index.js";

/** A random checkpoint that lies in memory only. */
export function randomCheckpoint(...of: Parameters<typeof randomConfig>): Checkpoint {
  return checkpointOf(randomConfig(...of));
}

export function checkpointOf(config: ModelConfig, seed = 1): Checkpoint {
  return {
    name: `random ${config.family}`,
    config,
    weights: randomWeights(config, seed),
    tokenizer: tinyTokenizer(),
    parameters: 0,
    hash: `random-${config.family}-${seed}`,
    source: { kind: "safetensors", path: "" },
    generation: { eos: [] },
    file: {
      kind: "safetensors",
      tensors: new Map(),
      metadata: {},
      read: nothing,
      readRaw: nothing,
      close: async () => {},
    },
    close: async () => {},
  } as unknown as Checkpoint;
}

async function nothing(): Promise<never> {
  throw new Error("a checkpoint in memory has no file");
}

/** An engine over a random checkpoint, float32 weights and one thread unless told otherwise. */
export function engineFor(
  checkpoint: Checkpoint,
  options: {
    cache?: "float32" | "int8";
    threads?: number;
    precision?: "float32" | "int8" | "int4";
    memory?: number;
    context?: number;
  } = {},
): Promise<Engine> {
  return Engine.create(checkpoint, { threads: 1, memory: 2 ** 31, precision: "float32", cache: "float32", ...options });
}

/** Token ids without pattern, the same each time. */
export function someIds(count: number, vocab: number, seed = 1): number[] {
  let state = seed;
  return Array.from({ length: count }, () => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return (state >> 8) % vocab;
  });
}
