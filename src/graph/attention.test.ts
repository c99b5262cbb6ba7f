import { describe, expect, test } from "vitest";
import { type AttentionOptions, attention } from "./attention.js";
import { input, type Tensor } from "./tensor.js";
import { at, evaluate, type Given, generate, largestDifference, type NDArray, randomFloats } from "./testing.js";

/** Attention as a plain loop over heads, queries and keys, in double precision. */
function loops(
  q: NDArray,
  k: NDArray,
  v: NDArray,
  options: { causal?: boolean; scale?: number; softcap?: number; window?: number; sink?: NDArray } & {
    bias?: (h: number, t: number, s: number) => number;
    visible?: (h: number, t: number, s: number) => boolean;
  },
): { heads: NDArray; pattern: NDArray } {
  const [T, Hq, D] = q.shape;
  const [S, Hkv, Dv] = v.shape;
  const weights = generate([Hq, T, S], () => 0).data as number[];
  const heads = generate([T, Hq, Dv], () => 0).data as number[];
  for (let h = 0; h < Hq; h++) {
    const group = Math.floor(h / (Hq / Hkv));
    for (let t = 0; t < T; t++) {
      const position = S - T + t;
      const logits: number[] = [];
      for (let s = 0; s < S; s++) {
        let logit = 0;
        for (let d = 0; d < D; d++) logit += at(q, t, h, d) * at(k, s, group, d);
        logit *= options.scale ?? 1 / Math.sqrt(D);
        if (options.softcap) logit = options.softcap * Math.tanh(logit / options.softcap);
        logit += options.bias?.(h, t, s) ?? 0;
        const causal = options.causal ?? true;
        const hidden = (causal && s > position) || (causal && options.window && s <= position - options.window);
        logits.push(hidden || options.visible?.(h, t, s) === false ? Number.NEGATIVE_INFINITY : logit);
      }
      const sink = options.sink ? Math.exp(at(options.sink, h)) : 0;
      const total = logits.reduce((sum, logit) => sum + Math.exp(logit), sink);
      for (let s = 0; s < S; s++) {
        const weight = Math.exp(logits[s]) / total;
        weights[(h * T + t) * S + s] = weight;
        for (let d = 0; d < Dv; d++) heads[(t * Hq + h) * Dv + d] += weight * at(v, s, group, d);
      }
    }
  }
  return { heads: { shape: [T, Hq, Dv], data: heads }, pattern: { shape: [Hq, T, S], data: weights } };
}

function floats(shape: number[], seed: number, spread = 1): NDArray {
  const count = shape.reduce((a, b) => a * b, 1);
  return { shape, data: [...randomFloats(count, seed)].map((x) => Math.fround(x * spread)) };
}

describe("the definition", () => {
  const [Hq, Hkv, D, Dv] = [6, 2, 8, 4];
  const rows: [string, number, number, AttentionOptions][] = [
    ["causal", 5, 5, {}],
    ["queries at the end of more keys", 3, 7, {}],
    ["one query", 1, 7, {}],
    ["all keys", 5, 7, { causal: false }],
    ["own scale", 5, 5, { scale: 0.9 }],
    ["soft-cap", 5, 5, { softcap: 0.8, scale: 1 }],
    ["window", 6, 8, { window: 3 }],
    ["window of one: only itself", 4, 4, { window: 1 }],
  ];
  test.each(rows)("%s: T %i, S %i", async (_, T, S, options) => {
    const [q, k, v] = [floats([T, Hq, D], 1, 2), floats([S, Hkv, D], 2, 2), floats([S, Hkv, Dv], 3)];
    const given: Given[] = [
      { shape: ["T", Hq, D], array: q },
      { shape: [T === S ? "T" : "S", Hkv, D], array: k },
      { shape: [T === S ? "T" : "S", Hkv, Dv], array: v },
    ];
    const { arrays } = await evaluate(given, (a, b, c) => {
      const { heads, pattern } = attention(a, b, c, options);
      return { heads, pattern };
    });
    const { bias: _b, mask: _m, sink: _s, ...numbers } = options;
    const expected = loops(q, k, v, numbers);
    expect(arrays.heads.shape).toEqual([T, Hq, Dv]);
    expect(largestDifference(arrays.heads.data, expected.heads.data)).toBeLessThan(1e-6);
    expect(largestDifference(arrays.pattern.data, expected.pattern.data)).toBeLessThan(1e-6);
  });

  test("bias, mask and sink, of one head or of each", async () => {
    const [T, S] = [3, 5];
    const [q, k, v] = [floats([T, Hq, D], 1), floats([S, Hkv, D], 2), floats([S, Hkv, Dv], 3)];
    const bias = floats([Hq, 1, S], 4);
    const mask = generate([T, S], (t, s) => (s === t ? 0 : 1));
    const sink = floats([Hq], 5);
    const given: Given[] = [
      { shape: ["T", Hq, D], array: q },
      { shape: ["S", Hkv, D], array: k },
      { shape: ["S", Hkv, Dv], array: v },
      { shape: [Hq, 1, "S"], array: bias },
      { shape: ["T", "S"], dtype: "bool", array: mask },
      { shape: [Hq], array: sink },
    ];
    const { arrays } = await evaluate(given, (a, b, c, d, e, f) => {
      const { heads, pattern } = attention(a, b, c, { bias: d, mask: e, sink: f });
      return { heads, pattern };
    });
    const expected = loops(q, k, v, {
      bias: (h, _, s) => at(bias, h, 0, s),
      visible: (_, t, s) => at(mask, t, s) === 1,
      sink,
    });
    expect(largestDifference(arrays.heads.data, expected.heads.data)).toBeLessThan(1e-6);
    expect(largestDifference(arrays.pattern.data, expected.pattern.data)).toBeLessThan(1e-6);
    const rowSums = arrays.pattern.data.slice(0, S).reduce((a, b) => a + b, 0);
    expect(rowSums).toBeLessThan(1);
  });

  test("heads that do not fit are refused", () => {
    const q = input("q", ["T", 6, 8]);
    const k = input("k", ["S", 4, 8]);
    expect(() => attention(q, k, k)).toThrow(/6 query heads are no multiple of 4/);
    expect(() => attention(q, input("k", ["S", 2, 4]), input("v", ["S", 2, 4]))).toThrow(/different head sizes/);
    expect(() => attention(q, input("k", ["S", 2, 8]), input("v", ["U", 2, 8]))).toThrow(/differ in number/);
  });
});

describe("the fused form against the definition", () => {
  const variants = [
    {},
    { scale: 0.3 },
    { softcap: 2, scale: 1 },
    { window: 3 },
    { window: 1 },
    { scale: 0.2, softcap: 3, window: 5 },
  ];
  for (const D of [8, 16, 24, 64, 80, 96, 128, 256]) {
    test(`head size ${D}`, async () => {
      const [T, Hq, Hkv] = [9, 6, 2];
      const widths = [Hq * D, Hkv * D, Hkv * D];
      const given = widths.map((width, i): Given => ({ shape: ["T", width], array: floats([T, width], i + 1, 2) }));
      const { arrays } = await evaluate(given, (q, k, v) => {
        const results: Record<string, Tensor> = {};
        variants.forEach((options, i) => {
          const { scale, softcap, window } = { scale: undefined, softcap: undefined, window: undefined, ...options };
          results[`fast${i}`] = q.groupQueryAttention({ k, v, heads: Hq, kvHeads: Hkv, scale, softcap, window });
          const apart = (x: Tensor, H: number): Tensor => x.reshape([0, H, D]);
          const { heads } = attention(apart(q, Hq), apart(k, Hkv), apart(v, Hkv), { scale, softcap, window });
          results[`plain${i}`] = heads.reshape([0, -1]);
        });
        return results;
      });
      variants.forEach((options, i) => {
        const difference = largestDifference(arrays[`fast${i}`].data, arrays[`plain${i}`].data);
        expect(difference, JSON.stringify(options)).toBeLessThan(1e-5);
      });
    });
  }

  test.each([1, 4])("a bias for %i heads", async (heads) => {
    const [T, Hq, D] = [7, 4, 16];
    const given: Given[] = [
      ...[1, 2, 3].map((seed) => ({ shape: ["T", Hq * D], array: floats([T, Hq * D], seed) })),
      { shape: [heads, "T", "T"], array: floats([heads, T, T], 4, 3) },
    ];
    const { arrays } = await evaluate(given, (q, k, v, bias) => {
      const apart = (x: Tensor): Tensor => x.reshape([0, Hq, D]);
      return {
        fast: q.groupQueryAttention({ k, v, heads: Hq, kvHeads: Hq, bias }),
        plain: attention(apart(q), apart(k), apart(v), { bias }).heads.reshape([0, -1]),
      };
    });
    expect(largestDifference(arrays.fast.data, arrays.plain.data)).toBeLessThan(1e-5);
  });

  test("one row, and many", async () => {
    for (const T of [1, 2, 130]) {
      const given = [1, 2, 3].map((seed): Given => ({ shape: ["T", 32], array: floats([T, 32], seed) }));
      const { arrays } = await evaluate(given, (q, k, v) => {
        const apart = (x: Tensor): Tensor => x.reshape([0, 2, 16]);
        return {
          fast: q.groupQueryAttention({ k, v, heads: 2, kvHeads: 2, window: 50 }),
          plain: attention(apart(q), apart(k), apart(v), { window: 50 }).heads.reshape([0, -1]),
        };
      });
      expect(largestDifference(arrays.fast.data, arrays.plain.data)).toBeLessThan(1e-5);
    }
  });

  test("a head size that is no multiple of 8 is refused", () => {
    const q = input("q", ["T", 24]);
    expect(() => q.groupQueryAttention({ k: q, v: q, heads: 2, kvHeads: 2 })).toThrow(/12 is no multiple of 8/);
  });
});
