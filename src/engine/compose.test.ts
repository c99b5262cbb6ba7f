import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { addBiases, combineSelections, compose, intersectEntries, subtractEntries, toRanges } from "./compose.js";
import {
  type AttachedMethod,
  type Entries,
  entriesOf,
  type Hooks,
  type KeyView,
  type ModelShape,
  type Part,
} from "./hooks.js";

const MODEL: ModelShape = {
  layers: 4,
  width: 8,
  heads: 4,
  kvHeads: 2,
  headDim: 2,
  mlpWidth: 8,
  vocab: 8,
  maxPositions: 64,
  hash: "x",
  rotary: true,
};
const attached = (name: string, hooks: Hooks, more: Partial<AttachedMethod> = {}): AttachedMethod => ({
  name,
  spec: name,
  hooks,
  ...more,
});
const nothing = () => {};

describe("composition of methods", () => {
  it("lists each layer's hooks in the order given, and nothing elsewhere", () => {
    const a = attached("a", { layers: [0, -1], select: () => [], heads: nothing });
    const b = attached("b", { bias: () => undefined, residual: nothing });
    const composed = compose([a, b], MODEL);
    expect(composed.spec).toBe("a+b");
    expect(composed.layer(0).select.map((m) => m.name)).toEqual(["a"]);
    expect(composed.layer(1).select).toEqual([]);
    expect(composed.layer(3).heads.map((m) => m.index)).toEqual([0]);
    expect(composed.layer(1).bias.map((m) => m.index)).toEqual([1]);
    expect(composed.layer(4).residual.map((m) => m.name)).toEqual(["b"]);
    expect(composed.layer(4).attention).toBe(false);
    const retains = compose([attached("r", { retain: nothing }), attached("s", { retain: nothing })], MODEL);
    expect(retains.layer(2).retain.map((m) => m.name)).toEqual(["r", "s"]);
  });

  it("says what a layer needs", () => {
    const none = compose([], MODEL);
    expect([none.spec, none.layer(0).attention, none.layer(0).reads, none.layer(0).everyRow]).toEqual([
      "",
      false,
      false,
      false,
    ]);
    const select = compose([attached("a", { select: () => [] })], MODEL).layer(0);
    expect([select.attention, select.reads, select.everyRow]).toEqual([true, true, false]);
    const observe = compose([attached("a", { observe: nothing })], MODEL).layer(0);
    expect([observe.attention, observe.reads, observe.everyRow]).toEqual([true, true, true]);
    const retain = compose([attached("a", { retain: nothing })], MODEL).layer(0);
    expect([retain.attention, retain.reads, retain.everyRow]).toEqual([true, false, false]);
    const decoding = attached("a", { select: () => [], selectsDecoding: true });
    const alone = compose([decoding], MODEL).layer(0);
    expect([alone.reads, alone.promptReads]).toEqual([true, false]);
    expect(compose([decoding, attached("b", { select: () => [] })], MODEL).layer(0).promptReads).toBe(true);
    expect(compose([decoding, attached("b", { bias: () => undefined })], MODEL).layer(0).promptReads).toBe(true);
    const mlp = compose([attached("a", { mlp: nothing })], MODEL).layer(0);
    expect([mlp.attention, mlp.mlp.length]).toEqual([false, 1]);
  });

  it("allows one position, one mechanism and one replaced pattern in a layer", () => {
    const position = (name: string, layers?: number[]) => attached(name, { layers, position: () => undefined });
    expect(() => compose([position("p"), position("q")], MODEL)).toThrow(
      /p and q cannot act together in layer 0: each sets how positions/,
    );
    expect(() => compose([position("p", [0, 1]), position("q", [2, -1])], MODEL)).not.toThrow();
    expect(() => compose([position("p", [0, 3]), position("q", [2, -1])], MODEL)).toThrow(/in layer 3/);
    const replaces = (name: string) => attached(name, { pattern: nothing, replacesPattern: true });
    expect(() => compose([replaces("p"), replaces("q")], MODEL)).toThrow(/replaces the attention weights/);
    expect(() => compose([replaces("p"), attached("edit", { pattern: nothing })], MODEL)).not.toThrow();
    const mechanism = (name: string, layers?: number[]) => attached(name, { layers, mechanism: ({ v }) => v });
    expect(() => compose([mechanism("m"), mechanism("n")], MODEL)).toThrow(/each replaces attention/);
    expect(() => compose([mechanism("m", [1]), attached("s", { select: () => [] })], MODEL)).toThrow(
      /m replaces attention, so that s has no/,
    );
    expect(() => compose([mechanism("m", [1]), attached("s", { layers: [0], select: () => [] })], MODEL)).not.toThrow();
  });

  it("refuses layers, heads and models that do not fit", () => {
    expect(() => compose([attached("a", { layers: [4], heads: nothing })], MODEL)).toThrow(
      /layer 4 does not exist; the model has layers 0 to 3/,
    );
    expect(() => compose([attached("a", { layers: [-5] })], MODEL)).toThrow(/layer -5/);
    const scoped = (head: number, hooks: Hooks) => attached("a", hooks, { scope: { heads: [{ layer: 1, head }] } });
    expect(() => compose([scoped(4, {})], MODEL)).toThrow(/head 1\.4 does not exist/);
    expect(() => compose([scoped(2, { retain: nothing })], MODEL)).toThrow(/the scope leaves out 1\.3/);
    expect(() => compose([scoped(2, { heads: nothing })], MODEL)).not.toThrow();
    const check = () => {
      throw new Error("not here");
    };
    expect(() => compose([attached("a", {}, { check })], MODEL)).toThrow(/not here/);
  });
});

/** Keys at the given positions, the same for both KV heads unless two lists are given. */
function view(positions: number[], second = positions): KeyView {
  const of = (head: number) => Int32Array.from(head === 0 ? positions : second);
  return {
    length: (h) => of(h).length,
    positions: of,
    keys: () => new Float32Array(0),
    values: () => new Float32Array(0),
  };
}

/** What parts read: per head (KV heads by default) and row, the entries, each of which must be read once only. */
function reads(parts: readonly Part[], keys: KeyView, rows: readonly number[], heads = 2): string[] {
  const out: string[] = [];
  for (let head = 0; head < heads; head++)
    for (const [r, row] of rows.entries()) {
      const seen: number[] = [];
      for (const part of parts) {
        const [from, to] = part.heads ?? [0, 2];
        const kv = Math.floor((head * 2) / heads);
        if (kv < from || kv >= to) continue;
        const positions = keys.positions(kv);
        for (const [a, b] of toRanges(entriesOf(part.entries ?? "all", head, heads), positions.length))
          for (let e = a; e < b; e++) {
            const distance = row - positions[e];
            if (distance < 0 || distance >= (part.window ?? 1e9)) continue;
            const { bias } = part;
            const width = bias ? bias.data.length / (bias.heads * Math.max(1, bias.rows)) : 0;
            if (bias && bias.data[(bias.rows ? r : 0) * width + e] < -1e29) continue;
            seen.push(e);
          }
      }
      expect(new Set(seen).size).toBe(seen.length);
      out.push(`${head}:${row}:${seen.sort((x, y) => x - y).join(",")}`);
    }
  return out;
}

const SIZES = { heads: 4, kvHeads: 2 };

describe("selections", () => {
  const keys = view([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  const at = Int32Array.of(9);
  const combine = (...selections: Part[][]) => combineSelections(selections, keys, SIZES, at) as Part[];

  it("are everything without a method, and one method's own parts with one", () => {
    expect(combine()).toEqual([{}]);
    const own: Part[] = [{ window: 3 }];
    expect(combine(own)).toBe(own);
  });

  it("intersect", () => {
    const got = combine([{ entries: { ranges: [[0, 6]] } }], [{ entries: { tokens: Int32Array.of(1, 5, 7) } }]);
    expect(reads(got, keys, [9])).toEqual(["0:9:1,5", "1:9:1,5"]);
    expect(reads(combine([{ window: 4 }], [{ window: 2 }], [{}]), keys, [9])).toEqual(["0:9:8,9", "1:9:8,9"]);
    const perHead = combine(
      [{ heads: [0, 1], window: 4 }, { heads: [1, 2] }],
      [{ entries: { tokens: Int32Array.of(0, 8) } }],
    );
    expect(reads(perHead, keys, [9])).toEqual(["0:9:8", "1:9:0,8"]);
    expect(
      combine([{ entries: { pages: Int32Array.of(0, 2) } }], [{ entries: { pages: Int32Array.of(2, 3) } }]),
    ).toEqual([{ entries: { pages: Int32Array.of(2) } }]);
    expect(
      reads(
        combine([{ entries: { tokens: Int32Array.of(1) } }], [{ entries: { tokens: Int32Array.of(2) } }]),
        keys,
        [9],
      ),
    ).toEqual(["0:9:", "1:9:"]);
  });

  it("keep the query of the one that brings one, and refuse two", () => {
    const query = new Float32Array(8);
    const sinks: Part[] = [
      { entries: { ranges: [[0, 2]] }, query },
      { entries: { ranges: [[2, 10]] }, window: 4 },
    ];
    const got = combine(sinks, [{ entries: { tokens: Int32Array.of(1, 3, 9) } }]);
    expect(got.find((p) => p.query)?.entries).toEqual({ ranges: [[1, 2]] });
    expect(reads(got, keys, [9])).toEqual(["0:9:1,9", "1:9:1,9"]);
    expect(() => combine(sinks, [{ query: new Float32Array(8) }])).toThrow(/queries of their own/);
    // disjoint keys do not meet
    expect(() => combine(sinks, [{ query: new Float32Array(8), entries: { ranges: [[5, 6]] } }])).not.toThrow();
  });

  it("intersect head by head where entries differ by KV head or by query head", () => {
    const tokens = (...list: number[]): Entries => ({ tokens: Int32Array.from(list) });
    const perQuery = [tokens(0, 1), tokens(1, 2), tokens(2, 3), tokens(3, 9)];
    const got = combine([{ entries: [tokens(1, 2), tokens(3)] }], [{ entries: perQuery }]);
    expect(reads(got, keys, [9], 4)).toEqual(["0:9:1", "1:9:1,2", "2:9:3", "3:9:3"]);
    const limited = combine([{ heads: [1, 2] }], [{ entries: perQuery }]);
    expect(reads(limited, keys, [9], 4)).toEqual(["0:9:", "1:9:", "2:9:2,3", "3:9:3,9"]);
    const forced = combine([{ entries: perQuery, forced: true }], [{ window: 2 }]);
    expect(reads(forced, keys, [9], 4)).toEqual(["0:9:0,1", "1:9:1,2", "2:9:2,3", "3:9:3,9"]);
  });

  it("refuse ready results beside another selection", () => {
    const ready = { output: new Float32Array(8), lse: new Float32Array(4) };
    expect(() => combineSelections([[ready], [{ window: 4 }]], keys, SIZES, at)).toThrow(/ready results/);
    expect(combineSelections([[ready]], keys, SIZES, at)).toEqual([ready]);
  });

  it("unite what is forced, under windows too", () => {
    const forced: Part[] = [
      { entries: { tokens: Int32Array.of(0, 8) }, forced: true },
      { entries: { tokens: Int32Array.of(4, 5) } },
    ];
    expect(reads(combine(forced, [{ window: 5 }]), keys, [9])).toEqual(["0:9:0,5,8", "1:9:0,5,8"]);
    expect(reads(combine([{ window: 5 }], forced), keys, [9])).toEqual(["0:9:0,5,8", "1:9:0,5,8"]);
    expect(() => combine([{ window: 5, forced: true }], forced)).toThrow(/no `window`/);
    // for several rows the window ends at another key each
    const rows = [6, 7, 8, 9];
    const got = combineSelections([forced, [{ window: 5 }]], keys, SIZES, Int32Array.from(rows)) as Part[];
    expect(reads(got, keys, rows).slice(0, 4)).toEqual(["0:6:0,4,5", "0:7:0,4,5", "0:8:0,4,5,8", "0:9:0,5,8"]);
  });

  it("are the law's sets for any parts, rows and heads", () => {
    const positions = fc.uniqueArray(fc.nat(30), { minLength: 1, maxLength: 14 }).map((p) => p.sort((a, b) => a - b));
    const selection = fc
      .record({
        owner: fc.array(fc.integer({ min: 0, max: 2 }), { minLength: 14, maxLength: 14 }),
        forced: fc.array(fc.boolean(), { minLength: 3, maxLength: 3 }),
        windows: fc.array(fc.option(fc.integer({ min: 1, max: 20 })), { minLength: 3, maxLength: 3 }),
        split: fc.boolean(),
        lists: fc.constantFrom(1, 2, 4),
      })
      .map(({ owner, forced, windows, split, lists }) => {
        // parts 1 and 2 own disjoint entries; 0 is unread
        const parts: Part[] = [];
        for (const p of [1, 2]) {
          const owned = (turn: number): Entries => ({
            tokens: Int32Array.from(owner.flatMap((o, i) => ((o + turn) % 3 === p ? [i] : []))),
          });
          const window = windows[p] ?? undefined;
          const base: Part = {
            entries: lists === 1 ? owned(0) : Array.from({ length: lists }, (_, turn) => owned(turn)),
            ...(forced[p] ? { forced: true } : window === undefined ? {} : { window }),
          };
          if (split && p === 1) parts.push({ ...base, heads: [0, 1] });
          else parts.push(base);
        }
        return parts;
      });
    const rows = fc.uniqueArray(fc.nat(30), { minLength: 1, maxLength: 4 }).map((r) => r.sort((a, b) => a - b));
    fc.assert(
      fc.property(
        positions,
        positions,
        fc.array(selection, { minLength: 2, maxLength: 3 }),
        rows,
        (first, second, selections, at) => {
          const keys = view(first, second);
          const got = reads(combineSelections(selections, keys, SIZES, Int32Array.from(at)) as Part[], keys, at, 4);
          const wanted: string[] = [];
          for (let head = 0; head < 4; head++)
            for (const row of at) {
              const sets = (only: (p: Part) => boolean) =>
                selections.map((parts) => {
                  const line = reads(parts.filter(only), keys, [row], 4)[head];
                  return line.split(":")[2].split(",").filter(Boolean).map(Number);
                });
              const all = sets(() => true);
              const forced = sets((p) => !!p.forced).flat();
              const every = all[0].filter((e) => all.every((s) => s.includes(e)));
              wanted.push(`${head}:${row}:${[...new Set([...every, ...forced])].sort((a, b) => a - b).join(",")}`);
            }
          expect(got).toEqual(wanted);
        },
      ),
      { numRuns: 400 },
    );
  });
});

describe("sets of entries", () => {
  const entries: fc.Arbitrary<Entries> = fc.oneof(
    fc.constant("all" as const),
    fc
      .array(fc.tuple(fc.nat(70), fc.nat(20)), { maxLength: 4 })
      .map((r) => ({ ranges: r.map(([a, n]) => [a, a + n] as const) })),
    fc.array(fc.nat(70), { maxLength: 6 }).map((t) => ({ tokens: Int32Array.from(t) })),
    fc.uniqueArray(fc.nat(5), { maxLength: 3 }).map((p) => ({ pages: Int32Array.from(p) })),
  );
  const members = (e: Entries, length: number) => {
    const out = new Set<number>();
    for (const [a, b] of toRanges(e, length)) for (let i = a; i < b; i++) out.add(i);
    return out;
  };
  it("intersect and subtract as sets do", () => {
    fc.assert(
      fc.property(entries, entries, fc.integer({ min: 1, max: 70 }), (a, b, length) => {
        const [x, y] = [members(a, length), members(b, length)];
        expect(members(intersectEntries(a, b, length), length)).toEqual(
          new Set([...x].filter((i) => y.has(i)).sort((p, q) => p - q)),
        );
        expect(members(subtractEntries(a, b, length), length)).toEqual(new Set([...x].filter((i) => !y.has(i))));
      }),
    );
  });
});

describe("biases", () => {
  it("add, on the finer of their grids", () => {
    const one = { data: Float32Array.of(1, 2, 3), heads: 1, rows: 0 };
    const perKv = { data: Float32Array.of(10, 10, 10, 20, 20, 20), heads: 2, rows: 0 };
    const perHeadAndRow = {
      data: Float32Array.from({ length: 24 }, (_, i) => 100 * Math.floor(i / 3)),
      heads: 4,
      rows: 2,
    };
    expect([...addBiases(one, perKv, SIZES).data]).toEqual([11, 12, 13, 21, 22, 23]);
    const all = addBiases(addBiases(perKv, perHeadAndRow, SIZES), one, SIZES);
    expect([all.heads, all.rows]).toEqual([4, 2]);
    // head 3 (second KV head), row 1
    expect([...all.data.subarray(21)]).toEqual([721, 722, 723]);
    expect(() => addBiases(one, { data: Float32Array.of(1, 2), heads: 1, rows: 0 }, SIZES)).toThrow(/3 and 2 keys/);
  });
});
