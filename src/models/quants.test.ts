import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { getLlama, LlamaLogLevel, type Token } from "node-llama-cpp";
import { describe, expect, test } from "vitest";
import { FoveaError } from "../error.js";
import { openGguf, writeGguf } from "./gguf.js";
import {
  byteLength,
  DTYPES,
  dequantize,
  fromHalf,
  quantize,
  readableDTypes,
  readQ4_0,
  readQ8_0,
  toBFloat16,
  toHalf,
  writeQ8_0,
} from "./quants.js";

/** A small generator of numbers that are the same in every run. */
function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

describe("float16 and bfloat16", () => {
  test("every float16 comes back", () => {
    for (let h = 0; h < 65536; h++) {
      const value = fromHalf(h);
      if (Number.isNaN(value)) expect(Number.isNaN(fromHalf(toHalf(value)))).toBe(true);
      else expect(toHalf(value)).toBe(h);
    }
    expect([fromHalf(0x3c00), fromHalf(0xc000), fromHalf(0x7bff), fromHalf(1)]).toEqual([1, -2, 65504, 2 ** -24]);
  });

  test("half way between two neighbours goes to the even one, else to the nearer", () => {
    for (let h = 0; h < 0x7bff; h++) {
      const [a, b] = [fromHalf(h), fromHalf(h + 1)];
      const middle = (a + b) / 2;
      expect(toHalf(middle)).toBe(h % 2 === 0 ? h : h + 1);
      expect(toHalf(Math.fround(middle - (b - a) / 64))).toBe(h);
      expect(toHalf(-Math.fround(middle + (b - a) / 64))).toBe((h + 1) | 0x8000);
    }
    expect([toHalf(65519.99), toHalf(65520), toHalf(1e30), toHalf(-1e30)]).toEqual([0x7bff, 0x7c00, 0x7c00, 0xfc00]);
    expect([toHalf(2 ** -25), toHalf(2 ** -25 * 1.001), toHalf(1e-30), toHalf(-0)]).toEqual([0, 1, 0, 0x8000]);
  });

  test("bfloat16 is the upper half of a float32, rounded to even", () => {
    expect([toBFloat16(1), toBFloat16(-2), toBFloat16(Number.POSITIVE_INFINITY)]).toEqual([0x3f80, 0xc000, 0x7f80]);
    expect(toBFloat16(1 + 2 ** -8)).toBe(0x3f80);
    expect(toBFloat16(1 + 3 * 2 ** -8)).toBe(0x3f82);
    expect(toBFloat16(1 + 2 ** -8 + 2 ** -20)).toBe(0x3f81);
    expect(toBFloat16(3.4028235e38)).toBe(0x7f80);
    expect(toBFloat16(Number.NaN) & 0x7fff).toBeGreaterThan(0x7f80);
    const values = Float32Array.of(1.5, -0.25, 3);
    expect(dequantize("BF16", quantize("BF16", values), 3)).toEqual(values);
  });
});

describe("blocks", () => {
  test("Q8_0: scale is the largest over 127, codes round half away from zero", () => {
    const values = new Float32Array(32);
    values.set([127, -127, 0.5, -0.5, 1.5, 2.49, -2.51]);
    const { codes, scales } = readQ8_0(quantize("Q8_0", values));
    expect([...scales]).toEqual([1]);
    expect([...codes.subarray(0, 8)]).toEqual([127, -127, 1, -1, 2, 2, -3, 0]);
    expect([...dequantize("Q8_0", quantize("Q8_0", values), 32).subarray(0, 3)]).toEqual([127, -127, 1]);
    expect(quantize("Q8_0", new Float32Array(32)).every((byte) => byte === 0)).toBe(true);
  });

  test("Q8_0: an error of at most half a step and the rounding of the scale", () => {
    const next = generator(1);
    const values = Float32Array.from({ length: 320 }, () => (next() - 0.5) * 10 ** Math.floor(next() * 6 - 3));
    const back = dequantize("Q8_0", quantize("Q8_0", values), 320);
    for (let b = 0; b < 10; b++) {
      const block = values.subarray(b * 32, b * 32 + 32);
      const largest = Math.max(...block.map(Math.abs));
      block.forEach((x, i) => {
        expect(Math.abs(back[b * 32 + i] - x)).toBeLessThanOrEqual(largest / 254 + largest * 2 ** -11 + 2 ** -18);
      });
    }
  });

  test("Q8_0 and Q4_0 come apart exactly", () => {
    const next = generator(2);
    const bytes = Uint8Array.from({ length: 340 }, () => next() * 256);
    for (let b = 0; b < 10; b++) bytes[b * 34 + 1] &= 0x3f;
    const { codes, scales } = readQ8_0(bytes);
    expect(Float32Array.from(codes, (code, i) => code * scales[i >> 5])).toEqual(dequantize("Q8_0", bytes, 320));
    expect(writeQ8_0({ codes, scales })).toEqual(bytes);
    const small = bytes.subarray(0, 36);
    small[19] &= 0x3f;
    const four = readQ4_0(small);
    expect(Float32Array.from(four.codes, (code, i) => code * four.scales[i >> 5])).toEqual(
      dequantize("Q4_0", small, 64),
    );
    expect(Math.min(...four.codes)).toBeGreaterThanOrEqual(-8);
    expect(() => readQ8_0(new Uint8Array(33))).toThrow(FoveaError);
  });

  test("by hand", () => {
    const one = [0x00, 0x3c]; // 1 as a float16
    const two = [0x00, 0x40];
    const nibbles = (first: number): number[] => [first, ...Array<number>(15).fill(0)];
    // Element 0 is the low nibble of the first byte, element 16 the high one.
    const q4 = dequantize("Q4_0", Uint8Array.from([...two, ...nibbles(0xf3)]), 32);
    expect([q4[0], q4[1], q4[16]]).toEqual([-10, -16, 14]);
    const q41 = dequantize("Q4_1", Uint8Array.from([...two, ...one, ...nibbles(0xf3)]), 32);
    expect([q41[0], q41[1], q41[16]]).toEqual([7, 1, 31]);
    // Fifth bits of elements 0 and 31.
    const high = [1, 0, 0, 0x80];
    const q5 = dequantize("Q5_0", Uint8Array.from([...one, ...high, ...nibbles(0xf3)]), 32);
    expect([q5[0], q5[1], q5[16], q5[31]]).toEqual([3, -16, -1, 0]);
    const q51 = dequantize("Q5_1", Uint8Array.from([...one, ...two, ...high, ...nibbles(0xf3)]), 32);
    expect([q51[0], q51[1], q51[16], q51[31]]).toEqual([21, 2, 17, 18]);
  });

  test("plain integers widen", () => {
    const raw = (array: ArrayBufferView): Uint8Array =>
      new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    expect([...dequantize("I8", raw(Int8Array.of(-1, 127)), 2)]).toEqual([-1, 127]);
    expect([...dequantize("I16", raw(Int16Array.of(-300)), 1)]).toEqual([-300]);
    expect([...dequantize("I32", raw(Int32Array.of(-70000)), 1)]).toEqual([-70000]);
    expect([...dequantize("I64", raw(BigInt64Array.of(-5n)), 1)]).toEqual([-5]);
    expect([...dequantize("U8", Uint8Array.of(200), 1)]).toEqual([200]);
    expect([...dequantize("U16", raw(Uint16Array.of(65535)), 1)]).toEqual([65535]);
    expect([...dequantize("U32", raw(Uint32Array.of(4e9)), 1)]).toEqual([4e9]);
    expect([...dequantize("F64", raw(Float64Array.of(0.5)), 1)]).toEqual([0.5]);
    expect([...dequantize("BOOL", Uint8Array.of(1, 0), 2)]).toEqual([1, 0]);
  });

  test("what does not fit is refused", () => {
    expect(() => dequantize("Q2_K", new Uint8Array(84), 256)).toThrow(/cannot be read/);
    expect(() => dequantize("constructor", new Uint8Array(4), 1)).toThrow(FoveaError);
    expect(() => dequantize("F32", new Uint8Array(3), 1)).toThrow(/take 4 bytes/);
    expect(() => byteLength("Q4_K", 128)).toThrow(/whole number/);
    expect(() => quantize("Q4_K", new Float32Array(256))).toThrow(/cannot write/);
  });
});

/**
 * llama.cpp as the oracle. In a model whose layer adds nothing and whose head is the identity, the logits after token i
 * are row i of the embedding, as llama.cpp dequantizes it, over its root mean square.
 */
describe("against llama.cpp", () => {
  const width = 256;
  const rows = 256;
  const next = generator(3);
  const zeros = (name: string, shape: number[]) => ({
    name,
    dtype: "F32",
    shape,
    data: new Float32Array(shape.reduce((a, b) => a * b)),
  });
  const ones = (name: string) => ({ name, dtype: "F32", shape: [width], data: new Float32Array(width).fill(1) });

  /** Blocks of random bytes whose float16 scales are small and finite. */
  function randomBlocks(dtype: string): Uint8Array {
    const { block, bytes: size } = DTYPES[dtype];
    const scales: Record<string, number[]> = { Q4_1: [0, 2], Q5_1: [0, 2], Q4_K: [0, 2], Q5_K: [0, 2], Q6_K: [208] };
    const bytes = Uint8Array.from({ length: (rows * width * size) / block }, () => next() * 256);
    if (dtype === "F32" || dtype === "F16" || dtype === "BF16")
      return quantize(
        dtype,
        Float32Array.from({ length: rows * width }, () => next() - 0.5),
      );
    else {
      for (let at = 0; at < bytes.length; at += size) {
        for (const place of scales[dtype] ?? [0]) {
          const bits = toHalf((next() - 0.3) / 16);
          bytes[at + place] = bits & 255;
          bytes[at + place + 1] = bits >> 8;
        }
      }
    }
    return bytes;
  }

  const plain = ["F64", "I8", "I16", "I32", "I64"];
  const types = readableDTypes().filter((dtype) => DTYPES[dtype].gguf !== undefined && !plain.includes(dtype));
  test("every type that can be read is covered", () => {
    expect(types.sort()).toEqual([
      "BF16",
      "F16",
      "F32",
      "Q4_0",
      "Q4_1",
      "Q4_K",
      "Q5_0",
      "Q5_1",
      "Q5_K",
      "Q6_K",
      "Q8_0",
    ]);
  });

  test.each(types)("%s", async (dtype) => {
    const folder = mkdtempSync(join(tmpdir(), "fovea-"));
    const path = join(folder, "model.gguf");
    const identity = new Float32Array(rows * width);
    for (let i = 0; i < rows; i++) identity[i * width + i] = 1;
    await writeGguf(path, {
      metadata: {
        "general.architecture": { type: "string", value: "llama" },
        "llama.context_length": { type: "u32", value: 64 },
        "llama.embedding_length": { type: "u32", value: width },
        "llama.block_count": { type: "u32", value: 1 },
        "llama.feed_forward_length": { type: "u32", value: 32 },
        "llama.attention.head_count": { type: "u32", value: 4 },
        "llama.attention.layer_norm_rms_epsilon": { type: "f32", value: 1e-12 },
        "llama.rope.dimension_count": { type: "u32", value: 64 },
        "tokenizer.ggml.model": { type: "string", value: "gpt2" },
        "tokenizer.ggml.pre": { type: "string", value: "gpt-2" },
        "tokenizer.ggml.merges": { type: "array", of: "string", value: ["t 0"] },
        "tokenizer.ggml.tokens": {
          type: "array",
          of: "string",
          value: Array.from({ length: rows }, (_, i) => `t${i}`),
        },
        "tokenizer.ggml.token_type": { type: "array", of: "i32", value: new Int32Array(rows).fill(1) },
      },
      tensors: [
        { name: "token_embd.weight", dtype, shape: [rows, width], data: randomBlocks(dtype) },
        ones("output_norm.weight"),
        { name: "output.weight", dtype: "F32", shape: [rows, width], data: identity },
        ones("blk.0.attn_norm.weight"),
        ones("blk.0.ffn_norm.weight"),
        ...["q", "k", "v", "output"].map((name) => zeros(`blk.0.attn_${name}.weight`, [width, width])),
        zeros("blk.0.ffn_gate.weight", [32, width]),
        zeros("blk.0.ffn_up.weight", [32, width]),
        zeros("blk.0.ffn_down.weight", [width, 32]),
      ],
    });
    const file = await openGguf(path);
    const ours = await file.read("token_embd.weight");
    await file.close();

    const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.disabled });
    const model = await llama.loadModel({ modelPath: path });
    const context = await model.createContext({ contextSize: 64, threads: 1 });
    const tokens = [3, 77, 255, 128] as Token[];
    const results = await context
      .getSequence()
      .controlledEvaluate(tokens.map((token) => [token, { generateNext: { logits: true } }]));
    tokens.forEach((token, i) => {
      const row = ours.subarray(token * width, (token + 1) * width);
      const size = Math.sqrt(row.reduce((sum, x) => sum + x * x, 0) / width);
      const logits = results[i]?.next.logits;
      expect(logits?.size).toBe(rows);
      for (let j = 0; j < rows; j++) expect(logits?.get(j as Token)).toBeCloseTo(row[j] / size, 4);
    });
    await llama.dispose();
    rmSync(folder, { recursive: true });
  });
});
