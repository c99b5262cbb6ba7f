/**
 * Measures training against PyTorch and jax-js on the processor and writes the table into docs/benchmarks.md.
 *
 *   npm run bench:train                          all that is installed, two rounds each in turns
 *   npm run bench:train -- --peers pytorch --rounds 5
 *
 * PyTorch: Debian's python3-torch with libopenblas0-pthread (PYTHON names another interpreter). jax-js:
 * `npm install --no-save @jax-js/jax`. What is not installed is said and left out.
 */
import { execFileSync, spawn } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { convert } from "fovea/models";
import { adamW, type Batch, decoder, train } from "fovea/train";
import { writeSection } from "./document.js";

const root = fileURLToPath(new URL("..", import.meta.url));

/** Sizes that all engines are given. */
const SHAPE = {
  layers: 6,
  width: 256,
  heads: 8,
  mlp: 768,
  vocabulary: 2048,
  rows: 8,
  length: 512,
  rate: 1e-3,
  threads: 2,
};
type Shape = typeof SHAPE;

/** Steps that are taken, and not timed, before the first round: memory is laid out in them. */
const WARM_UP = 3;
/** How far apart the engines' losses may be for their models to count as the same. */
const TOLERANCE = 0.02;

const { values: options } = parseArgs({
  options: {
    worker: { type: "string" },
    shape: { type: "string" },
    peers: { type: "string", default: "pytorch,pytorch-keeping,jax-js" },
    rounds: { type: "string", default: "3" },
    steps: { type: "string", default: "4" },
    threads: { type: "string" },
    "dry-run": { type: "boolean", default: false },
  },
});

/** One engine's answer to a number of steps. */
interface Answer {
  readonly seconds: number;
  readonly losses: readonly number[];
}

interface Peer {
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** Steps of a round, where they are slow. */
  readonly steps?: number;
}

/** glibc keeps freed memory, which spares PyTorch the page faults of every large tensor. */
const KEEP_MEMORY = {
  MALLOC_TOP_PAD_: "1073741824",
  MALLOC_MMAP_MAX_: "0",
  MALLOC_TRIM_THRESHOLD_: "100000000000",
};

interface Measured {
  readonly name: string;
  readonly version: string;
  /** Tokens per second of each round. */
  readonly rates: readonly number[];
  readonly losses: readonly number[];
  readonly peak: number;
}

async function compare(): Promise<void> {
  const shape: Shape = { ...SHAPE, threads: Number(options.threads ?? SHAPE.threads) };
  const folder = await mkdtemp(join(tmpdir(), "fovea-bench-train-"));
  try {
    const model = modelOf(shape);
    const first = join(folder, "first");
    await convert(model, first, { type: "f32" });
    const json = JSON.stringify(shape);
    const script = (name: string): string => join(root, "bench", name);
    const torch = { command: process.env.PYTHON ?? "/usr/bin/python3", args: [script("train_torch.py"), first, json] };
    const peers: Record<string, Peer> = {
      fovea: {
        name: "Fovea",
        command: process.execPath,
        args: [join(root, "scripts/run.mjs"), script("train.ts"), "--worker", "fovea", "--shape", json],
      },
      pytorch: { name: "PyTorch", ...torch },
      "pytorch-keeping": { name: "PyTorch, glibc keeping memory", ...torch, env: KEEP_MEMORY },
      "jax-js": { name: "jax-js", command: process.execPath, args: [script("train-jax.mjs"), first, json], steps: 1 },
    };
    const wanted = ["fovea", ...options.peers.split(",").filter((name) => name !== "")];
    const engines: Engine[] = [];
    for (const name of wanted) {
      if (!peers[name]) throw new Error(`no peer is called ${name}; there are ${Object.keys(peers).join(", ")}`);
      const engine = new Engine(peers[name]);
      const warm = await engine.take(peers[name].steps ?? WARM_UP).catch((error: Error) => error);
      if (warm instanceof Error) console.error(`${name} is left out: ${warm.message}`);
      else engines.push(engine);
    }
    for (let round = 0; round < Number(options.rounds); round++)
      for (const engine of engines) {
        const steps = engine.steps ?? Number(options.steps);
        const { seconds } = await engine.take(steps);
        engine.rates.push((steps * shape.rows * shape.length) / seconds);
        console.error(`${engine.name}, round ${round + 1}: ${engine.rates.at(-1)?.toFixed(0)} tokens/s`);
      }
    const measured: Measured[] = [];
    for (const engine of engines) measured.push(await engine.end());
    checkLosses(measured);
    const text = describe(shape, measured);
    console.log(text);
    if (!options["dry-run"]) await writeSection("train", text);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** A process that trains when it is told to, and waits otherwise. */
class Engine {
  readonly name: string;
  /** Steps of a round; undefined: as many as asked for. */
  readonly steps?: number;
  readonly rates: number[] = [];
  readonly #losses: number[] = [];
  readonly #child;
  readonly #lines: AsyncIterator<string>;
  #trouble = "";

  constructor({ name, command, args, env, steps }: Peer) {
    this.name = name;
    this.steps = steps;
    this.#child = spawn(command, args, { cwd: root, stdio: ["pipe", "pipe", "pipe"], env: { ...process.env, ...env } });
    this.#child.stderr.on("data", (text: Buffer) => {
      this.#trouble = (this.#trouble + text.toString()).slice(-2000);
    });
    this.#child.on("error", (error) => {
      this.#trouble = error.message;
    });
    this.#child.stdin.on("error", () => {});
    this.#lines = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]();
  }

  async take(steps: number): Promise<Answer> {
    const answer = (await this.#ask(steps)) as Answer;
    this.#losses.push(...answer.losses);
    return answer;
  }

  async end(): Promise<Measured> {
    const { peak, version } = (await this.#ask(0)) as { peak: number; version: string };
    return {
      name: this.name,
      version: this.name.replace(/^[A-Za-z-]+/, version),
      peak,
      rates: this.rates,
      losses: this.#losses,
    };
  }

  async #ask(steps: number): Promise<unknown> {
    this.#child.stdin.write(`${steps}\n`);
    const { value, done } = await this.#lines.next();
    if (done) throw new Error(this.#trouble.trim().split("\n").at(-1) ?? "it ended");
    return JSON.parse(value);
  }
}

/** The other side: trains with `train`, each batch given out when its turn has come. */
async function serveFovea(shape: Shape): Promise<void> {
  const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  const say = (value: unknown): unknown => process.stdout.write(`${JSON.stringify(value)}\n`);
  let left = 0;
  let begin = 0;
  let losses: number[] = [];
  const turn = async (): Promise<void> => {
    if (losses.length > 0) say({ seconds: (performance.now() - begin) / 1000, losses });
    losses = [];
    const { value, done } = await lines.next();
    left = done ? 0 : Number(value);
    begin = performance.now();
    if (left > 0) return;
    say({ peak: await peakMemory(), version: "Fovea" });
    process.exit(0);
  };
  await train({
    model: modelOf(shape),
    data: {
      name: "numbers",
      vocabulary: shape.vocabulary,
      batch: async (step) => {
        if (left === 0) await turn();
        left--;
        return batchOf(shape, step);
      },
    },
    steps: 1_000_000,
    optimizer: adamW({ rate: shape.rate }),
    threads: shape.threads,
    onProgress: ({ loss }) => losses.push(loss),
  });
}

async function peakMemory(): Promise<number> {
  const status = await readFile("/proc/self/status", "utf8").catch(() => "");
  const peak = /VmHWM:\s*(\d+) kB/.exec(status)?.[1];
  return peak === undefined ? process.resourceUsage().maxRSS * 1024 : Number(peak) * 1024;
}

function modelOf({ layers, width, heads, mlp, vocabulary }: Shape): ReturnType<typeof decoder> {
  return decoder({ layers, width, heads, mlp, vocabulary, seed: 1 });
}

/** Token ids by a formula that every language computes alike. */
function batchOf({ rows, length, vocabulary }: Shape, step: number): Batch {
  const ids = Int32Array.from({ length: rows * length }, (_, i) => ((i * 7919 + step * 131) % 65521) % vocabulary);
  const targets = ids.map((_, i) => (i % length === length - 1 ? -1 : ids[i + 1]));
  return { rows, length, ids, targets, weights: Float32Array.from(targets, (id) => (id < 0 ? 0 : 1)) };
}

/** The same weights, batches and optimiser must give the same losses; else not the same thing was timed. */
function checkLosses([own, ...others]: readonly Measured[]): void {
  for (const { name, losses } of others)
    for (const [i, loss] of losses.entries()) {
      if (i < own.losses.length && Math.abs(loss - own.losses[i]) > TOLERANCE)
        throw new Error(`step ${i + 1}: ${name} has the loss ${loss}, Fovea ${own.losses[i]}: the models differ`);
    }
}

function describe(shape: Shape, measured: readonly Measured[]): string {
  const commit = execFileSync("git", ["rev-parse", "--short", "HEAD"], { cwd: root, encoding: "utf8" }).trim();
  const { layers, width, heads, mlp, vocabulary, rows, length, threads } = shape;
  const own = median(measured[0].rates);
  const round = (x: number): string => x.toFixed(0);
  return [
    `${new Date().toISOString().slice(0, 10)}, ${cpus()[0].model.trim()}, ${threads} threads, Node ${process.versions.node},`,
    `commit ${commit}. Llama shape with ${layers} layers, width ${width}, ${heads} heads, gated MLP ${mlp}, vocabulary`,
    `${vocabulary}, batches of ${rows} x ${length}, AdamW with clipping, float32. The same first weights and batches in all;`,
    "engines in turns, each in a process of its own, after steps that lay out memory. Median; smallest and largest round in",
    `brackets. The losses of all steps agree within ${TOLERANCE}.`,
    "",
    "| engine | tokens/s | Fovea is faster by | peak memory, GB |",
    "| --- | --- | --- | --- |",
    ...measured.map(({ version, rates, peak }) => {
      const range = `${round(Math.min(...rates))}-${round(Math.max(...rates))}`;
      return `| ${version} | ${round(median(rates))} (${range}) | ${(own / median(rates)).toFixed(2)} | ${(peak / 1e9).toFixed(2)} |`;
    }),
  ].join("\n");
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
}

if (options.worker === "fovea") await serveFovea(JSON.parse(options.shape ?? "{}") as Shape);
else await compare();
