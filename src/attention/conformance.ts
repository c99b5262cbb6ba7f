import type { Engine } from "../engine/engine.js";
import type { AttachedMethod } from "../engine/hooks.js";
import type { Sequence } from "../engine/sequence.js";
import { FoveaError } from "../error.js";
import type { AnyMethod } from "./catalog.js";
import { full } from "./full.js";

/** One promise that every method keeps, checked in one setting. */
export interface Conformance {
  readonly check: string;
  /** The method's canonical string. */
  readonly spec: string;
  /** Largest difference of logits, or a count that should be 0. */
  readonly worst: number;
  readonly tolerance: number;
  readonly passed: boolean;
}

export interface ConformanceOptions {
  /** Token ids of a text of a hundred tokens or more. */
  readonly ids: readonly number[];
  /** Of logits, between forms that compute the same in float32, whatever the processor. Default 2e-4. */
  readonly tolerance?: number;
}

/**
 * What holds for every method, whatever its idea, on a loaded engine with a float32 cache:
 *
 * - at its `exact` parameters it is full attention, in the prompt and while decoding; at those of its trials it is not
 * - a prompt taken in pieces gives what it gives as a whole
 * - a decoded row gives what the prompt's row gives, for methods that treat both alike
 * - steps batched with other sequences give what they give alone
 * - after a rollback the same steps give the same, bit for bit; a fork goes on as the original
 * - a prompt that is aborted half-way gives back every page, and the sequence goes on as if nothing had been
 * - closing gives back every page
 */
export async function conformance(
  engine: Engine,
  factory: AnyMethod,
  { ids, tolerance = 2e-4 }: ConformanceOptions,
): Promise<Conformance[]> {
  const results: Conformance[] = [];
  const note = (check: string, spec: string, worst: number, limit: number) =>
    results.push({ check, spec, worst, tolerance: limit, passed: worst <= limit });
  const { card } = factory;
  if (card.exact) {
    const attached = factory.from(card.exact);
    const dense = await runs(engine, full(), ids);
    const own = await runs(engine, attached, ids);
    note("exact setting equals full attention", attached.spec, difference(own, dense), tolerance);
  }
  for (const trial of card.trials) {
    const attached = factory.from(trial.parameters);
    const { spec } = attached;
    // work areas grow to what the checks need and stay: only what comes after counts as left behind
    for (const check of [pieces, batched, rollback, abort]) await check(engine, attached, ids);
    const before = engine.pool.bytesUsed;
    if (Object.keys(card.exact ?? { acts: true }).length > 0) {
      const acts = difference(await runs(engine, attached, ids), await runs(engine, full(), ids));
      // a setting that changes nothing would make the rest of the checks empty
      results.push({ check: "the trial acts", spec, worst: acts, tolerance, passed: acts > 10 * tolerance });
    }
    note("pieces equal the whole", spec, await pieces(engine, attached, ids), tolerance);
    if (trial.uniform) note("a decoded row equals the prompt's", spec, await rows(engine, attached, ids), tolerance);
    note("batched equals alone", spec, await batched(engine, attached, ids), tolerance);
    note("rollback and fork repeat", spec, await rollback(engine, attached, ids), 0);
    const { moved, left } = await abort(engine, attached, ids);
    note("an abort changes nothing", spec, moved, 0);
    // page tables may stay at the size that they grew to; a page of one head is more than this
    const heads = engine.shape.layers * engine.shape.kvHeads * (attached.hooks.streams?.count ?? 1);
    note("an abort gives back pages", spec, left, heads * 128);
    note("closing returns every page", spec, engine.pool.bytesUsed - before, 0);
  }
  return results;
}

/** Decoded tokens after the prompt in each check. */
const STEPS = 12;

async function withSequence<T>(
  engine: Engine,
  method: AttachedMethod,
  use: (sequence: Sequence) => Promise<T>,
): Promise<T> {
  const sequence = engine.sequence(engine.compose([method]));
  try {
    return await use(sequence);
  } finally {
    sequence.close();
  }
}

/** Logits of every prompt row, then of the decoded rows. */
function runs(
  engine: Engine,
  method: AttachedMethod,
  ids: readonly number[],
  pieceRows?: number,
): Promise<Float32Array> {
  return withSequence(engine, method, async (sequence) => {
    const split = ids.length - STEPS;
    const prompt = await promptLogits(engine, sequence, ids.slice(0, split), pieceRows);
    const steps = await decode(engine, sequence, ids.slice(split));
    return join([prompt, ...steps]);
  });
}

async function promptLogits(
  engine: Engine,
  sequence: Sequence,
  ids: readonly number[],
  pieceRows?: number,
): Promise<Float32Array> {
  const { vocab } = engine.shape;
  const prompt = await engine.prompt(sequence, ids);
  const out = new Float32Array(prompt.length * vocab);
  await engine.prefill(sequence, prompt, {
    wanted: "all",
    onLogits: (first, rows, data) => out.set(data.subarray(0, rows * vocab), first * vocab),
    ...(pieceRows && { pieceRows }),
  });
  return out;
}

async function decode(engine: Engine, sequence: Sequence, ids: readonly number[]): Promise<Float32Array[]> {
  const out: Float32Array[] = [];
  for (const id of ids) out.push((await engine.decode([{ sequence, id }]))[0].slice());
  return out;
}

async function pieces(engine: Engine, method: AttachedMethod, ids: readonly number[]): Promise<number> {
  const whole = await runs(engine, method, ids);
  return difference(await runs(engine, method, ids, Math.ceil((ids.length - STEPS) / 3)), whole);
}

async function rows(engine: Engine, method: AttachedMethod, ids: readonly number[]): Promise<number> {
  const prompt = await withSequence(engine, method, (sequence) => promptLogits(engine, sequence, ids));
  return difference(await runs(engine, method, ids), prompt);
}

async function batched(engine: Engine, method: AttachedMethod, ids: readonly number[]): Promise<number> {
  const split = ids.length - STEPS;
  const alone = join(
    (await withPrompt(engine, method, ids.slice(0, split), (s) => decode(engine, s, ids.slice(split)))) ?? [],
  );
  return withPrompt(engine, method, ids.slice(0, split), (first) =>
    withPrompt(engine, full(), ids.slice(0, 9), (second) =>
      withPrompt(engine, method, ids.slice(3, 40), async (third) => {
        const out: Float32Array[] = [];
        for (const id of ids.slice(split)) {
          const logits = await engine.decode([first, second, third].map((sequence) => ({ sequence, id })));
          out.push(logits[0].slice());
        }
        return difference(join(out), alone);
      }),
    ),
  );
}

async function rollback(engine: Engine, method: AttachedMethod, ids: readonly number[]): Promise<number> {
  const split = ids.length - 2 * STEPS;
  const next = ids.slice(split, split + STEPS);
  return withPrompt(engine, method, ids.slice(0, split), async (sequence) => {
    const mark = sequence.snapshot();
    const first = join(await decode(engine, sequence, next));
    sequence.rollback(mark);
    const fork = sequence.fork(engine.shape);
    try {
      const again = join(await decode(engine, sequence, next));
      const forked = join(await decode(engine, fork, next));
      // the fork's steps must not have touched the original
      const on = join(await decode(engine, sequence, ids.slice(split + STEPS)));
      const forkOn = join(await decode(engine, fork, ids.slice(split + STEPS)));
      return Math.max(difference(again, first), difference(forked, first), difference(on, forkOn));
    } finally {
      fork.close();
    }
  });
}

/** Difference of logits after an aborted extension, and the bytes that it left behind. */
async function abort(engine: Engine, method: AttachedMethod, ids: readonly number[]) {
  const third = Math.floor(ids.length / 3);
  return withPrompt(engine, method, ids.slice(0, third), async (sequence) => {
    const bytes = engine.pool.bytesUsed;
    const controller = new AbortController();
    const run = engine.prefill(sequence, ids.slice(third), {
      wanted: "last",
      signal: controller.signal,
      onProgress: ({ done, total }) => {
        if (done * 2 >= total) controller.abort();
      },
    });
    const aborted = await run.then(
      () => false,
      (error: unknown) => error instanceof FoveaError && error.code === "aborted",
    );
    const left = aborted ? Math.abs(engine.pool.bytesUsed - bytes) : Number.POSITIVE_INFINITY;
    const after = join(await decode(engine, sequence, ids.slice(third, third + STEPS)));
    const wanted = await withPrompt(engine, method, ids.slice(0, third), (fresh) =>
      decode(engine, fresh, ids.slice(third, third + STEPS)),
    );
    return { moved: difference(after, join(wanted)), left };
  });
}

function withPrompt<T>(
  engine: Engine,
  method: AttachedMethod,
  prompt: readonly number[],
  use: (sequence: Sequence) => Promise<T>,
): Promise<T> {
  return withSequence(engine, method, async (sequence) => {
    await engine.prefill(sequence, await engine.prompt(sequence, prompt), { wanted: "last" });
    return use(sequence);
  });
}

function join(parts: readonly Float32Array[]): Float32Array {
  const all = new Float32Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of parts) {
    all.set(p, at);
    at += p.length;
  }
  return all;
}

function difference(a: Float32Array, b: Float32Array): number {
  if (a.length !== b.length) return Number.POSITIVE_INFINITY;
  let worst = 0;
  for (let i = 0; i < a.length; i++) worst = Math.max(worst, Math.abs(a[i] - b[i]));
  return Number.isNaN(worst) ? Number.POSITIVE_INFINITY : worst;
}
