import { type EventFact, type Fact, isEvent, slotText } from "./facts.js";
import type { Random } from "./random.js";
import type { Slot } from "./types.js";
import { plural } from "./words.js";

/** How a fact's question is worded. */
export interface Wording {
  readonly slot: Slot;
  /** Slots that the question names. */
  readonly given: ReadonlySet<Slot>;
  /** Asks for the last of several. */
  readonly last?: boolean;
  /** "the thing that ..." and "the person who ...", in place of the name. */
  readonly instead?: { readonly what?: string; readonly who?: string };
}

/** The slots that a question for `slot` must name to be a sentence. */
export function needed(fact: Fact, slot: Slot): Slot[] {
  if (!isEvent(fact)) return ["what"];
  if (slot === "who") return ["what"];
  if (slot === "what") return ["who"];
  return ["what"];
}

/** A question for one slot of a fact. */
export function ask(fact: Fact, wording: Wording, random: Random): string {
  const what = wording.instead?.what ?? `the ${slotText(fact, "what")}`;
  if (isEvent(fact)) return askEvent(fact, wording, random);
  const last = wording.last ? "current " : "";
  const word = fact.property.value === "name" ? "Who" : "What";
  return `${word} is the ${last}${fact.property.name} of ${what}?`;
}

function askEvent(fact: EventFact, wording: Wording, random: Random): string {
  const { slot, given, instead } = wording;
  const { base, past, participle, preposition } = fact.frame;
  const last = wording.last ? "last " : "";
  const who = instead?.who ?? fact.who.name;
  const thing = instead?.what ?? questionThing(fact, given);
  const whom = fact.whom && given.has("whom") && slot !== "whom" ? ` ${preposition} ${fact.whom.name}` : "";
  const where =
    fact.where && given.has("where") && slot !== "where" ? ` ${fact.where.preposition} ${fact.where.name}` : "";
  const when = fact.when && given.has("when") && slot !== "when" ? ` ${fact.when}` : "";
  const tail = whom + where + when;
  const by = given.has("who") || instead?.who ? ` by ${who}` : "";
  // Without the person only the passive makes a question.
  const active = slot === "who" ? random.chance(0.7) : by !== "" && random.chance(0.7);
  const be = fact.count === undefined ? "was" : "were";
  const did = `did ${who} ${last}${base}`;
  const plainThing = `${fact.thing.adjective} ${fact.count === undefined ? fact.thing.noun : plural(fact.thing.noun)}`;
  switch (slot) {
    case "who":
      return active ? `Who ${last}${past} ${thing}${tail}?` : `By whom ${be} ${thing} ${last}${participle}${tail}?`;
    case "what":
      return active ? `What ${did}${tail}?` : `What was ${last}${participle}${by}${tail}?`;
    case "whom": {
      const word = preposition![0].toUpperCase() + preposition!.slice(1);
      return active
        ? `${word} whom ${did} ${thing}${tail}?`
        : `${word} whom ${be} ${thing} ${last}${participle}${by}${tail}?`;
    }
    case "howMany":
      return active
        ? `How many ${plainThing} ${did}${tail}?`
        : `How many ${plainThing} were ${last}${participle}${by}${tail}?`;
    case "which":
      return active
        ? `Which ${plainThing} ${did}${tail}?`
        : `Which ${plainThing} was ${last}${participle}${by}${tail}?`;
    default: {
      const word = slot === "where" ? "Where" : "When";
      return active ? `${word} ${did} ${thing}${tail}?` : `${word} ${be} ${thing} ${last}${participle}${by}${tail}?`;
    }
  }
}

/** The thing as a question names it: "the copper pump", "the copper pump KX-482", "the 14 copper pumps". */
function questionThing(fact: EventFact, given: ReadonlySet<Slot>): string {
  const count = fact.count !== undefined && given.has("howMany") ? `${fact.count} ` : "";
  const code = fact.code !== undefined && given.has("which") ? ` ${fact.code}` : "";
  return `the ${count}${slotText(fact, "what")}${code}`;
}
