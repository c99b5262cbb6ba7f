import { describe, expect, it } from "vitest";
import { command, commandHelp, parseOptions } from "./command.js";
import type { Io } from "./io.js";
import {
  bytes,
  choice,
  decimal,
  flag,
  integer,
  integers,
  methodList,
  splitMethods,
  text,
  UsageError,
} from "./options.js";
import { editDistance, nearest } from "./suggest.js";

const table = {
  prompt: text("the text", "text", { short: "p" }),
  maxTokens: integer("most tokens", { min: 0, fallback: 128, short: "n" }),
  layer: integer("layer", { fallback: -1 }),
  temperature: decimal("0 is greedy", { min: 0 }),
  ids: integers("token ids", "ids", { min: 0 }),
  cache: choice("cache", ["float32", "int8"]),
  memory: bytes("most bytes"),
  methods: methodList("methods", ["full"]),
  json: flag("print JSON"),
};

function parse(...args: string[]) {
  return parseOptions(args, table, "test").values;
}

function testIo(): Io & { printed: string; errors: string } {
  const io = {
    printed: "",
    errors: "",
    out: (written: string) => void (io.printed += written),
    err: (written: string) => void (io.errors += written),
    input: async () => "",
    outTty: false,
    errTty: false,
    columns: 80,
    color: 0 as const,
    signal: new AbortController().signal,
  };
  return io;
}

describe("parseOptions", () => {
  it("fills in the defaults", () => {
    expect(parse()).toEqual({
      prompt: undefined,
      maxTokens: 128,
      layer: -1,
      temperature: undefined,
      ids: undefined,
      cache: undefined,
      memory: undefined,
      methods: ["full"],
      json: false,
    });
  });

  it("reads long, short, joined and separate values", () => {
    expect(parse("-p", "hello", "--max-tokens=5", "--json")).toMatchObject({
      prompt: "hello",
      maxTokens: 5,
      json: true,
    });
    expect(parse("-phello", "-n", "7")).toMatchObject({ prompt: "hello", maxTokens: 7 });
  });

  it("takes values that begin with a dash", () => {
    expect(parse("--layer", "-2", "-p", "- a list").layer).toBe(-2);
    expect(parse("-p", "- a list").prompt).toBe("- a list");
    expect(parse("-p", "--- title").prompt).toBe("--- title");
  });

  it("keeps backslashes and spaces of a path", () => {
    expect(parse("-p", "C:\\models\\my model.gguf").prompt).toBe("C:\\models\\my model.gguf");
  });

  it("reads lists, sizes and short lengths", () => {
    expect(parse("--ids", "1, 2,3 4").ids).toEqual([1, 2, 3, 4]);
    expect(parse("--ids", "512,8k").ids).toEqual([512, 8192]);
    expect(parse("--memory", "1.5GB").memory).toBe(1.5 * 1024 ** 3);
    expect(parse("--memory", "800").memory).toBe(800);
    expect(parse("--methods", "full,a(x=1,y=2)+b").methods).toEqual(["full", "a(x=1,y=2)+b"]);
  });

  it("gives positionals, also behind --", () => {
    expect(parseOptions(["speed", "--json", "--", "--prompt"], table, "test").positionals).toEqual([
      "speed",
      "--prompt",
    ]);
  });

  it.each([
    [["--promt", "x"], "unknown option --promt", "--prompt"],
    [["-x"], "unknown option -x", "--help"],
    [["--prompt"], "--prompt needs a value", "--help"],
    [["--prompt", "--json"], "--prompt needs a value", "--help"],
    [["--json=yes"], "--json takes no value", ""],
    [["-n", "many"], "--max-tokens takes a whole number", ""],
    [["-n", "1.5"], "--max-tokens takes a whole number", ""],
    [["-n", "-1"], "of at least 0", ""],
    [["-n", ""], "--max-tokens takes a whole number", ""],
    [["--temperature", "NaN"], "--temperature takes a number", ""],
    [["--temperature", "Infinity"], "--temperature takes a number", ""],
    [["--ids", "1,x"], "--ids takes a whole number", ""],
    [["--ids", ","], "--ids takes whole numbers", ""],
    [["--cache", "int4"], "--cache is one of float32, int8", ""],
    [["--memory", "much"], "--memory takes a number of bytes", ""],
    [["--memory", "0"], "--memory takes a number of bytes", ""],
  ])("refuses %j", (args, message, hint) => {
    const error = catchError(() => parse(...args));
    expect(error).toBeInstanceOf(UsageError);
    expect((error as UsageError).message).toContain(message);
    expect((error as UsageError).hint ?? "").toContain(hint);
  });
});

function catchError(run: () => unknown): unknown {
  try {
    run();
  } catch (error) {
    return error;
  }
  return undefined;
}

describe("command", () => {
  const hello = command({
    name: "hello",
    summary: "greet",
    positionals: [{ name: "who", help: "whom to greet" }],
    options: { loud: flag("shout", { short: "l" }), times: integer("how often", { min: 1, fallback: 1 }) },
    examples: ["fovea hello world"],
    async run({ loud, times }, [who], io) {
      io.out(`${loud ? who.toUpperCase() : who}\n`.repeat(times));
      return 0;
    },
  });

  it("hands values, positionals and io to run", async () => {
    const io = testIo();
    expect(await hello.run(["world", "-l", "--times", "2"], io)).toBe(0);
    expect(io.printed).toBe("WORLD\nWORLD\n");
  });

  it("generates --help from the table", async () => {
    const io = testIo();
    expect(await hello.run(["--help"], io)).toBe(0);
    expect(io.printed).toBe(commandHelp(hello));
    expect(io.printed).toBe(
      [
        "usage: fovea hello <who> [options]",
        "",
        "greet",
        "",
        "  who  whom to greet",
        "",
        "options:",
        "  -l, --loud       shout",
        "      --times <n>  how often (default 1)",
        "  -h, --help       show this help",
        "",
        "examples:",
        "  fovea hello world",
        "",
      ].join("\n"),
    );
  });

  it("refuses missing and superfluous words", async () => {
    await expect(hello.run([], testIo())).rejects.toThrow("needs <who>");
    await expect(hello.run(["a", "b"], testIo())).rejects.toThrow('does not take "b"');
  });
});

describe("suggestions", () => {
  it("counts edits", () => {
    expect(editDistance("kitten", "sitting")).toBe(3);
    expect(editDistance("", "abc")).toBe(3);
    expect(editDistance("same", "same")).toBe(0);
  });

  it("finds the nearest word, or none", () => {
    expect(nearest("genrate", ["generate", "score"])).toBe("generate");
    expect(nearest("meth", ["methods", "bench"])).toBe("methods");
    expect(nearest("xyzzy", ["generate", "score"])).toBeUndefined();
  });
});

describe("splitMethods", () => {
  it("splits at commas outside brackets", () => {
    expect(splitMethods("a(x=1,y=[1,2]),b , ")).toEqual(["a(x=1,y=[1,2])", "b"]);
  });
});
