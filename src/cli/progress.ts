import type { Progress } from "../engine/api.js";
import { clip, formatBytes } from "./format.js";
import type { Io } from "./io.js";

const LABELS: Readonly<Record<Progress["stage"], string>> = {
  download: "downloading",
  load: "loading",
  compile: "compiling",
  prompt: "reading",
  score: "scoring",
};

/** One line on stderr that is drawn over itself; silent when stderr is no terminal. */
export interface ProgressLine {
  report(progress: Progress): void;
  /** Shows a free text. */
  note(text: string): void;
  /** Removes the line. */
  clear(): void;
}

/** Progress on a terminal's stderr, at most ten times a second. */
export function progressLine(io: Io, enabled = io.errTty, now: () => number = Date.now): ProgressLine {
  let last = 0;
  let shown = false;
  const draw = (text: string): void => {
    io.err(`\r\x1b[2K${clip(text, Math.max(20, io.columns - 1))}`);
    shown = true;
  };
  return {
    report({ stage, done, total, label }) {
      if (!enabled) return;
      const finished = total > 0 && done >= total;
      if (!finished && now() - last < 100) return;
      last = now();
      if (finished) this.clear();
      else draw(`${LABELS[stage]}${label ? ` ${label}` : ""} ${bar(done, total)} ${amount(stage, done, total)}`);
    },
    note(text) {
      if (enabled) draw(text);
    },
    clear() {
      if (shown) io.err("\r\x1b[2K");
      shown = false;
    },
  };
}

/** `[####....]`, empty where nothing is known of the whole. */
export function bar(done: number, total: number, width = 24): string {
  if (!(total > 0)) return "";
  const full = Math.min(width, Math.floor((done / total) * width));
  return `[${"#".repeat(full)}${".".repeat(width - full)}]`;
}

function amount(stage: Progress["stage"], done: number, total: number): string {
  const show = stage === "download" ? formatBytes : String;
  return total > 0 ? `${show(done)} / ${show(total)}` : show(done);
}
