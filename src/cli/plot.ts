/** One line of a plot. */
export interface Series {
  readonly name: string;
  readonly points: readonly (readonly [x: number, y: number])[];
}

/** Colours of lines and bars, told apart. */
export const COLORS = ["#1f6fb4", "#d9541e", "#2e8b57", "#8a4fbf", "#b8860b", "#c2185b", "#00838f", "#5d4037"];

/** What stands around a plot. */
export interface PlotOptions {
  readonly title: string;
  readonly x: string;
  readonly y: string;
  /** Axes that grow by factors. Default false. */
  readonly logX?: boolean;
  readonly logY?: boolean;
  /** Show single points as dots. Default: for lines of up to 40 points. */
  readonly dots?: boolean;
}

/** A line plot as SVG: axes with round numbers, one colour a line, a legend. Points that are no numbers are left out. */
export function svgPlot(
  series: readonly Series[],
  { title, x, y, logX = false, logY = false, dots }: PlotOptions,
): string {
  const [width, height, left, top, right, bottom] = [760, 440, 70, 40, 190, 50];
  const usable = (v: number, log: boolean) => Number.isFinite(v) && (!log || v > 0);
  const lines = series.map((s) => ({ ...s, points: s.points.filter(([a, b]) => usable(a, logX) && usable(b, logY)) }));
  const all = lines.flatMap((s) => s.points);
  const scaleX = axis(
    all.map(([a]) => a),
    logX,
    left,
    width - right,
  );
  const scaleY = axis(
    all.map(([, b]) => b),
    logY,
    height - bottom,
    top,
  );
  const out: string[] = [];
  for (const tick of scaleX.ticks) {
    const at = scaleX.at(tick).toFixed(1);
    out.push(`<path d="M${at} ${top}V${height - bottom}" stroke="#e4e4e4"/>`);
    out.push(svgText(Number(at), height - bottom + 18, short(tick), "middle"));
  }
  for (const tick of scaleY.ticks) {
    const at = scaleY.at(tick).toFixed(1);
    out.push(`<path d="M${left} ${at}H${width - right}" stroke="#e4e4e4"/>`);
    out.push(svgText(left - 8, Number(at) + 4, short(tick), "end"));
  }
  out.push(`<path d="M${left} ${top}V${height - bottom}H${width - right}" fill="none" stroke="#444"/>`);
  lines.forEach(({ name, points }, i) => {
    const color = COLORS[i % COLORS.length];
    const places = points.map(([a, b]) => `${scaleX.at(a).toFixed(1)} ${scaleY.at(b).toFixed(1)}`);
    if (places.length > 1)
      out.push(`<path d="M${places.join("L")}" fill="none" stroke="${color}" stroke-width="1.6"/>`);
    if (dots ?? points.length <= 40)
      for (const place of places) {
        const [cx, cy] = place.split(" ");
        out.push(`<circle cx="${cx}" cy="${cy}" r="2.6" fill="${color}"/>`);
      }
    const at = top + 8 + i * 20;
    out.push(`<path d="M${width - right + 14} ${at}h22" stroke="${color}" stroke-width="3"/>`);
    out.push(svgText(width - right + 42, at + 4, name));
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="ui-sans-serif, sans-serif" font-size="12">`,
    `<title>${escapeXml(title)}</title>`,
    '<rect width="100%" height="100%" fill="#fff"/>',
    svgText(left, 22, title, "start", ' font-size="14"'),
    ...out,
    svgText((left + width - right) / 2, height - 12, x, "middle"),
    svgText(16, top - 12, y),
    "</svg>",
    "",
  ].join("\n");
}

/** A label. */
export function svgText(x: number, y: number, content: string, anchor = "start", more = ""): string {
  return `<text x="${x}" y="${y}" text-anchor="${anchor}"${more}>${escapeXml(content)}</text>`;
}

interface Axis {
  at(value: number): number;
  readonly ticks: readonly number[];
}

/** An axis from the data's smallest to its largest value, with ticks at 1, 2 or 5 times a power of ten. */
function axis(values: readonly number[], log: boolean, from: number, to: number): Axis {
  let low = values.reduce((a, b) => Math.min(a, b), Number.POSITIVE_INFINITY);
  let high = values.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  if (!(low <= high)) [low, high] = log ? [1, 10] : [0, 1];
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
  const map = log ? Math.log10 : (v: number) => v;
  const [a, b] = [map(low), map(high)];
  const at = (v: number) => from + ((map(v) - a) / (b - a)) * (to - from);
  const ticks: number[] = [];
  if (log) {
    for (let e = Math.floor(a); e <= Math.ceil(b); e++)
      for (const m of b - a > 3 ? [1] : [1, 2, 5])
        if (m * 10 ** e >= low && m * 10 ** e <= high) ticks.push(m * 10 ** e);
    return { at, ticks };
  }
  const rough = (high - low) / 6;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= rough) as number;
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return { at, ticks };
}

function short(value: number): string {
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toFixed(2)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toFixed(1)}k`;
  return String(+value.toPrecision(4));
}

/** Text as it may stand in XML. */
export function escapeXml(content: string): string {
  return content.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");
}
