/**
 * The jax-js side of bench/train.ts: the same model, weights, batches and optimiser, one step at a time. It reads a number
 * of steps a line from standard input, takes them, and answers with a line of JSON. "0" ends it.
 * Arguments: the folder with the first weights, and the shape as JSON.
 */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [folder, json] = process.argv.slice(2);
const { rows: B, length: T, vocabulary: V, layers: L, heads: H, width: d, rate } = JSON.parse(json);
const D = d / H;
/** Rows that are taken at a time, their gradients added up: all 8 do not fit into 4 GiB of WebAssembly memory. */
const R = Math.min(B, Number(process.env.JAX_JS_ROWS ?? 2));
const N = R * T;

// JAX_JS names the folder that it was installed in, if it was not in this one
const require = createRequire(process.env.JAX_JS ? join(process.env.JAX_JS, "package.json") : import.meta.url);
let jax;
try {
  jax = await import(pathToFileURL(require.resolve("@jax-js/jax")).href.replace(/index\.cjs$/, "index.js"));
} catch {
  console.error("jax-js is not installed: npm install --no-save @jax-js/jax");
  process.exit(1);
}
const { numpy: np, nn, jit, grad, valueAndGrad, init, defaultDevice, blockUntilReady } = jax;
await init("wasm");
defaultDevice("wasm");

function readWeights(path) {
  const file = readFileSync(path);
  const size = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.subarray(8, 8 + size).toString());
  const tensors = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const [begin, end] = entry.data_offsets;
    const data = new Float32Array(
      file.buffer.slice(file.byteOffset + 8 + size + begin, file.byteOffset + 8 + size + end),
    );
    tensors[name] = np.array(data, { shape: entry.shape });
  }
  return tensors;
}

const angles = (f) =>
  np.array(
    Float32Array.from({ length: T * D }, (_, i) => f(Math.floor(i / D) * 10000 ** ((-2 * ((i % D) % (D / 2))) / D))),
    { shape: [T, D] },
  );
const cos = angles(Math.cos);
const sin = angles(Math.sin);

const NAMES = [];
const weights = readWeights(join(folder, "model.safetensors"));
for (const name of Object.keys(weights)) NAMES.push(name);

// Every use of an array but the last takes a reference (`.ref`): a function owns what it is given.
const linear = (x, weight) => np.matmul(x, weight.transpose());
const rms = (x, weight) => {
  const scale = np.reciprocal(np.sqrt(np.square(x.ref).mean(-1, { keepdims: true }).add(1e-5)));
  return x.mul(scale).mul(weight);
};
const split = (x) => x.reshape([R, T, H, D]).transpose([0, 2, 1, 3]); // [R, H, T, D]
const rotate = (x) => {
  const [first, second] = np.split(x.ref, 2, -1);
  return x.mul(cos.ref).add(np.concatenate([second.neg(), first], -1).mul(sin.ref));
};
const hidden = np.array(
  Float32Array.from({ length: T * T }, (_, i) => (i % T > Math.floor(i / T) ? -1e30 : 0)),
  { shape: [T, T] },
);

const vocabulary = np.array(
  Int32Array.from({ length: V }, (_, i) => i),
  { shape: [1, V], dtype: np.int32 },
);

/** `x` [N, d]: the embeddings. They are looked up outside, since jax-js 0.1.25 compiles no scatter. */
function lossOf(W, x, targets, counted) {
  for (let l = 0; l < L; l++) {
    const at = (name) => W[`model.layers.${l}.${name}.weight`];
    const a = rms(x.ref, at("input_layernorm"));
    const q = rotate(split(linear(a.ref, at("self_attn.q_proj")))).mul(D ** -0.5);
    const k = rotate(split(linear(a.ref, at("self_attn.k_proj"))));
    const v = split(linear(a, at("self_attn.v_proj")));
    const pattern = nn.softmax(np.matmul(q, k.transpose([0, 1, 3, 2])).add(hidden.ref), -1); // [R, H, T, T]
    const heads = np.matmul(pattern, v).transpose([0, 2, 1, 3]).reshape([N, d]);
    x = x.add(linear(heads, at("self_attn.o_proj")));
    const m = rms(x.ref, at("post_attention_layernorm"));
    const neurons = nn.silu(linear(m.ref, at("mlp.gate_proj"))).mul(linear(m, at("mlp.up_proj")));
    x = x.add(linear(neurons, at("mlp.down_proj")));
  }
  const logits = linear(rms(x, W["model.norm.weight"]), W["model.embed_tokens.weight"]); // [N, V]
  const right = np.where(np.equal(vocabulary.ref, targets), nn.logSoftmax(logits, -1), 0).sum(-1); // [N]
  return right
    .mul(counted)
    .sum()
    .neg()
    .div(R * (T - 1));
}

const gradientOf = jit((W, x, targets, counted) => valueAndGrad(lossOf, { argnums: [0, 1] })(W, x, targets, counted));

function gradient(W, ids, targets, counted) {
  const table = W["model.embed_tokens.weight"];
  const x = np.take(table.ref, ids.ref, 0); // [N, d]
  const again = table.ref;
  const [loss, [G, gx]] = gradientOf(W, x, targets, counted);
  const looked = grad((E) => np.take(E, ids, 0).mul(gx).sum())(again);
  return [loss, { ...G, "model.embed_tokens.weight": G["model.embed_tokens.weight"].add(looked) }];
}

const [b1, b2] = [0.9, 0.95];

/** AdamW with clipping, as in bench/train.ts. */
const update = jit((W, G, M, S, correction1, correction2) => {
  let sum;
  for (const name of NAMES) {
    const own = np.square(G[name].ref).sum();
    sum = sum ? sum.add(own) : own;
  }
  const factor = np.minimum(np.reciprocal(np.sqrt(sum).add(1e-6)), 1);
  const [newW, newM, newS] = [{}, {}, {}];
  for (const name of NAMES) {
    const g = G[name].mul(factor.ref);
    newM[name] = M[name].mul(b1).add(g.ref.mul(1 - b1));
    newS[name] = S[name].mul(b2).add(np.square(g).mul(1 - b2));
    let step = newM[name].ref.div(correction1.ref).div(np.sqrt(newS[name].ref.div(correction2.ref)).add(1e-8));
    const decays = weights[name].shape.length > 1 && !name.includes("embed");
    if (decays) step = step.add(W[name].ref.mul(0.1));
    newW[name] = W[name].sub(step.mul(rate));
  }
  factor.dispose();
  correction1.dispose();
  correction2.dispose();
  return [newW, newM, newS];
});

const map = (f) => Object.fromEntries(NAMES.map((name) => [name, f(name)]));
let W = map((name) => weights[name].ref);
let M = map((name) => np.zeros(weights[name].shape));
let S = map((name) => np.zeros(weights[name].shape));

/** Rows `first` to `first + R` of a batch, by the formula of bench/train.ts. */
function part(step, first) {
  const at = (i) => (((i + first * T) * 7919 + step * 131) % 65521) % V;
  const ids = Int32Array.from({ length: N }, (_, i) => at(i));
  const targets = ids.map((_, i) => (i % T === T - 1 ? 0 : at(i + 1)));
  const counted = Float32Array.from(ids, (_, i) => (i % T === T - 1 ? 0 : 1));
  return [
    np.array(ids, { shape: [N], dtype: np.int32 }),
    np.array(targets, { shape: [N, 1], dtype: np.int32 }),
    np.array(counted, { shape: [N] }),
  ];
}

const addUp = jit((A, G) => map((name) => A[name].add(G[name].mul(R / B))));

let step = 0;
for await (const line of createInterface({ input: process.stdin })) {
  const count = Number(line);
  if (count === 0) break;
  const begin = performance.now();
  const losses = [];
  for (let i = 0; i < count; i++, step++) {
    let sums = map((name) => np.zeros(weights[name].shape));
    let mean = 0;
    for (let first = 0; first < B; first += R) {
      const [loss, G] = gradient(
        map((name) => W[name].ref),
        ...part(step, first),
      );
      mean += (Number((await loss.data())[0]) * R) / B;
      sums = addUp(sums, G);
      await blockUntilReady(sums);
    }
    losses.push(mean);
    [W, M, S] = update(W, sums, M, S, np.array(1 - b1 ** (step + 1)), np.array(1 - b2 ** (step + 1)));
    await blockUntilReady(W);
  }
  console.log(JSON.stringify({ seconds: (performance.now() - begin) / 1000, losses }));
}
const peak = Number(/VmHWM:\s*(\d+) kB/.exec(readFileSync("/proc/self/status", "utf8"))?.[1]) * 1024;
const { version } = JSON.parse(readFileSync(join(require.resolve("@jax-js/jax"), "../../package.json"), "utf8"));
console.log(JSON.stringify({ peak, version: `jax-js ${version}` }));
process.exit(0);
