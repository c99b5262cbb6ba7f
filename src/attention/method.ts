import { z } from "zod";
import type { AttachedMethod, HookName, Hooks, ModelShape, Scope } from "../engine/hooks.js";
import { HOOK_NAMES } from "../engine/hooks.js";
import { FoveaError } from "../error.js";
import { HEAD_HOOKS, limitToHeads } from "./scope.js";
import { didYouMean, type HeadName, isHead, printMethods, type Value } from "./string.js";

export interface Paper {
  readonly title: string;
  /** Venue and year, e.g. "ICLR 2024". */
  readonly venue: string;
  readonly url?: string;
}

/** Which rows a method changes; a fingerprint of a shared prefix depends on it. */
export interface RowsTouched {
  readonly prefill: boolean;
  readonly lastPromptRow: boolean;
  readonly decode: boolean;
}

/** Parameters of a test run. */
export interface Trial {
  readonly parameters: Readonly<Record<string, Value>>;
  /** True where a decoded row gives what the same row of a prompt gives. */
  readonly uniform?: boolean;
}

/** How a method takes a budget of tokens read in a decoded row, or kept, so that a share of a text can be solved for. */
export interface BudgetCard {
  /** Parameters, each with its part of the value; the first is what one gives who sets the budget himself. */
  readonly parts: Readonly<Record<string, number>>;
  /** Values that it takes. Default whole numbers from 1 to the tokens of the text. */
  readonly range?: BudgetRange;
  /** What must be set besides for the method to read less while decoding. */
  readonly also?: Readonly<Record<string, Value>>;
  /** What makes layers sparse that are dense by default. */
  readonly sparse?: Readonly<Record<string, Value>>;
  /** Parameters under which it bounds what is kept. Default: methods that evict or shorten the text do, others never. */
  readonly keeps?: Readonly<Record<string, Value>>;
}

/** Values that a budget's parameter takes. */
export interface BudgetRange {
  readonly least: number;
  /** Undefined: the tokens of the text. */
  readonly most?: number;
  /** Values are multiples of this. */
  readonly step: number;
}

/** What a method says of itself. Only `name` has no default. */
export interface CardFields {
  readonly name: string;
  readonly paper: Paper | null;
  /** Folder and page of the docs that it belongs to. */
  readonly family: string;
  /** One sentence. */
  readonly does: string;
  readonly kind: "control" | "system" | "analysis" | "recipe" | "task";
  /** What it needs beyond a checkpoint: calibration, gradients, trained tensors. "nothing" by default. */
  readonly needs: string;
  readonly cost: string;
  readonly rows: RowsTouched;
  /** Where its facts come from. */
  readonly facts: string;
  /** Where it departs from the paper or its code, one sentence each. */
  readonly deviations: readonly string[];
  /** Parameters at which it is full attention, or null where there are none. */
  readonly exact: Readonly<Record<string, Value>> | null;
  /** Undefined: by its parameter `tokens`, `capacity` or the like, if it has one. null: none while decoding. */
  readonly budget: BudgetCard | null | undefined;
  /** Settings at which it acts on a text of a hundred tokens already: what the conformance suite runs. */
  readonly trials: readonly Trial[];
  readonly status: "holds" | "not reproduced on nano" | "experimental";
  /** The effect measured here, in words with figures; "" where none is yet. */
  readonly measured: string;
}

export interface ParameterCard {
  readonly name: string;
  /** In words, e.g. "whole number, at least 1" or "rank | true". */
  readonly type: string;
  readonly default: Value | null;
  readonly required: boolean;
  readonly description: string;
  /** The words that it chooses from, where it does. */
  readonly choices?: readonly string[];
}

export interface Card extends CardFields {
  readonly hooks: readonly HookName[];
  readonly parameters: readonly ParameterCard[];
  /** What the method can be limited to. */
  readonly scope: "layers" | "heads";
}

/** Every method takes these beside its own parameters. */
export interface ScopeInput {
  /** Layers in which it acts; negative ones count from the last. Default all. */
  layers?: number | readonly number[];
  /** Query heads on which it acts (instead of `layers`), where the method's card says so. */
  heads?: HeadName | readonly HeadName[];
}

type HookFunctions<State> = Omit<
  Hooks<State>,
  "layers" | "replacesPattern" | "beyondContext" | "rowBlock" | "denseLayers" | "selectsDecoding" | "streams"
>;
type WithParameters<F, P> = F extends (...args: infer A) => infer R ? (...args: [...A, params: P]) => R : never;
/** The hooks of a definition: those of the engine with the method's parameters as one more argument. */
export type InlineHooks<P, State> = {
  [K in keyof HookFunctions<State>]?: WithParameters<NonNullable<HookFunctions<State>[K]>, P>;
};

interface DefinitionBase<S extends z.ZodObject> extends globalThis.Partial<Omit<CardFields, "name">> {
  name: string;
  parameters?: S;
  scope?: "layers" | "heads";
  replacesPattern?: boolean;
  /** Whether texts may grow beyond the model's context under these parameters. Default no. */
  beyondContext?(params: z.output<S>): boolean;
  /** Throws `unsupported` or `bad-input`, with the reason, where the method cannot run. */
  check?(model: ModelShape, params: z.output<S>): void;
}

/** The short form: hooks that take (step, params). */
export type MethodDefinition<S extends z.ZodObject, State> = DefinitionBase<S> & InlineHooks<z.output<S>, State>;

/** The full form: `create` makes the hooks from the parameters; `hooks` names those it may make. */
export interface FullDefinition<S extends z.ZodObject, State> extends DefinitionBase<S> {
  hooks: readonly HookName[];
  create(params: z.output<S>, scope: Scope): Hooks<State>;
}

type Input<S extends z.ZodObject> = z.input<S> & Omit<ScopeInput, keyof z.input<S>>;

/** A method: call it with parameters to attach it. */
export interface MethodFactory<S extends z.ZodObject = z.ZodObject> {
  // biome's and TypeScript's view of `{}` agree here: an input without required keys may be left out altogether
  (...args: Record<never, never> extends Input<S> ? [parameters?: Input<S>] : [parameters: Input<S>]): AttachedMethod;
  readonly card: Card;
  /** Attaches with values that nothing has checked yet. Throws bad-input that names the parameter. */
  from(values: Readonly<Record<string, unknown>>): AttachedMethod;
}

const CARD_DEFAULTS: Omit<CardFields, "name"> = {
  paper: null,
  family: "own",
  does: "",
  kind: "system",
  needs: "nothing",
  cost: "",
  rows: { prefill: true, lastPromptRow: true, decode: true },
  facts: "",
  deviations: [],
  exact: null,
  budget: undefined,
  trials: [{ parameters: {} }],
  status: "experimental",
  measured: "",
};

const INLINE = [
  "state",
  "context",
  "embeddings",
  "position",
  "activations",
  "keys",
  "retain",
  "select",
  "bias",
  "scores",
  "pattern",
  "observe",
  "heads",
  "attnOut",
  "mlp",
  "mlpOut",
  "residual",
  "logits",
  "mechanism",
] as const satisfies readonly (keyof HookFunctions<unknown>)[];

/** Hooks of the engine that stand under another name in the design's table. */
const TABLE_NAME: globalThis.Partial<Record<(typeof INLINE)[number], HookName>> = {
  bias: "scores",
  keys: "activations",
  attnOut: "heads",
  mlpOut: "mlp",
};

const NO_PARAMETERS = z.object({});
const cards = new WeakMap<AttachedMethod, Card>();

/** The card of the method that an attached one was made by; undefined for one put together by hand. */
export function cardOf(attached: AttachedMethod): Card | undefined {
  return cards.get(attached);
}

/**
 * Defines a method: a card, parameters as a zod object (schemas that check and default, and do not transform), and
 * hooks that take (step, params), or `create(params, scope)` that returns them.
 *
 * @example
 * const recent = method({
 *   name: "recent",
 *   parameters: z.object({ window: z.int().min(1).default(512).describe("newest tokens read") }),
 *   select: (_step, { window }) => [{ window }],
 * });
 * model.with(recent({ window: 256 }));
 */
export function method<S extends z.ZodObject = typeof NO_PARAMETERS, State = unknown>(
  definition: MethodDefinition<S, State> | FullDefinition<S, State>,
): MethodFactory<S> {
  const { name } = definition;
  if (!/^[a-z][a-z0-9]*(-[a-z0-9]+)*$/.test(name))
    throw new FoveaError(
      "bad-input",
      `a method's name is ${JSON.stringify(name)}; expected words of a-z and 0-9 joined by "-"`,
    );
  const schema = (definition.parameters ?? NO_PARAMETERS) as z.ZodObject;
  const keys = Object.keys(schema.shape);
  for (const key of keys)
    if (!/^[A-Za-z][A-Za-z0-9]*$/.test(key) || key === "layers")
      throw new FoveaError("bad-input", `${name}: a parameter cannot be called ${JSON.stringify(key)}`, {
        hint: "use letters and digits; every method has `layers` already",
      });
  const inline = INLINE.filter((hook) => (definition as InlineHooks<unknown, unknown>)[hook] !== undefined);
  const declared = "create" in definition ? definition.hooks : inline.map((hook) => TABLE_NAME[hook] ?? hook);
  const limitable = ([...declared, ...inline] as (keyof Hooks)[]).every((hook) => HEAD_HOOKS.includes(hook));
  const scopeKind = definition.scope ?? (limitable && !keys.includes("heads") ? "heads" : "layers");
  const card: Card = {
    ...CARD_DEFAULTS,
    ...pickCard(definition),
    name,
    hooks: HOOK_NAMES.filter((hook) => (declared as readonly string[]).includes(hook)),
    parameters: parameterCards(schema),
    scope: scopeKind,
  };

  const from = (values: Readonly<Record<string, unknown>>): AttachedMethod => {
    const { own, scope } = splitScope(card, keys, values);
    const parsed = schema.safeParse(own);
    if (!parsed.success) throw invalidParameter(card, own, parsed.error);
    const params = parsed.data as z.output<S>;
    const made: Hooks =
      "create" in definition ? (definition.create(params, scope) as Hooks) : bindHooks(definition, inline, params);
    const limited = scope.heads ? limitToHeads(made, scope.heads) : made;
    const { check } = definition;
    const { prefill, lastPromptRow, decode } = card.rows;
    const selectsDecoding = made.select !== undefined && decode && !prefill && !lastPromptRow;
    const attached: AttachedMethod = {
      name,
      spec: printMethods([{ name, params: specValues(card, keys, params, scope) }]),
      hooks: {
        ...withLayers(limited, scope),
        ...(definition.beyondContext?.(params) ? { beyondContext: true } : {}),
        ...(selectsDecoding && { selectsDecoding }),
      },
      ...(scope.layers || scope.heads ? { scope } : {}),
      ...(check ? { check: (model: ModelShape) => check(model, params) } : {}),
    };
    cards.set(attached, card);
    return attached;
  };
  const factory = (parameters: Readonly<Record<string, unknown>> = {}) => from(parameters);
  return Object.assign(factory, { card, from }) as MethodFactory<S>;
}

function pickCard(definition: object): globalThis.Partial<CardFields> {
  const fields = Object.keys(CARD_DEFAULTS) as (keyof typeof CARD_DEFAULTS)[];
  const given = definition as globalThis.Partial<CardFields>;
  return Object.fromEntries(fields.filter((f) => given[f] !== undefined).map((f) => [f, given[f]]));
}

function bindHooks(definition: object, inline: readonly string[], params: unknown): Hooks {
  const given = definition as Record<string, (...args: unknown[]) => unknown>;
  const { replacesPattern } = definition as { replacesPattern?: boolean };
  const bound = inline.map((hook) => {
    const run = given[hook];
    // these two take the rows beside the step
    if (hook === "scores" || hook === "pattern")
      return [hook, (step: unknown, rows: unknown) => run(step, rows, params)];
    return [hook, (step: unknown) => run(step, params)];
  });
  return { ...Object.fromEntries(bound), ...(replacesPattern ? { replacesPattern } : {}) } as Hooks;
}

function withLayers(hooks: Hooks, { layers, heads }: Scope): Hooks {
  const own = layers ?? (heads && [...new Set(heads.map((h) => h.layer))]);
  if (!own) return hooks;
  return { ...hooks, layers: hooks.layers ? own.filter((l) => hooks.layers?.includes(l)) : own };
}

/** Takes `layers` and `heads` out of the values and refuses what the method does not know. */
function splitScope(card: Card, keys: readonly string[], values: Readonly<Record<string, unknown>>) {
  const own: Record<string, unknown> = {};
  let layers: readonly number[] | undefined;
  let heads: readonly HeadName[] | undefined;
  const scopeKeys = card.scope === "heads" ? ["layers", "heads"] : ["layers"];
  for (const [key, value] of Object.entries(values)) {
    if (value === undefined) continue;
    if (keys.includes(key))
      own[key] = typeof value === "boolean" && choices(card, key)?.includes(`${value}`) ? `${value}` : value;
    else if (key === "layers") layers = layerList(card.name, value);
    else if (key === "heads" && card.scope === "heads") heads = headList(card.name, value);
    else if (key === "heads")
      throw new FoveaError("bad-input", `${card.name} cannot be limited to heads`, {
        hint: "give it `layers` instead",
      });
    else
      throw new FoveaError("bad-input", `${card.name} has no parameter ${JSON.stringify(key)}`, {
        hint: didYouMean(key, [...keys, ...scopeKeys]),
      });
  }
  if (layers && heads)
    throw new FoveaError("bad-input", `${card.name} is given layers and heads; expected one of them`, {
      hint: "heads name their layers: heads=3.1 is head 1 of layer 3",
    });
  const scope: Scope = { ...(layers && { layers }), ...(heads && { heads }) };
  return { own, scope };
}

/** The words that a parameter chooses from. In a method string the words true and false read as booleans. */
function choices(card: Card, key: string): readonly string[] | undefined {
  return card.parameters.find((p) => p.name === key)?.choices;
}

function layerList(name: string, value: unknown): readonly number[] {
  const list: unknown[] = Array.isArray(value) ? value : [value];
  if (list.length === 0 || !list.every((l): l is number => Number.isInteger(l)))
    throw new FoveaError("bad-input", `${name}: layers is ${show(value)}; expected whole numbers`, {
      hint: "for example layers=2-5, layers=[0,3] or layers=-1 for the last",
    });
  return [...new Set(list)].sort((a, b) => a - b);
}

function headList(name: string, value: unknown): readonly HeadName[] {
  const list: unknown[] = Array.isArray(value) ? value : [value];
  const valid = (h: unknown): h is HeadName =>
    isHead(h) && Number.isInteger(h.layer) && Number.isInteger(h.head) && h.head >= 0;
  if (list.length === 0 || !list.every(valid))
    throw new FoveaError("bad-input", `${name}: heads is ${show(value)}; expected heads as layer.head`, {
      hint: "for example heads=3.1 or heads=[3.0-2,4.7]; in code { layer: 3, head: 1 }",
    });
  const unique = new Map(list.map(({ layer, head }) => [`${layer}.${head}`, { layer, head }]));
  return [...unique.values()].sort((a, b) => a.layer - b.layer || a.head - b.head);
}

function invalidParameter(card: Card, values: Record<string, unknown>, error: z.ZodError): FoveaError {
  const said = error.issues.map((issue) => {
    const path = issue.path.join(".");
    const given = issue.path.reduce<unknown>(
      (v, key) => (v as Record<PropertyKey, unknown> | undefined)?.[key],
      values,
    );
    const message = issue.message.charAt(0).toLowerCase() + issue.message.slice(1);
    return path ? `${path} is ${given === undefined ? "missing" : show(given)}: ${message}` : message;
  });
  const named = card.parameters.filter((p) => error.issues.some((i) => i.path[0] === p.name));
  return new FoveaError("bad-input", `${card.name}: ${said.join("; ")}`, {
    hint: named.map((p) => `${p.name}: ${p.type}${p.description ? ` (${p.description})` : ""}`).join("; "),
    cause: error,
  });
}

function show(value: unknown): string {
  const text = typeof value === "function" ? "a function" : (JSON.stringify(value) ?? String(value));
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}

/** All parameters as validated, then the scope: two equal methods have equal strings. */
function specValues(card: Card, keys: readonly string[], params: Record<string, unknown>, scope: Scope) {
  const values: Record<string, Value> = {};
  for (const key of keys) {
    const value = params[key];
    if (value === undefined) continue;
    const asWord = (value === "true" || value === "false") && choices(card, key);
    values[key] = asWord ? value === "true" : toValue(value);
  }
  if (scope.layers) values.layers = scope.layers;
  if (scope.heads) values.heads = scope.heads;
  return values;
}

function toValue(value: unknown): Value {
  if (typeof value === "number" || typeof value === "string" || typeof value === "boolean") return value;
  if (isHead(value)) return { layer: value.layer, head: value.head };
  if (Array.isArray(value)) return value.map(toValue);
  if (ArrayBuffer.isView(value) && !(value instanceof DataView)) return Array.from(value as Float32Array);
  return typeof value === "function" ? `<function ${value.name}>` : JSON.stringify(value);
}

interface JsonSchema {
  type?: string;
  enum?: unknown[];
  const?: unknown;
  anyOf?: JsonSchema[];
  items?: JsonSchema;
  default?: Value;
  description?: string;
  minimum?: number;
  exclusiveMinimum?: number;
  maximum?: number;
  properties?: Record<string, JsonSchema>;
  required?: string[];
}

function parameterCards(schema: z.ZodObject): ParameterCard[] {
  const json = z.toJSONSchema(schema, { io: "input", unrepresentable: "any" }) as JsonSchema;
  return Object.entries(json.properties ?? {}).map(([name, p]) => ({
    name,
    type: typeInWords(p),
    default: p.default ?? null,
    required: json.required?.includes(name) ?? false,
    description: p.description ?? "",
    ...(p.enum?.every((e) => typeof e === "string") ? { choices: p.enum as string[] } : {}),
  }));
}

function typeInWords(p: JsonSchema): string {
  if (p.enum) return p.enum.join(" | ");
  if (p.const !== undefined) return String(p.const);
  if (p.anyOf) return p.anyOf.map(typeInWords).join(" or ");
  switch (p.type) {
    case "integer":
    case "number": {
      const bounds: string[] = [];
      if (p.minimum !== undefined && p.minimum > Number.MIN_SAFE_INTEGER) bounds.push(`at least ${p.minimum}`);
      if (p.exclusiveMinimum !== undefined) bounds.push(`above ${p.exclusiveMinimum}`);
      if (p.maximum !== undefined && p.maximum < Number.MAX_SAFE_INTEGER) bounds.push(`at most ${p.maximum}`);
      return [p.type === "integer" ? "whole number" : "number", bounds.join(" and ")].filter(Boolean).join(", ");
    }
    case "boolean":
      return "true | false";
    case "string":
      return "text";
    case "array":
      return `list of ${typeInWords(p.items ?? {})}`;
    default:
      return "value";
  }
}
