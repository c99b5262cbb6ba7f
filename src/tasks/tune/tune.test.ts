import { expect, test } from "vitest";
import { Family } from "./family.js";

/** Asks a family for method strings until it has none, answering each by the number of tokens in it. */
function walk(method: string, length: number, keeps: (tokens: number) => boolean | "failed"): number[] {
  const family = new Family(method, length);
  const tried: number[] = [];
  for (let next = family.next(); next !== undefined; next = family.next()) {
    const tokens = Number(/tokens=(\d+)/.exec(next)?.[1]);
    tried.push(tokens);
    family.note(next, keeps(tokens));
    expect(tried.length).toBeLessThan(20);
  }
  return tried;
}

test("a method is tried with less after a share that keeps, until one does not", () => {
  expect(walk("quest(tokens=$)", 4096, (tokens) => tokens >= 100)).toEqual([512, 256, 128, 64]);
});

test("a method is tried with more after a share that loses, up to half of the text", () => {
  expect(walk("quest(tokens=$)", 4096, (tokens) => tokens >= 1500)).toEqual([512, 1024, 2048]);
  expect(walk("quest(tokens=$)", 4096, () => false)).toEqual([512, 1024, 2048]);
});

test("a method goes to its own parameter; one without is tried as it is, one that fails not again", () => {
  expect(new Family("streaming-llm", 4096).next()).toMatch(/window=512/);
  expect(new Family("full", 4096).next()).toBe("full");
  expect(walk("quest(tokens=$)", 4096, () => "failed")).toEqual([512]);
});

test("what another method's outcome was changes nothing", () => {
  const family = new Family("quest(tokens=$)", 1024);
  family.note("quest(tokens=1)", true);
  expect(family.next()).toBe("quest(tokens=128)");
});
