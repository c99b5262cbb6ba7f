import { type CompileOptions, type GraphCut, input, type Segment, type Tensor } from "../graph/index.js";
import { GatheredAttention } from "./gathered-attention.js";
import { SegmentCache } from "./segment-cache.js";

/** Shape of one layer's attention. */
export interface AttentionShape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly keyDim: number;
  readonly valueDim: number;
  /** Factor on the dot products. */
  readonly scale: number;
  /** cap * tanh(logit / cap), before masks and biases. */
  readonly softcap?: number;
  /** Keys at a distance of `window` or more are not read (the row itself is at distance 0). */
  readonly window?: number;
}

/** Keys or values as [S, Hkv, D] (tokens first, as projected) or [Hkv, S, D] (heads first, as read from pages). */
export interface KeyBlock {
  readonly data: Float32Array;
  readonly keys: number;
  readonly layout: "tokens" | "heads";
}

/** Positions that no query sees: padding and entries that a selection leaves out. */
export const UNSEEN = 2 ** 30;
/** Logits of masked keys inside graphs; below `MASKED_BELOW` a logit counts as masked. */
const MASKED = -1e30;
const MASKED_BELOW = -1e29;

/** What a block of rows attends with. Positions decide visibility: key <= row and row - key < window. */
export interface BlockQuery {
  readonly q: Float32Array; // [T, Hq, D], rotated
  readonly rows: number;
  readonly rowPositions: Float32Array; // [T]
  readonly keyPositions: Float32Array; // [kvHeads or 1, S]
  readonly window?: number;
  /** Every row sees every key: nothing is masked, whatever the positions. */
  readonly every?: boolean;
  /** Log-bias [B0 * B1, B2, S]: heads (1, Hkv or Hq) and rows (1 or T). */
  readonly bias?: { readonly data: Float32Array; readonly heads: number; readonly rows: number };
}

/**
 * Attention of a block of rows over float32 keys and values, as compiled graphs: the graph path. It serves prompts with
 * hooks, long extensions, and the row path's first and last step where keys are not in pages.
 */
export class BlockAttention {
  /** Attention over keys that are listed by blocks of rows. */
  readonly gathered: GatheredAttention;
  readonly #segments: SegmentCache;
  /** For many runs of few logits, whose memory is kept from one to the next. */
  readonly #small: SegmentCache;

  constructor(options: CompileOptions) {
    this.#segments = new SegmentCache(options);
    this.#small = new SegmentCache({ ...options, arena: true });
    this.gathered = new GatheredAttention(options, (...request) => this.#attend(this.#small, ...request));
  }

  /** (output [T, Hq, Dv], lse [T, Hq]); a row that sees nothing gives 0 and -Infinity. */
  attend(shape: AttentionShape, query: BlockQuery, k: KeyBlock, v: KeyBlock) {
    return this.#attend(this.#segments, shape, query, k, v);
  }

  async #attend(segments: SegmentCache, shape: AttentionShape, query: BlockQuery, k: KeyBlock, v: KeyBlock) {
    const segment = await this.#get("attend", shape, variant(shape, query, k), segments);
    const { out, lse } = await segment.run({
      ...this.#feeds(shape, query, k),
      v: block(v, shape.kvHeads, shape.valueDim),
    });
    const output = out.data as Float32Array;
    const sums = lse.data as Float32Array;
    for (let i = 0; i < sums.length; i++)
      if (sums[i] < MASKED_BELOW) {
        sums[i] = Number.NEGATIVE_INFINITY;
        output.fill(0, i * shape.valueDim, (i + 1) * shape.valueDim);
      }
    return { output, lse: sums };
  }

  /** Logits [Hq, T, S], masked keys -Infinity. */
  async logits(shape: AttentionShape, query: BlockQuery, k: KeyBlock): Promise<Float32Array> {
    const segment = await this.#get("logits", shape, variant(shape, query, k));
    const { logits } = await segment.run(this.#feeds(shape, query, k));
    const data = logits.data as Float32Array;
    for (let i = 0; i < data.length; i++) if (data[i] < MASKED_BELOW) data[i] = Number.NEGATIVE_INFINITY;
    return data;
  }

  /** Sums of values under given weights [Hq, T, S]: [T, Hq, Dv]. */
  async sum(shape: AttentionShape, weights: Float32Array, rows: number, v: KeyBlock): Promise<Float32Array> {
    const segment = await this.#get("sum", shape, { layout: v.layout, positions: 1 });
    const { out } = await segment.run({
      weights: { data: weights, dims: [shape.heads, rows, v.keys] },
      v: block(v, shape.kvHeads, shape.valueDim),
    });
    return out.data as Float32Array;
  }

  async release(): Promise<void> {
    await this.gathered.release();
    await this.#small.release();
    await this.#segments.release();
  }

  #feeds(shape: AttentionShape, query: BlockQuery, k: KeyBlock) {
    const { heads, kvHeads, keyDim } = shape;
    const { positions, bias } = variant(shape, query, k);
    return {
      q: { data: query.q, dims: [query.rows, heads, keyDim] },
      k: block(k, kvHeads, keyDim),
      ...(!query.every && {
        rows: { data: query.rowPositions, dims: [query.rows] },
        keys: { data: query.keyPositions, dims: [positions, k.keys] },
        window: { data: Float32Array.of(Math.min(query.window ?? UNSEEN, shape.window ?? UNSEEN)), dims: [1] },
      }),
      ...(bias && query.bias && { bias: { data: query.bias.data, dims: [bias[0], bias[1], query.bias.rows, k.keys] } }),
    };
  }

  #get(kind: Kind, shape: AttentionShape, form: Variant, segments = this.#segments): Promise<Segment> {
    const { heads, kvHeads, keyDim, valueDim, scale, softcap } = shape;
    const key = [
      kind,
      heads,
      kvHeads,
      keyDim,
      valueDim,
      scale,
      softcap,
      form.layout,
      form.positions,
      form.every,
      form.bias,
    ].join("|");
    return segments.get(key, () => blockGraph(kind, shape, form));
  }
}

type Kind = "attend" | "logits" | "sum";

/** What decides a graph's shape beside the layer's: where heads differ. */
interface Variant {
  readonly layout: KeyBlock["layout"];
  /** 1: all heads' keys stand at the same positions; Hkv: each head's at its own. */
  readonly positions: number;
  readonly every?: boolean;
  /** Sizes of the bias: KV heads (1 or Hkv), query heads of a group (1 or G), rows (1 or "T"). */
  readonly bias?: readonly [number, number, 1 | "T"];
}

function variant(
  { heads, kvHeads }: AttentionShape,
  { bias, rows, keyPositions, every }: BlockQuery,
  k: KeyBlock,
): Variant {
  return {
    layout: k.layout,
    positions: keyPositions.length / k.keys,
    every: every ?? false,
    bias: bias && [
      bias.heads > 1 ? kvHeads : 1,
      bias.heads === heads && heads !== kvHeads ? heads / kvHeads : 1,
      bias.rows > 1 || rows === 1 ? "T" : 1,
    ],
  };
}

function block(b: KeyBlock, kvHeads: number, dim: number) {
  return { data: b.data, dims: b.layout === "tokens" ? [b.keys, kvHeads, dim] : [kvHeads, b.keys, dim] };
}

/** The graphs: attention by its definition, grouped heads by broadcasting. T rows, S keys. */
function blockGraph(kind: Kind, shape: AttentionShape, { layout, positions, every, bias }: Variant): GraphCut {
  const { heads, kvHeads, keyDim, valueDim, scale, softcap } = shape;
  const groups = heads / kvHeads;
  const headMajor = (name: string, dim: number): { node: Tensor; perHead: Tensor } => {
    const node = input(name, layout === "tokens" ? ["S", kvHeads, dim] : [kvHeads, "S", dim]);
    return { node, perHead: layout === "tokens" ? node.transpose(1, 0, 2) : node }; // [Hkv, S, D]
  };
  const inputs: Record<string, Tensor> = {};
  const weighted = (weights: Tensor, v: Tensor) =>
    weights
      .reshape([kvHeads, -1, "S"])
      .matmul(v) // [Hkv, G*T, Dv]
      .reshape([heads, "T", valueDim])
      .transpose(1, 0, 2); // [T, Hq, Dv]
  if (kind === "sum") {
    inputs.weights = input("weights", [heads, "T", "S"]);
    const v = headMajor("v", valueDim);
    inputs.v = v.node;
    return { inputs, outputs: { out: weighted(inputs.weights, v.perHead) } };
  }
  inputs.q = input("q", ["T", heads, keyDim]);
  const k = headMajor("k", keyDim);
  inputs.k = k.node;
  const q = inputs.q.mul(scale).transpose(1, 0, 2).reshape([kvHeads, -1, keyDim]); // [Hkv, G*T, D]
  let logits = q.matmul(k.perHead.transpose(0, 2, 1)).reshape([kvHeads, groups, "T", "S"]);
  if (softcap) logits = logits.div(softcap).tanh().mul(softcap);
  if (bias) {
    inputs.bias = input("bias", [...bias, "S"]);
    logits = logits.add(inputs.bias);
  }
  if (!every) {
    inputs.rows = input("rows", ["T"]);
    inputs.keys = input("keys", [positions, "S"]);
    inputs.window = input("window", [1]);
    const distance = inputs.rows.reshape([1, 1, "T", 1]).sub(inputs.keys.reshape([positions, 1, 1, "S"])); // [1 or Hkv, 1, T, S]
    const visible = distance.greaterEqual(0).and(distance.less(inputs.window));
    logits = visible.where(logits, MASKED);
  }
  if (kind === "logits") return { inputs, outputs: { logits: logits.reshape([heads, "T", "S"]) } };
  const v = headMajor("v", valueDim);
  inputs.v = v.node;
  const pattern = logits.softmax(-1);
  // the largest weight is exp(largest logit - lse): no pass over the logits for the sum alone
  const lse = logits.max(-1).sub(pattern.max(-1).log()); // [Hkv, G, T]
  return {
    inputs,
    outputs: { out: weighted(pattern, v.perHead), lse: lse.reshape([heads, "T"]).transpose(1, 0) },
  };
}
