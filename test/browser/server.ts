import { once } from "node:events";
import { createReadStream, statSync } from "node:fs";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { extname, join, normalize } from "node:path";

const TYPES: Readonly<Record<string, string>> = {
  ".html": "text/html",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".json": "application/json",
  ".wasm": "application/wasm",
};

export interface PageServer {
  readonly url: string;
  /** Addresses that were asked for, in order; range requests end in their range. */
  readonly requests: string[];
  /** Resolves with what the page posts to /report. */
  readonly report: Promise<unknown>;
  close(): Promise<void>;
}

export interface ServerOptions {
  /** Folders by the path that they are served under; the longest that fits is taken. */
  readonly folders: Readonly<Record<string, string>>;
  /** Send the headers that make a page cross-origin isolated. */
  readonly isolated: boolean;
  /** Answer range requests with the range. Default true. */
  readonly ranges?: boolean;
}

/** Serves a page and its files on a free port of this machine. Under /spa it answers all with a web page. */
export async function servePage({ folders, isolated, ranges = true }: ServerOptions): Promise<PageServer> {
  const requests: string[] = [];
  let reported: (report: unknown) => void = () => undefined;
  const report = new Promise<unknown>((resolve) => {
    reported = resolve;
  });
  const prefixes = Object.keys(folders).sort((a, b) => b.length - a.length);

  const answer = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const path = normalize(decodeURIComponent(new URL(request.url ?? "/", "http://localhost").pathname));
    requests.push(request.headers.range ? `${path} ${request.headers.range}` : path);
    if (isolated) {
      response.setHeader("Cross-Origin-Opener-Policy", "same-origin");
      response.setHeader("Cross-Origin-Embedder-Policy", "require-corp");
    }
    if (path === "/report") {
      let body = "";
      for await (const piece of request) body += piece;
      reported(JSON.parse(body));
      return void response.end();
    }
    if (path.startsWith("/spa/")) {
      return void response.setHeader("Content-Type", "text/html").end("<!doctype html><title>start</title>");
    }
    const prefix = prefixes.find((p) => path.startsWith(p)) ?? "/";
    const rest = path.slice(prefix.length);
    const file = join(folders[prefix] ?? ".", path === "/" ? "index.html" : rest);
    const size = statSync(file, { throwIfNoEntry: false })?.size;
    if (size === undefined) return void response.writeHead(404).end();
    response.setHeader("Content-Type", TYPES[extname(file)] ?? "application/octet-stream");
    const range = ranges ? /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "") : null;
    if (!range) {
      response.setHeader("Content-Length", size);
      return void createReadStream(file).pipe(response);
    }
    const [start, end] = [Number(range[1]), Math.min(Number(range[2]), size - 1)];
    response.writeHead(206, { "Content-Range": `bytes ${start}-${end}/${size}`, "Content-Length": end - start + 1 });
    createReadStream(file, { start, end }).pipe(response);
  };

  const server = createServer((request, response) => {
    answer(request, response).catch((error: unknown) => response.writeHead(500).end(String(error)));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    requests,
    report,
    close: async () => {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}
