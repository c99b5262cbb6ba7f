import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "vite";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { convert, load } from "../../src/index.js";
import { openSafetensors } from "../../src/models/index.js";
import { writeSafetensors } from "../../src/models/safetensors.js";
import { openPage } from "./chromium.js";
import type { Report } from "./page/page.js";
import { type Results, runModel } from "./scenario.js";
import { type PageServer, servePage } from "./server.js";

// the library in a page: `npm run test:browser`
const root = fileURLToPath(new URL("../..", import.meta.url));
const program = process.env.CHROMIUM ?? "chromium";
const work = mkdtempSync(join(tmpdir(), "fovea-page-"));
const site = join(work, "site");
const sharded = join(work, "sharded");

afterAll(() => rmSync(work, { recursive: true, force: true }));

/** The tiny model again, its tensors in two files with an index. */
async function writeShards(): Promise<void> {
  cpSync(join(root, "models/tiny"), sharded, { recursive: true });
  const file = await openSafetensors(join(sharded, "model.safetensors"));
  const names = [...file.tensors.keys()];
  const map: Record<string, string> = {};
  for (const half of [0, 1]) {
    const shard = `model-0000${half + 1}-of-00002.safetensors`;
    const tensors = [];
    for (const name of names.filter((_, i) => i % 2 === half)) {
      map[name] = shard;
      tensors.push({ name, dtype: "F32", shape: file.tensors.get(name)?.shape ?? [], data: await file.read(name) });
    }
    await writeSafetensors(join(sharded, shard), tensors);
  }
  await file.close();
  rmSync(join(sharded, "model.safetensors"));
  writeFileSync(join(sharded, "model.safetensors.index.json"), JSON.stringify({ weight_map: map }));
}

const long = readFileSync(join(root, "examples/harbour.txt"), "utf8");
let node: Results;
let nodeInt8: Results;

beforeAll(async () => {
  // bundled as an application would: the built library, Vite's defaults and module workers
  await build({
    root: join(root, "test/browser/page"),
    configFile: false,
    logLevel: "error",
    publicDir: false,
    resolve: { alias: { fovea: join(root, "dist/index.js") } },
    worker: { format: "es" },
    build: { outDir: site, emptyOutDir: true, target: "esnext", reportCompressedSize: false },
  });
  await writeShards();
  mkdirSync(join(work, "files"));
  await convert(join(root, "models/tiny"), join(work, "files/tiny.gguf"), { type: "f32" });
  const options = { threads: 1, worker: false } as const;
  const model = await load(join(root, "models/tiny"), options);
  node = await runModel(model, long);
  await model.close();
  const int8 = await load(join(root, "models/tiny"), { ...options, precision: "int8", cache: "float32" });
  nodeInt8 = await runModel(int8, long);
  await int8.close();
});

async function visit(isolated: boolean, ranges: boolean): Promise<{ report: Report; server: PageServer }> {
  const server = await servePage({
    isolated,
    ranges,
    folders: {
      "/": site,
      "/models/": join(root, "models"),
      "/sharded/": sharded,
      "/harbour.txt": join(root, "examples/harbour.txt"),
      "/tiny.gguf": join(work, "files/tiny.gguf"),
    },
  });
  const browser = openPage(program, server.url);
  try {
    const gone = new Promise<never>((_, reject) => {
      browser.process.once("error", reject);
      browser.process.once("exit", (code) => reject(new Error(`${program} ended with code ${code}`)));
      setTimeout(() => reject(new Error(`the page did not report in time:\n${browser.log.join("\n")}`)), 300_000);
    });
    gone.catch(() => undefined);
    const report = (await Promise.race([server.report, gone])) as Report & { failed?: string };
    if (report.failed) throw new Error(`the page failed: ${report.failed}\n${browser.log.join("\n")}`);
    if (process.env.FOVEA_LOG) {
      writeFileSync(
        `${process.env.FOVEA_LOG}.${isolated}.json`,
        JSON.stringify({ report, log: browser.log, requests: server.requests }),
      );
    }
    return { report, server };
  } finally {
    await browser.close();
    await server.close();
  }
}

function expectClose(actual: readonly number[], expected: readonly number[], tolerance: number): void {
  expect(actual.length).toBe(expected.length);
  let most = 0;
  for (let i = 0; i < actual.length; i++) most = Math.max(most, Math.abs(actual[i] - expected[i]));
  expect(most).toBeLessThan(tolerance);
}

function expectSame(page: Results, reference: Results, tolerance: number): void {
  expect(page.greedy).toEqual(reference.greedy);
  expect(page.text).toBe(reference.text);
  expect(page.pieces).toBe(reference.text);
  expect(page.streaming).toEqual(reference.streaming);
  expect(page.answer).toBe(reference.answer);
  expect(page.sampled).toEqual(reference.sampled);
  expect(page.continued).toBe(reference.continued);
  expect(Math.abs(page.streamingScore - reference.streamingScore)).toBeLessThan(tolerance * 100);
  expectClose(page.logits, reference.logits, tolerance);
  expect([page.attention.rows, page.attention.columns]).toEqual([
    reference.attention.rows,
    reference.attention.columns,
  ]);
  expectClose(page.attention.data, reference.attention.data, tolerance);
  expect(Math.abs(page.score - reference.score)).toBeLessThan(tolerance * 100);
}

describe.each([
  { name: "an isolated page", isolated: true, ranges: true },
  { name: "a page without isolation, from a server without ranges", isolated: false, ranges: false },
])("$name", ({ isolated, ranges }) => {
  let report: Report;
  let server: PageServer;
  beforeAll(async () => {
    ({ report, server } = await visit(isolated, ranges));
  });

  test("has the threads that it can have", () => {
    expect(report.isolated).toBe(isolated);
    for (const run of ["worker", "main", "int8"]) expect(report.results[run].threads).toBe(isolated ? 2 : 1);
    // the calling thread and one more, where memory can be shared
    expect(report.kernelThreads).toBe(isolated ? 1 : 0);
  });

  test("the reference answers from the text", () => {
    expect(node.answer).toBe(" Ada Moreau");
    expect(node.streaming).not.toEqual(node.greedy);
  });

  test("a run in the worker ends when it is aborted", () => {
    expect(report.aborted).toBe("aborted");
  });

  test.each(["worker", "main", "sharded"])("%s: ids, logits, attention and score are Node's", (run) => {
    expectSame(report.results[run], node, 1e-3);
  });

  test("int8 weights: the same", () => {
    expectSame(report.results.int8, nodeInt8, 0.05);
  });

  test("a method of the page's own", () => {
    expect(report.ownMethodFull).toEqual(node.greedy.slice(0, 8));
    expect(report.ownMethod).not.toEqual(report.ownMethodFull);
  });

  test("a GGUF file behind a blob: URL", () => {
    expect(report.blob).toEqual(node.greedy.slice(0, 8));
  });

  test("progress arrives from the worker", () => {
    expect(report.progress.length).toBeGreaterThan(0);
  });

  test("errors say what is not there", () => {
    expect(report.errors.missing).toMatch(/^not-found: .*config\.json/);
    expect(report.errors.startPage).toMatch(/^not-found: .*config\.json/);
    expect(report.errors.hub).toMatch(/^unsupported:/);
    expect(report.errors.save).toMatch(/^unsupported: .*no file system/);
    expect(report.errors.closed).toMatch(/^closed:/);
  });

  test("weights are read by ranges where the server has them", () => {
    const weights = server.requests.filter((r) => r.startsWith("/models/tiny/model.safetensors"));
    expect(weights.length).toBeGreaterThan(0);
    const longest = Math.max(...weights.map((r) => /bytes=(\d+)-(\d+)/.exec(r)).map((m) => (m ? +m[2] - +m[1] : 0)));
    expect(longest).toBeLessThan(readFileSync(join(root, "models/tiny/model.safetensors")).length / 2);
  });
});
