import fc from "fast-check";
import { expect, test } from "vitest";
import { StopText } from "./stop-text.js";

test("a stop text that arrives in pieces ends the text before it", () => {
  const out = new StopText(["\n\n", "END"]);
  expect(["one ", "E", "N", "ough E", "ND more"].map((s) => out.push(s))).toEqual(["one ", "", "", "ENough ", ""]);
  expect(out.stopped).toBe(true);
  expect(out.text).toBe("one ENough ");
});

test("for any cutting, the text is what stands before the first stop", () => {
  const letters = fc.string({ unit: fc.constantFrom("a", "b", "c"), maxLength: 20 });
  fc.assert(
    fc.property(
      fc.array(letters),
      fc.array(
        letters.filter((s) => s.length > 0),
        { maxLength: 3 },
      ),
      (pieces, stops) => {
        const out = new StopText(stops);
        let shown = "";
        for (const piece of pieces) shown += out.push(piece);
        shown += out.end("");
        const whole = pieces.join("");
        // a stop that begins later but ends earlier may win as text streams in; without such overlaps it is the first
        const cuts = stops.map((s) => whole.indexOf(s)).filter((i) => i >= 0);
        expect(out.stopped).toBe(cuts.length > 0);
        expect(whole.startsWith(shown)).toBe(true);
        expect(shown).toBe(out.text);
        for (const stop of stops) expect(shown.includes(stop)).toBe(false);
        if (cuts.length === 0) expect(shown).toBe(whole);
      },
    ),
  );
});
