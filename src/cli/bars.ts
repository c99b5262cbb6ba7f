import { COLORS, escapeXml, svgText } from "./plot.js";

/** One bar: its height, and half the interval around it. */
export interface Bar {
  readonly value: number;
  readonly half?: number;
}

/** One colour of a bar plot, with one bar in each group. */
export interface BarSeries {
  readonly name: string;
  /** Further lines under the name in the legend. */
  readonly notes: readonly string[];
  readonly bars: readonly (Bar | undefined)[];
}

/** Bars between 0 and 1 in groups as SVG, with intervals as whiskers and a legend. */
export function svgBars(title: string, y: string, groups: readonly string[], series: readonly BarSeries[]): string {
  const [left, top, plotWidth, plotHeight, legend] = [70, 44, Math.max(360, groups.length * 150), 320, 300];
  const lines = series.reduce((n, s) => n + 1 + s.notes.length, 0);
  const height = Math.max(top + plotHeight + 50, top + lines * 17 + series.length * 8 + 20);
  const at = (value: number) => top + plotHeight * (1 - Math.min(1, Math.max(0, value)));
  const out: string[] = [];
  for (let tick = 0; tick <= 10; tick += 2) {
    out.push(`<path d="M${left} ${at(tick / 10)}h${plotWidth}" stroke="#e4e4e4"/>`);
    out.push(svgText(left - 8, at(tick / 10) + 4, (tick / 10).toString(), "end"));
  }
  const group = plotWidth / groups.length;
  const bar = (group * 0.8) / series.length;
  groups.forEach((name, g) => {
    out.push(svgText(left + (g + 0.5) * group, top + plotHeight + 20, name, "middle"));
    series.forEach(({ bars }, s) => {
      const found = bars[g];
      if (!found) return;
      const x = left + (g + 0.1) * group + s * bar;
      const y0 = at(found.value);
      const size = `width="${(bar * 0.86).toFixed(1)}" height="${(top + plotHeight - y0).toFixed(1)}"`;
      out.push(`<rect x="${x.toFixed(1)}" y="${y0.toFixed(1)}" ${size} fill="${COLORS[s % COLORS.length]}"/>`);
      if (found.half === undefined) return;
      const middle = (x + bar * 0.43).toFixed(1);
      const [high, low] = [at(found.value + found.half), at(found.value - found.half)];
      out.push(`<path d="M${middle} ${high.toFixed(1)}V${low.toFixed(1)}" stroke="#222" stroke-width="1.4"/>`);
    });
  });
  out.push(`<path d="M${left} ${top}V${top + plotHeight}h${plotWidth}" fill="none" stroke="#444"/>`);
  let row = top + 10;
  series.forEach(({ name, notes }, s) => {
    const x = left + plotWidth + 24;
    out.push(`<rect x="${x}" y="${row - 9}" width="12" height="12" fill="${COLORS[s % COLORS.length]}"/>`);
    out.push(svgText(x + 18, row + 1, name));
    for (const note of notes) out.push(svgText(x + 18, (row += 17) + 1, note, "start", ' fill="#666"'));
    row += 25;
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${left + plotWidth + legend} ${height}" font-family="ui-sans-serif, sans-serif" font-size="12">`,
    `<title>${escapeXml(title)}</title>`,
    '<rect width="100%" height="100%" fill="#fff"/>',
    svgText(left, 22, title, "start", ' font-size="14"'),
    svgText(16, top - 12, y),
    ...out,
    "</svg>",
    "",
  ].join("\n");
}
