import type { Model } from "fovea";

/** What is run in the page and, for comparison, in Node. */
export const TEXT = "At noon the tide turns and the ferry leaves. At noon the tide";
export const STREAMING = "streaming-llm(sinks=4,window=8)";
export const HEAD = { layer: 1, head: 3 };

export interface Results {
  threads: number;
  /** Tokens per second of the long text and after it; not compared. */
  speed: { prefill: number; decode: number };
  /** What follows the long text. */
  answer: string;
  /** Log-probability of a continuation where most of the text is gone from the cache. */
  streamingScore: number;
  greedy: number[];
  text: string;
  pieces: string;
  streaming: number[];
  sampled: number[];
  logits: number[];
  /** Attention of one head, [rows, columns]. */
  attention: { rows: number; columns: number; data: number[] };
  continued: string;
  score: number;
}

/** Everything that a page would do with a model, as plain data. `long` is a text long enough for all threads. */
export async function runModel(model: Model, long: string): Promise<Results> {
  const options = { maxTokens: 16, ignoreEos: true };
  const generation = model.generate(TEXT, options);
  let pieces = "";
  for await (const piece of generation) pieces += piece.text;
  const greedy = await generation.result;
  const streaming = await model.with(STREAMING).generate(TEXT, options).result;
  const sampled = await model.generate(TEXT, { ...options, temperature: 0.8, seed: 7 }).result;
  const answer = await model.generate(`${long}\nThe keeper of the north light is`, { maxTokens: 12, stop: ["."] })
    .result;
  const map = await model.attention(TEXT, HEAD);
  const reading = await model.read(TEXT);
  const continued = (await reading.generate(" turns", options).result).text;
  await reading.close();
  const narrow = await model.with(STREAMING).read(TEXT);
  const streamingScore = (await narrow.score(" turns and the ferry leaves.")).logprob;
  await narrow.close();
  const score = await model.score(TEXT);
  return {
    threads: model.info.threads,
    speed: { prefill: answer.timings.prefill_tps, decode: answer.timings.decode_tps },
    answer: answer.text,
    streamingScore,
    greedy: greedy.ids,
    text: greedy.text,
    pieces,
    streaming: streaming.ids,
    sampled: sampled.ids,
    logits: Array.from(await model.logits(TEXT)),
    attention: { rows: map.rows, columns: map.columns, data: Array.from(map.data) },
    continued,
    score: score.logprob,
  };
}
