import { methodString, resolve as resolveMethods } from "./attention/index.js";
import type { LoadOptions, Model } from "./engine/api.js";
import {
  type Connection,
  fromPlainError,
  localConnection,
  type PlainError,
  type Port,
  portConnection,
} from "./engine/connection.js";
import type { AttachedMethod } from "./engine/hooks.js";
import { Host, type HostOptions, type MethodList } from "./engine/host.js";
import { createModel } from "./engine/model.js";
import { aborted, checkAbort, FoveaError } from "./error.js";
import { threadsAvailable } from "./kernels/index.js";
import { type Checkpoint, EMBEDDED, openCheckpoint } from "./models/index.js";

/** Models with fewer parameters than this run in float32 unless told otherwise: int8 gains nothing there. */
const SMALL = 50e6;

/**
 * Loads a checkpoint: a folder or file in Hugging Face's formats, a .gguf file, or `hf:owner/name[@revision]`; or the
 * URL of such a folder or file (in a browser always a URL, which may be relative to the page). "nano" is the model that
 * comes with the package.
 *
 * The engine runs in a worker of its own, so the caller's event loop stays free; with `worker: false` it runs in the
 * calling thread, where a method may be any function and a run blocks.
 *
 * Throws `not-found` and `bad-file` for what cannot be read, `unknown-model` for a family that is not known,
 * `out-of-memory` when the weights do not fit under `memory`.
 *
 * @example
 * await using model = await load("hf:Qwen/Qwen2.5-0.5B-Instruct");
 * for await (const piece of model.generate("Once upon a time")) process.stdout.write(piece.text);
 */
export async function load(name: string, options: LoadOptions = {}): Promise<Model> {
  checkAbort(options.signal);
  const place = inNode() || EMBEDDED.includes(name) ? name : absolute(name);
  const checkpoint = await openCheckpoint(place, openOptions(options));
  const full = await hostOptions(checkpoint, options);
  const { config, tokenizer, chatTemplate } = checkpoint;
  let connection: Connection;
  if (full.worker === false) {
    connection = localConnection(await Host.create(checkpoint, full, resolveList));
  } else {
    await checkpoint.close();
    connection = await startWorker(place, full);
  }
  const info = await connection.call("info", { methods: [] });
  return createModel({ connection, config, tokenizer, chatTemplate, info, methods: [] });
}

/** What opening a checkpoint needs of the load options. */
export function openOptions({ cacheFolder, signal, onProgress }: LoadOptions): Parameters<typeof openCheckpoint>[1] {
  return { cacheFolder, signal, onProgress: (progress) => onProgress?.({ stage: "download", ...progress }) };
}

/** Options with everything decided: what the machine has, what the checkpoint suggests. */
export async function hostOptions(checkpoint: Checkpoint, options: LoadOptions): Promise<HostOptions> {
  const machine = await machineResources();
  const check = (name: string, value: number | undefined, least: number) => {
    if (value !== undefined && !(Number.isFinite(value) && value >= least))
      throw new FoveaError("bad-input", `${name} is ${value}; expected a number of at least ${least}`);
  };
  check("threads", options.threads, 1);
  check("memory", options.memory, 1);
  return {
    ...options,
    // a page that is not cross-origin isolated shares no memory between threads
    threads: threadsAvailable() ? Math.floor(options.threads ?? machine.threads) : 1,
    memory: options.memory ?? Math.floor(machine.memory * 0.75),
    precision: options.precision ?? (checkpoint.parameters < SMALL ? "float32" : "int8"),
  };
}

/** Resolves method strings by the catalog; objects `{ module, name }` are the caller's own and stay as they are. */
export async function resolveList(methods: MethodList): Promise<AttachedMethod[]> {
  return resolveMethods(methods);
}

function inNode(): boolean {
  return typeof process !== "undefined" && !!process.versions?.node;
}

/** A URL relative to the page, made absolute: the worker's own address is another. */
function absolute(name: string): string {
  if (/^[a-z][a-z0-9+.-]*:/i.test(name)) return name;
  return new URL(name, globalThis.document?.baseURI ?? globalThis.location.href).href;
}

async function machineResources(): Promise<{ threads: number; memory: number }> {
  if (inNode()) {
    const { availableParallelism, totalmem } = await import("node:os");
    return { threads: availableParallelism(), memory: totalmem() };
  }
  return { threads: Math.max(1, navigator.hardwareConcurrency ?? 1), memory: 4 * 2 ** 30 };
}

/** What the worker says before it serves calls. */
export type WorkerMessage =
  | { kind: "progress"; progress: unknown }
  | { kind: "ready" }
  | { kind: "failed"; error: PlainError };

async function startWorker(name: string, options: HostOptions): Promise<Connection> {
  const { signal, onProgress, ...plain } = options;
  let post: (message: unknown) => void;
  let listen: (handler: (message: unknown) => void) => void;
  let onFailure: (handler: (error: Error) => void) => void;
  let end: () => Promise<unknown>;
  let keepAlive: (alive: boolean) => void = () => undefined;
  if (inNode()) {
    const { Worker } = await import("node:worker_threads");
    const worker = new Worker(workerUrl());
    post = (m) => worker.postMessage(m);
    listen = (handler) => void worker.on("message", handler);
    onFailure = (handler) => {
      worker.on("error", handler);
      worker.on("exit", (code) => handler(new FoveaError("closed", `the engine's thread ended with code ${code}`)));
    };
    end = () => worker.terminate();
    keepAlive = (alive) => (alive ? worker.ref() : worker.unref());
  } else {
    // written out in this form, which bundlers look for
    const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    post = (m) => worker.postMessage(m);
    listen = (handler) => worker.addEventListener("message", (e) => handler(e.data));
    onFailure = (handler) => worker.addEventListener("error", (e) => handler(workerError(e)));
    end = async () => worker.terminate();
  }
  const handlers: ((message: unknown) => void)[] = [];
  listen((message) => {
    for (const handler of handlers) handler(message);
  });
  const port: Port = { post, onMessage: (handler) => void handlers.push(handler) };
  let failed: (error: Error) => void = () => undefined;
  onFailure((error) => failed(error));
  const stop = () => failed(aborted(signal));
  signal?.addEventListener("abort", stop, { once: true });
  try {
    await new Promise<void>((resolve, reject) => {
      failed = reject;
      handlers.push((raw) => {
        const message = raw as WorkerMessage;
        if (message.kind === "ready") resolve();
        else if (message.kind === "failed") reject(fromPlainError(message.error));
        else if (message.kind === "progress") onProgress?.(message.progress as never);
      });
      post({ kind: "load", name, options: plain });
    });
  } catch (error) {
    await end();
    throw error;
  } finally {
    signal?.removeEventListener("abort", stop);
  }
  handlers.length = 0;
  const connection = portConnection(port, end);
  failed = (error) => connection.fail(error);
  // an idle engine does not keep the process alive; a running call does
  let running = 0;
  keepAlive(false);
  return {
    ...connection,
    close: () => {
      // closing waits for the worker, which must keep the process alive until it has ended
      keepAlive(true);
      return connection.close();
    },
    call: async (operation, args, callOptions) => {
      if (running++ === 0) keepAlive(true);
      try {
        return await connection.call(operation, named(args), callOptions);
      } finally {
        if (--running === 0) keepAlive(false);
      }
    },
  };
}

/** Arguments whose methods are strings: functions do not cross into the worker. */
function named<A extends object>(args: A): A {
  if (!("methods" in args)) return args;
  const methods = args.methods as MethodList;
  return { ...args, methods: methods.map((m) => (typeof m === "string" ? m : methodString(m))) };
}

/** A script that cannot be loaded gives an event without a message. */
function workerError({ message }: ErrorEvent): FoveaError {
  if (message) return new FoveaError("internal", message);
  return new FoveaError("unsupported", "the engine's worker could not be loaded", {
    hint:
      "The bundler must emit fovea's worker.js; on a page with COEP the server must send that header with it too. " +
      "docs/browser.md shows a setup. Or load with worker: false.",
  });
}

/** The worker's script in Node: beside this one when built; of the build when this runs as source. */
function workerUrl(): URL {
  return import.meta.url.endsWith(".ts")
    ? new URL("../dist/worker.js", import.meta.url)
    : new URL("./worker.js", import.meta.url);
}
