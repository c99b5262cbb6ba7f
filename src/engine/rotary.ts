import type { RotaryPlan } from "./hooks.js";

/**
 * Rotates rows of heads in place, half-split layout: x [T, H, D]; dimension i < dims/2 pairs with i + dims/2. Row t is
 * turned by positions[t] * plan.inverse; cos and sin carry plan.multiplier. Angles are formed in float64, so far
 * positions lose nothing.
 */
export function rotate(
  x: Float32Array,
  heads: number,
  headDim: number,
  positions: ArrayLike<number>,
  plan: RotaryPlan,
  table?: RotaryTable,
): void {
  const half = plan.dims >> 1;
  const tables = table ?? new RotaryTable(plan);
  const { groups = 1 } = plan;
  for (let t = 0, row = 0; t < positions.length; t++, row += heads * headDim) {
    const start = tables.row(positions[t]);
    const { cos, sin } = tables;
    for (let h = 0, base = row; h < heads; h++, base += headDim) {
      const at = groups === 1 ? start : start + Math.floor((h * groups) / heads) * half;
      for (let i = 0; i < half; i++) {
        const a = x[base + i];
        const b = x[base + half + i];
        const c = cos[at + i];
        const s = sin[at + i];
        x[base + i] = a * c - b * s;
        x[base + half + i] = b * c + a * s;
      }
    }
  }
}

/** cos and sin of a plan by position, filled as positions are asked for; one per plan serves every layer. */
export class RotaryTable {
  readonly plan: RotaryPlan;
  cos: Float32Array;
  sin: Float32Array;
  #filled: Uint8Array;
  /** Numbers of a row: half the rotated dimensions, for each group of heads. */
  readonly #width: number;
  /** Positions beyond this are computed into a scratch row instead of being kept. */
  static readonly kept = 1 << 17;

  constructor(plan: RotaryPlan) {
    this.plan = plan;
    this.#width = (plan.dims >> 1) * (plan.groups ?? 1);
    this.cos = new Float32Array(this.#width * 64);
    this.sin = new Float32Array(this.#width * 64);
    this.#filled = new Uint8Array(64);
  }

  /** Offset of the position's row in `cos` and `sin`; valid until the next call. */
  row(position: number): number {
    const slot = Number.isInteger(position) && position >= 0 && position < RotaryTable.kept ? position + 1 : 0;
    if (slot >= this.#filled.length) this.#grow(slot + 1);
    if (slot === 0 || this.#filled[slot] === 0) {
      const { inverse, multiplier } = this.plan;
      for (let i = 0, at = slot * this.#width; i < this.#width; i++, at++) {
        this.cos[at] = Math.cos(position * inverse[i]) * multiplier;
        this.sin[at] = Math.sin(position * inverse[i]) * multiplier;
      }
      this.#filled[slot] = 1;
    }
    return slot * this.#width;
  }

  #grow(slots: number): void {
    const size = Math.max(slots, this.#filled.length * 2);
    const grow = (from: Float32Array) => {
      const to = new Float32Array(size * this.#width);
      to.set(from);
      return to;
    };
    this.cos = grow(this.cos);
    this.sin = grow(this.sin);
    const filled = new Uint8Array(size);
    filled.set(this.#filled);
    this.#filled = filled;
  }
}
