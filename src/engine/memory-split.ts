import type { GraphCut, Tensor } from "../graph/index.js";

/** A graph between inputs and outputs, all of them there. */
export interface Cut extends GraphCut {
  readonly inputs: Readonly<Record<string, Tensor>>;
  readonly outputs: Readonly<Record<string, Tensor>>;
}

/**
 * A graph with an input `memory` in two: what depends on the memory alone (its keys and values, say), which need be
 * computed only once for a sequence, and the rest, which takes that as further inputs. Undefined where nothing does.
 */
export function splitMemory({ inputs, outputs }: Cut): { readonly alone: Cut; readonly rest: Cut } | undefined {
  const { memory, ...rows } = inputs;
  if (!memory) return undefined;
  const kinds = new Map<Tensor, "free" | "memory" | "rows">([[memory, "memory"]]);
  for (const tensor of Object.values(rows)) kinds.set(tensor, "rows");
  const given = new Set(Object.values(inputs));
  const kindOf = (tensor: Tensor): "free" | "memory" | "rows" => {
    const found = kinds.get(tensor);
    if (found) return found;
    const of = tensor.inputs.map(kindOf);
    const kind = of.includes("rows") ? "rows" : of.includes("memory") ? "memory" : "free";
    kinds.set(tensor, kind);
    return kind;
  };
  for (const output of Object.values(outputs)) kindOf(output);
  const border = new Set<Tensor>();
  for (const [tensor, kind] of kinds)
    if (kind === "rows" && !given.has(tensor))
      for (const from of tensor.inputs) if (kinds.get(from) === "memory" && from !== memory) border.add(from);
  if (border.size === 0) return undefined;
  const made = Object.fromEntries([...border].map((tensor, i) => [`of_memory.${i}`, tensor]));
  return { alone: { inputs: { memory }, outputs: made }, rest: { inputs: { ...inputs, ...made }, outputs } };
}
