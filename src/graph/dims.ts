/**
 * A dimension: a count, or a symbolic expression such as `"T"`, `"S + T"` or `"2*T"`. Dimensions that nothing is known
 * of are written `"?1"`, `"?2"`, ...; they agree with every other dimension.
 */
export type Dim = number | string;

/** A polynomial with integer coefficients: monomial ("" is the constant, "S*T" a product) to coefficient. */
type Polynomial = ReadonlyMap<string, number>;

const parsed = new Map<string, Polynomial>();
let unknowns = 0;

/** A dimension that is known only at run time and has no name. */
export function unknownDim(): string {
  unknowns++;
  return `?${unknowns}`;
}

/** Whether a dimension stands for any number. */
export function isUnknown(dim: Dim): boolean {
  return typeof dim === "string" && dim.startsWith("?");
}

function polynomial(dim: Dim): Polynomial {
  if (typeof dim === "number") return new Map(dim === 0 ? [] : [["", dim]]);
  const known = parsed.get(dim);
  if (known) return known;
  const terms = new Map<string, number>();
  for (const [, sign, term] of dim.replace(/\s+/g, "").matchAll(/([+-]?)([^+-]+)/g)) {
    let coefficient = sign === "-" ? -1 : 1;
    const symbols: string[] = [];
    for (const factor of term.split("*")) {
      if (/^\d+$/.test(factor)) coefficient *= Number(factor);
      else symbols.push(factor);
    }
    const key = symbols.sort().join("*");
    terms.set(key, (terms.get(key) ?? 0) + coefficient);
  }
  for (const [key, coefficient] of terms) if (coefficient === 0) terms.delete(key);
  parsed.set(dim, terms);
  return terms;
}

function format(terms: Polynomial): Dim {
  const keys = [...terms.keys()].sort((a, b) => Number(a === "") - Number(b === "") || (a < b ? -1 : 1));
  if (keys.length === 0) return 0;
  if (keys.length === 1 && keys[0] === "") return terms.get("")!;
  let text = "";
  for (const key of keys) {
    const coefficient = terms.get(key)!;
    const size = Math.abs(coefficient);
    const body = key === "" ? String(size) : size === 1 ? key : `${size}*${key}`;
    if (text === "") text = coefficient < 0 ? `-${body}` : body;
    else text += coefficient < 0 ? ` - ${body}` : ` + ${body}`;
  }
  return text;
}

/** The canonical spelling of a dimension: `"T+S"` and `"S + T"` become one string. */
export function canonicalDim(dim: Dim): Dim {
  return typeof dim === "number" ? dim : format(polynomial(dim));
}

/** a + b */
export function addDims(a: Dim, b: Dim): Dim {
  if (typeof a === "number" && typeof b === "number") return a + b;
  const sum = new Map(polynomial(a));
  for (const [key, coefficient] of polynomial(b)) {
    const total = (sum.get(key) ?? 0) + coefficient;
    if (total === 0) sum.delete(key);
    else sum.set(key, total);
  }
  return format(sum);
}

/** a - b */
export function subtractDims(a: Dim, b: Dim): Dim {
  return addDims(a, multiplyDims(b, -1));
}

/** a * b */
export function multiplyDims(a: Dim, b: Dim): Dim {
  if (typeof a === "number" && typeof b === "number") return a * b;
  const product = new Map<string, number>();
  for (const [left, x] of polynomial(a)) {
    for (const [right, y] of polynomial(b)) {
      const key = [...left.split("*"), ...right.split("*")].filter(Boolean).sort().join("*");
      product.set(key, (product.get(key) ?? 0) + x * y);
    }
  }
  for (const [key, coefficient] of product) if (coefficient === 0) product.delete(key);
  return format(product);
}

/** a / b where b divides every term of a exactly and is a single term; undefined where it does not. */
export function divideDims(a: Dim, b: Dim): Dim | undefined {
  if (a === b) return 1;
  const divisor = [...polynomial(b)];
  if (divisor.length !== 1) return undefined;
  const [symbols, divisorCoefficient] = divisor[0];
  const quotient = new Map<string, number>();
  for (const [key, coefficient] of polynomial(a)) {
    if (coefficient % divisorCoefficient !== 0) return undefined;
    const left = key.split("*").filter(Boolean);
    for (const symbol of symbols.split("*").filter(Boolean)) {
      const at = left.indexOf(symbol);
      if (at < 0) return undefined;
      left.splice(at, 1);
    }
    quotient.set(left.join("*"), coefficient / divisorCoefficient);
  }
  return format(quotient);
}

/** The number of elements of a shape. */
export function productOfDims(dims: readonly Dim[]): Dim {
  let count = 1;
  let product: Dim = 1;
  for (const dim of dims) {
    if (typeof dim === "number") count *= dim;
    else product = multiplyDims(product, dim);
  }
  return multiplyDims(product, count);
}

/** The terms of a symbolic dimension, for computing it at run time: coefficient and the symbols multiplied. */
export function dimTerms(dim: Dim): { coefficient: number; symbols: string[] }[] {
  return [...polynomial(dim)].map(([key, coefficient]) => ({
    coefficient,
    symbols: key.split("*").filter(Boolean),
  }));
}

/** A dimension with symbols replaced by what they stand for; symbols that stand for nothing stay. */
export function replaceSymbols(dim: Dim, meanings: ReadonlyMap<string, Dim>): Dim {
  if (typeof dim === "number") return dim;
  let sum: Dim = 0;
  for (const { coefficient, symbols } of dimTerms(dim)) {
    let product: Dim = coefficient;
    for (const symbol of symbols) product = multiplyDims(product, meanings.get(symbol) ?? symbol);
    sum = addDims(sum, product);
  }
  return sum;
}

/** Whether two dimensions may be the same: equal, or one of them unknown. */
export function dimsAgree(a: Dim, b: Dim): boolean {
  return a === b || isUnknown(a) || isUnknown(b);
}

/** A shape as text: `[T, 9, 64]`. */
export function formatShape(shape: readonly Dim[]): string {
  return `[${shape.join(", ")}]`;
}
