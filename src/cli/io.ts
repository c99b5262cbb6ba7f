import { once } from "node:events";
import type { ReadStream, WriteStream } from "node:tty";

/** How many colours the terminal shows: 0 is none, 8 is 256 colours, 24 is true colour. */
export type ColorDepth = 0 | 8 | 24;

/** What a command may touch of the process: handed in, so that a command can be tested without one. */
export interface Io {
  /** Writes results (stdout). */
  out(text: string): void;
  /** Writes messages (stderr). */
  err(text: string): void;
  /** All of stdin as text. */
  input(): Promise<string>;
  readonly outTty: boolean;
  readonly errTty: boolean;
  /** Width of the terminal in characters. */
  readonly columns: number;
  readonly color: ColorDepth;
  /** Fires on Ctrl-C. */
  readonly signal: AbortSignal;
}

/** Colours of a stream: NO_COLOR and FORCE_COLOR are respected. */
export function colorDepth(tty: boolean, env: Readonly<Record<string, string | undefined>>): ColorDepth {
  if (env.NO_COLOR) return 0;
  const forced = env.FORCE_COLOR;
  if (forced !== undefined && forced !== "") return forced === "0" ? 0 : forced === "3" ? 24 : 8;
  if (!tty || env.TERM === "dumb") return 0;
  return /truecolor|24bit/i.test(env.COLORTERM ?? "") || env.WT_SESSION ? 24 : 8;
}

/** Why the work was aborted when nobody reads the output any more. */
export const READER_GONE = new Error("the reader of the output has gone");

/**
 * The process's own streams. A closed pipe (`| head`) aborts the work, so that the engine's threads end in order before
 * the process does.
 */
export function processIo(interrupt: AbortController): Io {
  const { stdout, stderr, stdin, env } = process;
  for (const stream of [stdout, stderr]) {
    stream.on("error", (error: NodeJS.ErrnoException) => {
      if (error.code !== "EPIPE" && error.code !== "EOF") throw error;
      interrupt.abort(READER_GONE);
    });
  }
  return {
    out: (text) => void stdout.write(text),
    err: (text) => void stderr.write(text),
    input: () => readAll(stdin),
    outTty: isTty(stdout),
    errTty: isTty(stderr),
    columns: stdout.columns || Number(env.COLUMNS) || 80,
    color: colorDepth(isTty(stdout), env),
    signal: interrupt.signal,
  };
}

function isTty(stream: Partial<Pick<WriteStream, "isTTY">>): boolean {
  return stream.isTTY === true;
}

async function readAll(stdin: NodeJS.ReadableStream & Partial<Pick<ReadStream, "isTTY">>): Promise<string> {
  const chunks: Buffer[] = [];
  stdin.on("data", (chunk: Buffer | string) => chunks.push(Buffer.from(chunk)));
  await once(stdin, "end");
  return Buffer.concat(chunks).toString("utf8");
}
