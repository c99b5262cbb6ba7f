import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Model } from "../engine/api.js";
import { load } from "../load.js";
import { ask, linesOf } from "./ask.js";

// the embedded copying model: after "Answer:" it writes what followed "Answer:" before
const TINY = fileURLToPath(new URL("../../models/tiny", import.meta.url));
const LINES = [
  "The harbour has two lights and a long wall.",
  "",
  "Of the boats: Answer: seven boats lie at the quay.",
  "The keeper counts them at noon.",
];
const document = { name: "harbour.txt", text: LINES.join("\n") };
const question = "How many boats?";

describe("ask", () => {
  let model: Model;
  beforeAll(async () => {
    model = await load(TINY, { worker: false });
  });
  afterAll(() => model.close());

  it("answers, and names the line that the answer was read from", async () => {
    const answer = await ask(model, { question, documents: [document], maxTokens: 6 });
    expect(answer.text).toMatch(/^seven boats/);
    expect(answer.supported).toBe(true);
    const [first] = answer.evidence;
    expect(first).toMatchObject({ document: "harbour.txt", line: 3, text: LINES[2] });
    expect(document.text.slice(...first.span)).toBe(LINES[2]);
    expect(first.share).toBeGreaterThan(0.5);
    const shares = answer.evidence.map(({ share }) => share);
    expect(shares).toEqual([...shares].sort((a, b) => b - a));
    expect(shares.reduce((a, b) => a + b, 0)).toBeLessThanOrEqual(1 + 1e-9);
    expect(answer.tokens_read).toBe(answer.depth);
    expect(answer.depth).toBe(answer.prompt_tokens);
  });

  it("names the document where there are several", async () => {
    const other = { name: "hills.txt", text: "The hills are green.\nNobody counts them." };
    const answer = await ask(model, { question, documents: [other, document], maxTokens: 4 });
    expect(answer.evidence[0]).toMatchObject({ document: "harbour.txt", line: 3 });
  });

  it("reads less with a method that reads less, and says when the answer does not stand in the evidence", async () => {
    const far = { name: "far.txt", text: `${document.text}\n${"Rain fell on the long wall all day. ".repeat(12)}` };
    const asked = { question, documents: [far], maxTokens: 4, lines: 1 };
    const attention = "streaming-llm(sinks=4,window=16)";
    const answer = await ask(model, { ...asked, attention });
    expect(answer.tokens_read).toBeLessThanOrEqual(20);
    expect(answer.depth).toBeGreaterThan(100);
    expect(answer.text).not.toMatch(/^seven/);
    expect(answer.evidence.every(({ line }) => line !== 3)).toBe(true);
    expect((await ask(model, asked)).evidence[0].line).toBe(3);
  });

  it("gives no answer and no time of a token where the model ends at once", async () => {
    // nothing stands behind an "Answer:" in this text, so there is nothing to copy
    const bare = { name: "bare.txt", text: "The harbour has two lights and a long wall." };
    const answer = await ask(model, { question, documents: [bare], maxTokens: 4 });
    expect(answer).toMatchObject({
      text: "",
      supported: false,
      finish: "eos",
      generated_tokens: 0,
      ms_per_token: null,
    });
  });

  it("refuses to answer nothing, or from nothing", async () => {
    await expect(ask(model, { question: " ", documents: [document] })).rejects.toThrow(/question is empty/);
    await expect(ask(model, { question, documents: [] })).rejects.toThrow(/no text/);
  });
});

describe("lines", () => {
  it("are those of the text, long ones cut at the ends of sentences", () => {
    const long = `${"A word. ".repeat(10)}${"Another one follows here! ".repeat(6)}`;
    const text = `first\n\n  ${long}\nlast`;
    const found = linesOf(text);
    expect(found[0]).toEqual({ line: 1, span: [0, 5] });
    expect(found.at(-1)?.line).toBe(4);
    const middle = found.filter(({ line }) => line === 3).map(({ span }) => text.slice(...span));
    expect(middle).toHaveLength(16);
    expect(middle.join(" ")).toBe(long.trim());
    expect(middle[0]).toBe("A word.");
  });
});
