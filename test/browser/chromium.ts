import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";

const FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-dev-shm-usage",
  "--enable-logging=stderr",
];

export interface Browser {
  /** Console messages of the page. */
  readonly log: string[];
  readonly process: ChildProcess;
  close(): Promise<void>;
}

/** Opens a page in a Chromium without a window, with a profile of its own. */
export function openPage(program: string, url: string): Browser {
  const profile = mkdtempSync(join(tmpdir(), "fovea-browser-"));
  const child = spawn(program, [...FLAGS, `--user-data-dir=${profile}`, url], { stdio: ["ignore", "ignore", "pipe"] });
  const log: string[] = [];
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    for (const line of text.split("\n")) if (line.includes("CONSOLE")) log.push(line);
  });
  return {
    log,
    process: child,
    close: async () => {
      if (child.exitCode === null && child.signalCode === null) {
        child.kill();
        await once(child, "exit");
      }
      // its helper processes write for a moment longer; a folder that stays in the end is no failure of the library
      for (let tries = 0; tries < 20; tries++) {
        try {
          return rmSync(profile, { recursive: true, force: true });
        } catch {
          await setTimeout(250);
        }
      }
    },
  };
}
