// Tensors that read like NumPy, run by ONNX Runtime: attention written out, compiled, run and exported.
import { writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { compile, exportOnnx, input } from "fovea/graph";

const [q, k, v] = ["q", "k", "v"].map((name) => input(name, ["H", "T", 4])); // [H, T, D]
const pattern = q.matmul(k.transpose()).mul(0.5).softmax(-1); // [H, T, T]
const out = pattern.matmul(v); // [H, T, D]

const segment = await compile({ inputs: { q, k, v }, outputs: { out, pattern } });
const feed = (value: number) => ({ data: new Float32Array(2 * 3 * 4).fill(value), dims: [2, 3, 4] });
const result = await segment.run({ q: feed(1), k: feed(2), v: feed(3) });
console.log(result.pattern.dims, Array.from(result.pattern.data as Float32Array, (x) => x.toFixed(3)).slice(0, 3));
console.log(result.out.dims, (result.out.data as Float32Array)[0]);
await segment.release();

const file = join(tmpdir(), "attention.onnx");
await writeFile(file, exportOnnx({ inputs: { q, k, v }, outputs: { out } }));
console.log(`wrote ${file}`);
