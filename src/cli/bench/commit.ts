import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { packageVersion } from "../version.js";

/** What ran: the commit of a checkout, marked where files were changed; else the package's version. */
export async function runningCommit(): Promise<string> {
  const root = fileURLToPath(new URL("../../..", import.meta.url));
  if (!existsSync(`${root}/.git`)) return `v${packageVersion()}`;
  const git = async (...args: string[]) => (await promisify(execFile)("git", args, { cwd: root })).stdout.trim();
  try {
    const commit = await git("rev-parse", "--short", "HEAD");
    return (await git("status", "--porcelain", "--untracked-files=no", "src")) === "" ? commit : `${commit}+`;
  } catch {
    return `v${packageVersion()}`;
  }
}
