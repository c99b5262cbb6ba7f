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
  /** Threads of the kernels that the page started for the model in its own thread. */
  kernelThreads: number;
  /** Milliseconds from `load` to the model, by run. */
  loading: Record<string, number>;
  /** How a run ended that was aborted after some pieces. */
  aborted: string;
  errors: Record<string, string>;
  milliseconds: number;
}

/** Counts the threads that are started from a script in memory, as the kernels' are. */
let kernelThreads = 0;
globalThis.Worker = class extends Worker {
  constructor(url: string | URL, options?: WorkerOptions) {
    super(url, options);
    if (String(url).startsWith("blob:")) kernelThreads++;
  }
};

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
  const loading: Record<string, number> = {};
  const timed: typeof load = async (name, options) => {
    const start = performance.now();
    const model = await load(name, options);
    const run = `${name} ${JSON.stringify(options)}`;
    loading[run] = Math.round(performance.now() - start);
    return model;
  };
  const long = await (await fetch("/harbour.txt")).text();
  const home = new URL("/models/tiny", location.href).href;

  const worker = await timed(home, { threads: 2, onProgress: ({ stage }) => progress.add(stage) });
  results.worker = await runModel(worker, long);
  const reading = await worker.read(TEXT);
  const stop = new AbortController();
  const endless = worker.generate(TEXT, { maxTokens: 5000, ignoreEos: true, signal: stop.signal });
  let seen = 0;
  for await (const _ of endless) if (++seen === 5) stop.abort();
  const aborted = (await endless.result).finish;
  errors.save = await codeOf(() => reading.save("reading.cache"));
  await worker.close();
  errors.closed = await codeOf(() => worker.logits(TEXT));

  const int8 = await timed("/models/tiny", { threads: 2, precision: "int8", cache: "float32" });
  results.int8 = await runModel(int8, long);
  await int8.close();

  const before = kernelThreads;
  const here = await timed(home, { threads: 2, worker: false });
  results.main = await runModel(here, long);
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
  const ownThreads = kernelThreads - before;

  const sharded = await timed("/sharded", { threads: 1 });
  results.sharded = await runModel(sharded, long);
  await sharded.close();

  // a file as <input type="file"> gives it
  const bytes = await (await fetch("/tiny.gguf")).blob();
  const chosen = await timed(`${URL.createObjectURL(bytes)}#tiny.gguf`, { threads: 1 });
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
    kernelThreads: ownThreads,
    loading,
    aborted,
    errors,
    milliseconds: performance.now() - begun,
  };
}

const answer = await run().catch((error: unknown) => ({
  failed: error instanceof Error ? `${error.stack ?? error.message}\n${String(error.cause ?? "")}` : String(error),
}));
await fetch("/report", { method: "POST", body: JSON.stringify(answer) });
