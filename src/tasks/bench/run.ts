import { resolve } from "../../attention/index.js";
import type { Measured, Model, Reading } from "../../engine/api.js";
import { checkAbort, FoveaError } from "../../error.js";
import type { Filler } from "../documents/index.js";
import { exact } from "../metrics.js";
import type { Task, TaskCase, TaskQuestion } from "../task.js";
import { type Budgeted, type BudgetKind, budgeted, solveBudget } from "./budget.js";
import { klOfRows } from "./kl.js";
import { type BenchPrompt, PromptFormat } from "./prompt.js";
import { type BenchRecord, type Mode, recordKey } from "./record.js";

export interface BenchOptions {
  readonly models: readonly Model[];
  /** Method strings; a `$` stands where the budget goes, else it goes to the method's own parameter for it. */
  readonly methods: readonly string[];
  /** Shares of the text that may be read (or kept), e.g. 1/8. Default none: methods run as they are given. */
  readonly budgets?: readonly number[];
  /** Tokens of prompt and reply together. */
  readonly lengths: readonly number[];
  readonly tasks: readonly Task[];
  /** Prose that things are hidden in. */
  readonly filler: readonly Filler[];
  /** Questions per task, length, method and budget, over all seeds. Default 200. */
  readonly cases?: number;
  /** Default 3. */
  readonly seeds?: number;
  /** Default query-agnostic. */
  readonly modes?: readonly Mode[];
  /** Controls beside full attention: random pages and the newest tokens, at every budget. Default true. */
  readonly controls?: boolean;
  /** Give the model the beginning of the reply where a task has one. Default true. */
  readonly prefix?: boolean;
  /** Most tokens of a reply. Default what the task says. */
  readonly maxTokens?: number;
  /** Records of an earlier run: their cases are not run again. */
  readonly known?: readonly BenchRecord[];
  /** What the records call the code that ran. Default "". */
  readonly commit?: string;
  /** Resident bytes of the process, where the caller knows them. */
  readonly resident?: () => number;
  readonly signal?: AbortSignal;
  readonly onRecord?: (record: BenchRecord) => void | Promise<void>;
  readonly onProgress?: (progress: BenchProgress) => void;
}

export interface BenchProgress {
  readonly done: number;
  readonly total: number;
  readonly label: string;
}

/** A method that could not run, and why. */
export interface Skipped {
  readonly model: string;
  readonly method: string;
  readonly budget: number | null;
  readonly reason: string;
}

export interface BenchResult {
  /** The known records and the new ones. */
  readonly records: readonly BenchRecord[];
  readonly skipped: readonly Skipped[];
}

/** A method at one budget, before its value is known. */
interface Setting {
  readonly method: string;
  readonly budget: number | null;
  readonly place?: Budgeted;
}

/** A setting whose method string is known. */
interface Ready extends Setting {
  readonly spec: string;
  readonly kind: BudgetKind | null;
  readonly met: boolean;
}

const FULL: Setting = { method: "full", budget: null };
const RANDOM = { read: "random-pages", keep: "random-pages(action=keep)" };
const RECENT = "streaming-llm(sinks=0,positions=true,prompt=dense)";

/**
 * Puts the same cases to every method at every budget. A document is read once for all of its questions (query-agnostic) or
 * once for each, with it (query-aware); each question is fed token by token, so that methods choose for every row of it.
 * Budgets are solved: the method's parameter is set so that the share of tokens read (or kept) that is measured meets them.
 */
export async function runBench(options: BenchOptions): Promise<BenchResult> {
  const records = [...(options.known ?? [])];
  const skipped: Skipped[] = [];
  const settings = settingsOf(options);
  const { models, lengths, tasks, cases = 200, modes = ["query-agnostic"] } = options;
  const perModel = modes.length * lengths.length * tasks.length * settings.length * cases;
  const progress = new Counter(models.length * perModel, options.onProgress);
  const known = new Map(records.map((record) => [recordKey(record), record]));
  const keep = async (record: BenchRecord) => {
    known.set(recordKey(record), record);
    records.push(record);
    await options.onRecord?.(record);
  };
  for (const model of models) {
    const about = await aboutModel(model, options);
    for (const length of lengths)
      for (const mode of modes) {
        const bench = new LengthBench(model, about, { ...options, length, mode }, { known, keep, progress });
        skipped.push(...(await bench.run(settings)));
      }
  }
  return { records, skipped };
}

function settingsOf({ methods, budgets = [], controls = true }: BenchOptions): Setting[] {
  const own = methods.filter((m) => m !== "full").flatMap((method) => atBudgets(method, method, budgets));
  for (const { method, place } of own) resolve(place ? place.at(place.range.most ?? 64) : method);
  const kinds = new Set(own.flatMap(({ place }) => (place ? [place.kind] : [])));
  const random = [...kinds].flatMap((kind) =>
    atBudgets(kind === "read" ? "random" : "random-kept", RANDOM[kind], budgets),
  );
  const recent = kinds.size > 0 ? atBudgets("recent", RECENT, budgets) : [];
  return [FULL, ...(controls ? [...random, ...recent] : []), ...own];
}

function atBudgets(name: string, method: string, budgets: readonly number[]): Setting[] {
  const place = budgets.length > 0 ? budgeted(method) : undefined;
  if (!place) {
    if (method.includes("$"))
      throw new FoveaError("bad-input", `${method} has a place for a budget, and no budget was given`);
    return [{ method: name, budget: null }];
  }
  return budgets.map((budget) => ({ method: name, budget, place }));
}

/** What every record of a model says. */
type About = Pick<
  BenchRecord,
  "model" | "model_hash" | "commit" | "precision" | "cache_type" | "threads" | "speed_only"
>;

async function aboutModel(model: Model, { commit = "", filler, signal }: BenchOptions): Promise<About> {
  const { name, shape, precision, cacheType, threads } = model.info;
  return {
    model: name,
    model_hash: shape.hash,
    commit,
    precision,
    cache_type: cacheType,
    threads,
    speed_only: await knowsNothing(model, filler, signal),
  };
}

/** True for weights that say no more about a text than chance, not even where it stands a second time: random ones. */
export async function knowsNothing(model: Model, filler: readonly Filler[], signal?: AbortSignal): Promise<boolean> {
  const passage = filler[0]?.sentences.slice(0, 4).join(" ") ?? "The quick brown fox jumps over the lazy dog.";
  const most = Math.min(128, model.info.shape.maxPositions >> 1);
  const ids = model.prompt(passage, { special: false }).ids.slice(0, most);
  const { tokens } = await model.score([...ids, ...ids], { ...(signal && { signal }) });
  const half = tokens.length >> 1;
  const surprise = (part: typeof tokens) => -part.reduce((sum, t) => sum + t.logprob, 0) / part.length;
  const [first, again] = [surprise(tokens.slice(1, half)), surprise(tokens.slice(half))];
  return again > 0.8 * first && first > 0.95 * Math.log(model.info.shape.vocab);
}

interface Shared {
  readonly known: ReadonlyMap<string, BenchRecord>;
  keep(record: BenchRecord): Promise<void>;
  readonly progress: Counter;
}

/** A case with its prompts, and where its questions are counted. */
interface Prepared {
  readonly task: Task;
  readonly made: TaskCase;
  readonly prompts: readonly BenchPrompt[];
  readonly seed: number;
  readonly document: number;
  readonly firstCase: number;
}

/** One model at one length, in one mode. */
class LengthBench {
  readonly #model: Model;
  readonly #about: About;
  readonly #options: BenchOptions & { readonly length: number; readonly mode: Mode };
  readonly #shared: Shared;
  readonly #format: PromptFormat;

  constructor(
    model: Model,
    about: About,
    options: BenchOptions & { readonly length: number; readonly mode: Mode },
    shared: Shared,
  ) {
    this.#model = model;
    this.#about = about;
    this.#options = options;
    this.#shared = shared;
    this.#format = new PromptFormat(model, options.prefix);
  }

  async run(settings: readonly Setting[]): Promise<Skipped[]> {
    const { tasks, cases = 200, seeds = 3, signal } = this.#options;
    const skipped: Skipped[] = [];
    const failed = new Set<Setting>();
    const skip = (setting: Setting, error: unknown) => {
      if (!(error instanceof FoveaError) || error.code === "aborted" || error.code === "closed" || setting === FULL)
        throw error;
      failed.add(setting);
      const { method, budget } = setting;
      skipped.push({ model: this.#about.model, method, budget, reason: error.message });
    };
    for (const task of tasks) {
      // a task's questions and replies leave another share to its documents, so each is solved for
      const ready = new Map<Setting, Ready>();
      for (let seed = 1; seed <= seeds; seed++) {
        const share = Math.floor(cases / seeds) + (seed <= cases % seeds ? 1 : 0);
        for (let document = 0, done = 0; done < share; document++) {
          checkAbort(signal);
          const prepared = this.#prepare(task, seed, document, done, share - done);
          const open = settings.filter((s) => !failed.has(s) && !this.#allKnown(s, prepared));
          let dense: readonly Measured[] | undefined;
          // full attention first: the others are compared with it
          for (const setting of open.length > 0 ? [FULL, ...open.filter((s) => s !== FULL)] : []) {
            try {
              const own = ready.get(setting) ?? (await this.#solve(setting, task));
              ready.set(setting, own);
              dense = await this.#answer(own, prepared, dense);
            } catch (error) {
              skip(setting, error);
            }
          }
          this.#shared.progress.add(settings.length * prepared.prompts.length);
          done += prepared.prompts.length;
        }
      }
    }
    return skipped;
  }

  /** A document and as many of its questions as are still wanted. */
  #prepare(task: Task, seed: number, document: number, firstCase: number, wanted: number): Prepared {
    const { length, filler } = this.#options;
    const all = task.make({
      seed: `${seed} ${document}`,
      length,
      filler,
      promptTokens: (text, question, prefix) => this.#format.tokens(text, question, prefix),
    });
    const made = { ...all, questions: all.questions.slice(0, wanted) };
    const prompts = made.questions.map((question) => this.#format.prompt(made.document, question));
    return { task, made, prompts, seed, document, firstCase };
  }

  #allKnown(setting: Setting, prepared: Prepared): boolean {
    return prepared.prompts.every((_, i) => this.#shared.known.has(this.#key(setting, prepared, i)));
  }

  #key(
    { method, budget }: Pick<Setting, "method" | "budget">,
    { task, seed, firstCase }: Pick<Prepared, "task" | "seed" | "firstCase">,
    question: number,
  ): string {
    const { length, mode } = this.#options;
    return recordKey({
      ...this.#about,
      method,
      budget,
      length,
      task: task.name,
      seed,
      case: firstCase + question,
      mode,
    });
  }

  /**
   * Sets a method's parameter so that what it reads (or keeps) of the first question of a task's first case meets the
   * budget: the same case whatever is known already, so that a run that goes on has the same methods.
   */
  async #solve(setting: Setting, task: Task): Promise<Ready> {
    const { place, budget } = setting;
    if (!place || budget === null) {
      const spec = setting.method;
      return { ...setting, spec: spec === "full" ? "full" : canonical(spec), kind: null, met: true };
    }
    const before = this.#solvedBefore(setting, task);
    if (before) return { ...setting, ...before };
    this.#shared.progress.note(`solving ${setting.method} for ${budget}`);
    const [prompt] = this.#prepare(task, 1, 0, 0, 1).prompts;
    const attempt = async (at: Budgeted) => {
      const measure = async (value: number) => {
        const [one] = await this.#measure(at.at(value), [prompt], { maxTokens: 0, answer: false });
        return (at.kind === "read" ? one.measured.tokens_read : one.measured.tokens_kept) / prompt.ids.length;
      };
      return { at, solved: await solveBudget(budget, at.range, prompt.ids.length, measure) };
    };
    let { at, solved } = await attempt(place);
    if (!solved.met && place.sparse) {
      // the dense layers alone are more than the budget
      const other = await attempt(place.sparse);
      if (other.solved.measured < solved.measured) ({ at, solved } = other);
    }
    return { ...setting, spec: canonical(at.at(solved.value)), kind: at.kind, met: solved.met };
  }

  /** What an earlier run found for the same budget on the same task. */
  #solvedBefore({ method, budget }: Setting, task: Task): Pick<Ready, "spec" | "kind" | "met"> | undefined {
    const found = this.#shared.known.get(this.#key({ method, budget }, { task, seed: 1, firstCase: 0 }, 0));
    return found && { spec: found.spec, kind: found.budget_of, met: found.budget_met };
  }

  /** Measures and records what of a case is not known yet. Gives full attention's measurements, for comparison. */
  async #answer(
    setting: Ready,
    prepared: Prepared,
    dense: readonly Measured[] | undefined,
  ): Promise<readonly Measured[]> {
    const { task, made, prompts } = prepared;
    this.#shared.progress.note(`${task.name} ${this.#options.length} ${setting.method} ${setting.budget ?? ""}`);
    const results = await this.#measure(setting.spec, prompts, { answer: true }, made.questions);
    const reference = dense ?? results.map((r) => r.measured);
    for (const [i, result] of results.entries()) {
      if (this.#shared.known.has(this.#key(setting, prepared, i))) continue;
      await this.#shared.keep(this.#record(setting, prepared, i, result, reference[i]));
    }
    return reference;
  }

  #record(setting: Ready, prepared: Prepared, i: number, result: Result, dense: Measured): BenchRecord {
    const { measured, reading, seconds, resident } = result;
    const { task, made, seed, document, firstCase } = prepared;
    const question = made.questions[i];
    const { length, mode } = this.#options;
    const kl = klOfRows(dense.logits, measured.logits, this.#model.info.shape.vocab);
    // of the text as it was given: a method may have shortened it
    const whole = prepared.prompts[i].ids.length;
    const asIs = reading.asGiven && prepared.prompts[i].evidence.length > 0;
    return {
      model: this.#about.model,
      method: setting.method,
      spec: setting.spec,
      budget: setting.budget,
      budget_of: setting.kind,
      budget_met: setting.met,
      length,
      task: task.name,
      case: firstCase + i,
      document,
      seed,
      mode,
      correct: task.score(measured.text, question),
      exact: exact(measured.text, [question.answer]),
      ...(task.figures && { figures: task.figures(measured.text, question) }),
      coverage: asIs ? measured.coverage : null,
      coverage_kept: asIs ? measured.coverage_kept : null,
      kl: kl.first,
      kl_answer: kl.mean,
      ms_per_token: measured.step_ms.length > 0 ? median(measured.step_ms) : null,
      prefill_s: seconds,
      cache_bytes: measured.cache_bytes,
      peak_bytes: reading.peakBytes,
      resident_bytes: resident,
      tokens_read: measured.tokens_read,
      tokens_scored: measured.tokens_scored / 2 + measured.bounds_read,
      tokens_kept: measured.tokens_kept,
      // each further row of the answer sees one token more
      read_share: measured.tokens_read / (whole + (measured.rows_counted - 1) / 2),
      keep_share: measured.tokens_kept / whole,
      depth: measured.depth,
      reply: measured.text,
      expected: question.answer,
      model_hash: this.#about.model_hash,
      commit: this.#about.commit,
      precision: this.#about.precision,
      cache_type: this.#about.cache_type,
      threads: this.#about.threads,
      speed_only: this.#about.speed_only,
    };
  }

  /** Reads the document, once or once a question, and measures the answers. */
  async #measure(
    spec: string,
    prompts: readonly BenchPrompt[],
    { maxTokens, answer }: { maxTokens?: number; answer: boolean },
    questions: readonly TaskQuestion[] = [],
  ): Promise<Result[]> {
    const { mode, signal } = this.#options;
    const aware = mode === "query-aware";
    const shared = Math.min(...prompts.map((p) => Math.min(p.documentTokens, commonStart(p.ids, prompts[0].ids))));
    const results: Result[] = [];
    let held: { reading: Reading; seconds: number; resident: number | null } | undefined;
    try {
      for (const [i, prompt] of prompts.entries()) {
        const split = aware ? prompt.ids.length - 1 : shared;
        if (!held || aware) {
          await held?.reading.close();
          held = undefined;
          const begun = performance.now();
          const reading = await this.#model.read(prompt.ids.slice(0, split), {
            attention: spec,
            ...(signal && { signal }),
          });
          held = { reading, seconds: (performance.now() - begun) / 1000, resident: this.#options.resident?.() ?? null };
        }
        const { reading, seconds, resident } = held;
        const asGiven = reading.length === split;
        const most = Math.min(questions[i]?.newTokens ?? 64, this.#options.maxTokens ?? Number.POSITIVE_INFINITY);
        const measured = await reading.measure(prompt.ids.slice(split), {
          answer: answer ? prompt.answer : [],
          maxTokens: maxTokens ?? most,
          watch: asGiven ? prompt.evidence : [],
          ...(signal && { signal }),
        });
        results.push({ measured, reading: { asGiven, peakBytes: reading.peakBytes }, seconds, resident });
      }
    } finally {
      await held?.reading.close();
    }
    return results;
  }
}

interface Result {
  readonly measured: Measured;
  /** `asGiven`: the method did not change the text, so positions are those of the prompt. */
  readonly reading: { readonly asGiven: boolean; readonly peakBytes: number };
  readonly seconds: number;
  readonly resident: number | null;
}

/** The string that a method calls itself, every parameter named. */
const canonical = (spec: string) =>
  resolve(spec)
    .map((m) => m.spec)
    .join("+");

/** Tokens that two prompts begin with. */
function commonStart(a: readonly number[], b: readonly number[]): number {
  let n = 0;
  while (n < a.length && n < b.length && a[n] === b[n]) n++;
  return n;
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

class Counter {
  #done = 0;
  #label = "";
  readonly #total: number;
  readonly #report: ((progress: BenchProgress) => void) | undefined;

  constructor(total: number, report: ((progress: BenchProgress) => void) | undefined) {
    this.#total = total;
    this.#report = report;
  }

  add(n: number): void {
    this.#done += n;
    this.note(this.#label);
  }

  note(label: string): void {
    this.#label = label;
    this.#report?.({ done: this.#done, total: this.#total, label });
  }
}
