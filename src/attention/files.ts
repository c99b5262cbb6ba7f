import type { ModelShape } from "../engine/hooks.js";
import { FoveaError } from "../error.js";

/**
 * The bytes of a file that a method's parameter names, read at once where files can be (Node).
 *
 * @param what what error messages call it, e.g. "head list"
 * @param make what the person can do where it is missing
 * @throws FoveaError `not-found`; `unsupported` in a browser
 */
export function readParameterFile(path: string, what: string, make: string): Uint8Array<ArrayBuffer> {
  const files = typeof process === "undefined" ? undefined : process.getBuiltinModule?.("node:fs");
  if (!files)
    throw new FoveaError("unsupported", `${path}: a ${what} cannot be read from a file here`, {
      hint: "methods that need files run in Node; give the values themselves where the method takes them",
    });
  try {
    return Uint8Array.from(files.readFileSync(path));
  } catch (cause) {
    throw new FoveaError("not-found", `there is no ${what} ${path}`, { cause, hint: make });
  }
}

/** `read` called once for each model that it is asked for: for hooks, which run at every step. */
export function oncePerModel<T>(read: (model: ModelShape) => T): (model: ModelShape) => T {
  let found: { readonly hash: string; readonly value: T } | undefined;
  return (model) => {
    if (found?.hash !== model.hash) found = { hash: model.hash, value: read(model) };
    return found.value;
  };
}

/** Throws `bad-input` where a file was made for another checkpoint. */
export function checkModelHash(from: string, made: { model: string; madeBy: string }, hash: string): void {
  if (made.model !== hash)
    throw new FoveaError(
      "bad-input",
      `${from} was made for the checkpoint ${made.model.slice(0, 12)}; this one is ${hash.slice(0, 12)}`,
      { hint: `make it for this model: ${made.madeBy}` },
    );
}
