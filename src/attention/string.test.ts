import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { FoveaError } from "../error.js";
import { type MethodCall, nearestNames, parseMethods, printMethods, type Value } from "./string.js";

const plain = (text: string) => parseMethods(text).map(({ name, params }) => ({ name, params }));
const canonical = (text: string) => printMethods(parseMethods(text));

function failure(text: string): FoveaError {
  try {
    parseMethods(text);
  } catch (error) {
    if (error instanceof FoveaError) return error;
    throw error;
  }
  throw new Error(`parsed: ${text}`);
}

describe("method strings", () => {
  it("reads names, numbers, fractions, words, texts, lists, ranges and heads", () => {
    expect(plain("full")).toEqual([{ name: "full", params: {} }]);
    expect(plain("full()")).toEqual([{ name: "full", params: {} }]);
    expect(plain('a(x=1,y=1/8,c="a, \\"b\\"",z=4k,w=1.5m,on=true,off=false,word=rank)+b-2( l = [1, 2 ,3] )')).toEqual([
      {
        name: "a",
        params: { x: 1, y: 0.125, c: 'a, "b"', z: 4096, w: 1572864, on: true, off: false, word: "rank" },
      },
      { name: "b-2", params: { l: [1, 2, 3] } },
    ]);
    expect(plain("a(layers=2-5,heads=3.1)")).toEqual([
      { name: "a", params: { layers: [2, 3, 4, 5], heads: [{ layer: 3, head: 1 }] } },
    ]);
    expect(plain("a(layers=3,x=-2,y=-1.5e-3,z=.5)")).toEqual([
      { name: "a", params: { layers: [3], x: -2, y: -0.0015, z: 0.5 } },
    ]);
    expect(plain("a(layers=[0,4-6,-1],heads=[3.10,4.0-1],file=heads/x.json)")).toEqual([
      {
        name: "a",
        params: {
          layers: [0, 4, 5, 6, -1],
          heads: [
            { layer: 3, head: 10 },
            [
              { layer: 4, head: 0 },
              { layer: 4, head: 1 },
            ],
          ].flat(),
          file: "heads/x.json",
        },
      },
    ]);
    expect(plain("pasta(heads='heads/instructions.json')")[0].params.heads).toBe("heads/instructions.json");
  });

  it("prints one form for all ways of writing the same", () => {
    expect(canonical(' a ( x = 0.125 , l=[1,2,3,4], w = "rank" ) + b ( ) ')).toBe("a(x=1/8,l=1-4,w=rank)+b");
    expect(canonical("a(x=0.5,y=1/3,z=0.3,k=4k)")).toBe("a(x=0.5,y=1/3,z=0.3,k=4096)");
    expect(canonical('a(t="true",n="12",e="",s="two words")')).toBe('a(t="true",n="12",e="",s="two words")');
    expect(canonical("a(layers=[3],heads=[3.1],x=[3])")).toBe("a(layers=3,heads=3.1,x=[3])");
    expect(canonical("a(heads=[3.0,3.1,3.2,4.7])")).toBe("a(heads=[3.0-2,4.7])");
  });

  it("says where it failed, what it found and what it expected", () => {
    expect(failure("").message).toBe(
      "method string, position 0: found the end, expected a method's name, such as streaming-llm",
    );
    expect(failure("quest(tokens==3)").message).toMatch(/position 13: found "=", expected a value of tokens/);
    expect(failure("quest(tokens=3").message).toMatch(
      /position 14: found the end, expected "," and another parameter, or "\)"/,
    );
    expect(failure("a(x=1,x=2)").message).toMatch(/position 6: .*each parameter once/);
    expect(failure("a+").message).toMatch(/position 2: found the end/);
    expect(failure("a b").message).toMatch(/position 2: found "b", expected "\+"/);
    expect(failure('a(x="b)').message).toMatch(/position 4: .*closing "/);
    expect(failure("a(x=5-2)").message).toMatch(/a range that rises/);
    expect(failure("a(x=0-99999999)").message).toMatch(/at most 16384 values/);
    expect(failure("a(x=1e999)").message).toMatch(/beyond all bounds/);
    expect(failure("a(x=1/0)").message).toMatch(/divisor above 0/);
    expect(failure("a(x=12abc)").message).toMatch(/need quotes/);
    expect(failure("quest(tokens==3)").hint?.split("\n")[1].indexOf("^")).toBe(13);
  });

  it("keeps names of object internals as data", () => {
    const [{ params }] = parseMethods("a(constructor=1,toString=2)");
    expect(Object.entries(params)).toEqual([
      ["constructor", 1],
      ["toString", 2],
    ]);
  });

  it("finds near names", () => {
    expect(nearestNames("streeming-llm", ["full", "streaming-llm", "snapkv"])).toEqual(["streaming-llm"]);
    expect(nearestNames("snap", ["full", "streaming-llm", "snapkv"])).toEqual(["snapkv"]);
    expect(nearestNames("zzzzzzzz", ["full"])).toEqual([]);
  });
});

describe("method strings, properties", () => {
  const key = fc
    .stringMatching(/^[a-z][A-Za-z0-9]{0,8}$/)
    .filter((k) => k !== "layers" && k !== "heads" && !k.endsWith("Heads"));
  const number = fc.oneof(
    fc.integer(),
    fc.double({ noNaN: true, noDefaultInfinity: true }).map((x) => x + 0),
    fc.tuple(fc.integer({ min: 1, max: 99 }), fc.integer({ min: 1, max: 99 })).map(([a, b]) => a / b),
  );
  const scalar: fc.Arbitrary<Value> = fc.oneof(
    number,
    fc.boolean(),
    fc.string({ unit: "binary" }),
    fc.constantFrom("rank", "true", "a-b"),
  );
  const value: fc.Arbitrary<Value> = fc.oneof(
    scalar,
    fc.array(scalar, { maxLength: 5 }),
    fc.array(fc.array(scalar, { maxLength: 3 }), { maxLength: 3 }),
    fc.tuple(fc.nat(50), fc.nat(9)).map(([a, n]) => Array.from({ length: n }, (_, i) => a + i)),
  );
  const head = fc.record({ layer: fc.integer({ min: -3, max: 40 }), head: fc.nat(40) });
  const call: fc.Arbitrary<MethodCall> = fc
    .tuple(
      fc.stringMatching(/^[a-z][a-z0-9]{0,5}(-[a-z0-9]{1,4})?$/),
      fc.dictionary(key, value, { maxKeys: 4 }),
      fc.option(
        fc.array(
          fc.integer({ min: -4, max: 40 }).map((x) => x + 0),
          { maxLength: 6 },
        ),
      ),
      fc.option(fc.array(head, { minLength: 1, maxLength: 6 })),
    )
    .map(([name, params, layers, heads]) => ({
      name,
      params: { ...params, ...(layers ? { layers } : {}), ...(heads ? { heads } : {}) },
    }));

  it("reads back what it prints, and prints it the same again", () => {
    fc.assert(
      fc.property(fc.array(call, { minLength: 1, maxLength: 3 }), (calls) => {
        const text = printMethods(calls);
        expect(plain(text)).toEqual(calls.map(({ name, params }) => ({ name, params: { ...params } })));
        expect(canonical(text)).toBe(text);
      }),
      { numRuns: 500 },
    );
  });

  it("ends with a result or a clear error on anything, quickly", () => {
    const alphabet = fc.constantFrom(..."ab-(),=+[]\"'\\/.0129kme \n{}é".split(""));
    const hostile = fc.oneof(
      fc.string({ unit: alphabet, maxLength: 60 }),
      fc.string({ unit: "binary", maxLength: 40 }),
    );
    fc.assert(
      fc.property(hostile, (text) => {
        try {
          parseMethods(text);
        } catch (error) {
          expect(error).toBeInstanceOf(FoveaError);
        }
      }),
      { numRuns: 2000 },
    );
  });

  it("does not hang or grow on long input", () => {
    const n = 60_000;
    const start = performance.now();
    for (const text of [
      "a".repeat(n),
      `a(x=${"[".repeat(n)}`,
      `a(x=${"9".repeat(n)})`,
      `a(x="${"\\".repeat(n)}`,
      "a+".repeat(n / 2),
      "a-".repeat(n / 2),
      " ".repeat(n),
      `a(x=[${"0-9999,".repeat(n / 8)}1])`,
      `a(x=${"1/".repeat(n / 2)})`,
      "x".repeat(1 << 20),
    ]) {
      try {
        parseMethods(text);
      } catch (error) {
        expect(error).toBeInstanceOf(FoveaError);
      }
    }
    expect(performance.now() - start).toBeLessThan(2000);
  });
});
