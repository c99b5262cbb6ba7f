/** Sequences to train on, side by side: [B, T] in rows. */
export interface Batch {
  /** B */
  readonly rows: number;
  /** T */
  readonly length: number;
  /** Token ids [B * T]. */
  readonly ids: Int32Array;
  /** The token that each row is to predict [B * T]; -1 where there is none. */
  readonly targets: Int32Array;
  /** Weight of each target in the loss [B * T]; 0 leaves it out. */
  readonly weights: Float32Array;
  /** Number of each token's text within its row [B * T]: tokens attend within their own text. Default: one text a row. */
  readonly documents?: Int32Array;
  /** Position of each token [B * T]. Default: 0 ... T - 1 in every row. */
  readonly positions?: Int32Array;
  /**
   * What a loss of one's own reads beside these, by name: a teacher's log-probabilities, say. `memory` [B, M, m] is what the
   * model's mechanism reads, where it declares one; the texts packed into a row share it.
   */
  readonly extras?: Readonly<Record<string, { readonly data: Float32Array; readonly dims: readonly number[] }>>;
}

/** Where batches come from. */
export interface DataSource {
  readonly name: string;
  /** Size of the vocabulary that ids are of. */
  readonly vocabulary: number;
  /** Batch `step`, from 0. A pure function of the step, so that a run that was stopped goes on exactly. */
  batch(step: number): Batch | Promise<Batch>;
}
