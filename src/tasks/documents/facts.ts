import type { Frame, Property } from "./frames.js";
import { capitalise, mark } from "./marks.js";
import type { Random } from "./random.js";
import { type Form, SLOTS, type Slot } from "./types.js";
import { type Person, type Place, plural, type Thing } from "./words.js";

/** Someone did something to a thing. */
export interface EventFact {
  readonly id: number;
  readonly frame: Frame;
  readonly who: Person;
  readonly thing: Thing;
  /** "14 copper pumps". */
  readonly count?: number;
  /** "the copper pump KX-482". */
  readonly code?: string;
  readonly whom?: Person;
  readonly where?: Place;
  /** With its preposition: "on 12 March". */
  readonly when?: string;
  /** It replaces an earlier fact of the document. */
  readonly later?: boolean;
}

/** A thing has a property. */
export interface PropertyFact {
  readonly id: number;
  readonly property: Property;
  readonly thing: Thing;
  readonly value: string;
  readonly later?: boolean;
}

export type Fact = EventFact | PropertyFact;

export const isEvent = (fact: Fact): fact is EventFact => "frame" in fact;

/** The text of a slot as it stands in the document; undefined where the fact does not say. */
export function slotText(fact: Fact, slot: Slot): string | undefined {
  if (slot === "what") return thingText(fact);
  if (!isEvent(fact)) return slot === "value" ? fact.value : undefined;
  switch (slot) {
    case "who":
      return fact.who.name;
    case "howMany":
      return fact.count === undefined ? undefined : String(fact.count);
    case "which":
      return fact.code;
    case "whom":
      return fact.whom?.name;
    case "where":
      return fact.where?.name;
    case "when":
      return fact.when?.replace(/^\w+ /, "");
    default:
      return undefined;
  }
}

function thingText(fact: Fact): string {
  const { adjective, noun } = fact.thing;
  const counted = isEvent(fact) && fact.count !== undefined;
  return `${adjective} ${counted ? plural(noun) : noun}`;
}

/** The slots that a fact fills. */
export const slotsOf = (fact: Fact): Slot[] => SLOTS.filter((slot) => slotText(fact, slot) !== undefined);

/** The label of a slot of a fact in marked text. */
export const label = (fact: Fact, slot: Slot): string => `${fact.id}.${slot}`;

/** A slot, marked. */
export const marked = (fact: Fact, slot: Slot): string => mark(label(fact, slot), slotText(fact, slot) ?? "");

/** "the copper pump", "the copper pump KX-482" or "14 copper pumps", marked. */
export function thingPhrase(fact: Fact): string {
  if (isEvent(fact) && fact.count !== undefined) return `${marked(fact, "howMany")} ${marked(fact, "what")}`;
  const code = isEvent(fact) && fact.code !== undefined ? ` ${marked(fact, "which")}` : "";
  return `the ${marked(fact, "what")}${code}`;
}

/** " to Dana Orlo in Ashford on 12 March" without the slots of `skip`. */
function tail(fact: EventFact, random: Random, skip: readonly Slot[] = []): string {
  const whom = fact.whom && !skip.includes("whom") ? ` ${fact.frame.preposition} ${marked(fact, "whom")}` : "";
  const where = fact.where && !skip.includes("where") ? ` ${fact.where.preposition} ${marked(fact, "where")}` : "";
  const when = fact.when && !skip.includes("when") ? ` ${preposition(fact)} ${marked(fact, "when")}` : "";
  return whom + (random.chance(0.7) ? where + when : when + where);
}

const preposition = (fact: EventFact): string => fact.when?.split(" ")[0] ?? "";
const be = (fact: EventFact): string => (fact.count === undefined ? "was" : "were");

/** A fact as a sentence, or two in the pronoun form; marked with its number and its slots. */
export function realise(fact: Fact, form: Form, random: Random): string {
  if (!isEvent(fact)) return mark(String(fact.id), capitalise(property(fact, form, random)));
  const text = event(fact, form, random);
  return mark(String(fact.id), fact.later ? `Later, ${text}` : capitalise(text));
}

/** The forms that a fact can take: what replaces another is not said with a pronoun. */
export function formsOf(fact: Fact, forms: readonly Form[]): readonly Form[] {
  const allowed = fact.later ? forms.filter((form) => form !== "pronoun") : forms;
  return allowed.length > 0 ? allowed : ["active"];
}

function event(fact: EventFact, form: Form, random: Random): string {
  const { past, participle } = fact.frame;
  const who = marked(fact, "who");
  const thing = thingPhrase(fact);
  switch (form) {
    case "active": {
      const front = fact.later ? undefined : random.pick([undefined, undefined, "where", "when"] as const);
      if (front === undefined || fact[front] === undefined) return `${who} ${past} ${thing}${tail(fact, random)}.`;
      const word = front === "where" ? fact.where!.preposition : preposition(fact);
      return `${word} ${marked(fact, front)}, ${who} ${past} ${thing}${tail(fact, random, [front])}.`;
    }
    case "passive": {
      const lead = fact.count === undefined ? "" : "in all, ";
      const whom = fact.whom ? ` ${fact.frame.preposition} ${marked(fact, "whom")}` : "";
      return `${lead}${thing} ${be(fact)} ${participle}${whom} by ${who}${tail(fact, random, ["whom"])}.`;
    }
    case "cleft":
      return cleft(fact, random);
    case "pronoun":
      return pronoun(fact, random);
  }
}

function cleft(fact: EventFact, random: Random): string {
  const { past } = fact.frame;
  const who = marked(fact, "who");
  const thing = thingPhrase(fact);
  const focus = random.pick((["who", "what", "where", "when"] as const).filter((slot) => slotText(fact, slot)));
  if (focus === "who") return `it was ${who} who ${past} ${thing}${tail(fact, random)}.`;
  if (focus === "what") return `it was ${thing} that ${who} ${past}${tail(fact, random)}.`;
  const word = focus === "where" ? fact.where!.preposition : preposition(fact);
  return `it was ${word} ${marked(fact, focus)} that ${who} ${past} ${thing}${tail(fact, random, [focus])}.`;
}

/** Sentences that name somebody, for the pronoun that follows. */
const PERSON_LEADS = ["was asked to help", "had work to do", "is a reliable person", "was the right person"];
const THING_LEADS = ["there was talk of", "some people asked about", "many people knew of", "this note is about"];

function pronoun(fact: EventFact, random: Random): string {
  const { past } = fact.frame;
  const who = marked(fact, "who");
  const he = fact.who.pronoun;
  const thing = thingPhrase(fact);
  const way = random.pick(fact.where ? ["who", "what", "where"] : ["who", "what"]);
  if (way === "where") {
    const trip = random.pick(["went to", "travelled to", "had to go to"]);
    return `${who} ${trip} ${marked(fact, "where")}. There ${he} ${past} ${thing}${tail(fact, random, ["where"])}.`;
  }
  if (way === "who")
    return `${who} ${random.pick(PERSON_LEADS)}. ${capitalise(he)} ${past} ${thing}${tail(fact, random)}.`;
  const it = fact.count === undefined ? "it" : "them";
  return `${random.pick(THING_LEADS)} ${thing}. ${who} ${past} ${it}${tail(fact, random)}.`;
}

function property(fact: PropertyFact, form: Form, random: Random): string {
  const thing = thingPhrase(fact);
  const value = marked(fact, "value");
  const now = fact.later ? " now" : "";
  const { name } = fact.property;
  switch (form) {
    case "active":
      return `the ${name} of ${thing} is${now} ${value}.`;
    case "passive":
      return `${value} is${now} the ${name} of ${thing}.`;
    case "cleft":
      return `it is${now} ${value} that is given as the ${name} of ${thing}.`;
    case "pronoun":
      return `${random.pick(THING_LEADS)} ${thing}. Its ${name} is ${value}.`;
  }
}
