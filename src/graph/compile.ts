import type * as ort from "onnxruntime-node";
import { FoveaError } from "../error.js";
import { type EmitOptions, Emitter, type GraphCut } from "./emit.js";
import {
  availableCores,
  configureRuntime,
  loadRuntime,
  type Provider,
  providersFor,
  type RealProvider,
  settleAutomatic,
} from "./runtime.js";
import { Segment } from "./segment.js";

type SessionOptions = ort.InferenceSession.SessionOptions;

/** Options of `compile`. */
export interface CompileOptions extends EmitOptions {
  /** Default "cpu". "auto" takes the best that the machine has. */
  provider?: Provider;
  /** Threads within an operation (default: the number of cores). */
  threads?: number;
  /**
   * Keep freed activation memory in an arena for the next run (default false). The arena stays as large as the largest
   * run was, in every session: thirty layers that once ran 512 rows kept 390 MB, and were not faster for it.
   */
  arena?: boolean;
  /** Plan all activations of a run as one block (default false: a plan is kept for every input shape ever seen). */
  memoryPattern?: boolean;
  /** On a GPU leave outputs there, for the next segment (default false). */
  outputsOnDevice?: boolean;
}

/**
 * Compiles the part of a graph between `inputs` and `outputs` to a session. Inputs may be `input()` tensors or any inner
 * tensor: the graph is cut there. An `input()` that is reached but not listed becomes an input under its own name.
 *
 * @example
 * const x = input("x", ["T", 4]);
 * const segment = await compile({ outputs: { y: x.linear(parameter("w", [3, 4])).relu() } }, { weights });
 * const { y } = await segment.run({ x: { data: new Float32Array(8), dims: [2, 4] } });
 *
 * @throws FoveaError `not-found` (a parameter without a value), `bad-shape`, `too-large` (past 2 GiB),
 *   `unsupported` (the provider, or an operation on it)
 */
export async function compile(cut: GraphCut, options: CompileOptions = {}): Promise<Segment> {
  const runtime = await loadRuntime();
  configureRuntime(runtime, options.threads ?? (await availableCores()));
  const providers = await providersFor(options.provider ?? "cpu");
  let cause: unknown;
  for (const provider of providers) {
    const model = await new Emitter(options, provider).build(cut);
    try {
      const session = await runtime.InferenceSession.create(model.bytes, await sessionOptions(provider, options));
      if (options.provider === "auto" && providers.length > 1) settleAutomatic(provider);
      return new Segment(runtime, session, { ...model, bytes: model.bytes.length }, provider);
    } catch (error) {
      cause = error;
    }
  }
  const reason = cause instanceof Error ? cause.message : String(cause);
  throw new FoveaError("unsupported", `ONNX Runtime refused the graph on ${providers.join(", ")}: ${reason}`, {
    cause,
    hint: providers.includes("cpu") ? undefined : 'try provider "cpu"',
  });
}

async function sessionOptions(provider: RealProvider, options: CompileOptions): Promise<SessionOptions> {
  return {
    executionProviders: provider === "cpu" ? ["cpu"] : [provider, "cpu"],
    graphOptimizationLevel: "all",
    executionMode: "sequential",
    intraOpNumThreads: options.threads ?? (await availableCores()),
    interOpNumThreads: 1,
    enableCpuMemArena: options.arena ?? false,
    enableMemPattern: options.memoryPattern ?? false,
    logSeverityLevel: 3,
    // Threads that spin for long starve the other sessions of the process; ten microseconds bridge the gap between two
    // operators (a tenth of a decode step, measured), and none spins once a run has ended.
    extra: { session: { intra_op: { allow_spinning: "1", spin_duration_us: "10" }, force_spinning_stop: "1" } },
    preferredOutputLocation: options.outputsOnDevice && provider === "webgpu" ? "gpu-buffer" : undefined,
  };
}

/**
 * A standard ONNX file of the part of a graph between `inputs` and `outputs`, with parameters as initializers. It runs
 * wherever ONNX does; with precision int8 or int4 it needs ONNX Runtime (com.microsoft.MatMulNBits).
 *
 * @throws FoveaError as `compile`
 */
export function exportOnnx(cut: GraphCut, options: EmitOptions = {}): Uint8Array {
  return new Emitter({ standard: true, ...options }).buildNow(cut).bytes;
}
