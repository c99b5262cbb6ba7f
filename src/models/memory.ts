import { FoveaError } from "../error.js";

/** What a mechanism may read beside the text: rows of numbers, say an encoder's outputs. It belongs to a sequence. */
export interface Memory {
  /** [rows, m]: m is the width that the model's mechanism declares. */
  readonly data: Float32Array;
  /** At least 1. */
  readonly rows: number;
}

/** Who reads: a mechanism's name, and the width of a memory's rows where it reads one. */
export interface MemoryReader {
  readonly name: string;
  readonly memory?: number | undefined;
}

/**
 * Checks that a model gets the memory that it reads, and no other.
 *
 * @param batch sequences that `data` holds a memory for, one after the other: [batch, rows, m]. Default 1
 * @throws FoveaError `bad-input` where it is missing, where nothing reads it and where it is no Float32Array; `bad-shape`
 *   for another number of values
 */
export function checkMemory(reader: MemoryReader | undefined, memory: Memory | undefined, batch = 1): void {
  const width = reader?.memory;
  if (width === undefined) {
    if (memory === undefined) return;
    throw new FoveaError("bad-input", `a memory was given, and ${reader?.name ?? "the model's attention"} reads none`, {
      hint: "leave it out, or use a model whose mechanism declares a memory",
    });
  }
  const wanted = `${batch > 1 ? `${batch} times ` : ""}rows of ${width} numbers`;
  if (memory === undefined)
    throw new FoveaError("bad-input", `${reader?.name} reads a memory, and none was given`, {
      hint: `give { memory: { data, rows } } to read, generate, score or logits: ${wanted}; a batch of training brings it in \`extras\``,
    });
  const { data, rows } = memory;
  if (!(data instanceof Float32Array))
    throw new FoveaError("bad-input", "a memory's data is no Float32Array", { hint: `expected ${wanted}` });
  if (!Number.isInteger(rows) || rows < 1 || data.length !== batch * rows * width)
    throw new FoveaError("bad-shape", `${data.length} numbers are no memory of ${rows} rows`, {
      hint: `${reader?.name} reads ${wanted}`,
    });
}
