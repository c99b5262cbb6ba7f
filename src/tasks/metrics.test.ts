import { describe, expect, it } from "vitest";
import { bleu, cloze, contains, exact, meteor, onlyLabel, orderDistance, recall, rouge, rougeL } from "./metrics.js";
import { stem } from "./stem.js";

describe("metrics of replies", () => {
  it("finds references, whatever the case", () => {
    expect(contains("It is ASHFORD.", ["Ashford"])).toBe(1);
    expect(contains("Ash\u0007ford", ["Ashford"])).toBe(0);
    expect(contains("", ["Ashford"])).toBe(0);
    expect(recall("12 and 34, then 5", ["12", "34", "56", "78"])).toBe(0.5);
  });

  it("is exact but for the ends", () => {
    expect(exact(' "Ashford". ', ["ashford"])).toBe(1);
    expect(exact("in Ashford", ["Ashford"])).toBe(0);
  });

  it("judges labels as BABILong does", () => {
    const rooms = ["kitchen", "garden", "office"];
    const score = (reply: string, question = "Where is Mary?") => onlyLabel(reply, "kitchen", question, rooms);
    expect(score("Mary is in the kitchen.")).toBe(1);
    expect(score("The kitchen or the garden")).toBe(0);
    // a label of the question does not count
    expect(score("After the garden she was in the kitchen", "Where was Mary after the garden?")).toBe(1);
    // nor what comes after the first sentence, or a further question
    expect(score("The kitchen. Not the garden")).toBe(1);
    expect(score("The kitchen\nQuestion: the garden")).toBe(1);
    expect(score("nowhere")).toBe(0);
  });

  it("gives 1 for the reference itself and next to nothing for another text", () => {
    const text = "The keeper of the north light is Ada Moreau";
    for (const n of [1, 2]) expect(rouge(text, text, n)).toEqual({ recall: 1, precision: 1, f1: 1 });
    expect(rougeL(text, text).recall).toBe(1);
    expect([bleu(text, text, 1), bleu(text, text, 4)]).toEqual([1, 1]);
    expect(rougeL("None", text).recall).toBe(0);
    expect(bleu("None", text, 1)).toBe(0);
  });

  it("counts overlaps by hand", () => {
    // "the cat sat" in "the cat on the mat": the, cat of five words
    expect(rouge("the cat sat", "the cat on the mat", 1)).toMatchObject({ recall: 2 / 5, precision: 2 / 3 });
    expect(rouge("the cat sat", "the cat on the mat", 2)).toMatchObject({ recall: 1 / 4, precision: 1 / 2 });
    expect(rougeL("mat the on", "on the mat").recall).toBeCloseTo(1 / 3);
    expect(bleu("the the the", "the cat the mat", 1)).toBeCloseTo((2 / 3) * Math.exp(1 - 4 / 3));
  });

  it("matches words and stems as METEOR does", () => {
    const text = "the keeper of a north light is Ada Moreau";
    expect(meteor(text, text)).toBeCloseTo(1 - 0.5 / 9 ** 3);
    expect(meteor("", text)).toBe(0);
    expect(meteor("None", text)).toBe(0);
    expect(meteor(text, "")).toBe(0);
    // the, cats, sat, on, mat against a, cat, sat, on, mats: four matches in one run
    expect(meteor("a cat sat on mats", "the cats sat on the mat")).toBeCloseTo(0.8 * (1 - 0.5 / 4 ** 3));
    // two matches apart: recall 2/4, precision 2/3
    const mean = ((2 / 3) * (2 / 4)) / (0.9 * (2 / 3) + 0.1 * (2 / 4));
    expect(meteor("light of Ada", "Ada keeps north light")).toBeCloseTo(mean * (1 - 0.5));
    // a word counts once, and a stem matches one word
    expect(meteor("ship ship ships", "ship")).toBeCloseTo(((1 / 2) * 1) / (0.9 * (1 / 2) + 0.1) / 2);
    // there are no synonyms
    expect(meteor("vessel", "ship")).toBe(0);
  });

  it("finds stems as Porter's paper has them", () => {
    const pairs =
      "caresses caress ponies poni ties ti cats cat feed feed agreed agre plastered plaster bled bled motoring motor " +
      "sing sing conflated conflat troubled troubl sized size hopping hop falling fall fizzed fizz filing file " +
      "happy happi sky sky relational relat conditional condit rational ration digitizer digit radically radic " +
      "vietnamization vietnam operator oper feudalism feudal decisiveness decis hopefulness hope formality formal " +
      "sensitivity sensit triplicate triplic formative form electrical electr goodness good revival reviv " +
      "airliner airlin gyroscopic gyroscop irritant irrit replacement replac adjustment adjust dependent depend " +
      "adoption adopt communism commun activate activ homologous homolog bowdlerize bowdler probate probat rate rate " +
      "cease ceas controlling control roll roll is is Mühle mühle";
    const words = pairs.split(" ");
    for (let i = 0; i < words.length; i += 2) expect(stem(words[i]), words[i]).toBe(words[i + 1]);
  });

  it("judges a cloze by its masks", () => {
    const reference = { "<mask-0>": "Bob Dylan", "<mask-1>": "Rome" };
    const reply = 'Sure: {"<mask-0>": "Bob", "<mask-1>": "Paris"}';
    expect(cloze(reply, reference)).toEqual({ exact: 0, partial: 0.5 });
    expect(cloze(JSON.stringify(reference), reference)).toEqual({ exact: 1, partial: 1 });
    expect(cloze("Bob Dylan and Rome", reference)).toEqual({ exact: 0, partial: 0 });
  });

  it("measures how far an order is from the right one", () => {
    const of = (order: string) => orderDistance(order.split(","), ["1", "2", "3"]);
    expect(of("1,2,3")).toEqual({ lsd: 0, lmd: 0, sd: 0, sdd: 0 });
    expect(of("3,2,1")).toEqual({ lsd: 8 / 3, lmd: 4 / 3, sd: 1, sdd: 2 });
    expect(of("2,1,3")).toEqual({ lsd: 2 / 3, lmd: 2 / 3, sd: 1, sdd: 1 });
    // no order at all: the most that three items can be apart
    expect(of("1,2")).toEqual({ lsd: 8 / 3, lmd: 4 / 3, sd: 2, sdd: 3 });
  });
});
