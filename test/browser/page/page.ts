import { type FoveaError, load, method } from "fovea";
import { z } from "zod";
import { type Results, runModel, TEXT } from "../scenario.js";

/** What the page sends to the test when it is done. */
export interface Report {
  isolated: boolean;
  results: Record<string, Results>;
  /** Ids written with a method that is a function of this page. */
  ownMethod: number[];
  ownMethodFull: number[];
  /** Ids written by a GGUF file that the user chose (a blob: URL); undefined when there is none. */
  blob?: number[];
  progress: string[];
  errors: Record<string, string>;
  milliseconds: number;
}

async function codeOf(work: () => Promise<unknown>): Promise<string> {
  try {
    await work();
    return "none";
  } catch (error) {
    const { code, message } = error as FoveaError;
    return `${code}: ${message}`;
  }
}

async function run(): Promise<Report> {
  const begun = performance.now();
  const results: Record<string, Results> = {};
  const errors: Record<string, string> = {};
  const progress = new Set<string>();
  const home = new URL("/models/tiny", location.href).href;

  const worker = await load(home, { threads: 2, onProgress: ({ stage }) => progress.add(stage) });
  results.worker = await runModel(worker);
  const reading = await worker.read(TEXT);
  errors.save = await codeOf(() => reading.save("reading.cache"));
  await worker.close();
  errors.closed = await codeOf(() => worker.logits(TEXT));

  const int8 = await load("/models/tiny", { threads: 2, precision: "int8", cache: "float32" });
  results.int8 = await runModel(int8);
  await int8.close();

  const here = await load(home, { threads: 2, worker: false });
  results.main = await runModel(here);
  const recent = method({
    name: "recent",
    family: "streaming",
    does: "Reads the newest tokens only.",
    parameters: z.object({ window: z.int().min(1).default(4) }),
    exact: { window: 2 ** 30 },
    select: (_step, { window }) => [{ window }],
  });
  const options = { maxTokens: 8, ignoreEos: true };
  const ownMethod = (await here.with(recent({ window: 4 })).generate(TEXT, options).result).ids;
  const ownMethodFull = (await here.with(recent({ window: 1000 })).generate(TEXT, options).result).ids;
  await here.close();

  const sharded = await load("/sharded", { threads: 1 });
  results.sharded = await runModel(sharded);
  await sharded.close();

  // a file as <input type="file"> gives it
  const bytes = await (await fetch("/tiny.gguf")).blob();
  const chosen = await load(`${URL.createObjectURL(bytes)}#tiny.gguf`, { threads: 1 });
  const blob = (await chosen.generate(TEXT, options).result).ids;
  await chosen.close();

  errors.missing = await codeOf(() => load("/models/none"));
  errors.startPage = await codeOf(() => load("/spa/none"));
  errors.hub = await codeOf(() => load("hf:owner/name"));
  return {
    isolated: crossOriginIsolated,
    results,
    ownMethod,
    ownMethodFull,
    blob,
    progress: [...progress],
    errors,
    milliseconds: performance.now() - begun,
  };
}

const answer = await run().catch((error: unknown) => ({
  failed: error instanceof Error ? `${error.stack ?? error.message}\n${String(error.cause ?? "")}` : String(error),
}));
await fetch("/report", { method: "POST", body: JSON.stringify(answer) });
