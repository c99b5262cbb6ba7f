import { describe, expect, it } from "vitest";
import { FoveaError } from "../error.js";
import { Fields } from "./fields.js";
import {
  alibiSlopes,
  frequencies,
  longropeAttention,
  ntkBase,
  parseScaling,
  type RotaryScaling,
  rotaryCosSin,
  rotaryTable,
  scalingJson,
  yarnAttention,
  yarnRange,
} from "./rotary.js";

const plain = (base: number, dims: number, scaling: RotaryScaling = { type: "default" }, length = 0): number[] =>
  frequencies(base, dims, scaling, length).inverse;
const ratios = (base: number, dims: number, scaling: RotaryScaling, length = 0): number[] => {
  const f = plain(base, dims);
  return plain(base, dims, scaling, length).map((x, i) => x / f[i]);
};
const parse = (json: Record<string, unknown>, maxPositions = 4096, dims = 128): RotaryScaling =>
  parseScaling(new Fields(json, "config.json: rope_scaling"), { dims, maxPositions });

describe("frequencies", () => {
  it("are base^(-2i/dims)", () => {
    expect(plain(10000, 8)).toEqual([1, 0.1, 0.01, 0.001].map((x) => expect.closeTo(x, 12)));
  });

  it("do not change at factor 1", () => {
    const same = (json: Record<string, unknown>): void => {
      for (const x of ratios(10000, 128, parse(json), 100000)) expect(x).toBeCloseTo(1, 12);
    };
    same({ rope_type: "linear", factor: 1 });
    same({ rope_type: "yarn", factor: 1 });
    same({
      rope_type: "llama3",
      factor: 1,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 8192,
    });
    for (const x of ratios(10000, 128, parse({ rope_type: "dynamic", factor: 1 }), 4096)) expect(x).toBeCloseTo(1, 12);
    expect(parse({ rope_type: "yarn", factor: 1 })).toMatchObject({ attention: 1 });
  });

  it("linear: position m is position m / s", () => {
    const table = { base: 10000, dims: 64, interleaved: false } as const;
    const scaled = rotaryCosSin(rotaryTable({ ...table, scaling: { type: "linear", factor: 4 } }, 0), [8, 20]);
    const original = rotaryCosSin(rotaryTable({ ...table, scaling: { type: "default" } }, 0), [2, 5]);
    scaled.cos.forEach((x, i) => {
      expect(Math.abs(x - original.cos[i])).toBeLessThan(1e-6);
    });
    scaled.sin.forEach((x, i) => {
      expect(Math.abs(x - original.sin[i])).toBeLessThan(1e-6);
    });
  });

  it("dynamic: the base follows the length", () => {
    const scaling = parse({ type: "dynamic", factor: 2 });
    const base = (length: number): number => plain(10000, 128, scaling, length)[1] ** -64;
    expect(base(1)).toBeCloseTo(10000, 3);
    expect(base(4096)).toBeCloseTo(10000, 3);
    expect(base(8192)).toBeCloseTo(30527.74, 1);
    expect(base(16384)).toBeCloseTo(72195.86, 1);
  });

  it("ntk: alpha 4 at dims 128 is base 40889.94", () => {
    expect(ntkBase(10000, 128, 4)).toBeCloseTo(40889.94, 2);
    expect(plain(10000, 128, { type: "ntk", alpha: 4 })[1] ** -64).toBeCloseTo(40889.94, 1);
  });

  it("yarn: range, ramp and attention factor of the sheet", () => {
    const scaling = parse({ rope_type: "yarn", factor: 4, original_max_position_embeddings: 4096 }, 16384);
    if (scaling.type !== "yarn") throw new Error("expected yarn");
    expect(yarnRange(10000, 128, { ...scaling, truncate: false }).low).toBeCloseTo(20.944, 3);
    expect(yarnRange(10000, 128, { ...scaling, truncate: false }).high).toBeCloseTo(45.027, 3);
    expect(yarnRange(10000, 128, scaling)).toEqual({ low: 20, high: 46 });
    const r = ratios(10000, 128, scaling);
    for (const [i, x] of [
      [20, 1],
      [21, 0.971154],
      [30, 0.711538],
      [40, 0.423077],
      [46, 0.25],
    ]) {
      expect(r[i]).toBeCloseTo(x, 6);
    }
    expect(scaling.attention).toBeCloseTo(1.138629, 6);
    expect(frequencies(10000, 128, scaling, 0).multiplier).toBeCloseTo(1.138629, 6);
  });

  it("yarn: attention factor from the config, from two mscales, or from the scale", () => {
    expect(parse({ rope_type: "yarn", factor: 4, attention_factor: 1.5 })).toMatchObject({ attention: 1.5 });
    const both = { rope_type: "yarn", factor: 40, mscale: 0.5, mscale_all_dim: 2 };
    expect(parse(both)).toMatchObject({ attention: yarnAttention(40, 0.5) / yarnAttention(40, 2) });
    expect(parse({ rope_type: "yarn", original_max_position_embeddings: 1024 }, 4096)).toMatchObject({ factor: 4 });
  });

  it("yarn: rotated dot products gain the attention factor squared", () => {
    const table = { base: 10000, dims: 2, interleaved: false } as const;
    const scaling = parse({ rope_type: "yarn", factor: 4 }, 16384, 2);
    if (scaling.type !== "yarn") throw new Error("expected yarn");
    const dot = (s: RotaryScaling): number => {
      const { cos, sin } = rotaryCosSin(rotaryTable({ ...table, scaling: s }, 0), [3, 11]);
      const q = [1 * cos[1] - 2 * sin[1], 2 * cos[1] + 1 * sin[1]];
      const k = [0.5 * cos[0] - 1.5 * sin[0], 1.5 * cos[0] + 0.5 * sin[0]];
      return q[0] * k[0] + q[1] * k[1];
    };
    expect(dot(scaling) / dot({ ...scaling, attention: 1 })).toBeCloseTo(scaling.attention ** 2, 5);
  });

  it("llama3: the sheet's values, whatever the length", () => {
    const scaling = parse({
      rope_type: "llama3",
      factor: 8,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 8192,
    });
    for (const length of [0, 200000]) {
      const r = ratios(500000, 128, scaling, length);
      for (let i = 0; i <= 28; i++) expect(r[i]).toBe(1);
      [0.82817, 0.64374, 0.49351, 0.37112, 0.27143, 0.19021].forEach((x, i) => {
        expect(r[29 + i]).toBeCloseTo(x, 5);
      });
      for (let i = 35; i < 64; i++) expect(r[i]).toBeCloseTo(0.125, 12);
    }
  });

  it("longrope: one list up to the original length, another beyond; one attention factor", () => {
    const scaling = parse(
      { type: "su", short_factor: [1, 2], long_factor: [4, 8], original_max_position_embeddings: 4096 },
      131072,
      4,
    );
    expect(longropeAttention(32, 4096)).toBeCloseTo(1.190238, 6);
    expect(scaling).toMatchObject({ attention: expect.closeTo(1.190238, 6) });
    expect(plain(100, 4, scaling, 4096)).toEqual([1, 0.05].map((x) => expect.closeTo(x, 12)));
    expect(plain(100, 4, scaling, 4097)).toEqual([0.25, 0.0125].map((x) => expect.closeTo(x, 12)));
  });

  it("longrope: older Phi-3 configs call it yarn", () => {
    const json = { type: "yarn", short_factor: [1, 2], long_factor: [4, 8] };
    const f = new Fields(json, "rope_scaling");
    expect(parseScaling(f, { dims: 4, maxPositions: 131072, original: 4096, phi: true })).toMatchObject({
      type: "longrope",
      original: 4096,
    });
  });

  it("proportional: the exponent runs over the whole head, the rest stands still", () => {
    const scaling = parse({ rope_type: "proportional", factor: 2, partial_rotary_factor: 0.5 }, 4096, 8);
    expect(plain(10000, 8, scaling)).toEqual([0.5, 0.05, 0, 0].map((x) => expect.closeTo(x, 12)));
  });

  it("local layers have their own base and no scaling", () => {
    const rotary = {
      base: 1e6,
      dims: 4,
      interleaved: false,
      scaling: { type: "linear", factor: 8 },
      localBase: 10000,
      localLayers: [true, false],
    } as const;
    expect(rotaryTable(rotary, 0).inverse[1]).toBeCloseTo(0.01, 8);
    expect(rotaryTable(rotary, 1).inverse[1]).toBeCloseTo(0.001 / 8, 10);
  });
});

describe("parseScaling", () => {
  it("takes what scalingJson writes", () => {
    const list: RotaryScaling[] = [
      { type: "linear", factor: 8 },
      { type: "dynamic", factor: 2, original: 4096 },
      parse({ rope_type: "yarn", factor: 4, truncate: false, beta_fast: 16 }),
      parse({
        rope_type: "llama3",
        factor: 8,
        low_freq_factor: 1,
        high_freq_factor: 4,
        original_max_position_embeddings: 8192,
      }),
      parse({ rope_type: "longrope", short_factor: [1, 2], long_factor: [3, 4], factor: 16 }, 4096, 4),
      { type: "proportional", factor: 2, pairs: 1 },
    ];
    for (const scaling of list) expect(parse(scalingJson(scaling, 4) ?? {}, 4096, 4)).toEqual(scaling);
  });

  it.each([
    [{ rope_type: "spiral" }, /spiral/],
    [{ rope_type: "linear" }, /factor is missing/],
    [{ rope_type: "linear", factor: 0 }, /factor is number "0"/],
    [{ rope_type: "linear", factor: "8" }, /factor is string "8"/],
    [
      { rope_type: "longrope", short_factor: [1], long_factor: [1] },
      /short_factor is a list of 1; expected a list of 64/,
    ],
    [{ rope_type: "llama3", factor: 8, low_freq_factor: 4, high_freq_factor: 1 }, /high_freq_factor/],
    [{ rope_type: 7 }, /rope_type/],
  ])("refuses %j", (json, message) => {
    expect(() => parse(json)).toThrow(FoveaError);
    expect(() => parse(json)).toThrow(message);
  });
});

describe("alibiSlopes", () => {
  it("halve for 8 heads: distance 3 costs head 0 1.5", () => {
    const slopes = alibiSlopes(8);
    slopes.forEach((slope, h) => {
      expect(slope).toBeCloseTo(2 ** -(h + 1), 12);
    });
    expect(3 * slopes[0]).toBeCloseTo(1.5, 12);
  });

  it("follow BLOOM's rule for 12 heads", () => {
    const slopes = Array.from(alibiSlopes(12));
    expect(slopes.slice(0, 8)).toEqual(Array.from(alibiSlopes(8)));
    expect(slopes.slice(8)).toEqual([Math.SQRT1_2, 0.353553, 0.176777, 0.088388].map((x) => expect.closeTo(x, 6)));
  });
});
