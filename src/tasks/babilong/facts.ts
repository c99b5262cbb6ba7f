import { run } from "../documents/filler.js";
import type { Random } from "../documents/random.js";
import { onlyLabel } from "../metrics.js";
import { inLines, moved, take } from "../ruler/haystack.js";
import { stream } from "../ruler/words.js";
import { type CaseOptions, fillerOf, largestCase, type Task, type TaskCase } from "../task.js";

const PEOPLE = ["Nora", "Tobias", "Ines", "Marek", "Paula", "Viktor"];
const PLACES = ["attic", "bakery", "cellar", "courtyard", "library", "pantry", "stable", "studio"];
const THINGS = ["basket", "compass", "lantern", "notebook", "teapot", "umbrella"];
const GO = ["went to", "walked to", "moved to", "hurried to", "travelled to"];
const TAKE = ["picked up", "took", "grabbed"];
const DROP = ["put down", "left", "dropped"];
const NEW_TOKENS = 16;

/** One sentence of a story. */
interface Fact {
  readonly text: string;
  readonly who: string;
  readonly to?: string;
  readonly takes?: string;
  readonly drops?: string;
}

interface Story {
  readonly facts: readonly Fact[];
  readonly question: string;
  readonly answer: string;
  /** The facts that the answer rests on, by index. */
  readonly supporting: readonly number[];
}

/** Where a thing is, fact by fact: which fact put it there. */
interface Place {
  readonly place: string;
  readonly because: readonly number[];
}

/** Follows a story: where each person is, who holds what, and the places that each thing has been at. */
export class World {
  readonly at = new Map<string, { place: string; fact: number }>();
  readonly holder = new Map<string, { who: string; fact: number }>();
  readonly history = new Map<string, Place[]>();

  add(fact: Fact, index: number): void {
    const { who, to, takes, drops } = fact;
    if (to) {
      this.at.set(who, { place: to, fact: index });
      for (const [thing, held] of this.holder)
        if (held.who === who) this.#move(thing, { place: to, because: [held.fact, index] });
    }
    const here = this.at.get(who);
    if (takes) {
      this.holder.set(takes, { who, fact: index });
      if (here) this.#move(takes, { place: here.place, because: [index, here.fact] });
    }
    if (drops) {
      this.holder.delete(drops);
      if (here) this.#move(drops, { place: here.place, because: [index, here.fact] });
    }
  }

  #move(thing: string, place: Place): void {
    const places = this.history.get(thing) ?? [];
    if (places.at(-1)?.place === place.place) places[places.length - 1] = place;
    else places.push(place);
    this.history.set(thing, places);
  }
}

/** Ten to fourteen sentences about people who move about and carry things. */
function tell(random: Random): Fact[] {
  const people = random.shuffle(PEOPLE).slice(0, 3);
  const facts: Fact[] = [];
  const world = new World();
  const add = (fact: Fact) => {
    world.add(fact, facts.length);
    facts.push(fact);
  };
  const length = random.int(10, 14);
  while (facts.length < length) {
    const who = random.pick(people);
    const here = world.at.get(who)?.place;
    const held = [...world.holder].filter(([, h]) => h.who === who).map(([thing]) => thing);
    const free = THINGS.filter((thing) => {
      if (world.holder.has(thing)) return false;
      const place = world.history.get(thing)?.at(-1)?.place;
      return place === undefined || place === here;
    });
    const choice = random.int(0, 3);
    if (here && choice === 0 && free.length > 0) {
      const takes = random.pick(free);
      add({ text: `${who} ${random.pick(TAKE)} the ${takes} there.`, who, takes });
    } else if (here && choice === 1 && held.length > 0) {
      const drops = random.pick(held);
      add({ text: `${who} ${random.pick(DROP)} the ${drops}.`, who, drops });
    } else {
      const to = random.pick(PLACES.filter((place) => place !== here));
      add({ text: `${who} ${random.pick(GO)} the ${to}.`, who, to });
    }
  }
  return facts;
}

/** A question that takes one, two or three facts; undefined where the story has none. */
function ask(facts: readonly Fact[], hops: number, random: Random): Story | undefined {
  const world = new World();
  facts.forEach((fact, i) => {
    world.add(fact, i);
  });
  if (hops === 1) {
    const [who, { place, fact }] = random.pick([...world.at]);
    return { facts, question: `Where is ${who}?`, answer: place, supporting: [fact] };
  }
  const least = hops === 2 ? 1 : 2;
  const moved = [...world.history].filter(([, places]) => places.length >= least);
  if (moved.length === 0) return undefined;
  const [thing, places] = random.pick(moved);
  const last = places[places.length - 1];
  if (hops === 2) return { facts, question: `Where is the ${thing}?`, answer: last.place, supporting: last.because };
  const before = places[places.length - 2];
  return {
    facts,
    question: `Where was the ${thing} before the ${last.place}?`,
    answer: before.place,
    supporting: [...before.because, ...last.because],
  };
}

function storyOf(seed: string, hops: number): Story {
  for (let attempt = 0; ; attempt++) {
    const random = stream(seed, `story ${attempt}`);
    const story = ask(tell(random), hops, random);
    if (story) return story;
  }
}

const EXAMPLES =
  "<example> Nora went to the stable. Nora walked to the cellar. Where is Nora? Answer: cellar. </example>\n" +
  "<example> Viktor hurried to the attic. Viktor took the teapot there. Where is the teapot? Answer: attic. </example>\n";
const HEAD =
  "The context holds facts about people and things, hidden in other text. Answer the question by the facts alone, with one word.\n" +
  `${EXAMPLES}<context>\n`;
const FOOT = "\n</context>";

const KINDS = [
  ["facts/one", "Where somebody is: the last fact about one person.", 1],
  ["facts/two", "Where a thing is: who took it and where that person went.", 2],
  ["facts/three", "Where a thing was before it was where it is.", 3],
] as const;

/** BABILong-style questions (arXiv 2406.10149): a small story of facts, in order, scattered in prose. */
export const factTasks: readonly Task[] = KINDS.map(([name, does, hops]) => ({
  name,
  family: "facts",
  does,
  metric: "only-label",
  make: (options) => makeFacts(name, hops, options),
  score: (reply, { references, text }) => onlyLabel(reply, references[0], text, PLACES),
  oracle: answerFacts,
}));

function makeFacts(name: string, hops: number, options: CaseOptions): TaskCase {
  const seed = `${name} ${options.seed}`;
  const { facts, question, answer, supporting } = storyOf(seed, hops);
  const make = (n: number): TaskCase => {
    // sentences of some length, so that a fact is not told by its shortness alone
    const long = longSentences(options, seed, n);
    const hay = inLines(
      facts.map((fact) => fact.text),
      long,
      seed,
      { ordered: true, between: " " },
    );
    const spans = moved(hay.spans, HEAD.length);
    return {
      document: HEAD + hay.text + FOOT,
      questions: [
        {
          text: question,
          prefix: "Answer:",
          references: [answer],
          answer,
          evidence: [...new Set(supporting)].sort((a, b) => a - b).map((i) => spans[i]),
          newTokens: NEW_TOKENS,
        },
      ],
    };
  };
  return largestCase(make, options, { task: name });
}

function longSentences(options: CaseOptions, seed: string, n: number): string[] {
  const sentences = run(fillerOf(options), stream(seed, "prose"));
  const long = function* () {
    for (const sentence of sentences) if (sentence.split(" ").length >= 10) yield sentence;
  };
  return take(long(), n);
}

/** Reads the facts back out of the text and follows them. */
function answerFacts(document: string, question: string): string {
  const context = document.slice(document.indexOf("<context>"));
  const verbs = [...GO, ...TAKE, ...DROP].join("|");
  const pattern = new RegExp(`\\b(${PEOPLE.join("|")}) (${verbs}) the (\\w+)(?: there)?\\.`, "g");
  const world = new World();
  let index = 0;
  for (const [text, who, verb, what] of context.matchAll(pattern)) {
    const kind = GO.includes(verb) ? { to: what } : TAKE.includes(verb) ? { takes: what } : { drops: what };
    world.add({ text, who, ...kind }, index++);
  }
  const [, what, before] = /^Where (?:is|was) (?:the )?(\w+)(?: before the (\w+))?\?$/.exec(question) ?? [];
  const places = world.history.get(what);
  if (before) return places?.at(-2)?.place ?? "";
  return world.at.get(what)?.place ?? places?.at(-1)?.place ?? "";
}
