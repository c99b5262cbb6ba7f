import type { AttendRequest, LayerCache } from "./cache-layer.js";
import { entriesOf } from "./hooks.js";
import { entryMask } from "./key-source.js";

/** What one decoded row read of the cache: means over layers and query heads. */
export interface StepReads {
  /** Keys that were attended to, with their values. */
  readonly attended: number;
  /** Keys that were scored and not attended to: what a choice cost. */
  readonly scored: number;
  /** Pages whose bounds were read for a choice. */
  readonly bounds: number;
  /** Share of the watched positions that were attended to; 1 where none are watched. */
  readonly watched: number;
}

const PAGE = 16;

/**
 * Counts what attention reads of a cache's pages, layer by layer, while it is attached (`Cache.meter`). What is counted is
 * what the kernels are asked for, whichever method asked, and not what a method says of itself. Keys with a bias of
 * -Infinity count as not read by that query head.
 */
export class ReadMeter {
  readonly #layers: LayerMeter[];
  readonly #heads: number;

  /** @param watched absolute positions whose reading is asked about */
  constructor(layers: number, heads: number, watched: Iterable<number> = []) {
    const places = new Map([...watched].map((position, i) => [position, i]));
    this.#heads = heads;
    this.#layers = Array.from({ length: layers }, () => new LayerMeter(heads, places));
  }

  layer(l: number): LayerMeter {
    return this.#layers[l];
  }

  /** What was read since the last call. */
  take(): StepReads {
    const per = this.#layers.length * this.#heads;
    const sum = (of: (layer: LayerMeter) => number) => this.#layers.reduce((n, layer) => n + of(layer), 0) / per;
    const reads = {
      attended: sum((l) => l.attended),
      scored: sum((l) => Math.max(0, l.scored - l.summed)),
      bounds: sum((l) => l.bounds),
      watched: sum((l) => l.watchedShare * this.#heads),
    };
    for (const layer of this.#layers) layer.reset();
    return reads;
  }
}

/** The counts of one layer, summed over query heads. */
export class LayerMeter {
  attended = 0;
  scored = 0;
  bounds = 0;
  /** Of `attended`, what was summed under weights given: its keys were scored before. */
  summed = 0;
  readonly #heads: number;
  readonly #places: ReadonlyMap<number, number>;
  /** [Hq, watched]: 1 where the head attended to the position. */
  readonly #seen: Uint8Array;

  constructor(heads: number, places: ReadonlyMap<number, number>) {
    this.#heads = heads;
    this.#places = places;
    this.#seen = new Uint8Array(heads * places.size);
  }

  get watchedShare(): number {
    if (this.#seen.length === 0) return 1;
    let n = 0;
    for (const seen of this.#seen) n += seen;
    return n / this.#seen.length;
  }

  reset(): void {
    this.attended = this.scored = this.bounds = this.summed = 0;
    this.#seen.fill(0);
  }

  /** Rows that attend to a part. */
  attend(cache: LayerCache, request: AttendRequest): void {
    this.#visible(cache, request, (head, positions, entry) => {
      this.attended++;
      this.#watch(head, positions[entry]);
    });
  }

  /** Rows whose logits over a part are computed. */
  score(cache: LayerCache, request: AttendRequest): void {
    this.#visible(cache, request, () => {
      this.scored++;
    });
  }

  /** Values summed under weights [rows, Hq, n] or [Hq, rows, n]. */
  sum(cache: LayerCache, weights: Float32Array, rows: number, headsFirst: boolean): void {
    const n = cache.keys;
    const heads = this.#heads;
    const group = heads / cache.shape.kvHeads;
    for (let i = 0; i < heads * rows; i++) {
      const head = headsFirst ? Math.floor(i / rows) : i % heads;
      const positions = cache.positions(Math.floor(head / group));
      for (let entry = 0; entry < positions.length; entry++) {
        if (weights[i * n + entry] === 0) continue;
        this.attended++;
        this.summed++;
        this.#watch(head, positions[entry]);
      }
    }
  }

  /** A KV head's keys (and values) read out. */
  read(cache: LayerCache, head: number): void {
    this.scored += cache.length(head) * (this.#heads / cache.shape.kvHeads);
  }

  /** The bounds of a KV head's pages. */
  readBounds(cache: LayerCache, pages: number): void {
    this.bounds += pages * (this.#heads / cache.shape.kvHeads);
  }

  #watch(head: number, position: number): void {
    const place = this.#places.get(position);
    if (place !== undefined) this.#seen[head * this.#places.size + place] = 1;
  }

  /** Calls `use` for each (row, query head, entry) that a request reads. */
  #visible(
    cache: LayerCache,
    request: AttendRequest,
    use: (head: number, positions: Int32Array, entry: number) => void,
  ): void {
    const { rows, bias, window } = request;
    const entries = request.entries ?? "all";
    const { kvHeads } = cache.shape;
    const group = this.#heads / kvHeads;
    const [from, to] = request.heads ?? [0, kvHeads];
    const causal = request.causal ?? rows > 1;
    const width = bias ? bias.data.length / (bias.heads * Math.max(1, bias.rows)) : 0;
    for (let kv = from; kv < to; kv++) {
      const positions = cache.positions(kv);
      for (let row = 0; row < rows; row++) {
        const end = causal ? positions.length - rows + row + 1 : positions.length;
        const at = request.positions ? request.positions[row] : cache.seen - rows + row;
        for (let head = kv * group; head < (kv + 1) * group; head++) {
          const mask = entryMask(entriesOf(entries, head, this.#heads), positions.length, PAGE);
          const biasHead = bias ? (bias.heads === this.#heads ? head : bias.heads === kvHeads ? kv : 0) : 0;
          const biasAt = bias ? (biasHead * Math.max(1, bias.rows) + (bias.rows > 0 ? row : 0)) * width : 0;
          for (let entry = 0; entry < end; entry++) {
            if (mask[entry] === 0 || (window !== undefined && at - positions[entry] >= window)) continue;
            if (bias && bias.data[biasAt + entry] === Number.NEGATIVE_INFINITY) continue;
            use(head, positions, entry);
          }
        }
      }
    }
  }
}
