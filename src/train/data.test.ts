import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { tinyTokenizer } from "../models/index.js";
import type { Batch } from "./batch.js";
import { generated, texts } from "./data.js";
import { accuracy, copying, induction, recall } from "./tasks.js";

const tokenizer = tinyTokenizer();
const DOCUMENTS = [
  "the cat went down",
  "a",
  "it came back to tell her about the sea",
  "one day",
  "so she put on her coat",
];

/** Documents of a batch as they stand in it: row, ids, positions, targets. */
function documentsOf(batch: Batch) {
  const found: { row: number; ids: number[]; positions: number[]; targets: number[]; weights: number[] }[] = [];
  for (let r = 0; r < batch.rows; r++) {
    let last = -1;
    for (let t = 0; t < batch.length; t++) {
      const i = r * batch.length + t;
      const number = batch.documents?.[i] as number;
      if (number >= 1_000_000) continue;
      if (number !== last) found.push({ row: r, ids: [], positions: [], targets: [], weights: [] });
      last = number;
      const d = found[found.length - 1];
      d.ids.push(batch.ids[i]);
      d.positions.push(batch.positions?.[i] as number);
      d.targets.push(batch.targets[i]);
      d.weights.push(batch.weights[i]);
    }
  }
  return found;
}

describe("texts", () => {
  it("holds every token of an epoch once, in order within its text, and predicts the next one", () => {
    const source = texts(DOCUMENTS, { tokenizer, rows: 2, length: 8 });
    const encoded = DOCUMENTS.map((text) => tokenizer.encode(text).ids);
    const total = encoded.flat().length;
    const steps = Math.floor(total / 16);
    for (const epoch of [0, 1, 5]) {
      let stream: number[] = [];
      for (let s = 0; s < steps; s++) stream = [...stream, ...(source.batch(epoch * steps + s) as Batch).ids];
      expect(stream.length).toBe(steps * 16);
      // the stream is some order of the texts, its end cut off
      let at = 0;
      const left = new Set(encoded.map((_, i) => i));
      while (at < stream.length) {
        const next = [...left].find((i) => {
          const part = encoded[i].slice(0, stream.length - at);
          return part.length > 0 && part.every((id, k) => id === stream[at + k]);
        });
        expect(next).toBeDefined();
        at += encoded[next as number].length;
        left.delete(next as number);
      }
    }
    const pieces = documentsOf(source.batch(0) as Batch);
    for (const piece of pieces) {
      piece.targets.forEach((target, i) => {
        if (i + 1 < piece.ids.length) expect([target, piece.weights[i]]).toEqual([piece.ids[i + 1], 1]);
      });
      expect(piece.positions).toEqual(piece.ids.map((_, i) => i));
    }
  });

  it("predicts the next token over a cut, and nothing behind a text's last token", () => {
    const ids = tokenizer.encode(DOCUMENTS[2]).ids;
    const length = 4;
    const rows = Math.floor(ids.length / length);
    const { targets, weights } = texts([DOCUMENTS[2]], { tokenizer, rows, length }).batch(0) as Batch;
    const wanted = Array.from({ length: rows * length }, (_, i) => ids[i + 1] ?? -1);
    expect(rows).toBeGreaterThan(1);
    expect([...targets]).toEqual(wanted);
    expect([...weights]).toEqual(wanted.map((id) => (id < 0 ? 0 : 1)));
  });

  it("is a function of the step, shuffled anew each epoch, and another with another seed", () => {
    const make = (seed: number) => texts(DOCUMENTS, { tokenizer, rows: 1, length: 8, seed });
    const [a, b] = [make(1), make(1)];
    const ahead = [5, 0, 3, 9].map((s) => a.batch(s));
    expect([5, 0, 3, 9].map((s) => b.batch(s))).toEqual(ahead);
    const epochs = Array.from({ length: 12 }, (_, e) => (a.batch(e * 7) as Batch).ids.join(" "));
    expect(new Set(epochs).size).toBeGreaterThan(2);
    expect(make(2).batch(0)).not.toEqual(make(1).batch(0));
  });

  it("holds documents out, for training and for measuring", () => {
    const many = Array.from({ length: 60 }, (_, i) => `text number ${i} of them all`);
    const options = { tokenizer, rows: 1, length: 32, holdOut: 0.3 };
    const seen = (heldOut: boolean) => {
      const source = texts(many, { ...options, heldOut });
      const all = Array.from({ length: 40 }, (_, s) => documentsOf(source.batch(s) as Batch)).flat();
      return new Set(all.map((d) => tokenizer.decode(d.ids)).filter((t) => t.startsWith("text") && t.endsWith("all")));
    };
    const [train, held] = [seen(false), seen(true)];
    expect([...train].filter((t) => held.has(t))).toEqual([]);
    expect(held.size).toBeGreaterThan(5);
    expect(() => texts(["a"], { tokenizer, rows: 4, length: 64 })).toThrow(/a batch of 4 x 64 needs 256/);
  });

  it("places documents at random far positions that end before the limit", () => {
    const source = texts(DOCUMENTS, { tokenizer, rows: 4, length: 8, positions: { upTo: 1000 } });
    const starts = Array.from({ length: 30 }, (_, s) => documentsOf(source.batch(s) as Batch)).flat();
    for (const { positions } of starts) expect(positions).toEqual(positions.map((_, i) => positions[0] + i));
    expect(Math.max(...starts.map((d) => d.positions.at(-1) as number))).toBeLessThan(1000);
    expect(Math.max(...starts.map((d) => d.positions[0]))).toBeGreaterThan(800);
    expect(Math.min(...starts.map((d) => d.positions[0]))).toBeLessThan(200);
  });

  it("spreads documents over far positions with leaps", () => {
    const source = texts(DOCUMENTS, { tokenizer, rows: 2, length: 16, positions: { upTo: 1000, gaps: 2 } });
    const found = Array.from({ length: 60 }, (_, step) => documentsOf(source.batch(step) as Batch)).flat();
    const leaps = found.map(({ positions }) => positions.filter((p, i) => i > 0 && p !== positions[i - 1] + 1).length);
    expect(new Set(leaps)).toEqual(new Set([0, 1, 2]));
    const sizes = found.flatMap(({ positions }) => positions.slice(1).map((p, i) => p - positions[i]));
    expect(Math.min(...sizes)).toBe(1);
    expect(Math.max(...sizes)).toBeGreaterThan(300);
    expect(Math.max(...found.flatMap((d) => d.positions))).toBeLessThan(1000);
  });
});

describe("generated", () => {
  it("refuses documents without tokens, which fill no row", () => {
    const source = generated("nothing", 10, () => ({ ids: [] }), { rows: 1, length: 4 });
    expect(() => source.batch(0)).toThrow(/nothing made a document without tokens/);
  });

  it("packs documents with their weights, and fills rows", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 4 }),
        fc.integer({ min: 4, max: 40 }),
        fc.nat(1000),
        (rows, length, step) => {
          const source = generated(
            "numbers",
            100,
            (i) => {
              const size = 2 + (i % 7);
              return {
                ids: Array.from({ length: size }, (_, k) => (i + k) % 100),
                weights: Array.from({ length: size }, (_, k) => k),
              };
            },
            { rows, length },
          );
          const batch = source.batch(step) as Batch;
          expect(source.batch(step)).toEqual(batch);
          const documents = documentsOf(batch);
          expect(documents.reduce((n, d) => n + d.ids.length, 0)).toBeGreaterThanOrEqual(rows * (length - 1));
          for (const d of documents)
            d.targets.forEach((target, i) => {
              // the next number, with its own weight; a text's last token predicts nothing
              if (target >= 0) expect([target, d.weights[i]]).toEqual([(d.ids[i] + 1) % 100, i + 1]);
              else expect([i, d.weights[i]]).toEqual([d.ids.length - 1, 0]);
            });
        },
      ),
    );
  });
});

describe("tasks", () => {
  it("ask what the row has told", () => {
    const batch = recall({ pairs: 3, keys: 8, values: 8, rows: 20 }).heldOut(0);
    for (let r = 0; r < 20; r++) {
      const row = [...batch.ids.slice(r * 12, r * 12 + 12)];
      const told = new Map([0, 2, 4].map((i) => [row[i], row[i + 1]]));
      expect(told.size).toBe(3);
      for (const i of [6, 8, 10]) {
        expect([batch.targets[r * 12 + i], batch.weights[r * 12 + i]]).toEqual([told.get(row[i]), 1]);
        expect(row[i + 1]).toBe(told.get(row[i]));
      }
      expect(batch.weights.slice(r * 12, r * 12 + 12).reduce((a, b) => a + b)).toBe(3);
    }
    const again = induction({ length: 5, rows: 2 }).batch(3) as Batch;
    expect(again.ids.slice(0, 5)).toEqual(again.ids.slice(5, 10));
    expect([...again.weights.slice(0, 10)]).toEqual([0, 0, 0, 0, 0, 1, 1, 1, 1, 0]);
    expect([...again.targets.slice(5, 9)]).toEqual([...again.ids.slice(6, 10)]);
    const copy = copying({ length: 3, symbols: 5, rows: 1 }).batch(0) as Batch;
    expect([...copy.ids.slice(0, 3)]).toEqual([...copy.ids.slice(4, 7)]);
    expect([copy.ids[3], ...copy.weights]).toEqual([5, 0, 0, 0, 1, 1, 1, 0]);
  });

  it("count what was predicted, and hold batches out", () => {
    const task = recall({ rows: 4 });
    const batch = task.heldOut(2);
    expect(accuracy(batch, batch.targets)).toBe(1);
    expect(
      accuracy(
        batch,
        batch.targets.map((t) => t + 1),
      ),
    ).toBe(0);
    expect(task.heldOut(1)).not.toEqual(task.batch(1));
    expect(() => recall({ pairs: 9, keys: 8 })).toThrow(/9 pairs/);
  });
});
