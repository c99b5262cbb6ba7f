import { aborted, type ErrorCode, FoveaError } from "../error.js";
import type { Call, Host, OperationName, Operations } from "./host.js";

/** A way to a host: in this thread or in another. */
export interface Connection {
  call<K extends OperationName>(
    name: K,
    args: Operations[K]["args"],
    options?: { signal?: AbortSignal; onEvent?: (event: Operations[K]["event"]) => void },
  ): Promise<Operations[K]["result"]>;
  close(): Promise<void>;
}

/** A host in the calling thread. */
export function localConnection(host: Host): Connection {
  return {
    call: (name, args, { signal, onEvent } = {}) =>
      host.call(name, args, { signal, emit: (event) => onEvent?.(event) } as Call<Operations[typeof name]["event"]>),
    close: async () => {
      await host.call("shutdown", {}, { emit: () => undefined });
    },
  };
}

/** The two ends of a message channel, as Node's worker threads and the browser's workers both have it. */
export interface Port {
  post(message: unknown): void;
  onMessage(handler: (message: unknown) => void): void;
}

type ToHost =
  | { kind: "call"; id: number; name: OperationName; args: unknown }
  | { kind: "abort"; id: number }
  | { kind: "taken"; id: number; event: number };
type FromHost =
  | { kind: "event"; id: number; event: number; data: unknown }
  | { kind: "result"; id: number; result: unknown }
  | { kind: "error"; id: number; error: PlainError };

/** An error as plain data, since classes do not cross threads. */
export interface PlainError {
  readonly code?: ErrorCode;
  readonly message: string;
  readonly hint?: string;
  readonly stack?: string;
}

export function plainError(error: unknown): PlainError {
  if (error instanceof FoveaError) return { code: error.code, message: error.message, hint: error.hint };
  return {
    message: error instanceof Error ? error.message : String(error),
    stack: error instanceof Error ? error.stack : undefined,
  };
}

export function fromPlainError({ code, message, hint, stack }: PlainError): Error {
  if (code) return new FoveaError(code, message, { hint });
  return new FoveaError("internal", message, { cause: stack });
}

/** Answers calls that arrive at a port; events wait for the other side to take them in. */
export function serve(host: Host, port: Port): void {
  const aborts = new Map<number, AbortController>();
  const taken = new Map<string, () => void>();
  port.onMessage((raw) => {
    const message = raw as ToHost;
    if (message.kind === "abort") return void aborts.get(message.id)?.abort();
    if (message.kind === "taken") {
      const key = `${message.id}.${message.event}`;
      taken.get(key)?.();
      taken.delete(key);
      return;
    }
    if (message.kind !== "call") return;
    const { id } = message;
    const abort = new AbortController();
    aborts.set(id, abort);
    let events = 0;
    const emit = (data: unknown) =>
      new Promise<void>((resolve) => {
        const event = events++;
        taken.set(`${id}.${event}`, resolve);
        port.post({ kind: "event", id, event, data } satisfies FromHost);
      });
    host
      .call(message.name, message.args as never, { signal: abort.signal, emit } as never)
      .then(
        (result) => port.post({ kind: "result", id, result } satisfies FromHost),
        (error: unknown) => port.post({ kind: "error", id, error: plainError(error) } satisfies FromHost),
      )
      .finally(() => aborts.delete(id));
  });
}

/** A host behind a port. `end` stops the other thread. */
export function portConnection(port: Port, end: () => Promise<unknown>): Connection & { fail(error: Error): void } {
  const waiting = new Map<
    number,
    { resolve: (r: unknown) => void; reject: (e: Error) => void; onEvent?: (e: unknown) => void }
  >();
  let next = 1;
  let failure: Error | undefined;
  port.onMessage((raw) => {
    const message = raw as FromHost;
    const call = waiting.get(message.id);
    if (message.kind === "event") {
      try {
        call?.onEvent?.(message.data);
      } finally {
        port.post({ kind: "taken", id: message.id, event: message.event } satisfies ToHost);
      }
      return;
    }
    waiting.delete(message.id);
    if (message.kind === "result") call?.resolve(message.result);
    else if (message.kind === "error") call?.reject(fromPlainError(message.error));
  });
  const connection: Connection & { fail(error: Error): void } = {
    call: (name, args, { signal, onEvent } = {}) => {
      if (failure) return Promise.reject(failure);
      if (signal?.aborted) return Promise.reject(aborted(signal));
      const id = next++;
      const onAbort = () => port.post({ kind: "abort", id } satisfies ToHost);
      signal?.addEventListener("abort", onAbort, { once: true });
      return new Promise<never>((resolve, reject) => {
        waiting.set(id, { resolve: resolve as (r: unknown) => void, reject, onEvent: onEvent as (e: unknown) => void });
        port.post({ kind: "call", id, name, args } satisfies ToHost);
      }).finally(() => signal?.removeEventListener("abort", onAbort));
    },
    close: async () => {
      if (!failure) await connection.call("shutdown", {});
      failure ??= new FoveaError("closed", "the model is closed");
      await end();
    },
    fail: (error) => {
      failure ??= error;
      for (const { reject } of waiting.values()) reject(failure);
      waiting.clear();
    },
  };
  return connection;
}
