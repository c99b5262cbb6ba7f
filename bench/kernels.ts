// Time of attention alone for one token: 30 layers, 9 query heads, 3 KV heads of 64, as in the 135M shape of the other
// measurements. Prints milliseconds a token at each depth, cache type and number of threads.
//
//   node scripts/run.mjs bench/kernels.ts [depths] [types] [threads]      e.g. 512,8192 int8 1,2
import { CachePool, type CacheType } from "../src/engine/cache.js";

const [depths = "512,8192,32768", types = "int8,float32", threadList = "1,2"] = process.argv.slice(2);
const LAYERS = 30;
const KV = 3;
const HEADS = 9;
const DIM = 64;

function values(n: number): Float32Array {
  let state = 1;
  return Float32Array.from({ length: n }, () => {
    let sum = 0;
    for (let i = 0; i < 4; i++) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      sum += state / 2 ** 32;
    }
    return (sum - 2) * 1.7;
  });
}

function median(list: number[]): number {
  return [...list].sort((a, b) => a - b)[list.length >> 1];
}

/** Sum over layers of the lower eighth: what a token takes when nothing else runs on the machine. */
function quiet(layers: number[][]): number {
  return layers.reduce((sum, list) => sum + [...list].sort((a, b) => a - b)[list.length >> 3], 0);
}

console.log("depth\ttype\tthreads\tappend ms\tattend ms/token\tquiet\tstep ms/token\tcache MB\tbytes/token/head");
for (const depth of depths.split(",").map(Number))
  for (const type of types.split(",") as CacheType[])
    for (const threads of threadList.split(",").map(Number)) {
      const pool = new CachePool({
        layers: Array(LAYERS).fill({ kvHeads: KV, keyDim: DIM, valueDim: DIM }),
        type,
        threads,
      });
      const cache = pool.create();
      const k = values(depth * KV * DIM);
      const v = values(depth * KV * DIM);
      const start = performance.now();
      for (let l = 0; l < LAYERS; l++) cache.layer(l).append(k, v, depth);
      const append = performance.now() - start;
      const q = values(HEADS * DIM);
      const out = new Float32Array(HEADS * DIM);
      const attends: number[] = [];
      const steps: number[] = [];
      const layers: number[][] = Array.from({ length: LAYERS }, () => []);
      const repeats = depth > 16384 ? 10 : 30;
      for (let i = 0; i < repeats; i++) {
        let time = performance.now();
        const start = time;
        for (let l = 0; l < LAYERS; l++) {
          cache.layer(l).attend({ q, rows: 1, scale: 0.125 }, out);
          const now = performance.now();
          layers[l].push(now - time);
          time = now;
        }
        attends.push(time - start);
        time = performance.now();
        for (let l = 0; l < LAYERS; l++) {
          cache.layer(l).append(k.subarray(0, KV * DIM), v.subarray(0, KV * DIM), 1);
          cache.layer(l).attend({ q, rows: 1, scale: 0.125 }, out);
        }
        steps.push(performance.now() - time);
      }
      const f = (x: number) => x.toFixed(2);
      console.log(
        `${depth}\t${type}\t${threads}\t${f(append)}\t${f(median(attends))}\t${f(quiet(layers))}\t${f(median(steps))}\t` +
          `${f(cache.bytes / 1e6)}\t${f(cache.bytes / depth / LAYERS / KV)}`,
      );
      cache.release();
      pool.close();
    }
