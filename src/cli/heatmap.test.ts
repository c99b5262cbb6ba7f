import { describe, expect, it } from "vitest";
import { cube256, heatColor, hex } from "./colors.js";
import { brightness, downsample, type HeatMap, mostRead, svgMap, terminalMap } from "./heatmap.js";
import { mapReducer } from "./map-reducer.js";

/** A causal map whose row i reads every token up to i alike. */
function uniform(length: number): HeatMap {
  const data = new Float32Array(length * length);
  for (let i = 0; i < length; i++) for (let j = 0; j <= i; j++) data[i * length + j] = 1 / (i + 1);
  return toMap(length, length, data);
}

function toMap(rows: number, columns: number, data: Float32Array): HeatMap {
  const edges = (length: number): number[] => Array.from({ length: length + 1 }, (_, i) => i);
  return { rows, columns, data, rowEdges: edges(rows), columnEdges: edges(columns) };
}

const names = (length: number): string[] => Array.from({ length }, (_, i) => `t${i}`);

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

  it("gives the same in two steps as in one", () => {
    const once = downsample(uniform(64), 4, 8);
    const twice = downsample(downsample(uniform(64), 16, 32), 4, 8);
    for (const [i, value] of twice.data.entries()) expect(value).toBeCloseTo(once.data[i], 5);
    expect(twice.rowEdges).toEqual(once.rowEdges);
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
    const grid = toMap(1, 3, Float32Array.of(0.8, 0.2, 0));
    const [most, some, none] = brightness(grid);
    expect(most).toBe(1);
    expect(some).toBeCloseTo(0.5);
    expect(none).toBe(0);
  });

  it("is dark for a map of nothing", () => {
    expect([...brightness(toMap(1, 2, new Float32Array(2)))]).toEqual([0, 0]);
  });
});

describe("terminalMap", () => {
  it("draws shades without colours", () => {
    // Weights 1, 1/2 and 1/3: square roots 1, 0.71 and 0.58 of nine shades.
    const drawn = terminalMap(uniform(3), { tokens: ["a", "b\n", "c"], width: 20, color: 0 });
    expect(drawn).toBe(["   a @@", "  b⏎ ****", "   c ++++++", ""].join("\n"));
  });

  it("fits the width, with a long text too", () => {
    for (const length of [1, 5, 70, 300]) {
      const lines = terminalMap(uniform(length), { tokens: names(length), width: 60, height: 20, color: 0 })
        .trimEnd()
        .split("\n");
      expect(Math.max(...lines.map((line) => line.length))).toBeLessThanOrEqual(60);
      expect(lines.length).toBe(Math.min(length, 20));
    }
  });

  it("holds two rows in a line of colours when there are many", () => {
    const lines = terminalMap(uniform(50), { tokens: names(50), width: 80, height: 20, color: 24 })
      .trimEnd()
      .split("\n");
    expect(lines.length).toBe(20);
    expect(lines[0]).toContain("▀");
    expect(lines[0].endsWith("\x1b[0m")).toBe(true);
  });
});

describe("mostRead", () => {
  it("sorts by weight and leaves out what is not read", () => {
    expect(mostRead(Float32Array.of(0.25, 0, 0.75), 5)).toEqual([
      { index: 2, weight: 0.75 },
      { index: 0, weight: 0.25 },
    ]);
    expect(mostRead(Float32Array.of(0.25, 0, 0.75), 1)).toHaveLength(1);
  });
});

describe("svgMap", () => {
  it("is well-formed and escapes the tokens", () => {
    const svg = svgMap(uniform(3), { tokens: ["<a>", "&", '"\u0000'], title: "a < b" });
    expect(svg).toContain("&lt;a&gt;");
    expect(svg).toContain("&amp;");
    expect(svg).toContain("<title>a &lt; b</title>");
    expect(svg).not.toContain("\u0000");
    const opened = svg.match(/<(?!\/)(?!\?)[a-z]+[^>]*[^/]>/g)?.length ?? 0;
    expect(opened).toBe(svg.match(/<\/[a-z]+>/g)?.length);
  });

  it("stays small for a long text", () => {
    expect(svgMap(uniform(700), { tokens: names(700), title: "long" }).length).toBeLessThan(200_000);
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

describe("mapReducer", () => {
  const shape = {
    layers: 2,
    width: 8,
    heads: 2,
    kvHeads: 1,
    headDim: 4,
    mlpWidth: 8,
    vocab: 16,
    maxPositions: 16,
    hash: "",
    rotary: true,
  };

  /** Feeds blocks of two rows of a causal map: head 0 uniform, head 1 reads the token itself. */
  function feed(tokens: number, options: Parameters<typeof mapReducer>[0]) {
    const run = mapReducer(options).start(shape, tokens);
    for (let first = 0; first < tokens; first += 2) {
      const rows = Math.min(2, tokens - first);
      const keys = first + rows;
      const data = new Float32Array(2 * rows * keys);
      for (let i = 0; i < rows; i++) {
        for (let j = 0; j <= first + i; j++) data[i * keys + j] = 1 / (first + i + 1);
        data[(rows + i) * keys + first + i] = 1;
      }
      run.observe({
        layer: options.layer,
        phase: "prompt",
        rows,
        positions: Int32Array.from({ length: rows }, (_, i) => first + i),
        firstRow: first,
        totalRows: tokens,
        model: shape,
        state: undefined,
        weights: { data, heads: 2, rows, keys },
        keyPositions: () => Int32Array.from({ length: keys }, (_, j) => j),
      });
    }
    return run.finish();
  }

  it("is the map of the head", () => {
    expect([...feed(5, { layer: 1, head: 0, cells: 100 }).data]).toEqual([...uniform(5).data]);
  });

  it("averages the heads", () => {
    const { data, last } = feed(4, { layer: 1, head: "mean", cells: 100 });
    expect(data[3 * 4]).toBeCloseTo(1 / 8);
    expect(data[3 * 4 + 3]).toBeCloseTo(1 / 8 + 1 / 2);
    expect([...last].map((x) => x.toFixed(3))).toEqual(["0.125", "0.125", "0.125", "0.625"]);
  });

  it("pools what does not fit, as downsampling would", () => {
    const small = feed(9, { layer: 0, head: 0, cells: 4 });
    const whole = downsample(uniform(9), 4, 4);
    expect(small.rowEdges).toEqual(whole.rowEdges);
    for (const [i, value] of whole.data.entries()) expect(small.data[i]).toBeCloseTo(value, 5);
  });

  it("takes some rows only", () => {
    const map = feed(6, { layer: 0, head: 1, rows: [2, 4], cells: 100 });
    expect([map.rows, map.columns]).toEqual([2, 6]);
    expect([...map.data]).toEqual([0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
    expect([...map.last]).toEqual([0, 0, 0, 1, 0, 0]);
  });
});
