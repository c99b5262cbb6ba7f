import { afterAll, describe, expect, test } from "vitest";
import { type AttentionShape, BlockAttention, type KeyBlock, UNSEEN } from "./block-attention.js";
import { FusedAttention } from "./fused-attention.js";
import { Random } from "./sampling.js";

const blocks = new BlockAttention({ threads: 1 });
const fused = new FusedAttention({ threads: 1 });
afterAll(async () => {
  await blocks.release();
  await fused.release();
});

const random = new Random(11);
const noise = (n: number) => Float32Array.from({ length: n }, () => random.next() * 4 - 2);

/** Attention by its definition, one number at a time. */
function plain(
  shape: AttentionShape,
  q: Float32Array,
  rowsAt: readonly number[],
  k: Float32Array,
  v: Float32Array,
  keysAt: readonly number[],
  options: { window?: number; bias?: (head: number, row: number, key: number) => number } = {},
) {
  const { heads, kvHeads, keyDim, valueDim, scale, softcap } = shape;
  const output = new Float32Array(rowsAt.length * heads * valueDim);
  const lse = new Float32Array(rowsAt.length * heads);
  rowsAt.forEach((at, r) => {
    for (let h = 0; h < heads; h++) {
      const g = Math.floor(h / (heads / kvHeads));
      const logits = keysAt.map((key, i) => {
        const distance = at - key;
        if (distance < 0 || distance >= Math.min(options.window ?? UNSEEN, shape.window ?? UNSEEN))
          return Number.NEGATIVE_INFINITY;
        let dot = 0;
        for (let d = 0; d < keyDim; d++) dot += q[(r * heads + h) * keyDim + d] * k[(i * kvHeads + g) * keyDim + d];
        dot *= scale;
        if (softcap) dot = softcap * Math.tanh(dot / softcap);
        return dot + (options.bias?.(h, r, i) ?? 0);
      });
      const max = Math.max(...logits);
      let sum = 0;
      for (const x of logits) sum += max === Number.NEGATIVE_INFINITY ? 0 : Math.exp(x - max);
      lse[r * heads + h] = sum === 0 ? Number.NEGATIVE_INFINITY : max + Math.log(sum);
      if (sum > 0)
        logits.forEach((x, i) => {
          for (let d = 0; d < valueDim; d++)
            output[(r * heads + h) * valueDim + d] += (Math.exp(x - max) / sum) * v[(i * kvHeads + g) * valueDim + d];
        });
    }
  });
  return { output, lse };
}

function close(a: Float32Array, b: Float32Array, tolerance = 1e-4) {
  expect(a.length).toBe(b.length);
  for (let i = 0; i < a.length; i++) {
    if (b[i] === Number.NEGATIVE_INFINITY) expect(a[i]).toBe(b[i]);
    else if (Math.abs(a[i] - b[i]) > tolerance) throw new Error(`${a[i]} at ${i}; expected ${b[i]}`);
  }
}

const shapes: Record<string, AttentionShape> = {
  "one group": { heads: 4, kvHeads: 4, keyDim: 8, valueDim: 8, scale: 0.35 },
  "three to one, capped": { heads: 6, kvHeads: 2, keyDim: 16, valueDim: 16, scale: 0.25, softcap: 3 },
  windowed: { heads: 2, kvHeads: 1, keyDim: 8, valueDim: 8, scale: 0.3, window: 4 },
};

describe.each(Object.entries(shapes))("%s", (_name, shape) => {
  const n = 13;
  const keysAt = Array.from({ length: n }, (_, i) => i);
  const k = noise(n * shape.kvHeads * shape.keyDim);
  const v = noise(n * shape.kvHeads * shape.valueDim);
  const q = noise(n * shape.heads * shape.keyDim);
  const kb: KeyBlock = { data: k, keys: n, layout: "tokens" };
  const vb: KeyBlock = { data: v, keys: n, layout: "tokens" };
  const at = Float32Array.from(keysAt);

  test("a causal block is attention by its definition, and the fused operator agrees", async () => {
    const expected = plain(shape, q, keysAt, k, v, keysAt);
    const found = await blocks.attend(shape, { q, rows: n, rowPositions: at, keyPositions: at }, kb, vb);
    close(found.output, expected.output);
    close(found.lse, expected.lse);
    const out = new Float32Array(expected.output.length);
    await fused.run(shape, q, k, v, n, out);
    close(out, expected.output, 2e-4);
  });

  test("biases per head, per group and per row; windows; rows that see nothing", async () => {
    for (const [heads, rows] of [
      [1, 1],
      [shape.kvHeads, 1],
      [shape.heads, n],
    ]) {
      const data = noise(heads * rows * n);
      const group = shape.heads / heads;
      const bias = (h: number, r: number, i: number) =>
        data[(Math.floor(h / group) * rows + (rows === 1 ? 0 : r)) * n + i];
      const shifted = keysAt.map((i) => i + 2); // the first two rows stand before every key
      const expected = plain(shape, q, keysAt, k, v, shifted, { window: 5, bias });
      const found = await blocks.attend(
        shape,
        {
          q,
          rows: n,
          rowPositions: at,
          keyPositions: Float32Array.from(shifted),
          window: 5,
          bias: { data, heads, rows },
        },
        kb,
        vb,
      );
      close(found.output, expected.output);
      close(found.lse, expected.lse);
      expect(found.lse[0]).toBe(Number.NEGATIVE_INFINITY);
    }
  });

  test("logits, softmax and sum are attend in three steps", async () => {
    const query = { q, rows: n, rowPositions: at, keyPositions: at };
    const logits = await blocks.logits(shape, query, kb);
    for (let r = 0; r < shape.heads * n; r++) {
      const row = logits.subarray(r * n, (r + 1) * n);
      const max = Math.max(...row);
      const sum = row.reduce((s, x) => s + Math.exp(x - max), 0);
      row.forEach((x, i) => {
        row[i] = Math.exp(x - max) / sum;
      });
    }
    const expected = plain(shape, q, keysAt, k, v, keysAt);
    close(await blocks.sum(shape, logits, n, vb), expected.output);
  });
});
