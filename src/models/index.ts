export {
  type BuildOptions,
  batchFeeds,
  buildModel,
  type ModelFeed,
  type ModelGraph,
  modelFeeds,
  positionFeeds,
  type SequenceBatch,
} from "./block.js";
export { type ByteLevelVocabulary, byteLevelTokenizer } from "./byte-level.js";
export { type ChatMessage, type ChatTemplate, chatTemplateOf, createChatTemplate, templateTokens } from "./chat.js";
export {
  type Activation,
  type AttentionConfig,
  boundMechanism,
  configJson,
  type ModelConfig,
  parameterCount,
  parseConfig,
} from "./config.js";
export {
  type Converted,
  type ConvertOptions,
  type ConvertSource,
  type ConvertType,
  convert,
  hasGgufForm,
} from "./convert.js";
export { EMBEDDED, embeddedUrl } from "./embedded.js";
export { type ExportOptions, exportModel } from "./export.js";
export { FAMILIES, type Family, type FamilyName } from "./families.js";
export { type GgufFile, type GgufToWrite, type GgufType, type GgufValue, openGguf, writeGguf } from "./gguf.js";
export { configFromGguf, ggufFromConfig, type RotaryFactors } from "./gguf-config.js";
export { tokenizerFromGguf, tokenizerToGguf } from "./gguf-tokenizer.js";
export { type CachedCheckpoint, fetchCheckpoint, type HubOptions, type HubProgress, parseHubName } from "./hub.js";
export { type Checkpoint, type GenerationDefaults, type OpenOptions, openCheckpoint } from "./load.js";
export {
  BoundMechanism,
  definitionOf,
  type MechanismDefinition,
  type MechanismFactory,
  type MechanismInputs,
  type MechanismResult,
  type MechanismShape,
  type MechanismUse,
  type MechanismWeight,
  type MemoryDefinition,
  type MemoryInputs,
  mechanism,
  mechanismNames,
  useMechanism,
  useOf,
} from "./mechanism.js";
export { checkMemory, type Memory, type MemoryReader } from "./memory.js";
export { type CanonicalTensor, canonicalTensors, type FileTensor, fileTensors } from "./names.js";
export { type RandomSizes, randomConfig, randomWeights, seededNormals } from "./random.js";
export {
  alibiSlopes,
  frequencies,
  longropeAttention,
  ntkBase,
  type RotaryConfig,
  type RotaryScaling,
  type RotaryValues,
  rotaryBase,
  rotaryCosSin,
  rotaryTable,
  yarnAttention,
} from "./rotary.js";
export { encodeSafetensors, openSafetensors, parseSafetensors, writeSafetensors } from "./safetensors.js";
export { type ByteSource, openSource, type SourceLike } from "./source.js";
export type { TensorFile, TensorInfo, TensorToWrite } from "./tensor-file.js";
export { tinyTokenizer } from "./tiny-tokenizer.js";
export { createTokenizer, type Encoding, loadTokenizer, type Tokenizer, type TokenStream } from "./tokenizer.js";
export { BYTE_CHARACTERS } from "./tokenizer-align.js";
export { checkpointWeights } from "./weights.js";
