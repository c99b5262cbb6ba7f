import { FoveaError } from "../error.js";
import { type CompileOptions, compile, type Segment, type Tensor } from "../graph/index.js";
import type { ModelConfig, ModelGraph } from "../models/index.js";

/** Taps inside a dense segment at which a hook may edit; in the order in which the data flows from one attention to the next. */
export const SEGMENT_TAPS = ["attn_out", "mlp_gate", "mlp_out", "residual"] as const;
export type SegmentTap = (typeof SEGMENT_TAPS)[number];

/** A stop on the way from one attention to the next: a hook edits the tensor of `tap` in `layer` there. */
export interface Stop {
  readonly tap: SegmentTap;
  readonly layer: number;
}

/** One compiled stretch: inputs by key, outputs by key, and the stop at its end (none at the end of the way). */
export interface Link {
  readonly segment: Segment;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  /** Per output its shape after the rows. */
  readonly tails: readonly (readonly number[])[];
  readonly stop?: Stop;
}

/**
 * The dense segments of a model, compiled on first use. Segment l runs from the heads' outputs of layer l-1 to the
 * projections of layer l; segment 0 starts at the embeddings and segment L ends at the logits. Where hooks need a
 * tap on the way, the segment is cut there into links; only that segment is compiled anew.
 */
export class Segments {
  readonly #graph: ModelGraph;
  readonly #config: ModelConfig;
  readonly #options: CompileOptions;
  readonly #cache = new Map<string, Promise<readonly Link[]>>();

  constructor(graph: ModelGraph, config: ModelConfig, options: CompileOptions) {
    this.#graph = graph;
    this.#config = config;
    this.#options = options;
  }

  /** The links of segment `index` (0 ... L) with the given stops. */
  get(index: number, stops: readonly Stop[] = []): Promise<readonly Link[]> {
    const key = `${index}|${stops.map((s) => `${s.tap}.${s.layer}`).join(",")}`;
    let links = this.#cache.get(key);
    if (!links) {
      links = this.#compile(index, stops);
      links.catch(() => this.#cache.delete(key));
      this.#cache.set(key, links);
    }
    return links;
  }

  /** Frees all compiled segments. */
  async release(): Promise<void> {
    for (const links of this.#cache.values()) for (const link of await links) await link.segment.release();
    this.#cache.clear();
  }

  #tap(name: string): Tensor {
    const tensor = this.#graph.taps.get(name);
    if (!tensor) throw new FoveaError("internal", `the model's graph has no tap ${name}`);
    return tensor;
  }

  async #compile(index: number, stops: readonly Stop[]): Promise<readonly Link[]> {
    const last = index === this.#config.layers;
    const known = new Map<string, Tensor>();
    known.set(`residual.${Math.max(0, index - 1)}`, this.#tap(`residual.${Math.max(0, index - 1)}`));
    if (index > 0) known.set(`heads.${index - 1}`, this.#tap(`heads.${index - 1}`));
    const targets = new Map<string, Tensor>();
    if (last) targets.set("logits", this.#graph.logits);
    else {
      if (index > 0) targets.set(`residual.${index}`, this.#tap(`residual.${index}`));
      const read = this.#config.mechanism ? ["q", "k", "v", "attn_in"] : ["q", "k", "v"];
      for (const name of read) targets.set(name, this.#tap(`${name}.${index}`));
    }
    const links: Link[] = [];
    for (const stop of stops) {
      const name = `${stop.tap}.${stop.layer}`;
      const tensor = this.#tap(name);
      if (known.has(name)) {
        // the residual entering layer 0 is the segment's own input: nothing to run before the hook
        continue;
      }
      const rest = [
        ...targets.values(),
        ...stops.slice(stops.indexOf(stop) + 1).map((s) => this.#tap(`${s.tap}.${s.layer}`)),
      ];
      const outputs = new Map([[name, tensor]]);
      let extra = 0;
      for (const t of frontier([...known.values()], tensor, rest)) outputs.set(`between.${links.length}.${extra++}`, t);
      links.push(await this.#link(known, outputs, stop));
      for (const [key, t] of outputs) known.set(key, t);
    }
    links.push(await this.#link(known, targets));
    return links;
  }

  async #link(known: ReadonlyMap<string, Tensor>, outputs: ReadonlyMap<string, Tensor>, stop?: Stop): Promise<Link> {
    // an output that is known already (a residual that a hook edited) passes through untouched
    const wanted = [...outputs].filter(([key]) => !known.has(key));
    const used = reached(
      wanted.map(([, t]) => t),
      new Set(known.values()),
    );
    const inputs = [...known].filter(([, t]) => used.has(t));
    const segment = await compile(
      { inputs: Object.fromEntries(inputs), outputs: Object.fromEntries(wanted) },
      this.#options,
    );
    return {
      segment,
      inputs: inputs.map(([key]) => key),
      outputs: wanted.map(([key]) => key),
      tails: wanted.map(([, t]) => t.shape.slice(1).map(Number)),
      stop,
    };
  }
}

/** Tensors reached backwards from `outputs`, the walk stopping at `cut` (which are included where reached). */
export function reached(outputs: readonly Tensor[], cut: ReadonlySet<Tensor>): Set<Tensor> {
  const seen = new Set<Tensor>();
  const stack = [...outputs];
  for (let t = stack.pop(); t; t = stack.pop()) {
    if (seen.has(t)) continue;
    seen.add(t);
    if (!cut.has(t)) stack.push(...t.inputs);
  }
  return seen;
}

/**
 * The tensors that a link ending at `stop` computes on its way and that the rest of the way reads again: they become
 * outputs of the link, so that nothing is computed twice.
 */
function frontier(known: readonly Tensor[], stop: Tensor, rest: readonly Tensor[]): Tensor[] {
  const cut = new Set(known);
  const computed = reached([stop], cut);
  // what depends on no known tensor (parameters, constants) is cheap to have twice and is no activation
  const active = new Map<Tensor, boolean>();
  const order = [...computed];
  const isActive = (t: Tensor): boolean => {
    const memo = active.get(t);
    if (memo !== undefined) return memo;
    const value = cut.has(t) || t.inputs.some(isActive);
    active.set(t, value);
    return value;
  };
  for (const t of order) isActive(t);
  const later = reached(rest, new Set([...known, stop]));
  const found = new Set<Tensor>();
  for (const t of later) {
    if (computed.has(t)) continue;
    for (const i of t.inputs) if (computed.has(i) && i !== stop && !cut.has(i) && active.get(i)) found.add(i);
  }
  return [...found];
}
