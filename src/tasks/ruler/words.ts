import { hash, Random } from "../documents/random.js";

const ADJECTIVES =
  "amber bold brave bright brisk calm clever crimson curious dusty eager early fancy fierce gentle giant golden hasty hidden hollow humble icy jolly keen lazy little lively lonely loud lucky mellow mighty misty modest narrow nimble noble odd pale patient plain polite proud quick quiet rapid rough royal rusty salty sandy sharp shiny silent silver simple sleepy slow smooth soft solid stern sturdy sunny sweet swift tall tame tender thin tidy timid tiny tough vivid warm wild wise witty young".split(
    " ",
  );
const NOUNS =
  "acorn anchor apron arrow badger banjo barrel basin beacon beaver bell bench birch bottle branch bridge bucket button cabin candle canyon carrot castle cedar chisel clover comet copper coral cradle cricket dagger daisy desert dolphin donkey drum ember falcon feather fennel ferry fiddle flint forest fountain garden ginger glacier goblet grape hammer harbor harvest hazel heron hollow island ivory jacket jasmine kettle ladder lantern lemon lizard magnet maple marble meadow mirror mitten needle nettle orchard otter paddle parrot pebble pepper pillow pocket pond puffin quarry rabbit raven ribbon saddle sailor sparrow spruce stable sundial teapot thistle thunder timber trumpet tulip turnip valley velvet violet walnut willow window winter".split(
    " ",
  );

/** Distinct adjective-noun keys. */
export function keys(count: number, random: Random): string[] {
  return distinct(count, () => `${random.pick(ADJECTIVES)}-${random.pick(NOUNS)}`);
}

/** Distinct numbers of `digits` digits. */
export function numbers(count: number, digits: number, random: Random): string[] {
  return distinct(count, () => String(random.int(10 ** (digits - 1), 10 ** digits - 1)));
}

/** Distinct identifiers in the form of a version-4 UUID. */
export function uuids(count: number, random: Random): string[] {
  const hex = (n: number) => Array.from({ length: n }, () => "0123456789abcdef"[random.int(0, 15)]).join("");
  return distinct(count, () => `${hex(8)}-${hex(4)}-4${hex(3)}-${"89ab"[random.int(0, 3)]}${hex(3)}-${hex(12)}`);
}

/** Distinct names of `length` random capitals. */
export function capitals(count: number, length: number, random: Random): string[] {
  const letter = () => String.fromCharCode(65 + random.int(0, 25));
  return distinct(count, () => Array.from({ length }, letter).join(""));
}

/** Distinct made-up words of six letters. */
export function coded(count: number, random: Random): string[] {
  const letter = () => String.fromCharCode(97 + random.int(0, 25));
  return distinct(count, () => Array.from({ length: 6 }, letter).join(""));
}

/** Distinct plain words: nouns and adjectives; once they are used up pairs of them, and then threes. */
export function words(count: number, random: Random): string[] {
  const single = random.shuffle([...new Set([...NOUNS, ...ADJECTIVES])]);
  if (count <= single.length) return single.slice(0, count);
  const pair = () => random.pick(ADJECTIVES) + random.pick(NOUNS);
  const left = count - single.length;
  const pairs = distinct(Math.min(left, PAIRS), pair);
  return [...single, ...pairs, ...distinct(left - pairs.length, () => random.pick(ADJECTIVES) + pair())];
}

/** Pairs that are taken before threes: drawing the last ones of some ten thousand would take long. */
const PAIRS = 4000;

function distinct(count: number, make: () => string): string[] {
  const found = new Set<string>();
  while (found.size < count) found.add(make());
  return [...found];
}

/** A stream of random numbers for one part of a case: parts do not disturb one another when a length changes. */
export function stream(seed: number | string, part: string): Random {
  return new Random(hash(`${seed} ${part}`));
}
