import {
  type BudgetCard,
  type BudgetRange,
  type Card,
  catalog,
  type MethodCall,
  parseMethods,
  printMethods,
} from "../../attention/index.js";

/** What a budget bounds. */
export type BudgetKind = "read" | "keep";

/** A method string with a place for its budget. */
export interface Budgeted {
  /** The method string with the budget's value in its place. */
  at(value: number): string;
  /** The same with fewer layers that read everything by default; undefined where there are none or they were given. */
  readonly sparse?: Budgeted;
  readonly kind: BudgetKind;
  readonly range: BudgetRange;
}

const TOKENS: BudgetRange = { least: 1, step: 1 };

/** Names of parameters that set how much is read or kept, the likeliest first. */
const NAMES = ["tokens", "capacity", "budget", "keep", "share", "window"];

/**
 * Where a method string takes its budget: at `$` where it has one (`h2o(heavy=$,recent=32)`), else at the budget's
 * parameter of the first method that has one that was not given. Undefined for a string without such a place.
 */
export function budgeted(method: string): Budgeted | undefined {
  if (method.includes("$")) {
    const calls = parseMethods(method.replaceAll("$", "1"));
    return { at: (value) => method.replaceAll("$", String(value)), kind: kindOf(calls), range: TOKENS };
  }
  const calls = parseMethods(method);
  for (const [i, call] of calls.entries()) {
    const card = catalog.get(call.name)?.card;
    const place = card && placeOf(card);
    if (place && !(Object.keys(place.parts)[0] in call.params)) return fill(calls, i, place);
  }
  return undefined;
}

function placeOf(card: Card): BudgetCard | undefined {
  if (card.budget !== undefined) return card.budget ?? undefined;
  const hooks = ["select", "retain", "context"] as const;
  if (card.kind === "analysis" || !hooks.some((hook) => card.hooks.includes(hook))) return undefined;
  const found = NAMES.flatMap((n) => card.parameters.find((p) => p.name === n && /number/.test(p.type)) ?? [])[0];
  if (!found) return undefined;
  const share = /at most 1$/.test(found.type);
  const dense = card.parameters.some((p) => p.name === "denseLayers");
  return {
    parts: { [found.name]: 1 },
    ...(share && { range: { least: 0.001, most: 1, step: 0.001 } }),
    ...(dense && { sparse: { denseLayers: 0 } }),
  };
}

function fill(calls: readonly MethodCall[], i: number, place: BudgetCard): Budgeted {
  const { params } = calls[i];
  const { parts, also = {}, sparse, range = TOKENS, keeps } = place;
  const left = sparse && !Object.keys(sparse).some((name) => name in params);
  const at = (value: number, more: MethodCall["params"]) => {
    const own = Object.entries(parts).map(([name, part]) => [name, partOf(value, part, range)] as const);
    const call = { ...calls[i], params: { ...also, ...more, ...Object.fromEntries(own), ...params } };
    return printMethods(calls.map((c, j) => (i === j ? call : c)));
  };
  const keeping = keeps && Object.entries(keeps).every(([name, value]) => params[name] === value);
  const kind = keeping === undefined ? kindOf([calls[i]]) : keeping ? "keep" : "read";
  const base = { kind, range };
  return {
    ...base,
    at: (value) => at(value, {}),
    ...(left && { sparse: { ...base, at: (value: number) => at(value, sparse) } }),
  };
}

const partOf = (value: number, part: number, { step }: BudgetRange) =>
  step === 1 ? Math.max(1, Math.round(value * part)) : Number((value * part).toFixed(6));

/** What a method bounds: tokens kept where it evicts or shortens the text, else tokens read. */
function kindOf(calls: readonly MethodCall[]): BudgetKind {
  const hooks = calls.flatMap((c) => catalog.get(c.name)?.card.hooks ?? []);
  return hooks.includes("retain") || hooks.includes("context") ? "keep" : "read";
}

/** What was found for a budget. */
export interface Solved {
  readonly value: number;
  /** The share that was measured at the value. */
  readonly measured: number;
  /** False where even the least value takes more. */
  readonly met: boolean;
}

/** Above the budget by this share of it counts as meeting it. */
const TOLERANCE = 0.02;

/**
 * The greatest value whose measured share meets a budget: from the value that would be right if the budget were all
 * that is read, by straight lines through what was measured. `measure` must not fall as values grow; it is called ten
 * times at most.
 * @param depth tokens of the text
 */
export async function solveBudget(
  target: number,
  { least, most = Number.POSITIVE_INFINITY, step }: BudgetRange,
  depth: number,
  measure: (value: number) => Promise<number>,
): Promise<Solved> {
  const scale = Math.min(most, step === 1 && most === Number.POSITIVE_INFINITY ? depth : most);
  const clamp = (v: number) => Math.min(scale, Math.max(least, Number((Math.round(v / step) * step).toFixed(6))));
  const limit = target * (1 + TOLERANCE);
  const tried = new Set<number>();
  let low: Tried | undefined;
  let high: Tried | undefined;
  let next = clamp(target * scale);
  for (let round = 0; round < 10 && !tried.has(next); round++) {
    const share = await measure(next);
    tried.add(next);
    if (share > limit) {
      if (!high || next < high.value) high = { value: next, share };
    } else if (!low || next > low.value) low = { value: next, share };
    if (low && low.share >= target * (1 - TOLERANCE)) break;
    next = clamp(guess(target, scale, low, high));
    if (tried.has(next) && low && high && high.value - low.value > step) next = clamp((low.value + high.value) / 2);
    // below the least value that was tried there may be only the least of all
    if (tried.has(next) && !low) next = least;
    if (tried.has(next) && !high) next = scale;
  }
  if (low) return { value: low.value, measured: low.share, met: true };
  return { value: high?.value ?? next, measured: high?.share ?? 1, met: false };
}

/** A value with the share that was measured at it. */
interface Tried {
  readonly value: number;
  readonly share: number;
}

function guess(target: number, scale: number, low: Tried | undefined, high: Tried | undefined): number {
  if (low && high) {
    const slope = (high.share - low.share) / (high.value - low.value);
    return slope > 0 ? low.value + (target - low.share) / slope : (low.value + high.value) / 2;
  }
  const at = low ?? high;
  return at ? at.value + (target - at.share) * scale : target * scale;
}
