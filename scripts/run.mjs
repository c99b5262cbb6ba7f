/**
 * Runs a TypeScript script of this repository:
 *
 *   node scripts/run.mjs scripts/make-tiny.ts [arguments]
 *
 * Imports from "../src" run from source; imports from "fovea" run the built package, which the engine's workers need.
 */
import { resolve } from "node:path";
import { runnerImport } from "vite";

const [script, ...rest] = process.argv.slice(2);
if (script === undefined) {
  console.error("usage: node scripts/run.mjs <script.ts> [arguments]");
  process.exit(2);
}
const file = resolve(script);
process.argv = [process.argv[0], file, ...rest];
await runnerImport(file, { logLevel: "error" });
