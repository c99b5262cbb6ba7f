/** What a document is for: entities, verbs and filler of one split never occur in the other. */
export const SPLITS = ["train", "held-out"] as const;
export type Split = (typeof SPLITS)[number];

/** The [start, end) of a piece of text, in UTF-16 units. */
export type Span = readonly [start: number, end: number];

/** What can be asked of a fact. `value` is that of a property. */
export const SLOTS = ["who", "what", "howMany", "which", "whom", "where", "when", "value"] as const;
export type Slot = (typeof SLOTS)[number];

/** How a fact is said in a sentence. */
export const FORMS = ["active", "passive", "cleft", "pronoun"] as const;
export type Form = (typeof FORMS)[number];

/** How a document is laid out. */
export const RENDERERS = ["prose", "minutes", "letter", "markdown", "table", "key-value", "chat", "passages"] as const;
export type Renderer = (typeof RENDERERS)[number];

/** The kinds of question. */
export const KINDS = [
  "pairs",
  "reversed",
  "single",
  "latest",
  "two-hop",
  "not-stated",
  "several",
  "distractors",
  "wrong-opinion",
  "planted",
  "form",
  "counting",
  "comparison",
  "rewriting",
] as const;
export type Kind = (typeof KINDS)[number];

/** The answer where the document does not state one. */
export const NOT_STATED = "not stated";

/** An instruction about the answer's form in a question. */
export interface FormInstruction {
  /** Where it stands in the question's text. */
  readonly span: Span;
  readonly name: string;
  /** The answer of one who follows it. */
  readonly answer: string;
}

export interface Question {
  /** What is put to the model, with opinions and instructions. */
  readonly text: string;
  readonly kind: Kind;
  /** What the model is to answer (the target in training). */
  readonly answer: string;
  /** What the document states: a verbatim span, or several joined by ", ", or "not stated". */
  readonly stated: string;
  /** The span of each answer in the document; none where nothing is stated or the answer is counted. */
  readonly spans: readonly Span[];
  /** The sentences, rows or records that the answer rests on; in two hops, the first hop's first. */
  readonly evidence: readonly Span[];
  /** What is asked for. */
  readonly slot?: Slot;
  /** The wrong answer that the question asserts. */
  readonly wrong?: string;
  /** An instruction in the document that asks for something else. */
  readonly planted?: { readonly span: Span; readonly answer: string; readonly obeyed: boolean };
  /** Instructions about the answer's form; where two contradict each other, `answer` follows the first of this list. */
  readonly forms?: readonly FormInstruction[];
}

/** A document with questions whose answers are known. */
export interface DocumentCase {
  readonly document: string;
  readonly questions: readonly Question[];
  /** The layout; "list" for the bare lists of the curriculum. */
  readonly renderer: Renderer | "list";
  /** The forms that occur in it. */
  readonly forms: readonly Form[];
  /** Bases of the verbs that its facts use. */
  readonly verbs: readonly string[];
  /** Names of people, places, things and codes in its facts. */
  readonly entities: readonly string[];
  readonly pseudo: boolean;
  /** Answers a question from the text alone, by parsing it. */
  oracle(question: string): string;
}
