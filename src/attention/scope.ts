import type {
  ActivationsStep,
  AttentionStep,
  HeadsStep,
  Hooks,
  KeysStep,
  LogBias,
  ModelShape,
  Part,
  Partial,
  RetainStep,
  Rows,
} from "../engine/hooks.js";
import { isPartial } from "../engine/hooks.js";
import { FoveaError } from "../error.js";
import type { HeadName } from "./string.js";

/** Hooks that can be limited to heads from outside, so that a method need not think of its scope. */
export const HEAD_HOOKS: readonly (keyof Hooks)[] = [
  "state",
  "observe",
  "activations",
  "keys",
  "retain",
  "select",
  "bias",
  "scores",
  "pattern",
  "heads",
];

/**
 * The same hooks, limited to query heads: other heads read, keep and give what they would without the method. What is
 * decided per key-value head (select, retain, keys, values) is limited to those whose query heads are all in scope;
 * `compose` refuses a scope that cuts through a group. Observing is not limited.
 */
export function limitToHeads(hooks: Hooks, heads: readonly HeadName[]): Hooks {
  const limited: Hooks = { ...hooks };
  const within = (layer: number, model: ModelShape) => headsInScope(heads, layer, model);
  const { activations, keys, retain, select, bias, scores, pattern, heads: outputs } = hooks;
  if (activations)
    limited.activations = (step: ActivationsStep) => {
      const { query, kv } = within(step.layer, step.model);
      const restore = [
        keepRows(step.q, step.rows, query),
        keepRows(step.k, step.rows, kv),
        keepRows(step.v, step.rows, kv),
      ];
      activations(step);
      for (const back of restore) back();
    };
  if (keys)
    limited.keys = (step: KeysStep) => {
      const { kv } = within(step.layer, step.model);
      const restore = [keepRows(step.k, step.rows, kv), keepRows(step.v, step.rows, kv)];
      keys(step);
      for (const back of restore) back();
    };
  if (retain)
    limited.retain = (step: RetainStep) => {
      const { kv } = within(step.layer, step.model);
      const keep: RetainStep["keep"] = (head, entries) => {
        if (kv[head]) step.keep(head, entries);
      };
      return retain(Object.create(step, { keep: { value: keep } }));
    };
  if (select)
    limited.select = async (step: AttentionStep) => {
      const { kv } = within(step.layer, step.model);
      return limitParts(await select(step), kv);
    };
  if (bias)
    limited.bias = (step: AttentionStep) => {
      const added = bias(step);
      return added && limitBias(added, within(step.layer, step.model).query, step.model.kvHeads);
    };
  for (const [name, edit] of [
    ["scores", scores],
    ["pattern", pattern],
  ] as const)
    if (edit)
      limited[name] = (step: AttentionStep, rows: Rows) => {
        const { query } = within(step.layer, step.model);
        const size = rows.rows * rows.keys;
        const saved = query.map((inside, h) => (inside ? undefined : rows.data.slice(h * size, (h + 1) * size)));
        edit(step, rows);
        for (const [h, data] of saved.entries()) if (data) rows.data.set(data, h * size);
      };
  if (outputs)
    limited.heads = (step: HeadsStep) => {
      const back = keepRows(step.heads, step.rows, within(step.layer, step.model).query);
      outputs(step);
      back();
    };
  return limited;
}

/** Which query heads of a layer a list names, and which KV heads it names with all their query heads. */
export function headsInScope(heads: readonly HeadName[], layer: number, model: ModelShape) {
  const query = new Array<boolean>(model.heads).fill(false);
  for (const h of heads) if ((h.layer < 0 ? h.layer + model.layers : h.layer) === layer) query[h.head] = true;
  const group = model.heads / model.kvHeads;
  const kv = Array.from({ length: model.kvHeads }, (_, g) => query.slice(g * group, (g + 1) * group).every(Boolean));
  return { query, kv };
}

/** Saves the heads outside the scope of x [T, H, D]; the function returned puts them back. */
function keepRows(x: Float32Array, rows: number, inside: readonly boolean[]): () => void {
  const heads = inside.length;
  const dim = x.length / (rows * heads);
  if (inside.every(Boolean)) return () => {};
  const saved = x.slice();
  return () => {
    for (let t = 0; t < rows; t++)
      for (let h = 0; h < heads; h++) {
        const at = (t * heads + h) * dim;
        if (!inside[h]) x.set(saved.subarray(at, at + dim), at);
      }
  };
}

function limitParts(parts: readonly (Part | Partial)[], inside: readonly boolean[]): readonly (Part | Partial)[] {
  if (inside.every(Boolean)) return parts;
  const limited: Part[] = [];
  for (let from = 0; from < inside.length; ) {
    let to = from + 1;
    while (to < inside.length && inside[to] === inside[from]) to++;
    if (!inside[from]) limited.push({ heads: [from, to] });
    else
      for (const part of parts) {
        if (isPartial(part))
          throw new FoveaError("unsupported", "a method that returns ready results cannot be limited to heads", {
            hint: "give it `layers` instead",
          });
        const first = Math.max(from, part.heads?.[0] ?? from);
        const last = Math.min(to, part.heads?.[1] ?? to);
        if (first < last) limited.push({ ...part, heads: [first, last] });
      }
    from = to;
  }
  return limited;
}

function limitBias(bias: LogBias, inside: readonly boolean[], kvHeads: number): LogBias {
  const heads = inside.length;
  const size = bias.data.length / bias.heads;
  const data = new Float32Array(heads * size);
  for (let h = 0; h < heads; h++) {
    if (!inside[h]) continue;
    const own = bias.heads === heads ? h : bias.heads === 1 ? 0 : Math.floor(h / (heads / kvHeads));
    data.set(bias.data.subarray(own * size, (own + 1) * size), h * size);
  }
  return { data, heads, rows: bias.rows };
}
