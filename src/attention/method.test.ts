import { describe, expect, it } from "vitest";
import { z } from "zod";
import type { AttentionStep, HeadsStep, LogBias, ModelShape, Rows } from "../engine/hooks.js";
import { FoveaError } from "../error.js";
import { catalog, listMethods, methodString, resolve } from "./catalog.js";
import { full } from "./full.js";
import { type MethodFactory, method } from "./method.js";
import { PlainLayer } from "./plain.js";
import { streamingLlm } from "./streaming/streaming-llm.js";
import { maxDifference, randomRows } from "./testing.js";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 8 };

function failure(run: () => unknown): FoveaError {
  try {
    run();
  } catch (error) {
    if (error instanceof FoveaError) return error;
    throw error;
  }
  throw new Error("no error");
}

describe("a method's parameters", () => {
  it("are checked, defaulted and printed canonically", () => {
    expect(streamingLlm().spec).toBe("streaming-llm(sinks=4,window=512,positions=rank,prompt=stream)");
    expect(streamingLlm({ window: 64, sinks: 0, layers: [3, 1, 2] }).spec).toBe(
      "streaming-llm(sinks=0,window=64,positions=rank,prompt=stream,layers=1-3)",
    );
    expect(streamingLlm({ heads: { layer: 3, head: 1 } }).spec).toMatch(/,heads=3\.1\)$/);
    expect(full().spec).toBe("full");
  });

  it("are refused with the parameter, what was given and what it takes", () => {
    const low = failure(() => streamingLlm({ sinks: -1 }));
    expect(low.code).toBe("bad-input");
    expect(low.message).toMatch(/^streaming-llm: sinks is -1: too small/);
    expect(low.hint).toMatch(/^sinks: whole number, at least 0 \(first tokens/);
    const unknown = failure(() => resolve("streaming-llm(widow=3)"));
    expect(unknown.message).toBe('streaming-llm has no parameter "widow"');
    expect(unknown.hint).toBe("did you mean window?");
    expect(failure(() => resolve("streaming-llm(positions=ranks)")).message).toMatch(
      /positions is "ranks": invalid option/,
    );
    expect(failure(() => resolve("h2o(heavy=1.5)")).message).toMatch(/heavy is 1.5: expected whole tokens, or a share/);
    expect(failure(() => resolve("h2o(heavy=0,recent=0)")).message).toMatch(/both 0/);
    expect(failure(() => resolve("snapkv(kernel=4)")).message).toMatch(/odd width/);
    expect(failure(() => resolve('full(layers="x")')).message).toMatch(/layers is \["x"\]; expected whole numbers/);
    expect(failure(() => resolve("full(layers=1,heads=2.0)")).message).toMatch(/expected one of them/);
  });

  it("read positions=true, which a string writes without quotes", () => {
    expect(resolve("streaming-llm(positions=true)")[0].spec).toBe(
      "streaming-llm(sinks=4,window=512,positions=true,prompt=stream)",
    );
  });

  it("are typed", () => {
    // @ts-expect-error no such parameter
    expect(() => streamingLlm({ sink: 4 })).toThrow();
    // @ts-expect-error not a number
    expect(() => streamingLlm({ sinks: "4" })).toThrow();
    const needs = method({ name: "needs", parameters: z.object({ at: z.int() }) });
    // @ts-expect-error `at` has no default
    expect(() => needs()).toThrow(/at is missing/);
    expect(needs({ at: 1 }).spec).toBe("needs(at=1)");
  });
});

describe("a method of one's own", () => {
  it("takes twenty lines or fewer", async () => {
    const recent = method({
      name: "recent",
      parameters: z.object({ window: z.int().min(1).default(512).describe("newest tokens read") }),
      select: (_step, { window }) => [{ window }],
    });
    expect(recent.card.hooks).toEqual(["select"]);
    expect(recent.card.scope).toBe("heads");
    expect(recent.card.parameters).toEqual([
      {
        name: "window",
        type: "whole number, at least 1",
        default: 512,
        required: false,
        description: "newest tokens read",
      },
    ]);
    const rows = randomRows(20, SHAPE);
    const got = await new PlainLayer(SHAPE, [recent({ window: 5 })]).step(rows);
    const wanted = await new PlainLayer(SHAPE, [streamingLlm({ sinks: 0, window: 5, positions: "true" })]).step(rows);
    expect(maxDifference(got, wanted)).toBeLessThan(1e-6);
  });

  it("keeps a typed state and gets its parameters in every hook", () => {
    const counted = method({
      name: "counted",
      parameters: z.object({ by: z.int().default(2) }),
      state: (_model, { by }) => ({ steps: by }),
      heads: (step, { by }) => {
        step.state.steps += by;
      },
    });
    const { hooks } = counted();
    const step = { state: hooks.state?.({} as ModelShape) } as HeadsStep;
    hooks.heads?.(step);
    expect(step.state).toEqual({ steps: 4 });
  });

  it("is not asked for a prompt's rows where its card says that only decoded ones change", () => {
    const rows = { prefill: false, lastPromptRow: false, decode: true };
    const select = () => [{}];
    expect(method({ name: "own-decoding", rows, select })().hooks.selectsDecoding).toBe(true);
    expect(method({ name: "own-everywhere", select })().hooks.selectsDecoding).toBeUndefined();
    expect(method({ name: "own-eviction", rows, retain: () => {} })().hooks.selectsDecoding).toBeUndefined();
  });

  it("is refused with a name or parameter that a method string cannot hold", () => {
    expect(() => method({ name: "My method" })).toThrow(/words of a-z/);
    expect(() => method({ name: "x", parameters: z.object({ layers: z.int() }) })).toThrow(/cannot be called "layers"/);
  });

  it("has its own `heads` parameter if it wants one", () => {
    const own = method({ name: "own", parameters: z.object({ heads: z.string() }), scope: "layers" });
    expect(own({ heads: "heads/a.json" }).spec).toBe("own(heads=heads/a.json)");
  });
});

describe("a scope of heads", () => {
  const heads = [
    { layer: 0, head: 2 },
    { layer: 0, head: 3 },
  ];
  const outside = (x: Float32Array) => x.filter((_, i) => Math.floor(i / SHAPE.headDim) % SHAPE.heads < 2);
  const inside = (x: Float32Array) => x.filter((_, i) => Math.floor(i / SHAPE.headDim) % SHAPE.heads >= 2);
  const edits: Record<string, MethodFactory> = {
    heads: method({ name: "zero", heads: (step) => void step.heads.fill(0) }),
    pattern: method({ name: "flip", pattern: (_step, rows: Rows) => void rows.data.reverse() }),
    scores: method({
      name: "cold",
      scores: (_step, rows: Rows) => rows.data.forEach((x, i) => void (rows.data[i] = x / 9)),
    }),
    bias: method({
      name: "push",
      bias: (step: AttentionStep): LogBias => ({
        data: Float32Array.from({ length: step.view.length(0) }, (_, i) => i % 3),
        heads: 1,
        rows: 0,
      }),
    }),
    activations: method({
      name: "shift",
      activations: ({ q, k, v }) => {
        for (const x of [q, k, v]) for (let i = 0; i < x.length; i++) x[i] += i % 3;
      },
    }),
    select: method({ name: "near", select: () => [{ window: 3 }] }),
  };

  it.each(Object.entries(edits))("limits %s", async (_hook, edit) => {
    expect(edit.card.scope).toBe("heads");
    const rows = randomRows(12, SHAPE, 5);
    const plain = await new PlainLayer(SHAPE, []).step(rows);
    const edited = await new PlainLayer(SHAPE, [edit()]).step(rows);
    const limited = await new PlainLayer(SHAPE, [edit.from({ heads })]).step(rows);
    expect(maxDifference(outside(limited), outside(plain))).toBeLessThan(1e-6);
    expect(maxDifference(inside(limited), inside(plain))).toBeGreaterThan(1e-3);
    if (_hook !== "pattern") expect(maxDifference(inside(limited), inside(edited))).toBeLessThan(1e-6);
  });

  it("is refused for hooks that act on whole layers", () => {
    const whole = method({ name: "whole", residual: () => {} });
    expect(whole.card.scope).toBe("layers");
    expect(() => whole.from({ heads })).toThrow(/cannot be limited to heads/);
  });
});

describe("the catalog", () => {
  it("resolves strings, methods and lists, in order", () => {
    const specs = (input: Parameters<typeof resolve>[0]) => resolve(input).map((m) => m.name);
    expect(specs("")).toEqual([]);
    expect(specs("full+streaming-llm(sinks=1)")).toEqual(["full", "streaming-llm"]);
    expect(specs(full())).toEqual(["full"]);
    expect(specs([full(), "snapkv+h2o"])).toEqual(["full", "snapkv", "h2o"]);
    const unknown = failure(() => resolve("full+streeming-llm"));
    expect([unknown.code, unknown.hint]).toEqual(["unknown-method", "did you mean streaming-llm?"]);
    expect(unknown.message).toBe('unknown method "streeming-llm" at position 5 of the method string');
  });

  it("gives back each method from its own canonical string, with and without a scope", () => {
    for (const factory of catalog.values()) {
      const { parameters, trials } = factory.card;
      const given = parameters.some((p) => p.required) ? trials[0].parameters : {};
      const plain = factory.from(given);
      expect(resolve(plain.spec)[0].spec).toBe(plain.spec);
      const scoped = factory.from({ ...given, layers: [0, 1, 2, -1] });
      expect(resolve(scoped.spec)[0].spec).toBe(scoped.spec);
      expect(scoped.hooks.layers).toEqual([-1, 0, 1, 2]);
    }
  });

  it("names its own methods for another thread, and no others", () => {
    expect(methodString(streamingLlm({ window: 9 }))).toBe(
      "streaming-llm(sinks=4,window=9,positions=rank,prompt=stream)",
    );
    const own = method({ name: "streaming-llm" })();
    expect(failure(() => methodString(own)).hint).toMatch(/worker: false/);
    expect(failure(() => methodString({ ...streamingLlm() })).code).toBe("unsupported");
  });

  it("has a full card for each", () => {
    const cards = listMethods();
    expect(new Set(cards.map((c) => c.name)).size).toBe(cards.length);
    for (const card of cards) {
      expect(card.does).toMatch(/^[A-Z].*\.$/);
      for (const key of ["family", "cost", "facts"] as const) expect(card[key]).not.toBe("");
      for (const p of card.parameters) expect(p.description).not.toBe("");
      if (card.exact) expect(catalog.get(card.name)?.from(card.exact).name).toBe(card.name);
      expect(JSON.parse(JSON.stringify(card))).toEqual(card);
    }
    expect(cards.find((c) => c.name === "h2o")?.hooks).toEqual(["retain", "scores", "observe"]);
  });
});
