import { describe, expect, test } from "vitest";
import { gradients } from "./gradients.js";
import { recompute } from "./recompute.js";
import { scan } from "./scan.js";
import { input, stack, type Tensor } from "./tensor.js";
import { evaluate, type Given, largestDifference, randomFloats } from "./testing.js";

type State = Record<string, Tensor>;
type Step = (carry: State, inputs: State) => { carry: State; outputs: State };

/** The same recurrence, written out place by place. */
function unrolled(carry: State, inputs: State, length: number, step: Step, reverse = false, axis = 0): Tensor {
  const outputs: Tensor[] = [];
  let state = carry;
  for (let i = 0; i < length; i++) {
    const t = reverse ? length - 1 - i : i;
    const here = Object.fromEntries(Object.entries(inputs).map(([name, x]) => [name, x.at(t, axis)]));
    const result = step(state, here);
    state = result.carry;
    outputs[t] = result.outputs.y;
  }
  return stack(outputs, axis);
}

function given(...shapes: [...(number | string)[]][]): Given[] {
  const sizes: Record<string, number> = { T: 5, B: 2 };
  return shapes.map((shape, i) => {
    const numbers = shape.map((dim) => (typeof dim === "number" ? dim : sizes[dim]));
    const count = numbers.reduce((product, size) => product * size, 1);
    return { shape, array: { shape: numbers, data: Array.from(randomFloats(count, i + 1)) } };
  });
}

/** Compares a scan over a symbolic length with the same written out, results and all gradients. */
async function compare(values: Given[], build: (unroll: boolean, ...inputs: Tensor[]) => Tensor): Promise<void> {
  const run = (unroll: boolean) =>
    evaluate(unroll ? values.map(({ array }) => ({ shape: array.shape, array })) : values, (...inputs) => {
      const y = build(unroll, ...inputs);
      const results = gradients(y.mul(y).sin().sum(), inputs);
      return { y, ...Object.fromEntries(results.map((d, i) => [`d${i}`, d])) };
    });
  const [scanned, expected] = [await run(false), await run(true)];
  for (const [name, { shape, data }] of Object.entries(expected.arrays)) {
    expect(scanned.arrays[name].shape, name).toEqual(shape);
    expect(largestDifference(scanned.arrays[name].data, data), name).toBeLessThan(2e-5);
    expect(
      data.some((value) => Math.abs(value) > 1e-3),
      name,
    ).toBe(true);
  }
}

const lstm =
  (u: Tensor): Step =>
  ({ h, c }, { a }) => {
    const [i, f, o, g] = a.add(h.linear(u)).split(4); // [B, 3] each
    const next = f.sigmoid().mul(c).add(i.sigmoid().mul(g.tanh()));
    const hidden = o.sigmoid().mul(next.tanh());
    return { carry: { h: hidden, c: next }, outputs: { y: hidden } };
  };

/** S_t = S_(t-1) + beta (v - S_(t-1) k) kᵀ, y = S_t q */
const delta: Step = ({ S }, { q, k, v, beta }) => {
  const column = (x: Tensor): Tensor => x.unsqueeze(-1);
  const error = v.sub(S.matmul(column(k)).squeeze(-1)).mul(beta); // [B, D]
  const next = S.add(column(error).mul(k.unsqueeze(-2))); // [B, D, D]
  return { carry: { S: next }, outputs: { y: next.matmul(column(q)).squeeze(-1) } };
};

describe("scan equals the recurrence written out, and so do its gradients", () => {
  test("an LSTM over a symbolic length", async () => {
    const values = given(["T", "B", 12], [12, 3], ["B", 3], ["B", 3]);
    await compare(values, (unroll, a, u, h, c) =>
      unroll
        ? unrolled({ h, c }, { a }, 5, lstm(u))
        : scan({ carry: { h, c }, inputs: { a }, step: lstm(u) }).outputs.y,
    );
  });

  test("the delta rule along the second axis, backwards", async () => {
    const values = given(["B", "T", 3], ["B", "T", 3], ["B", "T", 3], ["B", "T", 1], ["B", 3, 3]);
    await compare(values, (unroll, q, k, v, beta, S) =>
      unroll
        ? unrolled({ S }, { q, k, v, beta }, 5, delta, true, 1)
        : scan({ carry: { S }, inputs: { q, k, v, beta }, step: delta, axis: 1, reverse: true }).outputs.y,
    );
  });

  test("the last state, weights used outside as well, and a block that is recomputed", async () => {
    const values = given(["T", "B", 3], [3, 3], ["B", 3]);
    const step =
      (w: Tensor): Step =>
      ({ h }, { x }) => {
        const next = h.linear(w.exp()).add(x).tanh();
        return { carry: { h: next }, outputs: { y: next } };
      };
    await compare(values, (unroll, x, w, h) => {
      if (unroll) {
        const all = unrolled({ h }, { x }, 5, step(w));
        return all.at(-1).linear(w).add(all.sum(0));
      }
      return recompute([x], (x) => {
        const { carry, outputs } = scan({ carry: { h }, inputs: { x }, step: step(w) });
        return carry.h.linear(w).add(outputs.y.sum(0));
      });
    });
  });

  test("second derivatives", async () => {
    const values = given(["T", 2], [2]);
    const step: Step = ({ h }, { x }) => {
      const next = h.mul(x).sin();
      return { carry: { h: next }, outputs: { y: next } };
    };
    await compare(values, (unroll, x, h) => {
      const y = unroll ? unrolled({ h }, { x }, 5, step) : scan({ carry: { h }, inputs: { x }, step }).outputs.y;
      return gradients(y.square().sum(), [x])[0];
    });
  });

  test("refuses a state that changes its shape, and inputs of two lengths", () => {
    const x = input("x", ["T", 2]);
    const h = input("h", [2]);
    const twice = () => scan({ carry: { h }, inputs: { x }, step: ({ h }) => ({ carry: { h: h.tile([2]) } }) });
    expect(twice).toThrow(/a step must keep "h" \[2\] float32/);
    const uneven = { x, z: input("z", ["S", 2]) };
    expect(() => scan({ carry: { h }, inputs: uneven, step: ({ h }) => ({ carry: { h } }) })).toThrow(
      /differ in length/,
    );
    expect(() => scan({ carry: { h }, inputs: {}, step: ({ h }) => ({ carry: { h } }) })).toThrow(/no inputs/);
  });
});
