import { FoveaError } from "../error.js";
import { compile, gradients, input, type Tensor, tokenLosses } from "../graph/index.js";
import {
  boundMechanism,
  buildModel,
  type Checkpoint,
  type Encoding,
  type ModelConfig,
  modelFeeds,
} from "../models/index.js";

/** How a token's share in an answer is measured. */
export type AttributionMethod = "input" | "attention";

/** Options of `attribute`. */
export interface AttributeOptions {
  /** What the model reads. */
  readonly prompt: string;
  /** What it is to say next, as it stands behind the prompt: usually with a space before it. */
  readonly answer: string;
  /**
   * "attention" (default): gradient times attention weight, summed over all rows and heads that read the token. "input":
   * gradient times input, the sum over a token's embedding of its product with the gradient. Where a norm makes the model
   * blind to an embedding's length, as in most, the sign of the latter means little; its size tells what matters.
   */
  readonly method?: AttributionMethod;
  /**
   * What is attributed: the answer's log-probability (default), whose gradient vanishes where the model is certain, or the
   * sum of its tokens' logits, each less the mean of its row.
   */
  readonly of?: "probability" | "logit";
  /** Most bytes that the run may take. Default 4 GiB. */
  readonly memory?: number;
  readonly threads?: number;
}

/** A token of the prompt and its share in the answer. */
export interface AttributedToken {
  readonly id: number;
  /** Characters of the prompt, [start, end). Tokens that stand for no text have an empty range. */
  readonly start: number;
  readonly end: number;
  /** Positive where the token speaks for the answer. In nats: to first order what is lost without it. */
  readonly score: number;
}

/** Where an answer comes from. */
export interface Attribution {
  readonly method: AttributionMethod;
  readonly prompt: string;
  readonly answer: string;
  /** Natural logarithm of the answer's probability behind the prompt. */
  readonly logprob: number;
  readonly tokens: readonly AttributedToken[];
  /** Scores by head [L, Hq], with method "attention". */
  readonly heads?: { readonly layers: number; readonly heads: number; readonly data: Float32Array };
}

/**
 * Which tokens of a prompt an answer rests on, by one backward pass through the whole model in float32.
 *
 * @throws FoveaError `bad-input` for an empty prompt or answer, or a prompt that grows into the answer's tokens;
 *   `too-large` for a text beyond the model's positions; `out-of-memory` with the figure that the run would need;
 *   `unsupported` for attention weights of a model that has none
 */
export async function attribute(
  checkpoint: Pick<Checkpoint, "config" | "weights" | "tokenizer">,
  options: AttributeOptions,
): Promise<Attribution> {
  const { prompt, answer, method = "attention", of = "probability", memory = 4 * 2 ** 30 } = options;
  const { config, weights, tokenizer } = checkpoint;
  oneOf("method", method, ["input", "attention"]);
  oneOf("of", of, ["probability", "logit"]);
  if (!(memory > 0)) throw new FoveaError("bad-input", `memory is ${memory}; expected a number of bytes`);
  if (answer === "") throw new FoveaError("bad-input", "there is no answer to attribute; expected a text");
  const before = openEnded(tokenizer, prompt);
  if (before.ids.length === 0) throw new FoveaError("bad-input", "the prompt holds no token to attribute to");
  const { ids } = openEnded(tokenizer, prompt + answer);
  if (before.ids.some((id, i) => id !== ids[i]) || ids.length <= before.ids.length)
    throw new FoveaError("bad-input", "the prompt's last token and the answer's first are one token together", {
      hint: "let the space stand before the answer, not behind the prompt",
    });
  check(config, ids.length, method, memory);

  const graph = buildModel(config);
  const targets = input("targets", ["T"], "int64");
  const counts = input("counts", ["T"]);
  const logprob = tokenLosses(graph.logits, targets).mul(counts).sum().neg();
  const aim = of === "probability" ? logprob : logitMargin(graph.logits, targets).mul(counts).sum();
  const shares = method === "input" ? byInput(aim, graph.taps) : byAttention(aim, graph.taps, config);
  const segment = await compile(
    { inputs: { ...graph.inputs, targets, counts }, outputs: { logprob, ...shares } },
    { weights, precision: "float32", threads: options.threads },
  );
  try {
    const P = before.ids.length;
    const next = BigInt64Array.from(ids, (_, t) => BigInt(t + 1 < ids.length ? ids[t + 1] : -1));
    const out = await segment.run({
      ...modelFeeds(config, ids),
      targets: { data: next, dims: [ids.length] },
      // row t predicts token t + 1: the answer's rows begin at the prompt's last token
      counts: { data: Float32Array.from(ids, (_, t) => Number(t >= P - 1 && t + 1 < ids.length)), dims: [ids.length] },
    });
    const scores = out.scores.data as Float32Array;
    const { layers, heads } = config;
    return {
      method,
      prompt,
      answer,
      logprob: (out.logprob.data as Float32Array)[0],
      tokens: before.ids.map((id, i) => {
        const [start, end] = before.offsets[i];
        return { id, start, end, score: scores[i] };
      }),
      ...(out.heads && { heads: { layers, heads, data: out.heads.data as Float32Array } }),
    };
  } finally {
    await segment.release();
  }
}

function oneOf(name: string, given: string, known: readonly string[]): void {
  if (!known.includes(given))
    throw new FoveaError("bad-input", `${name} is ${JSON.stringify(given)}; expected one of ${known.join(", ")}`);
}

/** A text's tokens without the one that would end it: the answer goes on behind the prompt. */
function openEnded(tokenizer: Checkpoint["tokenizer"], text: string): Encoding {
  const { ids, offsets } = tokenizer.encode(text);
  return tokenizer.addsEos ? { ids: ids.slice(0, -1), offsets: offsets.slice(0, -1) } : { ids, offsets };
}

/** Each row's logit of its target, less the row's mean: [T]. Rows without a target are no use. */
function logitMargin(logits: Tensor, targets: Tensor): Tensor {
  const own = targets.less(0).where(targets.mul(0), targets).unsqueeze(-1); // [T, 1]
  return logits.gatherElements(own, -1).squeeze(-1).sub(logits.mean(-1));
}

/** Gradient times input: [T]. */
function byInput(aim: Tensor, taps: ReadonlyMap<string, Tensor>): { scores: Tensor } {
  const embeddings = taps.get("embeddings") as Tensor; // [T, d]
  const [gradient] = gradients(aim, [embeddings]);
  return { scores: gradient.mul(embeddings).sum(-1) };
}

/** Gradient times attention weight: per key [T], and per head [L, Hq]. */
function byAttention(aim: Tensor, taps: ReadonlyMap<string, Tensor>, { layers, heads }: ModelConfig) {
  const patterns = Array.from({ length: layers }, (_, l) => taps.get(`pattern.${l}`) as Tensor); // [Hq, T, T]
  const products = gradients(aim, patterns).map((gradient, l) => gradient.mul(patterns[l]));
  const sum = (parts: readonly Tensor[]): Tensor => parts.reduce((a, b) => a.add(b));
  const rows = products.map((p) => p.sum([1, 2]).reshape([1, heads]));
  const table = rows.map((row, l) => row.pad({ axis: 0, before: l, after: layers - 1 - l }));
  return { scores: sum(products.map((p) => p.sum([0, 1]))), heads: sum(table) };
}

/** Bytes of activations that a backward pass keeps at once, generously. */
export function attributionBytes(config: ModelConfig, tokens: number): number {
  const { layers, width, heads, kvHeads, headDim, mlpWidth, vocab } = config;
  const perToken = 12 * width + 8 * (heads + kvHeads) * headDim + 6 * mlpWidth;
  // a soft-cap keeps the maps before and behind its tanh
  const maps = config.attention.softcap === undefined ? 6 : 8;
  return 4 * (layers * (tokens * perToken + maps * heads * tokens * tokens) + 4 * tokens * vocab);
}

function check(config: ModelConfig, tokens: number, method: AttributionMethod, memory: number): void {
  if (boundMechanism(config)?.memory !== undefined)
    throw new FoveaError("unsupported", `${config.mechanism?.name} reads a memory, which attribution does not take`);
  if (method === "attention" && config.mechanism)
    throw new FoveaError("unsupported", `${config.mechanism.name} has no attention weights`, {
      hint: 'use method "input"',
    });
  if (tokens > config.maxPositions)
    throw new FoveaError("too-large", `${tokens} tokens are more than the model's ${config.maxPositions} positions`);
  const bytes = attributionBytes(config, tokens);
  if (bytes > memory)
    throw new FoveaError(
      "out-of-memory",
      `a backward pass over ${tokens} tokens needs some ${(bytes / 2 ** 30).toFixed(1)} GiB; ${(memory / 2 ** 30).toFixed(1)} GiB are allowed`,
      { hint: "shorten the prompt to the part in question, or allow more memory" },
    );
}

/** A piece of the prompt and its share in the answer. */
export interface AttributedPiece {
  readonly text: string;
  readonly start: number;
  readonly end: number;
  /** Sum over the tokens that begin in it. */
  readonly score: number;
}

/**
 * Scores of tokens, words (with the space before them) or lines of the prompt. Pieces cover all of the prompt in order;
 * a token that ends in another piece than it begins in counts for the first. Tokens without text (BOS) are left out.
 */
export function attributedPieces({ prompt, tokens }: Attribution, by: "token" | "word" | "line"): AttributedPiece[] {
  const ends: number[] = [];
  if (by === "token") for (const { start, end } of tokens) if (end > start) ends.push(end);
  const pattern = by === "word" ? /\s*\S+/gu : by === "line" ? /[^\n]*\n|[^\n]+$/gu : undefined;
  if (pattern) for (const match of prompt.matchAll(pattern)) ends.push(match.index + match[0].length);
  const cuts = [...new Set(ends)].sort((a, b) => a - b);
  if (prompt.length > 0 && cuts.at(-1) !== prompt.length) cuts.push(prompt.length);
  let from = 0;
  const pieces = cuts.map((end) => {
    const start = from;
    from = end;
    return { text: prompt.slice(start, end), start, end, score: 0 };
  });
  let at = 0;
  for (const { start, end, score } of tokens) {
    if (end <= start) continue;
    while (at + 1 < pieces.length && start >= pieces[at].end) at++;
    pieces[at].score += score;
  }
  return pieces;
}
