import { hash } from "../documents/random.js";
import { Words } from "../documents/words.js";
import { cloze } from "../metrics.js";
import { inEssays, moved } from "../ruler/haystack.js";
import { stream } from "../ruler/words.js";
import { type CaseOptions, fillerOf, largestCase, type Task, type TaskCase } from "../task.js";
import { orderScore } from "./tasks.js";

const EVENTS = [
  "the bridge at PLACE was opened",
  "the mill at PLACE burned down",
  "the railway reached PLACE",
  "the school at PLACE was founded",
  "the harbour at PLACE silted up",
  "the market at PLACE moved",
];
const DEEDS = ["restored the chapel", "designed the lighthouse", "surveyed the canal", "led the excavation"];
const DAYS = "Monday Tuesday Wednesday Thursday Friday".split(" ");

/**
 * What LooGLE asks that the document generator does not, over documents of the project's own: events to be put in order, and
 * masked names. (`documents/...` and `questions/...` stand in for its short and long questions.)
 */
export const loogleSubstitutes: readonly Task[] = [
  {
    name: "loogle/reorder",
    family: "loogle",
    does: "Events that are told out of order, to be put in the order of their years.",
    metric: "order",
    make: makeReorder,
    score: (reply, { references }) => orderScore(reply, references[0]),
    oracle: orderOf,
  },
  {
    name: "loogle/cloze",
    family: "loogle",
    does: "Who did something and where, as masks to be filled.",
    metric: "cloze",
    make: makeCloze,
    score: (reply, { references }) => cloze(reply, JSON.parse(references[0]) as Record<string, string>).exact,
    oracle: fillOf,
  },
];

const wordsOf = (seed: string, { split = "held-out" }: CaseOptions) => new Words(stream(seed, "names"), split, false);

function makeReorder(options: CaseOptions): TaskCase {
  const seed = `loogle reorder ${options.seed}`;
  const [words, random] = [wordsOf(seed, options), stream(seed, "events")];
  const events = random
    .shuffle(EVENTS)
    .slice(0, 4)
    .map((event) => event.replace("PLACE", words.place().name));
  const years = new Set<number>();
  while (years.size < events.length) years.add(random.int(1790, 1990));
  const list = [...years];
  const needles = events.map((event, i) => `In ${list[i]} ${event}.`);
  const right = events
    .map((_, i) => i)
    .sort((a, b) => list[a] - list[b])
    .map((i) => i + 1)
    .join(",");
  const question = `Put these events in the order of their years. Reply with their numbers only, such as 2,1,4,3.\n${events.map((event, i) => `${i + 1}: ${event}`).join("\n")}`;
  return hidden(needles, { text: question, references: [right], answer: right, newTokens: 24 }, seed, options);
}

function orderOf(document: string, question: string): string {
  const found = [...question.matchAll(/^(\d): (.+)$/gm)].map(([, number, event]) => {
    const at = document.indexOf(event);
    return { number, year: Number(/(\d{4}) $/.exec(document.slice(Math.max(0, at - 5), at))?.[1] ?? Number.NaN) };
  });
  return found
    .sort((a, b) => a.year - b.year)
    .map(({ number }) => number)
    .join(",");
}

function makeCloze(options: CaseOptions): TaskCase {
  const seed = `loogle cloze ${options.seed}`;
  const [words, random] = [wordsOf(seed, options), stream(seed, "deeds")];
  const deeds = random.shuffle(DEEDS).slice(0, 2);
  const told = deeds.map((deed) => ({ deed, who: words.person().name, where: words.place().name }));
  const needles = told.map(({ deed, who, where }) => `On a ${random.pick(DAYS)}, ${who} ${deed} at ${where}.`);
  const masks = Object.fromEntries(
    told.flatMap(({ who, where }, i) => [
      [`<mask-${2 * i}>`, who],
      [`<mask-${2 * i + 1}>`, where],
    ]),
  );
  const text = told.map(({ deed }, i) => `<mask-${2 * i}> ${deed} at <mask-${2 * i + 1}>.`).join(" ");
  const question = `Masks such as <mask-0> stand for persons and places. Reply as JSON, mask to name.\n${text}`;
  const answer = JSON.stringify(masks);
  return hidden(needles, { text: question, references: [answer], answer, newTokens: 64 }, seed, options);
}

function fillOf(document: string, question: string): string {
  const masks: Record<string, string> = {};
  for (const [, who, deed, where] of question.matchAll(/(<mask-\d+>) ([a-z ]+) at (<mask-\d+>)\./g)) {
    const found = new RegExp(`, (\\S+ \\S+) ${deed} at ([^.]+)\\.`).exec(document);
    if (found) [masks[who], masks[where]] = [found[1], found[2]];
  }
  return JSON.stringify(masks);
}

function hidden(
  needles: readonly string[],
  question: { text: string; references: readonly string[]; answer: string; newTokens: number },
  seed: string,
  options: CaseOptions,
): TaskCase {
  const make = (n: number): TaskCase => {
    const hay = inEssays(needles, n, fillerOf(options), `${hash(seed)}`);
    return { document: hay.text, questions: [{ ...question, evidence: moved(hay.spans, 0) }] };
  };
  return largestCase(make, options, { task: "loogle" });
}
