import { FoveaError } from "../error.js";
import { mergeParts } from "../kernels/index.js";
import { entriesBelow } from "./ascending.js";
import type { AttentionShape, BlockAttention } from "./block-attention.js";
import { UNSEEN } from "./block-attention.js";
import type { LayerCache } from "./cache.js";
import { intersectEntries, toRanges } from "./compose.js";
import type { Entries, HeadEntries, KeyView, LogBias, Near, Part, Partial, RotaryPlan } from "./hooks.js";
import { entriesOf, isPerHead } from "./hooks.js";
import { FloatKeys, type KeySource, type QueryRows } from "./key-source.js";
import { RotaryTable, rotate } from "./rotary.js";

/** What `NearKeys` splits by. */
export interface NearOptions {
  readonly shape: AttentionShape;
  readonly blocks: BlockAttention;
  readonly near: Near;
  readonly plan: RotaryPlan;
  /** The step's queries rotated at their absolute positions, [T, Hq, D], and the position of the first. */
  readonly queries: Float32Array;
  readonly first: number;
  /** Where the far keys lie in pages. */
  readonly cache?: LayerCache;
}

/**
 * Keys that are read at other positions where they are near (`PositionResult.near`): far ones where they lie, near ones
 * as a float32 copy turned to their absolute positions. Every part is read as two, so that selections, biases and rows
 * of logits know nothing of it.
 */
export class NearKeys implements KeySource {
  readonly view: KeyView;
  readonly keys: number;
  readonly #far: KeySource;
  readonly #options: NearOptions;
  /** Per KV head the first entry that any row of the step reads as near. */
  readonly #starts: readonly number[];
  #near: FloatKeys | undefined;

  constructor(far: KeySource, options: NearOptions) {
    this.#far = far;
    this.#options = options;
    this.view = far.view;
    this.keys = far.keys;
    const lowest = options.first - options.near.window + 1;
    this.#starts = Array.from({ length: options.shape.kvHeads }, (_, h) => entriesBelow(far.view.positions(h), lowest));
  }

  /** The far keys' shape: a window of the model's own counts from the near one's end. */
  static farShape(shape: AttentionShape, near: Near): AttentionShape {
    return shape.window === undefined ? shape : { ...shape, window: Math.max(1, shape.window - near.window) };
  }

  async attend(query: QueryRows, part: Part): Promise<Partial> {
    const { shape, cache } = this.#options;
    const both: Partial[] = [];
    const far = this.#farPart(query, part);
    if (far) both.push(await this.#far.attend(far.query, far.part));
    const near = this.#nearPart(query, part);
    both.push(await near.keys.attend(near.query, near.part));
    if (cache?.meter) {
      const entries = this.#entries(part, this.#starts, (own, start) => between(own, start, this.keys, this.keys));
      cache.meter.attend(cache, { ...near.query, scale: shape.scale, heads: part.heads, entries });
    }
    return mergeParts(both, shape.valueDim);
  }

  async attendInto(query: QueryRows, part: Part, output: Float32Array, lse: Float32Array): Promise<void> {
    const result = await this.attend(query, part);
    output.set(result.output);
    lse.set(result.lse);
  }

  async logits(query: QueryRows, part: Part): Promise<Float32Array> {
    const { heads, kvHeads } = this.#options.shape;
    const far = this.#farPart(query, part);
    const out = far
      ? await this.#far.logits(far.query, far.part)
      : new Float32Array(heads * query.rows * this.keys).fill(Number.NEGATIVE_INFINITY);
    const near = this.#nearPart(query, part);
    const logits = await near.keys.logits(near.query, near.part);
    const width = near.keys.keys;
    for (let head = 0; head < heads; head++) {
      const start = this.#starts[Math.floor((head * kvHeads) / heads)];
      for (let row = head * query.rows; row < (head + 1) * query.rows; row++)
        for (let i = 0; i < Math.min(width, this.keys - start); i++) {
          const x = logits[row * width + i];
          if (x > out[row * this.keys + start + i]) out[row * this.keys + start + i] = x;
        }
    }
    return out;
  }

  sum(weights: Float32Array, rows: number): Promise<Float32Array> {
    return this.#far.sum(weights, rows);
  }

  /** Keys at a distance of `window` and more are those that rows standing `window` earlier would see. */
  #farPart(query: QueryRows, part: Part): { query: QueryRows; part: Part } | undefined {
    const { near, shape } = this.#options;
    if (part.query)
      throw new FoveaError("unsupported", "a method brings queries of its own where near keys have other positions", {
        hint: "attach one of the two methods, or give them different `layers`",
      });
    const window = (part.window ?? Number.POSITIVE_INFINITY) - near.window;
    if (window <= 0 || (shape.window !== undefined && shape.window <= near.window)) return undefined;
    const bound = query.positions[query.rows - 1] - near.window + 1;
    const ends = this.#starts.map((_, h) => entriesBelow(this.view.positions(h), bound));
    if (ends.every((end) => end === 0)) return undefined;
    const entries = this.#entries(part, ends, (own, end) => between(own, 0, end, this.keys));
    const { window: _, ...rest } = part;
    return {
      query: { ...query, positions: query.positions.map((p) => p - near.window) },
      part: { ...rest, entries, ...(window < Number.POSITIVE_INFINITY && { window }) },
    };
  }

  #nearPart(query: QueryRows, part: Part): { keys: FloatKeys; query: QueryRows; part: Part } {
    const { near, shape, queries, first } = this.#options;
    const width = shape.heads * shape.keyDim;
    const at = (query.positions[0] - first) * width;
    const keys = this.#nearKeys();
    return {
      keys,
      query: { ...query, q: queries.subarray(at, at + query.rows * width) },
      part: {
        ...part,
        window: Math.min(part.window ?? Number.POSITIVE_INFINITY, near.window),
        entries: this.#entries(part, this.#starts, (own, start) => shifted(own, start, this.keys)),
        ...(part.bias && { bias: this.#nearBias(part.bias, keys.keys) }),
      },
    };
  }

  /** A part's entries changed by a bound of each KV head's own; one list where all heads come to the same. */
  #entries(part: Part, bounds: readonly number[], change: (entries: Entries, bound: number) => Entries): HeadEntries {
    const entries = part.entries ?? "all";
    if (!isPerHead(entries) && bounds.every((b) => b === bounds[0])) return change(entries, bounds[0]);
    const n = isPerHead(entries) ? entries.length : bounds.length;
    const kvHead = (head: number) => Math.floor((head * bounds.length) / n);
    return Array.from({ length: n }, (_, h) => change(entriesOf(entries, h, n), bounds[kvHead(h)]));
  }

  #nearBias(bias: LogBias, width: number): LogBias {
    const { heads, kvHeads } = this.#options.shape;
    const rows = Math.max(1, bias.rows);
    const n = this.#starts.every((s) => s === this.#starts[0]) ? bias.heads : Math.max(bias.heads, kvHeads);
    const data = new Float32Array(n * rows * width);
    for (let h = 0; h < n; h++) {
      const start = this.#starts[n === heads ? Math.floor((h * kvHeads) / heads) : n === kvHeads ? h : 0];
      const from = bias.heads === n ? h : 0;
      for (let row = 0; row < rows; row++) {
        const at = (from * rows + row) * this.keys;
        data.set(
          bias.data.subarray(at + start, Math.min(at + this.keys, at + start + width)),
          (h * rows + row) * width,
        );
      }
    }
    return { data, heads: n, rows: bias.rows };
  }

  /** The near entries of every KV head, turned from where they are stored to their absolute positions. */
  #nearKeys(): FloatKeys {
    if (this.#near) return this.#near;
    const { shape, blocks, near, plan, cache } = this.#options;
    const { kvHeads, keyDim, valueDim } = shape;
    const lengths = this.#starts.map((start, h) => this.view.length(h) - start);
    const keys = Math.max(1, ...lengths);
    const k = new Float32Array(kvHeads * keys * keyDim);
    const v = new Float32Array(kvHeads * keys * valueDim);
    const positions = new Float32Array(kvHeads * keys).fill(UNSEEN);
    for (let h = 0; h < kvHeads; h++) {
      const start = this.#starts[h];
      const read = cache?.tail(h, start);
      const at = this.view.positions(h).subarray(start);
      k.set(read?.k ?? this.view.keys(h).subarray(start * keyDim), h * keys * keyDim);
      v.set(read?.v ?? this.view.values(h).subarray(start * valueDim), h * keys * valueDim);
      positions.set(at, h * keys);
      const turned = turnPlan(plan, h, kvHeads);
      const own = k.subarray(h * keys * keyDim, (h * keys + at.length) * keyDim);
      const by = Array.from(at, (p) => p - near.stored(p));
      rotate(own, 1, keyDim, by, turned.plan, turned);
    }
    const block = (data: Float32Array) => ({ data, keys, layout: "heads" }) as const;
    this.#near = new FloatKeys(shape, blocks, block(k), block(v), positions, lengths);
    return this.#near;
  }
}

/** Entries from `start` on, counted from there. */
function shifted(entries: Entries, start: number, keys: number): Entries {
  if (entries === "all") return "all";
  const ranges = toRanges(entries, keys)
    .filter(([, to]) => to > start)
    .map(([from, to]) => [Math.max(0, from - start), to - start] as const);
  return { ranges };
}

/** Entries [from, to). */
function between(entries: Entries, from: number, to: number, keys: number): Entries {
  return intersectEntries(entries, { ranges: [[from, to]] }, keys);
}

/** Tables that turn a key on, without the plan's multiplier, which it carries already. */
const TURNS = new WeakMap<RotaryPlan, RotaryTable[]>();

function turnPlan(plan: RotaryPlan, kvHead: number, kvHeads: number): RotaryTable {
  const { groups = 1, dims } = plan;
  let tables = TURNS.get(plan);
  if (!tables) {
    const half = dims >> 1;
    tables = Array.from({ length: groups }, (_, g) => {
      const inverse = plan.inverse.subarray(g * half, (g + 1) * half);
      return new RotaryTable({ inverse, multiplier: 1, dims });
    });
    TURNS.set(plan, tables);
  }
  return tables[Math.floor((kvHead * groups) / kvHeads)];
}
