export type { Calibration } from "./calibration.js";
export { parseCalibration, printCalibration } from "./calibration.js";
export type { AnyMethod, MethodsInput } from "./catalog.js";
export { catalog, listMethods, methodString, resolve } from "./catalog.js";
export { chai } from "./compression/chai.js";
export { compressKvHeads } from "./compression/compress-kv-heads.js";
export type { KvHeadBases } from "./compression/compress-kv-heads-calibration.js";
export { kvHeadBases } from "./compression/compress-kv-heads-calibration.js";
export { compresskv } from "./compression/compresskv.js";
export type { NeedlePrompt, TaskPrompts } from "./compression/compresskv-calibration.js";
export {
  evictionErrors,
  semanticRetrievalHeads,
  semanticRetrievalScore,
} from "./compression/compresskv-calibration.js";
export { clusterCounts, headProducts } from "./compression/head-clusters.js";
export type { LayerSimilarity } from "./compression/layer-similarity.js";
export { bestSpan, layerSimilarity } from "./compression/layer-similarity.js";
export { mha2mla } from "./compression/mha2mla.js";
export type { LatentOptions } from "./compression/mha2mla-calibration.js";
export { latentBases } from "./compression/mha2mla-calibration.js";
export { sharedAttention } from "./compression/shared-attention.js";
export { attentionOrder, attnrank } from "./context/attnrank.js";
export type { BasinPrompt, ItemAttention, ItemAttentionOptions } from "./context/basin.js";
export { basinDepth, basinProfile, itemAttention, itemShares } from "./context/basin.js";
export { gemfilter } from "./context/gemfilter.js";
export { adaKv } from "./eviction/ada-kv.js";
export { expectedAttention } from "./eviction/expected-attention.js";
export { h2o } from "./eviction/h2o.js";
export { snapkv } from "./eviction/snapkv.js";
export { tova } from "./eviction/tova.js";
export { full } from "./full.js";
export type { HeadList } from "./heads/head-list.js";
export { parseHeadList, printHeadList } from "./heads/head-list.js";
export type { Repeated, RetrievalCase } from "./heads/head-scores.js";
export {
  duplicateTokenScore,
  inductionScore,
  offsetScore,
  previousTokenScore,
  repeatedProbe,
  retrievalScore,
} from "./heads/head-scores.js";
export { knockOut } from "./heads/knock-out.js";
export type { HeadSearch, HeadSearchResult, MeasuredHead } from "./heads/search.js";
export { allHeads, searchHeads, toHeadList } from "./heads/search.js";
export type { GatedResult, GatedState } from "./linear/index.js";
export {
  deltaRule,
  gatedDeltaRule,
  gatedLinearAttention,
  gatedState,
  linearAttention,
  softmaxAttention,
  withNormaliser,
} from "./linear/index.js";
export type {
  BudgetCard,
  BudgetRange,
  Card,
  CardFields,
  FullDefinition,
  MethodDefinition,
  MethodFactory,
  Paper,
  ParameterCard,
  RowsTouched,
  ScopeInput,
  Trial,
} from "./method.js";
export { cardOf, method } from "./method.js";
export type { MethodTensors } from "./method-tensors.js";
export { encodeMethodTensors, parseMethodTensors } from "./method-tensors.js";
export type { AttentionRows, AttentionRowsOptions } from "./observers/attention-rows.js";
export { attentionRows } from "./observers/attention-rows.js";
export type { TrackedPrompt, TrackerHead } from "./observers/attention-tracker.js";
export { focusScore, importantHeads, instructionShare } from "./observers/attention-tracker.js";
export type { HeadTable, RowChoice } from "./observers/head-table.js";
export { headTable } from "./observers/head-table.js";
export type { Received, SinkRate } from "./observers/reducers.js";
export { distance, entropy, received, sinkRate, spanMass } from "./observers/reducers.js";
export type { ObservedRow, ObserverOptions } from "./observers/row-mean.js";
export { rowMean } from "./observers/row-mean.js";
export { sharpness } from "./observers/sharpness.js";
export { duoattention } from "./policies/duoattention.js";
export { lserve } from "./policies/lserve.js";
export { attentionBuckets, fuseStreams } from "./positions/attention-buckets.js";
export { bucketBases } from "./positions/bucket-bases.js";
export { entropyAbf } from "./positions/entropy-abf.js";
export { harpe } from "./positions/harpe.js";
export { ropeScaling } from "./positions/rope-scaling.js";
export { selfExtend } from "./positions/self-extend.js";
export type { BoundaryLabels } from "./prefill/boundaries.js";
export { boundaryLabels } from "./prefill/boundaries.js";
export { dhsa } from "./prefill/dhsa.js";
export { hip } from "./prefill/hip.js";
export { moba } from "./prefill/moba.js";
export { sale } from "./prefill/sale.js";
export type { SaleCalibrationOptions } from "./prefill/sale-calibration.js";
export { saleCalibration } from "./prefill/sale-calibration.js";
export type { ContextShard, ShardQuery } from "./prefill/shards.js";
export { attendShards, localShard, splitEntries } from "./prefill/shards.js";
export { starAttention } from "./prefill/star-attention.js";
export { randomPages } from "./random-pages.js";
export { lessismore } from "./selection/lessismore.js";
export { longheads } from "./selection/longheads.js";
export { magicpig } from "./selection/magicpig.js";
export { qada } from "./selection/qada.js";
export { quest } from "./selection/quest.js";
export { sparq } from "./selection/sparq.js";
export { tidaldecode } from "./selection/tidaldecode.js";
export { tokenselect } from "./selection/tokenselect.js";
export { pasta } from "./steering/pasta.js";
export { streamingLlm } from "./streaming/streaming-llm.js";
export type { HeadName, MethodCall, Value } from "./string.js";
export { parseMethods, printMethods } from "./string.js";
