import { heatColor, hex, paint, RESET } from "./colors.js";
import { clip, visible } from "./format.js";
import type { ColorDepth } from "./io.js";

/** Attention weights as a picture: each cell stands for a run of reading tokens and a run of tokens read. */
export interface HeatMap {
  readonly rows: number;
  readonly columns: number;
  /** [rows, columns]: the share of its attention that a token of the cell's rows gives to the cell's columns, averaged. */
  readonly data: Float32Array;
  /** [rows + 1] The token at which each row of cells begins, and where the last one ends. */
  readonly rowEdges: readonly number[];
  /** [columns + 1] */
  readonly columnEdges: readonly number[];
}

/** The numbers at which `most` cells of about equal size begin and end in [from, to). */
export function cellEdges(from: number, to: number, most: number): number[] {
  const cells = Math.max(1, Math.min(to - from, Math.floor(most)));
  return Array.from({ length: cells + 1 }, (_, i) => from + Math.round((i * (to - from)) / cells));
}

/** Makes a map at most `rows` by `columns`: sums over columns, means over rows, so that every row still sums to 1. */
export function downsample(map: HeatMap, rows: number, columns: number): HeatMap {
  const rowCells = cellEdges(0, map.rows, rows);
  const columnCells = cellEdges(0, map.columns, columns);
  const [height, width] = [rowCells.length - 1, columnCells.length - 1];
  const data = new Float32Array(height * width);
  const edge = (i: number): number => map.rowEdges[i];
  for (let i = 0; i < height; i++) {
    const all = edge(rowCells[i + 1]) - edge(rowCells[i]);
    for (let row = rowCells[i]; row < rowCells[i + 1]; row++) {
      const share = (edge(row + 1) - edge(row)) / all;
      for (let j = 0; j < width; j++) {
        let sum = 0;
        for (let c = columnCells[j]; c < columnCells[j + 1]; c++) sum += map.data[row * map.columns + c];
        data[i * width + j] += sum * share;
      }
    }
  }
  const rowEdges = rowCells.map((cell) => map.rowEdges[cell]);
  const columnEdges = columnCells.map((cell) => map.columnEdges[cell]);
  return { rows: height, columns: width, data, rowEdges, columnEdges };
}

/** Brightness of a cell, 0 to 1: the square root shows small weights that a linear scale would hide. */
export function brightness({ data }: HeatMap): Float32Array {
  let most = 0;
  for (const value of data) if (value > most) most = value;
  return data.map((value) => (most > 0 && value > 0 ? Math.sqrt(value / most) : 0));
}

const SHADES = " .:-=+*#%@";

interface TerminalOptions {
  /** Text of every token. */
  readonly tokens: readonly string[];
  readonly width: number;
  readonly height?: number;
  readonly color: ColorDepth;
}

/**
 * The map as lines of text: rows are the reading tokens, columns the tokens read. With colours one character holds two
 * rows (an upper half block), without them one shade per cell.
 */
export function terminalMap(map: HeatMap, { tokens, width, height = 40, color }: TerminalOptions): string {
  const labelWidth = Math.min(16, Math.max(4, Math.floor(width / 5)));
  const cellWidth = Math.max(1, Math.min(2, Math.floor((width - labelWidth - 1) / map.columns)));
  const perLine = color === 0 || map.rows <= height ? 1 : 2;
  const grid = downsample(map, height * perLine, Math.floor((width - labelWidth - 1) / cellWidth));
  const light = brightness(grid);
  const at = (i: number, j: number): number => (i < grid.rows ? light[i * grid.columns + j] : 0);
  const lines: string[] = [];
  for (let i = 0; i < grid.rows; i += perLine) {
    let line = "";
    for (let j = 0; j < grid.columns; j++) {
      if (color === 0) {
        line += SHADES[Math.round(at(i, j) * (SHADES.length - 1))].repeat(cellWidth);
      } else if (perLine === 1) {
        line += `${paint(heatColor(at(i, j)), 48, color)}${" ".repeat(cellWidth)}`;
      } else {
        const [upper, lower] = [heatColor(at(i, j)), heatColor(at(i + 1, j))];
        line += `${paint(upper, 38, color)}${paint(lower, 48, color)}${"▀".repeat(cellWidth)}`;
      }
    }
    const label = clip(visible(tokens[grid.rowEdges[i]] ?? ""), labelWidth);
    const fill = " ".repeat(Math.max(0, labelWidth - [...label].length));
    lines.push(`${fill}${label} ${color === 0 ? line.trimEnd() : line + RESET}`);
  }
  return `${lines.join("\n")}\n`;
}

/** The tokens that a row of weights reads most, largest first. */
export function mostRead(row: Float32Array, count: number): { index: number; weight: number }[] {
  return Array.from(row, (weight, index) => ({ index, weight }))
    .filter(({ weight }) => weight > 0)
    .sort((a, b) => b.weight - a.weight || a.index - b.index)
    .slice(0, count);
}

interface SvgOptions {
  readonly title: string;
  /** Text of every token. */
  readonly tokens: readonly string[];
  /** Most cells in a row and a column. */
  readonly cells?: number;
}

const LABELLED = 64;

/** The map as an SVG picture: 16 levels of colour, token texts at the edges where there is room for them. */
export function svgMap(map: HeatMap, { title, tokens, cells = 128 }: SvgOptions): string {
  const grid = downsample(map, cells, cells);
  const light = brightness(grid);
  const labelled = map.columns <= LABELLED && map.columnEdges[map.columns] - map.columnEdges[0] <= LABELLED;
  const size = labelled ? 14 : Math.max(3, Math.floor(768 / Math.max(grid.rows, grid.columns)));
  const [left, top] = labelled ? [110, 130] : [20, 40];
  const [width, height] = [grid.columns * size, grid.rows * size];
  const paths = new Map<number, string>();
  for (let i = 0; i < grid.rows; i++) {
    for (let j = 0; j < grid.columns; ) {
      const level = toLevel(light[i * grid.columns + j]);
      let end = j + 1;
      while (end < grid.columns && toLevel(light[i * grid.columns + end]) === level) end++;
      const run = `M${j * size} ${i * size}h${(end - j) * size}v${size}H${j * size}z`;
      if (level > 0) paths.set(level, (paths.get(level) ?? "") + run);
      j = end;
    }
  }
  const text = (x: number, y: number, content: string, more = ""): string =>
    `<text x="${x}" y="${y}"${more}>${escapeXml(content)}</text>`;
  const label = (index: number): string => clip(visible(tokens[index] ?? ""), 14);
  const labels = labelled
    ? [
        ...Array.from({ length: map.rows }, (_, i) =>
          text(-6, i * size + size * 0.75, label(map.rowEdges[i]), ' text-anchor="end"'),
        ),
        ...Array.from({ length: map.columns }, (_, j) =>
          text(0, 0, label(map.columnEdges[j]), ` transform="translate(${j * size + size * 0.75} -6) rotate(-60)"`),
        ),
      ]
    : [];
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${left + width + 60} ${top + height + 20}" font-family="ui-monospace, monospace" font-size="11">`,
    `<title>${escapeXml(title)}</title>`,
    `<rect width="100%" height="100%" fill="#fff"/>`,
    text(20, 22, title, ' font-size="13"'),
    `<g transform="translate(${left} ${top})">`,
    `<rect width="${width}" height="${height}" fill="${hex(heatColor(0))}"/>`,
    ...[...paths]
      .sort(([a], [b]) => a - b)
      .map(([level, path]) => `<path fill="${hex(heatColor(level / LEVELS))}" d="${path}"/>`),
    ...labels,
    "</g>",
    "</svg>",
    "",
  ].join("\n");
}

const LEVELS = 16;

function toLevel(value: number): number {
  return Math.round(value * LEVELS);
}

function escapeXml(content: string): string {
  const safe = [...content].map((letter) => (letter < " " || /\p{Cs}/u.test(letter) ? "\ufffd" : letter)).join("");
  return safe.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");
}
