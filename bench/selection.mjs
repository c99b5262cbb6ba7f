/**
 * Where the time of a decoded token goes under methods that select, on the 135M-parameter shape with random weights and a
 * cache of random keys and values: dense segments, storing the token, scoring pages, choosing among them, attention, and
 * the rest (hooks, rotation, lists). The best eighth of the tokens counts, part by part, so that other programs on the
 * machine disturb it less; llama.cpp's figures are those of docs/benchmarks.md.
 *
 *   npm run bench:selection                                      about a minute
 *   npm run bench:selection -- 8192,32768 "full;quest(tokens=512)" 2     depths, methods, threads
 */

import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { resolve } from "../dist/attention/index.js";
import { LayerCache } from "../dist/engine/cache.js";
import { Engine } from "../dist/engine/engine.js";
import { Segment } from "../dist/graph/segment.js";
import { Kernels } from "../dist/kernels/index.js";
import { Field, Kind } from "../dist/kernels/layout.js";
import { openCheckpoint } from "../dist/models/index.js";

const [depths = "8192,32768", methods, threads = "2", steps = "32"] = process.argv.slice(2);
const file = fileURLToPath(new URL("../out/bench-135m.gguf", import.meta.url));
if (!existsSync(file)) spawnSync(process.execPath, ["scripts/run.mjs", "scripts/make-bench-model.ts", file]);

const PARTS = ["dense", "append", "score pages", "choose", "attend"];
const spent = { dense: 0, append: 0, "score pages": 0, choose: 0, attend: 0 };
/** What runs inside another part is counted there and taken from that one. */
let inner = 0;

function measure(part, run) {
  return function (...args) {
    const before = inner;
    const start = performance.now();
    const result = run.apply(this, args);
    const whole = performance.now() - start;
    spent[part] += whole - (inner - before);
    inner = before + whole;
    return result;
  };
}

const { run: runSegment } = Segment.prototype;
Segment.prototype.run = async function (...args) {
  const start = performance.now();
  const result = await runSegment.apply(this, args);
  spent.dense += performance.now() - start;
  return result;
};
const { append, attend, choosePages, scores, sum } = LayerCache.prototype;
LayerCache.prototype.append = measure("append", append);
LayerCache.prototype.attend = measure("attend", attend);
LayerCache.prototype.scores = measure("attend", scores);
LayerCache.prototype.sum = measure("attend", sum);
LayerCache.prototype.choosePages = measure("choose", choosePages);
const { run: runKernel } = Kernels.prototype;
Kernels.prototype.run = function (parallel) {
  if (this.memory.u32[this.job + Field.kind] !== Kind.bounds) return runKernel.call(this, parallel);
  return measure("score pages", runKernel).call(this, parallel);
};

function noise(count) {
  let state = 1;
  return Float32Array.from({ length: count }, () => {
    let sum = 0;
    for (let i = 0; i < 4; i++) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      sum += state / 2 ** 32;
    }
    return (sum - 2) * 1.7;
  });
}

/** As if `depth` tokens had been read. */
function fill(sequence, engine, depth) {
  const width = engine.shape.kvHeads * engine.shape.headDim;
  const rows = noise(2048 * width);
  for (let l = 0; l < engine.shape.layers; l++)
    for (let at = 0; at < depth; at += 2048) sequence.cache.layer(l).append(rows, rows, Math.min(2048, depth - at));
  for (let i = 0; i < depth; i++) sequence.ids.push(i % 256);
}

/** The mean of the lowest eighth. */
function quiet(values) {
  const best = [...values].sort((a, b) => a - b).slice(0, Math.max(1, values.length >> 3));
  return best.reduce((a, b) => a + b, 0) / best.length;
}

const checkpoint = await openCheckpoint(file);
const engine = await Engine.create(checkpoint, {
  threads: Number(threads),
  memory: 4 * 2 ** 30,
  precision: "int8",
  cache: "int8",
});
console.log(`milliseconds a token, ${threads} threads`);
console.log(["depth", "method", "token", "tokens/s", ...PARTS, "rest"].join("\t"));
for (const depth of depths.split(",").map(Number)) {
  const tokens = depth > 16384 ? 1024 : 512;
  const list =
    methods || `full;streaming-llm(window=${tokens - 4});quest(tokens=${tokens});quest(tokens=${tokens},group=sum)`;
  for (const method of list.split(";")) {
    const sequence = engine.sequence(engine.compose(resolve(method)));
    fill(sequence, engine, depth);
    const rows = [];
    for (let step = 0; step < Number(steps) + 4; step++) {
      for (const part of PARTS) spent[part] = 0;
      const start = performance.now();
      await engine.decode([{ sequence, id: 65 + (step % 26) }]);
      const whole = performance.now() - start;
      const parts = PARTS.map((part) => spent[part]);
      if (step >= 4) rows.push([whole, ...parts, whole - parts.reduce((a, b) => a + b, 0)]);
    }
    const [whole, ...parts] = rows[0].map((_, i) => quiet(rows.map((row) => row[i])));
    console.log(
      [depth, method, whole.toFixed(2), (1000 / whole).toFixed(1), ...parts.map((x) => x.toFixed(2))].join("\t"),
    );
    sequence.close();
  }
}
await engine.close();
await checkpoint.close();
