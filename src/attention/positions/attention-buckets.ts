import { z } from "zod";
import type { RotaryPlan } from "../../engine/hooks.js";
import { method } from "../method.js";
import { type Base, baseParameter, inverseOf, needsRotary, plansOf } from "./plans.js";

const parameters = z.object({
  bases: z
    .array(baseParameter())
    .min(1)
    .default([10000, 17500, 18000, 19000, 20000, 25000])
    .describe("rotary base of each stream; `own` is the model's. bucketBases searches them around another base"),
  confidence: z
    .enum(["logit", "probability"])
    .default("logit")
    .describe("what a stream weighs by: softmax of the largest logits, or in proportion to the largest probability"),
});
type Parameters = z.output<typeof parameters>;

/**
 * Attention Buckets: the same text runs in parallel streams that differ in their rotary base only, so that what falls into
 * a dip of one stream's attention is seen by another. Each token is drawn from the streams' logits, weighted by how
 * confident each is.
 */
export const attentionBuckets = method({
  name: "attention-buckets",
  family: "positions",
  does: "Reads a text in parallel streams of different rotary bases and weighs their logits by confidence.",
  paper: {
    title:
      "Fortify the Shortest Stave in Attention: Enhancing Context Awareness of Large Language Models for Effective Tool Use",
    venue: "ACL 2024",
    url: "https://github.com/Fiorina1212/Attention-buckets",
  },
  cost: "as many times the computation and the cache as there are bases",
  facts: "the official code",
  deviations: [
    "streams of a prompt run one after the other, decoded rows of all streams together; the official code has two at once",
    "confidence=probability is not the paper's: a largest logit favours streams whose logits are larger throughout",
  ],
  exact: { bases: ["own"] },
  trials: [
    { parameters: { bases: ["own", 20000] }, uniform: true },
    { parameters: { bases: [9000, 14000, 25000], confidence: "probability" }, uniform: true },
  ],
  status: "experimental",
  parameters,
  scope: "layers",
  hooks: ["position", "logits"],
  check: (model) => needsRotary("attention-buckets", model),
  create({ bases, confidence }) {
    const plans = plansOf();
    const of = (plan: RotaryPlan, base: Base) =>
      plans(plan, `${base}`, () => ({ ...plan, inverse: inverseOf(plan, base) }));
    return {
      position: ({ plan, stream }) => (plan ? { plan: of(plan, bases[stream]) } : undefined),
      ...(bases.length > 1 && {
        streams: { count: bases.length, fuse: (logits, into) => fuseStreams(logits, into, confidence) },
      }),
    };
  },
});

/** z = sum of a_j z_j with weights by the streams' confidence. */
export function fuseStreams(
  logits: readonly Float32Array[],
  into: Float32Array,
  confidence: Parameters["confidence"] = "logit",
): void {
  const most = logits.map((z) => z.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY));
  const top = Math.max(...most);
  const raw = logits.map((z, j) =>
    confidence === "logit" ? Math.exp(most[j] - top) : 1 / z.reduce((sum, x) => sum + Math.exp(x - most[j]), 0),
  );
  const total = raw.reduce((a, b) => a + b, 0);
  for (let v = 0; v < into.length; v++) {
    let sum = 0;
    for (let j = 0; j < logits.length; j++) sum += (raw[j] / total) * logits[j][v];
    into[v] = sum;
  }
}
