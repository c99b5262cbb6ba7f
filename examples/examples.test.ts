import { spawnSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));

/** What each example must print. They run the built package on models/tiny, whose answers are known. */
const EXPECTED: Readonly<Record<string, readonly (string | RegExp)[]>> = {
  "generate.ts": ["At noon the tide turns and the ferry leaves", /^(stop|length); \d+ tokens; cache of \d+ bytes/m],
  "read-once.ts": [
    "The keeper of the south light is Ivo Brandt.",
    "The name of the pilot boat is Kestrel.",
    "opened again: The captain of the ferry is Johanna Lind.",
  ],
  "observe.ts": [
    /layer 0 head 0: 0\.0\d\d on the passage/,
    /layer 1 head 3: (1\.000|0\.9\d\d) on the passage/,
    'the last token reads " 4417" with weight',
  ],
  "sparse.ts": [/^full: rings at/m, /^streaming-llm\(.*\): rings at/m],
  "own-method.ts": [/^full: blue$/m, /^recent\(window=64\): blue$/m, /^recent\(window=4\):(?! blue)/m],
  "own-mechanism.ts": [
    /^accuracy (0\.[6-9]\d|1\.00)$/m,
    /^squared\.onnx, \d+ bytes$/m,
    /^\d+ was given (\d+); the model says \1$/m,
  ],
  "score.ts": [/^sum -\d+\.\d{3}$/m, /^ green: -0\.\d+$/m, /^ blue: -\d\d/m],
  "train.ts": [/^loss [56]\.\d\d -> 0\.[0-4]\d$/m, "Logbook of Saint Brannoc Harbour, kept by the harbour office"],
  "graph.ts": [/\[ 2, 3, 3 \] \[ '0\.333', '0\.333', '0\.333' \]/, /\[ 2, 3, 4 \] 3/, "attention.onnx"],
};

describe.skipIf(!existsSync(new URL("../dist/index.js", import.meta.url)))("examples", () => {
  it("are all in the table", () => {
    const files = readdirSync(fileURLToPath(new URL(".", import.meta.url))).filter((name) => name.endsWith(".ts"));
    expect(files.filter((name) => !name.endsWith(".test.ts")).sort()).toEqual(Object.keys(EXPECTED).sort());
  });

  it.each(Object.keys(EXPECTED))("%s", (name) => {
    const args = ["scripts/run.mjs", `examples/${name}`];
    const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd: root, encoding: "utf8" });
    expect(stderr).toBe("");
    expect(status).toBe(0);
    for (const expected of EXPECTED[name]) expect(stdout).toMatch(expected);
  });
});
