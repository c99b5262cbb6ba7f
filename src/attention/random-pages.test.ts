import { describe, expect, it } from "vitest";
import { pagesByLot } from "./random-pages.js";

describe("random pages", () => {
  it("are as many as the budget says, the newest among them, and the same for the same lot", () => {
    const pages = pagesByLot(1000, 160, "a");
    expect(pages.length).toBe(10);
    expect(pages.at(-1)).toBe(62);
    expect([...pages]).toEqual([...new Set(pages)].sort((a, b) => a - b));
    expect(pagesByLot(1000, 160, "a")).toEqual(pages);
    expect(pagesByLot(1000, 160, "b")).not.toEqual(pages);
  });

  it("read everything with a large budget, and one page with the least", () => {
    expect([...pagesByLot(40, 1000, "a")]).toEqual([0, 1, 2]);
    expect([...pagesByLot(40, 1, "a")]).toEqual([2]);
  });

  it("cover a place as often as their share of the pages", () => {
    let found = 0;
    for (let i = 0; i < 2000; i++) if (pagesByLot(1600, 160, `lot ${i}`).includes(7)) found++;
    // nine of 99 pages by lot: 182 of 2000, standard deviation 13
    expect(Math.abs(found - (2000 * 9) / 99)).toBeLessThan(52);
  });
});
