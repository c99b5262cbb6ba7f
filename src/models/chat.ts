import * as jinja from "@huggingface/jinja";
import { FoveaError } from "../error.js";
import { describe, isObject } from "./json.js";

/** One message of a conversation. Further fields, such as `tool_calls`, reach the template as they are. */
export interface ChatMessage {
  /** `system`, `user`, `assistant`, `tool` or whatever the model's template knows. */
  role: string;
  /** The text; a list is joined without anything between, and each part gets a span of its own. */
  content: string | readonly string[];
  [field: string]: unknown;
}

export interface RenderOptions {
  /** End with the head of the assistant's turn, so that the model answers. Default false. */
  addGenerationPrompt?: boolean;
  /** Tools in the form of JSON schemas, for templates that know tools. */
  tools?: readonly unknown[];
  /** Further variables of the template, such as Qwen3's `enable_thinking`. */
  variables?: Readonly<Record<string, unknown>>;
  /** What `strftime_now` says. Default now. */
  date?: Date;
}

/** The [start, end) of a piece of the rendered text, in UTF-16 units. */
export type CharSpan = readonly [start: number, end: number];

/** Where a message's content lies in the rendered text. */
export interface MessageSpan {
  role: string;
  /** The content; undefined when the template left it out or rewrote it. A template that trims gives the trimmed text. */
  content: CharSpan | undefined;
  /** The parts of a content that is a list; one part for a string. A part that was trimmed away is empty. */
  parts: readonly CharSpan[] | undefined;
}

/** A rendered conversation. Encode its text with `{ special: false }`: the template writes BOS itself. */
export interface RenderedChat {
  text: string;
  messages: MessageSpan[];
}

/** A model's chat template. */
export interface ChatTemplate {
  /** The template in Jinja. */
  readonly source: string;
  /**
   * Writes a conversation as the model was trained to read it.
   * @throws FoveaError "bad-input" when the template refuses the conversation, for example a system message
   */
  render(messages: readonly ChatMessage[], options?: RenderOptions): RenderedChat;
}

/** Templates loop over messages and tools, never over more than this by themselves. */
const MAX_RANGE = 10_000;

/**
 * Compiles a chat template.
 * @param template Jinja, as in `chat_template` of tokenizer_config.json or `tokenizer.chat_template` of GGUF
 * @param tokens the tokenizer's `bos_token`, `eos_token` and the like, as text
 * @throws FoveaError "bad-file" when it is not a valid template
 */
export function createChatTemplate(template: string, tokens: Readonly<Record<string, string>> = {}): ChatTemplate {
  const program = parse(template);
  const run = (messages: readonly object[], options: RenderOptions): string => {
    const environment = new classes.Environment();
    for (const [name, value] of Object.entries(globals(options.date ?? new Date()))) environment.set(name, value);
    const variables = {
      ...tokens,
      ...options.variables,
      messages,
      tools: options.tools ?? null,
      add_generation_prompt: options.addGenerationPrompt ?? false,
    };
    for (const [name, value] of Object.entries(variables)) environment.set(name, value);
    try {
      return String(new classes.Interpreter(environment).run(program).value);
    } catch (cause) {
      throw new FoveaError("bad-input", `the chat template refuses the conversation: ${messageOf(cause)}`, {
        cause,
        hint: "Check the roles and their order: some models take no system message, or want user and assistant in turn.",
      });
    }
  };
  return {
    source: template,
    render(messages, options = {}) {
      const plain = messages.map((message, i) => checkMessage(message, i));
      const text = run(plain, options);
      const contents = messages.map(({ content }) => (typeof content === "string" ? [content] : [...content]));
      const spans = locate(text, contents, (markers) =>
        run(
          plain.map((message, i) => ({ ...message, content: markers[i] })),
          options,
        ),
      );
      return { text, messages: messages.map(({ role }, i) => ({ role, ...spans[i] })) };
    },
  };
}

/**
 * The chat template of a model, out of tokenizer_config.json: a string, or a list of named ones.
 * @param file the contents of chat_template.jinja, which newer checkpoints have instead
 */
export function chatTemplateOf(
  config: Readonly<Record<string, unknown>>,
  { file, name = "default" }: { file?: string; name?: string } = {},
): string | undefined {
  const { chat_template: template } = config;
  if (file !== undefined) return file;
  if (typeof template === "string") return template;
  if (!Array.isArray(template)) return undefined;
  const named = template.filter(isObject).find((entry) => entry.name === name);
  return typeof named?.template === "string" ? named.template : undefined;
}

/** The tokens that templates name, out of tokenizer_config.json. */
export function templateTokens(config: Readonly<Record<string, unknown>>): Record<string, string> {
  const tokens: Record<string, string> = {};
  for (const name of ["bos_token", "eos_token", "unk_token", "pad_token"]) {
    const value = isObject(config[name]) ? config[name].content : config[name];
    if (typeof value === "string") tokens[name] = value;
  }
  return tokens;
}

function checkMessage(message: ChatMessage, i: number): ChatMessage & { content: string } {
  const parts: unknown = isObject(message) && typeof message.role === "string" ? message.content : undefined;
  const content = Array.isArray(parts) && parts.every((part) => typeof part === "string") ? parts.join("") : parts;
  if (typeof content !== "string") {
    throw new FoveaError("bad-input", `message ${i} needs a role and a content that is text, not ${describe(parts)}`);
  }
  return { ...message, content };
}

type Located = Pick<MessageSpan, "content" | "parts">;

/**
 * Finds the contents in the rendered text. The conversation is rendered a second time with a marker in the place of each
 * content: what lies between the markers is the template's, and fixes where each content begins and ends, even when it
 * is a word that the template writes too, and wherever the template puts it (some put the system message last).
 */
function locate(text: string, contents: readonly string[][], renderMarked: (markers: string[]) => string): Located[] {
  const markers = contents.map((_, i) => `\uE0A0${i}\uE0A1`);
  let marked = "";
  try {
    marked = renderMarked(markers);
  } catch {
    // A template that looks into the contents: nothing is known of where they are.
  }
  const places = markers
    .map((marker, i) => ({ i, start: marked.indexOf(marker), length: marker.length }))
    .filter(({ start }) => start >= 0)
    .sort((a, b) => a.start - b.start);
  const located: Located[] = contents.map(() => ({ content: undefined, parts: undefined }));
  let at = 0; // in text
  let done = 0; // in marked
  places.forEach(({ i, start, length }, n) => {
    const head = marked.slice(done, start);
    done = start + length;
    const tail = marked.slice(done, places[n + 1]?.start);
    // Behind a content that the template rewrote, its own words are looked for.
    const place = text.startsWith(head, at) ? at : text.indexOf(head, at);
    if (place < 0) return;
    at = place + head.length;
    const variant = variants(contents[i].join("")).find(
      ({ content }) => text.startsWith(content, at) && text.startsWith(tail, at + content.length),
    );
    if (!variant) return;
    const end = at + variant.content.length;
    located[i] = { content: [at, end], parts: partSpans(contents[i], at - variant.trimmed, at, end) };
    at = end;
  });
  return located;
}

/** Spans of parts that follow one another from `offset`, cut to [start, end), where something was trimmed. */
function partSpans(parts: readonly string[], offset: number, start: number, end: number): CharSpan[] {
  const clamp = (n: number): number => Math.min(Math.max(n, start), end);
  let at = offset;
  return parts.map((part) => {
    const from = at;
    at += part.length;
    return [clamp(from), clamp(at)];
  });
}

/** What a template may make of a content: leave it, or trim it. `trimmed`: units lost at the beginning. */
function variants(whole: string): { content: string; trimmed: number }[] {
  const lead = whole.length - whole.trimStart().length;
  return [
    { content: whole, trimmed: 0 },
    { content: whole.trim(), trimmed: lead },
    { content: whole.trimEnd(), trimmed: 0 },
    { content: whole.trimStart(), trimmed: lead },
  ];
}

// ---- the template engine ----

// The package's declarations import without file extensions, so its inner classes are declared here.
const classes = jinja as unknown as {
  Template: new (source: string) => { parsed: unknown };
  Environment: new () => { set(name: string, value: unknown): void };
  Interpreter: new (environment: object) => { run(program: unknown): { value: unknown } };
};

function parse(template: string): unknown {
  try {
    return new classes.Template(template).parsed;
  } catch (cause) {
    throw new FoveaError("bad-file", `the chat template is not valid: ${messageOf(cause)}`, { cause });
  }
}

function messageOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}

/** What every template may use, as in transformers. */
function globals(date: Date): Record<string, unknown> {
  return {
    true: true,
    false: false,
    none: null,
    True: true,
    False: false,
    None: null,
    raise_exception: (message: unknown) => {
      throw new Error(String(message));
    },
    range,
    strftime_now: (format: unknown) => formatDate(date, String(format)),
  };
}

function range(start: number, stop?: number, step = 1): number[] {
  const [from, to] = stop === undefined ? [0, start] : [start, stop];
  const count = Math.max(0, Math.ceil((to - from) / step));
  if (!(count <= MAX_RANGE)) throw new Error(`range of ${count}`);
  return Array.from({ length: count }, (_, i) => from + i * step);
}

function formatDate(date: Date, format: string): string {
  const two = (n: number): string => String(n).padStart(2, "0");
  const name = (options: Intl.DateTimeFormatOptions): string => new Intl.DateTimeFormat("en-US", options).format(date);
  const parts: Record<string, () => string> = {
    "%Y": () => String(date.getFullYear()),
    "%m": () => two(date.getMonth() + 1),
    "%d": () => two(date.getDate()),
    "%H": () => two(date.getHours()),
    "%M": () => two(date.getMinutes()),
    "%S": () => two(date.getSeconds()),
    "%b": () => name({ month: "short" }),
    "%B": () => name({ month: "long" }),
    "%a": () => name({ weekday: "short" }),
    "%A": () => name({ weekday: "long" }),
    "%%": () => "%",
  };
  return format.replace(/%[A-Za-z%]/g, (token) => parts[token]?.() ?? token);
}
