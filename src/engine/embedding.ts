import { FoveaError } from "../error.js";
import { halvesToFloats, type WeightSource, type WeightValue } from "../graph/index.js";
import type { ModelConfig } from "../models/index.js";

/**
 * The residual stream entering layer 0, looked up row by row where the table lies: float32, float16 or Q8_0 codes. No
 * second copy of the embedding table is made.
 */
export class Embedding {
  readonly #config: ModelConfig;
  readonly #table: WeightValue;
  readonly #positions: WeightValue | undefined;

  private constructor(config: ModelConfig, table: WeightValue, positions?: WeightValue) {
    this.#config = config;
    this.#table = table;
    this.#positions = positions;
  }

  static async create(config: ModelConfig, weights: WeightSource): Promise<Embedding> {
    const names = config.learnedPositions ? ["embed", "embed_positions"] : ["embed"];
    await weights.prefetch?.(names);
    return new Embedding(
      config,
      weights.get("embed"),
      config.learnedPositions ? weights.get("embed_positions") : undefined,
    );
  }

  /** Rows [T, d] for token ids at absolute positions. Throws bad-input for ids outside the vocabulary. */
  rows(ids: ArrayLike<number>, positions: ArrayLike<number>): Float32Array {
    const { width, vocab, embeddingScale, learnedPositions } = this.#config;
    const out = new Float32Array(ids.length * width);
    for (let t = 0; t < ids.length; t++) {
      const id = ids[t];
      if (!Number.isInteger(id) || id < 0 || id >= vocab)
        throw new FoveaError("bad-input", `token id ${id} at place ${t} is outside the vocabulary of ${vocab}`);
      const row = out.subarray(t * width, (t + 1) * width);
      addRow(this.#table, id, embeddingScale, row);
      if (this.#positions && learnedPositions) {
        const at = positions[t] + learnedPositions.offset;
        if (at >= this.#positions.shape[0])
          throw new FoveaError(
            "too-large",
            `position ${positions[t]} is beyond the model's ${this.#positions.shape[0] - learnedPositions.offset} learned positions`,
          );
        addRow(this.#positions, at, 1, row);
      }
    }
    return out;
  }
}

function addRow(table: WeightValue, index: number, scale: number, out: Float32Array): void {
  const width = out.length;
  if (table.kind === "float") {
    const at = index * width;
    if (table.data instanceof Float32Array) for (let i = 0; i < width; i++) out[i] += table.data[at + i] * scale;
    else {
      const row = halvesToFloats(table.data.subarray(at, at + width));
      for (let i = 0; i < width; i++) out[i] += row[i] * scale;
    }
    return;
  }
  const blocks = Math.ceil(width / 32);
  if (table.kind === "q8_0") {
    const at = index * blocks * 32;
    for (let i = 0; i < width; i++) out[i] += table.codes[at + i] * table.scales[index * blocks + (i >> 5)] * scale;
    return;
  }
  const at = index * blocks * 16;
  for (let i = 0; i < width; i++) {
    const byte = table.codes[at + (i >> 1)];
    const code = i & 1 ? byte >> 4 : byte & 15;
    const block = index * blocks + (i >> 5);
    const value = table.mins ? code * table.scales[block] + table.mins[block] : (code - 8) * table.scales[block];
    out[i] += value * scale;
  }
}
