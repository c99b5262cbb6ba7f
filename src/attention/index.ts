export type { AnyMethod, MethodsInput } from "./catalog.js";
export { catalog, listMethods, resolve } from "./catalog.js";
export { h2o } from "./eviction/h2o.js";
export { snapkv } from "./eviction/snapkv.js";
export { full } from "./full.js";
export type {
  Card,
  CardFields,
  FullDefinition,
  MethodDefinition,
  MethodFactory,
  Paper,
  ParameterCard,
  RowsTouched,
  ScopeInput,
} from "./method.js";
export { method } from "./method.js";
export { streamingLlm } from "./streaming/streaming-llm.js";
export type { HeadName, MethodCall, Value } from "./string.js";
export { parseMethods, printMethods } from "./string.js";
