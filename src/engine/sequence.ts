import { FoveaError } from "../error.js";
import { checkMemory, type Memory } from "../models/index.js";
import { Cache, type CachePool } from "./cache.js";
import type { Composed } from "./compose.js";
import type { ModelShape } from "./hooks.js";
import type { ReadMeter } from "./read-meter.js";
import type { RotaryTable } from "./rotary.js";
import { decodeState, encodeState } from "./state.js";

/** One text on its way through the model: its tokens, its cache, its methods' states. */
export class Sequence {
  readonly ids: number[];
  readonly cache: Cache;
  readonly composed: Composed;
  readonly states: unknown[];
  /** Rotary tables per layer; dynamic scaling and LongRoPE pick them by the length that the sequence begins with. */
  tables: readonly (RotaryTable | null)[] | undefined;
  rotaryLength = 0;
  /** Logits of the last decode step, [V]. */
  logits: Float32Array | undefined;
  /** Per layer what the model's mechanism carries from row to row. Every step makes new arrays: old ones stay as they are. */
  carried: (CarriedState | undefined)[] = [];
  /** What the model's mechanism reads beside the text, from the first token to the last. */
  readonly memory: Memory | undefined;
  /** Which of some parallel streams this is. */
  readonly stream: number;
  /** The first stream's others: the same tokens, run and closed with it. */
  readonly others: readonly Sequence[];
  /** Logits fused of all streams in the last decode step, [V]. */
  fused: Float32Array | undefined;
  #closed = false;

  constructor(
    cache: Cache,
    composed: Composed,
    model: ModelShape,
    from: {
      ids?: number[];
      states?: unknown[];
      memory?: Memory | undefined;
      stream?: number;
      others?: readonly Sequence[];
    } = {},
  ) {
    this.cache = cache;
    this.composed = composed;
    this.ids = from.ids ?? [];
    this.states = from.states ?? composed.methods.map((m) => m.hooks.state?.(model));
    this.memory = from.memory;
    this.stream = from.stream ?? 0;
    this.others = from.others ?? [];
  }

  get length(): number {
    return this.ids.length;
  }

  /** Bytes of what is kept of the tokens: cached pages, and a mechanism's states and memory. */
  get bytes(): number {
    const states = this.carried.flatMap((state) => Object.values(state ?? {}));
    const memory = this.memory?.data.byteLength ?? 0;
    const own = this.cache.bytes + memory + states.reduce((sum, data) => sum + data.byteLength, 0);
    return this.others.reduce((sum, other) => sum + other.bytes, own);
  }

  get closed(): boolean {
    return this.#closed;
  }

  /**
   * The same text, going its own way: full pages are shared. `composed` may have more methods behind those of the
   * sequence, e.g. an observer of what comes next; their states begin here.
   */
  fork(model: ModelShape, composed: Composed = this.composed): Sequence {
    const copy = new Sequence(this.cache.fork(), composed, model, {
      ids: [...this.ids],
      states: composed.methods.map((m, i) =>
        i < this.states.length ? structuredClone(this.states[i]) : m.hooks.state?.(model),
      ),
      memory: this.memory,
      stream: this.stream,
      others: this.others.map((other) => other.fork(model, composed)),
    });
    copy.tables = this.tables;
    copy.rotaryLength = this.rotaryLength;
    copy.carried = [...this.carried];
    return copy;
  }

  /** A point to come back to. Keeps pages alive until `rollback` or `forget`. */
  snapshot(): Mark {
    return {
      ids: this.ids.length,
      cache: this.cache.snapshot(),
      states: this.states.map((s) => structuredClone(s)),
      carried: [...this.carried],
      others: this.others.map((other) => other.snapshot()),
    };
  }

  /** Back to a point: tokens, pages and states as they were. A mark serves once. */
  rollback(mark: Mark): void {
    this.ids.length = mark.ids;
    this.cache.rollback(mark.cache);
    this.states.splice(0, this.states.length, ...mark.states);
    this.carried = [...mark.carried];
    this.others.forEach((other, i) => void other.rollback(mark.others[i]));
  }

  /** Lets a mark go that will not be rolled back to. */
  forget(mark: Mark): void {
    this.cache.forget(mark.cache);
    this.others.forEach((other, i) => void other.forget(mark.others[i]));
  }

  /** Counts what is read of the cache, in all streams, until it is taken off again. */
  meter(meter: ReadMeter | undefined): void {
    this.cache.meter(meter);
    for (const other of this.others) other.meter(meter);
  }

  /** Returns all pages. Safe to call twice. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.cache.release();
    for (const other of this.others) other.close();
  }
}

/** What a mechanism carries from row to row in one layer, by name. */
export type CarriedState = Readonly<Record<string, Float32Array>>;

export interface Mark {
  readonly ids: number;
  readonly cache: ReturnType<Cache["snapshot"]>;
  readonly states: unknown[];
  readonly carried: readonly (CarriedState | undefined)[];
  readonly others: readonly Mark[];
}

/** What a saved reading belongs to; opening compares every field. */
export interface Fingerprint {
  readonly model: string;
  readonly methods: string;
  readonly precision: string;
  readonly cache: string;
}

const MAGIC = "FOVEAR01";

/**
 * A sequence as bytes: magic, header length, JSON header, then the states' buffers and the cache's chunks. `logits` are
 * those after its last token.
 */
export function encodeSequence(
  sequence: Sequence,
  logits: Float32Array | null,
  fingerprint: Fingerprint,
): Uint8Array[] {
  const { carried, memory, rotaryLength } = sequence;
  const others = sequence.others.map((other) => other.states);
  const states = encodeState({ states: sequence.states, rotaryLength, logits, carried, memory, others });
  const cache = sequence.cache.serialize();
  const otherCaches = sequence.others.map((other) => other.cache.serialize());
  const buffers = [...states.buffers, ...cache, ...otherCaches.flat()];
  const header = new TextEncoder().encode(
    JSON.stringify({
      fingerprint,
      ids: sequence.ids,
      states: states.json,
      stateBuffers: states.buffers.map((b) => b.length),
      cacheBuffers: cache.map((b) => b.length),
      otherCaches: otherCaches.map((one) => one.map((b) => b.length)),
      checksum: checksum(buffers),
    }),
  );
  const prefix = new Uint8Array(MAGIC.length + 4);
  prefix.set(new TextEncoder().encode(MAGIC));
  new DataView(prefix.buffer).setUint32(MAGIC.length, header.length, true);
  return [prefix, header, ...buffers];
}

/**
 * The sequence that `encodeSequence` wrote, with the memory that it was read with. Throws mismatch for another model or
 * method and, where a memory is given, for another one; bad-file for damage.
 */
export function decodeSequence(
  bytes: Uint8Array,
  pool: CachePool,
  composed: Composed,
  model: ModelShape,
  fingerprint: Fingerprint,
  memory?: Memory,
): { sequence: Sequence; logits: Float32Array | null } {
  const bad = (why: string) =>
    new FoveaError("bad-file", `not a usable saved reading: ${why}`, { hint: "read the text again and save it" });
  if (new TextDecoder().decode(bytes.subarray(0, MAGIC.length)) !== MAGIC) throw bad("it does not begin as one");
  if (bytes.length < MAGIC.length + 4) throw bad("it is cut short");
  const size = new DataView(bytes.buffer, bytes.byteOffset).getUint32(MAGIC.length, true);
  const start = MAGIC.length + 4;
  if (size > bytes.length - start) throw bad("it is cut short within its header");
  let header: {
    fingerprint: Fingerprint;
    ids: number[];
    states: string;
    stateBuffers: number[];
    cacheBuffers: number[];
    otherCaches?: number[][];
    checksum: number;
  };
  try {
    header = JSON.parse(new TextDecoder().decode(bytes.subarray(start, start + size)));
  } catch (cause) {
    throw new FoveaError("bad-file", "not a usable saved reading: its header is no JSON", { cause });
  }
  for (const key of ["model", "methods", "precision", "cache"] as const) {
    const found = header.fingerprint?.[key];
    if (found !== fingerprint[key])
      throw new FoveaError(
        "mismatch",
        `the saved reading was made with ${key} ${JSON.stringify(found)}; this model has ${JSON.stringify(fingerprint[key])}`,
        { hint: "open it with the same checkpoint, precision, cache type and methods, or read the text again" },
      );
  }
  let at = start + size;
  const take = (lengths: unknown) => {
    if (!Array.isArray(lengths)) throw bad("its header lacks a list of sections");
    return lengths.map((n: unknown) => {
      if (typeof n !== "number" || !Number.isInteger(n) || n < 0 || n > bytes.length - at) throw bad("it is cut short");
      at += n;
      return bytes.subarray(at - n, at);
    });
  };
  const stateBuffers = take(header.stateBuffers);
  const cacheBuffers = take(header.cacheBuffers);
  const otherBuffers = (header.otherCaches ?? []).map(take);
  if (otherBuffers.length !== (composed.streams?.count ?? 1) - 1) throw bad("it has another number of streams");
  if (at !== bytes.length) throw bad(`${bytes.length - at} bytes stand after its end`);
  if (checksum([...stateBuffers, ...cacheBuffers, ...otherBuffers.flat()]) !== header.checksum)
    throw bad("its checksum is wrong");
  if (!Array.isArray(header.ids) || !header.ids.every((i) => Number.isInteger(i) && i >= 0 && i < model.vocab))
    throw bad("its token ids are out of range");
  const saved = decodeState(header.states, stateBuffers) as {
    states: unknown[];
    rotaryLength: number;
    logits: Float32Array | null;
    carried?: (CarriedState | undefined)[];
    memory?: Memory;
    others?: unknown[][];
  };
  checkMemory(model.mechanism, saved.memory);
  if (memory && !sameMemory(memory, saved.memory))
    throw new FoveaError("mismatch", "the saved reading was made with another memory than the one that was given", {
      hint: "open it without a memory to go on with its own, or read the text again with this one",
    });
  const { memory: own } = saved;
  const others = otherBuffers.map((buffers, i) => {
    const from = { ids: [...header.ids], states: saved.others?.[i] ?? [], memory: own, stream: i + 1 };
    return new Sequence(Cache.deserialize(pool, buffers), composed, model, from);
  });
  const cache = Cache.deserialize(pool, cacheBuffers);
  const sequence = new Sequence(cache, composed, model, { ids: header.ids, states: saved.states, memory: own, others });
  for (const one of [sequence, ...others]) one.rotaryLength = saved.rotaryLength;
  sequence.carried = saved.carried ?? [];
  return { sequence, logits: saved.logits };
}

function sameMemory(a: Memory, b: Memory | undefined): boolean {
  return a.rows === b?.rows && a.data.length === b.data.length && a.data.every((x, i) => x === b.data[i]);
}

/** FNV-1a over 32-bit words, enough to notice damage. */
function checksum(buffers: readonly Uint8Array[]): number {
  let hash = 0x811c9dc5;
  for (const b of buffers) {
    const words = b.length >> 2;
    const view = new DataView(b.buffer, b.byteOffset, b.length);
    for (let i = 0; i < words; i++) hash = Math.imul(hash ^ view.getUint32(i * 4, true), 0x01000193);
    for (let i = words * 4; i < b.length; i++) hash = Math.imul(hash ^ b[i], 0x01000193);
  }
  return hash >>> 0;
}
