import { describe, expect, it } from "vitest";
import { compile, gradients, input, type Tensor } from "../graph/index.js";
import { attentionDistillationLoss, klLoss } from "./losses.js";

type Value = { data: Float32Array; dims: number[] };

/** A loss and its gradient with respect to its second argument. */
async function evaluate(build: (a: Tensor, b: Tensor, w: Tensor) => Tensor, a: Value, b: Value, w: Value) {
  const [ta, tb, tw] = [a, b, w].map(({ dims }, i) => input("abw"[i], dims));
  const loss = build(ta, tb, tw);
  const [gradient] = gradients(loss, [tb]);
  await using segment = await compile({ inputs: { a: ta, b: tb, w: tw }, outputs: { loss, gradient } }, { threads: 1 });
  const out = await segment.run({ a, b, w });
  return { loss: (out.loss.data as Float32Array)[0], gradient: [...(out.gradient.data as Float32Array)] };
}

const value = (data: number[], ...dims: number[]): Value => ({ data: Float32Array.from(data), dims });
const close = (got: number[], wanted: number[]) =>
  got.forEach((x, i) => {
    expect(x).toBeCloseTo(wanted[i], 5);
  });

describe("KL", () => {
  // teacher (1/2, 1/4, 1/4) against uniform: ln 3 - 1.5 ln 2; against itself 0
  const teacher = value([0.5, 0.25, 0.25, 0.5, 0.25, 0.25].map(Math.log), 2, 3);
  const logits = value([0, 0, 0, Math.log(2), 0, 0], 2, 3);
  const first = Math.log(3) - 1.5 * Math.log(2);

  it("is the mean over rows by weight, and its gradient is student less teacher", async () => {
    const { loss, gradient } = await evaluate((t, s, w) => klLoss(t, s, w), teacher, logits, value([3, 1], 2));
    expect(loss).toBeCloseTo((3 * first) / 4, 6);
    close(gradient, [(3 / 4) * (1 / 3 - 1 / 2), (3 / 4) * (1 / 12), (3 / 4) * (1 / 12), 0, 0, 0]);
  });

  it("leaves rows of weight 0 out, and divides by a temperature", async () => {
    const none = await evaluate((t, s, w) => klLoss(t, s, w), teacher, logits, value([0, 0], 2));
    expect(none.loss).toBe(0);
    const hot = value([0, 0, 0, 2 * Math.log(2), 0, 0], 2, 3);
    const { loss } = await evaluate((t, s, w) => klLoss(t, s, w, 2), teacher, hot, value([0, 1], 2));
    expect(loss).toBeCloseTo(0, 6);
  });
});

describe("attention distillation", () => {
  // [B=1, H=2, T=2, S=2]: rows of two heads; keys that the teacher does not read count nothing
  const teacher = value([1, 0, 0.5, 0.5, 1, 0, 1, 0], 1, 2, 2, 2);
  const student = value([1, 0, 0.25, 0.75, 1, 0, 0.5, 0.5], 1, 2, 2, 2);

  it("is KL of rows, mean over heads, by weight over rows", async () => {
    const row = (0.5 * Math.log(2) + 0.5 * Math.log(2 / 3) + Math.log(2)) / 2;
    const { loss } = await evaluate(attentionDistillationLoss, teacher, student, value([1, 3], 1, 2));
    expect(loss).toBeCloseTo((3 * row) / 4, 5);
    const same = await evaluate(attentionDistillationLoss, teacher, teacher, value([1, 1], 1, 2));
    expect(same.loss).toBeCloseTo(0, 6);
    const { gradient } = await evaluate(attentionDistillationLoss, teacher, student, value([0, 1], 1, 2));
    close(
      gradient,
      [0, 0, -1, -1 / 3, 0, 0, -1, 0].map((x) => x && x),
    );
  });
});
