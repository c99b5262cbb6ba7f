export { catalog, method, parseMethods, resolve } from "./attention/index.js";
export { type Answer, type AskedDocument, type AskOptions, ask, type Evidence } from "./context/ask.js";
export type * from "./engine/index.js";
export { type ErrorCode, FoveaError } from "./error.js";
export { load } from "./load.js";
export { convert, mechanism } from "./models/index.js";
