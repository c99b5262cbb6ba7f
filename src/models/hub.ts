import type { FileHandle } from "node:fs/promises";
import { aborted, FoveaError } from "../error.js";
import { isObject, parseJsonObject } from "./json.js";
import { fileError, hasNode } from "./source.js";

/** A model on the Hugging Face hub: `hf:owner/name`, `hf:owner/name@revision`, `hf:owner/name:file.gguf`. */
export interface HubName {
  /** `owner/name`. */
  repo: string;
  /** A branch, a tag or a commit. */
  revision: string;
  /** A GGUF file of the repository, where one is meant. */
  file?: string;
}

/** How far a download is. */
export interface HubProgress {
  /** The file that is being fetched. */
  file: string;
  /** Bytes of all needed files that are here, those of an earlier attempt included. */
  received: number;
  /** Bytes of all needed files. */
  total: number;
  /** Files that are complete, and files needed. */
  filesDone: number;
  files: number;
}

export interface HubOptions {
  /** Folder that downloads are kept in. Default: `$FOVEA_CACHE`, else `~/.cache/fovea`. */
  cache?: string;
  /** Access token for gated and private models. Default: `$HF_TOKEN`. */
  token?: string;
  /** Use only what is in the cache. Default: true when `$HF_HUB_OFFLINE` is 1. */
  offline?: boolean;
  onProgress?: (progress: HubProgress) => void;
  signal?: AbortSignal;
  /** Default: `$HF_ENDPOINT`, else the public hub. */
  hubUrl?: string;
  /** Replaces the global fetch: a proxy, a test. */
  fetch?: typeof fetch;
}

/** A checkpoint in the cache. */
export interface CachedCheckpoint {
  kind: "safetensors" | "gguf";
  /** The folder (safetensors) or the file (GGUF). */
  path: string;
  /** True when the hub was not asked, or could not be reached, and the cached files were taken as they are. */
  offline: boolean;
}

/** Small files that a checkpoint may have beside its weights. */
const SIDE_FILES = [
  "config.json",
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template.jinja",
];
const SINGLE = "model.safetensors";
const INDEX = "model.safetensors.index.json";
const MANIFEST = ".fovea.json";
/** Attempts in a row that bring no byte, after which a download is given up. */
const ATTEMPTS = 5;
/** A cached model is used when the hub has not answered after this many milliseconds. */
const PATIENCE = 8000;

/**
 * Takes a name such as `hf:owner/name@revision:file.gguf` apart; undefined when it does not begin with `hf:`.
 * @throws FoveaError "bad-input" when the rest is not a model's name
 */
export function parseHubName(name: string): HubName | undefined {
  if (!name.startsWith("hf:")) return undefined;
  const parts = /^hf:([\w.-]+)\/([\w.-]+)(?:@([\w./-]+))?(?::([\w./ +-]+\.gguf))?$/.exec(name);
  const [, owner, model, revision = "main", file] = parts ?? [];
  if (!parts || [owner, model, ...revision.split("/"), ...(file?.split("/") ?? [])].some(isUnsafe)) {
    throw new FoveaError("bad-input", `${name} is not the name of a model on the hub`, {
      hint: "Write hf:owner/name, hf:owner/name@revision or hf:owner/name:file.gguf.",
    });
  }
  return { repo: `${owner}/${model}`, revision, ...(file !== undefined && { file }) };
}

/** A part of a path that would lead out of its folder, or nowhere. */
function isUnsafe(part: string): boolean {
  return part === "" || part === "." || part === "..";
}

/** The folder that downloads are kept in when no other is given. */
export async function defaultCache(): Promise<string> {
  const { homedir } = await import("node:os");
  return process.env.FOVEA_CACHE || `${homedir()}/.cache/fovea`;
}

/**
 * Makes sure that a model of the hub is in the cache, fetching only the files that are needed and missing. A download
 * that was cut goes on where it stopped; every file is held to the hub's checksum.
 * @throws FoveaError "not-found" when there is no such model, or no network and nothing cached; "unsupported" when the
 *   repository has no weights in a known format; "aborted"
 */
export async function fetchCheckpoint(name: string | HubName, options: HubOptions = {}): Promise<CachedCheckpoint> {
  const parsed = typeof name === "string" ? parseHubName(name) : name;
  if (!parsed) throw new FoveaError("bad-input", `${String(name)} does not begin with hf:`);
  if (!hasNode()) {
    throw new FoveaError("unsupported", `hf:${parsed.repo} cannot be kept in a cache here`, {
      hint: "In a browser open the files by their URLs.",
    });
  }
  return new Fetcher(parsed, options, options.cache ?? (await defaultCache())).run();
}

interface RemoteFile {
  path: string;
  size: number;
  /** SHA-256 of the contents, for large files; else the id of git's blob. */
  sha256?: string;
  blob?: string;
}

interface Manifest {
  /** Complete files, by path, with the checksum that they had. */
  files: Record<string, { size: number; sum: string }>;
  /** The files of each checkpoint in the repository, by its GGUF file or "" for safetensors. */
  sets: Record<string, string[]>;
}

class Fetcher {
  private readonly name: HubName;
  private readonly options: HubOptions;
  private readonly folder: string;
  private manifest: Manifest = { files: {}, sets: {} };
  private readonly progress = { received: 0, total: 0, filesDone: 0, files: 0 };

  constructor(name: HubName, options: HubOptions, cache: string) {
    this.name = name;
    this.options = options;
    this.folder = `${cache}/hub/${name.repo.replace("/", "--")}/${name.revision.replaceAll("/", "--")}`;
  }

  async run(): Promise<CachedCheckpoint> {
    await this.readManifest();
    const cached = await this.cached();
    const offline = this.options.offline ?? process.env.HF_HUB_OFFLINE === "1";
    // A commit never changes, so what is here of one needs no question.
    if (cached && (offline || /^[0-9a-f]{40}$/.test(this.name.revision))) return cached;
    if (offline) throw this.nothingCached("the network is not to be used");
    let list: RemoteFile[];
    try {
      list = await this.list(cached ? AbortSignal.timeout(PATIENCE) : undefined);
    } catch (cause) {
      const error = this.explain(cause);
      if (cached && error.code === "not-found" && !isApiError(cause)) return cached;
      throw error;
    }
    try {
      return await this.fetchAll(list);
    } catch (cause) {
      throw this.explain(cause);
    }
  }

  // ---- what is needed ----

  /** All files of the repository at this revision. */
  private async list(patience: AbortSignal | undefined): Promise<RemoteFile[]> {
    const { listFiles } = await import("@huggingface/hub");
    const files: RemoteFile[] = [];
    for await (const entry of listFiles({ ...this.access(patience), recursive: this.name.file?.includes("/") })) {
      if (entry.type !== "file" || entry.path.split("/").some(isUnsafe)) continue;
      files.push({
        path: entry.path,
        size: entry.lfs?.size ?? entry.size,
        ...(entry.lfs ? { sha256: entry.lfs.oid } : { blob: entry.oid }),
      });
    }
    return files;
  }

  private async fetchAll(list: readonly RemoteFile[]): Promise<CachedCheckpoint> {
    const byPath = new Map(list.map((file) => [file.path, file]));
    const gguf = this.chooseGguf(list, byPath);
    const wanted = gguf ? [gguf] : SIDE_FILES.filter((path) => byPath.has(path));
    if (!gguf) {
      if (byPath.has(SINGLE)) wanted.push(SINGLE);
      else {
        await this.fetchFiles([INDEX], byPath);
        // The repository was split since the last time: a folder with both would be read the old way.
        const { rm } = await import("node:fs/promises");
        await rm(`${this.folder}/${SINGLE}`, { force: true });
        wanted.push(INDEX, ...(await this.shards()));
      }
    }
    await this.fetchFiles(wanted, byPath);
    this.manifest.sets[gguf ?? ""] = wanted;
    if (gguf && !this.name.file) this.manifest.sets[""] = wanted;
    await this.writeManifest();
    return this.result(gguf, false);
  }

  /** The GGUF file that is meant; undefined for safetensors. */
  private chooseGguf(list: readonly RemoteFile[], byPath: ReadonlyMap<string, RemoteFile>): string | undefined {
    const { file, repo } = this.name;
    const ggufs = list.map(({ path }) => path).filter((path) => path.endsWith(".gguf"));
    const choices = `Its GGUF files: ${ggufs.slice(0, 20).join(", ") || "none"}.`;
    if (file) {
      if (byPath.has(file)) return file;
      throw new FoveaError("not-found", `hf:${repo} has no file ${file}`, { hint: choices });
    }
    if (byPath.has(SINGLE) || byPath.has(INDEX)) return undefined;
    if (ggufs.length === 1) return ggufs[0];
    if (ggufs.length > 1) {
      throw new FoveaError("bad-input", `hf:${repo} has ${ggufs.length} GGUF files: say which`, {
        hint: `Write hf:${repo}:file.gguf. ${choices}`,
      });
    }
    throw new FoveaError("unsupported", `hf:${repo} has no weights as safetensors or GGUF`, {
      hint: "Other formats are not read; look for a converted copy of the model.",
    });
  }

  /** The shards that the index names. */
  private async shards(): Promise<string[]> {
    const { readFile } = await import("node:fs/promises");
    const { weight_map: map } = parseJsonObject(await readFile(`${this.folder}/${INDEX}`), INDEX);
    const shards = new Set(isObject(map) ? Object.values(map) : []);
    for (const shard of shards) {
      if (typeof shard !== "string" || !/^[^/\\:]+\.safetensors$/.test(shard)) {
        throw new FoveaError("bad-file", `hf:${this.name.repo}: ${INDEX} names a shard that is no plain file name`);
      }
    }
    return [...shards] as string[];
  }

  // ---- downloads ----

  private async fetchFiles(paths: readonly string[], byPath: ReadonlyMap<string, RemoteFile>): Promise<void> {
    const files = paths.map((path) => {
      const file = byPath.get(path);
      if (!file) throw new FoveaError("bad-file", `hf:${this.name.repo} lacks ${path}, which its index names`);
      return file;
    });
    Object.assign(this.progress, {
      received: 0,
      total: files.reduce((sum, { size }) => sum + size, 0),
      filesDone: 0,
      files: files.length,
    });
    for (const file of files) {
      if (!(await this.isHere(file))) await this.fetchFile(file);
      else this.progress.received += file.size;
      this.progress.filesDone++;
      this.report(file);
    }
  }

  private report({ path }: RemoteFile): void {
    this.options.onProgress?.({ file: path, ...this.progress });
  }

  private async isHere({ path, size, sha256, blob }: RemoteFile): Promise<boolean> {
    const known = Object.hasOwn(this.manifest.files, path) ? this.manifest.files[path] : undefined;
    return known?.sum === (sha256 ?? blob) && (await sizeOf(`${this.folder}/${path}`)) === size;
  }

  /** Fetches one file, going on where an earlier attempt stopped, and tries again when the line breaks. */
  private async fetchFile(file: RemoteFile): Promise<void> {
    const { mkdir, rename, rm } = await import("node:fs/promises");
    const target = `${this.folder}/${file.path}`;
    // The checksum is in the name: a part of an older version is never continued.
    const part = `${target}.${(file.sha256 ?? file.blob ?? "").slice(0, 12)}.part`;
    await mkdir(target.slice(0, target.lastIndexOf("/")), { recursive: true });
    const before = this.progress.received;
    let failures = 0;
    let wrong = 0;
    for (;;) {
      const had = (await sizeOf(part)) ?? 0;
      this.progress.received = before + had;
      try {
        if (had < file.size || file.size === 0) await this.append(file, part, had);
      } catch (cause) {
        const now = (await sizeOf(part)) ?? 0;
        failures = now > had ? 1 : failures + 1;
        if (this.options.signal?.aborted || isApiError(cause) || cause instanceof FoveaError || failures === ATTEMPTS)
          throw cause;
        await new Promise((resolve) => setTimeout(resolve, 250 * 2 ** failures));
        continue;
      }
      if (await hasChecksum(part, file)) break;
      await rm(part, { force: true });
      if (++wrong === 2) {
        throw new FoveaError("bad-file", `hf:${this.name.repo}: ${file.path} arrived twice with a wrong checksum`, {
          hint: "Something between here and the hub changes files; try another network.",
        });
      }
    }
    await rename(part, target);
    this.progress.received = before + file.size;
    this.manifest.files[file.path] = { size: file.size, sum: file.sha256 ?? file.blob ?? "" };
    await this.writeManifest();
  }

  /** Appends to `part` what it lacks. */
  private async append(file: RemoteFile, part: string, had: number): Promise<void> {
    const { downloadFile } = await import("@huggingface/hub");
    const { open } = await import("node:fs/promises");
    let out: FileHandle;
    try {
      out = await open(part, "a");
    } catch (cause) {
      throw fileError(part, cause);
    }
    try {
      if (file.size === 0) return;
      // Plain HTTP ranges rather than the hub's chunked protocol, since only a plain prefix can be continued.
      const blob = await downloadFile({ ...this.access(undefined), path: file.path, xet: false });
      if (!blob) throw new FoveaError("not-found", `hf:${this.name.repo} has no file ${file.path} any more`);
      let at = had;
      const reader = blob.slice(had, file.size).stream().getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        at += value.byteLength;
        if (at > file.size) break;
        await out.writeFile(value);
        this.progress.received += value.byteLength;
        this.report(file);
      }
      if (at < file.size) throw new Error(`the line broke at byte ${at} of ${file.size}`);
      if (at > file.size) await out.truncate(0);
    } finally {
      await out.close();
    }
  }

  private access(patience: AbortSignal | undefined) {
    const {
      signal,
      fetch: given = fetch,
      token = process.env.HF_TOKEN,
      hubUrl = process.env.HF_ENDPOINT,
    } = this.options;
    const signals = [signal, patience].filter((one) => one !== undefined);
    const withSignal: typeof fetch = (input, init) =>
      given(input, signals.length > 0 ? { ...init, signal: AbortSignal.any(signals) } : init);
    return {
      repo: this.name.repo,
      revision: this.name.revision,
      fetch: withSignal,
      ...(hubUrl && { hubUrl: hubUrl.replace(/\/+$/, "") }),
      ...(token && { accessToken: token }),
    };
  }

  // ---- the cache ----

  private async readManifest(): Promise<void> {
    const { readFile } = await import("node:fs/promises");
    try {
      const { files, sets } = parseJsonObject(await readFile(`${this.folder}/${MANIFEST}`), MANIFEST);
      if (isObject(files) && isObject(sets)) this.manifest = { files, sets } as unknown as Manifest;
    } catch {
      // None yet, or a broken one: then nothing counts as cached.
    }
  }

  private async writeManifest(): Promise<void> {
    const { rename, writeFile } = await import("node:fs/promises");
    const temporary = `${this.folder}/${MANIFEST}.${process.pid}.tmp`;
    await writeFile(temporary, JSON.stringify(this.manifest));
    await rename(temporary, `${this.folder}/${MANIFEST}`);
  }

  /** The checkpoint as it lies in the cache, when it is complete. */
  private async cached(): Promise<CachedCheckpoint | undefined> {
    const set = this.manifest.sets[this.name.file ?? ""];
    if (!Array.isArray(set)) return undefined;
    for (const path of set) {
      if ((await sizeOf(`${this.folder}/${path}`)) !== this.manifest.files[path]?.size) return undefined;
    }
    return this.result(
      set.find((path) => path.endsWith(".gguf")),
      true,
    );
  }

  private result(gguf: string | undefined, offline: boolean): CachedCheckpoint {
    return gguf
      ? { kind: "gguf", path: `${this.folder}/${gguf}`, offline }
      : { kind: "safetensors", path: this.folder, offline };
  }

  // ---- errors ----

  private nothingCached(why: string, cause?: unknown): FoveaError {
    const { repo, revision, file } = this.name;
    const what = `hf:${repo}${revision === "main" ? "" : `@${revision}`}${file ? `:${file}` : ""}`;
    return new FoveaError("not-found", `${what} is not in the cache ${this.folder}, and ${why}`, {
      cause,
      hint: "Fetch it once with a network, or name a local folder or file instead.",
    });
  }

  private explain(cause: unknown): FoveaError {
    const { repo, revision } = this.name;
    if (this.options.signal?.aborted) return aborted(this.options.signal);
    if (cause instanceof FoveaError) return cause;
    if (!isApiError(cause)) {
      // Node's fetch says only that it failed; why is in the cause.
      const inner = cause instanceof Error && cause.cause instanceof Error ? cause.cause : cause;
      const reason = inner instanceof Error ? inner.message : String(inner);
      return this.nothingCached(`the hub cannot be reached (${reason})`, cause);
    }
    if (cause.statusCode === 401 || cause.statusCode === 403) {
      return new FoveaError("not-found", `the hub does not give hf:${repo} to this user: ${cause.message}`, {
        cause,
        hint: "Check the name. For a gated or private model accept its licence on the hub and set HF_TOKEN.",
      });
    }
    if (cause.statusCode === 404) {
      return new FoveaError("not-found", `the hub has no model ${repo} at revision ${revision}`, {
        cause,
        hint: "Check the name and the revision.",
      });
    }
    return new FoveaError("not-found", `the hub failed on hf:${repo}: ${cause.message}`, { cause, hint: "Try again." });
  }
}

/** An answer of the hub that says no, as against no answer. */
function isApiError(cause: unknown): cause is Error & { statusCode: number } {
  return cause instanceof Error && typeof (cause as { statusCode?: unknown }).statusCode === "number";
}

async function sizeOf(path: string): Promise<number | undefined> {
  const { stat } = await import("node:fs/promises");
  try {
    return (await stat(path)).size;
  } catch {
    return undefined;
  }
}

/** Holds a file to the checksum that the hub lists. */
async function hasChecksum(path: string, { size, sha256, blob }: RemoteFile): Promise<boolean> {
  if ((await sizeOf(path)) !== size) return false;
  const { createHash } = await import("node:crypto");
  const { createReadStream } = await import("node:fs");
  const hash = createHash(sha256 ? "sha256" : "sha1");
  if (!sha256) hash.update(`blob ${size}\0`);
  for await (const chunk of createReadStream(path)) hash.update(chunk as Uint8Array);
  return hash.digest("hex") === (sha256 ?? blob);
}
