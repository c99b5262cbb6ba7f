import { ask, needed, type Wording } from "./ask.js";
import { type EventFact, type Fact, isEvent, type PropertyFact, slotsOf, slotText } from "./facts.js";
import {
  FRAMES,
  type Frame,
  frameSplit,
  PROPERTIES,
  type Property,
  propertySplit,
  regularFrame,
  VALUE_TYPES,
} from "./frames.js";
import type { Random } from "./random.js";
import { type Kind, NOT_STATED, type Slot, type Split } from "./types.js";
import { NUMBERED, SOLID_TYPES, THING_TYPES, type Thing, type ThingType, type Words } from "./words.js";

/** A question before the document is laid out. */
export interface Plan {
  readonly kind: Kind;
  /** Facts that must stand in the document in this order. */
  readonly ordered: readonly Fact[];
  /** Makes the question once all facts are known; undefined where it would have two answers. */
  build(all: readonly Fact[]): Draft | undefined;
}

export interface Draft {
  readonly ask: string;
  readonly slot?: Slot;
  /** Facts it rests on. */
  readonly evidence: readonly Fact[];
  /** Facts whose slot is the answer; none: not stated, or `counted`. */
  readonly answers: readonly Fact[];
  /** The answer where it is no slot of a fact. */
  readonly fixed?: string;
}

const COUNTABLE: ReadonlySet<ThingType> = new Set(THING_TYPES.filter((type) => type !== "event" && type !== "plan"));

/** Draws facts and questions about them for one document. */
export class Planner {
  readonly facts: Fact[] = [];
  #frames: Frame[];
  #id = 0;

  constructor(
    readonly words: Words,
    readonly frames: Split | "all",
    /** Share of the verbs and properties that are made up. */
    readonly coined: number,
    /** Slots that a single question may ask for; undefined: any. */
    readonly slots?: readonly Slot[],
  ) {
    this.#frames = this.random.shuffle(this.#pool());
  }

  get random(): Random {
    return this.words.random;
  }

  #pool(): Frame[] {
    return FRAMES.filter((frame) => this.frames === "all" || frameSplit(frame) === this.frames);
  }

  /** A verb that the document has not used, as long as there are any. */
  #frame(type?: ThingType): Frame {
    const { random, words } = this;
    if (this.#coins()) return regularFrame(words.pseudoVerb(), [type ?? random.pick(THING_TYPES)]);
    const suits = (frame: Frame) => type === undefined || frame.types.includes(type);
    const index = this.#frames.findIndex(suits);
    if (index >= 0) return this.#frames.splice(index, 1)[0];
    const pool = this.#pool().filter(suits);
    return random.pick(pool.length > 0 ? pool : this.#pool());
  }

  #coins(): boolean {
    return this.coined > 0 && this.random.chance(this.coined);
  }

  #add<T extends Fact>(fact: T): T {
    this.facts.push(fact);
    return fact;
  }

  /** Whether a fact of this verb names its second person. */
  #speaksOf(frame: Frame): boolean {
    return frame.preposition !== undefined && (frame.needsWhom === true || this.random.chance(0.6));
  }

  /** An event; what `set` gives is taken as it is, undefined included. */
  event(set: Partial<Omit<EventFact, "id">> = {}): EventFact {
    const { random, words } = this;
    const frame = set.frame ?? this.#frame(set.thing?.type);
    const type = set.thing?.type ?? random.pick(frame.types);
    const count = COUNTABLE.has(type) && random.chance(0.2) ? words.number() : undefined;
    const code = count === undefined && NUMBERED.has(type) && random.chance(0.25) ? words.code() : undefined;
    const place = random.chance(0.7);
    return this.#add({
      id: this.#id++,
      frame,
      who: set.who ?? words.person(),
      thing: set.thing ?? words.thing(type),
      count,
      code,
      whom: this.#speaksOf(frame) ? words.person() : undefined,
      where: place ? words.place() : undefined,
      when: !place || random.chance(0.5) ? words.when() : undefined,
      ...set,
    });
  }

  #properties(): Property[] {
    return PROPERTIES.filter((one) => this.frames === "all" || propertySplit(one) === this.frames);
  }

  /** A property of a thing. */
  property(set: Partial<Omit<PropertyFact, "id">> = {}): PropertyFact {
    const { random, words } = this;
    const of = (property: Property, type: ThingType) => property.types?.includes(type) ?? SOLID_TYPES.has(type);
    const pool = this.#properties();
    const fitting = set.thing ? pool.filter((one) => of(one, set.thing!.type)) : pool;
    const property = set.property ?? this.#coinedProperty() ?? random.pick(fitting);
    const type = set.thing?.type ?? random.pick(THING_TYPES.filter((one) => of(property, one)));
    const thing = set.thing ?? words.thing(type);
    return this.#add({ id: this.#id++, property, thing, value: this.value(property), ...set });
  }

  /** A property of any thing, with a made-up name; undefined where the document coins none, or not this time. */
  #coinedProperty(): Property | undefined {
    if (!this.#coins()) return undefined;
    const { random, words } = this;
    const name = words.pseudoWord();
    const value = random.pick(VALUE_TYPES);
    return {
      name,
      value,
      ...(value === "amount" && { unit: `${words.pseudoWord()}s` }),
      changes: true,
      split: words.split,
    };
  }

  value(property: Property): string {
    const { words } = this;
    switch (property.value) {
      case "name":
        return words.person().name;
      case "place":
        return words.place().name;
      case "code":
        return words.code();
      case "date":
        return words.date();
      case "amount":
        return `${words.number(900)} ${property.unit}`;
    }
  }

  /** A fact of either sort. */
  any(): Fact {
    return this.random.chance(0.2) ? this.property() : this.event();
  }

  /** Draws the facts of a question and says how to ask it. */
  plan(kind: Kind): Plan {
    switch (kind) {
      case "latest":
        return this.#latest();
      case "two-hop":
        return this.#twoHop();
      case "not-stated":
        return this.#notStated();
      case "several":
      case "counting":
        return this.#several(kind);
      case "distractors":
        return this.#distractors();
      case "comparison":
        return this.#comparison();
      case "rewriting":
        return this.#rewriting();
      default:
        return this.#single(kind);
    }
  }

  #single(kind: Kind): Plan {
    const { slots } = this;
    const fact =
      slots === undefined ? this.any() : slots.every((one) => one === "value") ? this.property() : this.event();
    const wanted = askable(fact).filter((one) => slots === undefined || slots.includes(one));
    const slot = this.random.pick(wanted.length > 0 ? wanted : askable(fact));
    return { kind, ordered: [], build: (all) => this.#about(fact, slot, all) };
  }

  /** The question about one slot, naming as many of the others as single out the fact. */
  #about(fact: Fact, slot: Slot, all: readonly Fact[]): Draft | undefined {
    const given = this.#single_out(fact, slot, all);
    if (given === undefined) return undefined;
    return { ask: ask(fact, { slot, given }, this.random), slot, evidence: [fact], answers: [fact] };
  }

  #single_out(fact: Fact, slot: Slot, all: readonly Fact[]): Set<Slot> | undefined {
    const { random } = this;
    const others = random.shuffle(slotsOf(fact).filter((other) => other !== slot && namable(slot, other)));
    const must = needed(fact, slot);
    const given = new Set<Slot>([...must, ...others.filter(() => random.chance(0.35))]);
    for (const other of ["", ...others]) {
      if (other !== "") given.add(other as Slot);
      if (all.filter((one) => matches(one, fact, given)).length === 1) return given;
    }
    return undefined;
  }

  #latest(): Plan {
    const { random, words } = this;
    const n = random.int(2, 4);
    const versions: Fact[] = [];
    let slot: Slot;
    if (random.chance(0.3)) {
      slot = "value";
      const first = this.property({
        property: this.#coinedProperty() ?? random.pick(this.#properties().filter((one) => one.changes)),
      });
      versions.push(first);
      for (let i = 1; i < n; i++)
        versions.push(this.property({ ...bare(first), value: this.value(first.property), later: true }));
    } else {
      slot = random.pick(["where", "who"] as const);
      const first = this.event({
        when: undefined,
        count: undefined,
        code: undefined,
        whom: undefined,
        where: words.place(),
      });
      versions.push(first);
      for (let i = 1; i < n; i++) {
        const other = slot === "who" ? { who: words.person() } : { where: words.place() };
        versions.push(this.event({ ...bare(first), where: words.place(), ...other, later: true }));
      }
    }
    return {
      kind: "latest",
      ordered: versions,
      build: (all) => {
        const last = versions[versions.length - 1];
        const given = new Set<Slot>(slot === "where" ? ["who", "what"] : ["what"]);
        if (all.filter((one) => matches(one, last, given)).length !== versions.length) return undefined;
        const wording: Wording = { slot, given, last: true };
        return { ask: ask(last, wording, random), slot, evidence: [last], answers: [last] };
      },
    };
  }

  #twoHop(): Plan {
    const { random, words } = this;
    const byThing = random.chance(0.6);
    const first = this.event({ count: undefined, code: undefined });
    const simple = { count: undefined, code: undefined };
    const second: Fact = byThing
      ? random.chance(0.3) && SOLID_TYPES.has(first.thing.type) // each split has a property of every such type
        ? this.property({ thing: first.thing })
        : this.event({ ...simple, thing: first.thing, where: words.place() })
      : this.event({ ...simple, who: first.who, where: words.place() });
    const bridge: Slot = byThing ? "what" : "who";
    const slot = random.pick(
      askable(second).filter(
        (one) => one !== bridge && (byThing || one === "what" || one === "where" || one === "when"),
      ),
    );
    return {
      kind: "two-hop",
      ordered: [],
      build: (all) => {
        const { past } = first.frame;
        const key = new Set<Slot>(byThing ? ["who"] : ["what"]);
        if (all.filter((one) => matches(one, first, key)).length !== 1) return undefined;
        // By the person, the thing is named too unless it is asked for.
        const given = new Set<Slot>(byThing ? ["what"] : slot === "what" ? ["who"] : ["who", "what"]);
        if (all.filter((one) => matches(one, second, given)).length !== 1) return undefined;
        const thing = `the ${slotText(first, "what")}`;
        const instead = byThing
          ? { what: `the thing that ${first.who.name} ${past}` }
          : { who: `the person who ${past} ${thing}` };
        return {
          ask: ask(second, { slot, given, instead }, random),
          slot,
          evidence: [first, second],
          answers: [second],
        };
      },
    };
  }

  /** A question near a fact that the document does not answer: a slot that is not filled, another person, another thing. */
  #notStated(): Plan {
    const { random, words } = this;
    const way = random.pick(["slot", "person", "thing"] as const);
    const slot = random.pick(
      way === "slot"
        ? (["where", "when"] as const)
        : way === "person"
          ? (["where", "when", "what"] as const)
          : (["where", "when", "who"] as const),
    );
    const fact = this.event({
      count: undefined,
      code: undefined,
      where: way === "slot" && slot === "where" ? undefined : words.place(),
      when: way === "slot" && slot === "when" ? undefined : words.when(),
    });
    const asked = {
      ...fact,
      where: fact.where ?? words.place(),
      when: fact.when ?? words.when(),
      ...(way === "person" ? { who: words.person() } : {}),
      ...(way === "thing" ? { thing: words.withNoun(fact.thing) ?? words.thing(fact.thing.type) } : {}),
    };
    return {
      kind: "not-stated",
      ordered: [],
      build: (all) => {
        // Half of the other people are in the text for something else, so that a name's absence gives nothing away.
        const others = all.filter(isEvent).filter((one) => one.who.name !== fact.who.name);
        if (way === "person" && others.length > 0 && random.chance(0.5)) asked.who = random.pick(others).who;
        const given = new Set<Slot>((["who", "what"] as const).filter((one) => one !== slot));
        const answered = all.filter((one) => matches(one, asked, given) && slotText(one, slot) !== undefined);
        if (answered.length > 0) return undefined;
        return { ask: ask(asked, { slot, given }, random), slot, evidence: [], answers: [], fixed: NOT_STATED };
      },
    };
  }

  /** One person did the same to several things. */
  #several(kind: "several" | "counting"): Plan {
    const { random } = this;
    const n = random.int(2, kind === "counting" ? 5 : 3);
    const first = this.event({ count: undefined, code: undefined, whom: undefined });
    const { frame, who } = first;
    const group = [first];
    for (let i = 1; i < n; i++)
      group.push(this.event({ frame, who, count: undefined, code: undefined, whom: undefined }));
    return {
      kind,
      ordered: [],
      build: (all) => {
        const given = new Set<Slot>(["who"]);
        if (all.filter((one) => matches(one, first, given)).length !== n) return undefined;
        if (new Set(group.map((one) => slotText(one, "what"))).size < n) return undefined;
        if (kind === "counting")
          return {
            ask: `How many different things did ${who.name} ${frame.base} in all?`,
            evidence: group,
            answers: [],
            fixed: String(n),
          };
        return {
          ask: `Name everything that ${who.name} ${frame.past}.`,
          slot: "what",
          evidence: group,
          answers: group,
        };
      },
    };
  }

  /** A fact among others that share its verb, its person, its thing or its noun. */
  #distractors(): Plan {
    const { random, words } = this;
    const fact = this.event({
      where: words.place(),
      when: words.when(),
      count: undefined,
      code: undefined,
      whom: undefined,
    });
    const { frame, who, thing } = fact;
    const near = { count: undefined, code: undefined, whom: undefined, where: words.place() };
    const set: Partial<Omit<EventFact, "id">>[] = [
      { frame, thing },
      { frame, thing: words.withNoun(thing) ?? words.thing(thing.type) },
      { who, thing },
      { frame, who },
    ];
    for (const shared of random.shuffle(set).slice(0, random.int(2, 4)))
      this.event({ ...near, where: words.place(), when: words.when(), ...shared });
    const slot = random.pick(["who", "where", "when", "what"] as const);
    return { kind: "distractors", ordered: [], build: (all) => this.#about(fact, slot, all) };
  }

  #comparison(): Plan {
    const { random, words } = this;
    const first = this.#countable();
    const second = this.event({ ...bare(first), who: words.person(), count: words.number(), where: words.place() });
    return {
      kind: "comparison",
      ordered: [],
      build: (all) => {
        const given = new Set<Slot>(["what"]);
        if (all.filter((one) => matches(one, first, given)).length !== 2) return undefined;
        const more = first.count! > second.count! ? first : second;
        const [a, b] = random.shuffle([first, second]);
        const { frame } = first;
        return {
          ask: `Who ${frame.past} more ${slotText(first, "what")}, ${a.who.name} or ${b.who.name}?`,
          slot: "who",
          evidence: [first, second],
          answers: [more],
        };
      },
    };
  }

  #countable(): EventFact {
    const type = this.random.pick([...COUNTABLE]);
    const thing: Thing = this.words.thing(type);
    return this.event({
      frame: this.#frame(type),
      thing,
      count: this.words.number(),
      code: undefined,
      whom: undefined,
    });
  }

  #rewriting(): Plan {
    const { thing } = this.event({ count: undefined });
    const facts = this.facts.slice(-1);
    for (let i = this.random.int(0, 2); i > 0; i--) facts.push(this.event({ thing, count: undefined }));
    return {
      kind: "rewriting",
      ordered: [],
      build: (all) => {
        const what = slotText(facts[0], "what");
        if (all.filter((one) => slotText(one, "what") === what).length !== facts.length) return undefined;
        return { ask: `Copy everything that is said about the ${what}.`, evidence: facts, answers: [], fixed: "" };
      },
    };
  }
}

/** A fact without its number, to be said again with changes. */
function bare<T extends Fact>(fact: T): Omit<T, "id"> {
  const { id: _id, ...rest } = fact;
  return rest;
}

const askable = (fact: Fact): Slot[] => slotsOf(fact).filter((slot) => isEvent(fact) || slot === "value");

/** The number of things cannot be named when it, or the thing, is asked for. */
function namable(slot: Slot, other: Slot): boolean {
  if (slot === "what") return other !== "which" && other !== "howMany";
  if (slot === "which" || slot === "howMany") return other !== "which" && other !== "howMany";
  return true;
}

/** Whether a fact is one of those that a question about `of` naming `given` could mean. */
export function matches(one: Fact, of: Fact, given: ReadonlySet<Slot>): boolean {
  if (isEvent(one) !== isEvent(of)) return false;
  if (isEvent(one) && isEvent(of) && one.frame.past !== of.frame.past) return false;
  if (!isEvent(one) && !isEvent(of) && one.property.name !== of.property.name) return false;
  return [...given].every((slot) => slotText(one, slot) === slotText(of, slot));
}
