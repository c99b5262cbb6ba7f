import { boundMechanism, type ModelConfig } from "./config.js";
import { FAMILIES, type TensorNames, type TensorRow } from "./families.js";

/** A weight under its canonical name, as the model's graph asks for it. Matrices are [out, in]. */
export interface CanonicalTensor {
  readonly name: string;
  readonly shape: readonly number[];
  /** A gain of an RMS or layer norm. */
  readonly norm: boolean;
}

/** Where a canonical tensor lies in a file's tensor: its row r is the file's row `row(r)`. */
export interface TensorPart {
  readonly name: string;
  readonly shape: readonly number[];
  readonly row: (r: number) => number;
  /** True when the rows of the part follow one another in the file. */
  readonly contiguous: boolean;
}

/** One tensor of a checkpoint file, and the canonical tensors in it. */
export interface FileTensor {
  /** Name when writing; `names` are those under which reading looks for it, this one first. */
  readonly name: string;
  readonly names: readonly string[];
  /** Shape in the file, row-major. */
  readonly shape: readonly number[];
  /** The file holds the transpose: [in, out]. */
  readonly transposed: boolean;
  /** The file's values are the canonical ones plus this. */
  readonly shift: number;
  readonly parts: readonly TensorPart[];
}

/** Every weight of a model, in the order of the data's way: names and shapes. */
export function canonicalTensors(config: ModelConfig): CanonicalTensor[] {
  const { width: d, heads, kvHeads, headDim, mlpWidth, vocab, attention } = config;
  const list: CanonicalTensor[] = [];
  const add = (name: string, shape: readonly number[], bias = false, norm = false): void => {
    list.push({ name, shape, norm });
    if (bias) list.push({ name: `${name}.bias`, shape: [shape[0]], norm: false });
  };
  const norm = (name: string, size = d): void => add(name, [size], config.norm === "layer", true);
  add("embed", [vocab, d]);
  if (config.learnedPositions) add("embed_positions", [config.maxPositions + config.learnedPositions.offset, d]);
  const [q, kv] = [heads * headDim, kvHeads * headDim];
  const mechanism = boundMechanism(config);
  for (let l = 0; l < config.layers; l++) {
    const at = `layers.${l}.`;
    if (config.blockNorms !== "post") norm(`${at}attn_norm`);
    add(`${at}q`, [q, d], attention.biasQKV);
    add(`${at}k`, [kv, d], attention.biasQKV);
    add(`${at}v`, [kv, d], attention.biasQKV);
    if (attention.qkNorm !== "none") {
      const whole = attention.qkNorm === "full";
      add(`${at}q_norm`, [whole ? q : headDim], false, true);
      add(`${at}k_norm`, [whole ? kv : headDim], false, true);
    }
    for (const [name, { shape }] of Object.entries(mechanism?.weights ?? {})) add(`${at}mechanism.${name}`, shape);
    add(`${at}o`, [d, q], attention.biasO);
    if (config.blockNorms !== "pre") norm(`${at}post_attn_norm`);
    if (config.blockNorms !== "post") norm(`${at}mlp_norm`);
    if (config.gated) add(`${at}gate`, [mlpWidth, d], config.mlpBias);
    add(`${at}up`, [mlpWidth, d], config.mlpBias);
    add(`${at}down`, [d, mlpWidth], config.mlpBias);
    if (config.blockNorms !== "pre") norm(`${at}post_mlp_norm`);
  }
  norm("norm");
  if (!config.tiedEmbeddings) add("head", [vocab, d]);
  return list;
}

/**
 * The tensors of a checkpoint file of this model: each with its name, its layout and the canonical tensors that it
 * holds. Reading gathers rows, writing scatters them, so this one list serves both ways.
 * @param format "hf" for safetensors under the names of Hugging Face's library, "gguf" for llama.cpp's
 */
export function fileTensors(config: ModelConfig, format: "hf" | "gguf"): FileTensor[] {
  const family = FAMILIES[config.family];
  const names = format === "hf" ? family.hf : (family.ggufTensors ?? family.hf);
  const canonical = new Map(canonicalTensors(config).map((tensor) => [tensor.name, tensor]));
  const list: FileTensor[] = [];
  const push = (row: TensorRow, before: readonly string[], layer: string): void => {
    for (const [suffix, bias] of [
      [".weight", ""],
      [".bias", ".bias"],
    ]) {
      const parts = row.parts
        .map((part) => canonical.get(`${layer}${part}${bias}`))
        .filter((part) => part !== undefined);
      if (parts.length > 0)
        list.push(
          fileTensor(
            config,
            names,
            row,
            parts,
            before.map((p) => `${p}${row.stem}${suffix}`),
          ),
        );
    }
  };
  for (const row of names.model) push(row, names.prefixes, "");
  const own = Object.keys(boundMechanism(config)?.weights ?? {}).map((name) => `mechanism.${name}`);
  for (let l = 0; l < config.layers; l++) {
    const place = names.layer.replace("{l}", String(l));
    const before = names.prefixes.map((prefix) => prefix + place);
    for (const row of names.layers) push(row, before, `layers.${l}.`);
    for (const name of own) push({ stem: name, parts: [name] }, before, `layers.${l}.`);
  }
  // A multimodal checkpoint holds its head under its language model's prefix.
  for (const row of names.outside) push(row, ["", "language_model."], "");
  return list;
}

function fileTensor(
  config: ModelConfig,
  format: TensorNames,
  row: TensorRow,
  parts: readonly CanonicalTensor[],
  names: readonly string[],
): FileTensor {
  const rows = parts.reduce((sum, part) => sum + part.shape[0], 0);
  const [, columns] = parts[0].shape;
  const matrix = columns !== undefined;
  const { headDim } = config;
  let start = 0;
  const placed = parts.map((part, p): TensorPart => {
    const from = start;
    start += part.shape[0];
    if (row.split === "heads") {
      const at = (r: number): number => (Math.floor(r / headDim) * parts.length + p) * headDim + (r % headDim);
      return { name: part.name, shape: part.shape, row: at, contiguous: false };
    }
    if (row.interleaved) {
      const half = headDim / 2;
      // Canonical row (head, half j, pair i) is the file's row (head, pair i, half j).
      const at = (r: number): number => {
        const inHead = r % headDim;
        return from + (r - inHead) + 2 * (inHead % half) + Math.floor(inHead / half);
      };
      return { name: part.name, shape: part.shape, row: at, contiguous: false };
    }
    return { name: part.name, shape: part.shape, row: (r) => from + r, contiguous: true };
  });
  const transposed = row.transposed === true && matrix;
  return {
    name: names[0],
    names,
    shape: matrix ? (transposed ? [columns, rows] : [rows, columns]) : [rows],
    transposed,
    shift: parts[0].norm ? (format.normShift ?? 0) : 0,
    parts: placed,
  };
}
