import { type Port, plainError, serve } from "./engine/connection.js";
import { Host, type HostOptions } from "./engine/host.js";
import { openOptions, resolveList, type WorkerMessage } from "./load.js";
import { openCheckpoint } from "./models/index.js";

/** The engine's own thread: loads one checkpoint, then answers calls. */
interface LoadMessage {
  kind: "load";
  name: string;
  options: HostOptions;
}

async function start(port: Port): Promise<void> {
  const say = (message: WorkerMessage) => port.post(message);
  port.onMessage((raw) => {
    const message = raw as LoadMessage;
    if (message.kind !== "load") return;
    const options: HostOptions = { ...message.options, onProgress: (progress) => say({ kind: "progress", progress }) };
    openCheckpoint(message.name, openOptions(options))
      .then((checkpoint) => Host.create(checkpoint, options, resolveList))
      .then((host) => {
        serve(host, port);
        say({ kind: "ready" });
      })
      .catch((error: unknown) => say({ kind: "failed", error: plainError(error) }));
  });
}

async function port(): Promise<Port> {
  if (typeof process !== "undefined" && process.versions?.node) {
    const { parentPort } = await import("node:worker_threads");
    if (!parentPort) throw new Error("this script runs as a worker only");
    const parent = parentPort;
    return { post: (m) => parent.postMessage(m), onMessage: (handler) => void parent.on("message", handler) };
  }
  const scope = globalThis as unknown as Worker;
  return {
    post: (m) => scope.postMessage(m),
    onMessage: (handler) => scope.addEventListener("message", (e) => handler(e.data)),
  };
}

void port().then(start);
