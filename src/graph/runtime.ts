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
  loaded ??= importRuntime(isNode() ? "onnxruntime-node" : "onnxruntime-web");
  return loaded;
}

async function importRuntime(name: string): Promise<Runtime> {
  try {
    const module: Runtime & { default?: Runtime } = await import(/* @vite-ignore */ name);
    return module.default ?? module;
  } catch (cause) {
    loaded = undefined;
    throw new FoveaError("unsupported", `${name} could not be loaded`, {
      cause,
      hint: `install it: npm install ${name}`,
    });
  }
}

/** The number of processor cores that this process may use. */
export async function availableCores(): Promise<number> {
  if (!isNode()) return globalThis.navigator?.hardwareConcurrency ?? 1;
  const { availableParallelism } = await import("node:os");
  return availableParallelism();
}

/**
 * The provider that "auto" stands for. In a browser WebGPU where it is offered. In Node the processor: the kernels that
 * read the cache run there, and a GPU is asked for by name.
 */
export function resolveProvider(provider: Provider): Exclude<Provider, "auto"> {
  if (provider !== "auto") return provider;
  return !isNode() && "gpu" in globalThis.navigator ? "webgpu" : "cpu";
}
