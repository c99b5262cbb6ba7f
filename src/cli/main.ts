#!/usr/bin/env node
import { runInHugePages } from "./huge-pages.js";
import { processIo } from "./io.js";
import { run } from "./run.js";

const args = process.argv.slice(2);
process.exitCode = await (runInHugePages(args) ?? runHere());

function runHere(): Promise<number> {
  const interrupt = new AbortController();
  process.on("SIGINT", () => {
    if (interrupt.signal.aborted) {
      // The second Ctrl-C waits for nothing: the signal does what it does by default.
      process.removeAllListeners("SIGINT");
      process.kill(process.pid, "SIGINT");
    }
    interrupt.abort();
  });
  return run(args, processIo(interrupt), Boolean(process.env.FOVEA_DEBUG));
}
