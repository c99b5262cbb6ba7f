import { createHash } from "node:crypto";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { FoveaError } from "../error.js";
import { fetchCheckpoint, type HubProgress, parseHubName } from "./hub.js";

test("names", () => {
  expect(parseHubName("./folder")).toBeUndefined();
  expect(parseHubName("hf:Qwen/Qwen2.5-0.5B")).toEqual({ repo: "Qwen/Qwen2.5-0.5B", revision: "main" });
  expect(parseHubName("hf:a/b@v1.0")).toEqual({ repo: "a/b", revision: "v1.0" });
  expect(parseHubName("hf:a/b@refs/pr/1:q8/model.gguf")).toEqual({
    repo: "a/b",
    revision: "refs/pr/1",
    file: "q8/model.gguf",
  });
  for (const bad of [
    "hf:",
    "hf:a",
    "hf:a/b/c",
    "hf:../b",
    "hf:a/..",
    "hf:a/b@..",
    "hf:a/b:../x.gguf",
    "hf:a/b:/x.gguf",
    "hf:a/b:x.bin",
  ]) {
    expect(() => parseHubName(bad), bad).toThrow(FoveaError);
  }
});

/** A hub of one repository in memory, which can misbehave. */
class FakeHub {
  readonly files = new Map<string, Buffer>();
  readonly requests: string[] = [];
  /** Cuts the connection after so many bytes of a weights file, so many times. */
  cuts = 0;
  corrupt = false;
  status = 200;
  private server: Server | undefined;

  async start(): Promise<string> {
    this.server = createServer((request, response) => {
      const url = new URL(request.url ?? "", "http://localhost");
      this.requests.push(url.pathname);
      if (this.status !== 200) {
        response.writeHead(this.status, { "content-type": "application/json" }).end('{"error":"no"}');
        return;
      }
      if (url.pathname.startsWith("/api/models/o/m/tree/main")) {
        response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify([...this.files].map(entry)));
        return;
      }
      const body = this.files.get(decodeURIComponent(url.pathname.replace("/o/m/resolve/main/", "")));
      if (!body) {
        response.writeHead(404, { "X-Error-Code": "EntryNotFound" }).end();
        return;
      }
      const range = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? "");
      const [from, to] = range ? [Number(range[1]), Number(range[2])] : [0, body.length - 1];
      let piece: Buffer = body.subarray(from, to + 1);
      if (this.corrupt && piece.length > 1) piece = Buffer.alloc(piece.length);
      response.writeHead(range ? 206 : 200, {
        etag: '"x"',
        "content-length": piece.length,
        ...(range && { "content-range": `bytes ${from}-${to}/${body.length}` }),
      });
      if (this.cuts > 0 && piece.length > 50_000) {
        this.cuts--;
        response.write(piece.subarray(0, 50_000), () => setTimeout(() => response.destroy(), 30));
      } else response.end(piece);
    });
    await new Promise<void>((resolve) => this.server?.listen(0, "127.0.0.1", resolve));
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    this.server?.closeAllConnections();
    await new Promise((resolve) => (this.server ? this.server.close(resolve) : resolve(undefined)));
    this.server = undefined;
  }
}

function entry([path, body]: [string, Buffer]): object {
  const oid = createHash("sha1").update(`blob ${body.length}\0`).update(body).digest("hex");
  if (!/\.(safetensors|gguf)$/.test(path)) return { type: "file", path, size: body.length, oid };
  const sha256 = createHash("sha256").update(body).digest("hex");
  return { type: "file", path, size: body.length, oid, lfs: { oid: sha256, size: body.length, pointerSize: 134 } };
}

describe("a hub", () => {
  let hub: FakeHub;
  let hubUrl: string;
  let cache: string;
  const weights = Buffer.from(Uint8Array.from({ length: 200_000 }, (_, i) => (i * 31) >> 3));
  const fetchIt = (name = "hf:o/m", more: object = {}) => fetchCheckpoint(name, { cache, hubUrl, ...more });
  const refusal = (promise: Promise<unknown>): Promise<FoveaError> =>
    promise.then(
      () => expect.fail("no error"),
      (error: FoveaError) => error,
    );

  beforeEach(async () => {
    hub = new FakeHub();
    hubUrl = await hub.start();
    cache = mkdtempSync(join(tmpdir(), "fovea-"));
    hub.files.set("config.json", Buffer.from("{}"));
    hub.files.set("tokenizer.json", Buffer.from('{"a":1}'));
    hub.files.set("README.md", Buffer.from("not needed"));
    hub.files.set("pytorch_model.bin", Buffer.from("not needed"));
    hub.files.set("model.safetensors", weights);
  });
  afterEach(async () => {
    await hub.stop();
    rmSync(cache, { recursive: true });
  });

  test("only the needed files are fetched, and once", async () => {
    const seen: HubProgress[] = [];
    const got = await fetchIt("hf:o/m", { onProgress: (progress: HubProgress) => seen.push(progress) });
    expect(got).toEqual({ kind: "safetensors", path: join(cache, "hub/o--m/main"), offline: false });
    expect(readdirSync(got.path).sort()).toEqual([".fovea.json", "config.json", "model.safetensors", "tokenizer.json"]);
    expect(readFileSync(join(got.path, "model.safetensors")).equals(weights)).toBe(true);
    const received = seen.map((progress) => progress.received);
    expect(received).toEqual([...received].sort((a, b) => a - b));
    expect(seen.at(-1)).toMatchObject({ received: 200_009, total: 200_009, filesDone: 3, files: 3 });
    hub.requests.length = 0;
    await fetchIt();
    expect(hub.requests).toEqual(["/api/models/o/m/tree/main"]);
  });

  test("a changed file is fetched again, the others are not", async () => {
    await fetchIt();
    hub.files.set("config.json", Buffer.from('{"new":true}'));
    hub.requests.length = 0;
    const { path } = await fetchIt();
    expect(readFileSync(join(path, "config.json"), "utf8")).toBe('{"new":true}');
    expect(new Set(hub.requests)).toEqual(new Set(["/api/models/o/m/tree/main", "/o/m/resolve/main/config.json"]));
  });

  test("a broken line is taken up where it broke", async () => {
    hub.cuts = 2;
    const { path } = await fetchIt();
    expect(readFileSync(join(path, "model.safetensors")).equals(weights)).toBe(true);
    expect(readdirSync(path).some((name) => name.endsWith(".part"))).toBe(false);
  });

  test("a cancelled download is taken up by the next one", async () => {
    const control = new AbortController();
    const onProgress = ({ file, received }: HubProgress): void => {
      if (file === "model.safetensors" && received > 1000) control.abort();
    };
    hub.cuts = 1;
    const error = await refusal(fetchIt("hf:o/m", { signal: control.signal, onProgress }));
    expect(error.code).toBe("aborted");
    const folder = join(cache, "hub/o--m/main");
    const part = readdirSync(folder).find((name) => name.endsWith(".part")) ?? "";
    const had = readFileSync(join(folder, part)).length;
    expect(had).toBeGreaterThan(0);
    const first: HubProgress[] = [];
    await fetchIt("hf:o/m", { onProgress: (progress: HubProgress) => first.push(progress) });
    expect(first.find(({ file }) => file === "model.safetensors")?.received).toBeGreaterThan(had);
    expect(readFileSync(join(folder, "model.safetensors")).equals(weights)).toBe(true);
  });

  test("contents are held to their checksum", async () => {
    hub.corrupt = true;
    expect((await refusal(fetchIt())).message).toContain("wrong checksum");
    expect(existsSync(join(cache, "hub/o--m/main/model.safetensors"))).toBe(false);
  });

  test("shards are those that the index names", async () => {
    hub.files.delete("model.safetensors");
    hub.files.set("model-1.safetensors", weights);
    hub.files.set("model-2.safetensors", weights);
    hub.files.set("consolidated.safetensors", weights);
    hub.files.set(
      "model.safetensors.index.json",
      Buffer.from('{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}'),
    );
    const { path } = await fetchIt();
    expect(readdirSync(path).filter((name) => name.endsWith(".safetensors"))).toEqual([
      "model-1.safetensors",
      "model-2.safetensors",
    ]);
    hub.files.set("model.safetensors.index.json", Buffer.from('{"weight_map":{"a":"../evil.safetensors"}}'));
    expect((await refusal(fetchIt())).message).toContain("no plain file name");
    hub.files.set("model.safetensors.index.json", Buffer.from('{"weight_map":{"a":"gone.safetensors"}}'));
    expect((await refusal(fetchIt())).message).toContain("lacks gone.safetensors");
  });

  test("a GGUF file is fetched alone; one of several must be named", async () => {
    hub.files.set("m-q8.gguf", weights);
    hub.files.set("sub/m-q4.gguf", weights);
    const got = await fetchIt("hf:o/m:m-q8.gguf");
    expect(got).toEqual({ kind: "gguf", path: join(cache, "hub/o--m/main/m-q8.gguf"), offline: false });
    expect(readdirSync(join(cache, "hub/o--m/main")).sort()).toEqual([".fovea.json", "m-q8.gguf"]);
    expect((await fetchIt("hf:o/m:sub/m-q4.gguf")).path).toBe(join(cache, "hub/o--m/main/sub/m-q4.gguf"));
    expect((await refusal(fetchIt("hf:o/m:x.gguf"))).hint).toContain("m-q8.gguf");
    hub.files.delete("model.safetensors");
    expect((await refusal(fetchIt())).message).toContain("2 GGUF files");
    hub.files.delete("sub/m-q4.gguf");
    expect((await fetchIt()).kind).toBe("gguf");
    hub.files.delete("m-q8.gguf");
    expect((await refusal(fetchIt())).code).toBe("unsupported");
  });

  test("without a network what is cached is used, and nothing else", async () => {
    const error = await refusal(fetchIt("hf:o/m", { offline: true }));
    expect([error.code, error.message]).toEqual(["not-found", expect.stringContaining("is not in the cache")]);
    expect(hub.requests).toEqual([]);
    await fetchIt();
    await hub.stop();
    expect(await fetchIt("hf:o/m", { offline: true })).toMatchObject({ kind: "safetensors", offline: true });
    expect(await fetchIt()).toMatchObject({ kind: "safetensors", offline: true });
    const other = await refusal(fetchIt("hf:o/other"));
    expect(other.code).toBe("not-found");
    expect(other.message).toContain("the hub cannot be reached");
    rmSync(join(cache, "hub/o--m/main/config.json"));
    expect((await refusal(fetchIt("hf:o/m", { offline: true }))).code).toBe("not-found");
  });

  test("what the hub refuses is explained", async () => {
    hub.status = 401;
    expect((await refusal(fetchIt())).hint).toContain("HF_TOKEN");
    hub.status = 404;
    expect((await refusal(fetchIt())).message).toContain("no model o/m");
    hub.status = 500;
    expect((await refusal(fetchIt())).message).toContain("the hub failed");
  });
});
