/**
 * Writes models/tiny: a Llama whose weights are not trained but written down, so that it does one thing and it is known
 * why. It continues a text by finding where its last four tokens stood before and copying what came next (an induction
 * circuit: Olsson et al., In-context Learning and Induction Heads, 2022). It knows nothing but what the text says.
 *
 *   node scripts/run.mjs scripts/make-tiny.ts [models/tiny]
 *
 * Layer 0, head k reads the token k + 1 places back and writes its code beside the token's own. Layer 1, head n looks
 * for a place whose n + 1 tokens before it are the last n + 1 tokens here and copies the code of the token at that
 * place; it reads the text's first token (a sink without content) when there is none. The head of the vocabulary knows
 * each token by its code, and says "end" when nothing was found. The MLPs are zero.
 */
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { writeSafetensors } from "../src/models/safetensors.js";
import { trainTokenizerFiles } from "../src/train/bpe.js";

const VOCAB = 768;
const WIDTH = 160;
const HEADS = 4;
const HEAD_DIM = 128;
const MLP = 32;
const POSITIONS = 4096;
/** So large a base leaves most of a head's dimensions all but unrotated: they compare contents, not positions. */
const ROTARY_BASE = 1e15;
const END = "<|end|>";

/** Where things stand in the residual: the codes of the token and of the four before it, two marks, the answer. */
const CODE = 24;
const AT = { own: 0, before: (k: number) => CODE * (k + 1), constant: 120, end: 121, answer: 122 };
/** Value of the constant in every embedding. */
const CONSTANT = 4;

/** Pairs of a head's dimensions: 0 to 14 turn fast enough to tell positions apart, the others carry contents. */
const PAIRS = HEAD_DIM / 2;
const POSITION_PAIRS = 15;
const SINK_PAIR = PAIRS - 1;
const theta = (pair: number): number => ROTARY_BASE ** (-pair / PAIRS);

/** Attention logits: of the right position over the next best, and of one matching token. */
const POSITION_LOGIT = 22;
const MATCH_LOGIT = 38;
/** The sink wins unless all tokens match: other tokens' codes agree by at most a third. */
const SINK_MARGIN = 0.45;
/** Longer matches say more. */
const VOTES = [1, 2, 4, 8];
/** Sharpness of the output, and how much the end is favoured where nothing matches. */
const GAIN = 0.5;
const END_LOGIT = 10;

/** Codewords of the extended Golay code as signs: any two of 4096 agree or differ in at least 8 of 24 places. */
function codeword(message: number): number[] {
  let remainder = message << 11;
  for (let bit = 22; bit >= 11; bit--) if (remainder & (1 << bit)) remainder ^= 0xc75 << (bit - 11);
  const word = (message << 11) | remainder;
  const bits = Array.from({ length: 23 }, (_, i) => (word >> i) & 1);
  return [...bits, bits.reduce((sum, bit) => sum ^ bit, 0)].map((bit) => (bit ? -1 : 1));
}

/** A weight matrix [rows, columns] of zeros with some entries set. */
class Matrix {
  readonly rows: number;
  readonly columns: number;
  readonly data: Float32Array;

  constructor(rows: number, columns: number) {
    this.rows = rows;
    this.columns = columns;
    this.data = new Float32Array(rows * columns);
  }

  set(row: number, column: number, value: number): void {
    this.data[row * this.columns + column] = value;
  }
}

/** Root mean square of a row with this sum of squares: what the norm divides by. */
const rms = (squares: number): number => Math.sqrt(squares / WIDTH);
const RMS_0 = rms(CODE + CONSTANT ** 2);
const RMS_1 = rms(5 * CODE + CONSTANT ** 2);

function embeddings(): Matrix {
  const table = new Matrix(VOCAB, WIDTH);
  for (let token = 0; token < VOCAB; token++) {
    table.set(token, AT.constant, CONSTANT);
    if (token === 0) table.set(token, AT.end, Math.sqrt(CODE));
    else for (const [i, sign] of codeword(token).entries()) table.set(token, AT.own + i, sign);
  }
  return table;
}

function vocabularyHead(): Matrix {
  const head = new Matrix(VOCAB, WIDTH);
  head.set(0, AT.constant, GAIN * END_LOGIT);
  for (let token = 1; token < VOCAB; token++) {
    for (const [i, sign] of codeword(token).entries()) head.set(token, AT.answer + i, GAIN * sign);
  }
  return head;
}

interface Attention {
  readonly q: Matrix;
  readonly k: Matrix;
  readonly v: Matrix;
  readonly o: Matrix;
}

function emptyAttention(): Attention {
  return {
    q: new Matrix(HEADS * HEAD_DIM, WIDTH),
    k: new Matrix(HEAD_DIM, WIDTH),
    v: new Matrix(HEAD_DIM, WIDTH),
    o: new Matrix(WIDTH, HEADS * HEAD_DIM),
  };
}

/** Head k reads the token k + 1 back: a query turned back by k + 1 positions meets its key there. */
function previousTokens(): Attention {
  const layer = emptyAttention();
  const size = Math.sqrt(POSITION_LOGIT * Math.sqrt(HEAD_DIM)) / (CONSTANT / RMS_0);
  for (let pair = 0; pair < POSITION_PAIRS; pair++) {
    layer.k.set(pair, AT.constant, size);
    for (let head = 0; head < HEADS; head++) {
      const angle = -(head + 1) * theta(pair);
      layer.q.set(head * HEAD_DIM + pair, AT.constant, size * Math.cos(angle));
      layer.q.set(head * HEAD_DIM + PAIRS + pair, AT.constant, size * Math.sin(angle));
    }
  }
  for (let i = 0; i < CODE; i++) {
    layer.v.set(i, AT.own + i, RMS_0);
    for (let head = 0; head < HEADS; head++) layer.o.set(AT.before(head) + i, head * HEAD_DIM + i, 1);
  }
  return layer;
}

/** Dimension of a head that holds place `i` of the code in slot s; the last tokens have the slowest pairs. */
function slot(s: number, i: number): number {
  const half = CODE / 2;
  const pair = SINK_PAIR - half * (s + 1) + (i % half);
  return i < half ? pair : PAIRS + pair;
}

/** Head n reads places whose n + 1 tokens before are the last n + 1 here, and copies the token found. */
function induction(): Attention {
  const layer = emptyAttention();
  const size = Math.sqrt((MATCH_LOGIT * Math.sqrt(HEAD_DIM)) / CODE) * RMS_1;
  const sinkKey = 10;
  layer.k.set(SINK_PAIR, AT.end, sinkKey / (Math.sqrt(CODE) / RMS_0));
  for (let i = 0; i < CODE; i++) {
    layer.v.set(i, AT.own + i, RMS_1);
    for (let s = 0; s < HEADS; s++) layer.k.set(slot(s, i), AT.before(s) + i, size);
  }
  for (let head = 0; head < HEADS; head++) {
    const sink = (MATCH_LOGIT * (head + 1 - SINK_MARGIN) * Math.sqrt(HEAD_DIM)) / sinkKey;
    layer.q.set(head * HEAD_DIM + SINK_PAIR, AT.constant, sink / (CONSTANT / RMS_1));
    for (let i = 0; i < CODE; i++) {
      layer.o.set(AT.answer + i, head * HEAD_DIM + i, VOTES[head]);
      for (let s = 0; s <= head; s++) {
        layer.q.set(head * HEAD_DIM + slot(s, i), (s === 0 ? AT.own : AT.before(s - 1)) + i, size);
      }
    }
  }
  return layer;
}

/** The previous-token heads are sharp: the next best position is this many logits behind, at any distance. */
function positionGap(): number {
  let gap = Number.POSITIVE_INFINITY;
  for (let distance = 1; distance < POSITIONS; distance++) {
    let lost = 0;
    for (let pair = 0; pair < POSITION_PAIRS; pair++) lost += 1 - Math.cos(theta(pair) * distance);
    gap = Math.min(gap, lost * POSITION_LOGIT);
  }
  return gap;
}

const folder = process.argv[2] ?? fileURLToPath(new URL("../models/tiny", import.meta.url));
await mkdir(folder, { recursive: true });

const gap = positionGap();
if (gap < Math.log(POSITIONS) + 5) throw new Error(`positions are not told apart: ${gap.toFixed(1)} logits`);

const [harbour, licence] = await Promise.all(
  ["../examples/harbour.txt", "../LICENSE"].map((file) => readFile(new URL(file, import.meta.url), "utf8")),
);
// The words of the example count most: four tokens are the more context, the fewer pieces a word has.
const { tokenizer } = trainTokenizerFiles([harbour.repeat(16) + licence], {
  vocabulary: VOCAB,
  special: [END],
  digits: "together",
});

const weights = new Map<string, Matrix>([
  ["model.embed_tokens.weight", embeddings()],
  ["lm_head.weight", vocabularyHead()],
]);
for (const [l, { q, k, v, o }] of [previousTokens(), induction()].entries()) {
  const layer = `model.layers.${l}`;
  for (const [name, matrix] of Object.entries({ q, k, v, o }))
    weights.set(`${layer}.self_attn.${name}_proj.weight`, matrix);
  weights.set(`${layer}.mlp.gate_proj.weight`, new Matrix(MLP, WIDTH));
  weights.set(`${layer}.mlp.up_proj.weight`, new Matrix(MLP, WIDTH));
  weights.set(`${layer}.mlp.down_proj.weight`, new Matrix(WIDTH, MLP));
}
const norms = [
  "model.norm.weight",
  ...[0, 1].flatMap((l) => [
    `model.layers.${l}.input_layernorm.weight`,
    `model.layers.${l}.post_attention_layernorm.weight`,
  ]),
];

await writeSafetensors(
  join(folder, "model.safetensors"),
  [
    ...[...weights].map(([name, { rows, columns, data }]) => ({ name, dtype: "F16", shape: [rows, columns], data })),
    ...norms.map((name) => ({ name, dtype: "F16", shape: [WIDTH], data: new Float32Array(WIDTH).fill(1) })),
  ],
  { format: "pt" },
);

const files: Record<string, object> = {
  "config.json": {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    hidden_size: WIDTH,
    intermediate_size: MLP,
    num_hidden_layers: 2,
    num_attention_heads: HEADS,
    num_key_value_heads: 1,
    head_dim: HEAD_DIM,
    vocab_size: VOCAB,
    max_position_embeddings: POSITIONS,
    rms_norm_eps: 1e-6,
    rope_theta: ROTARY_BASE,
    hidden_act: "silu",
    tie_word_embeddings: false,
    bos_token_id: 0,
    eos_token_id: 0,
    torch_dtype: "float16",
  },
  "tokenizer.json": tokenizer,
  "tokenizer_config.json": {
    tokenizer_class: "PreTrainedTokenizerFast",
    bos_token: END,
    eos_token: END,
    add_bos_token: true,
    model_max_length: POSITIONS,
  },
};
for (const [name, content] of Object.entries(files)) {
  await writeFile(join(folder, name), `${JSON.stringify(content, undefined, name === "tokenizer.json" ? 0 : 2)}\n`);
}
console.log(`wrote ${folder}; positions are ${gap.toFixed(1)} logits apart`);
