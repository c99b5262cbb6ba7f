/**
 * Who runs next. Work on the engine comes in short turns (one chunk of a prompt in one layer, one batched decode
 * step), taken first come, first served, so that a long prompt does not hold up others. Between turns the event loop
 * gets its share, so that messages (an abort, a request) arrive while work goes on.
 */
export class Turns {
  #tail: Promise<unknown> = Promise.resolve();
  #breath = 0;

  /** Runs `work` when everything asked for before has run. */
  take<T>(work: () => Promise<T> | T): Promise<T> {
    const turn = this.#tail.then(async () => {
      const now = performance.now();
      if (now - this.#breath > 10) {
        await macrotask();
        this.#breath = performance.now();
      }
      return work();
    });
    this.#tail = turn.then(nothing, nothing);
    return turn;
  }
}

function nothing(): void {}

/** A promise that resolves after the event loop has turned once. */
export function macrotask(): Promise<void> {
  return new Promise((resolve) => {
    if (typeof setImmediate === "function") return void setImmediate(resolve);
    // a browser makes repeated timers wait 4 ms; a message does not wait
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(0);
  });
}
