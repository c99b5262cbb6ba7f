import type { AttributedPiece, Attribution } from "../context/index.js";
import { hex, type Rgb, scoreColor } from "./colors.js";

const GROUND: Rgb = [255, 255, 255];

/** A page that shows a prompt with the pieces that an answer rests on. It needs nothing from elsewhere. */
export function attributionHtml(result: Attribution, pieces: readonly AttributedPiece[]): string {
  const largest = pieces.reduce((a, p) => Math.max(a, Math.abs(p.score)), 0);
  const spans = pieces.map(({ text, score }) => {
    const color = scoreColor(score, largest, GROUND);
    const dark = color[0] + color[1] + color[2] < 420;
    const style = `background:${hex(color)}${dark ? ";color:#fff" : ""}`;
    return `<span style="${style}" title="${score.toFixed(4)}">${escapeHtml(text)}</span>`;
  });
  const { answer, logprob, method } = result;
  return [
    "<!doctype html>",
    '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
    `<title>What ${escapeHtml(JSON.stringify(answer))} rests on</title>`,
    "<style>body{font:16px/1.7 ui-serif,Georgia,serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#111;background:#fff}",
    "pre{font:inherit;white-space:pre-wrap;overflow-wrap:anywhere}p{color:#444;font-family:ui-sans-serif,sans-serif;font-size:14px}</style>",
    "</head><body>",
    `<p>Answer <b>${escapeHtml(answer)}</b>, log-probability ${logprob.toFixed(4)} (${(100 * Math.exp(logprob)).toFixed(2)}%). Gradient times ${
      method === "input" ? "input" : "attention weight"
    }: blue speaks for the answer, red against it.</p>`,
    `<pre>${spans.join("")}</pre>`,
    "</body></html>",
    "",
  ].join("\n");
}

function escapeHtml(text: string): string {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");
}
