import { Tensor } from "./tensor.js";

let blocks = 0;

/**
 * Builds a block of a graph whose inner values `gradients` computes again in the backward pass instead of keeping them:
 * a run then holds the inner values of one block at a time, and takes about a third longer. `build` is called once;
 * only what it computes from `inputs` is recomputed, so weights, masks and tables may come from outside. The results and
 * the gradients are the same up to rounding. Blocks may follow one another; of nested ones the outermost counts.
 *
 * @example
 * for (const layer of layers) x = recompute([x], (x) => layer(x));
 */
export function recompute(inputs: readonly Tensor[], build: (...inputs: Tensor[]) => Tensor): Tensor;
export function recompute<Out extends Record<string, Tensor>>(
  inputs: readonly Tensor[],
  build: (...inputs: Tensor[]) => Out,
): Out;
export function recompute(
  inputs: readonly Tensor[],
  build: (...inputs: Tensor[]) => Tensor | Record<string, Tensor>,
): Tensor | Record<string, Tensor> {
  const block = ++blocks;
  // The borders are nodes of the graph, so that they stay where the graph is rebuilt, or a part of it called again.
  const border = (tensor: Tensor, side: "in" | "out"): Tensor => new Tensor("identity", [tensor], { block, side });
  const built = build(...inputs.map((tensor) => border(tensor, "in")));
  if (built instanceof Tensor) return border(built, "out");
  return Object.fromEntries(Object.entries(built).map(([name, tensor]) => [name, border(tensor, "out")]));
}

/** The tensors of one recomputed block, each after its inputs; and where it begins. */
export class Block {
  readonly starts = new Set<Tensor>();
  readonly inner: Tensor[] = [];
  private copies: ReadonlyMap<Tensor, Tensor> | undefined;

  /**
   * The copy of an inner tensor that is computed after `gradient`. Without that dependency the copy would be computed
   * before, or found to equal the original, and nothing would be saved.
   */
  copyOf(tensor: Tensor, gradient: Tensor): Tensor {
    this.copies ??= this.copy(gradient);
    return this.copies.get(tensor) ?? tensor;
  }

  private copy(gradient: Tensor): Map<Tensor, Tensor> {
    const copies = new Map<Tensor, Tensor>();
    for (const start of this.starts) copies.set(start, new Tensor("after", [start, gradient]));
    for (const tensor of this.inner) {
      const inputs = tensor.inputs.map((input) => copies.get(input) ?? input);
      copies.set(tensor, new Tensor(tensor.op, inputs, tensor.attrs, tensor.name));
    }
    return copies;
  }
}

/** The recomputed blocks that end among these tensors, by each of their tensors. */
export function recomputedBlocks(tensors: readonly Tensor[]): Map<Tensor, Block> {
  const found = new Map<Tensor, Block>();
  // From the end of the graph, so that of nested blocks the outer one is met first.
  for (const tensor of tensors.toReversed()) {
    if (tensor.attrs.side === "out" && !found.has(tensor)) enterBlock(tensor, found);
  }
  return found;
}

/** Finds what lies between an end of a block and its starts. */
function enterBlock(end: Tensor, found: Map<Tensor, Block>): void {
  const { block: id } = end.attrs;
  const inside = new Map<Tensor, boolean>();
  const order: Tensor[] = [];
  const starts: Tensor[] = [];
  let block: Block | undefined;
  const open: { tensor: Tensor; next: number }[] = [{ tensor: end, next: 0 }];
  inside.set(end, false);
  while (open.length > 0) {
    const top = open[open.length - 1];
    const { tensor } = top;
    const isStart = tensor.attrs.side === "in" && tensor.attrs.block === id;
    if (!isStart && top.next < tensor.inputs.length) {
      const input = tensor.inputs[top.next++];
      if (!inside.has(input)) {
        inside.set(input, false);
        open.push({ tensor: input, next: 0 });
      }
      continue;
    }
    open.pop();
    if (isStart) starts.push(tensor);
    const within = isStart || tensor.inputs.some((input) => inside.get(input));
    inside.set(tensor, within);
    if (!within) continue;
    block ??= found.get(tensor);
    if (!isStart) order.push(tensor);
  }
  block ??= new Block();
  for (const start of starts) {
    block.starts.add(start);
    found.set(start, block);
  }
  for (const tensor of order) {
    if (found.has(tensor)) continue;
    block.inner.push(tensor);
    found.set(tensor, block);
  }
}
