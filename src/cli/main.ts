#!/usr/bin/env node
import { processIo } from "./io.js";
import { run } from "./run.js";

const interrupt = new AbortController();
process.on("SIGINT", () => {
  // The second Ctrl-C does not wait for anything.
  if (interrupt.signal.aborted) process.exit(130);
  interrupt.abort();
});

process.exitCode = await run(process.argv.slice(2), processIo(interrupt.signal), Boolean(process.env.FOVEA_DEBUG));
