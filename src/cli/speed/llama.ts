import type { Llama, LlamaModel, Token } from "node-llama-cpp";
import { FoveaError } from "../../error.js";
import type { Measurement, Setting } from "./measure.js";

/** llama.cpp's cache type in these measurements is f16; q8_0 keeps 32 values in 34 bytes. */
export const Q8_0_SHARE = 34 / 32 / 2;

interface CacheShape {
  readonly layers: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

interface LlamaOptions {
  /** A GGUF file. */
  readonly file: string;
  readonly threads: number;
  readonly batches: readonly number[];
  readonly shape: CacheShape;
}

/** Loads a GGUF file into llama.cpp on the CPU: one setting for flash attention on and off and each batch size. */
export async function llamaSettings(options: LlamaOptions): Promise<Setting[]> {
  const { getLlama, LlamaLogLevel } = await importLlama();
  const llama = await getLlama({
    gpu: false,
    build: "never",
    progressLogs: false,
    logLevel: LlamaLogLevel.error,
    maxThreads: 0,
  });
  const model = await loadModel(llama, options.file);
  let open = 0;
  const settings = [false, true].flatMap((flashAttention) =>
    options.batches.map((batchSize): Setting => {
      open++;
      return {
        engine: "llama.cpp",
        method: `flash attention ${flashAttention ? "on" : "off"}, batch ${batchSize}`,
        measure: (ids, decodeTokens, signal) =>
          measure(model, ids, decodeTokens, { flashAttention, batchSize, ...options }, signal),
        close: async () => {
          if (--open === 0) await llama.dispose();
        },
      };
    }),
  );
  return settings;
}

async function importLlama(): Promise<typeof import("node-llama-cpp")> {
  try {
    return await import("node-llama-cpp");
  } catch (cause) {
    throw new FoveaError(
      "unsupported",
      "--against llama.cpp needs the package node-llama-cpp, which is not installed",
      {
        hint: "npm install node-llama-cpp",
        cause,
      },
    );
  }
}

async function loadModel(llama: Llama, modelPath: string): Promise<LlamaModel> {
  try {
    return await llama.loadModel({ modelPath });
  } catch (cause) {
    await llama.dispose();
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new FoveaError("bad-file", `llama.cpp cannot load ${modelPath}: ${reason}`, { cause });
  }
}

interface MeasureOptions {
  readonly flashAttention: boolean;
  readonly batchSize: number;
  readonly threads: number;
  readonly shape: CacheShape;
}

/** The same work as ours: all ids but the last are read, then tokens are generated from the last one on. */
async function measure(
  model: LlamaModel,
  ids: readonly number[],
  decodeTokens: number,
  { flashAttention, batchSize, threads, shape }: MeasureOptions,
  signal: AbortSignal,
): Promise<Measurement> {
  const depth = ids.length - 1;
  const context = await model.createContext({
    contextSize: depth + decodeTokens + 8,
    batchSize: Math.min(batchSize, depth + decodeTokens + 8),
    flashAttention,
    threads: { ideal: threads, min: threads },
    ignoreMemorySafetyChecks: true,
    createSignal: signal,
  });
  try {
    const tokens = ids as readonly Token[];
    const sequence = context.getSequence();
    // Work areas are touched once before anything is timed.
    await sequence.evaluateWithoutGeneratingNewTokens(tokens.slice(0, Math.min(depth, batchSize)));
    await sequence.clearHistory();
    const start = performance.now();
    await sequence.evaluateWithoutGeneratingNewTokens(tokens.slice(0, depth));
    const prefill = depth / ((performance.now() - start) / 1000);
    signal.throwIfAborted();
    const generation = sequence.evaluate([tokens[depth]], { temperature: 0, yieldEogToken: true });
    await generation.next();
    const first = performance.now();
    for (let i = 0; i < decodeTokens; i++) {
      const { done } = await generation.next();
      if (done) throw new FoveaError("internal", `llama.cpp ended after ${i} of ${decodeTokens} tokens`);
    }
    const decode = decodeTokens / ((performance.now() - first) / 1000);
    await generation.return();
    return { prefill, decode, cacheBytes: f16Bytes(shape, depth) };
  } finally {
    await context.dispose();
  }
}

/** Bytes of keys and values of `tokens` tokens in f16. */
function f16Bytes({ layers, kvHeads, headDim }: CacheShape, tokens: number): number {
  return layers * kvHeads * headDim * 2 * 2 * tokens;
}
