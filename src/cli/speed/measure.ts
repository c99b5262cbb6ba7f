/** One run of one setting at one depth. */
export interface Measurement {
  /** Tokens per second while a text of `depth` tokens is read into an empty cache. */
  readonly prefill: number;
  /** Tokens per second while tokens are generated one by one on a cache of `depth` tokens. */
  readonly decode: number;
  /** Bytes of the cache that holds `depth` tokens. */
  readonly cacheBytes: number;
}

/** An engine with its settings: something that can be measured. */
export interface Setting {
  readonly engine: "fovea" | "llama.cpp";
  /** The method string, or the other engine's setting. */
  readonly method: string;
  measure(ids: readonly number[], decodeTokens: number, signal: AbortSignal): Promise<Measurement>;
  close(): Promise<void>;
}

/** Medians of one setting at one depth; names as `bench speed --json` prints them. */
export interface Row {
  readonly engine: Setting["engine"];
  readonly method: string;
  readonly depth: number;
  readonly prefill_tps: number;
  readonly decode_tps: number;
  readonly cache_bytes: number;
  readonly runs: number;
  /** Smallest and largest of the runs: how far they scatter. */
  readonly prefill_range: readonly [number, number];
  readonly decode_range: readonly [number, number];
}

/** One method of ours against the other engine's best setting for each figure; above 1 is faster (cache: larger). */
export interface Ratio {
  readonly depth: number;
  readonly method: string;
  readonly prefill: number;
  readonly decode: number;
  /** Our bytes over those of an f16 cache. */
  readonly cache_f16: number;
  /** Our bytes over those of a q8_0 cache. */
  readonly cache_q8_0: number;
  /** The other engine's settings that were best. */
  readonly best: { readonly prefill: string; readonly decode: string };
}

export interface Plan {
  readonly depths: readonly number[];
  readonly runs: number;
  readonly decodeTokens: number;
  /** Tokens of a text that every setting reads, and generates behind, before anything is measured. Default 0: none. */
  readonly warmUp?: number;
  readonly vocab: number;
  readonly signal: AbortSignal;
  onStep?(text: string): void;
}

/** From this depth on one run is enough: it takes minutes and scatters less. */
export const DEEP = 16384;

/**
 * Measures every setting at every depth. Within a depth the settings take turns, run after run, so that a slow moment
 * of the machine meets all of them.
 */
export async function measureAll(settings: readonly Setting[], plan: Plan): Promise<Row[]> {
  const rows: Row[] = [];
  const { warmUp = 0, decodeTokens, signal } = plan;
  for (const setting of warmUp > 0 ? settings : []) {
    signal.throwIfAborted();
    plan.onStep?.(`warm-up: ${setting.engine} ${setting.method}`);
    await setting.measure(randomIds(warmUp + 1, plan.vocab), decodeTokens, signal);
  }
  for (const depth of plan.depths) {
    const ids = randomIds(depth + 1, plan.vocab);
    const runs = depth >= DEEP ? 1 : plan.runs;
    const results = settings.map((): Measurement[] => []);
    for (let run = 0; run < runs; run++) {
      for (const [i, setting] of settings.entries()) {
        signal.throwIfAborted();
        plan.onStep?.(`depth ${depth}, run ${run + 1} of ${runs}: ${setting.engine} ${setting.method}`);
        results[i].push(await setting.measure(ids, decodeTokens, signal));
      }
    }
    rows.push(...settings.map((setting, i) => toRow(setting, depth, results[i])));
  }
  return rows;
}

function toRow({ engine, method }: Setting, depth: number, results: readonly Measurement[]): Row {
  const [prefill, decode] = [results.map((run) => run.prefill), results.map((run) => run.decode)];
  return {
    engine,
    method,
    depth,
    prefill_tps: median(prefill),
    decode_tps: median(decode),
    cache_bytes: median(results.map((run) => run.cacheBytes)),
    runs: results.length,
    prefill_range: [Math.min(...prefill), Math.max(...prefill)],
    decode_range: [Math.min(...decode), Math.max(...decode)],
  };
}

/** Middle value; the mean of the two middle ones of an even count. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Ratios of each of our rows against the other engine's best setting of the same depth, figure by figure. */
export function ratios(rows: readonly Row[], q8Share: number): Ratio[] {
  return rows
    .filter((row) => row.engine === "fovea")
    .flatMap((row) => {
      const others = rows.filter((other) => other.engine !== "fovea" && other.depth === row.depth);
      if (others.length === 0) return [];
      const best = (figure: "prefill_tps" | "decode_tps"): Row =>
        others.reduce((a, b) => (b[figure] > a[figure] ? b : a));
      const [prefill, decode] = [best("prefill_tps"), best("decode_tps")];
      const cache = row.cache_bytes / others[0].cache_bytes;
      return [
        {
          depth: row.depth,
          method: row.method,
          prefill: row.prefill_tps / prefill.prefill_tps,
          decode: row.decode_tps / decode.decode_tps,
          cache_f16: cache,
          cache_q8_0: cache / q8Share,
          best: { prefill: prefill.method, decode: decode.method },
        },
      ];
    });
}

/** Token ids that look like no text: the same for every engine, the same on every machine. */
export function randomIds(count: number, vocab: number, seed = 1): number[] {
  let state = seed >>> 0;
  return Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * vocab);
  });
}
