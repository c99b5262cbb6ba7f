/**
 * npm start: installs and builds what is missing, then shows Fovea at work on the model in models/tiny: the text that it
 * writes, what its attention read, and speed and cache of full attention beside a sparse method.
 */
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const QUESTION = process.argv[2] ?? "The keeper of the north light is";
const SPARSE = "streaming-llm(sinks=4,window=128)";

const [major] = process.versions.node.split(".").map(Number);
if (major < 20) {
  console.error(`Fovea needs Node 20 or newer; this is ${process.version}.`);
  process.exit(1);
}
prepare();
await main();

/** Installs dependencies and builds, where that has not been done since the sources changed. */
function prepare() {
  if (!existsSync(join(root, "node_modules"))) npm("ci");
  const built = join(root, "dist", "cli", "main.js");
  if (!existsSync(built) || statSync(built).mtimeMs < newest(join(root, "src"))) npm("run", "build");
}

function newest(folder) {
  let latest = 0;
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    latest = Math.max(latest, entry.isDirectory() ? newest(path) : statSync(path).mtimeMs);
  }
  return latest;
}

function npm(...args) {
  console.error(`npm ${args.join(" ")} ...`);
  const { status, error } = spawnSync("npm", args, {
    cwd: root,
    stdio: ["ignore", "ignore", "inherit"],
    shell: process.platform === "win32",
  });
  if (status === 0) return;
  console.error(`npm ${args.join(" ")} failed${error ? `: ${error.message}` : ""}`);
  process.exit(status ?? 1);
}

async function main() {
  const [
    { load },
    { terminalMap, mostRead },
    { mapReducer },
    { colorDepth },
    { formatBytes, formatNumber, table, visible },
  ] = await Promise.all(
    ["index.js", "cli/heatmap.js", "cli/map-reducer.js", "cli/io.js", "cli/format.js"].map(
      (file) => import(`../dist/${file}`),
    ),
  );
  const report = readFileSync(join(root, "examples", "harbour.txt"), "utf8");
  const color = colorDepth(process.stdout.isTTY === true, process.env);
  const bold = (text) => (color ? `\x1b[1m${text}\x1b[0m` : text);
  const model = await load(join(root, "models", "tiny"));
  try {
    const { parameters, shape } = model.info;
    console.log(`models/tiny: ${parameters} parameters, ${shape.layers} layers, ${shape.heads} heads. Its weights are`);
    console.log("not trained but written by scripts/make-tiny.ts: it copies what followed the same words before.\n");

    const text = `${report}\n${QUESTION}`;
    const prompt = model.prompt(text);
    const measured = [];
    for (const method of ["full", SPARSE]) {
      const attached = model.with(method);
      const { text: answer, finish } = await attached.generate(prompt, { maxTokens: 24, stop: ["."] }).result;
      if (method === "full") {
        console.log(`After ${prompt.ids.length} tokens, examples/harbour.txt and one line more, it writes:\n`);
        console.log(`  ${QUESTION}${bold(answer)}${finish === "stop" ? "." : ""}\n`);
      }
      // Speed over more tokens than an answer has.
      const { timings, cache_bytes } = await attached.generate(prompt, { maxTokens: 64, ignoreEos: true }).result;
      measured.push([
        method,
        answer.trim() || "(none)",
        formatNumber(timings.prefill_tps),
        formatNumber(timings.decode_tps),
        formatBytes(cache_bytes),
      ]);
    }

    const layer = shape.layers - 1;
    const head = shape.heads - 1;
    const last = prompt.ids.length - 1;
    const tokens = prompt.ids.map((id) => model.tokenizer.piece(id));
    const rows = [Math.max(0, last - 5), last + 1];
    const { map } = await model.observe(prompt, { map: mapReducer({ layer, head, rows, cells: 1024 }) });
    console.log(`What the last words read (layer ${layer}, head ${head}; the text runs from left to right):\n`);
    console.log(terminalMap(map, { tokens, width: Math.min(process.stdout.columns || 80, 120), color }));
    for (const { index, weight } of mostRead(map.last, 1)) {
      const around = tokens.slice(Math.max(0, index - 6), index).join("");
      const read = visible(`${around}[${tokens[index]}]`);
      console.log(
        `"${visible(tokens[last])}" gives ${(weight * 100).toFixed(1)}% of its attention to token ${index}: ...${read}\n`,
      );
    }
    console.log(table(["attention", "answer", "tokens read/s", "written/s", "cache"], measured, [2, 3, 4]));
    console.log(`${SPARSE} keeps 4 + 128 tokens: the cache is smaller, and what lies further back is gone.`);
  } finally {
    await model.close();
  }
}
