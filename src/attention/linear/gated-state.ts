import { FoveaError } from "../../error.js";
import { concat, constant, type Dim, type Tensor } from "../../graph/index.js";

/**
 * The base of linear-recurrence attention: one state S [K, V] per head instead of a growing cache.
 *
 *     S = decay(S);  with a delta write: v = beta (v - k S);  S += k v^T;  out = q S
 *
 * where the decay is none, one number per head, one per key channel or one per value channel, given as logarithms. One
 * formula serves three evaluations: chunks of C rows, with C = 1 the recurrence and C = T the quadratic form.
 * (Linear attention arXiv:2006.16236, RetNet arXiv:2307.08621, GLA arXiv:2312.06635, delta rule arXiv:2406.06484, gated
 * delta arXiv:2412.06464.)
 */
export interface GatedState {
  /** [B, H, T, K], scaled. Or G heads for each of k's H: those of a group read one state, [B, H * G, T, K]. */
  readonly q: Tensor;
  /** [B, H, T, K] */
  readonly k: Tensor;
  /** [B, H, T, V] */
  readonly v: Tensor;
  /** Log of the decay, at most 0: [B, H, T, 1] (or [1, H, 1, 1] expanded to it), [B, H, T, K] or [B, H, T, V]. */
  readonly gate?: { readonly log: Tensor; readonly side: "scalar" | "key" | "value" };
  /** Strength of a delta write [B, H, T, 1]. Not together with gates of key or value channels. */
  readonly beta?: Tensor;
  /** State at entry [B, H, K, V]. */
  readonly state: Tensor;
  /** int64 [B, T]: rows of another document than the row before begin with an empty state. */
  readonly documents?: Tensor;
  /** Rows of a chunk (C); the last one is shorter where T is no multiple. */
  readonly chunk: number;
  /** Where T is no number: how many rows it stands for at most. They are one chunk. Default `chunk`. */
  readonly longest?: number;
}

/** Outputs of q's heads [B, H, T, V] and the state after the last row [B, H, K, V]. */
export interface GatedResult {
  readonly out: Tensor;
  readonly state: Tensor;
}

/** Chunk by chunk; a T without a number is one chunk. Throws ShapeError. */
export function gatedState(inputs: GatedState): GatedResult {
  const { q, k, v, gate, beta, documents, chunk, longest = chunk } = inputs;
  if (beta && gate && gate.side !== "scalar")
    throw new FoveaError("bad-input", "a delta write goes with one decay per head, not with one per channel");
  if (q.shape[1] !== k.shape[1]) return sharedState(inputs);
  const T = q.shape[2];
  if (typeof T !== "number" || T <= chunk) return oneChunk({ ...inputs, chunk: typeof T === "number" ? T : longest });
  let { state } = inputs;
  let last: Tensor | undefined;
  const outs: Tensor[] = [];
  for (let start = 0; start < T; start += chunk) {
    const end = Math.min(T, start + chunk);
    const rows = (x: Tensor, axis = 2): Tensor => x.slice({ axis, start, end });
    const here = documents && rows(documents, 1);
    const result = oneChunk(
      {
        q: rows(q),
        k: rows(k),
        v: rows(v),
        ...(gate && { gate: { log: rows(gate.log), side: gate.side } }),
        ...(beta && { beta: rows(beta) }),
        state,
        ...(here && { documents: here }),
        chunk: end - start,
      },
      last,
    );
    outs.push(result.out);
    state = result.state;
    last = here?.slice({ axis: 1, start: -1 });
  }
  return { out: concat(outs, 2), state };
}

/**
 * Query heads of a group read one state: what is theirs in common is repeated for each, and of the states that come out,
 * which are the same within a group, one is kept.
 */
function sharedState({ q, k, v, gate, beta, state, ...rest }: GatedState): GatedResult {
  const [heads, groups] = [q.shape[1] as number, k.shape[1] as number];
  const each = (x: Tensor): Tensor => perQueryHead(x, heads);
  const result = gatedState({
    ...{ q, k: each(k), v: each(v), state: each(state), ...rest },
    ...(gate && { gate: { log: each(gate.log), side: gate.side } }),
    ...(beta && { beta: each(beta) }),
  });
  return { out: result.out, state: oncePerGroup(result.state, groups) };
}

/** x [B, Hkv, ...] with each head repeated for the query heads of its group: [B, H, ...]. */
export function perQueryHead(x: Tensor, heads: number): Tensor {
  const [B, groups, ...tail] = x.shape;
  if (groups === heads) return x;
  return x
    .unsqueeze(2)
    .expand([B, groups, heads / (groups as number), ...tail])
    .reshape([B, heads, ...tail]);
}

/** x [B, H, ...] with the first head of each group: [B, Hkv, ...]. */
export function oncePerGroup(x: Tensor, groups: number): Tensor {
  const [B, heads, ...tail] = x.shape;
  if (groups === heads) return x;
  return x
    .reshape([B, groups, (heads as number) / groups, ...tail])
    .slice({ axis: 2, start: 0, end: 1 })
    .squeeze(2);
}

/** One chunk. `before`: the document that the state belongs to [B, 1]; without it that of the first row. */
function oneChunk({ q, k, v, gate, beta, state, documents, chunk }: GatedState, before?: Tensor): GatedResult {
  const lower = triangle(q); // [n, n] 1 where j <= i
  const same = documents && sameDocument(documents); // [B, 1, n, n]
  const seen = same ? lower.mul(same) : lower;
  // what a row sees of the state at entry, and what of the rows the state at the end holds
  const first = documents && (before ?? documents.slice({ axis: 1, start: 0, end: 1 }));
  const carried = documents && first && equalTo(documents, first); // [B, 1, n, 1]
  const kept = documents && equalTo(documents, documents.slice({ axis: 1, start: -1 })); // [B, 1, n, 1]
  const ends = carried?.slice({ axis: 2, start: -1 }); // [B, 1, 1, 1]
  const masked = (x: Tensor, mask: Tensor | undefined): Tensor => (mask ? x.mul(mask) : x);

  if (gate && gate.side !== "scalar") return channelChunk({ q, k, v, gate, state, seen, carried, kept, ends });

  const sums = gate?.log.cumsum(2); // c [B, H, n, 1]
  const total = sums?.slice({ axis: 2, start: -1 }); // c_n
  const since = sums?.exp(); // decay from entry to each row
  const until = sums && total?.sub(sums).exp(); // from each row to the end
  // masked before the exponential, whose upper triangle would overflow
  const decay = sums ? sums.sub(sums.transpose()).minimum(0).exp().mul(seen) : seen;
  const entry = (x: Tensor): Tensor => masked(since ? x.mul(since) : x, carried);

  let written = v;
  if (beta) {
    const strict = k.mul(beta).matmul(k.transpose()).mul(decay).mul(triangle(q, -1)); // L
    const inverse = unitInverse(strict, chunk);
    const values = v.mul(beta).sub(entry(k.mul(beta)).matmul(state)); // B V - B diag(exp c) K S
    written = inverse.matmul(values);
  }
  const out = entry(q).matmul(state).add(q.matmul(k.transpose()).mul(decay).matmul(written));
  const old = masked(total ? state.mul(total.exp()) : state, ends);
  const keys = masked(until ? k.mul(until) : k, kept);
  return { out, state: old.add(keys.transpose().matmul(written)) };
}

interface ChannelChunk extends Pick<GatedState, "q" | "k" | "v" | "state"> {
  readonly gate: NonNullable<GatedState["gate"]>;
  readonly seen: Tensor;
  readonly carried: Tensor | undefined;
  readonly kept: Tensor | undefined;
  readonly ends: Tensor | undefined;
}

/** Rows that are compared channel by channel (BC): the blocks of a chunk with decay per channel. */
const BLOCK = 16;

/**
 * Decay per channel. K exp(-c) would overflow, so a chunk goes in blocks of rows. A block's rows and the keys before it
 * are both taken relative to its first row r, exp(c_i - c_r) and exp(c_r - c_j), neither above 1, and meet in a product
 * of matrices; rows and keys of one block are compared channel by channel, exp(c_i - c_j).
 */
function channelChunk({ q, k, v, gate, state, seen, carried, kept, ends }: ChannelChunk): GatedResult {
  const sums = gate.log.cumsum(2); // c [B, H, n, K or V]
  const total = sums.slice({ axis: 2, start: -1 }); // [B, H, 1, K or V]
  const masked = (x: Tensor, mask: Tensor | undefined): Tensor => (mask ? x.mul(mask) : x);
  const until = total.sub(sums).exp();
  const read = gate.side === "key" ? readByKey : readByValue;
  const inner = blocks(q.shape[2]).map(([start, end]) => {
    const rows = (x: Tensor): Tensor => x.slice({ axis: 2, start, end });
    const mask = seen.slice({ axis: seen.rank - 2, start, end });
    const keys = (from: number, to: number | undefined) => (x: Tensor) => x.slice({ axis: 2, start: from, end: to });
    const part = (from: number, to: number | undefined, apart: Apart): Tensor => {
      const of = keys(from, to);
      const visible = mask.slice({ axis: mask.rank - 1, start: from, end: to });
      return read({ q: rows(q), k: of(k), v: of(v), c: rows(sums), ck: of(sums), seen: visible }, apart);
    };
    const own = part(start, end, "close");
    return start === 0 ? own : own.add(part(0, start, "far"));
  });
  const out = inner.length === 1 ? inner[0] : concat(inner, 2); // [B, H, n, V]
  if (gate.side === "key") {
    const old = masked(state.mul(total.exp().transpose()), ends);
    return {
      out: out.add(masked(q.mul(sums.exp()), carried).matmul(state)),
      state: old.add(masked(k.mul(until), kept).transpose().matmul(v)),
    };
  }
  const old = masked(state.mul(total.exp()), ends);
  return {
    out: out.add(masked(q.matmul(state).mul(sums.exp()), carried)),
    state: old.add(masked(k, kept).transpose().matmul(v.mul(until))),
  };
}

/** Rows [start, end) of the blocks of a chunk; one block where their number is not known. */
function blocks(n: Dim): [number, number | undefined][] {
  if (typeof n !== "number") return [[0, undefined]];
  return Array.from({ length: Math.ceil(n / BLOCK) }, (_, i) => [i * BLOCK, Math.min(n, (i + 1) * BLOCK)]);
}

/** Whether keys stand in the rows' own block, or all before it. */
type Apart = "close" | "far";

/** Rows of a block and some keys, with the sums of log-gates at both and who sees whom. */
interface BlockRead {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly c: Tensor;
  readonly ck: Tensor;
  readonly seen: Tensor;
}

function readByKey({ q, k, v, c, ck, seen }: BlockRead, apart: Apart): Tensor {
  if (apart === "close") {
    const decay = c.unsqueeze(3).sub(ck.unsqueeze(2)).minimum(0).exp(); // [B, H, rows, keys, K]
    const scores = q.unsqueeze(3).mul(k.unsqueeze(2)).mul(decay).sum(-1);
    return scores.mul(seen).matmul(v);
  }
  const at = c.slice({ axis: 2, start: 0, end: 1 });
  const scores = q.mul(c.sub(at).exp()).matmul(k.mul(at.sub(ck).exp()).transpose());
  return scores.mul(seen).matmul(v);
}

function readByValue({ q, k, v, c, ck, seen }: BlockRead, apart: Apart): Tensor {
  const scores = q.matmul(k.transpose()).mul(seen); // [B, H, rows, keys]
  if (apart === "close") {
    const decay = c.unsqueeze(3).sub(ck.unsqueeze(2)).minimum(0).exp(); // [B, H, rows, keys, V]
    return scores.unsqueeze(-1).mul(decay).mul(v.unsqueeze(2)).sum(3);
  }
  const at = c.slice({ axis: 2, start: 0, end: 1 });
  return scores.matmul(v.mul(at.sub(ck).exp())).mul(c.sub(at).exp());
}

/** (I + L)^-1 of a strictly lower L [..., n, n], n at most `size`: L^n = 0, so it is the product of I + (-L)^(2^i). */
export function unitInverse(strict: Tensor, size: number): Tensor {
  const rank = strict.rank;
  const row = strict.range(rank - 1);
  const identity = row.unsqueeze(1).equal(row.unsqueeze(0)).cast("float32"); // [n, n]
  let power = strict.neg();
  let inverse = identity.add(power);
  for (let reach = 2; reach < size; reach *= 2) {
    power = power.matmul(power);
    inverse = inverse.matmul(identity.add(power));
  }
  return inverse;
}

/** [n, n] over the rows of x [B, H, n, K]: 1 on and below diagonal k, 0 above. */
function triangle(x: Tensor, k = 0): Tensor {
  const row = x.range(2);
  return row.unsqueeze(0).lessEqual(row.add(k).unsqueeze(1)).cast("float32");
}

/** Which rows are of one document: [B, 1, n, n]. */
function sameDocument(documents: Tensor): Tensor {
  return documents.unsqueeze(2).equal(documents.unsqueeze(1)).cast("float32").unsqueeze(1);
}

/** Rows of a document [B, 1]: [B, 1, n, 1]. */
function equalTo(documents: Tensor, one: Tensor): Tensor {
  return documents.equal(one).cast("float32").unsqueeze(1).unsqueeze(3);
}

/**
 * With a normaliser the outputs are divided by what the same recurrence gives for values of 1: one value channel more.
 * Wants q and k that are not negative.
 */
export function withNormaliser(inputs: GatedState, eps = 1e-6): GatedResult {
  const ones = inputs.v.slice({ axis: 3, start: 0, end: 1 }).mul(0).add(1); // [B, H, T, 1]
  const { out, state } = gatedState({ ...inputs, v: concat([inputs.v, ones], 3) });
  const width = inputs.v.shape[3] as number;
  const values = out.slice({ axis: 3, start: 0, end: width });
  return { out: values.div(out.slice({ axis: 3, start: width }).add(eps)), state };
}

/** x / |x| over the last axis. */
export function unitLength(x: Tensor): Tensor {
  return x.div(x.square().sum(-1, { keep: true }).add(1e-6).sqrt());
}

/** A constant per head [1, H, 1, 1]. */
export function perHead(values: readonly number[]): Tensor {
  return constant(Float32Array.from(values), [1, values.length, 1, 1]);
}

/** x [B, T, d] W^T [H * n, d] as heads [B, H, T, n]. */
export function projectHeads(x: Tensor, weight: Tensor, heads: number, bias?: Tensor): Tensor {
  const [B, T]: readonly Dim[] = x.shape;
  return x.linear(weight, bias).reshape([B, T, heads, -1]).transpose(0, 2, 1, 3);
}
