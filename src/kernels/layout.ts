/** Addresses and field numbers of the kernels' memory; assembly/layout.ts repeats them. */

/** Bytes at the start of a memory that hold the control words and the job. */
export const CONTROL_BYTES = 65_536;
/** The job's fields, as an index into 32-bit words. */
export const JOB = 320 / 4;
export const SCRATCH_BYTES = 121_216;

/** Tokens of a page. */
export const PAGE = 16;
/** Most entries (pages) of one task, and what its size is a multiple of. */
export const CHUNK = 64;
export const BLOCK = 16;
/** Query heads of one task. */
export const MAX_GROUP = 8;
/** Largest head dimension. */
export const MAX_DIM = 512;

/** 32-bit words of an entry of a page table: key page, value page (bit 0: int8), slots, stored entries before. */
export const ENTRY_WORDS = 4;
export const SLOT_WORD = 2;
export const BASE_WORD = 3;

export const Kind = { attend: 0, scores: 1, sum: 2, append: 3, read: 4, bounds: 5 } as const;

/** Fields of a job over entries, relative to JOB. */
export const Field = {
  kind: 0,
  total: 1,
  group: 2,
  keyDim: 3,
  valueDim: 4,
  rows: 5,
  headFrom: 6,
  heads: 7,
  kvHeads: 8,
  query: 9,
  out: 10,
  lse: 11,
  tables: 12,
  limits: 13,
  scale: 14,
  softcap: 15,
  sink: 16,
  bias: 17,
  biasKv: 18,
  biasQuery: 19,
  biasRow: 20,
  chunks: 21,
  partials: 22,
  logits: 23,
  logitRow: 24,
  logitHead: 25,
  reduce: 26,
  size: 27,
} as const;

export const AppendField = {
  kind: 0,
  total: 1,
  records: 2,
  keyDim: 3,
  valueDim: 4,
  keyStride: 5,
  valueStride: 6,
} as const;
/** 32-bit words of a record of an append job. */
export const RECORD_WORDS = 8;

export const ReadField = {
  kind: 0,
  total: 1,
  entries: 2,
  keyDim: 3,
  valueDim: 4,
  count: 5,
  keys: 6,
  values: 7,
} as const;

/** Bytes of an int8 page of keys: codes, middles and steps (bf16). `dim` is a multiple of 8. */
export const keyPageBytes = (dim: number): number => dim * 20;
/** Bytes of an int8 page of values: codes and a scale a token. */
export const valuePageBytes = (dim: number): number => dim * 16 + 64;
/** Bytes of a float32 page. */
export const floatPageBytes = (dim: number): number => dim * 64;
