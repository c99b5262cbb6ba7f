import { checkAbort, FoveaError } from "../error.js";
import type { Measured, MeasureOptions } from "./api.js";
import type { ModelShape } from "./hooks.js";
import { ReadMeter, type StepReads } from "./read-meter.js";
import { argmax } from "./sampling.js";
import type { Sequence } from "./sequence.js";

/** A sequence that a question is put to, and what runs it. */
export interface Asked {
  readonly sequence: Sequence;
  readonly shape: ModelShape;
  readonly eos: readonly number[];
  /** Logits [V] after one more token, valid until the next step. */
  step(id: number): Promise<Float32Array>;
  decode(ids: readonly number[]): string;
}

/**
 * Feeds a question token by token, counts what its last row and a forced answer read, and then answers greedily from the
 * same point, without counting, for the time that a step takes.
 */
export async function measureAnswer(
  asked: Asked,
  question: readonly number[],
  options: MeasureOptions,
): Promise<Measured> {
  const { answer = [], watch = [], signal } = options;
  if (question.length === 0)
    throw new FoveaError("bad-input", "there is no question to measure; expected at least one token");
  const { sequence, shape } = asked;
  const times: number[] = [];
  for (const id of question.slice(0, -1)) await timed(asked, id, times, signal);

  const meter = new ReadMeter(shape.layers, shape.heads, watch);
  const reads: StepReads[] = [];
  const counted = async (id: number) => {
    checkAbort(signal);
    sequence.meter(meter);
    try {
      return (await asked.step(id)).slice();
    } finally {
      sequence.meter(undefined);
      reads.push(meter.take());
    }
  };
  const rows = [await counted(question[question.length - 1])];
  const stored = storedShare(sequence, shape, watch);
  const cacheBytes = sequence.bytes;
  const depth = sequence.length;
  const mark = sequence.snapshot();
  for (const id of answer.slice(0, -1)) rows.push(await counted(id));
  sequence.rollback(mark);

  const greedy = await answerGreedily(asked, rows[0], options, times);
  const mean = (of: (r: StepReads) => number) => reads.reduce((n, r) => n + of(r), 0) / reads.length;
  const logits = new Float32Array(rows.length * shape.vocab);
  rows.forEach((row, i) => {
    logits.set(row, i * shape.vocab);
  });
  return {
    ...greedy,
    logits,
    step_ms: times,
    tokens_read: mean((r) => r.attended),
    tokens_scored: mean((r) => r.scored),
    bounds_read: mean((r) => r.bounds),
    tokens_kept: stored.kept,
    depth,
    rows_counted: reads.length,
    coverage: reads[0].watched,
    coverage_kept: stored.watched,
    cache_bytes: cacheBytes,
  };
}

async function timed(
  asked: Asked,
  id: number,
  times: number[],
  signal: AbortSignal | undefined,
): Promise<Float32Array> {
  checkAbort(signal);
  const begun = performance.now();
  const logits = await asked.step(id);
  times.push(performance.now() - begun);
  return logits;
}

async function answerGreedily(asked: Asked, first: Float32Array, options: MeasureOptions, times: number[]) {
  const { maxTokens = 64, signal } = options;
  const ids: number[] = [];
  let logits: Float32Array = first;
  while (ids.length < maxTokens) {
    const id = argmax(logits);
    if (asked.eos.includes(id)) return { ids, text: asked.decode(ids), finish: "eos" as const };
    ids.push(id);
    if (ids.length < maxTokens) logits = await timed(asked, id, times, signal);
  }
  return { ids, text: asked.decode(ids), finish: "length" as const };
}

/** Stored entries per layer and KV head (mean), and the share of the watched positions among them. */
function storedShare({ cache }: Sequence, { layers, kvHeads }: ModelShape, watch: readonly number[]) {
  const watched = new Set(watch);
  let kept = 0;
  let found = 0;
  for (let l = 0; l < layers; l++)
    for (let h = 0; h < kvHeads; h++) {
      const positions = cache.layer(l).positions(h);
      kept += positions.length;
      for (const position of positions) if (watched.has(position)) found++;
    }
  const all = layers * kvHeads;
  return { kept: kept / all, watched: watched.size === 0 ? 1 : found / (all * watched.size) };
}
