/** A thread that serves the kernels of one memory until the memory's stop flag is set. */
export interface KernelThread {
  end(): void;
}

interface ServeData {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  readonly scratch: number;
  readonly spins: number;
}

const SERVE = "new WebAssembly.Instance(d.module,{env:{memory:d.memory}}).exports.serve(d.scratch,d.spins)";

/** True where memory can be shared between threads: Node, or a browser page that is cross-origin isolated. */
export function threadsAvailable(): boolean {
  if (typeof SharedArrayBuffer === "undefined") return false;
  return nodeThreads() !== undefined || (globalThis.crossOriginIsolated === true && typeof Worker !== "undefined");
}

function nodeThreads(): typeof import("node:worker_threads") | undefined {
  if (typeof process === "undefined" || !process.versions?.node) return undefined;
  return process.getBuiltinModule?.("node:worker_threads");
}

/** Starts a thread. Its script is a string, so that it needs no file of its own beside the bundle. */
export function startThread(data: ServeData): KernelThread {
  const node = nodeThreads();
  if (node) {
    const worker = new node.Worker(`const d=require("node:worker_threads").workerData;${SERVE}`, {
      eval: true,
      workerData: data,
      execArgv: [],
      name: "fovea kernels",
    });
    worker.unref();
    return { end: () => void worker.terminate() };
  }
  const url = URL.createObjectURL(new Blob([`onmessage=(e)=>{const d=e.data;${SERVE}}`], { type: "text/javascript" }));
  const worker = new Worker(url);
  worker.postMessage(data);
  return {
    end: () => {
      worker.terminate();
      URL.revokeObjectURL(url);
    },
  };
}
