import { FoveaError } from "../error.js";
import { type Command, columns } from "./command.js";
import { askCommand } from "./commands/ask.js";
import { attention } from "./commands/attention.js";
import { attributeCommand } from "./commands/attribute.js";
import { bench } from "./commands/bench.js";
import { compare } from "./commands/compare.js";
import { convert } from "./commands/convert.js";
import { exportCommand } from "./commands/export.js";
import { generate } from "./commands/generate.js";
import { inspect } from "./commands/inspect.js";
import { methods } from "./commands/methods.js";
import { plot } from "./commands/plot.js";
import { score } from "./commands/score.js";
import { trainCommand } from "./commands/train.js";
import { tuneCommand } from "./commands/tune.js";
import { type Io, READER_GONE } from "./io.js";
import { UsageError } from "./options.js";
import { nearest } from "./suggest.js";
import { packageVersion } from "./version.js";

/** Every command, in the order of --help. */
export const COMMANDS: readonly Command[] = [
  askCommand,
  generate,
  score,
  inspect,
  attention,
  attributeCommand,
  convert,
  exportCommand,
  methods,
  trainCommand,
  plot,
  compare,
  bench,
  tuneCommand,
];

/** Exit codes: what a shell sees. */
export const EXIT = { ok: 0, failed: 1, usage: 2, interrupted: 130 } as const;

/** Runs a command line (without node and script) and resolves to its exit code; errors are printed, never thrown. */
export async function run(args: readonly string[], io: Io, debug = false): Promise<number> {
  try {
    return await dispatch(args, io);
  } catch (error) {
    return report(error, io, debug);
  }
}

async function dispatch([name, ...rest]: readonly string[], io: Io): Promise<number> {
  if (name === undefined || name === "--help" || name === "-h") return help(io);
  if (name === "--version" || name === "-v") {
    io.out(`${packageVersion()}\n`);
    return EXIT.ok;
  }
  if (name === "help") return rest.length === 0 ? help(io) : dispatch([rest[0], "--help"], io);
  const found = COMMANDS.find((command) => command.name === name);
  if (found) return found.run(rest, io);
  const names = COMMANDS.map((command) => command.name);
  const meant = nearest(name, names);
  throw new UsageError(
    `unknown command "${name}"`,
    `${meant ? `did you mean "fovea ${meant}"? ` : ""}the commands are ${names.join(", ")}`,
  );
}

function help(io: Io): number {
  const lines = [
    "usage: fovea <command> [options]",
    "",
    "Runs language models with their attention open.",
    "",
    "commands:",
    ...columns(COMMANDS.map(({ name, summary }) => [`  ${name}`, summary])),
    "",
    "fovea <command> --help shows a command's options; fovea --version prints the version.",
  ];
  io.out(`${lines.join("\n")}\n`);
  return EXIT.ok;
}

/** Prints an error as a person wants to read it and chooses the exit code. */
function report(error: unknown, io: Io, debug: boolean): number {
  if (debug) io.err(`${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
  if (io.signal.reason === READER_GONE) return EXIT.ok;
  if (io.signal.aborted) {
    if (io.errTty) io.err("interrupted\n");
    return EXIT.interrupted;
  }
  if (error instanceof FoveaError) {
    io.err(`error: ${error.message}\n${error.hint ? `hint: ${error.hint}\n` : ""}`);
    return error instanceof UsageError ? EXIT.usage : EXIT.failed;
  }
  const message = error instanceof Error ? error.message : String(error);
  io.err(`error: ${message}\nhint: this looks like a defect; FOVEA_DEBUG=1 shows where it happened\n`);
  return EXIT.failed;
}
