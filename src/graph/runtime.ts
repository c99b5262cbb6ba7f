import type * as ort from "onnxruntime-node";
import { FoveaError } from "../error.js";

/** ONNX Runtime's JavaScript interface, the same in Node and in a browser. */
export type Runtime = typeof ort;

/** ONNX Runtime's tensor: data, dims, type and where it lies. */
export type RuntimeTensor = ort.Tensor;

/** Where a session runs. "auto": a GPU where one is known to be there, else the processor. */
export type Provider = "cpu" | "webgpu" | "cuda" | "auto";

let loaded: Promise<Runtime> | undefined;

/** Whether this is Node (or another runtime that can load its modules). */
export function isNode(): boolean {
  return typeof process !== "undefined" && process.versions?.node !== undefined;
}

/** Loads onnxruntime-node in Node, onnxruntime-web in a browser. Throws `unsupported` where it is not installed. */
export function loadRuntime(): Promise<Runtime> {
  loaded ??= importRuntime();
  return loaded;
}

async function importRuntime(): Promise<Runtime> {
  try {
    // package.json's "imports" say which it is, so that a bundler takes the one that its target needs
    const module = (await import("#onnxruntime")) as Runtime & { default?: Runtime };
    return module.default ?? module;
  } catch (cause) {
    loaded = undefined;
    const name = isNode() ? "onnxruntime-node" : "onnxruntime-web";
    throw new FoveaError("unsupported", `${name} could not be loaded`, {
      cause,
      hint: `install it: npm install ${name}`,
    });
  }
}

/**
 * Sets what holds for all sessions of the runtime. In a browser its thread pool is made with the first session; a page
 * that is not cross-origin isolated has one thread.
 */
export function configureRuntime(runtime: Runtime, threads: number): void {
  if (!isNode()) runtime.env.wasm.numThreads = globalThis.crossOriginIsolated ? threads : 1;
}

/** The number of processor cores that this process may use. */
export async function availableCores(): Promise<number> {
  if (!isNode()) return globalThis.navigator?.hardwareConcurrency ?? 1;
  const { availableParallelism } = await import("node:os");
  return availableParallelism();
}

/** A provider that a session can be made on. */
export type RealProvider = Exclude<Provider, "auto">;

let automatic: Promise<readonly RealProvider[]> | undefined;

/**
 * The providers to try, best first. For "auto": CUDA where its library was installed, WebGPU where the machine (or the
 * browser) has a graphics device, then the processor.
 */
export async function providersFor(provider: Provider): Promise<readonly RealProvider[]> {
  if (provider !== "auto") return [provider];
  automatic ??= isNode() ? nodeProviders() : Promise.resolve(browserProviders());
  return automatic;
}

/** Makes "auto" mean this provider from now on: it was found to work. */
export function settleAutomatic(provider: RealProvider): void {
  automatic = Promise.resolve([provider]);
}

function browserProviders(): RealProvider[] {
  return "gpu" in globalThis.navigator ? ["webgpu", "cpu"] : ["cpu"];
}

async function nodeProviders(): Promise<RealProvider[]> {
  const { existsSync } = await import("node:fs");
  const { createRequire } = await import("node:module");
  const { dirname, join } = await import("node:path");
  const entry = createRequire(import.meta.url).resolve("onnxruntime-node");
  const libraries = join(dirname(entry), "..", "bin", "napi-v6", process.platform, process.arch);
  const cuda = ["libonnxruntime_providers_cuda.so", "onnxruntime_providers_cuda.dll"];
  const devices = ["/dev/dri", "/dev/nvidia0", "/dev/dxg"];
  const found: RealProvider[] = [];
  if (cuda.some((file) => existsSync(join(libraries, file)))) found.push("cuda");
  if (process.platform !== "linux" || devices.some((file) => existsSync(file))) found.push("webgpu");
  return [...found, "cpu"];
}
