import type { AttentionStep } from "../../engine/hooks.js";
import { addToTables, emptyTables, type HashTables, manyCodes } from "./hash-tables.js";

/** Hashed keys of a KV head: those behind the sinks, without the window and without what came since. */
export interface HashedKeys {
  /** Their absolute positions. */
  positions: Int32Array;
  /** How many there were when the centre was taken. */
  centred: number;
  /** Mean key, [D]. */
  centre: Float32Array;
  /** |k - centre|, [n]. */
  norms: Float32Array;
  tables: HashTables;
}

/** Which keys are hashed, and how. */
interface Hashing {
  readonly sinks: number;
  readonly window: number;
  readonly batch: number;
  readonly bits: number;
  readonly tables: number;
}

/** The layer's hashed keys, up to date: new ones join in batches; after an eviction all are taken anew. */
export async function hashedKeys(
  step: AttentionStep<Map<number, HashedKeys[]>>,
  { sinks, window, batch, bits, tables }: Hashing,
  planes: Float32Array,
): Promise<HashedKeys[]> {
  const { kvHeads, headDim } = step.model;
  const none = (): HashedKeys => ({
    positions: new Int32Array(0),
    centred: 0,
    centre: new Float32Array(headDim),
    norms: new Float32Array(0),
    tables: emptyTables(tables, bits),
  });
  const layer = step.state.get(step.layer) ?? Array.from({ length: kvHeads }, none);
  step.state.set(step.layer, layer);
  const fresh = layer.map((own, kv) => {
    const positions = step.view.positions(kv);
    const far = Math.max(0, positions.length - sinks - window);
    const intact = own.positions.length <= far && own.positions.every((p, i) => p === positions[sinks + i]);
    if (!intact) layer[kv] = none();
    if (far - layer[kv].positions.length < batch) return new Float32Array(0);
    if (far >= 2 * layer[kv].centred) layer[kv] = none();
    return takeKeys(layer[kv], positions.slice(sinks, sinks + far), step.view.keys(kv).subarray(sinks * headDim));
  });
  if (fresh.every((keys) => keys.length === 0)) return layer;
  for (const [kv, codes] of (await manyCodes(step, planes, bits, fresh)).entries())
    if (codes.length > 0) layer[kv].tables = addToTables(layer[kv].tables, codes);
  return layer;
}

/** Takes keys up that are not known yet; returns them less the centre, [n, D]. The first ones set the centre. */
function takeKeys(own: HashedKeys, positions: Int32Array, all: Float32Array): Float32Array {
  const dim = own.centre.length;
  const known = own.positions.length;
  const keys = all.slice(known * dim, positions.length * dim);
  if (known === 0) {
    for (let i = 0; i < keys.length; i++) own.centre[i % dim] += keys[i] / positions.length;
    own.centred = positions.length;
  }
  for (let i = 0; i < keys.length; i++) keys[i] -= own.centre[i % dim];
  const norms = new Float32Array(positions.length);
  norms.set(own.norms);
  for (let i = known; i < positions.length; i++) {
    const key = keys.subarray((i - known) * dim, (i - known + 1) * dim);
    norms[i] = Math.sqrt(dot(key, key));
  }
  own.positions = positions;
  own.norms = norms;
  return keys;
}

export function dot(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}
