import fc from "fast-check";
import { expect, test } from "vitest";
import { decodeState, encodeState } from "./state.js";

test("plain data comes back as it went in", () => {
  const leaf = fc.oneof(
    fc.double(),
    fc.string(),
    fc.boolean(),
    fc.constant(null),
    fc.constant(undefined),
    fc.array(fc.float({ noNaN: true })).map((a) => Float32Array.from(a)),
    fc.array(fc.integer()).map((a) => Int32Array.from(a)),
  );
  const { tree } = fc.letrec((tie) => ({
    tree: fc.oneof(
      { maxDepth: 4 },
      leaf,
      fc.array(tie("tree")),
      fc.dictionary(fc.string(), tie("tree"), { noNullPrototype: true }),
    ),
  }));
  fc.assert(
    fc.property(tree, (value) => {
      const { json, buffers } = encodeState(value);
      expect(decodeState(json, buffers)).toEqual(value);
    }),
  );
});

test("maps survive, functions are refused with their place", () => {
  const value = new Map([["a", Uint8Array.of(1, 2)]]);
  const { json, buffers } = encodeState(value);
  expect(decodeState(json, buffers)).toEqual(value);
  expect(() => encodeState({ rows: [1, () => 2] })).toThrow(/function at \.rows\[1\]/);
});
