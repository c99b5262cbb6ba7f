// Runs the library in a page of a Chromium without a window. It bundles the built package, so build first.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";

const NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];
const works = (program) => spawnSync(program, ["--version"], { stdio: "ignore" }).status === 0;
const program = process.env.CHROMIUM ?? NAMES.find(works);
if (!program || !works(program)) {
  console.error(
    `${process.env.CHROMIUM ?? "Chromium"} was not found. Install it (Debian: apt-get install chromium), or set CHROMIUM to the program of a Chromium or Chrome.`,
  );
  process.exit(2);
}
if (!existsSync(new URL("../dist/worker.js", import.meta.url))) {
  console.error("There is no build. Run: npm run build");
  process.exit(2);
}
if (!existsSync(new URL("../node_modules/onnxruntime-web", import.meta.url))) {
  console.error("onnxruntime-web is not installed. Run: npm install");
  process.exit(2);
}
const run = spawnSync("npx", ["vitest", "run", "--config", "vitest.browser.config.ts"], {
  env: { ...process.env, CHROMIUM: program },
  stdio: "inherit",
  shell: process.platform === "win32",
});
process.exit(run.status ?? 1);
