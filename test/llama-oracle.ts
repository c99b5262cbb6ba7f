import { getLlama, type Llama, LlamaLogLevel, type Token } from "node-llama-cpp";

let llama: Promise<Llama> | undefined;

/** A GGUF file in llama.cpp, as an oracle: float32 cache, no flash attention. */
export interface Oracle {
  /** Logits after each of the tokens, [V] each. */
  logits(ids: readonly number[]): Promise<Float64Array[]>;
  /** The tokens that follow the most likely way, one at a time over the cache. */
  greedy(ids: readonly number[], count: number): Promise<number[]>;
  close(): Promise<void>;
}

/** Opens a GGUF file with llama.cpp. */
export async function openOracle(file: string, vocab: number, contextSize = 128): Promise<Oracle> {
  llama ??= getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error });
  const model = await (await llama).loadModel({ modelPath: file, useMmap: false });
  const context = await model.createContext({
    contextSize,
    batchSize: 128,
    threads: 1,
    flashAttention: false,
    experimentalKvCacheKeyType: "F32",
    experimentalKvCacheValueType: "F32",
  });
  const sequence = context.getSequence();
  const evaluate = async (ids: readonly number[]): Promise<Float64Array[]> => {
    const results = await sequence.controlledEvaluate(
      ids.map((id) => [id as Token, { generateNext: { logits: true } }]),
    );
    return results.map((result) => {
      const row = new Float64Array(vocab).fill(Number.NaN);
      for (const [token, logit] of result?.next.logits ?? []) row[token] = logit;
      return row;
    });
  };
  return {
    logits: async (ids) => {
      await sequence.clearHistory();
      return evaluate(ids);
    },
    greedy: async (ids, count) => {
      await sequence.clearHistory();
      let last = (await evaluate(ids)).at(-1) as Float64Array;
      const chosen: number[] = [];
      while (chosen.length < count) {
        const best = last.indexOf(Math.max(...last));
        chosen.push(best);
        [last] = await evaluate([best]);
      }
      return chosen;
    },
    close: () => model.dispose(),
  };
}
