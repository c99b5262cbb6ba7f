/**
 * What nano learns, in the order in which it learns it. A stage is left when enough of its held-out questions are answered
 * right, not when time is up.
 */

import type { Tokenizer } from "fovea/models";
import { type DocumentOptions, type Filler, generateDocument, trainingTokens } from "fovea/tasks";
import { type DataSource, generated, type TokenDocument } from "fovea/train";

/** Weight of an answer's tokens in the loss, beside 1 of all others, unless a stage says another. */
const ANSWER = 10;

/** Positions that nano knows. */
export const POSITIONS = 16384;

/** One sort of document. */
export interface Sort extends Omit<DocumentOptions, "seed" | "length" | "filler" | "count"> {
  /** How often, beside the others of the stage. */
  readonly weight: number;
  /** Without filler. */
  readonly bare?: boolean;
  /** Tokens of the document; default: as many as a sequence has room for, or half or a quarter of that. */
  readonly tokens?: number;
}

export interface Stage {
  readonly name: string;
  /** Tokens of a sequence: drawn anew for each step. */
  readonly lengths: readonly number[];
  /** Tokens of a batch. */
  readonly size: number;
  readonly sorts: readonly Sort[];
  /** Weight of an answer's tokens, beside 1 of all others. Default 10. */
  readonly answer?: number;
  /** Most leaps in the positions of a document. */
  readonly gaps: number;
  /** Share of right answers at which the stage is left. */
  readonly until: number;
  /** Steps at which it is left in any case. */
  readonly atMost: number;
}

const LISTS = ["pairs", "reversed"] as const;

const MORE = ["several", "distractors", "wrong-opinion", "planted", "form"] as const;
const REPORTED = ["counting", "comparison"] as const;

/** Matching is to be learnt, not vocabulary: words, verbs and properties are made up in much of what is trained on. */
const MADE_UP = { pseudo: 0.4, coined: 0.5 } as const;

/** Facts, most of them without filler. */
const ANY_WORDS: readonly Sort[] = [
  { weight: 4, kind: "single", bare: true, ...MADE_UP },
  { weight: 2, kind: "single", ...MADE_UP },
  { weight: 1, kind: "latest", bare: true, ...MADE_UP },
  { weight: 0.5, kind: "not-stated", bare: true, ...MADE_UP },
  { weight: 1.5, kind: "two-hop", bare: true, ...MADE_UP },
];

/** "Ada Moreau painted the shed. Who painted the shed?" */
const ACTIVE_WHO: Omit<Sort, "weight"> = {
  ...{ kind: "single", bare: true, slots: ["who"], forms: ["active"], renderers: ["prose"], ...MADE_UP },
};
/** "The shed was painted by Ada Moreau. What did Ada Moreau paint?" */
const PASSIVE_WHAT: Omit<Sort, "weight"> = {
  ...{ kind: "single", bare: true, slots: ["what"], forms: ["passive"], renderers: ["prose"], ...MADE_UP },
};

/** What nano is to know in the end. */
const EVERY_KIND: readonly Sort[] = [
  { weight: 0.5, kind: LISTS },
  { weight: 6, kind: "single", ...MADE_UP },
  { weight: 2, kind: "latest", ...MADE_UP },
  { weight: 1, kind: "not-stated", ...MADE_UP },
  { weight: 2, kind: "two-hop", ...MADE_UP },
  { weight: 1.5, kind: MORE, ...MADE_UP },
  { weight: 0.3, kind: REPORTED },
];

export const STAGES: readonly Stage[] = [
  {
    name: "two facts",
    ...{ lengths: [128], size: 4096, gaps: 0, until: 0.84, atMost: 3000 },
    sorts: [{ weight: 1, kind: "pairs", facts: 2, questions: 2, tokens: 50 }],
  },
  {
    name: "lists",
    ...{ lengths: [128, 256], size: 4096, gaps: 1, until: 0.85, atMost: 650 },
    sorts: [
      { weight: 2, kind: "pairs" },
      { weight: 1, kind: "reversed" },
      { weight: 3, kind: "single", bare: true },
    ],
  },
  {
    name: "facts",
    ...{ lengths: [128, 256], size: 4096, gaps: 1, until: 0.85, atMost: 3000 },
    sorts: [
      { weight: 1, kind: LISTS },
      { weight: 5, kind: "single", bare: true },
      { weight: 1, kind: "latest", bare: true },
      { weight: 1, kind: "not-stated", bare: true },
      { weight: 1, kind: "two-hop", bare: true },
    ],
  },
  {
    name: "sentences",
    ...{ lengths: [256, 512], size: 4096, gaps: 2, until: 0.8, atMost: 1500 },
    sorts: [
      { weight: 1, kind: LISTS },
      { weight: 3, kind: "single", bare: true },
      { weight: 3, kind: "single" },
      { weight: 1, kind: "latest" },
      { weight: 1, kind: "not-stated" },
      { weight: 2, kind: "two-hop" },
    ],
  },
  {
    name: "any words",
    ...{ lengths: [256, 256, 512], size: 4096, answer: 40, gaps: 1, until: 0.85, atMost: 850 },
    sorts: [{ weight: 0.5, kind: "pairs" }, ...ANY_WORDS],
  },
  {
    // "Ada Moreau painted the shed. Who painted the shed?": what is asked for stands before what it is found by
    name: "value first",
    ...{ lengths: [128, 128, 256], size: 4096, answer: 40, gaps: 0, until: 0.88, atMost: 1200 },
    sorts: [
      { weight: 2, kind: "reversed", facts: 2, questions: 2, tokens: 50 },
      { weight: 2, kind: "reversed", facts: 4, questions: 4, tokens: 110 },
      { weight: 1, kind: "reversed" },
      { weight: 0.5, kind: "pairs" },
      { weight: 2, kind: "single", bare: true, ...MADE_UP },
    ],
  },
  {
    // which of two: to be told from what else is said of it, before it or behind it
    name: "few facts",
    ...{ lengths: [128, 256, 256], size: 4096, answer: 40, gaps: 0, until: 0.88, atMost: 1700 },
    sorts: [
      {
        ...{ weight: 3, kind: "single", facts: 3, questions: 2, tokens: 85, bare: true },
        ...{ slots: ["who", "what"], renderers: ["prose"], ...MADE_UP },
      },
      { weight: 2, kind: "single", facts: 3, questions: 2, tokens: 100, bare: true, ...MADE_UP },
      { weight: 3, kind: "single", facts: 6, questions: 4, tokens: 190, bare: true, ...MADE_UP },
      { weight: 2, kind: "single", bare: true, ...MADE_UP },
      { weight: 0.5, kind: LISTS },
    ],
  },
  {
    name: "either order",
    ...{ lengths: [256, 256, 512], size: 4096, answer: 40, gaps: 1, until: 0.85, atMost: 650 },
    sorts: [{ weight: 1, kind: LISTS }, ...ANY_WORDS],
  },
  {
    // what stands before its key alone, until it is found
    name: "who did it",
    ...{ lengths: [128, 128, 256], size: 4096, answer: 40, gaps: 0, until: 0.88, atMost: 900 },
    sorts: [
      { weight: 4, facts: 3, questions: 2, tokens: 85, ...ACTIVE_WHO },
      { weight: 2, facts: 3, questions: 2, tokens: 85, ...PASSIVE_WHAT },
      { weight: 2, kind: "reversed", facts: 3, questions: 3, tokens: 80 },
      { weight: 2, kind: "single", facts: 6, questions: 4, tokens: 190, bare: true, ...MADE_UP },
      { weight: 1, kind: "single", bare: true, ...MADE_UP },
    ],
  },
  {
    name: "kinds",
    ...{ lengths: [256, 512, 512], size: 4096, answer: 40, gaps: 2, until: 0.9, atMost: 700 },
    sorts: EVERY_KIND,
  },
  {
    name: "long",
    ...{ lengths: [512, 1024, 2048], size: 4096, answer: 40, gaps: 2, until: 2, atMost: 500 },
    sorts: EVERY_KIND,
  },
  // A second leg, from the weights of the first (--from models/nano --stage "who again"). nano came out of the first alone:
  // 1540 steps of the second, 6.3M tokens, made nothing better.
  {
    // what stands before its key, of more and more facts, beside everything else
    name: "who again",
    ...{ lengths: [128, 256, 256, 512], size: 4096, answer: 40, gaps: 0, until: 0.9, atMost: 880 },
    sorts: [
      { weight: 2.5, facts: 3, questions: 2, tokens: 85, ...ACTIVE_WHO },
      { weight: 3, facts: 6, questions: 4, tokens: 190, ...ACTIVE_WHO },
      { weight: 1, facts: 4, questions: 3, tokens: 130, ...PASSIVE_WHAT },
      { weight: 1, kind: "reversed", facts: 3, questions: 3, tokens: 80 },
      { weight: 1.5, kind: "reversed", facts: 6, questions: 6, tokens: 150 },
      { weight: 2, kind: "single", bare: true, ...MADE_UP },
      { weight: 1.5, kind: "single", ...MADE_UP },
      { weight: 1.5, kind: ["latest", "two-hop"], bare: true, ...MADE_UP },
      { weight: 0.5, kind: "not-stated", bare: true, ...MADE_UP },
    ],
  },
  {
    name: "kinds again",
    ...{ lengths: [256, 512, 512, 1024], size: 4096, answer: 40, gaps: 2, until: 0.9, atMost: 350 },
    sorts: EVERY_KIND,
  },
  {
    name: "long again",
    ...{ lengths: [512, 1024, 2048], size: 4096, answer: 40, gaps: 2, until: 2, atMost: 100_000 },
    sorts: EVERY_KIND,
  },
];

/** Characters a token of a document of these kinds, for sizing it without tokenising it again and again. */
const density = (sort: Sort): number => (LISTS.some((kind) => [sort.kind].flat().includes(kind)) ? 1.7 : 2.7);

/** Share of the documents that are read with another tokenizer than nano's own. */
const OTHER_PIECES = 0.3;

/**
 * Makes the documents of a stage.
 * @param tokenizers nano's, then some with the same ids that join fewer pieces: words are met in many pieces, as in
 *   "Subword Regularization" (Kudo 2018, arXiv:1804.10959), but the same word in the same pieces throughout a document
 */
export function stageData(
  stage: Stage,
  tokenizers: readonly [Tokenizer, ...Tokenizer[]],
  filler: readonly Filler[],
): DataSource {
  const { name, lengths, size, sorts, gaps } = stage;
  const total = sorts.reduce((sum, sort) => sum + sort.weight, 0);
  let room = lengths[0];
  const make = (index: number): TokenDocument => {
    const random = new Draw(index);
    let at = random.next() * total;
    const sort = sorts.find((s) => (at -= s.weight) < 0) ?? sorts[0];
    const tokens = sort.tokens ?? random.pick([1, 1, 1, 0.5, 0.25]) * room;
    const [own, ...others] = tokenizers;
    const tokenizer = random.next() < OTHER_PIECES ? random.pick(others) : own;
    return documentOf(sort, tokens, `nano ${index}`, "train", tokenizer, filler, stage.answer);
  };
  const source = generated(name, tokenizers[0].vocabSize, make, {
    ...{ rows: size / lengths[0], length: lengths[0] },
    positions: { upTo: POSITIONS, gaps },
    batch: (step) => {
      room = lengths[Math.floor(new Draw(step).next() * lengths.length)];
      return { rows: Math.max(1, Math.round(size / room)), length: room };
    },
  });
  return source;
}

/** A document with its questions, about as long as asked for. */
export function documentOf(
  sort: Sort,
  tokens: number,
  seed: string,
  split: "train" | "held-out",
  tokenizer: Tokenizer,
  filler: readonly Filler[],
  answer = ANSWER,
): TokenDocument {
  const { weight: _, bare, tokens: fixed, ...options } = sort;
  const draw = new Draw(hash(seed));
  // each question takes some 25 tokens with its answer
  const most = Math.max(1, Math.floor(tokens / (bare ? 36 : 60)));
  const wanted = Math.max(4, Math.min(12, tokens / 128)) + Math.floor(draw.next() * 5);
  const questions = options.questions ?? Math.min(Math.floor(wanted), most);
  let left = fixed ?? Math.max(90, tokens - 26 * questions);
  for (;;)
    try {
      const length = Math.floor(left * density(sort));
      const made = generateDocument({ split, questions, ...options, seed, length, ...(!bare && { filler }) });
      return trainingTokens(made, tokenizer, { answer });
    } catch (error) {
      // some layouts and kinds need more room than others
      if (left > 600) throw error;
      left *= 1.5;
    }
}

function hash(text: string): number {
  let h = 2166136261;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 16777619);
  return h >>> 0;
}

/** Uniform numbers from a seed. */
export class Draw {
  #state: number;
  constructor(seed: number) {
    this.#state = seed >>> 0;
    this.next();
  }
  next(): number {
    this.#state = (this.#state + 0x9e3779b9) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 16), 0x85ebca6b);
    t = Math.imul(t ^ (t >>> 13), 0xc2b2ae35);
    return ((t ^ (t >>> 16)) >>> 0) / 2 ** 32;
  }
  pick<T>(list: readonly T[]): T {
    return list[Math.floor(this.next() * list.length)];
  }
}
