import type { ColorDepth } from "./io.js";

export type Rgb = readonly [red: number, green: number, blue: number];

/** From dark to bright with evenly growing lightness, also for colour-blind readers and in grey print. */
const STOPS: readonly Rgb[] = [
  [10, 8, 30],
  [58, 15, 102],
  [120, 28, 109],
  [180, 48, 88],
  [230, 85, 50],
  [250, 150, 20],
  [252, 220, 110],
  [252, 253, 200],
];

/** The colour of a value from 0 to 1. */
export function heatColor(value: number): Rgb {
  const at = Math.min(1, Math.max(0, Number.isFinite(value) ? value : 0)) * (STOPS.length - 1);
  const low = Math.min(STOPS.length - 2, Math.floor(at));
  const mix = at - low;
  const channel = (c: 0 | 1 | 2): number => Math.round(STOPS[low][c] * (1 - mix) + STOPS[low + 1][c] * mix);
  return [channel(0), channel(1), channel(2)];
}

/** `#rrggbb`. */
export function hex(color: Rgb): string {
  return `#${color.map((channel) => channel.toString(16).padStart(2, "0")).join("")}`;
}

/** Index of the nearest colour in the 6x6x6 cube of a 256-colour terminal. */
export function cube256([red, green, blue]: Rgb): number {
  const level = (channel: number): number => (channel < 48 ? 0 : channel < 115 ? 1 : Math.floor((channel - 35) / 40));
  return 16 + 36 * level(red) + 6 * level(green) + level(blue);
}

/** Escape code that sets the text colour (layer 38) or the background (48). */
export function paint(color: Rgb, layer: 38 | 48, depth: ColorDepth): string {
  if (depth === 0) return "";
  return depth === 24 ? `\x1b[${layer};2;${color.join(";")}m` : `\x1b[${layer};5;${cube256(color)}m`;
}

export const RESET = "\x1b[0m";

const FOR: Rgb = [40, 110, 210];
const AGAINST: Rgb = [205, 60, 50];

/** The colour of a score: mixed with the ground by its share of the largest. */
export function scoreColor(score: number, largest: number, ground: Rgb): Rgb {
  const share = largest > 0 ? Math.min(1, Math.abs(score) / largest) : 0;
  const color = score >= 0 ? FOR : AGAINST;
  const mix = (c: 0 | 1 | 2): number => Math.round(ground[c] + (color[c] - ground[c]) * share);
  return [mix(0), mix(1), mix(2)];
}
