/**
 * Writes a Llama of 135M parameters (30 layers, width 576, 9 query and 3 key-value heads of 64, MLP 1536, vocabulary
 * 49152, tied embeddings) with random Q8_0 weights as a GGUF file: what speed is measured on.
 *
 *   node scripts/run.mjs scripts/make-bench-model.ts [out/bench-135m.gguf]
 */
import { mkdir } from "node:fs/promises";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { type GgufValue, writeGguf } from "../src/models/gguf.js";
import { BYTE_CHARACTERS } from "../src/models/index.js";
import type { TensorToWrite } from "../src/models/tensor-file.js";

const SHAPE = { layers: 30, width: 576, heads: 9, kvHeads: 3, headDim: 64, mlp: 1536, vocab: 49152, positions: 65536 };
const ROW_BLOCK = 32;

/** Standard deviation of the weights: attention and output are far from uniform and far from one-hot. */
const SPREAD = 0.04;

let state = 12345;
function next(): number {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return state;
}

/** Random Q8_0 blocks: a half-precision scale and 32 uniform codes. */
function randomQ8(shape: readonly [number, number]): Uint8Array {
  const blocks = (shape[0] * shape[1]) / ROW_BLOCK;
  const bytes = new Uint8Array(blocks * (ROW_BLOCK + 2));
  const scale = halfBits((SPREAD * Math.sqrt(3)) / 127);
  for (let b = 0; b < blocks; b++) {
    const at = b * (ROW_BLOCK + 2);
    bytes[at] = scale & 255;
    bytes[at + 1] = scale >> 8;
    for (let i = 0; i < ROW_BLOCK; i += 4) {
      const bits = next();
      // -128 is no code of Q8_0.
      for (let j = 0; j < 4; j++) bytes[at + 2 + i + j] = Math.max(1, (bits >>> (8 * j)) & 255) ^ 128;
    }
  }
  return bytes;
}

/** The bits of a positive normal float16. */
function halfBits(value: number): number {
  const exponent = Math.floor(Math.log2(value));
  return ((exponent + 15) << 10) + Math.round((value / 2 ** exponent - 1) * 1024);
}

function matrix(name: string, rows: number, columns: number): TensorToWrite {
  return { name, dtype: "Q8_0", shape: [rows, columns], data: () => randomQ8([rows, columns]) };
}

function ones(name: string): TensorToWrite {
  return { name, dtype: "F32", shape: [SHAPE.width], data: new Float32Array(SHAPE.width).fill(1) };
}

function tensors(): TensorToWrite[] {
  const { layers, width, heads, kvHeads, headDim, mlp, vocab } = SHAPE;
  const blocks = Array.from({ length: layers }, (_, l) => [
    ones(`blk.${l}.attn_norm.weight`),
    matrix(`blk.${l}.attn_q.weight`, heads * headDim, width),
    matrix(`blk.${l}.attn_k.weight`, kvHeads * headDim, width),
    matrix(`blk.${l}.attn_v.weight`, kvHeads * headDim, width),
    matrix(`blk.${l}.attn_output.weight`, width, heads * headDim),
    ones(`blk.${l}.ffn_norm.weight`),
    matrix(`blk.${l}.ffn_gate.weight`, mlp, width),
    matrix(`blk.${l}.ffn_up.weight`, mlp, width),
    matrix(`blk.${l}.ffn_down.weight`, width, mlp),
  ]).flat();
  return [matrix("token_embd.weight", vocab, width), ones("output_norm.weight"), ...blocks];
}

function metadata(): Record<string, GgufValue> {
  const { layers, width, heads, kvHeads, headDim, mlp, vocab, positions } = SHAPE;
  const u32 = (value: number): GgufValue => ({ type: "u32", value });
  const text = (value: string): GgufValue => ({ type: "string", value });
  const letters = BYTE_CHARACTERS;
  const tokens = Array.from({ length: vocab }, (_, i) => letters[i] ?? `<unused-${i}>`);
  return {
    "general.architecture": text("llama"),
    "general.name": text("bench-135m"),
    "llama.block_count": u32(layers),
    "llama.context_length": u32(positions),
    "llama.embedding_length": u32(width),
    "llama.feed_forward_length": u32(mlp),
    "llama.attention.head_count": u32(heads),
    "llama.attention.head_count_kv": u32(kvHeads),
    "llama.attention.layer_norm_rms_epsilon": { type: "f32", value: 1e-5 },
    "llama.rope.dimension_count": u32(headDim),
    "llama.rope.freq_base": { type: "f32", value: 10000 },
    "llama.vocab_size": u32(vocab),
    "tokenizer.ggml.model": text("gpt2"),
    "tokenizer.ggml.pre": text("gpt-2"),
    "tokenizer.ggml.tokens": { type: "array", of: "string", value: tokens },
    "tokenizer.ggml.token_type": { type: "array", of: "i32", value: tokens.map((_, i) => (i < 256 ? 1 : 5)) },
    "tokenizer.ggml.merges": { type: "array", of: "string", value: [] },
    "tokenizer.ggml.bos_token_id": u32(vocab - 2),
    "tokenizer.ggml.eos_token_id": u32(vocab - 1),
    "tokenizer.ggml.add_bos_token": { type: "bool", value: false },
  };
}

const out = process.argv[2] ?? fileURLToPath(new URL("../out/bench-135m.gguf", import.meta.url));
await mkdir(dirname(out), { recursive: true });
await writeGguf(out, { metadata: metadata(), tensors: tensors() });
console.log(`wrote ${out}`);
