import type { Engine } from "./engine.js";
import type { Sequence } from "./sequence.js";
import { macrotask } from "./turns.js";

/** Most sequences in one step. */
const MOST = 64;

/**
 * Batches decode steps: every generation asks for its next step, and what is asked for by the time the engine is free
 * runs together through the dense segments.
 */
export class Decoder {
  readonly #engine: Engine;
  #waiting: {
    sequence: Sequence;
    id: number;
    resolve: (logits: Float32Array) => void;
    reject: (error: unknown) => void;
  }[] = [];
  #running = false;
  #active = 0;

  constructor(engine: Engine) {
    this.#engine = engine;
  }

  /** Announces a generation, so that steps wait a moment for one another; call what it returns at the end. */
  enter(): () => void {
    this.#active++;
    return () => {
      this.#active--;
    };
  }

  /** Logits [V] after one more token. */
  step(sequence: Sequence, id: number): Promise<Float32Array> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ sequence, id, resolve, reject });
      if (!this.#running) void this.#run();
    });
  }

  async #run(): Promise<void> {
    this.#running = true;
    while (this.#waiting.length > 0) {
      if (this.#waiting.length < this.#active) await macrotask();
      const batch = this.#waiting.splice(0, MOST);
      try {
        const { fits, error } = this.#engine.fitting(batch.map((b) => b.sequence));
        for (const late of batch.splice(fits)) late.reject(error);
        if (batch.length === 0) continue;
        const logits = await this.#engine.decode(batch);
        batch.forEach((b, i) => {
          b.resolve(logits[i]);
        });
      } catch (error) {
        for (const b of batch) b.reject(error);
      }
      // let the generations ask for their next step before the next batch is made up
      await Promise.resolve();
    }
    this.#running = false;
  }
}
