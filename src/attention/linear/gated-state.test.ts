import { describe, expect, it } from "vitest";
import { compile, type GraphCut, gradients, input, type Tensor } from "../../graph/index.js";
import { seededNormals } from "../../models/index.js";
import { type GatedState, gatedState, unitInverse, unitLength, withNormaliser } from "./gated-state.js";

type Kind = "linear" | "normalised" | "scalar" | "key" | "value" | "delta" | "gated delta";
const KINDS: readonly Kind[] = ["linear", "normalised", "scalar", "key", "value", "delta", "gated delta"];

interface Sizes {
  readonly B: number;
  readonly H: number;
  readonly T: number;
  readonly K: number;
  readonly V: number;
}
type Numbers = Record<string, { data: Float32Array | BigInt64Array; dims: readonly number[] }>;

const gateWidth = (kind: Kind, { K, V }: Sizes): number | undefined =>
  ({ scalar: 1, "gated delta": 1, key: K, value: V })[kind as "scalar"];

/** Random inputs of a recurrence; `log` bounds the log-gates from below. */
function numbers(kind: Kind, sizes: Sizes, log = -2): Numbers {
  const { B, H, T, K, V } = sizes;
  const next = seededNormals(`${kind} ${T}`);
  const make = (dims: readonly number[], f: (x: number) => number = (x) => x) => ({
    data: Float32Array.from({ length: dims.reduce((a, b) => a * b, 1) }, () => f(next())),
    dims,
  });
  const positive = kind === "normalised" ? (x: number) => Math.abs(x) + 0.1 : (x: number) => x;
  const extra = kind === "normalised" ? 1 : 0;
  const gates = gateWidth(kind, sizes);
  return {
    q: make([B, H, T, K], positive),
    k: make([B, H, T, K], positive),
    v: make([B, H, T, V]),
    state: make([B, H, K, V + extra], positive),
    ...(gates && { log: make([B, H, T, gates], (x) => log / (1 + Math.exp(-x))) }),
    ...(kind.endsWith("delta") && { beta: make([B, H, T, 1], (x) => 1 / (1 + Math.exp(-x))) }),
  };
}

/** The recurrence over graph inputs. T is its number, or a symbol. */
function graphOf(
  kind: Kind,
  sizes: Sizes,
  chunk: number,
  options: { T?: string; longest?: number; block?: number; groups?: number } = {},
) {
  const { B, H, K, V } = sizes;
  const T = options.T ?? sizes.T;
  const inputs: Record<string, Tensor> = {
    q: input("q", [B, H * (options.groups ?? 1), T, K]),
    k: input("k", [B, H, T, K]),
    v: input("v", [B, H, T, V]),
    state: input("state", [B, H, K, V + (kind === "normalised" ? 1 : 0)]),
  };
  const gates = gateWidth(kind, sizes);
  if (gates) inputs.log = input("log", [B, H, T, gates]);
  if (kind.endsWith("delta")) inputs.beta = input("beta", [B, H, T, 1]);
  const side = kind === "key" || kind === "value" ? kind : "scalar";
  const given: GatedState = {
    q: inputs.q,
    k: kind.endsWith("delta") ? unitLength(inputs.k) : inputs.k,
    v: inputs.v,
    state: inputs.state,
    chunk,
    ...options,
    ...(inputs.log && { gate: { log: inputs.log, side } }),
    ...(inputs.beta && { beta: inputs.beta }),
  };
  return { inputs, result: kind === "normalised" ? withNormaliser(given) : gatedState(given) };
}

/** Outputs by name; within the graph they are called otherwise than inputs. */
async function run({ inputs, outputs }: GraphCut, feeds: Numbers): Promise<Record<string, Float32Array>> {
  const renamed = Object.fromEntries(Object.entries(outputs).map(([name, t]) => [`new ${name}`, t]));
  const segment = await compile({ inputs, outputs: renamed }, { threads: 1 });
  const out = await segment.run(feeds);
  await segment.release();
  return Object.fromEntries(Object.keys(outputs).map((name) => [name, out[`new ${name}`].data as Float32Array]));
}

async function evaluate(kind: Kind, sizes: Sizes, chunk: number, feeds: Numbers, options = {}) {
  const { inputs, result } = graphOf(kind, sizes, chunk, options);
  return run({ inputs, outputs: { out: result.out, state: result.state } }, feeds);
}

/** The recurrence in float64, token by token, as the papers print it. */
function plain(kind: Kind, { B, H, T, K, V }: Sizes, feeds: Numbers): { out: Float64Array; state: Float64Array } {
  const at = (name: string, head: number, t: number, width: number): number[] =>
    Array.from({ length: width }, (_, i) => Number(feeds[name].data[(head * T + t) * width + i]));
  const wide = V + (kind === "normalised" ? 1 : 0);
  const out = new Float64Array(B * H * T * V);
  const state = Float64Array.from(feeds.state.data as Float32Array);
  for (let head = 0; head < B * H; head++) {
    const S = state.subarray(head * K * wide, (head + 1) * K * wide);
    for (let t = 0; t < T; t++) {
      const q = at("q", head, t, K);
      let k = at("k", head, t, K);
      let v = at("v", head, t, V);
      if (kind === "normalised") v.push(1);
      const g = feeds.log && at("log", head, t, gateWidth(kind, { B, H, T, K, V }) as number);
      if (g)
        for (let i = 0; i < K; i++)
          for (let j = 0; j < wide; j++)
            S[i * wide + j] *= Math.exp(kind === "key" ? g[i] : kind === "value" ? g[j] : g[0]);
      if (feeds.beta) {
        const length = Math.hypot(...k);
        k = k.map((x) => x / length);
        const beta = at("beta", head, t, 1)[0];
        v = v.map((x, j) => beta * (x - k.reduce((sum, ki, i) => sum + ki * S[i * wide + j], 0)));
      }
      for (let i = 0; i < K; i++) for (let j = 0; j < wide; j++) S[i * wide + j] += k[i] * v[j];
      const read = Array.from({ length: wide }, (_, j) => q.reduce((sum, qi, i) => sum + qi * S[i * wide + j], 0));
      for (let j = 0; j < V; j++) out[(head * T + t) * V + j] = kind === "normalised" ? read[j] / read[V] : read[j];
    }
  }
  return { out, state };
}

function near(a: ArrayLike<number>, b: ArrayLike<number>, tolerance = 2e-5): void {
  expect(a.length).toBe(b.length);
  let [worst, scale] = [0, 1];
  for (let i = 0; i < a.length; i++) {
    worst = Math.max(worst, Math.abs(a[i] - b[i]));
    scale = Math.max(scale, Math.abs(b[i]));
    if (!Number.isFinite(a[i])) worst = Number.POSITIVE_INFINITY;
  }
  expect(worst / scale).toBeLessThan(tolerance);
}

/** x [B, H, ...] with each head twice. */
function doubled({ data, dims }: Numbers[string]): Numbers[string] {
  const [B, H, ...tail] = dims;
  const size = tail.reduce((a, b) => a * b, 1);
  const twice = Array.from({ length: B * H }, (_, i) => [...data.slice(i * size, (i + 1) * size)]);
  return {
    data: Float32Array.from(
      twice.flatMap((head) => [...head, ...head]),
      Number,
    ),
    dims: [B, 2 * H, ...tail],
  };
}

const SIZES: Sizes = { B: 2, H: 2, T: 23, K: 5, V: 6 };

describe.each(KINDS)("%s", (kind) => {
  const feeds = numbers(kind, SIZES);
  const oracle = plain(kind, SIZES, feeds);

  it.each([1, 7, 23, 64])("by chunks of %i is the recurrence, outputs and last state", async (chunk) => {
    const { out, state } = await evaluate(kind, SIZES, chunk, feeds);
    near(out, oracle.out);
    near(state, oracle.state);
  });

  it("gives query heads of a group the one state that each would have", async () => {
    const { q } = numbers(kind, { ...SIZES, H: 4 });
    const shared = await evaluate(kind, SIZES, 7, { ...feeds, q }, { groups: 2 });
    const each = Object.fromEntries(Object.entries(feeds).map(([name, value]) => [name, doubled(value)]));
    const apart = await evaluate(kind, { ...SIZES, H: 4 }, 7, { ...each, q });
    near(shared.out, apart.out, 1e-6);
    const { data } = doubled({ data: shared.state, dims: [SIZES.B, SIZES.H, shared.state.length / 4] });
    near(data as Float32Array, apart.state, 1e-6);
  });

  it("over a number of rows that is not known is the recurrence", async () => {
    const { out, state } = await evaluate(kind, SIZES, 7, feeds, { T: "T", longest: 40 });
    near(out, oracle.out);
    near(state, oracle.state);
  });

  it("goes on from a state as if it had not been interrupted", async () => {
    const part = (from: number, to: number): Numbers =>
      Object.fromEntries(
        Object.entries(feeds).map(([name, { data, dims }]) => {
          if (name === "state") return [name, { data, dims }];
          const [B, H, T, n] = dims;
          const cut = new Float32Array(B * H * (to - from) * n);
          for (let head = 0; head < B * H; head++)
            cut.set(
              (data as Float32Array).subarray((head * T + from) * n, (head * T + to) * n),
              head * (to - from) * n,
            );
          return [name, { data: cut, dims: [B, H, to - from, n] }];
        }),
      );
    const first = await evaluate(kind, { ...SIZES, T: 10 }, 7, part(0, 10));
    const rest = part(10, 23);
    const second = await evaluate(kind, { ...SIZES, T: 13 }, 7, {
      ...rest,
      state: { ...rest.state, data: first.state },
    });
    near(second.state, oracle.state);
  });

  it("begins anew at another document, in every form", async () => {
    const { B, T } = SIZES;
    const documents = BigInt64Array.from({ length: B * T }, (_, i) => (i % T < 9 ? 0n : i % T < 16 ? 1n : 5n));
    const results = [];
    for (const chunk of [1, 4, 7, 23]) {
      const { inputs, result } = graphOf(kind, SIZES, chunk);
      void result;
      const ids = input("documents", [B, T], "int64");
      const side = kind === "key" || kind === "value" ? kind : "scalar";
      const given: GatedState = {
        q: inputs.q,
        k: kind.endsWith("delta") ? unitLength(inputs.k) : inputs.k,
        v: inputs.v,
        state: inputs.state,
        chunk,
        documents: ids,
        ...(inputs.log && { gate: { log: inputs.log, side } }),
        ...(inputs.beta && { beta: inputs.beta }),
      };
      const { out, state } = kind === "normalised" ? withNormaliser(given) : gatedState(given);
      results.push(
        await run(
          { inputs: { ...inputs, documents: ids }, outputs: { out, state } },
          { ...feeds, documents: { data: documents, dims: [B, T] } },
        ),
      );
    }
    for (const { out, state } of results) {
      near(out, results[0].out);
      near(state, results[0].state);
    }
    // the last text of 7 rows alone, on an empty state, leaves the same state
    const empty = { ...feeds.state, data: new Float32Array(feeds.state.data.length) };
    const alone = plain(kind, { ...SIZES, T: 7 }, { ...lastRows(feeds, 7), state: empty });
    near(results[0].state, alone.state);
  });

  it("has the same gradients in every form", async () => {
    const found = [];
    for (const chunk of [1, 7, 23]) {
      const { inputs, result } = graphOf(kind, SIZES, chunk);
      const loss = result.out.square().mean().add(result.state.square().mean());
      const names = Object.keys(inputs);
      const by = gradients(
        loss,
        names.map((name) => inputs[name]),
      );
      found.push(await run({ inputs, outputs: Object.fromEntries(names.map((name, i) => [name, by[i]])) }, feeds));
    }
    for (const other of found.slice(1))
      for (const [name, values] of Object.entries(other)) near(values, found[0][name], 1e-4);
  });
});

function lastRows(feeds: Numbers, n: number): Numbers {
  return Object.fromEntries(
    Object.entries(feeds).map(([name, { data, dims }]) => {
      if (name === "state") return [name, { data, dims }];
      const [B, H, T, width] = dims;
      const cut = new Float32Array(B * H * n * width);
      for (let head = 0; head < B * H; head++)
        cut.set((data as Float32Array).subarray((head * T + T - n) * width, (head + 1) * T * width), head * n * width);
      return [name, { data: cut, dims: [B, H, n, width] }];
    }),
  );
}

describe("by hand", () => {
  const one: Sizes = { B: 1, H: 1, T: 3, K: 1, V: 1 };
  const column = (...data: number[]) => ({ data: Float32Array.from(data), dims: [1, 1, data.length, 1] });
  const zero = { data: new Float32Array(1), dims: [1, 1, 1, 1] };

  it.each([1, 2, 3])(
    "q = k = v = 1 gives 1, 2, 3, and with a gate of 1/2 1, 1.5, 1.75 (chunks of %i)",
    async (chunk) => {
      const feeds = { q: column(1, 1, 1), k: column(1, 1, 1), v: column(1, 1, 1), state: zero };
      expect(Array.from((await evaluate("linear", one, chunk, feeds)).out)).toEqual([1, 2, 3]);
      const log = column(Math.log(0.5), Math.log(0.5), Math.log(0.5));
      for (const kind of ["scalar", "key", "value"] as const)
        near((await evaluate(kind, one, chunk, { ...feeds, log })).out, [1, 1.5, 1.75], 1e-6);
    },
  );

  it.each([1, 2])(
    "a key written twice reads as its last value, where a sum gives both (chunks of %i)",
    async (chunk) => {
      const sizes: Sizes = { B: 1, H: 1, T: 2, K: 2, V: 1 };
      const keys = { data: Float32Array.of(1, 0, 1, 0), dims: [1, 1, 2, 2] };
      const feeds = { q: keys, k: keys, v: column(2, 5), state: { data: new Float32Array(2), dims: [1, 1, 2, 1] } };
      near((await evaluate("delta", sizes, chunk, { ...feeds, beta: column(1, 1) })).out, [2, 5], 1e-5);
      near((await evaluate("linear", sizes, chunk, feeds)).out, [2, 7], 1e-6);
    },
  );

  it("decays first, then reads, then writes", async () => {
    // S = 4 decays to 2; v = 5 is 3 more than what k reads, half of it is written: 3.5
    const sizes: Sizes = { B: 1, H: 1, T: 1, K: 1, V: 1 };
    const state = { data: Float32Array.of(4), dims: [1, 1, 1, 1] };
    const feeds = { q: column(1), k: column(1), v: column(5), state, beta: column(0.5), log: column(Math.log(0.5)) };
    near((await evaluate("gated delta", sizes, 1, feeds)).out, [3.5], 1e-5);
  });
});

describe("limits", () => {
  it("gates of zero are no gates", async () => {
    for (const kind of ["scalar", "key", "value"] as const) {
      const feeds = numbers(kind, SIZES, 0);
      const { log: _, ...rest } = feeds;
      near((await evaluate(kind, SIZES, 7, feeds)).out, (await evaluate("linear", SIZES, 7, rest)).out, 1e-6);
    }
  });

  it("one rate for all tokens is the mask exp(g (i - j)) of retention", async () => {
    const sizes: Sizes = { B: 1, H: 1, T: 6, K: 3, V: 2 };
    const feeds = numbers("scalar", sizes);
    feeds.log = { data: new Float32Array(6).fill(-0.3), dims: [1, 1, 6, 1] };
    feeds.state = { data: new Float32Array(6), dims: [1, 1, 3, 2] };
    const [q, k, v] = ["q", "k", "v"].map((name) => feeds[name].data as Float32Array);
    const expected = Array.from({ length: 12 }, (_, at) => {
      const [i, d] = [at >> 1, at & 1];
      let sum = 0;
      for (let j = 0; j <= i; j++)
        sum += Math.exp(-0.3 * (i - j)) * [0, 1, 2].reduce((s, c) => s + q[i * 3 + c] * k[j * 3 + c], 0) * v[j * 2 + d];
      return sum;
    });
    near((await evaluate("scalar", sizes, 4, feeds)).out, expected);
  });

  it("a delta write under orthogonal keys is a sum of values times beta", async () => {
    const sizes: Sizes = { B: 1, H: 1, T: 4, K: 4, V: 2 };
    const feeds = numbers("delta", sizes);
    feeds.k = { data: Float32Array.from({ length: 16 }, (_, i) => (i % 5 === 0 ? 1 : 0)), dims: [1, 1, 4, 4] };
    feeds.state = { data: new Float32Array(8), dims: [1, 1, 4, 2] };
    const { beta, ...rest } = feeds;
    const v = { ...feeds.v, data: (feeds.v.data as Float32Array).map((x, i) => x * Number(beta.data[i >> 1])) };
    near((await evaluate("delta", sizes, 3, feeds)).out, (await evaluate("linear", sizes, 3, { ...rest, v })).out);
  });

  it.each(["scalar", "key", "value", "gated delta"] as const)(
    "log-gates of -20 a row over a chunk of 64 stay finite and exact (%s)",
    async (kind) => {
      const sizes: Sizes = { B: 1, H: 1, T: 70, K: 4, V: 4 };
      const feeds = numbers(kind, sizes);
      feeds.log.data.fill(-20 as never);
      near((await evaluate(kind, sizes, 64, feeds)).out, plain(kind, sizes, feeds).out);
    },
  );
});

it("inverts I + L for every size", async () => {
  for (const n of [1, 2, 3, 8, 13, 64]) {
    const next = seededNormals(`inverse ${n}`);
    const data = Float32Array.from({ length: n * n }, (_, i) => (i % n < Math.floor(i / n) ? 0.3 * next() : 0));
    const L = input("L", [n, n]);
    const { product } = await run(
      { inputs: { L }, outputs: { product: unitInverse(L, n).add(L.matmul(unitInverse(L, n))) } },
      { L: { data, dims: [n, n] } },
    );
    near(
      product,
      Array.from({ length: n * n }, (_, i) => (i % n === Math.floor(i / n) ? 1 : 0)),
      1e-3,
    );
  }
});
