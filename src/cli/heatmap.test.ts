import { describe, expect, it } from "vitest";
import { cube256, heatColor, hex } from "./colors.js";
import { brightness, downsample, mostRead, type PlacedMap, svgMap, terminalMap } from "./heatmap.js";

/** A causal map whose row i reads every token up to i alike. */
function uniform(length: number, tokens?: string[]): PlacedMap {
  const data = new Float32Array(length * length);
  for (let i = 0; i < length; i++) for (let j = 0; j <= i; j++) data[i * length + j] = 1 / (i + 1);
  return {
    layer: 0,
    head: 0,
    rows: length,
    columns: length,
    firstRow: 0,
    data,
    tokens: tokens ?? Array.from({ length }, (_, i) => `t${i}`),
  };
}

describe("downsample", () => {
  it("is the map itself where it fits", () => {
    const map = uniform(3);
    const grid = downsample(map, 10, 10);
    expect([...grid.data]).toEqual([...map.data]);
    expect(grid.rowEdges).toEqual([0, 1, 2, 3]);
  });

  it("sums over columns and averages over rows", () => {
    // Rows: [1, 0, 0, 0], [1/2, 1/2, 0, 0], [1/3, 1/3, 1/3, 0], [1/4, 1/4, 1/4, 1/4].
    const grid = downsample(uniform(4), 2, 2);
    expect(grid.data[0]).toBeCloseTo(1);
    expect(grid.data[1]).toBeCloseTo(0);
    expect(grid.data[2]).toBeCloseTo((2 / 3 + 2 / 4) / 2);
    expect(grid.data[3]).toBeCloseTo((1 / 3 + 2 / 4) / 2);
  });

  it("keeps each row's sum at 1, whatever the sizes", () => {
    const grid = downsample(uniform(37), 5, 11);
    for (let i = 0; i < grid.rows; i++) {
      const sum = grid.data.subarray(i * grid.columns, (i + 1) * grid.columns).reduce((a, b) => a + b, 0);
      expect(sum).toBeCloseTo(1, 5);
    }
  });
});

describe("brightness", () => {
  it("is the square root of the share of the largest", () => {
    const grid = downsample({ rows: 1, columns: 3, data: Float32Array.of(0.8, 0.2, 0) }, 1, 3);
    const [most, some, none] = brightness(grid);
    expect(most).toBe(1);
    expect(some).toBeCloseTo(0.5);
    expect(none).toBe(0);
  });

  it("is dark for a map of nothing", () => {
    expect([...brightness(downsample({ rows: 1, columns: 2, data: new Float32Array(2) }, 1, 2))]).toEqual([0, 0]);
  });
});

describe("terminalMap", () => {
  it("draws shades without colours", () => {
    // Weights 1, 1/2 and 1/3: square roots 1, 0.71 and 0.58 of nine shades.
    const drawn = terminalMap(uniform(3, ["a", "b\n", "c"]), { width: 20, color: 0 });
    expect(drawn).toBe(["   a @@", "  b⏎ ****", "   c ++++++", ""].join("\n"));
  });

  it("fits the width, with a long text too", () => {
    for (const length of [1, 5, 70, 300]) {
      const lines = terminalMap(uniform(length), { width: 60, height: 20, color: 0 }).trimEnd().split("\n");
      expect(Math.max(...lines.map((line) => line.length))).toBeLessThanOrEqual(60);
      expect(lines.length).toBe(Math.min(length, 20));
    }
  });

  it("holds two rows in a line of colours when there are many", () => {
    const lines = terminalMap(uniform(50), { width: 80, height: 20, color: 24 }).trimEnd().split("\n");
    expect(lines.length).toBe(20);
    expect(lines[0]).toContain("▀");
    expect(lines[0].endsWith("\x1b[0m")).toBe(true);
  });
});

describe("mostRead", () => {
  it("sorts by weight and leaves out what is not read", () => {
    const map = { ...uniform(3), data: Float32Array.of(1, 0, 0, 0.3, 0.7, 0, 0.2, 0, 0.8) };
    expect(mostRead(map, 2, 5).map(({ index }) => index)).toEqual([2, 0]);
    expect(mostRead(map, 1, 1)[0]).toMatchObject({ index: 1, token: "t1" });
  });
});

describe("svgMap", () => {
  it("is well-formed and escapes the tokens", () => {
    const svg = svgMap(uniform(3, ["<a>", "&", '"\u0000']), { title: "a < b" });
    expect(svg).toContain("&lt;a&gt;");
    expect(svg).toContain("&amp;");
    expect(svg).toContain("<title>a &lt; b</title>");
    expect(svg).not.toContain("\u0000");
    const opened = svg.match(/<(?!\/)(?!\?)[a-z]+[^>]*[^/]>/g)?.length ?? 0;
    expect(opened).toBe(svg.match(/<\/[a-z]+>/g)?.length);
  });

  it("stays small for a long text", () => {
    expect(svgMap(uniform(700), { title: "long" }).length).toBeLessThan(200_000);
  });
});

describe("colours", () => {
  it("go from dark to bright", () => {
    expect(hex(heatColor(0))).toBe("#0a081e");
    expect(hex(heatColor(1))).toBe("#fcfdc8");
    expect(heatColor(Number.NaN)).toEqual(heatColor(0));
    const light = Array.from({ length: 21 }, (_, i) => heatColor(i / 20).reduce((a, b) => a + b, 0));
    for (let i = 1; i < light.length; i++) expect(light[i]).toBeGreaterThan(light[i - 1]);
  });

  it("have a place among 256", () => {
    expect(cube256([0, 0, 0])).toBe(16);
    expect(cube256([255, 255, 255])).toBe(231);
    expect(cube256([255, 0, 0])).toBe(196);
  });
});
