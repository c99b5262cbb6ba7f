import { z } from "zod";
import { FoveaError } from "../error.js";
import type { Tensor } from "../graph/index.js";

/** Sizes that a mechanism's weights and state are made for. */
export interface MechanismShape {
  readonly width: number;
  /** Heads H; keys and values are given once for each. */
  readonly heads: number;
  /** Key-value heads: query head h has the keys and values of head floor(h / (heads / kvHeads)). */
  readonly kvHeads: number;
  readonly headDim: number;
}

/** What a mechanism is given. B sequences, H heads, T rows, S keys, D a head's width, d the model's. */
export interface MechanismInputs {
  /** [B, H, T, D], rotated unless the mechanism says that it wants none. */
  readonly q: Tensor;
  /** [B, H, S, D], each key-value head repeated for its query heads. */
  readonly k: Tensor;
  /** [B, H, S, D] */
  readonly v: Tensor;
  /** float32, broadcasts to [B, H, T, S]: 1 where a row may look, 0 elsewhere. Of stateful ones [B, 1, T, T]. */
  readonly mask: Tensor;
  /** The block's normed input [B, T, d]. */
  readonly x: Tensor;
  /** int64 [B, T] number of each row's text within its sequence; undefined where a sequence is one text. */
  readonly documents: Tensor | undefined;
  /** Its own weights, by name. */
  readonly weights: Readonly<Record<string, Tensor>>;
  /** What it carries from the rows before, by name: [B, ...]; zero at the beginning of a text. */
  readonly state: Readonly<Record<string, Tensor>>;
  /** The model's factor on q.k. */
  readonly scale: number;
  /** int64 [B, T] */
  readonly positions: Tensor;
  /** How many rows T stands for at most, where it is no number. */
  readonly longest: number;
  /** [B, M, m] rows beside the text, where the mechanism declares a `memory`. */
  readonly memory: Tensor | undefined;
}

/** What a mechanism that declares a `memory` is given. M rows of width m, the same for all layers. */
export interface MemoryInputs extends MechanismInputs {
  /** [B, M, m] */
  readonly memory: Tensor;
}

/** What a mechanism gives: its heads' outputs [B, H, T, D], and what it carries on where it declares a state. */
export type MechanismResult = Tensor | { readonly out: Tensor; readonly state: Readonly<Record<string, Tensor>> };

/** A weight of a mechanism's own, one or two axes. */
export interface MechanismWeight {
  readonly shape: readonly number[];
  /** First values: normal with deviation 0.02 (default), or one number for all. */
  readonly first?: "normal" | number;
}

/** A mechanism: the whole of attention, replaced. Written once over graph tensors, then trained, run and exported. */
export interface MechanismDefinition<
  P extends z.ZodObject = z.ZodObject,
  Inputs extends MechanismInputs = MechanismInputs,
> {
  /** Words of a-z and 0-9 joined by "-"; a checkpoint's config.json names it so. */
  readonly name: string;
  /** One sentence. */
  readonly does?: string;
  /** A zod object; every parameter with a default. */
  readonly parameters?: P;
  /** Whether q and k are rotated. Default true. */
  readonly rotary?: boolean;
  weights?(shape: MechanismShape, parameters: z.output<P>): Readonly<Record<string, MechanismWeight>>;
  /**
   * Shapes of what it carries from row to row, without the axis of sequences. A mechanism with a state needs no cached
   * keys: while decoding it is given one row and the state.
   */
  state?(shape: MechanismShape, parameters: z.output<P>): Readonly<Record<string, readonly number[]>>;
  /**
   * Declares that it reads a memory, and the width m of its rows. Batches of training bring it in `extras`, under the name
   * "memory" [B, M, m]; while running it belongs to the sequence; an exported file has an input of that name.
   */
  memory?(shape: MechanismShape, parameters: z.output<P>): number;
  /**
   * Rows that `forward` takes at most when it is run with a state over rows of unknown number; a longer text goes in
   * pieces of so many, the last one shorter. Default 64.
   */
  readonly rows?: number;
  forward(inputs: Inputs, parameters: z.output<P>): MechanismResult;
  /** A cheaper form of `forward` for one row; held to it by a test of the mechanism's. */
  step?(inputs: Inputs, parameters: z.output<P>): MechanismResult;
}

/** One that reads a memory. */
export type MemoryDefinition<P extends z.ZodObject = z.ZodObject> = MechanismDefinition<P, MemoryInputs> &
  Required<Pick<MechanismDefinition<P>, "memory">>;

/** A mechanism with its parameters, as a model's config holds it. */
export interface MechanismUse {
  readonly name: string;
  readonly parameters: Readonly<Record<string, unknown>>;
}

/** A mechanism to be used: call it with parameters, or give it as it is for their defaults. */
export interface MechanismFactory<P extends z.ZodObject = z.ZodObject> {
  (parameters?: z.input<P>): MechanismUse;
  readonly definition: MechanismDefinition<P>;
}

const registry = new Map<string, MechanismDefinition>();

/**
 * Defines a mechanism and makes its name known, so that checkpoints that name it can be loaded in this thread.
 *
 * @example
 * const squared = mechanism({
 *   name: "squared-relu-attention",
 *   forward: ({ q, k, v, mask }) => {
 *     const pattern = q.matmul(k.transpose()).relu().square().mul(mask); // [B, H, T, S]
 *     return pattern.div(pattern.sum(-1, { keep: true }).add(1e-6)).matmul(v);
 *   },
 * });
 * decoder({ mechanism: squared });
 *
 * @throws FoveaError `bad-input` for a name that is none, or another mechanism's
 */
export function mechanism<P extends z.ZodObject = z.ZodObject<Record<never, never>>>(
  definition: MemoryDefinition<P>,
): MechanismFactory<P>;
export function mechanism<P extends z.ZodObject = z.ZodObject<Record<never, never>>>(
  definition: MechanismDefinition<P>,
): MechanismFactory<P>;
export function mechanism<P extends z.ZodObject>(definition: MechanismDefinition<P>): MechanismFactory<P> {
  const { name } = definition;
  if (!/^[a-z][a-z0-9]*(-[a-z0-9]+)*$/.test(name))
    throw new FoveaError("bad-input", `a mechanism's name is ${JSON.stringify(name)}; expected words joined by "-"`);
  registry.set(name, definition as unknown as MechanismDefinition);
  const use = (parameters: z.input<P> = {} as z.input<P>): MechanismUse => useMechanism({ name, parameters });
  return Object.assign(use, { definition });
}

/** A mechanism as it is given to a model: a use of it, or itself. */
export function useOf(given: MechanismUse | MechanismFactory): MechanismUse {
  return typeof given === "function" ? given() : useMechanism(given);
}

/** A name and parameters from anywhere, checked and completed. Throws `not-found`, `bad-input`. */
export function useMechanism({ name, parameters }: MechanismUse): MechanismUse {
  const schema = definitionOf(name).parameters ?? z.object({});
  const parsed = z.strictObject(schema.shape).safeParse(parameters);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw new FoveaError("bad-input", `${name}: ${issue.path.join(".") || "its parameters"}: ${issue.message}`, {
      hint: `its parameters are ${Object.keys(schema.shape).join(", ") || "none"}`,
    });
  }
  return { name, parameters: parsed.data };
}

/** The definition under a name. Throws `not-found`, naming those that there are. */
export function definitionOf(name: string): MechanismDefinition {
  const found = registry.get(name);
  if (found) return found;
  throw new FoveaError("not-found", `no mechanism is called ${JSON.stringify(name)}`, {
    hint: `known here: ${[...registry.keys()].join(", ")}. Import the module that defines it first (fovea/attention for the project's own); a worker does not have yours, so load with { worker: false }.`,
  });
}

/** Names of all mechanisms that are known in this thread. */
export function mechanismNames(): string[] {
  return [...registry.keys()];
}

/** A mechanism of a config, bound to a model's sizes. */
export class BoundMechanism {
  readonly name: string;
  readonly rotary: boolean;
  readonly rows: number;
  readonly weights: Readonly<Record<string, MechanismWeight>>;
  /** Undefined where it has no state: then it reads cached keys and values. */
  readonly state: Readonly<Record<string, readonly number[]>> | undefined;
  /** Width m of a memory's rows; undefined where it reads none. */
  readonly memory: number | undefined;
  readonly #definition: MechanismDefinition;
  readonly #parameters: Record<string, unknown>;

  constructor(use: MechanismUse, shape: MechanismShape) {
    const definition = definitionOf(use.name);
    const parameters = useMechanism(use).parameters as Record<string, unknown>;
    this.#definition = definition;
    this.#parameters = parameters;
    this.name = use.name;
    this.rotary = definition.rotary ?? true;
    this.rows = definition.rows ?? 64;
    this.weights = definition.weights?.(shape, parameters) ?? {};
    this.state = definition.state?.(shape, parameters);
    this.memory = definition.memory?.(shape, parameters);
    if (this.memory !== undefined && !(Number.isInteger(this.memory) && this.memory >= 1))
      throw new FoveaError("bad-input", `${this.name} declares a memory of width ${this.memory}`, {
        hint: "return a whole number of at least 1, for example the model's width",
      });
  }

  forward(inputs: MechanismInputs): { out: Tensor; state: Readonly<Record<string, Tensor>> } {
    return this.#result(this.#definition.forward(inputs, this.#parameters));
  }

  /** One row: by `step` where there is one. */
  step(inputs: MechanismInputs): { out: Tensor; state: Readonly<Record<string, Tensor>> } {
    const { step, forward } = this.#definition;
    return this.#result((step ?? forward)(inputs, this.#parameters));
  }

  #result(result: MechanismResult): { out: Tensor; state: Readonly<Record<string, Tensor>> } {
    const { out, state } = "op" in result ? { out: result, state: {} } : result;
    const missing = Object.keys(this.state ?? {}).find((name) => !(name in state));
    if (missing !== undefined)
      throw new FoveaError("bad-input", `${this.name} declares the state ${missing} and does not return it`);
    return { out, state };
  }

  /** Bytes of state that a sequence takes in one layer. */
  get stateBytes(): number {
    const shapes = Object.values(this.state ?? {});
    return shapes.reduce((sum, shape) => sum + 4 * shape.reduce((a, b) => a * b, 1), 0);
  }
}
