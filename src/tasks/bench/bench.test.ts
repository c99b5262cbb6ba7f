import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { randomCheckpoint } from "../../../test/random-checkpoint.js";
import type { Model } from "../../engine/api.js";
import { localConnection } from "../../engine/connection.js";
import { Host } from "../../engine/host.js";
import { createModel } from "../../engine/model.js";
import { load } from "../../load.js";
import { tasksByName } from "../catalog.js";
import { type Filler, loadFiller } from "../documents/index.js";
import { budgeted, solveBudget } from "./budget.js";
import { klDivergence, klOfRows } from "./kl.js";
import { PromptFormat } from "./prompt.js";
import { type BenchRecord, parseRecords, recordKey } from "./record.js";
import { type BenchOptions, knowsNothing, runBench } from "./run.js";
import { bootstrap, summarise } from "./summary.js";

describe("budgets", () => {
  it("go to the method's own parameter, or to $", () => {
    expect(budgeted("snapkv")?.at(100)).toBe("snapkv(capacity=100)");
    expect(budgeted("snapkv(window=8)")?.at(100)).toBe("snapkv(capacity=100,window=8)");
    expect(budgeted("h2o")?.at(50)).toBe("h2o(heavy=25,recent=25)");
    expect(budgeted("tokenselect")?.at(64)).toBe("tokenselect(tokens=32,window=24,sinks=8)");
    expect(budgeted("tokenselect(window=5)")?.at(64)).toBe("tokenselect(tokens=32,window=5,sinks=8)");
    expect(budgeted("moba")?.at(300)).toBe("moba(decode=sparse,block=100)");
    expect(budgeted("quest")?.at(128)).toBe("quest(tokens=128)");
    expect(budgeted("quest")?.sparse?.at(128)).toBe("quest(denseLayers=0,tokens=128)");
    expect(budgeted("quest(denseLayers=1)")?.sparse).toBeUndefined();
    expect(budgeted("h2o(heavy=$,recent=16)")?.at(50)).toBe("h2o(heavy=50,recent=16)");
    expect(budgeted("streaming-llm(sinks=0)+full")?.at(9)).toBe("streaming-llm(window=9,sinks=0)+full");
    expect(budgeted("random-pages")?.kind).toBe("read");
    expect(budgeted("random-pages(action=keep)")?.kind).toBe("keep");
    expect(budgeted("snapkv")?.kind).toBe("keep");
  });

  it("are not taken by a method that is given its own, or has none", () => {
    for (const method of ["snapkv(capacity=64)", "full", "knock-out(heads=[0.1])", "dhsa"])
      expect(budgeted(method)).toBeUndefined();
  });

  it("are solved by what is measured", async () => {
    // two dense layers of eight, four sinks besides, pages of 16
    let calls = 0;
    const measure = async (value: number) => {
      calls++;
      return (2 * 1000 + 6 * Math.min(1000, Math.ceil(value / 16) * 16 + 4)) / 8000;
    };
    const half = await solveBudget(1 / 2, { least: 1, step: 1 }, 1000, measure);
    expect(half.met).toBe(true);
    expect(Math.abs(half.measured - 1 / 2)).toBeLessThan(0.02);
    expect(half.measured).toBeLessThanOrEqual(0.51);
    expect(calls).toBeLessThanOrEqual(10);
    const eighth = await solveBudget(1 / 8, { least: 1, step: 1 }, 1000, measure);
    expect(eighth).toMatchObject({ met: false, value: 1 });
  });

  it("are solved for shares too", async () => {
    const solved = await solveBudget(1 / 8, { least: 0.001, most: 1, step: 0.001 }, 1000, async (share) =>
      Math.min(1, 0.05 + share),
    );
    expect(solved.met).toBe(true);
    expect(solved.value).toBeCloseTo(0.075, 2);
    // tables of hashes: what is read grows slowly, and then fast
    const tables = await solveBudget(1 / 4, { least: 2, most: 1000, step: 1 }, 1000, async (n) => 1 - 0.999 ** (n / 2));
    expect(Math.abs(tables.measured - 1 / 4)).toBeLessThan(0.01);
  });
});

describe("divergence", () => {
  it("is 0 for the same distribution, and what the definition says", () => {
    const p = Float32Array.from([0.5, 0.25, 0.25], Math.log);
    const q = Float32Array.from([0.25, 0.5, 0.25], (x) => Math.log(x) + 3);
    expect(klDivergence(p, p)).toBeCloseTo(0, 6);
    expect(klDivergence(p, q)).toBeCloseTo(0.25 * Math.LN2, 6);
    const rows = klOfRows(Float32Array.of(...p, ...p), Float32Array.of(...q, ...p), 3);
    expect(rows.first).toBeCloseTo(0.25 * Math.LN2, 6);
    expect(rows.mean).toBeCloseTo(0.125 * Math.LN2, 6);
  });
});

describe("intervals", () => {
  it("shrink with cases, and count documents, not questions", () => {
    const of = (documents: number, questions: number) =>
      Array.from({ length: documents * questions }, (_, i) => ({
        cluster: String(Math.floor(i / questions)),
        value: Math.floor(i / questions) % 2,
      }));
    const width = ([low, high]: readonly [number, number]) => high - low;
    expect(bootstrap(of(100, 1))).toEqual(bootstrap(of(100, 1)));
    // half right of 100: +- 0.098
    expect(width(bootstrap(of(100, 1)))).toBeGreaterThan(0.16);
    expect(width(bootstrap(of(100, 1)))).toBeLessThan(0.24);
    expect(width(bootstrap(of(25, 4)))).toBeGreaterThan(1.6 * width(bootstrap(of(100, 1))));
    expect(width(bootstrap(of(100, 4)))).toBeCloseTo(width(bootstrap(of(100, 1))), 6);
    expect(bootstrap([{ cluster: "a", value: 1 }])).toEqual([1, 1]);
  });
});

describe("runBench", () => {
  let model: Model;
  let filler: Filler[];
  let records: readonly BenchRecord[];
  const base = (): BenchOptions => ({
    models: [model],
    methods: ["snapkv(window=8)"],
    budgets: [1 / 4],
    lengths: [700],
    tasks: tasksByName(["documents/pairs", "needle/single-noise"]),
    filler,
    cases: 6,
    seeds: 2,
    maxTokens: 8,
    commit: "test",
  });

  beforeAll(async () => {
    model = await load("models/tiny", { worker: false, threads: 1, cache: "float32" });
    filler = await loadFiller("data/filler");
    ({ records } = await runBench(base()));
  });
  afterAll(() => model?.close());

  const of = (method: string) => records.filter((r) => r.method === method);

  it("gives every method the same cases, with the controls", () => {
    expect([...new Set(records.map((r) => r.method))]).toEqual(["full", "random-kept", "recent", "snapkv(window=8)"]);
    for (const method of ["full", "random-kept", "recent", "snapkv(window=8)"]) {
      expect(of(method).length).toBe(12);
      expect(of(method).map((r) => [r.task, r.seed, r.case, r.expected])).toEqual(
        of("full").map((r) => [r.task, r.seed, r.case, r.expected]),
      );
    }
    expect(new Set(records.map(recordKey)).size).toBe(records.length);
    for (const r of records) expect(r).toMatchObject({ commit: "test", model_hash: model.info.shape.hash, threads: 1 });
  });

  it("reads and keeps everything with full attention, which agrees with itself", () => {
    for (const r of of("full")) {
      expect([r.coverage, r.coverage_kept, r.kl, r.kl_answer]).toEqual([1, 1, 0, 0]);
      expect(r.tokens_kept).toBe(r.depth);
      expect(r.read_share).toBeCloseTo(1, 9);
      expect([r.tokens_scored, r.spec, r.budget]).toEqual([0, "full", null]);
      expect(r.depth).toBeLessThanOrEqual(700);
    }
  });

  it("knows random weights from those that know something", async () => {
    expect(records[0].speed_only).toBe(false);
    const checkpoint = randomCheckpoint("llama");
    const options = { threads: 1, memory: 2 ** 30, precision: "float32", cache: "float32" } as const;
    const host = await Host.create(checkpoint, options, async () => []);
    const connection = localConnection(host);
    const info = await connection.call("info", { methods: [] });
    const { config, tokenizer } = checkpoint;
    const random = createModel({ connection, config, tokenizer, info, methods: [] });
    expect(await knowsNothing(random, filler)).toBe(true);
    await connection.close();
  });

  it("meets budgets by what is measured", () => {
    for (const method of ["recent", "random-kept", "snapkv(window=8)"])
      for (const r of of(method)) {
        expect(r.budget_met).toBe(true);
        expect(r.budget_of).toBe("keep");
        // pages of 16 are the least that random pages can differ by
        expect(Math.abs(r.keep_share - 1 / 4), method).toBeLessThan(0.04);
        expect(r.cache_bytes).toBeLessThan(of("full")[0].cache_bytes);
      }
  });

  it("covers what the window covers", () => {
    const format = new PromptFormat(model);
    for (const r of of("recent")) {
      const task = tasksByName([r.task])[0];
      const made = task.make({
        seed: `${r.seed} ${r.document}`,
        length: 700,
        filler,
        promptTokens: (d, q, p) => format.tokens(d, q, p),
      });
      const question = made.questions.find((q) => q.answer === r.expected);
      if (!question) throw new Error(r.expected);
      const { evidence } = format.prompt(made.document, question);
      const covered = evidence.filter((at) => at >= r.depth - r.tokens_read).length / evidence.length;
      expect(r.coverage).toBeCloseTo(covered, 9);
      // what left the window leaves the cache sixteen at a time
      expect(r.tokens_kept - r.tokens_read).toBeLessThan(16);
    }
    expect(of("recent").some((r) => r.coverage === 0)).toBe(true);
  });

  it("goes on where it stopped, and makes the same records again", async () => {
    const half = records.filter((_, i) => i % 3 !== 0);
    const fresh: BenchRecord[] = [];
    const notes: string[] = [];
    const again = await runBench({
      ...{ ...base(), known: half, onRecord: (r) => void fresh.push(r) },
      onProgress: ({ label }) => void notes.push(label),
    });
    // budgets are solved on the first case of a task: those whose first case is known are not solved again
    const labels = (list: readonly BenchRecord[]) =>
      new Set(
        list
          .filter((r) => r.budget !== null && r.seed === 1 && r.case === 0)
          .map((r) => `solving ${r.method} for ${r.budget}`),
      );
    expect(labels(half).size).toBeGreaterThan(0);
    expect(new Set(notes.filter((note) => note.startsWith("solving")))).toEqual(
      labels(records.filter((r) => !half.includes(r))),
    );
    expect(fresh.length).toBe(records.length - half.length);
    const content = (list: readonly BenchRecord[]) =>
      new Map(list.map((r) => [recordKey(r), [r.reply, r.spec, r.coverage, r.kl, r.tokens_read]]));
    expect(content(again.records)).toEqual(content(records));
  });

  it("puts the question with the document when it is asked to", async () => {
    const aware = await runBench({
      ...base(),
      tasks: tasksByName(["documents/pairs"]),
      modes: ["query-aware"],
      cases: 2,
      seeds: 1,
    });
    const full = aware.records.find((r) => r.method === "full");
    const twin = of("full").find((r) => r.seed === full?.seed && r.case === full.case && r.task === full.task);
    expect(full).toMatchObject({ mode: "query-aware", reply: twin?.reply, depth: twin?.depth });
  });

  it("says why a method cannot run, and goes on", async () => {
    const { skipped, records: rest } = await runBench({
      ...base(),
      methods: ["self-extend+entropy-abf"],
      tasks: tasksByName(["documents/pairs"]),
      cases: 1,
      seeds: 1,
      controls: false,
    });
    expect(skipped.map((s) => s.method)).toEqual(["self-extend+entropy-abf"]);
    expect(rest.map((r) => r.method)).toEqual(["full"]);
  });

  it("stops when it is told to", async () => {
    const controller = new AbortController();
    const run = runBench({ ...base(), signal: controller.signal, onRecord: () => controller.abort() });
    await expect(run).rejects.toThrow();
  });

  it("sums up rows with what their records say", () => {
    const rows = summarise(records);
    expect(rows.length).toBe(8);
    for (const row of rows) {
      const own = records.filter((r) => r.method === row.method && r.task === row.task);
      expect(row.cases).toBe(own.length);
      expect(row.accuracy).toBeCloseTo(own.reduce((n, r) => n + r.correct, 0) / own.length, 9);
      expect(row.interval[0]).toBeLessThanOrEqual(row.accuracy);
      expect(row.interval[1]).toBeGreaterThanOrEqual(row.accuracy);
    }
    for (const row of rows.filter((r) => r.method === "full"))
      expect([row.change, row.change_interval]).toEqual([0, [0, 0]]);
  });

  it("reads its own lines, but for one that was cut", () => {
    const lines = records.map((r) => JSON.stringify(r)).join("\n");
    expect(parseRecords(`${lines}\n`)).toEqual(records);
    expect(parseRecords(lines.slice(0, -20)).length).toBe(records.length - 1);
    expect(() => parseRecords(`{"broken\n${lines}`)).toThrow();
  });
});
