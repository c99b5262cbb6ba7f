export {
  type Answer,
  type AskedDocument,
  type AskOptions,
  ask,
  type Evidence,
  linesOf,
} from "./ask.js";
export {
  type AttributedPiece,
  type AttributedToken,
  type AttributeOptions,
  type Attribution,
  type AttributionMethod,
  attribute,
  attributedPieces,
  attributionBytes,
} from "./attribute.js";
