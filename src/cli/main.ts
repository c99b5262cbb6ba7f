#!/usr/bin/env node
import { processIo } from "./io.js";
import { run } from "./run.js";

const interrupt = new AbortController();
process.on("SIGINT", () => {
  if (interrupt.signal.aborted) {
    // The second Ctrl-C waits for nothing: the signal does what it does by default.
    process.removeAllListeners("SIGINT");
    process.kill(process.pid, "SIGINT");
  }
  interrupt.abort();
});

process.exitCode = await run(process.argv.slice(2), processIo(interrupt), Boolean(process.env.FOVEA_DEBUG));
