import type { Io } from "../src/cli/io.js";

/** What a command prints, kept: no terminal, no colours. */
export interface Captured extends Io {
  text(): string;
  errors(): string;
}

export function capture(signal: AbortSignal = new AbortController().signal): Captured {
  let [out, err] = ["", ""];
  return {
    out(piece) {
      out += piece;
    },
    err(piece) {
      err += piece;
    },
    input: async () => "",
    outTty: false,
    errTty: false,
    columns: 80,
    color: 0,
    signal,
    text: () => out,
    errors: () => err,
  };
}
