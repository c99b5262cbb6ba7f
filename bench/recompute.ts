/**
 * Prints the peak memory and the speed of training with and without recomputation of blocks in the backward pass, each
 * in a process of its own, and checks that the losses are the same.
 *
 *   node scripts/run.mjs bench/recompute.ts
 */
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { type Batch, decoder, train } from "fovea/train";

const [rows, length, steps] = [8, 512, 3];
const SHAPE = { layers: 6, width: 256, heads: 8, mlp: 768, vocabulary: 2048 };

/** Tokens i, i + 7, i + 14, ...: what they are does not matter for memory and speed. */
function batch(step: number): Batch {
  const count = rows * length;
  const ids = Int32Array.from({ length: count }, (_, i) => (i * 7 + step) % SHAPE.vocabulary);
  return {
    rows,
    length,
    ids,
    targets: ids.map((id) => (id + 7) % SHAPE.vocabulary),
    weights: new Float32Array(count).fill(1),
    documents: new Int32Array(count),
    positions: Int32Array.from({ length: count }, (_, i) => i % length),
  };
}

async function measure(recompute: boolean): Promise<void> {
  const losses: number[] = [];
  let [before, fastest] = [performance.now(), Number.POSITIVE_INFINITY];
  await train({
    model: decoder({ ...SHAPE, recompute }),
    data: { name: "counting", vocabulary: SHAPE.vocabulary, batch },
    steps,
    onProgress: ({ loss }) => {
      losses.push(loss);
      fastest = Math.min(fastest, performance.now() - before);
      before = performance.now();
    },
  });
  const peak = process.resourceUsage().maxRSS / 1e6; // GB
  console.log(JSON.stringify({ peak, rate: (rows * length * 1000) / fastest, losses }));
}

const mode = process.argv[2];
if (mode) await measure(mode === "again");
else {
  const run = fileURLToPath(new URL("../scripts/run.mjs", import.meta.url));
  const results = ["keep", "again"].map((kind) => {
    const text = execFileSync(process.execPath, [run, fileURLToPath(import.meta.url), kind], { encoding: "utf8" });
    const result = JSON.parse(text.trim().split("\n").at(-1) ?? "") as { peak: number; rate: number; losses: number[] };
    const name = kind === "keep" ? "inner values kept" : "computed again";
    console.log(`${name.padEnd(18)} ${result.peak.toFixed(2)} GB peak, ${result.rate.toFixed(0)} tokens/s`);
    return result;
  });
  const same = results[0].losses.every((loss, i) => Math.abs(loss - results[1].losses[i]) < 1e-4 * loss);
  console.log(same ? "the losses are the same up to rounding" : `the losses differ: ${JSON.stringify(results)}`);
  if (!same) process.exitCode = 1;
}
