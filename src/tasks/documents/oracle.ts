import { FRAMES } from "./frames.js";
import { NOT_STATED } from "./types.js";

// A second, independent reading of the language: it parses the rendered text and the question, and knows nothing of the
// facts that the document was made from. What it shares with the generator is the table of verb forms.

const NAME = "[A-Z][a-z]+ [A-Z][a-z]+";
const CODE = "[A-Z]{2}-\\d+";
const THING = "[a-z]+ [a-z]+";
const PLACE = "[A-Z][a-z]+(?: [A-Z][a-z]+)?";
const WHEN = "\\d{1,2} [A-Z][a-z]+(?: \\d{4})?|\\d{1,2}:\\d{2}|\\d{4}";
const PERSON_WORDS = "to|from|for|with";
const WHAT = `[Tt]he (?:\\d+ )?${THING}(?: ${CODE})?|\\d+ ${THING}`;
const VALUE = `${CODE}|\\d+ [a-z]+|${WHEN}|${PLACE}`;

type Read = Partial<Record<"who" | "what" | "howMany" | "which" | "whom" | "where" | "when", string>> & {
  text?: string;
};

interface Verb {
  base: string;
  past: string;
  participle: string;
}

/** Forms of a verb that a question uses; one that the table does not hold is regular. */
function verbsOf(word: string): Verb[] {
  const known = FRAMES.filter((frame) => [frame.base, frame.past, frame.participle].includes(word));
  if (known.length > 0) return known;
  const base = word.replace(/ed$/, "");
  return [{ base, past: `${base}ed`, participle: `${base}ed` }];
}

/** "the copper pump KX-482" or "14 copper pumps" in its parts. */
function readWhat(text: string): Read {
  const found = new RegExp(`^(?:[Tt]he )?(?:(\\d+) )?(${THING})(?: (${CODE}))?$`).exec(text);
  if (found === null) return {};
  return strip({ howMany: found[1], what: found[2], which: found[3] });
}

/** " to Dana Orlo in Ashford on 12 March", as far as it goes. */
function readTail(tail: string): Read {
  const read: Read = {};
  let rest = tail;
  for (;;) {
    const when = new RegExp(`^ (?:on|in|at) (${WHEN})(?![\\w:])`).exec(rest);
    const whom = new RegExp(`^ (?:${PERSON_WORDS}) (${NAME})`).exec(rest);
    const by = new RegExp(`^ by (${NAME})`).exec(rest);
    const where = new RegExp(`^ (?:in|at) (${PLACE})`).exec(rest);
    if (when) read.when = when[1];
    else if (whom) read.whom = whom[1];
    else if (by) read.who = by[1];
    else if (where) read.where = where[1];
    else return read;
    rest = rest.slice((when ?? whom ?? by ?? where)![0].length);
  }
}

function strip<T extends object>(read: T): T {
  return Object.fromEntries(Object.entries(read).filter(([, value]) => value !== undefined)) as T;
}

/** The sentences of the text's lines; table rows and records are read apart. */
function sentencesOf(document: string): string[] {
  return document
    .split("\n")
    .filter((line) => !line.startsWith("|"))
    .flatMap((line) => line.split(/(?<=[.?!]) /));
}

/** Everything the text says with one of these verbs, in order. */
function eventsOf(document: string, verbs: readonly Verb[]): Read[] {
  const past = verbs.map((verb) => verb.past).join("|");
  const participle = verbs.map((verb) => verb.participle).join("|");
  const events: Read[] = [...rowsOf(document, verbs)];
  const sentences = sentencesOf(document);
  const clefts = new RegExp(`[Ii]t was (?:(?:in|on|at) )?(${WHEN}|${NAME}|${WHAT}|${PLACE}) (who|that) (.+)\\.$`);
  const active = new RegExp(
    `(?:(?:^|.*[ ,])(On|In|At) ([^,]+), )?(${NAME}|[Hh]e|[Ss]he) (?:${past})( (?:${WHAT})| it| them)?((?: .*)?)\\.$`,
  );
  const passive = new RegExp(`(${WHAT}) (?:was|were) (?:${participle})( .*)\\.$`);
  sentences.forEach((sentence, i) => {
    const before = sentences[i - 1] ?? "";
    const read =
      readCleft(clefts.exec(sentence), past) ??
      readPassive(passive.exec(sentence)) ??
      readActive(active.exec(sentence), before, /\bThere (?:he|she) /.test(sentence));
    if (read === undefined) return;
    const pronoun = / (?:it|them)[ .]/.test(sentence) || /(?:^|\W)(?:[Hh]e|[Ss]he) /.test(sentence);
    events.push({
      ...strip(read),
      text: withoutLead(
        read.who !== undefined && pronoun && !/\b[Ii]t was /.test(sentence) ? `${before} ${sentence}` : sentence,
      ),
    });
  });
  return events;
}

/** Cuts what a layout puts before a sentence: numbers, bullets, speakers, leads. */
function withoutLead(sentence: string): string {
  return sentence
    .replace(/^(?:\d+\. |\[\d+\] |- |(?:Note|News|One more thing|To be clear): |(?!Later)[A-Z][a-z]+: )+/, "")
    .replace(/^(?:(?:Note|News|One more thing|To be clear): )/, "");
}

function readCleft(found: RegExpExecArray | null, past: string): Read | undefined {
  if (found === null) return undefined;
  const [, focus, link, rest] = found;
  const clause = new RegExp(
    link === "who" ? `^()(?:${past})( (?:${WHAT}))?(.*)$` : `^(${NAME}) (?:${past})( (?:${WHAT}))?(.*)$`,
  ).exec(rest);
  if (clause === null) return undefined;
  const read: Read = { ...readTail(clause[3]), ...(clause[2] ? readWhat(clause[2].trim()) : {}) };
  if (link === "who") return { ...read, who: focus };
  read.who = clause[1];
  if (!clause[2]) return { ...read, ...readWhat(focus) };
  return new RegExp(`^(?:${WHEN})$`).test(focus) ? { ...read, when: focus } : { ...read, where: focus };
}

function readPassive(found: RegExpExecArray | null): Read | undefined {
  return found === null ? undefined : { ...readWhat(found[1]), ...readTail(found[2]) };
}

function readActive(found: RegExpExecArray | null, before: string, there: boolean): Read | undefined {
  if (found === null) return undefined;
  const [, word, front, who, object, rest] = found;
  if (object === undefined) return undefined;
  const read: Read = { ...readTail(rest) };
  if (word !== undefined) Object.assign(read, readTail(` ${word.toLowerCase()} ${front}`));
  const pronoun = /^(he|she)$/i.test(who);
  read.who = pronoun ? new RegExp(`(${NAME}) (?:was|had|is|went|travelled)`).exec(before)?.[1] : who;
  if (there) read.where = new RegExp(` to (${PLACE})\\.$`).exec(before)?.[1];
  const named = / (?:it|them)$/.test(object)
    ? new RegExp(`(?:about|of) (${WHAT})\\.$`).exec(before)?.[1]
    : object.trim();
  return named === undefined ? undefined : { ...read, ...readWhat(named) };
}

/** Rows of tables and records of `key: value` lines. */
function rowsOf(document: string, verbs: readonly Verb[]): Read[] {
  return recordsOf(document)
    .filter(({ fields }) => verbs.some((verb) => verb.past === fields.get("action")))
    .map(({ fields, text }) =>
      strip({
        who: fields.get("who"),
        what: fields.get("what"),
        howMany: fields.get("how many"),
        which: fields.get("number"),
        whom: fields.get("with whom")?.replace(/^\w+ /, ""),
        where: fields.get("where"),
        when: fields.get("when"),
        text,
      }),
    );
}

function recordsOf(document: string): { fields: Map<string, string>; text: string }[] {
  return document.split("\n\n").flatMap((block) => {
    const lines = block.split("\n");
    if (lines[0].startsWith("| ")) {
      const cells = (line: string) =>
        line
          .split("|")
          .slice(1, -1)
          .map((cell) => cell.trim());
      const columns = cells(lines[0]);
      return lines.slice(2).map((text) => ({
        fields: new Map(
          cells(text)
            .map((cell, i) => [columns[i], cell] as const)
            .filter(([, cell]) => cell !== "-"),
        ),
        text,
      }));
    }
    const pairs = lines.map((line) => /^([a-z ]+): (.+)$/.exec(line));
    if (!pairs.every((pair) => pair !== null)) return [];
    return [{ fields: new Map(pairs.map((pair) => [pair[1], pair[2]])), text: block }];
  });
}

/** Values that the text gives for a property of a thing, in order. */
function valuesOf(document: string, property: string, thing: string): string[] {
  const rows = recordsOf(document).filter(
    ({ fields }) => fields.get("property") === property && fields.get("thing") === thing,
  );
  const values = rows.map(({ fields }) => fields.get("value")!);
  const sentences = sentencesOf(document);
  const of = `${property} of the ${thing}`;
  const patterns = [
    new RegExp(`[Tt]he ${of} is(?: now)? (${VALUE})\\.$`),
    new RegExp(`(${VALUE}) is(?: now)? the ${of}\\.$`),
    new RegExp(`[Ii]t is(?: now)? (${VALUE}) that is given as the ${of}\\.$`),
  ];
  sentences.forEach((sentence, i) => {
    const its = (sentences[i - 1] ?? "").endsWith(` the ${thing}.`)
      ? new RegExp(`^Its ${property} is (${VALUE})\\.$`).exec(sentence)
      : null;
    const found = its ?? patterns.map((pattern) => pattern.exec(sentence)).find((one) => one !== null);
    if (found) values.push(found[1]);
  });
  return values;
}

/** One answer, or "not stated"; two different ones are reported as both. */
function decide(values: readonly (string | undefined)[], last: boolean): string {
  const stated = values.filter((value) => value !== undefined);
  if (stated.length === 0) return NOT_STATED;
  return last ? stated[stated.length - 1] : [...new Set(stated)].join(" | ");
}

/**
 * Answers a question of the generator from the text alone.
 * @returns the answer; "not stated" where the text gives none; `a | b` where it gives two
 */
export function oracle(document: string, question: string): string {
  // Opinions and instructions stand before the question itself.
  const asked =
    /(?:^|[.] )((?:What|Who|By whom|To whom|From whom|For whom|With whom|Where|When|How many|Which|Name|Copy) [^?]*[?.])$/.exec(
      question,
    );
  if (asked === null) throw new Error(`not a question of the generator: ${question}`);
  return answer(document, asked[1]);
}

function answer(document: string, question: string): string {
  const hop = /the thing that (.+?) ([a-z]+)(?=[ ?])|the person who ([a-z]+) the ([a-z]+ [a-z]+)/.exec(question);
  if (hop !== null) {
    const [phrase, who, thingVerb, personVerb, thing] = hop;
    const inner =
      who !== undefined
        ? find(document, thingVerb, { who }, "what")
        : find(document, personVerb, { what: thing }, "who");
    // Nothing, or two things: then the question has no one answer.
    if (inner === NOT_STATED || inner.includes(" | ")) return inner;
    return answer(document, question.replace(phrase, who !== undefined ? `the ${inner}` : inner));
  }
  return (
    listed(document, question) ??
    property(document, question) ??
    group(document, question) ??
    event(document, question) ??
    fail(question)
  );
}

function fail(question: string): never {
  throw new Error(`the oracle cannot read: ${question}`);
}

function find(document: string, verb: string, given: Read, slot: keyof Read, last = false): string {
  return decide(
    select(document, verb, given).map((read) => read[slot]),
    last,
  );
}

function select(document: string, verb: string, given: Read): Read[] {
  const wanted = Object.entries(strip(given));
  return eventsOf(document, verbsOf(verb)).filter((read) =>
    wanted.every(([slot, value]) => read[slot as keyof Read] === value),
  );
}

function listed(document: string, question: string): string | undefined {
  const key = /^What is ([a-z]+)\?$/.exec(question)?.[1];
  if (key === undefined) return undefined;
  const lines = document.split("\n");
  const patterns = [`^- ${key}: (.+)$`, `^- (.+) \\(${key}\\)$`, `^- (.+) for ${key}$`, `^- (.+) <- ${key}$`];
  return decide(
    lines.map((line) =>
      patterns.map((pattern) => new RegExp(pattern).exec(line)?.[1]).find((one) => one !== undefined),
    ),
    false,
  );
}

function property(document: string, question: string): string | undefined {
  const found = /^(?:What|Who) is the (current )?(.+) of the ([a-z]+ [a-z]+)\?$/.exec(question);
  if (found === null) return undefined;
  return decide(valuesOf(document, found[2], found[3]), found[1] !== undefined);
}

function group(document: string, question: string): string | undefined {
  const all = new RegExp(`^Name everything that (${NAME}) ([a-z]+)\\.$`).exec(question);
  if (all !== null)
    return select(document, all[2], { who: all[1] })
      .map((read) => read.what)
      .join(", ");
  const count = new RegExp(`^How many different things did (${NAME}) ([a-z]+) in all\\?$`).exec(question);
  if (count !== null)
    return String(new Set(select(document, count[2], { who: count[1] }).map((read) => read.what)).size);
  const more = new RegExp(`^Who ([a-z]+) more (${THING}), (${NAME}) or (${NAME})\\?$`).exec(question);
  if (more !== null) {
    const of = (who: string) => Number(find(document, more[1], { who, what: more[2] }, "howMany"));
    return of(more[3]) > of(more[4]) ? more[3] : more[4];
  }
  const copy = /^Copy everything that is said about the ([a-z]+ [a-z]+)\.$/.exec(question);
  if (copy === null) return undefined;
  const parts = everyVerb(document).filter((read) => read.what === copy[1]);
  return parts.map((read) => read.text).join("\n");
}

/** Every event of the text, in order, whatever its verb. */
function everyVerb(document: string): Read[] {
  const words = new Set(document.match(/\b[a-z]+\b/g));
  const verbs = [...words].filter(
    (word) => /ed$/.test(word) || FRAMES.some((frame) => frame.past === word || frame.participle === word),
  );
  return eventsOf(document, verbs.flatMap(verbsOf));
}

/** The patterns of questions about one event; named groups are what they give. */
const WHO_DID = `did (?<who>${NAME}) (?<last>last )?(?<verb>[a-z]+)`;
const WAS_DONE = "(?:was|were) (?<what>W) (?<last>last )?(?<verb>[a-z]+)(?<tail>.*)".replace("W", WHAT);
const QUESTIONS: readonly (readonly [keyof Read, string])[] = [
  ["who", `Who (?<last>last )?(?<verb>[a-z]+) (?<what>${WHAT})(?<tail>.*)`],
  ["who", `By whom ${WAS_DONE}`],
  ["what", `What ${WHO_DID}(?<tail>.*)`],
  ["what", "What was (?<last>last )?(?<verb>[a-z]+)(?<tail>.*)"],
  ["whom", `(?:To|From|For|With) whom ${WHO_DID} (?<what>${WHAT})(?<tail>.*)`],
  ["whom", `(?:To|From|For|With) whom ${WAS_DONE}`],
  ["howMany", `How many (?<what>${THING}) ${WHO_DID}(?<tail>.*)`],
  ["howMany", `How many (?<what>${THING}) were (?<last>last )?(?<verb>[a-z]+)(?<tail>.*)`],
  ["which", `Which (?<what>${THING}) ${WHO_DID}(?<tail>.*)`],
  ["which", `Which (?<what>${THING}) was (?<last>last )?(?<verb>[a-z]+)(?<tail>.*)`],
  ["where", `Where ${WHO_DID} (?<what>${WHAT})(?<tail>.*)`],
  ["where", `Where ${WAS_DONE}`],
  ["when", `When ${WHO_DID} (?<what>${WHAT})(?<tail>.*)`],
  ["when", `When ${WAS_DONE}`],
];

function event(document: string, question: string): string | undefined {
  for (const [slot, pattern] of QUESTIONS) {
    const groups = new RegExp(`^${pattern}\\?$`).exec(question)?.groups;
    if (groups === undefined) continue;
    const { verb, who, what, last, tail } = groups;
    const given = { ...readTail(tail), ...(what === undefined ? {} : readWhat(what)), ...strip({ who }) };
    return find(document, verb, given, slot, last !== undefined);
  }
  return undefined;
}
