import { type SpawnOptions, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { cp, mkdir, mkdtemp, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));
const main = join(root, "dist", "cli", "main.js");
const stories = join(root, "..", "shared", "checkpoints", "stories260K");
const harbour = join(root, "examples", "harbour.txt");
const QUESTION = "The keeper of the north light is";
const COMMANDS = [
  "generate",
  "score",
  "inspect",
  "attention",
  "attribute",
  "convert",
  "export",
  "methods",
  "train",
  "plot",
  "bench",
];

interface Ended {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

interface Options {
  readonly input?: string;
  readonly env?: Readonly<Record<string, string>>;
  /** Called with stdout so far; may end the process. */
  readonly onOut?: (out: string, kill: (signal: NodeJS.Signals) => void, close: () => void) => void;
}

function fovea(args: readonly string[], { input, env, onOut }: Options = {}): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const options: SpawnOptions = {
      cwd: root,
      env: { ...process.env, FOVEA_MODEL: "tiny", ...env },
      stdio: "pipe",
    };
    const child = spawn(process.execPath, [main, ...args], options);
    let [out, err] = ["", ""];
    child.stdout?.setEncoding("utf8").on("data", (chunk: string) => {
      out += chunk;
      onOut?.(
        out,
        (signal) => child.kill(signal),
        () => child.stdout?.destroy(),
      );
    });
    child.stderr?.setEncoding("utf8").on("data", (chunk: string) => {
      err += chunk;
    });
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, out, err }));
    child.stdin?.on("error", () => {});
    child.stdin?.end(input ?? "");
  });
}

async function foveaJson<T>(...args: string[]): Promise<T> {
  const { code, out, err } = await fovea([...args, "--json"]);
  expect(err).toBe("");
  expect(code).toBe(0);
  return JSON.parse(out) as T;
}

let folder: string;
let report: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "fovea-cli-"));
  report = await readFile(harbour, "utf8");
});
afterAll(() => rm(folder, { recursive: true, force: true }));

interface Generated {
  readonly prompt_ids: number[];
  readonly ids: number[];
  readonly text: string;
  readonly timings: Record<string, number>;
  readonly cache_bytes: number;
}

describe.skipIf(!existsSync(main))("fovea", () => {
  it("shows help and version", async () => {
    const help = await fovea([]);
    expect(help.code).toBe(0);
    for (const name of COMMANDS) expect(help.out).toContain(`  ${name} `);
    expect((await fovea(["--version"])).out).toMatch(/^\d+\.\d+\.\d+\n$/);
  });

  it.each(COMMANDS)("shows help of %s", async (name) => {
    const { code, out, err } = await fovea([name, "--help"]);
    expect([code, err]).toEqual([0, ""]);
    expect(out).toContain(`usage: fovea ${name}`);
    expect(out).toContain("--json");
    expect((await fovea(["help", name])).out).toBe(out);
  });
});

describe.skipIf(!existsSync(main))("fovea generate", () => {
  it("continues a text, as text and as JSON", async () => {
    const prompt = `${report}\n${QUESTION}`;
    const human = await fovea(["generate", "--file", "-", "--stop", "."], { input: prompt });
    expect([human.code, human.out, human.err]).toEqual([0, " Ada Moreau\n", ""]);
    await writeFile(join(folder, "prompt.txt"), prompt);
    const answer = await foveaJson<Generated>("generate", "-f", join(folder, "prompt.txt"), "--stop", ".");
    expect(answer.text).toBe(" Ada Moreau");
    expect(answer.prompt_ids[0]).toBe(0);
    expect(answer.timings).toMatchObject({ prompt_tokens: answer.prompt_ids.length });
    expect(answer.cache_bytes).toBeGreaterThan(0);
    const byIds = await foveaJson<Generated>("generate", "--ids", answer.prompt_ids.join(), "-n", "2");
    expect(byIds.ids).toEqual(answer.ids.slice(0, 2));
    expect(byIds.prompt_ids).toEqual(answer.prompt_ids);
  });

  it("attaches methods: what left the window is gone", async () => {
    const prompt = `${report}\n${QUESTION}`;
    const text = async (attention: string): Promise<string> =>
      (await foveaJson<Generated>("generate", "-p", prompt, "--stop", ".", "-a", attention)).text;
    expect(await text("full")).toBe(" Ada Moreau");
    expect(await text("streaming-llm(sinks=4,window=4096)")).toBe(" Ada Moreau");
    expect(await text("streaming-llm(sinks=4,window=64)")).not.toContain("Ada");
  });

  it("samples the same with the same seed", async () => {
    const sample = (seed: string): Promise<Generated> =>
      foveaJson("generate", "-p", "The harbour", "--temperature", "3", "--seed", seed, "-n", "16", "--ignore-eos");
    const [a, b, c] = [await sample("1"), await sample("1"), await sample("2")];
    expect(b.ids).toEqual(a.ids);
    expect(c.ids).not.toEqual(a.ids);
  });

  it("ends cleanly on Ctrl-C", async () => {
    let sent = false;
    const args = ["generate", "-p", "a a a a", "-n", "3000", "--ignore-eos"];
    const { code, err } = await fovea(args, {
      onOut: (_out, kill) => {
        if (!sent) kill("SIGINT");
        sent = true;
      },
    });
    expect([code, err]).toEqual([130, ""]);
  });

  it("ends quietly when the reader goes away", async () => {
    const args = ["generate", "-p", "a a a a", "-n", "3000", "--ignore-eos"];
    const { code, err } = await fovea(args, { onOut: (_out, _kill, close) => close() });
    expect([code, err]).toEqual([0, ""]);
  });
});

describe.skipIf(!existsSync(main))("fovea score", () => {
  interface Scored {
    readonly tokens: { readonly id: number; readonly text: string; readonly logprob: number }[];
    readonly logprob: number;
  }

  it("gives each token's log-probability and the sum", async () => {
    const { tokens, logprob } = await foveaJson<Scored>("score", "-p", "one two three four, one two three four");
    expect(tokens.map(({ text }) => text).join("")).toContain("one two three four");
    expect(tokens[0].logprob).toBe(0);
    for (const token of tokens) expect(token.logprob).toBeLessThanOrEqual(0);
    expect(logprob).toBeCloseTo(
      tokens.reduce((sum, token) => sum + token.logprob, 0),
      3,
    );
    // What stood there before is certain.
    expect(tokens.at(-1)?.logprob).toBeGreaterThan(-0.1);
    const { out } = await fovea(["score", "-p", "one two"]);
    expect(out).toMatch(/sum -?\d/);
  });
});

describe.skipIf(!existsSync(main))("fovea inspect", () => {
  it("describes the model", async () => {
    const info = await foveaJson<Record<string, unknown>>("inspect");
    expect(info).toMatchObject({
      family: "llama",
      shape: { layers: 2, width: 160, heads: 4, kvHeads: 1, headDim: 128 },
    });
    expect(info.parameters).toBeGreaterThan(600_000);
    const { out } = await fovea(["inspect"]);
    expect(out).toContain("llama");
    expect(out).toContain("cache");
  });
});

describe.skipIf(!existsSync(main))("fovea attention", () => {
  it("draws in the terminal", async () => {
    const { code, out } = await fovea(["attention", "-p", "a b c d a b", "--layer", "0", "--head", "0"]);
    expect(code).toBe(0);
    expect(out).toContain("layer 0, head 0; the last token reads");
    expect(out).not.toContain("\x1b");
    const colored = await fovea(["attention", "-p", "a b c d a b"], { env: { FORCE_COLOR: "3" } });
    expect(colored.out).toContain("\x1b[48;2;");
  });

  it("writes SVG and JSON, and leaves no temporary file", async () => {
    const out = join(folder, "maps");
    await mkdir(out);
    const prompt = ["-p", "a b c d a b", "--layer", "0", "--head", "0"];
    expect((await fovea(["attention", ...prompt, "--out", join(out, "map.svg")])).code).toBe(0);
    expect((await fovea(["attention", ...prompt, "--out", join(out, "map.json")])).code).toBe(0);
    expect((await readdir(out)).sort()).toEqual(["map.json", "map.svg"]);
    expect(await readFile(join(out, "map.svg"), "utf8")).toMatch(/^<svg [\s\S]*<\/svg>\n$/);
    const map = JSON.parse(await readFile(join(out, "map.json"), "utf8"));
    expect(map).toMatchObject({ layer: 0, head: 0, rows: map.tokens.length, columns: map.tokens.length });
    for (const [i, row] of (map.data as number[][]).entries()) {
      expect(row.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 4);
      expect(row.slice(i + 1).every((weight) => weight === 0)).toBe(true);
      // Head 0 of layer 0 reads the token before.
      if (i > 1) expect(row[i - 1]).toBeGreaterThan(0.99);
    }
  });
});

describe.skipIf(!existsSync(main))("fovea methods", () => {
  it("lists the catalog", async () => {
    const methods = await foveaJson<Record<string, unknown>[]>("methods");
    for (const method of methods) {
      for (const key of ["name", "paper", "family", "hooks", "parameters"]) expect(method).toHaveProperty(key);
    }
    expect(methods.map(({ name }) => name)).toEqual(expect.arrayContaining(["full", "streaming-llm"]));
    expect((await fovea(["methods", "streaming-llm"])).out).toContain("sinks");
  });
});

describe.skipIf(!existsSync(main))("fovea convert and export", () => {
  it.each(["tiny.gguf", "tiny-q8_0.gguf", "tiny-folder"])("writes %s, which answers the same", async (name) => {
    const file = join(folder, name);
    const type = name.includes("q8_0") ? ["--type", "q8_0"] : [];
    const { code, err } = await fovea(["convert", "--out", file, ...type]);
    expect([code, err.includes("error")]).toEqual([0, false]);
    const text = `${report}\n${QUESTION}`;
    const answer = await foveaJson<Generated>("generate", "-m", file, "-p", text, "--stop", ".");
    expect(answer.text).toBe(" Ada Moreau");
  });

  it("exports an .onnx file", async () => {
    const file = join(folder, "tiny.onnx");
    const { code } = await fovea(["export", "--out", file]);
    expect(code).toBe(0);
    const { InferenceSession } = await import("onnxruntime-node");
    const session = await InferenceSession.create(file);
    expect(session.inputNames).toContain("ids");
    expect(session.outputNames).toContain("logits");
    await session.release();
  });
});

describe.skipIf(!existsSync(main))("fovea bench speed", () => {
  it("measures ours", async () => {
    const { rows, ratios } = await foveaJson<{ rows: Record<string, unknown>[]; ratios: unknown[] }>(
      ...["bench", "speed", "--depths", "32,64", "--runs", "2", "--decode-tokens", "4"],
      ...["--methods", "full,streaming-llm(sinks=2,window=16)"],
    );
    expect(rows.length).toBe(4);
    expect(ratios).toEqual([]);
    for (const row of rows) {
      expect(row).toMatchObject({ engine: "fovea", runs: 2 });
      for (const key of ["prefill_tps", "decode_tps", "cache_bytes"]) expect(row[key]).toBeGreaterThan(0);
    }
  });
});

describe.skipIf(!existsSync(main))("bad input", () => {
  const usage: [string, string[], string, string][] = [
    ["an unknown command", ["genrate"], 'unknown command "genrate"', 'did you mean "fovea generate"'],
    ["an unknown option", ["generate", "--promt", "x"], "unknown option --promt", "did you mean --prompt"],
    ["no prompt", ["generate"], "no text was given", "--ids"],
    ["two prompts", ["generate", "-p", "x", "--ids", "1"], "not several", ""],
    ["an empty prompt", ["generate", "-p", ""], "the text is empty", ""],
    ["a bare word", ["generate", "hello"], 'does not take "hello"', "-p"],
    ["no number", ["generate", "-p", "x", "-n", "many"], "--max-tokens takes a whole number", ""],
    ["a temperature below 0", ["generate", "-p", "x", "-t", "-1"], "--temperature takes a number", ""],
    ["a wrong choice", ["generate", "-p", "x", "--cache", "int3"], "--cache is one of", ""],
    ["no such layer", ["attention", "-p", "x", "--layer", "9"], "there is no layer 9", ""],
    ["no such head", ["attention", "-p", "x", "--head", "4"], "there is no head 4", ""],
    ["rows past the text", ["attention", "-p", "x", "--rows", "0:99"], "--rows ends at 99", ""],
    ["a picture of no known type", ["attention", "-p", "x", "--out", "map.png"], "--out writes .svg or .json", ""],
    ["a bench of something else", ["bench", "sped"], "fovea bench measures speed", ""],
  ];
  it.each(usage)("%s", async (_name, args, message, hint) => {
    const { code, out, err } = await fovea(args);
    expect(err).toContain(message);
    expect(err).toContain(hint);
    expect(err).not.toContain("    at ");
    expect([code, out]).toEqual([2, ""]);
  });

  const refused: [string, string[], string][] = [
    ["an unknown method", ["generate", "-p", "x", "-a", "streming-llm"], "streaming-llm"],
    ["an unknown parameter", ["generate", "-p", "x", "-a", "streaming-llm(sink=4)"], "sinks"],
    ["a parameter out of range", ["generate", "-p", "x", "-a", "streaming-llm(window=0)"], "window"],
    ["an open bracket", ["generate", "-p", "x", "-a", "streaming-llm(sinks=4"], ""],
    ["no such model", ["generate", "-p", "x", "-m", "./nowhere"], "nowhere"],
    ["no such file", ["generate", "--file", "./nowhere.txt"], "nowhere.txt: there is no such file"],
    ["a folder as text", ["generate", "--file", "src"], "it is a folder"],
    ["an id beyond the vocabulary", ["generate", "--ids", "1,999999"], "999999"],
    ["an unknown method to show", ["methods", "streming-llm"], "did you mean streaming-llm"],
    ["a picture in no folder", ["attention", "-p", "x", "--out", "nowhere/map.svg"], "cannot write"],
    ["too little memory", ["generate", "-p", "x", "--memory", "1k"], "memory"],
  ];
  it.each(refused)("%s", async (_name, args, message) => {
    const { code, out, err } = await fovea(args);
    expect(err).toMatch(/^error: /);
    expect(err).toContain(message);
    expect(err).not.toContain("    at ");
    expect([code, out]).toEqual([1, ""]);
  });

  it("a broken checkpoint names the file and what is wrong", async () => {
    const broken = join(folder, "broken");
    await cp(join(root, "models", "tiny"), broken, { recursive: true });
    await truncate(join(broken, "model.safetensors"), 10_000);
    const cut = await fovea(["generate", "-p", "x", "-m", broken]);
    expect([cut.code, cut.out]).toEqual([1, ""]);
    expect(cut.err).toContain("model.safetensors");
    await writeFile(join(broken, "config.json"), "{");
    const config = await fovea(["inspect", "-m", broken]);
    expect([config.code, config.out]).toEqual([1, ""]);
    expect(config.err).toContain("config.json");
    expect(config.err).not.toContain("    at ");
  });

  it("shows the stack when asked to", async () => {
    const { err } = await fovea(["generate", "-p", "x", "-m", "./nowhere"], { env: { FOVEA_DEBUG: "1" } });
    expect(err).toContain("    at ");
  });
});

describe.skipIf(!existsSync(main) || !existsSync(stories))("stories260K by the commands", () => {
  it("gives the reference's ids and greedy text", async () => {
    const reference = JSON.parse(await readFile(join(stories, "reference.json"), "utf8"));
    const greedy: number[] = reference.greedy_ids ?? reference.greedy;
    const answer = await foveaJson<Generated>(
      "generate",
      "-m",
      stories,
      "-p",
      reference.prompt,
      "-n",
      String(greedy.length),
    );
    expect(answer.prompt_ids).toEqual(reference.prompt_ids);
    expect(answer.ids).toEqual(greedy);
  });
});
