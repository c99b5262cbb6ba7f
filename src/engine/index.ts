export type * from "./api.js";
export type { Composed, LayerHooks, MethodHooks } from "./compose.js";
export { compose } from "./compose.js";
export type * from "./hooks.js";
export { HOOK_NAMES, isPartial } from "./hooks.js";
export { Random, sample } from "./sampling.js";
