export { type Filler, filler } from "./filler.js";
export {
  CHAT_TEMPLATE,
  type OffsetTokenizer,
  questionPrompt,
  SPECIAL_TOKEN_LIST,
  SPECIAL_TOKENS,
  type TrainingText,
  tokenWeights,
  trainingText,
  trainingTokens,
  userMessage,
  type WeightOptions,
} from "./format.js";
export { type DocumentOptions, generateDocument } from "./generate.js";
export { loadFiller } from "./load-filler.js";
export { oracle } from "./oracle.js";
export * from "./types.js";
