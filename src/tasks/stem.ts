/** An ending, and what it becomes. */
type Rule = readonly [ending: string, becomes: string];

/** Steps 2 and 3 of Porter's algorithm: double endings become single ones where the stem has a syllable. */
const STEP_2: readonly Rule[] = [
  ["ational", "ate"],
  ["tional", "tion"],
  ["enci", "ence"],
  ["anci", "ance"],
  ["izer", "ize"],
  ["abli", "able"],
  ["alli", "al"],
  ["entli", "ent"],
  ["eli", "e"],
  ["ousli", "ous"],
  ["ization", "ize"],
  ["ation", "ate"],
  ["ator", "ate"],
  ["alism", "al"],
  ["iveness", "ive"],
  ["fulness", "ful"],
  ["ousness", "ous"],
  ["aliti", "al"],
  ["iviti", "ive"],
  ["biliti", "ble"],
];
const STEP_3: readonly Rule[] = [
  ["icate", "ic"],
  ["ative", ""],
  ["alize", "al"],
  ["iciti", "ic"],
  ["ical", "ic"],
  ["ful", ""],
  ["ness", ""],
];
/** Step 4: endings that fall where the stem has two syllables. */
const STEP_4 = "al ance ence er ic able ible ant ement ment ent ion ou ism ate iti ous ive ize"
  .split(" ")
  .map((ending): Rule => [ending, ""]);

/**
 * The stem of an English word by Porter's algorithm (1980), as published: "relational" and "relate" are both "relat".
 * Words of other scripts, and those of one or two letters, stay as they are.
 */
export function stem(word: string): string {
  const lower = word.toLowerCase();
  if (!/^[a-z]{3,}$/.test(lower)) return lower;
  return last(fall(swap(swap(finalY(pastForms(plural(lower))), STEP_2, 0), STEP_3, 0)));
}

/** Step 1a. */
function plural(word: string): string {
  if (/(ss|i)es$/.test(word)) return word.slice(0, -2);
  return /[^s]s$/.test(word) ? word.slice(0, -1) : word;
}

/** Step 1b. */
function pastForms(word: string): string {
  if (word.endsWith("eed")) return measure(word.slice(0, -3)) > 0 ? word.slice(0, -1) : word;
  const cut = word.replace(/(ed|ing)$/, "");
  if (cut === word || !hasVowel(cut)) return word;
  if (/(at|bl|iz)$/.test(cut)) return `${cut}e`;
  if (doubled(cut) && !/[lsz]$/.test(cut)) return cut.slice(0, -1);
  return measure(cut) === 1 && short(cut) ? `${cut}e` : cut;
}

/** Step 1c. */
function finalY(word: string): string {
  return word.endsWith("y") && hasVowel(word.slice(0, -1)) ? `${word.slice(0, -1)}i` : word;
}

/** The longest ending of a list is replaced if what stands before it has a measure above `least`; else nothing is. */
function swap(word: string, rules: readonly Rule[], least: number): string {
  const found = rules
    .filter(([ending]) => word.endsWith(ending))
    .reduce<Rule | undefined>((best, rule) => (rule[0].length > (best?.[0].length ?? 0) ? rule : best), undefined);
  if (!found) return word;
  const before = word.slice(0, word.length - found[0].length);
  return measure(before) > least ? before + found[1] : word;
}

/** Step 4: "ion" falls after s and t only. */
const fall = (word: string) => (/[^st]ion$/.test(word) ? word : swap(word, STEP_4, 1));

/** Step 5. */
function last(word: string): string {
  const cut = word.slice(0, -1);
  const m = measure(cut);
  const bare = word.endsWith("e") && (m > 1 || (m === 1 && !short(cut))) ? cut : word;
  return bare.endsWith("ll") && measure(bare) > 1 ? bare.slice(0, -1) : bare;
}

/** Which letters are vowels: y is one after a consonant. */
function vowels(word: string): boolean[] {
  const is: boolean[] = [];
  for (const [i, letter] of [...word].entries())
    is.push("aeiou".includes(letter) || (letter === "y" && i > 0 && !is[i - 1]));
  return is;
}

const hasVowel = (word: string) => vowels(word).includes(true);

/** Porter's measure m: how often a vowel is followed by a consonant. */
function measure(word: string): number {
  const is = vowels(word);
  return is.filter((vowel, i) => i > 0 && !vowel && is[i - 1]).length;
}

const doubled = (word: string) => word.length > 1 && word.at(-1) === word.at(-2) && !vowels(word).at(-1);

/** Consonant, vowel, consonant, the last of them no w, x or y. */
function short(word: string): boolean {
  const [a, b, c] = vowels(word).slice(-3);
  return word.length > 2 && !a && b && !c && !/[wxy]$/.test(word);
}
