/** What went wrong, in a word a program can test for. */
export type ErrorCode =
  | "bad-input"
  | "bad-file"
  | "bad-shape"
  | "not-found"
  | "unknown-model"
  | "unknown-method"
  | "unsupported"
  | "too-large"
  | "out-of-memory"
  | "mismatch"
  | "aborted"
  | "closed"
  | "internal";

/**
 * Every error that Fovea throws on purpose. `message` says what was given and what was expected; `hint` says what to
 * do about it; `code` is for programs.
 */
export class FoveaError extends Error {
  override readonly name = "FoveaError";
  readonly code: ErrorCode;
  readonly hint?: string;

  constructor(code: ErrorCode, message: string, options: { hint?: string; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.hint = options.hint;
  }
}

/** The error thrown when an AbortSignal ended the work. */
export function aborted(signal?: AbortSignal): FoveaError {
  return new FoveaError("aborted", "the work was aborted", { cause: signal?.reason });
}

/** Throws `aborted` if the signal has fired. */
export function checkAbort(signal?: AbortSignal): void {
  if (signal?.aborted) throw aborted(signal);
}
