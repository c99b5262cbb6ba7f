import { addBiases, type Composed, combineSelections, compose, type MethodHooks, toRanges } from "../engine/compose.js";
import type {
  AttachedMethod,
  AttentionStep,
  KeyView,
  LogBias,
  ModelShape,
  OwnKeys,
  Part,
  Partial,
  Phase,
  ProductOptions,
  RetainStep,
  RotaryPlan,
  Rows,
} from "../engine/hooks.js";
import { entriesOf, isPartial } from "../engine/hooks.js";
import { rotate } from "../engine/rotary.js";
import { withoutBlocks } from "../engine/row-ranges.js";
import type { StepBase } from "../engine/steps.js";

/** Rows entering a layer of attention: unrotated projections. */
export interface PlainRows {
  readonly q: Float32Array; // [T, Hq, D]
  readonly k: Float32Array; // [T, Hkv, D]
  readonly v: Float32Array; // [T, Hkv, D]
}

/**
 * One layer of attention under methods, written as plain loops in the order of docs/hooks.md: what the engine's fast
 * forms are held to, and a bench for methods that needs no model. float32 keys and values, every row's logits in full.
 */
export class PlainLayer {
  readonly model: ModelShape;
  readonly composed: Composed;
  readonly states: unknown[];
  /** Rows of a prompt or extension that attend together. */
  readonly blockRows: number;
  /** Tokens that the sequence is to hold, as methods of positions are told. */
  readonly length: number;
  readonly #plan: RotaryPlan | null;
  /** Keys as a far row reads them, and as a near one does where a method sets those apart. */
  #heads: { k: Float32Array; near: Float32Array; v: Float32Array; positions: Int32Array }[];
  #near: { window: number; q: Float32Array; first: number } | undefined;
  #length = 0;

  constructor(
    shape: { heads: number; kvHeads: number; headDim: number },
    methods: readonly AttachedMethod[],
    options: { rotaryBase?: number | null; blockRows?: number; maxPositions?: number; length?: number } = {},
  ) {
    const { rotaryBase = 10000, blockRows = 1 << 30, maxPositions = 1 << 20, length = 1 } = options;
    this.length = length;
    this.model = {
      ...shape,
      layers: 1,
      width: shape.heads * shape.headDim,
      mlpWidth: 1,
      vocab: 1,
      maxPositions,
      hash: "plain",
      rotary: rotaryBase !== null,
    };
    this.blockRows = blockRows;
    this.composed = compose(methods, this.model);
    this.states = methods.map((m) => m.hooks.state?.(this.model));
    this.#plan =
      rotaryBase === null
        ? null
        : {
            inverse: Float32Array.from(
              { length: shape.headDim / 2 },
              (_, i) => rotaryBase ** ((-2 * i) / shape.headDim),
            ),
            multiplier: 1,
            dims: shape.headDim,
            base: rotaryBase,
          };
    this.#heads = Array.from({ length: shape.kvHeads }, () => ({
      k: new Float32Array(0),
      near: new Float32Array(0),
      v: new Float32Array(0),
      positions: new Int32Array(0),
    }));
  }

  /** Absolute positions of a KV head's entries. */
  positions(kvHead: number): Int32Array {
    return this.#heads[kvHead].positions;
  }

  /** The next rows of the sequence, a turn or a piece of one; heads' outputs [T, Hq, D]. */
  async step(
    input: PlainRows,
    piece?: { readonly firstRow: number; readonly totalRows: number },
  ): Promise<Float32Array> {
    const phase = this.#phase(input);
    const { heads, kvHeads, headDim } = this.model;
    const rows = input.q.length / (heads * headDim);
    const positions = Int32Array.from({ length: rows }, (_, i) => this.#length + i);
    const hooks = this.composed.layer(0);
    const { firstRow, totalRows } = piece ?? { firstRow: 0, totalRows: rows };
    const base = { layer: 0, phase, rows, positions, firstRow, totalRows, model: this.model };
    const [q, k, v] = [input.q.slice(), input.k.slice(), input.v.slice()];
    for (const m of hooks.activations) m.hooks.activations?.(this.#bind({ ...base, q, k, v }, m));
    const unrotated = q.slice();
    const placed = hooks.position?.hooks.position?.(
      this.#bind({ ...base, plan: this.#plan, length: this.length, stream: 0 }, hooks.position),
    );
    const plan = placed?.plan ?? this.#plan;
    const turnQueries = (x: Float32Array, at: ArrayLike<number>, of: Int32Array) => {
      this.#rotate(x, heads, at, plan);
      const scale = plan?.queryScale ?? (() => 1);
      const width = heads * headDim;
      for (let i = 0; i < x.length; i++) x[i] *= scale(of[Math.floor(i / width)]);
    };
    turnQueries(q, placed?.query ?? positions, positions);
    const near = k.slice();
    this.#rotate(k, kvHeads, placed?.key ?? positions, plan);
    this.#rotate(near, kvHeads, positions, plan);
    for (const m of hooks.keys) m.hooks.keys?.(this.#bind({ ...base, k, v }, m));
    this.#near = undefined;
    if (placed?.near) {
      this.#near = { window: placed.near.window, q: unrotated.slice(), first: positions[0] };
      turnQueries(this.#near.q, positions, positions);
    }

    await this.#retain("before", base, new Float32Array(0), plan);
    this.#append(k, near, v, positions);

    const out = new Float32Array(q.length);
    const width = heads * headDim;
    const size = phase === "decode" ? rows : this.blockRows;
    for (let first = 0; first < rows; first += size) {
      const count = Math.min(size, rows - first);
      const slice = (x: Float32Array) => x.slice(first * width, (first + count) * width);
      const rowPositions = positions.subarray(first, first + count);
      const step: Omit<AttentionStep, "state"> = {
        ...base,
        rows: count,
        positions: rowPositions,
        firstRow: firstRow + first,
        q: slice(q),
        scale: headDim ** -0.5,
        view: this.#view(),
        cache: null,
        rotate: (at) => {
          const x = slice(unrotated);
          turnQueries(x, at, rowPositions);
          return x;
        },
        score: async (part = {}) => this.#logits(part, part.query ?? slice(q), rowPositions).data,
        attendTo: async (own) => plainAttention(own.query ?? slice(q), own, this.model),
        products: async (a, b, options) => plainProducts(a, b, heads, { dim: headDim, ...options }),
        attend: async (part = {}) => this.#sum(softmax(this.#logits(part, part.query ?? slice(q), rowPositions))),
      };
      out.set(await this.#attend(step), first * width);
    }
    for (const m of hooks.heads) m.hooks.heads?.(this.#bind({ ...base, heads: out }, m));
    await this.#retain("after", base, q, plan);
    this.#length += rows;
    return out;
  }

  #phase(input: PlainRows): Phase {
    if (this.#length === 0) return "prompt";
    return input.q.length === this.model.width ? "decode" : "extend";
  }

  async #attend(step: Omit<AttentionStep, "state">): Promise<Float32Array> {
    const hooks = this.composed.layer(0);
    const selections: (readonly (Part | Partial)[])[] = [];
    for (const m of hooks.select) selections.push((await m.hooks.select?.(this.#bind({ ...step }, m))) ?? []);
    const parts = combineSelections(selections, step.view, this.model, step.positions);
    let added: LogBias | undefined;
    for (const m of hooks.bias) {
      const bias = m.hooks.bias?.(this.#bind({ ...step }, m));
      if (bias) added = added ? addBiases(added, bias, this.model) : bias;
    }
    // disjoint parts fill one row of logits, which is what merging them by log-sum-exp comes to
    let rows: Rows | undefined;
    const ready: { output: Float32Array; lse: Float32Array }[] = [];
    for (const part of parts) {
      if (isPartial(part)) {
        ready.push(part);
        continue;
      }
      const bias = part.bias && added ? addBiases(part.bias, added, this.model) : (part.bias ?? added);
      const logits = this.#logits({ ...part, bias }, part.query ?? step.q, step.positions);
      if (!rows) rows = logits;
      else for (let i = 0; i < logits.data.length; i++) rows.data[i] = Math.max(rows.data[i], logits.data[i]);
    }
    if (!rows) return ready[0].output;
    for (const m of hooks.scores) m.hooks.scores?.(this.#bind({ ...step }, m), rows);
    const { lse } = softmax(rows);
    for (const m of hooks.pattern) m.hooks.pattern?.(this.#bind({ ...step }, m), rows);
    const keyPositions = (head: number) => step.view.positions(head);
    for (const m of hooks.observe) m.hooks.observe?.(this.#bind({ ...step, weights: rows, keyPositions }, m));
    const result = this.#sum({ rows, lse });
    for (const partial of ready) mergeInto(result, partial, this.model.headDim);
    return result.output;
  }

  /** Logits [Hq, T, S] of a part: scaled products, bias; -Infinity for what is not read. */
  #logits(given: Part, q: Float32Array, positions: Int32Array): Rows {
    const part = withoutBlocks(given, positions.length, this.#heads[0].positions.length, this.model);
    const { heads, kvHeads, headDim } = this.model;
    const group = heads / kvHeads;
    const rows = positions.length;
    const keys = Math.max(...this.#heads.map((h) => h.positions.length));
    const data = new Float32Array(heads * rows * keys).fill(Number.NEGATIVE_INFINITY);
    const [fromHead, toHead] = part.heads ?? [0, kvHeads];
    for (let head = fromHead * group; head < toHead * group; head++) {
      const kv = Math.floor(head / group);
      const { k, near: nearKeys, positions: at } = this.#heads[kv];
      for (const [from, to] of toRanges(entriesOf(part.entries ?? "all", head, heads), at.length))
        for (let t = 0; t < rows; t++)
          for (let s = from; s < to; s++) {
            const distance = positions[t] - at[s];
            if (distance < 0 || distance >= (part.window ?? Number.POSITIVE_INFINITY)) continue;
            const near = this.#near && distance < this.#near.window ? this.#near : undefined;
            const [x, row, y] = near ? [near.q, positions[t] - near.first, nearKeys] : [q, t, k];
            let dot = 0;
            for (let d = 0; d < headDim; d++) dot += x[(row * heads + head) * headDim + d] * y[s * headDim + d];
            data[(head * rows + t) * keys + s] =
              dot * headDim ** -0.5 + biasAt(part.bias, head, t, s, keys, this.model);
          }
    }
    return { data, heads, rows, keys };
  }

  #sum({ rows: { data, rows, keys }, lse }: { rows: Rows; lse: Float32Array }) {
    const { heads, kvHeads, headDim } = this.model;
    const output = new Float32Array(rows * heads * headDim);
    for (let head = 0; head < heads; head++) {
      const { v, positions } = this.#heads[Math.floor(head / (heads / kvHeads))];
      for (let t = 0; t < rows; t++)
        for (let s = 0; s < positions.length; s++) {
          const weight = data[(head * rows + t) * keys + s];
          if (weight !== 0)
            for (let d = 0; d < headDim; d++) output[(t * heads + head) * headDim + d] += weight * v[s * headDim + d];
        }
    }
    return { output, lse };
  }

  async #retain(when: "before" | "after", base: StepBase, q: Float32Array, plan: RotaryPlan | null): Promise<void> {
    const width = this.model.width;
    for (const m of this.composed.layer(0).retain) {
      const step: Omit<RetainStep, "state"> = {
        ...base,
        when,
        view: this.#view(),
        scale: this.model.headDim ** -0.5,
        plan,
        queryRows: when === "after" ? base.rows : 0,
        q,
        incoming: when === "before" ? base.rows : 0,
        weights: async (n) => {
          const first = Math.max(0, base.rows - n);
          const logits = this.#logits({}, q.slice(first * width), base.positions.subarray(first));
          return softmax(logits).rows.data;
        },
        keep: (head, entries) => {
          const { k, near, v, positions } = this.#heads[head];
          const pick = (x: Float32Array) => {
            const d = this.model.headDim;
            const picked = new Float32Array(entries.length * d);
            for (const [i, e] of entries.entries()) picked.set(x.subarray(e * d, (e + 1) * d), i * d);
            return picked;
          };
          const at = Int32Array.from(entries, (e) => positions[e]);
          this.#heads[head] = { k: pick(k), near: pick(near), v: pick(v), positions: at };
        },
      };
      await m.hooks.retain?.(this.#bind(step, m));
    }
  }

  #append(k: Float32Array, near: Float32Array, v: Float32Array, positions: Int32Array): void {
    const { kvHeads, headDim } = this.model;
    this.#heads = this.#heads.map((old, head) => {
      const join = (x: Float32Array, more: Float32Array) => {
        const joined = new Float32Array(x.length + positions.length * headDim);
        joined.set(x);
        for (let t = 0; t < positions.length; t++)
          joined.set(
            more.subarray((t * kvHeads + head) * headDim, (t * kvHeads + head + 1) * headDim),
            x.length + t * headDim,
          );
        return joined;
      };
      return {
        k: join(old.k, k),
        near: join(old.near, near),
        v: join(old.v, v),
        positions: Int32Array.from([...old.positions, ...positions]),
      };
    });
  }

  #view(): KeyView {
    return {
      length: (head) => this.#heads[head].positions.length,
      positions: (head) => this.#heads[head].positions,
      keys: (head) => this.#heads[head].k,
      values: (head) => this.#heads[head].v,
    };
  }

  #rotate(x: Float32Array, heads: number, positions: ArrayLike<number>, plan: RotaryPlan | null): void {
    if (plan) rotate(x, heads, this.model.headDim, positions, plan);
  }

  #bind<S extends object>(step: S, { index }: MethodHooks): S & { state: unknown } {
    const { states } = this;
    return Object.defineProperty(step, "state", {
      get: () => states[index],
      set: (value: unknown) => {
        states[index] = value;
      },
    }) as S & { state: unknown };
  }
}

/** A row's attention over keys of a method's own. */
function plainAttention(q: Float32Array, { count, k, v }: OwnKeys, { heads, kvHeads, headDim }: ModelShape): Partial {
  const output = new Float32Array(heads * headDim);
  const lse = new Float32Array(heads);
  for (let head = 0; head < heads; head++) {
    const base = Math.floor((head * kvHeads) / heads) * count;
    const weights = Float64Array.from({ length: count }, (_, i) => {
      let dot = 0;
      for (let d = 0; d < headDim; d++) dot += q[head * headDim + d] * k[(base + i) * headDim + d];
      return Math.exp(dot * headDim ** -0.5);
    });
    const sum = weights.reduce((a, b) => a + b, 0);
    lse[head] = Math.log(sum);
    for (let i = 0; i < count; i++)
      for (let d = 0; d < headDim; d++) output[head * headDim + d] += (weights[i] / sum) * v[(base + i) * headDim + d];
  }
  return { output, lse };
}

/** The largest products of tiles by their definition, see `AttentionStep.products`; `queries`: Hq. */
export function plainProducts(
  a: Float32Array,
  b: Float32Array,
  queries: number,
  { heads, dim = 1, rows = 1, keys = 1, bias }: ProductOptions,
): Float32Array {
  const m = a.length / (queries * dim);
  const n = b.length / (heads * dim);
  const [down, across] = [m / rows, n / keys];
  const out = new Float32Array(queries * down * across).fill(Number.NEGATIVE_INFINITY);
  for (let h = 0; h < queries; h++) {
    const from = Math.floor((h * heads) / queries) * n;
    for (let i = 0; i < m; i++)
      for (let j = 0; j < n; j++) {
        let dot = bias?.[(h * down + Math.floor(i / rows)) * n + j] ?? 0;
        for (let d = 0; d < dim; d++) dot += a[(i * queries + h) * dim + d] * b[(from + j) * dim + d];
        const at = (h * down + Math.floor(i / rows)) * across + Math.floor(j / keys);
        if (dot > out[at]) out[at] = dot;
      }
  }
  return out;
}

function biasAt(
  bias: LogBias | undefined,
  head: number,
  row: number,
  key: number,
  keys: number,
  model: ModelShape,
): number {
  if (!bias) return 0;
  const own =
    bias.heads === model.heads ? head : bias.heads === 1 ? 0 : Math.floor(head / (model.heads / model.kvHeads));
  return bias.data[(own * Math.max(1, bias.rows) + (bias.rows ? row : 0)) * keys + key];
}

/** Softmax of each row in place; lse is [T, Hq]. */
function softmax(rows: Rows): { rows: Rows; lse: Float32Array } {
  const lse = new Float32Array(rows.rows * rows.heads);
  for (let head = 0; head < rows.heads; head++)
    for (let t = 0; t < rows.rows; t++) {
      const row = rows.data.subarray((head * rows.rows + t) * rows.keys, (head * rows.rows + t + 1) * rows.keys);
      const max = row.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
      let sum = 0;
      for (let s = 0; s < row.length; s++)
        sum += row[s] = max === Number.NEGATIVE_INFINITY ? 0 : Math.exp(row[s] - max);
      if (sum > 0) for (let s = 0; s < row.length; s++) row[s] /= sum;
      lse[t * rows.heads + head] = sum > 0 ? max + Math.log(sum) : Number.NEGATIVE_INFINITY;
    }
  return { rows, lse };
}

function mergeInto(into: { output: Float32Array; lse: Float32Array }, more: Partial, dim: number): void {
  for (let i = 0; i < into.lse.length; i++) {
    const max = Math.max(into.lse[i], more.lse[i]);
    if (max === Number.NEGATIVE_INFINITY) continue;
    const [a, b] = [Math.exp(into.lse[i] - max), Math.exp(more.lse[i] - max)];
    for (let d = i * dim; d < (i + 1) * dim; d++) into.output[d] = (into.output[d] * a + more.output[d] * b) / (a + b);
    into.lse[i] = max + Math.log(a + b);
  }
}
