import type { LayerCache } from "./cache.js";
import type {
  AttentionStep,
  KeyView,
  ModelShape,
  OwnKeys,
  Part,
  Partial,
  Phase,
  ProductOptions,
  RetainStep,
  RotaryPlan,
  Step,
} from "./hooks.js";

/** What every hook's step has, but for the method's state. */
export type StepBase = Omit<Step, "state">;

/**
 * A step as one method sees it: reading and writing `state` goes to the sequence. Steps are classes and not spread
 * objects because a decoded token makes several in every layer, and copying an object with accessors took longer than
 * attention over a few hundred keys.
 */
class BoundStep implements Step {
  readonly layer: number;
  readonly phase: Phase;
  readonly rows: number;
  readonly positions: Int32Array;
  readonly firstRow: number;
  readonly totalRows: number;
  readonly model: ModelShape;
  private readonly states: unknown[];
  private readonly index: number;

  constructor(base: StepBase, states: unknown[], index: number) {
    this.layer = base.layer;
    this.phase = base.phase;
    this.rows = base.rows;
    this.positions = base.positions;
    this.firstRow = base.firstRow;
    this.totalRows = base.totalRows;
    this.model = base.model;
    this.states = states;
    this.index = index;
  }

  get state(): unknown {
    return this.states[this.index];
  }

  set state(value: unknown) {
    this.states[this.index] = value;
  }
}

/** A step with a few fields more, for hooks that run once a layer at most. */
export function boundStep<Fields extends object>(
  base: StepBase,
  fields: Fields,
  states: unknown[],
  index: number,
): Step & Fields {
  return Object.assign(new BoundStep(base, states, index), fields);
}

/** What a block of rows attends with, whichever method looks at it. */
export interface AttentionFields {
  readonly q: Float32Array;
  readonly scale: number;
  readonly view: KeyView;
  readonly cache: LayerCache | null;
  rotate(positions: Int32Array): Float32Array;
  logits(part: Part): Promise<Float32Array>;
  attend(part: Part): Promise<Partial>;
  attendTo(keys: OwnKeys): Promise<Partial>;
  products(a: Float32Array, b: Float32Array, options: ProductOptions): Promise<Float32Array>;
}

/** An attention step bound to one method. */
export class BoundAttentionStep extends BoundStep implements AttentionStep {
  readonly q: Float32Array;
  readonly scale: number;
  readonly view: KeyView;
  readonly cache: LayerCache | null;
  private readonly fields: AttentionFields;

  constructor(base: StepBase, fields: AttentionFields, states: unknown[], index: number) {
    super(base, states, index);
    this.q = fields.q;
    this.scale = fields.scale;
    this.view = fields.view;
    this.cache = fields.cache;
    this.fields = fields;
  }

  rotate(positions: Int32Array): Float32Array {
    return this.fields.rotate(positions);
  }

  score(part: Part = {}): Promise<Float32Array> {
    return this.fields.logits(part);
  }

  attend(part: Part = {}): Promise<Partial> {
    return this.fields.attend(part);
  }

  attendTo(keys: OwnKeys): Promise<Partial> {
    return this.fields.attendTo(keys);
  }

  products(a: Float32Array, b: Float32Array, options: ProductOptions): Promise<Float32Array> {
    return this.fields.products(a, b, options);
  }
}

/** What entries are kept by, whichever method chooses. */
export interface RetainFields {
  readonly when: "before" | "after";
  readonly view: KeyView;
  readonly scale: number;
  readonly plan: RotaryPlan | null;
  readonly queryRows: number;
  readonly q: Float32Array;
  weights(n: number): Promise<Float32Array>;
  keep(kvHead: number, entries: Int32Array): void;
}

/** A retain step bound to one method. */
export class BoundRetainStep extends BoundStep implements RetainStep {
  readonly when: "before" | "after";
  readonly view: KeyView;
  readonly scale: number;
  readonly plan: RotaryPlan | null;
  readonly queryRows: number;
  readonly q: Float32Array;
  readonly incoming: number;
  private readonly fields: RetainFields;

  constructor(base: StepBase, fields: RetainFields, states: unknown[], index: number) {
    super(base, states, index);
    this.when = fields.when;
    this.view = fields.view;
    this.scale = fields.scale;
    this.plan = fields.plan;
    this.queryRows = fields.queryRows;
    this.q = fields.q;
    this.incoming = fields.when === "before" ? base.rows : 0;
    this.fields = fields;
  }

  weights(n: number): Promise<Float32Array> {
    return this.fields.weights(n);
  }

  keep(kvHead: number, entries: Int32Array): void {
    this.fields.keep(kvHead, entries);
  }
}
