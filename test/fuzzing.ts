/**
 * Mutation-based fuzzing of everything that parses what somebody else wrote. A target takes a mutated input; it may
 * succeed or throw a FoveaError, and nothing else, within bounded time and memory.
 */
import { FoveaError } from "../src/error.js";
import { createChatTemplate } from "../src/models/chat.js";
import { parseConfig } from "../src/models/config.js";
import { encodeGguf, type GgufValue, openGguf } from "../src/models/gguf.js";
import { configFromGguf } from "../src/models/gguf-config.js";
import { tokenizerFromGguf, tokenizerToGguf } from "../src/models/gguf-tokenizer.js";
import { parseJson } from "../src/models/json.js";
import { encodeSafetensors, openSafetensors } from "../src/models/safetensors.js";
import type { TensorFile } from "../src/models/tensor-file.js";
import { createTokenizer, type Tokenizer } from "../src/models/tokenizer.js";
import { byteLevelTokenizer, sentencePieceTokenizer, unigramTokenizer } from "./tokenizers.js";

/** Numbers in [0, 1) that a seed decides (mulberry32). */
export class Random {
  private state: number;
  constructor(seed: number) {
    this.state = seed >>> 0;
  }
  next(): number {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let t = this.state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }
  below(n: number): number {
    return Math.floor(this.next() * n);
  }
  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)];
  }
}

/** One parser with inputs that it takes. */
export interface Target {
  name: string;
  /** Makes a mutated input from one of the target's seeds. */
  mutate(random: Random): unknown;
  run(input: unknown): Promise<void>;
}

// ---- mutations ----

const INTERESTING = [
  0n,
  1n,
  7n,
  31n,
  127n,
  128n,
  255n,
  256n,
  65535n,
  2n ** 31n - 1n,
  2n ** 31n,
  2n ** 32n - 1n,
  2n ** 40n,
];
const HUGE = [2n ** 53n - 1n, 2n ** 53n, 2n ** 62n, 2n ** 63n, 2n ** 64n - 1n];

/** Changes the header of a safetensors file as JSON and puts the file together again, lengths and all. */
function mutateHeader(seed: Uint8Array, random: Random): Uint8Array {
  const length = Number(new DataView(seed.buffer, seed.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(seed.subarray(8, 8 + length)));
  const text = new TextEncoder().encode(JSON.stringify(mutateJson(header, random)) ?? "");
  const bytes = new Uint8Array(8 + text.length + seed.length - 8 - length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
  bytes.set(text, 8);
  bytes.set(seed.subarray(8 + length), 8 + text.length);
  return bytes;
}

/** Changes a byte or an integer here and there, and leaves all lengths as they are. */
function mutateInPlace(seed: Uint8Array, random: Random): Uint8Array {
  const bytes = Uint8Array.from(seed);
  for (let n = 1 + random.below(2); n > 0; n--) {
    const at = random.below(bytes.length);
    if (random.below(2) === 0) bytes[at] ^= 1 << random.below(8);
    else bytes[at] = random.pick([0, 1, 2, 8, 9, 32, 127, 128, 255]);
  }
  return bytes;
}

/** Changes bytes: bits, integers, pieces cut, doubled, moved or put in from another input. */
export function mutateBytes(seed: Uint8Array, other: Uint8Array, random: Random): Uint8Array {
  let bytes = Uint8Array.from(seed);
  for (let n = 1 + random.below(4); n > 0; n--) {
    // Headers lie at the beginning, so most changes do too.
    const at =
      random.below(random.below(3) === 0 ? bytes.length : Math.min(bytes.length, 1 << (3 + random.below(10)))) || 0;
    const length = Math.min(1 << random.below(8), bytes.length - at);
    const piece = bytes.subarray(at, at + length);
    const splice = (middle: Uint8Array, cut: number): void => {
      const parts = [bytes.subarray(0, at), middle, bytes.subarray(at + cut)];
      const joined = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
      parts.reduce((to, part) => {
        joined.set(part, to);
        return to + part.length;
      }, 0);
      bytes = joined;
    };
    switch (random.below(8)) {
      case 0:
        if (bytes.length > 0) bytes[at] ^= 1 << random.below(8);
        break;
      case 1:
        if (bytes.length > 0) bytes[at] = random.below(256);
        break;
      case 2: {
        const width = random.pick([1, 2, 4, 8]);
        let value = random.pick(random.below(3) === 0 ? HUGE : INTERESTING);
        for (let i = 0; i < width && at + i < bytes.length; i++, value >>= 8n) bytes[at + i] = Number(value & 255n);
        break;
      }
      case 3:
        bytes = bytes.slice(0, at);
        break;
      case 4:
        splice(new Uint8Array(0), length);
        break;
      case 5:
        splice(new Uint8Array([...piece, ...piece]), length);
        break;
      case 6: {
        const from = random.below(other.length);
        splice(other.slice(from, from + length), random.below(2) * length);
        break;
      }
      default:
        splice(
          Uint8Array.from({ length }, () => random.below(256)),
          0,
        );
    }
  }
  return bytes;
}

const VALUES: readonly unknown[] = [
  null,
  true,
  false,
  0,
  -1,
  1,
  2,
  0.5,
  1e308,
  -1e308,
  2 ** 31,
  2 ** 32,
  2 ** 53,
  1e15,
  "",
  "a",
  "▁",
  "Ġ",
  "<s>",
  "__proto__",
  "constructor",
  "\ud800",
  "x".repeat(5000),
  [],
  {},
  [[]],
  [null],
  { type: "Sequence" },
  { type: "BPE" },
  { __proto__: null },
];

/** Changes a JSON value: replaces, removes, doubles or moves parts of it. */
export function mutateJson(seed: unknown, random: Random): unknown {
  const root = { value: structuredClone(seed) };
  for (let n = 1 + random.below(3); n > 0; n--) {
    // A walk from the top, so that the upper parts are changed as often as the thousands of vocabulary entries.
    let holder: Record<string, unknown> = root;
    let key = "value";
    for (let depth = random.below(7); depth > 0; depth--) {
      const next = holder[key];
      if (typeof next !== "object" || next === null) break;
      const keys = Object.keys(next);
      if (keys.length === 0) break;
      holder = next as Record<string, unknown>;
      key = random.pick(keys);
    }
    const value = holder[key];
    switch (random.below(7)) {
      case 0:
      case 1:
        holder[key] = structuredClone(random.pick(VALUES));
        break;
      case 2:
        if (Array.isArray(holder)) holder.splice(Number(key), 1);
        else delete holder[key];
        break;
      case 3:
        if (Array.isArray(holder)) holder.push(structuredClone(value));
        else holder[`${key}_`] = value;
        break;
      case 4:
        holder[key] = typeof value === "number" ? value * random.pick([-1, 0, 2, 1e6, 0.5]) : [value];
        break;
      case 5:
        holder[key] = typeof value === "string" ? mutateText(value, random) : { [key]: value };
        break;
      default: {
        const keys = Object.keys(holder);
        const with_ = random.pick(keys);
        [holder[key], holder[with_]] = [holder[with_], holder[key]];
      }
    }
  }
  return root.value;
}

/** Changes a text by characters that mean something to some parser. */
export function mutateText(text: string, random: Random): string {
  const at = random.below(text.length + 1);
  const length = random.below(8);
  const put = random.pick([
    "",
    "{",
    "}",
    "[",
    "]",
    '"',
    "\\",
    "(",
    ")",
    "*",
    "+?",
    "\\p{L}",
    "{{",
    "%}",
    "{%",
    "-1",
    "0",
    "\u0000",
    "▁",
    "\ud83d",
    "|",
    "null",
    text.slice(at, at + 40),
  ]);
  return text.slice(0, at) + put + text.slice(at + length);
}

// ---- targets ----

const TEXTS = ["Hello, world! 123", " a  b\n\tc", "中文 é 🙂 <s><|im_end|>", "\u0000\ud800x"];

function exercise(tokenizer: Tokenizer): void {
  for (const text of TEXTS) {
    for (const parse of [true, false]) {
      const { ids, offsets } = tokenizer.encode(text, { parse });
      for (const [start, end] of offsets) {
        if (!(start >= 0 && start <= end && end <= text.length))
          throw new Error(`span [${start}, ${end}] in ${text.length}`);
      }
      tokenizer.decode(ids);
      const stream = tokenizer.stream();
      for (const id of ids) stream.push(id);
      stream.end();
    }
  }
  tokenizer.piece(0);
}

async function readAll(file: TensorFile, limit: number): Promise<void> {
  let elements = 0;
  for (const { name, bytes } of file.tensors.values()) {
    // No tensor may claim more than its file has.
    if (bytes > limit) throw new Error(`tensor of ${bytes} bytes in a file of ${limit}`);
    try {
      elements += (await file.read(name)).length;
    } catch (error) {
      if (!(error instanceof FoveaError)) throw error;
    }
  }
  if (elements > limit * 8) throw new Error(`${elements} elements out of ${limit} bytes`);
  await file.close();
}

/** Bytes of a kind of file, mutated. */
function bytesTarget(
  name: string,
  seeds: Uint8Array[],
  parse: (bytes: Uint8Array) => Promise<void>,
  gentle = mutateInPlace,
): Target {
  return {
    name,
    mutate: (random) =>
      random.below(2) === 0
        ? gentle(random.pick(seeds), random)
        : mutateBytes(random.pick(seeds), random.pick(seeds), random),
    run: (input) => parse(input as Uint8Array),
  };
}

/** A JSON value, mutated as a value or, sometimes, as text. */
function jsonTarget(name: string, seeds: unknown[], parse: (value: unknown) => void): Target {
  return {
    name,
    mutate: (random) => {
      const value = mutateJson(random.pick(seeds), random);
      if (random.below(4) > 0) return value;
      const text = JSON.stringify(value) ?? "";
      return { text: mutateText(text, random) };
    },
    run: async (input) => {
      const text = (input as { text?: unknown } | null)?.text;
      parse(typeof text === "string" ? parseJson(text, "input") : input);
    },
  };
}

const CONFIGS: unknown[] = [
  {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    hidden_size: 64,
    intermediate_size: 172,
    num_hidden_layers: 5,
    num_attention_heads: 8,
    num_key_value_heads: 4,
    vocab_size: 512,
    max_position_embeddings: 512,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    hidden_act: "silu",
    tie_word_embeddings: true,
    bos_token_id: 1,
    eos_token_id: [2, 3],
    rope_scaling: {
      rope_type: "llama3",
      factor: 8,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 8192,
    },
  },
  {
    model_type: "gemma3_text",
    hidden_size: 64,
    intermediate_size: 96,
    num_hidden_layers: 6,
    num_attention_heads: 4,
    num_key_value_heads: 1,
    head_dim: 32,
    vocab_size: 512,
    max_position_embeddings: 4096,
    rms_norm_eps: 1e-6,
    rope_theta: 1e6,
    rope_local_base_freq: 1e4,
    sliding_window: 512,
    sliding_window_pattern: 6,
    query_pre_attn_scalar: 32,
    hidden_activation: "gelu_pytorch_tanh",
  },
  {
    model_type: "gpt2",
    n_embd: 64,
    n_layer: 2,
    n_head: 4,
    n_positions: 128,
    n_ctx: 128,
    vocab_size: 512,
    layer_norm_epsilon: 1e-5,
    activation_function: "gelu_new",
  },
];

const TEMPLATE = `{{- bos_token }}{% set ns = namespace(x=0) %}{% for m in messages %}{% if m.role == 'user' %}[{{ m.content | trim }}]{% elif m['role'] in ['assistant'] %}{{ m.content.split('x')[-1] + eos_token }}{% else %}{{ raise_exception('no') }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'A:' ~ (1 + 2) | string }}{% endif %}`;

/** All targets. Making their seeds takes a moment, so it is done once. */
export async function targets(): Promise<Target[]> {
  const values = Float32Array.from({ length: 64 }, (_, i) => Math.sin(i));
  const tensors = [
    { name: "a", dtype: "F32", shape: [2, 32], data: values },
    { name: "b", dtype: "F16", shape: [64], data: values },
    { name: "c", dtype: "BF16", shape: [4, 4, 4], data: values },
  ];
  const safetensors = [
    await encodeSafetensors(tensors, { format: "pt" }),
    await encodeSafetensors([{ name: "i", dtype: "I64", shape: [2], data: new Uint8Array(16) }]),
  ];
  const tokenizers = [
    byteLevelTokenizer("gpt-2"),
    byteLevelTokenizer("llama-bpe"),
    byteLevelTokenizer("qwen2"),
    sentencePieceTokenizer(true),
    unigramTokenizer(),
  ];
  const header: Record<string, GgufValue> = {
    "general.architecture": { type: "string", value: "llama" },
    "general.alignment": { type: "u32", value: 32 },
    "llama.block_count": { type: "u32", value: 2 },
    "llama.context_length": { type: "u32", value: 512 },
    "llama.embedding_length": { type: "u32", value: 64 },
    "llama.feed_forward_length": { type: "u32", value: 96 },
    "llama.attention.head_count": { type: "u32", value: 4 },
    "llama.attention.layer_norm_rms_epsilon": { type: "f32", value: 1e-5 },
    "llama.rope.freq_base": { type: "f32", value: 10000 },
    ints: { type: "array", of: "i64", value: [1, 2] },
    flags: { type: "array", of: "bool", value: [true] },
  };
  const quantized = [...tensors, { name: "q", dtype: "Q8_0", shape: [2, 32], data: values }];
  const ggufs = [await encodeGguf({ metadata: header, tensors: quantized })];
  for (const { tokenizer, config } of tokenizers.slice(0, 4)) {
    ggufs.push(
      await encodeGguf({ metadata: { ...header, ...tokenizerToGguf(createTokenizer(tokenizer, config)) }, tensors }),
    );
  }
  const accept = (parse: () => void): void => {
    try {
      parse();
    } catch (error) {
      if (!(error instanceof FoveaError)) throw error;
    }
  };
  return [
    bytesTarget(
      "safetensors",
      safetensors,
      async (bytes) => readAll(await openSafetensors(bytes), bytes.length),
      mutateHeader,
    ),
    bytesTarget("gguf", ggufs, async (bytes) => {
      const file = await openGguf(bytes);
      await readAll(file, bytes.length);
      accept(() => configFromGguf(file.metadata, file.tensors));
      accept(() => exercise(tokenizerFromGguf(file.metadata)));
    }),
    jsonTarget(
      "tokenizer.json",
      tokenizers.map(({ tokenizer }) => tokenizer),
      (json) => exercise(createTokenizer(json)),
    ),
    jsonTarget(
      "tokenizer_config.json",
      tokenizers.map(({ config }) => config),
      (json) => exercise(createTokenizer(tokenizers[3].tokenizer, json)),
    ),
    jsonTarget("config.json", CONFIGS, (json) => {
      parseConfig(json);
    }),
    {
      name: "chat template",
      mutate: (random) => {
        let text = TEMPLATE;
        for (let n = 1 + random.below(3); n > 0; n--) text = mutateText(text, random);
        return text;
      },
      run: async (input) => {
        createChatTemplate(input as string, { bos_token: "<s>", eos_token: "</s>" }).render(
          [
            { role: "user", content: " hi " },
            { role: "assistant", content: ["a", "x b"] },
          ],
          { addGenerationPrompt: true },
        );
      },
    },
  ];
}

/** What one case did wrong; undefined when all is well. */
export async function runCase(target: Target, seed: number, slowMs = 2000): Promise<string | undefined> {
  const input = target.mutate(new Random(seed));
  // Time of the processor, since the machine may be busy with something else.
  const before = process.cpuUsage();
  try {
    await target.run(input);
  } catch (error) {
    if (!(error instanceof FoveaError)) {
      const what = error instanceof Error ? (error.stack ?? error.message) : String(error);
      return `${target.name}, seed ${seed}: ${what}`;
    }
    if (error.code === "internal") return `${target.name}, seed ${seed}: ${error.message}`;
  }
  const { user, system } = process.cpuUsage(before);
  const took = Math.round((user + system) / 1000);
  return took > slowMs ? `${target.name}, seed ${seed}: took ${took} ms` : undefined;
}
