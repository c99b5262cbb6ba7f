import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { FoveaError } from "../error.js";
import { blobSource, memorySource, openSource } from "./source.js";

const bytes = Uint8Array.from({ length: 1000 }, (_, i) => i % 251);
let folder: string;
let path: string;
let server: Server;
let url: string;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "fovea-"));
  path = join(folder, "bytes.bin");
  writeFileSync(path, bytes);
  server = createServer((request, response) => {
    const range = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? "");
    if (request.url === "/gone") response.writeHead(404).end();
    else if (request.url === "/short")
      response.writeHead(206, { "content-range": "bytes 0-0/1000" }).end(bytes.subarray(0, 1));
    else if (request.url === "/plain" || !range) response.writeHead(200).end(bytes);
    else {
      const [from, to] = [Number(range[1]), Number(range[2])];
      response.writeHead(206, { "content-range": `bytes ${from}-${to}/1000` }).end(bytes.subarray(from, to + 1));
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterAll(async () => {
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
  rmSync(folder, { recursive: true });
});

const kinds: [string, () => Promise<Parameters<typeof openSource>[0]>][] = [
  ["a path", async () => path],
  ["a file URL", async () => pathToFileURL(path)],
  ["bytes", async () => bytes],
  ["a blob", async () => new Blob([bytes])],
  ["a file of a form", async () => new File([bytes], "bytes.bin")],
  ["a URL with ranges", async () => `${url}/ranges`],
  ["a URL without", async () => new URL(`${url}/plain`)],
  ["a source", async () => memorySource(bytes)],
];

describe.each(kinds)("%s", (_, make) => {
  test("reads any range, and none outside", async () => {
    const source = await openSource(await make());
    expect(source.size).toBe(1000);
    expect(await source.read(0, 1000)).toEqual(bytes);
    expect(await source.read(17, 5)).toEqual(bytes.subarray(17, 22));
    expect(await source.read(1000, 0)).toEqual(new Uint8Array(0));
    if (source.readSync) expect(source.readSync(990, 10)).toEqual(bytes.subarray(990));
    const outside: [number, number][] = [
      [0, 1001],
      [999, 2],
      [-1, 1],
      [1, -1],
      [0.5, 1],
      [Number.NaN, 1],
      [2 ** 53, 1],
      [0, Number.POSITIVE_INFINITY],
    ];
    for (const [offset, length] of outside) {
      await expect(source.read(offset, length)).rejects.toThrow(FoveaError);
      if (source.readSync) expect(() => source.readSync?.(offset, length)).toThrow(FoveaError);
    }
    // What is read belongs to the reader.
    (await source.read(0, 10)).fill(99);
    expect(await source.read(0, 2)).toEqual(bytes.subarray(0, 2));
    await source.close();
  });
});

const refusal = (promise: Promise<unknown>): Promise<FoveaError> =>
  promise.then(
    () => expect.fail("no error"),
    (error: FoveaError) => error,
  );

test("what is not there, or no file", async () => {
  expect((await refusal(openSource(join(folder, "gone")))).code).toBe("not-found");
  expect((await refusal(openSource(folder))).code).toBe("bad-input");
  expect((await refusal(openSource(`${url}/gone`))).message).toContain("404");
  expect((await refusal(openSource("http://127.0.0.1:1/x"))).message).toContain("cannot reach");
  expect(blobSource(new Blob([bytes])).name).toBe("blob");
});

test("a server that sends too little", async () => {
  const source = await openSource(`${url}/short`);
  expect((await refusal(source.read(0, 10))).message).toContain("sent 1 bytes for a range of 10");
});

test("a file that shrinks while it is open, and one that was closed", async () => {
  const shrinking = join(folder, "shrinking.bin");
  writeFileSync(shrinking, bytes);
  const source = await openSource(shrinking);
  truncateSync(shrinking, 100);
  expect((await refusal(source.read(50, 100))).message).toContain("it ended at byte 100");
  expect(() => source.readSync?.(50, 100)).toThrow(/it ended at byte 100/);
  await source.close();
  await source.close();
  expect((await refusal(source.read(0, 1))).code).toBe("closed");
});
