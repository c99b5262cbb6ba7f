import { FRAMES, PROPERTIES } from "./frames.js";
import { hash, type Random } from "./random.js";
import type { Split } from "./types.js";

/** What a verb can act on. */
export type ThingType = keyof typeof NOUNS;

/** Nouns with regular plurals, by type. */
export const NOUNS = {
  device:
    "pump clock lamp radio printer camera engine motor scanner heater telephone generator sensor meter compressor projector",
  tool: "hammer saw drill spade axe chisel wrench rake ladder anvil plough hoe shovel wheelbarrow",
  document:
    "report letter contract map diary invoice manuscript catalogue essay notebook leaflet permit ledger certificate",
  food: "cake pie pudding sausage salad stew pancake dumpling omelette biscuit pastry sandwich pizza waffle",
  plant: "tulip oak maple fern rose lily shrub vine cedar poplar orchid willow hedge birch fig tree",
  animal: "horse goat dog falcon donkey hen rabbit pony parrot camel kitten lamb tortoise otter heron",
  building: "tower barn chapel mill cottage stable warehouse lighthouse shed kiosk greenhouse pavilion bridge cabin",
  vehicle: "van ferry tractor wagon bicycle tram canoe barge truck sledge carriage yacht scooter trailer",
  garment: "coat scarf glove jacket hat cloak shawl apron sweater belt dress skirt robe cap blanket",
  artwork: "ballad poem song film novel opera sonnet symphony play story fable anthem",
  picture: "painting statue portrait mural mosaic sculpture photograph drawing engraving tapestry icon fresco",
  container: "box barrel basket chest crate parcel jar sack suitcase trunk bottle bucket cabinet envelope",
  furniture: "chair table desk bench mirror carpet curtain cradle stool wardrobe cupboard bookcase couch sofa",
  event: "meeting lecture concert festival course exhibition match parade wedding seminar race debate contest",
  plan: "proposal scheme budget project theory motion rule schedule method policy treaty strategy",
  object: "ring coin necklace medal crown vase brooch sword candle key flag bell drum violin flute",
} as const;

const SOLID =
  "red blue green yellow white black grey brown old new small large heavy light tiny rusty shiny striped silver golden copper steel wooden round narrow broken antique spare";
const CLOTH =
  "red blue green yellow white black grey brown old new long short woollen cotton silk striped warm thin thick";
const TEXT = "short long secret annual official yellow confidential old new thin thick blue final brief detailed rare";
const TASTE = "sweet salty spicy warm cold fresh large small crisp plain rich round fruity sour";
const LIVING = "young old small large white black brown grey spotted wild tame healthy rare northern slender";
const GREEN = "young old small large white red yellow wild healthy rare tall slender northern crooked";
const ABSTRACT =
  "new bold modest early final ambitious secret cheap costly simple detailed joint regional national strict";
const PUBLIC = "annual public private open short long local regional joint national formal noisy quiet early late";
const LARGE = "red white grey old new small large tall narrow wooden round northern southern empty famous disused";

const ADJECTIVES: Record<ThingType, string> = {
  device: SOLID,
  tool: SOLID,
  document: TEXT,
  food: TASTE,
  plant: GREEN,
  animal: LIVING,
  building: LARGE,
  vehicle: SOLID,
  garment: CLOTH,
  artwork: "short long secret old new sad merry famous comic tragic solemn gentle popular obscure",
  picture: "small large old new famous rare colourful faded unfinished gilded oval square round",
  container: SOLID,
  furniture: SOLID,
  event: PUBLIC,
  plan: ABSTRACT,
  object: SOLID,
};

const split = new Map<string, readonly string[]>();

function list(words: string): readonly string[] {
  let found = split.get(words);
  if (found === undefined) split.set(words, (found = words.split(" ")));
  return found;
}

export const THING_TYPES = Object.keys(NOUNS) as ThingType[];

/** Things that carry a number of their own, so that "which" can be asked. */
export const NUMBERED: ReadonlySet<ThingType> = new Set([
  "device",
  "document",
  "vehicle",
  "container",
  "furniture",
  "tool",
]);

/** Things that can be touched: they have owners, prices and places. */
export const SOLID_TYPES: ReadonlySet<ThingType> = new Set([
  "device",
  "tool",
  "document",
  "animal",
  "building",
  "vehicle",
  "garment",
  "container",
  "furniture",
  "object",
  "picture",
]);

/** Real words that a made-up word must not be. */
const REAL: ReadonlySet<string> = new Set([
  ...THING_TYPES.flatMap((type) => [...list(NOUNS[type]), ...list(ADJECTIVES[type])]),
  ...FRAMES.flatMap((frame) => [frame.base, frame.past, frame.participle]),
  ...PROPERTIES.flatMap((property) => property.name.split(" ")),
  ..."that this than them then there they with from have been were will would when what where which whom whose their hers".split(
    " ",
  ),
  ..."mare male tale tell tall till tore torn turn land lend lent lint mint most mist must moon noon pond bond band bend bold".split(
    " ",
  ),
  ..."sent send sand task risk tusk tank sink sunk monk bank rank park pork dark hunt hint punt rent lamp limp lump damp".split(
    " ",
  ),
  ..."kill sell nazi rape dump dick cock suck tits cunt fuck shit arse porn slut damn hell dead died kids".split(" "),
]);

/**
 * The split that a word, a name or a pair of words belongs to. One word in eight is held out; which, only its letters decide,
 * so the two splits share no name, place, code or made-up word.
 */
export function wordSplit(word: string): Split {
  return hash(`split ${word.toLowerCase()}`) % 8 === 0 ? "held-out" : "train";
}

/** Draws until a word is of the split and was not drawn before. */
function draw(split: Split, used: Set<string>, make: () => string, keyOf = (word: string) => word): string {
  for (let tries = 0; tries < 10_000; tries++) {
    const word = make();
    const key = keyOf(word);
    if (wordSplit(key) !== split || used.has(key.toLowerCase())) continue;
    used.add(key.toLowerCase());
    return word;
  }
  return make();
}

const ONSETS = list("b d f g h j k l m n p r s t v w z br dr gr kr tr pl sl th sh st");
const VOWELS = list("a e i o u a e i o");
const MIDDLES = list("l n r m s v d t k b rn ld nd lm rv nt rd st");
const FIRST_ENDS = list("a o e in an is el us en ia ar il on y");
const LAST_ENDS = list("ard son well mar ett off ini ane ley ick ath urn oss man berg elli owitz ander");
const TOWN_ENDS = list("ford ham bury wick ton by stead mouth field burgh ville dale haven minster");
const SITES = list("Station Hall Harbour Market Park Bridge Castle School Square Mill");
const CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ";

/** Months, first to last. */
export const MONTHS = list(
  "January February March April May June July August September October November December",
) as readonly string[];

const capital = (word: string) => word[0].toUpperCase() + word.slice(1);

/** A person. */
export interface Person {
  readonly name: string;
  readonly pronoun: "he" | "she";
}

/** A place and the preposition it takes. */
export interface Place {
  readonly name: string;
  readonly preposition: "in" | "at";
}

/** A thing: noun, adjective and type. */
export interface Thing {
  readonly adjective: string;
  readonly noun: string;
  readonly type: ThingType;
}

/** Draws words, names and values for one document; nothing is drawn twice. */
export class Words {
  readonly #used = new Set<string>();

  constructor(
    readonly random: Random,
    readonly split: Split,
    /** Content words are made up. */
    readonly pseudo: boolean,
  ) {}

  person(): Person {
    const r = this.random;
    const first = draw(this.split, this.#used, () =>
      capital(r.pick(ONSETS) + r.pick(VOWELS) + r.pick(MIDDLES) + r.pick(FIRST_ENDS)),
    );
    const last = draw(this.split, this.#used, () =>
      capital(r.pick(ONSETS) + r.pick(VOWELS) + r.pick(MIDDLES) + r.pick(LAST_ENDS)),
    );
    return { name: `${first} ${last}`, pronoun: r.chance(0.5) ? "he" : "she" };
  }

  place(): Place {
    const r = this.random;
    const stem = () => capital(r.pick(ONSETS) + r.pick(VOWELS) + r.pick(MIDDLES));
    if (r.chance(0.6)) {
      return { name: draw(this.split, this.#used, () => stem() + r.pick(TOWN_ENDS)), preposition: "in" };
    }
    const name = draw(this.split, this.#used, () => stem() + r.pick(FIRST_ENDS));
    return { name: `${name} ${r.pick(SITES)}`, preposition: "at" };
  }

  /** A code such as KX-482. */
  code(): string {
    const letter = () => this.random.pick([...CODE_LETTERS]);
    return draw(this.split, this.#used, () => `${letter()}${letter()}-${this.random.int(100, 9999)}`);
  }

  /** A number that the document has not used, at least 3. */
  number(high = 400): number {
    for (let tries = 0; ; tries++) {
      const number = this.random.int(3, high + tries);
      if (this.#used.has(String(number))) continue;
      this.#used.add(String(number));
      return number;
    }
  }

  /** A point in time with its preposition: a day, a day of a year, a year or an hour. */
  when(): string {
    const r = this.random;
    const make = r.pick([
      () => `on ${r.int(1, 28)} ${r.pick(MONTHS)}`,
      () => `on ${r.int(1, 28)} ${r.pick(MONTHS)} ${r.int(1790, 2019)}`,
      () => `in ${r.int(1790, 2019)}`,
      () => `at ${r.int(6, 22)}:${String(r.int(0, 59)).padStart(2, "0")}`,
    ]);
    return this.#unused(make);
  }

  date(): string {
    return this.#unused(() => `${this.random.int(1, 28)} ${this.random.pick(MONTHS)}`);
  }

  #unused(make: () => string): string {
    for (let tries = 0; tries < 1000; tries++) {
      const text = make();
      if (this.#used.has(text)) continue;
      this.#used.add(text);
      return text;
    }
    return make();
  }

  /** A made-up lower-case word; `end` picks what it may end in. */
  pseudoWord(end: readonly string[] = list("b d g l m n p r t k nd lt rp nk rm lf")): string {
    const r = this.random;
    const make = (): string => {
      const stem = r.chance(0.6) ? r.pick(ONSETS) + r.pick(VOWELS) + r.pick(MIDDLES) : r.pick(ONSETS);
      const word = stem + r.pick(VOWELS) + r.pick(end);
      return word.length < 5 || REAL.has(word) || word.endsWith("ed") ? make() : word;
    };
    return draw(this.split, this.#used, make);
  }

  pseudoVerb(): string {
    return this.pseudoWord(list("nk rt lp sk mp lt rk ft ct"));
  }

  /** A thing of a type; its noun is new in the document as long as the type has nouns left. */
  thing(type: ThingType): Thing {
    if (this.pseudo) return { type, adjective: this.pseudoWord(), noun: this.pseudoWord() };
    const nouns = this.random.shuffle(list(NOUNS[type]));
    const fresh = nouns.filter((noun) => !this.#used.has(noun));
    for (const noun of [...fresh, ...nouns]) {
      const thing = this.withNoun({ type, noun });
      this.#used.add(noun);
      if (thing !== undefined) return thing;
    }
    // Every pair of the type is used up: any other type has things left.
    return this.thing(this.random.pick(THING_TYPES));
  }

  /** Another thing that shares the noun; undefined where the noun has no adjective of the split left. */
  withNoun({ type, noun }: Pick<Thing, "type" | "noun">): Thing | undefined {
    if (this.pseudo) return { type, noun, adjective: this.pseudoWord() };
    const adjectives = this.random.shuffle(list(ADJECTIVES[type]));
    const adjective = adjectives.find((word) => this.#free(`${word} ${noun}`));
    if (adjective === undefined) return undefined;
    this.#used.add(`${adjective} ${noun}`);
    return { type, noun, adjective };
  }

  /** Whether a pair of words is of the split, and new. */
  #free(pair: string): boolean {
    return wordSplit(pair) === this.split && !this.#used.has(pair);
  }
}

/** The plural of a noun of the table or of a made-up one. */
export function plural(noun: string): string {
  if (/[^aeiou]y$/.test(noun)) return `${noun.slice(0, -1)}ies`;
  return /(s|x|ch|sh)$/.test(noun) ? `${noun}es` : `${noun}s`;
}
