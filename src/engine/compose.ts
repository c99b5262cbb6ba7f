import { FoveaError } from "../error.js";
import { addBiases, type HeadCounts } from "./biases.js";
import type {
  AttachedMethod,
  Entries,
  HeadEntries,
  Hooks,
  KeyView,
  LogBias,
  ModelShape,
  Part,
  Partial,
  Streams,
} from "./hooks.js";
import { entriesOf, isPartial, isPerHead } from "./hooks.js";
import { withoutBlocks } from "./row-ranges.js";

export { addBiases } from "./biases.js";

/** One method's hooks; `index` finds its state among the sequence's. */
export interface MethodHooks {
  readonly index: number;
  readonly name: string;
  readonly hooks: Hooks;
}

/** The methods that act in one layer, per hook, in the order given. A hook that nobody has is an empty list. */
export interface LayerHooks {
  /** Any hook between the projections and the output projection: false means the plain kernel call will do. */
  readonly attention: boolean;
  /** Any hook that decides or looks at what is read (select, bias, scores, pattern, observe). */
  readonly reads: boolean;
  /** The same for the rows of a prompt: without selections that only decoded rows have. */
  readonly promptReads: boolean;
  /** Rows that steps of several rows begin at multiples of: what the layer's `rowBlock`s ask for. */
  readonly rowBlock: number;
  /** Selections list keys by blocks of rows and nothing looks at rows of logits: many rows may be selected for at once. */
  readonly byBlocks: boolean;
  /** Weights are seen or edited row by row, so no row of a prompt may be left out, not even in the last layer. */
  readonly everyRow: boolean;
  readonly position: MethodHooks | undefined;
  readonly mechanism: MethodHooks | undefined;
  readonly activations: readonly MethodHooks[];
  readonly keys: readonly MethodHooks[];
  readonly retain: readonly MethodHooks[];
  readonly select: readonly MethodHooks[];
  readonly bias: readonly MethodHooks[];
  readonly scores: readonly MethodHooks[];
  readonly pattern: readonly MethodHooks[];
  readonly observe: readonly MethodHooks[];
  readonly heads: readonly MethodHooks[];
  readonly attnOut: readonly MethodHooks[];
  readonly mlp: readonly MethodHooks[];
  readonly mlpOut: readonly MethodHooks[];
  readonly residual: readonly MethodHooks[];
}

/** The least number of rows that is a multiple of every method's `rowBlock`. */
function commonRowBlock(methods: readonly MethodHooks[]): number {
  return methods.reduce((rows, { hooks }) => leastCommonMultiple(rows, hooks.rowBlock ?? 1), 1);
}

function leastCommonMultiple(a: number, b: number): number {
  let [x, y] = [a, b];
  while (y > 0) [x, y] = [y, x % y];
  return (a / x) * b;
}

/** Methods composed for one model by the law of composition. */
export interface Composed {
  readonly methods: readonly AttachedMethod[];
  /** The methods' canonical strings joined by "+": "" without methods. */
  readonly spec: string;
  readonly context: readonly MethodHooks[];
  readonly embeddings: readonly MethodHooks[];
  readonly logits: readonly MethodHooks[];
  /** One of the methods, acting in every layer, lets texts grow beyond the model's context. */
  readonly beyondContext: boolean;
  /** Parallel streams that sequences run in. */
  readonly streams: Streams | undefined;
  /** Rows that pieces of a prompt begin at multiples of, so that blocks of rows are the same however it is cut. */
  readonly rowBlock: number;
  /** Layers 0..L-1; L holds what acts on the residual stream after the last layer. */
  layer(layer: number): LayerHooks;
}

/**
 * Composes methods, in the order given. The law: activations, keys, heads, residual, logits: in sequence. scores: biases add,
 * edits in sequence. select: intersect, forced entries unite. retain: in order, each seeing what the one before left.
 * position, mechanism, replacement of the pattern: one only in a layer.
 *
 * Throws `unsupported` with the reason when two methods cannot act together or one cannot run in this model, and
 * `bad-input` for layers or heads that the model does not have.
 */
export function compose(methods: readonly AttachedMethod[], model: ModelShape): Composed {
  const all = methods.map(({ name, hooks }, index): MethodHooks => ({ index, name, hooks }));
  for (const method of methods) {
    checkHeads(method, model);
    method.check?.(model);
  }
  const acting = all.map(({ name, hooks }) => layersOf(name, hooks, model.layers));
  const having = (hook: keyof Hooks) => all.filter(({ hooks }) => hooks[hook] !== undefined);
  const inLayer = (hook: keyof Hooks, layer: number) => having(hook).filter(({ index }) => acting[index](layer));
  const layers = Array.from({ length: model.layers + 1 }, (_, layer): LayerHooks => {
    if (layer === model.layers) return { ...NOTHING, residual: inLayer("residual", layer) };
    const at = (hook: keyof Hooks) => inLayer(hook, layer);
    const position = onlyOne(
      inLayer("position", layer),
      layer,
      "position",
      "sets how positions enter queries and keys",
    );
    const mechanism = onlyOne(at("mechanism"), layer, "mechanism", "replaces attention");
    const [activations, keys, retain, heads] = [at("activations"), at("keys"), at("retain"), at("heads")];
    const [select, bias, scores, pattern, observe] = [
      at("select"),
      at("bias"),
      at("scores"),
      at("pattern"),
      at("observe"),
    ];
    onlyOne(
      pattern.filter(({ hooks }) => hooks.replacesPattern),
      layer,
      "pattern",
      "replaces the attention weights",
    );
    const reading = [...select, ...bias, ...scores, ...pattern, ...observe];
    if (mechanism && reading.length > 0)
      throw new FoveaError(
        "unsupported",
        `${mechanism.name} and ${reading[0].name} cannot act together in layer ${layer}: ${mechanism.name} replaces ` +
          `attention, so that ${reading[0].name} has no attention rows to act on`,
        { hint: "give one of them `layers` that leave this layer out" },
      );
    checkOwnMechanism(model, [...reading, ...at("mechanism"), ...inLayer("position", layer)], [...keys, ...retain]);
    const reads = reading.length > 0;
    const promptReads = reading.length > select.length || select.some(({ hooks }) => !hooks.selectsDecoding);
    return {
      ...{ position, mechanism, activations, keys, retain, select, bias, scores, pattern, observe, heads, reads },
      promptReads,
      attnOut: at("attnOut"),
      mlp: at("mlp"),
      mlpOut: at("mlpOut"),
      residual: at("residual"),
      everyRow: scores.length + pattern.length + observe.length > 0,
      rowBlock: commonRowBlock(select),
      byBlocks: select.length > 0 && reading.length === select.length && select.every((m) => m.hooks.rowBlock),
      attention:
        reads || !!position || !!mechanism || activations.length + keys.length + retain.length + heads.length > 0,
    };
  });
  return {
    methods,
    spec: methods.map((m) => m.spec).join("+"),
    context: having("context"),
    embeddings: having("embeddings"),
    logits: having("logits"),
    rowBlock: commonRowBlock(all),
    beyondContext: all.some(({ hooks }) => hooks.beyondContext && !hooks.layers),
    streams: onlyStreams(having("streams")),
    layer: (layer) => layers[layer],
  };
}

/** A model with a mechanism of its own has no attention rows; one with a state has no cached keys either. */
function checkOwnMechanism({ mechanism }: ModelShape, ofRows: readonly MethodHooks[], ofCache: readonly MethodHooks[]) {
  const refused = mechanism && (ofRows[0] ?? (mechanism.state ? ofCache[0] : undefined));
  if (!refused) return;
  throw new FoveaError(
    "unsupported",
    `${refused.name} acts on ${ofRows[0] ? "softmax attention" : "cached keys"}, and this model has ${mechanism.name} in its place`,
    { hint: "methods on heads, the residual stream, MLPs and logits act in this model too" },
  );
}

const NOTHING: LayerHooks = {
  attention: false,
  reads: false,
  promptReads: false,
  rowBlock: 1,
  byBlocks: false,
  everyRow: false,
  position: undefined,
  mechanism: undefined,
  activations: [],
  keys: [],
  retain: [],
  select: [],
  bias: [],
  scores: [],
  pattern: [],
  observe: [],
  heads: [],
  attnOut: [],
  mlp: [],
  mlpOut: [],
  residual: [],
};

function onlyStreams(methods: readonly MethodHooks[]): Streams | undefined {
  if (methods.length > 1)
    throw new FoveaError(
      "unsupported",
      `${methods[0].name} and ${methods[1].name} cannot act together: each runs a sequence in parallel streams of its own`,
      { hint: "drop one (hook: logits)" },
    );
  return methods[0]?.hooks.streams;
}

function onlyOne(methods: readonly MethodHooks[], layer: number, hook: string, does: string): MethodHooks | undefined {
  if (methods.length > 1)
    throw new FoveaError(
      "unsupported",
      `${methods[0].name} and ${methods[1].name} cannot act together in layer ${layer}: each ${does}, and only one can`,
      { hint: `drop one, or give them different \`layers\` (hook: ${hook})` },
    );
  return methods[0];
}

/** A test of layers from a method's list; negative ones count from the last, absent means all. */
function layersOf(name: string, hooks: Hooks, layers: number): (layer: number) => boolean {
  const { denseLayers = 0 } = hooks;
  const dense =
    typeof denseLayers === "number"
      ? (layer: number) => layer < denseLayers
      : (layer: number) => denseLayers.some((l) => (l < 0 ? l + layers : l) === layer);
  if (!hooks.layers) return (layer) => !dense(layer);
  const own = new Set<number>();
  for (const layer of hooks.layers) {
    const at = layer < 0 ? layer + layers : layer;
    // layer L, after the last one, exists for the residual stream
    const last = hooks.residual ? layers : layers - 1;
    if (!Number.isInteger(at) || at < 0 || at > last)
      throw new FoveaError(
        "bad-input",
        `${name}: layer ${layer} does not exist; the model has layers 0 to ${layers - 1}`,
        {
          hint: "negative layers count from the last: -1 is the last layer",
        },
      );
    own.add(at);
  }
  return (layer) => own.has(layer) && !dense(layer);
}

function checkHeads({ name, scope, hooks }: AttachedMethod, model: ModelShape): void {
  if (!scope?.heads) return;
  const group = model.heads / model.kvHeads;
  const chosen = new Set<number>();
  for (const { layer, head } of scope.heads) {
    const at = layer < 0 ? layer + model.layers : layer;
    if (at < 0 || at >= model.layers || head < 0 || head >= model.heads)
      throw new FoveaError(
        "bad-input",
        `${name}: head ${layer}.${head} does not exist; the model has layers 0 to ${model.layers - 1} and heads 0 to ${model.heads - 1}`,
      );
    chosen.add(at * model.heads + head);
  }
  if (!hooks.select && !hooks.retain) return;
  for (const at of chosen) {
    const layer = Math.floor(at / model.heads);
    const first = Math.floor((at % model.heads) / group) * group;
    for (let head = first; head < first + group; head++)
      if (!chosen.has(layer * model.heads + head))
        throw new FoveaError(
          "bad-input",
          `${name} decides what is cached or read per key-value head, which query heads ${layer}.${first} to ` +
            `${layer}.${first + group - 1} share; the scope leaves out ${layer}.${head}`,
          { hint: `give all heads of the group: heads=${layer}.${first}-${first + group - 1}` },
        );
  }
}

/**
 * The parts that several methods' selections leave: per KV head the intersection of their keys, united with what any
 * of them forces. An intersected part carries the biases of both, the smaller window, and the query of the one that
 * rotates or projects its own. No selection means everything.
 *
 * `positions` are the rows' absolute positions, [T]. Throws `unsupported` when two methods bring queries of their own
 * or a ready result for the same keys: neither can be expressed through the other.
 */
export function combineSelections(
  selections: readonly (readonly (Part | Partial)[])[],
  view: KeyView,
  shape: HeadCounts,
  positions: Int32Array,
): readonly (Part | Partial)[] {
  const limiting = selections.filter((parts) => !isEverything(parts));
  if (limiting.length === 0) return EVERYTHING;
  if (limiting.length === 1) return limiting[0];
  const context: Combining = { view, shape, positions };
  const plain = limiting.map((parts) => parts.map(plainPart));
  const all = plain.flat();
  if (all.some((part) => part.blocks) && all.some((part) => part.forced))
    throw new FoveaError(
      "unsupported",
      "a method that selects by blocks of rows cannot act together with one that forces keys to be read",
      { hint: "attach one of the two, or give them different `layers`" },
    );
  const keys = longest(view, [0, shape.kvHeads]);
  const [first, ...others] = plain.map((parts) =>
    parts.map((part) => withoutBlocks(part, positions.length, keys, shape)),
  );
  let result = first;
  for (const next of others) result = combineTwo(result, next, context);
  return result.length > 0 ? result : NOTHING_READ;
}

const EVERYTHING: readonly Part[] = [{}];

/** True for a selection that leaves nothing out and asks for nothing. */
function isEverything(parts: readonly (Part | Partial)[]): boolean {
  return parts.length === 1 && Object.values(parts[0]).every((value) => value === undefined);
}

const NOTHING_READ: readonly Part[] = [{ entries: { ranges: [] } }];

interface Combining {
  readonly view: KeyView;
  readonly shape: HeadCounts;
  readonly positions: Int32Array;
}

function plainPart(part: Part | Partial): Part {
  if (isPartial(part))
    throw new FoveaError(
      "unsupported",
      "a method that returns ready results cannot be combined with another selection",
      {
        hint: "attach one of the two, or give them different `layers`",
      },
    );
  if (part.forced && part.window !== undefined)
    throw new FoveaError("bad-input", "a forced part names its keys by `entries`; it has no `window`");
  return part;
}

/** (A and B) or forced(A) or forced(B), as disjoint parts. */
function combineTwo(a: readonly Part[], b: readonly Part[], context: Combining): Part[] {
  const parts: Part[] = [];
  for (const x of a) for (const y of b) parts.push(...intersect(x, y, context));
  for (const x of a) if (x.forced) parts.push(...without(x, b, context));
  for (const y of b) if (y.forced) parts.push(...without(y, a, context));
  return parts;
}

function intersect(a: Part, b: Part, context: Combining): Part[] {
  const heads = commonHeads(a, b, context.shape.kvHeads);
  if (!heads) return [];
  const entries = perHead(intersectEntries, a.entries ?? "all", b.entries ?? "all", heads, context);
  if (isEmpty(entries)) return [];
  if (a.query && b.query && a.query !== b.query)
    throw new FoveaError("unsupported", "two methods bring queries of their own for the same keys; only one can", {
      hint: "attach one of the two, or give them different `layers`",
    });
  const query = a.query ?? b.query;
  const window = Math.min(a.window ?? Number.POSITIVE_INFINITY, b.window ?? Number.POSITIVE_INFINITY);
  const bias = a.bias && b.bias ? addBiases(a.bias, b.bias, context.shape) : (a.bias ?? b.bias);
  return [
    {
      ...(a.heads || b.heads ? { heads } : {}),
      ...(query ? { query } : {}),
      ...(entries === "all" ? {} : { entries }),
      ...(window < Number.POSITIVE_INFINITY ? { window } : {}),
      ...(bias ? { bias } : {}),
      ...(a.forced || b.forced ? { forced: true } : {}),
    },
  ];
}

/** What of a forced part none of `others` reads. Their windows end at another key for each row, so they become masks. */
function without(forced: Part, others: readonly Part[], context: Combining): Part[] {
  let left: Part[] = [forced];
  for (const other of others) left = left.flatMap((part) => subtract(part, other, context));
  return left;
}

function subtract(part: Part, other: Part, context: Combining): Part[] {
  const { view, shape, positions } = context;
  const heads = commonHeads(part, other, shape.kvHeads);
  if (!heads) return [part];
  const [from, to] = part.heads ?? [0, shape.kvHeads];
  const outside = (
    [
      [from, heads[0]],
      [heads[1], to],
    ] as const
  )
    .filter(([a, b]) => a < b)
    .map((h) => ({ ...part, heads: h }));
  const mine = part.entries ?? "all";
  const theirs = other.entries ?? "all";
  const cut: Part[] = [];
  const rest = perHead(subtractEntries, mine, theirs, heads, context);
  if (!isEmpty(rest)) cut.push({ ...part, heads, entries: rest });
  if (other.window !== undefined) {
    const both = perHead(intersectEntries, mine, theirs, heads, context);
    for (let head = heads[0]; head < heads[1]; head++) {
      const keys = view.positions(head);
      // windows move forward with the rows, so the last row leaves the most keys behind
      const limit = positions[positions.length - 1] - other.window;
      const beyond = perHead((x) => beyondEntries(x, keys, limit), both, "all", [head, head + 1], context);
      if (isEmpty(beyond)) continue;
      cut.push({
        ...part,
        heads: [head, head + 1],
        entries: beyond,
        ...(positions.length > 1 ? { bias: beyondWindow(part.bias, keys, other.window, context) } : {}),
      });
    }
  }
  return [...outside, ...cut];
}

/** Entries whose keys stand at `limit` or before it. */
function beyondEntries(entries: Entries, keys: Int32Array, limit: number): Entries {
  const ranges: Range[] = [];
  for (const [start, end] of toRanges(entries, keys.length)) {
    let to = start;
    while (to < end && keys[to] <= limit) to++;
    if (to > start) ranges.push([start, to]);
  }
  return { ranges };
}

/**
 * `combine(a, b, length)` of the entries of KV heads [from, to): once for all of them, or head by head where one of the
 * two differs by head. Heads outside get none.
 */
function perHead(
  combine: (a: Entries, b: Entries, length: number) => Entries,
  a: HeadEntries,
  b: HeadEntries,
  heads: readonly [number, number],
  { view, shape }: Combining,
): HeadEntries {
  if (!isPerHead(a) && !isPerHead(b)) return combine(a, b, longest(view, heads));
  const count = Math.max(isPerHead(a) ? a.length : 1, isPerHead(b) ? b.length : 1);
  return Array.from({ length: count }, (_, i): Entries => {
    const kv = Math.floor((i * shape.kvHeads) / count);
    if (kv < heads[0] || kv >= heads[1]) return { ranges: [] };
    return combine(entriesOf(a, i, count), entriesOf(b, i, count), view.length(kv));
  });
}

/** Logits below this count as masked everywhere in the engine. */
const MASKED = -1e30;

/** A bias that masks, for each row, the keys within `window` of it. */
function beyondWindow(bias: LogBias | undefined, keys: Int32Array, window: number, context: Combining): LogBias {
  const { positions, shape, view } = context;
  const width = longest(view, [0, shape.kvHeads]);
  const data = new Float32Array(positions.length * width);
  for (let row = 0; row < positions.length; row++)
    for (let i = 0; i < keys.length; i++) if (positions[row] - keys[i] < window) data[row * width + i] = MASKED;
  const mask: LogBias = { data, heads: 1, rows: positions.length };
  return bias ? addBiases(bias, mask, shape) : mask;
}

function commonHeads(a: Part, b: Part, kvHeads: number): readonly [number, number] | undefined {
  const [fromA, toA] = a.heads ?? [0, kvHeads];
  const [fromB, toB] = b.heads ?? [0, kvHeads];
  const from = Math.max(fromA, fromB);
  const to = Math.min(toA, toB);
  return from < to ? [from, to] : undefined;
}

function longest(view: KeyView, [from, to]: readonly [number, number]): number {
  let length = 0;
  for (let head = from; head < to; head++) length = Math.max(length, view.length(head));
  return length;
}

type Range = readonly [start: number, end: number];
const PAGE = 16;

/** Sorted, disjoint, non-empty ranges of entries below `length`. */
export function toRanges(entries: Entries, length: number): Range[] {
  if (entries === "all") return length > 0 ? [[0, length]] : [];
  const raw: Range[] = [];
  if ("ranges" in entries) raw.push(...entries.ranges);
  else if ("pages" in entries) for (const p of entries.pages) raw.push([p * PAGE, (p + 1) * PAGE]);
  else for (const t of entries.tokens) raw.push([t, t + 1]);
  const clipped = raw
    .map(([a, b]): [number, number] => [Math.max(0, a), Math.min(length, b)])
    .filter(([a, b]) => a < b);
  clipped.sort((x, y) => x[0] - y[0]);
  const merged: [number, number][] = [];
  for (const [a, b] of clipped) {
    const last = merged.at(-1);
    if (last && a <= last[1]) last[1] = Math.max(last[1], b);
    else merged.push([a, b]);
  }
  return merged;
}

/** Entries that both name. */
export function intersectEntries(a: Entries, b: Entries, length: number): Entries {
  if (a === "all") return b;
  if (b === "all") return a;
  if ("pages" in a && "pages" in b) {
    const own = new Set(a.pages);
    return { pages: b.pages.filter((p) => own.has(p)) };
  }
  const x = toRanges(a, length);
  const y = toRanges(b, length);
  const ranges: Range[] = [];
  for (let i = 0, j = 0; i < x.length && j < y.length; ) {
    const from = Math.max(x[i][0], y[j][0]);
    const to = Math.min(x[i][1], y[j][1]);
    if (from < to) ranges.push([from, to]);
    if (x[i][1] < y[j][1]) i++;
    else j++;
  }
  return { ranges };
}

/** Entries of `a` that `b` does not name. */
export function subtractEntries(a: Entries, b: Entries, length: number): Entries {
  if (b === "all") return { ranges: [] };
  const holes = toRanges(b, length);
  if (holes.length === 0) return a;
  const ranges: Range[] = [];
  for (const [start, end] of toRanges(a, length)) {
    let at = start;
    for (const [from, to] of holes) {
      if (to <= at) continue;
      if (from >= end) break;
      if (from > at) ranges.push([at, from]);
      at = Math.max(at, to);
    }
    if (at < end) ranges.push([at, end]);
  }
  return { ranges };
}

function isEmpty(entries: HeadEntries): boolean {
  if (isPerHead(entries)) return entries.every(isEmpty);
  if (entries === "all") return false;
  if ("ranges" in entries) return entries.ranges.every(([a, b]) => a >= b);
  return ("pages" in entries ? entries.pages : entries.tokens).length === 0;
}
