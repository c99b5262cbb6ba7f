import { parseArgs } from "node:util";
import { FoveaError } from "../error.js";
import { readText } from "./files.js";
import type { Io } from "./io.js";
import { flag, kebab, type Option, type OptionTable, type OptionValues, UsageError } from "./options.js";
import { nearest } from "./suggest.js";

/** A command as a table: its help text is generated from it. */
export interface Command {
  readonly name: string;
  /** One line for the list of commands. */
  readonly summary: string;
  /** Shown under the usage line. */
  readonly about?: string;
  readonly positionals?: readonly Positional[];
  readonly options: OptionTable;
  readonly examples?: readonly string[];
  /** Resolves to the exit code. */
  run(args: readonly string[], io: Io): Promise<number>;
}

export interface Positional {
  readonly name: string;
  readonly help: string;
  readonly optional?: boolean;
  /** One or more may stand here. */
  readonly many?: boolean;
}

interface Definition<O extends OptionTable> {
  readonly name: string;
  readonly summary: string;
  readonly about?: string;
  readonly positionals?: readonly Positional[];
  readonly options: O;
  readonly examples?: readonly string[];
  run(values: OptionValues<O>, positionals: readonly string[], io: Io): Promise<number | undefined>;
}

const HELP = { help: flag("show this help", { short: "h" }) };

/** Makes a command of its definition: parsing, --help and the error messages come from the table. */
export function command<const O extends OptionTable>(definition: Definition<O>): Command {
  const made: Command = {
    ...definition,
    options: { ...definition.options, ...HELP },
    async run(args, io) {
      const given = parseOptions(args, made.options, definition.name);
      const { positionals } = given;
      if (given.values.help) {
        io.out(commandHelp(made));
        return 0;
      }
      const values = await withConfig(given, made.options);
      checkPositionals(positionals, definition.positionals ?? [], definition.name);
      return (await definition.run(values as OptionValues<O>, positionals, io)) ?? 0;
    },
  };
  return made;
}

/**
 * Reads a command line against a table of options.
 * @throws UsageError naming the option that is unknown, lacks its value or has a wrong one
 */
export function parseOptions<const O extends OptionTable>(
  args: readonly string[],
  options: O,
  commandName: string,
): { values: OptionValues<O>; positionals: string[]; set: ReadonlySet<string> } {
  const names = new Map(Object.keys(options).map((name) => [kebab(name), name]));
  const shorts = new Map(Object.entries(options).flatMap(([name, { short }]) => (short ? [[short, name]] : [])));
  const { tokens } = parseArgs({
    args: joinValues(args, options, names, shorts),
    options: Object.fromEntries(
      Object.entries(options).map(([name, { value, short }]) => [
        kebab(name),
        { type: value === undefined ? "boolean" : "string", ...(short ? { short } : {}) } as const,
      ]),
    ),
    strict: false,
    allowPositionals: true,
    tokens: true,
  });
  const values: Record<string, unknown> = {};
  for (const [name, option] of Object.entries(options)) values[name] = option.fallback;
  const positionals: string[] = [];
  const set = new Set<string>();
  for (const token of tokens) {
    if (token.kind === "positional") positionals.push(token.value);
    if (token.kind !== "option") continue;
    const name = names.get(token.name);
    if (name === undefined) throw unknownOption(token.rawName, names.keys(), commandName);
    const option: Option<unknown> = options[name];
    if (option.value === undefined && token.value !== undefined) {
      throw new UsageError(`--${token.name} takes no value, got "${token.value}"`);
    }
    // A value that stands apart was joined above, unless it is a flag itself.
    if (option.value !== undefined && !token.inlineValue) {
      throw new UsageError(`--${token.name} needs a value: --${token.name} <${option.value}>`, hintFor(commandName));
    }
    values[name] = option.parse(token.value ?? "", token.name);
    set.add(name);
  }
  return { values: values as OptionValues<O>, positionals, set };
}

/**
 * Values with those of the file that --config names, where a command has that option: what the command line gives wins.
 * @throws FoveaError `bad-file` where the file holds no object of the command's options
 */
async function withConfig<O extends OptionTable>(
  { values, set }: { values: OptionValues<O>; set: ReadonlySet<string> },
  options: OptionTable,
): Promise<OptionValues<O>> {
  const file = (values as Record<string, unknown>).config;
  if (typeof file !== "string" || !("config" in options)) return values;
  const bad = (message: string) =>
    new FoveaError("bad-file", `--config: ${file} ${message}`, {
      hint: 'it holds options as JSON, for example {"attention": "quest(tokens=512)", "cache": "int8"}',
    });
  let found: unknown;
  const content = await readText(file);
  try {
    found = JSON.parse(content);
  } catch {
    throw bad("is no JSON");
  }
  if (typeof found !== "object" || found === null || Array.isArray(found)) throw bad("is no object");
  const merged: Record<string, unknown> = { ...values };
  for (const [name, value] of Object.entries(found)) {
    const key = Object.keys(options).find((one) => one === name || kebab(one) === name);
    if (key === undefined || key === "config") throw bad(`sets "${name}", which this command does not take`);
    if (typeof value === "object") throw bad(`gives "${name}" no text, number or truth value`);
    if (!set.has(key)) merged[key] = options[key].parse(String(value), kebab(key));
  }
  return merged as OptionValues<O>;
}

/**
 * Writes `--name value` as `--name=value`, so that a value may begin with a dash (a negative number, a Markdown list as
 * a prompt), unless it is itself one of the command's flags.
 */
function joinValues(
  args: readonly string[],
  options: OptionTable,
  names: ReadonlyMap<string, string>,
  shorts: ReadonlyMap<string, string>,
): string[] {
  const nameOf = (arg: string): string | undefined => {
    if (arg.startsWith("--")) return names.get(arg.slice(2));
    return arg.length === 2 && arg.startsWith("-") ? shorts.get(arg[1]) : undefined;
  };
  const joined: string[] = [];
  for (let i = 0; i < args.length; i++) {
    if (args[i] === "--") return [...joined, ...args.slice(i)];
    const name = nameOf(args[i]);
    const next = args[i + 1];
    if (name !== undefined && options[name].value !== undefined && next !== undefined && nameOf(next) === undefined) {
      joined.push(`--${kebab(name)}=${next}`);
      i++;
    } else joined.push(args[i]);
  }
  return joined;
}

function hintFor(commandName: string): string {
  return `fovea ${commandName} --help lists its options`;
}

function unknownOption(given: string, known: Iterable<string>, commandName: string): UsageError {
  const meant = nearest(given.replace(/^-+/, ""), known);
  const hint = hintFor(commandName);
  return new UsageError(
    `unknown option ${given} for fovea ${commandName}`,
    meant ? `did you mean --${meant}? ${hint}` : hint,
  );
}

function checkPositionals(given: readonly string[], wanted: readonly Positional[], commandName: string): void {
  const missing = wanted.find((positional, i) => !positional.optional && given.length <= i);
  if (missing)
    throw new UsageError(`fovea ${commandName} needs <${missing.name}>: ${missing.help}`, hintFor(commandName));
  if (given.length > wanted.length && !wanted.some(({ many }) => many)) {
    const extra = given[wanted.length];
    const hint = wanted.length === 0 ? `a prompt goes behind -p: -p ${JSON.stringify(extra)}` : hintFor(commandName);
    throw new UsageError(`fovea ${commandName} does not take "${extra}"`, hint);
  }
}

/** The help text of one command. */
export function commandHelp(of: Command): string {
  const positionals = (of.positionals ?? []).map(({ name, optional, many }) => {
    const shown = many ? `${name}>...` : `${name}>`;
    return optional ? `[${shown.replace(">", "]")}` : `<${shown}`;
  });
  const lines = [["usage: fovea", of.name, ...positionals, "[options]"].join(" "), "", of.about ?? of.summary, ""];
  if (of.positionals?.length) lines.push(...columns(of.positionals.map(({ name, help }) => [`  ${name}`, help])), "");
  lines.push("options:", ...columns(Object.entries(of.options).map(([name, option]) => optionLine(name, option))));
  if (of.examples?.length) lines.push("", "examples:", ...of.examples.map((example) => `  ${example}`));
  return `${lines.join("\n")}\n`;
}

function optionLine(name: string, option: Option<unknown>): [string, string] {
  const left = `  ${option.short ? `-${option.short}, ` : "    "}--${kebab(name)}`;
  const shown = option.fallbackText ?? (typeof option.fallback === "boolean" ? undefined : option.fallback);
  return [
    option.value === undefined ? left : `${left} <${option.value}>`,
    shown === undefined ? option.help : `${option.help} (default ${String(shown)})`,
  ];
}

/** Two aligned columns; a left side that is too wide takes a line of its own. */
export function columns(rows: readonly (readonly [string, string])[], widest = 34): string[] {
  const width = Math.min(widest, Math.max(...rows.map(([left]) => left.length))) + 2;
  return rows.flatMap(([left, right]) =>
    left.length + 2 > width ? [left, " ".repeat(width) + right] : [left.padEnd(width) + right],
  );
}
