// Addresses and field numbers that kernels.ts (the JavaScript side) repeats; change both together.

// Control words, one cache line each.
export const STOP: usize = 0;
export const REMAINING: usize = 64; // tasks of the job that nobody has taken yet
export const DONE: usize = 128; // tasks of the job that are finished
export const GENERATION: usize = 192; // sleeping workers wait for a change of this word
export const SLEEPERS: usize = 256;
export const JOB: usize = 320; // fields of the job, 4 bytes each

// Kinds of jobs
export const ATTEND: i32 = 0;
export const SCORES: i32 = 1;
export const SUM: i32 = 2;
export const APPEND: i32 = 3;
export const READ: i32 = 4;
export const BOUNDS: i32 = 5;

// An entry of a page table is 16 bytes: key page, value page (bit 0 of an address: int8), slots, and the number of
// stored entries before this page. Of `slots` the low half says which are read, the high half which hold an entry.
export const ENTRY_BYTES: usize = 16;
export const CHUNK: i32 = 64; // most entries of one task
export const BLOCK: i32 = 16; // entries whose weights share a scale: their integer sums fit in 32 bits
export const MAX_GROUP: i32 = 8; // queries of one task
export const MAX_DIM: i32 = 512;

// Rows of a thread's scratch; the odd 64 bytes keep the rows of a group off the same cache sets
export const QUERY_ROW: usize = 2112; // f32 [512]
export const CODE_ROW: usize = 1088; // i16 [512]
export const LOGIT_ROW: usize = 4160; // f32 [1024]
export const WEIGHT_ROW: usize = 2112; // i16 [1024]
export const OUT_ROW: usize = 2112; // f32 [512]

// Offsets in a thread's scratch
export const S_QUERY: usize = 0; // [8] scaled queries
export const S_QUERY_SCALED: usize = 16896; // [8] the same, scaled for quantisation
export const S_CODES: usize = 33792; // [8]
export const S_LOGITS: usize = 42496; // [8]
export const S_WEIGHTS: usize = 75776; // [8]
export const S_OUT: usize = 92672; // [8]
export const S_ENTRIES: usize = 109568; // the chunk's entries: key page, value page, slots, stored entries before
export const S_VALUES: usize = 110592; // of each of a block's int8 pages of values: address, offset of its weights
export const S_MAX: usize = 110720; // f32 [8] largest logit
export const S_SUM: usize = 110752; // f32 [8] sum of exponentials
export const S_KEY_SCALE: usize = 110784; // f32 [8] what a unit of the integer dot product is worth
export const S_WEIGHT_SCALE: usize = 110816; // f32 [4 blocks][8]
export const S_STEPS: usize = 110976; // f32 [512] largest step of each channel in the chunk
export const S_SUMS: usize = 113024; // i32 [512][4] integer sums of values, in groups of 8 channels
export const S_MAXIMA: usize = 0; // i32 [12288], top-k only, as are the next two
export const S_KEYS: usize = 49152; // i32 [8192]
export const S_INDICES: usize = 81920; // u32 [8192]
export const SCRATCH_BYTES: usize = 121216;

// @ts-ignore: decorator
@inline
export function field(index: i32): u32 {
  return load<u32>(JOB + (<usize>index << 2));
}

// @ts-ignore: decorator
@inline
export function fieldF32(index: i32): f32 {
  return load<f32>(JOB + (<usize>index << 2));
}

// Fields of a job over entries
export const F_KIND: i32 = 0;
export const F_TOTAL: i32 = 1;
export const F_GROUP: i32 = 2; // G: query heads of a KV head
export const F_KEY_DIM: i32 = 3;
export const F_VALUE_DIM: i32 = 4;
export const F_ROWS: i32 = 5;
export const F_HEAD_FROM: i32 = 6;
export const F_HEADS: i32 = 7; // KV heads of the job
export const F_KV_HEADS: i32 = 8; // KV heads of the layer
export const F_QUERY: i32 = 9; // f32 [rows, Hq, D]
export const F_OUT: i32 = 10; // f32 [rows, Hq, Dv]
export const F_LSE: i32 = 11; // f32 [rows, Hq]
export const F_TABLES: i32 = 12; // per KV head: address of its entries, their number
export const F_LIMITS: i32 = 13; // i32 [rows, Hkv, 2]: stored entries that a row sees; 0: all
export const F_SCALE: i32 = 14;
export const F_SOFTCAP: i32 = 15;
export const F_SINK: i32 = 16; // f32 [Hq] or 0
export const F_BIAS: i32 = 17; // f32 or 0
export const F_BIAS_KV: i32 = 18; // floats from one KV head's bias to the next's
export const F_BIAS_QUERY: i32 = 19; // floats from one query head's bias to the next's within a group
export const F_BIAS_ROW: i32 = 20;
export const F_CHUNKS: i32 = 21;
export const F_PARTIALS: i32 = 22;
export const F_LOGITS: i32 = 23; // f32 over rows, query heads and keys: written by SCORES, read by SUM
export const F_LOGIT_ROW: i32 = 24; // floats from one row's logits to the next's
export const F_LOGIT_HEAD: i32 = 25; // floats from one query head's logits to the next's
export const F_SIZE: i32 = 27; // entries of one task, a multiple of BLOCK: at most CHUNK
export const F_REDUCE: i32 = 26; // BOUNDS: 0 a row a query head; one a KV head with the 1 sum, 2 maximum, 3 mean of its group

// Fields of APPEND: one task a record
export const A_RECORDS: i32 = 2; // 32 bytes each, see append.ts
export const A_KEY_DIM: i32 = 3;
export const A_VALUE_DIM: i32 = 4;
export const A_KEY_STRIDE: i32 = 5; // bytes from one row of the source to the next
export const A_VALUE_STRIDE: i32 = 6;

// Fields of READ: one task CHUNK entries
export const R_ENTRIES: i32 = 2;
export const R_COUNT: i32 = 5;
export const R_KEYS: i32 = 6; // f32 [n, D] or 0
export const R_VALUES: i32 = 7; // f32 [n, Dv] or 0
