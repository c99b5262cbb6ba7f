export type { GroupReduction, HeadScores } from "./groups.js";
export { GROUP_REDUCTIONS, reduceGroups } from "./groups.js";
export type { LayerChoice } from "./layers.js";
export { chosenEntries, entriesAt, middleLayer, positionsOf, tokenEntries } from "./layers.js";
export type { KeyBounds } from "./pages.js";
export { boundScores, dotScores, keyBounds, keyMeans, PAGE, pageBounds } from "./pages.js";
export {
  denseLayers,
  forcedTokens,
  groupReduction,
  isDense,
  readingBudget,
  readTokens,
  refresh,
} from "./parameters.js";
export { turnedKeys } from "./ranks.js";
export type { Held } from "./refresh.js";
export { heldChoice, withNewer } from "./refresh.js";
export type { Forced } from "./top-k.js";
export { exactScores, headLengths, topEntries, topPerHead } from "./top-k.js";
export { entriesBelow, headKeys, headPositions, perView } from "./views.js";
