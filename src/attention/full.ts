import { method } from "./method.js";

/** Full attention: the identity, and the control that every other method is compared with. */
export const full = method({
  name: "full",
  family: "control",
  kind: "control",
  does: "Reads every cached key and keeps all of them.",
  cost: "every cached key per token",
  facts: "definition",
  rows: { prefill: false, lastPromptRow: false, decode: false },
  exact: {},
  trials: [{ parameters: {}, uniform: true }],
  status: "holds",
});
