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
