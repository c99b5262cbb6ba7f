import { type Fact, isEvent, marked } from "./facts.js";
import { mark, plain } from "./marks.js";
import { hash, type Random } from "./random.js";
import type { Renderer, SLOTS } from "./types.js";
import type { Person } from "./words.js";

/** A piece of a document: a fact with its sentence, or other text. */
export interface Unit {
  readonly text: string;
  readonly fact?: Fact;
}

/** Names for salutations and speakers, which no fact uses. */
export interface Cast {
  readonly people: readonly Person[];
  readonly date: string;
}

type Render = (units: readonly Unit[], cast: Cast, random: Random) => string;

/** Lays pieces out; every fact's text has something before it on its line, so that its first word follows a space. */
export const RENDER: Record<Renderer, Render> = {
  prose: (units, _cast, random) => paragraphs(units, random).map(joined).join("\n\n"),

  minutes: (units, { people, date }, random) => {
    const items = paragraphs(units, random).map((part, i) => `${i + 1}. ${sentences(part)}`);
    const present = people.slice(0, 3).map((person) => person.name.split(" ")[0]);
    return [
      `Minutes of the meeting of ${date}`,
      `Present: ${present.join(", ")}`,
      ...items,
      "End of the minutes.",
    ].join("\n\n");
  },

  letter: (units, { people, date }, random) => {
    const [from, to] = people.map((person) => person.name.split(" ")[0]);
    return [date, `Dear ${to},`, ...paragraphs(units, random).map(joined), `Yours,\n${from}`].join("\n\n");
  },

  markdown: (units, _cast, random) => {
    const titles = random.shuffle(TITLES);
    const parts = paragraphs(units, random).map((part, i) => {
      const bullets = random.chance(0.5) || part.every((unit) => unit.fact === undefined);
      const body = bullets ? joined(part) : part.map((unit) => `- ${unit.text}`).join("\n");
      return i % 3 === 0 ? `## ${titles[(i / 3) % titles.length]}\n\n${body}` : body;
    });
    return [`# ${random.pick(TITLES)}`, ...parts].join("\n\n");
  },

  table: (units, _cast, random) => grouped(units, random, table),

  "key-value": (units, _cast, random) =>
    grouped(units, random, (facts) => facts.map((fact) => record(fact, random)).join("\n\n")),

  chat: (units, { people }, random) => {
    const speakers = people.slice(0, random.int(2, 3)).map((person) => person.name.split(" ")[0]);
    return rounds(units, random)
      .map((part, i) => `${speakers[i % speakers.length]}: ${sentences(part)}`)
      .join("\n");
  },

  passages: (units, _cast, random) =>
    paragraphs(units, random)
      .map((part, i) => `[${i + 1}] ${sentences(part)}`)
      .join("\n\n"),
};

const TITLES = ["Notes", "Summary", "Background", "Details", "Remarks", "Report", "Overview", "Observations"];
const LEADS = ["Note:", "News:", "One more thing:", "To be clear:"];

const sentences = (units: readonly Unit[]): string => units.map((unit) => unit.text).join(" ");

/** A paragraph; one that would begin with a fact gets a lead, which says nothing of the fact's place among the questions. */
function joined(units: readonly Unit[]): string {
  const first = units[0].fact;
  return first === undefined
    ? sentences(units)
    : `${LEADS[hash(plain(units[0].text)) % LEADS.length]} ${sentences(units)}`;
}

function cut(units: readonly Unit[], size: () => number): Unit[][] {
  const parts: Unit[][] = [];
  for (let i = 0; i < units.length; ) {
    const n = size();
    parts.push(units.slice(i, i + n));
    i += n;
  }
  return parts;
}

const paragraphs = (units: readonly Unit[], random: Random): Unit[][] => cut(units, () => random.int(3, 7));
const rounds = (units: readonly Unit[], random: Random): Unit[][] => cut(units, () => random.int(1, 3));

/** Facts that stand close together become one block; text between blocks becomes paragraphs. */
function grouped(units: readonly Unit[], random: Random, block: (facts: readonly Fact[]) => string): string {
  const parts: string[] = [];
  for (let i = 0; i < units.length; ) {
    const isFact = units[i].fact !== undefined;
    let end = i;
    while (end < units.length && (units[end].fact !== undefined) === isFact) end++;
    const run = units.slice(i, end);
    if (isFact) parts.push(block(run.map((unit) => unit.fact!)));
    else parts.push(...paragraphs(run, random).map(sentences));
    i = end;
  }
  return parts.join("\n\n");
}

/** Columns of the two tables. */
export const EVENT_COLUMNS = ["who", "action", "what", "how many", "number", "with whom", "where", "when"] as const;
export const PROPERTY_COLUMNS = ["thing", "property", "value"] as const;

/** A table of the events and one of the properties, each in the order of the facts. */
function table(facts: readonly Fact[]): string {
  const blocks = [facts.filter(isEvent), facts.filter((fact) => !isEvent(fact))].filter((rows) => rows.length > 0);
  return blocks
    .map((rows) => {
      const columns = isEvent(rows[0]) ? EVENT_COLUMNS : PROPERTY_COLUMNS;
      const head = [columns, columns.map(() => "---")].map((row) => `| ${row.join(" | ")} |`);
      return [...head, ...rows.map((fact) => mark(String(fact.id), `| ${cells(fact).join(" | ")} |`))].join("\n");
    })
    .join("\n\n");
}

function cells(fact: Fact): string[] {
  if (!isEvent(fact)) return [marked(fact, "what"), fact.property.name, marked(fact, "value")];
  const cell = (slot: (typeof SLOTS)[number]) => marked(fact, slot);
  const optional = (present: unknown, text: string) => (present === undefined ? "-" : text);
  return [
    cell("who"),
    fact.frame.past,
    cell("what"),
    optional(fact.count, cell("howMany")),
    optional(fact.code, cell("which")),
    optional(fact.whom, `${fact.frame.preposition} ${cell("whom")}`),
    optional(fact.where, cell("where")),
    optional(fact.when, cell("when")),
  ];
}

/** A record of `key: value` lines; in every other one the keys are in another order. */
function record(fact: Fact, random: Random): string {
  const columns: readonly string[] = isEvent(fact) ? EVENT_COLUMNS : PROPERTY_COLUMNS;
  const lines = cells(fact)
    .map((cell, i) => [columns[i], cell])
    .filter(([, cell]) => cell !== "-")
    .map(([column, cell]) => `${column}: ${cell}`);
  return mark(String(fact.id), (random.chance(0.5) ? lines : random.shuffle(lines)).join("\n"));
}
