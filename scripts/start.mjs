/**
 * npm start: installs and builds what is missing, then lets the embedded model answer a question about a document, and shows
 * the lines that its attention rested on, and full attention beside a sparse method.
 */
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const DOCUMENT = "examples/logbook.txt";
const SPARSE = "snapkv(capacity=256)";
/** The questions that are asked where none is given: `npm start -- "Who ...?"` asks another. */
const QUESTIONS =
  process.argv.length > 2
    ? process.argv.slice(2)
    : ["What did Marta Ostrow paint?", "What is the price of the spare anchor?"];

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
    { ask },
    { parseHeadList },
    { evidenceLines },
    { colorDepth },
    { formatBytes, formatNumber, table },
  ] = await Promise.all(
    [
      ...["index.js", "context/index.js", "attention/index.js", "cli/commands/ask.js", "cli/io.js"],
      "cli/format.js",
    ].map((file) => import(`../dist/${file}`)),
  );
  const document = { name: DOCUMENT, text: readFileSync(join(root, DOCUMENT), "utf8") };
  const color = colorDepth(process.stdout.isTTY === true, process.env);
  const bold = (text) => (color ? `\x1b[1m${text}\x1b[0m` : text);
  const model = await load("nano");
  try {
    const { parameters, shape } = model.info;
    const list = join(root, "models", "nano", "methods", "retrieval.json");
    const heads = existsSync(list) ? parseHeadList(readFileSync(list, "utf8"), shape, list) : undefined;
    console.log(`nano (${(parameters / 1e6).toFixed(1)}M parameters) reads ${DOCUMENT}:\n`);
    const rows = [];
    for (const question of QUESTIONS)
      for (const method of ["full", SPARSE]) {
        const options = { question, documents: [document], heads, attention: method };
        const answer = await ask(model, options);
        if (method === "full") {
          console.log(`  ${question} ${bold(answer.text || "(no answer)")}\n`);
          for (const line of evidenceLines(answer, false)) console.log(`  ${line}`);
          console.log("");
        }
        rows.push([
          method,
          answer.text || "(none)",
          `${formatNumber(answer.tokens_read)} of ${answer.depth}`,
          `${Math.round((100 * answer.tokens_read) / answer.depth)}%`,
          formatNumber(await speed(model.with(method), document.text)),
          formatBytes(answer.cache_bytes),
        ]);
      }
    console.log(
      table(["attention", "answer", "tokens read", "share of the cache", "ms/token", "cache"], rows, [2, 3, 4, 5]),
    );
  } finally {
    await model.close();
  }
}

/** Milliseconds of a token behind a text, over more tokens than an answer has. */
async function speed(model, text) {
  const { timings } = await model.generate(text, { maxTokens: 64, ignoreEos: true }).result;
  return 1000 / timings.decode_tps;
}
