// Compiles src/kernels/assembly to WebAssembly, once with shared memory (threads) and once without, and writes both as
// base64 into src/kernels/wasm.generated.js, which is not under version control, and into dist/kernels.
import { mkdir, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import asc from "assemblyscript/asc";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const common = [
  "src/kernels/assembly/index.ts",
  "--baseDir",
  root,
  ...["--runtime", "stub", "--importMemory", "--noExportMemory", "--initialMemory", "1"],
  ...["--enable", "simd", "--enable", "threads", "-O3", "--noAssert"],
];

/** Returns the module's bytes in base64. */
async function compile(...options) {
  let bytes;
  const { error, stderr } = await asc.main([...common, "--outFile", "kernels.wasm", ...options], {
    writeFile: (_name, data) => {
      bytes = data;
    },
  });
  if (error || !bytes) {
    process.stderr.write(`${stderr}\n`);
    throw error ?? new Error("the AssemblyScript compiler wrote nothing");
  }
  return Buffer.from(bytes).toString("base64");
}

const shared = await compile("--sharedMemory", "--maximumMemory", "65536");
const single = await compile();
const source = `// Written by scripts/build-kernels.mjs from src/kernels/assembly.
export const shared = "${shared}";
export const single = "${single}";
`;
for (const folder of ["src/kernels", "dist/kernels"]) {
  await mkdir(join(root, folder), { recursive: true });
  await writeFile(join(root, folder, "wasm.generated.js"), source);
}
