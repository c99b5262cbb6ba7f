import type { Model } from "../../engine/api.js";
import { checkAbort, FoveaError } from "../../error.js";
import type { BenchRecord } from "../bench/record.js";
import { type BenchProgress, runBench } from "../bench/run.js";
import type { Filler } from "../documents/index.js";
import type { Task } from "../task.js";
import { Family } from "./family.js";

/** What is to become less: milliseconds for a token, or bytes of the cache. */
export const GOALS = ["speed", "memory"] as const;
export type Goal = (typeof GOALS)[number];

/** Methods that are tried where none are named: each chooses what is read or kept, and needs no file of its own. */
export const CANDIDATES: readonly string[] = [
  ...["quest", "tidaldecode", "lessismore", "tokenselect", "sparq"],
  ...["streaming-llm", "snapkv", "h2o", "tova", "expected-attention", "ada-kv"],
];

export interface TuneOptions {
  /** With the cache that the settings are to be compared in, e.g. int8. */
  readonly model: Model;
  /** The user's own text, that needles are planted into; of the split "held-out". */
  readonly texts: readonly Filler[];
  readonly tasks: readonly Task[];
  readonly goal: Goal;
  /** Share of full attention's quality that must be kept. Default 0.99. */
  readonly keep?: number;
  /** What is not the goal may grow by this factor: time where memory is, the cache where speed is. Default 1.03. */
  readonly allow?: number;
  /** Tokens of prompt and reply together. */
  readonly length: number;
  /** Method strings; `$` stands where a number of tokens goes, else it goes to the method's own parameter for it. */
  readonly methods?: readonly string[];
  /** Milliseconds after which nothing new is begun. Default 20 minutes. */
  readonly time?: number;
  /** Questions for each task that a setting is judged by at first. Default 12. */
  readonly screen?: number;
  /** Questions for each task that a recommendation rests on. Default 100. */
  readonly cases?: number;
  /** The clock, in milliseconds. Default Date.now. */
  readonly now?: () => number;
  /** Records of an earlier search: their cases are not run again. */
  readonly known?: readonly BenchRecord[];
  readonly signal?: AbortSignal;
  readonly onRecord?: (record: BenchRecord) => void | Promise<void>;
  readonly onProgress?: (progress: BenchProgress) => void;
}

/** One setting with what was measured. */
export interface Tried {
  readonly method: string;
  /** Questions it answered. */
  readonly cases: number;
  /** From 0 to 1. */
  readonly accuracy: number;
  /** Accuracy as a share of full attention's on the same cases, or replies that are full attention's own. */
  readonly kept: number;
  /** Divergence of full attention's distribution to this one at the answer's first token, in nats. */
  readonly kl: number;
  readonly ms_per_token: number;
  readonly prefill_s: number;
  /** Bytes of the cache at the answer's first token, and its most while the text was read. */
  readonly cache_bytes: number;
  readonly peak_bytes: number;
  /** Per layer and query head, for one row. */
  readonly tokens_read: number;
  /** How often faster than full attention a token is, and how often smaller the cache. */
  readonly speedup: number;
  readonly shrink: number;
  /** It keeps what is asked for, over all its cases. */
  readonly holds: boolean;
  /** No other setting that holds is at least as good in both. */
  readonly front: boolean;
}

export interface Tuned {
  readonly goal: Goal;
  readonly keep: number;
  readonly length: number;
  /** What `kept` means: full attention answers too little for accuracy to tell anything, then agreement does. */
  readonly judged_by: "accuracy" | "agreement";
  readonly full: Tried;
  readonly tried: readonly Tried[];
  /** The best setting that holds over `cases` questions; undefined where none does. */
  readonly best: Tried | undefined;
  /** Methods that could not run, and why. */
  readonly skipped: readonly { readonly method: string; readonly reason: string }[];
  /** The time, or a method that failed, ended the search. */
  readonly stopped: boolean;
}

/** Methods that are measured together before the time is looked at. */
const GROUP = 4;

/** Full attention right in less than this share of the questions: then its replies are compared instead. */
const KNOWS = 0.3;

/**
 * Searches the setting that reaches a goal and keeps quality, on the user's own text with needles in it. Each method is
 * tried at shares of the text by halving: less after a share that keeps, more after one that does not; the best are then
 * put more questions until one has answered `cases` of each task.
 *
 * @throws FoveaError `bad-input` for a share or a factor out of range and for method strings that `resolve` refuses;
 *   `aborted`; what the model throws. A method that cannot run is no error: it stands in `skipped`
 */
export async function tune(options: TuneOptions): Promise<Tuned> {
  const {
    goal,
    keep = 0.99,
    allow = 1.03,
    length,
    time = 20 * 60_000,
    screen = 12,
    cases = 100,
    now = Date.now,
    signal,
  } = options;
  if (!(keep > 0 && keep <= 1)) throw new FoveaError("bad-input", `keep is ${keep}; expected a share above 0, up to 1`);
  if (!(allow > 0)) throw new FoveaError("bad-input", `allow is ${allow}; expected a factor above 0`);
  const families = (options.methods ?? CANDIDATES).map((method) => new Family(method, length));
  const end = now() + time;
  const records: BenchRecord[] = [...(options.known ?? [])];
  const failed = new Map<string, string>();
  const measure = async (methods: readonly string[], count: number) => {
    const { skipped } = await runBench({
      ...{ models: [options.model], methods, lengths: [length], tasks: options.tasks, filler: options.texts },
      ...{ cases: count, seeds: 1, controls: false, known: records.slice() },
      ...(signal && { signal }),
      ...(options.onProgress && { onProgress: options.onProgress }),
      onRecord: async (record) => {
        records.push(record);
        await options.onRecord?.(record);
      },
    });
    for (const { method, reason } of skipped) failed.set(method, reason);
  };
  const judge = () => new Judge(records, length, { goal, keep, allow });

  await measure([], screen);
  for (;;) {
    checkAbort(signal);
    const open = families.flatMap((family) => family.next() ?? []);
    if (open.length === 0 || now() > end) break;
    // full attention answers once more for each group, to be compared with
    for (let i = 0; i < open.length && now() <= end; i += GROUP) {
      const group = open.slice(i, i + GROUP);
      await measure(group, screen);
      const judged = judge();
      for (const method of group) {
        const found = judged.of(method);
        for (const family of families) family.note(method, failed.has(method) || !found ? "failed" : found.near);
      }
    }
  }
  // more questions for the best, half as many again in each round, until one has them all
  let stopped = now() > end;
  for (let count = screen; !stopped; ) {
    checkAbort(signal);
    const [leader] = judge().ranked();
    if (leader === undefined || leader.cases >= cases * options.tasks.length) break;
    count = Math.min(cases, Math.ceil((leader.cases / options.tasks.length) * 2));
    await measure([leader.method], count);
    stopped = now() > end || failed.has(leader.method);
  }
  const skipped = [...failed].map(([method, reason]) => ({ method, reason }));
  return { ...judge().result(cases * options.tasks.length), skipped, stopped };
}

interface Judged extends Tried {
  /** Whether it may keep what is asked for, as far as its cases tell. */
  readonly near: boolean;
}

/** What the records say about each setting. */
class Judge {
  readonly #by: "accuracy" | "agreement";
  readonly #full: Tried;
  readonly #tried: readonly Judged[];

  constructor(
    records: readonly BenchRecord[],
    readonly length: number,
    readonly want: { readonly goal: Goal; readonly keep: number; readonly allow: number },
  ) {
    const full = new Map(records.filter((r) => r.method === "full").map((r) => [caseOf(r), r]));
    const dense = [...full.values()];
    this.#by = mean(dense.map((r) => r.correct)) >= KNOWS ? "accuracy" : "agreement";
    const byMethod = new Map<string, BenchRecord[]>();
    for (const record of records) {
      const own = byMethod.get(record.method);
      if (own) own.push(record);
      else byMethod.set(record.method, [record]);
    }
    const all = [...byMethod].map(([method, own]) => this.#measured(method, own, full));
    const base = all.find((one) => one.method === "full");
    if (base === undefined) throw new FoveaError("internal", "full attention was not measured");
    const least = (one: Judged) => all.some((other) => other.holds && dominates(other, one));
    const marked = all.map((one) => ({ ...one, front: one.holds && !least(one) }));
    this.#full = marked.find((one) => one.method === "full") ?? base;
    this.#tried = marked.filter((one) => one.method !== "full");
  }

  #measured(method: string, own: readonly BenchRecord[], full: ReadonlyMap<string, BenchRecord>): Judged {
    const dense = own.flatMap((r) => full.get(caseOf(r)) ?? []);
    const row = totals(own);
    const base = totals(dense);
    const [right, rightFull] = [sum(own.map((r) => r.correct)), sum(dense.map((r) => r.correct))];
    const same = sum(own.map((r) => (r.reply === full.get(caseOf(r))?.reply ? 1 : 0)));
    const [got, of] = this.#by === "accuracy" ? [right, rightFull] : [same, own.length];
    const { keep } = this.want;
    return {
      method,
      cases: own.length,
      accuracy: right / own.length,
      kept: of > 0 ? got / of : 1,
      ...row,
      speedup: base.ms_per_token / row.ms_per_token,
      shrink: base.cache_bytes / row.cache_bytes,
      holds: got >= keep * of,
      // one question lost may be chance
      near: got + 1 >= keep * of,
      front: false,
    };
  }

  of(method: string): Judged | undefined {
    return this.#tried.find((one) => one.method === method);
  }

  /** Those that hold and are not worse than full attention where the goal is not, the best first. */
  ranked(): Judged[] {
    const { goal, allow } = this.want;
    const better = (one: Judged) => (goal === "speed" ? one.speedup : one.shrink);
    const other = (one: Judged) => (goal === "speed" ? one.shrink : one.speedup);
    return this.#tried
      .filter((one) => one.holds && other(one) >= 1 / allow && better(one) > 1)
      .sort((a, b) => better(b) - better(a));
  }

  result(cases: number): Omit<Tuned, "stopped" | "skipped"> {
    const { goal, keep } = this.want;
    const ranked = this.ranked();
    return {
      ...{ goal, keep, length: this.length, judged_by: this.#by, full: this.#full, tried: this.#tried },
      best: ranked.find((one) => one.cases >= cases) ?? ranked.toSorted((a, b) => b.cases - a.cases)[0],
    };
  }
}

const caseOf = (r: BenchRecord) => `${r.task} ${r.seed} ${r.case}`;
const sum = (values: readonly number[]) => values.reduce((a, b) => a + b, 0);
const mean = (values: readonly number[]) => (values.length === 0 ? 0 : sum(values) / values.length);

function dominates(a: Tried, b: Tried): boolean {
  const noWorse = a.ms_per_token <= b.ms_per_token && a.cache_bytes <= b.cache_bytes;
  return noWorse && (a.ms_per_token < b.ms_per_token || a.cache_bytes < b.cache_bytes);
}

/** What a token and the cache take, as means over the records. */
function totals(records: readonly BenchRecord[]) {
  const of = (name: "kl" | "ms_per_token" | "prefill_s" | "cache_bytes" | "peak_bytes" | "tokens_read") =>
    mean(records.flatMap((record) => record[name] ?? []));
  return {
    kl: of("kl"),
    ms_per_token: of("ms_per_token"),
    prefill_s: of("prefill_s"),
    cache_bytes: of("cache_bytes"),
    peak_bytes: of("peak_bytes"),
    tokens_read: of("tokens_read"),
  };
}
