/**
 * Published vocabularies and chat templates, for tests: node-llama-cpp, a development dependency, carries the source of
 * llama.cpp as a git bundle, and with it the vocabularies that llama.cpp tests its own tokenizers with (each with texts
 * and the ids that the model's original tokenizer gives) and the templates of many models.
 */
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

function findBundle(): string | undefined {
  try {
    const bundle = join(import.meta.dirname, "../node_modules/node-llama-cpp/llama/gitRelease.bundle");
    execFileSync("git", ["--version"], { stdio: "ignore" });
    return existsSync(bundle) ? bundle : undefined;
  } catch {
    return undefined;
  }
}

const bundle = findBundle();
/** False where the bundle or git is missing. */
export const hasRelease = bundle !== undefined;

/** The files of the release, until it is closed. */
export class Release {
  private readonly folder = mkdtempSync(join(tmpdir(), "fovea-release-"));

  constructor() {
    if (!bundle) throw new Error("node-llama-cpp carries no source here");
    execFileSync("git", ["clone", "--quiet", "--bare", bundle, this.folder], { stdio: "ignore" });
  }

  /** One file's contents. */
  read(path: string): Buffer {
    return execFileSync("git", ["-C", this.folder, "show", `HEAD:${path}`], { maxBuffer: 1 << 28 });
  }

  /** The paths of the files in a folder. */
  list(folder: string): string[] {
    const out = execFileSync("git", ["-C", this.folder, "ls-tree", "--name-only", "HEAD", `${folder}/`], {
      encoding: "utf8",
    });
    return out.trim().split("\n");
  }

  close(): void {
    rmSync(this.folder, { recursive: true });
  }
}
