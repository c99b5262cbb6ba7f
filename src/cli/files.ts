import { randomBytes } from "node:crypto";
import { readFile, rename, rm, writeFile } from "node:fs/promises";
import { FoveaError } from "../error.js";

/** Calls `write` with a temporary name beside `path` and renames it, so that nobody ever sees half a file. */
export async function writeThrough(path: string, write: (temporary: string) => Promise<void>): Promise<void> {
  const temporary = `${path}.${randomBytes(4).toString("hex")}.tmp`;
  try {
    await write(temporary);
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true, recursive: true });
    throw fileError(error, path, "write");
  }
}

/** Writes a whole file at once, through a temporary name. */
export function writeAtomic(path: string, data: string | Uint8Array): Promise<void> {
  return writeThrough(path, (temporary) => writeFile(temporary, data));
}

/** A text file as UTF-8. */
export async function readText(path: string): Promise<string> {
  try {
    return new TextDecoder("utf-8").decode(await readFile(path));
  } catch (error) {
    throw fileError(error, path, "read");
  }
}

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: "there is no such file or folder",
  EACCES: "permission denied",
  EPERM: "permission denied",
  EISDIR: "it is a folder",
  ENOTDIR: "a part of the path is no folder",
  ENOSPC: "the disk is full",
  EROFS: "the file system is read-only",
};

function fileError(error: unknown, path: string, verb: "read" | "write"): unknown {
  if (error instanceof FoveaError || !(error instanceof Error) || !("code" in error)) return error;
  const reason = REASONS[String(error.code)] ?? error.message;
  const code = verb === "read" && error.code === "ENOENT" ? "not-found" : "bad-file";
  return new FoveaError(code, `cannot ${verb} ${path}: ${reason}`, { cause: error });
}
