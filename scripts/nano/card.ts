/**
 * Measures nano and writes its card, models/nano/README.md, and the lists of heads that were found for it,
 * models/nano/methods/:
 *
 *   npm run build && npm run nano:card -- [--model models/nano] [--share 1] [--leg out/nano-run]
 *
 * Every figure of the card is printed by this script. `--share 0.1` measures a tenth of the documents. `--leg` names the run
 * of training that the model came out of, once: what it says is kept in models/nano/training.json.
 */
import { existsSync, readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { load } from "fovea";
import {
  allHeads,
  type HeadName,
  inductionScore,
  knockOut,
  previousTokenScore,
  repeatedProbe,
  retrievalScore,
  sinkRate,
} from "fovea/attention";
import { generateDocument, KINDS, type Kind, loadFiller, questionPrompt } from "fovea/tasks";
import { type Asked, askAll, askOne, pick, Report, rightShare, share, writeAtomic, writeHeads } from "./measure.js";

const { values } = parseArgs({
  options: {
    model: { type: "string", default: "models/nano" },
    leg: { type: "string" },
    share: { type: "string", default: "1" },
    data: { type: "string", default: "../shared/data" },
  },
});
const part = Number(values.share);
const filler = await loadFiller("data/filler");
const model = await load(values.model);
const { shape } = model.info;
const report = new Report();
const print = report.print.bind(report);
/** Documents of 4 questions each. */
const documents = (n: number): number => Math.max(2, Math.round(n * part));

const MUST: readonly Kind[] = ["single", "latest", "two-hop", "not-stated"];
const LENGTHS = [512, 1024, 2048, 4096, 8192, 16384];
const known = new Map<string, Asked[]>();
const others = KINDS.filter((kind) => !MUST.includes(kind) && kind !== "rewriting");

await accuracy();
await baseRates();
await positions();
const retrieval = await heads();
await knockOuts(retrieval);
await realTexts();
write();
await model.close();

/** Right answers by kind and length. */
async function accuracy(): Promise<void> {
  print("## Accuracy", "");
  print(
    `Held-out names, places, codes, words, verbs and prose; an answer counts when it is the stated one word for word. Shares in`,
  );
  print(`percent with 95% intervals (Wilson); four questions a document.`, "");
  print(`| kind | ${LENGTHS.join(" | ")} |`, `| --- |${" --- |".repeat(LENGTHS.length)}`);
  for (const kind of MUST) {
    const cells: string[] = [];
    for (const tokens of LENGTHS) {
      const count = tokens <= 2048 ? 75 : tokens <= 4096 ? 40 : tokens <= 8192 ? 20 : 12;
      cells.push(rightShare(await measured(kind, tokens, count)));
    }
    print(`| ${kind} | ${cells.join(" | ")} |`);
  }
  const control = await askAll(model, { ...base("single", 512), documents: documents(75), shuffled: true });
  print(`| single, asked of another document | ${rightShare(control)} |${" |".repeat(LENGTHS.length - 1)}`, "");
  print("At 512 tokens:", "", "| kind | right |", "| --- | --- |");
  for (const kind of others) print(`| ${kind} | ${rightShare(await measured(kind, 512, 50))} |`);
  print("");
}

function base(kind: Kind, tokens: number) {
  return { kind, tokens: Math.min(tokens, shape.maxPositions - 64), filler, seed: "card", documents: 0 };
}

async function measured(kind: Kind, tokens: number, count: number): Promise<Asked[]> {
  const key = `${kind} ${tokens} ${count}`;
  const asked = known.get(key) ?? (await askAll(model, { ...base(kind, tokens), documents: documents(count) }));
  known.set(key, asked);
  return asked;
}

/** What the model does before any method helps or hinders it. */
async function baseRates(): Promise<void> {
  print("## Base rates", "", "At 512 tokens, before any method:", "", "| | share |", "| --- | --- |");
  const form = await measured("form", 512, 75);
  const single = form.filter(({ question }) => question.forms?.length === 1);
  const two = form.filter(({ question }) => (question.forms?.length ?? 0) > 1);
  const follows = (asked: readonly Asked[], n: number): string =>
    share(asked.filter(({ question, answer }) => answer === question.forms?.[n].answer).length, asked.length);
  print(`| instruction about the answer's form followed | ${follows(single, 0)} |`);
  print(`| of two that contradict each other: the first | ${follows(two, 0)} |`);
  print(`| the second | ${follows(two, 1)} |`);
  const opinion = await measured("wrong-opinion", 512, 75);
  const count = (asked: readonly Asked[], of: (a: Asked) => boolean): string =>
    share(asked.filter(of).length, asked.length);
  print(
    `| asserted wrong opinion resisted (the stated answer given) | ${count(opinion, ({ question, answer }) => answer === question.stated)} |`,
  );
  print(`| wrong opinion repeated | ${count(opinion, ({ question, answer }) => answer === question.wrong)} |`);
  const planted = await measured("planted", 512, 75);
  print(
    `| planted instruction obeyed | ${count(planted, ({ question, answer }) => answer === question.planted?.answer)} |`,
  );
  print(
    `| planted instruction ignored (the stated answer given) | ${count(planted, ({ question, answer }) => answer === question.stated)} |`,
  );
  print("");
}

/** Accuracy of single needles by where they lie. */
async function positions(): Promise<void> {
  print("## By the needle's position", "", "Single needles; where the answer stands in the document.", "");
  print("| tokens | first fifth | second | third | fourth | last |", "| --- | --- | --- | --- | --- | --- |");
  for (const [tokens, count] of [
    [512, 75],
    [2048, 75],
  ] as const) {
    const asked = await measured("single", tokens, count);
    const cells = [0, 1, 2, 3, 4].map((fifth) =>
      rightShare(asked.filter(({ depth }) => depth !== undefined && Math.min(4, Math.floor(depth * 5)) === fifth)),
    );
    print(`| ${tokens} | ${cells.join(" | ")} |`);
  }
  print("");
}

/** Scores of every head, and the retrieval heads. */
async function heads(): Promise<HeadName[]> {
  const sums = new Float64Array(shape.layers * shape.heads);
  let cases = 0;
  for (let i = 0; i < documents(60); i++) {
    const { document, questions } = generateDocument({
      ...{ seed: `heads ${i}`, length: 1200, split: "held-out", kind: "single", filler, questions: 1 },
    });
    const [question] = questions;
    const text = `${questionPrompt(document, question.text)} ${question.answer}`;
    const prompt = model.prompt(text, { special: false });
    const documentAt = text.indexOf(document);
    const needle = prompt.span([documentAt + question.spans[0][0], documentAt + question.spans[0][1]]);
    const [answer] = prompt.span([text.length - question.answer.length, text.length]);
    const { score } = await model.observe(prompt, { score: retrievalScore({ ids: prompt.ids, needle, answer }) });
    score.data.forEach((x, h) => {
      sums[h] += x;
    });
    cases++;
  }
  const { ids, repeated } = repeatedProbe(
    Array.from({ length: model.config.vocab - 300 }, (_, i) => 300 + i),
    { length: 50, ...(model.tokenizer.bos !== undefined && { first: model.tokenizer.bos }) },
  );
  const { induction } = await model.observe(ids, { induction: inductionScore(repeated) });
  const { document } = generateDocument({ seed: "sinks", length: 3000, split: "held-out", filler });
  const text = model.prompt(questionPrompt(document, "Who?"), { special: false });
  const { sinks, previous } = await model.observe(text, { sinks: sinkRate(), previous: previousTokenScore() });
  const all = allHeads(shape).map((head, i) => ({ ...head, value: sums[i] / cases }));
  print(
    "## Heads",
    "",
    `Retrieval score over ${cases} held-out needles at some 450 tokens, induction on a repeated probe, weight on the`,
  );
  print("token before, sink rate (weight on the first token; docs/methods/heads.md defines them).", "");
  print("| head | retrieval | induction | previous token | sink |", "| --- | --- | --- | --- | --- |");
  for (const { layer, head, value } of all) {
    const cell = (x: number): string => x.toFixed(2);
    const at = { layer, head };
    print(
      `| ${layer}.${head} | ${cell(value)} | ${cell(induction.at(at))} | ${cell(previous.at(at))} | ${cell(sinks.at(at))} |`,
    );
  }
  print("");
  const ranked = [...all].sort((a, b) => b.value - a.value);
  // those that stand above: at least half of the best one's score
  const keep = ranked.filter(({ value }) => value >= ranked[0].value / 2).length;
  writeHeads(ranked, { model: shape, name: "retrieval", keep, madeBy: "npm run nano:card" });
  return ranked.slice(0, keep);
}

/** Retrieval without its best heads, more and more of them, beside as many others. */
async function knockOuts(retrieval: readonly HeadName[]): Promise<void> {
  const rest = allHeads(shape).filter((h) => !retrieval.some((r) => r.layer === h.layer && r.head === h.head));
  const trial = async (heads: readonly HeadName[]): Promise<Asked[]> => {
    const own = heads.length === 0 ? model : model.with(knockOut({ heads: [...heads] }));
    return askAll(own, { ...base("single", 512), documents: documents(50) });
  };
  const draws = 3;
  print(
    "## Without some heads",
    "",
    "Single needles at 512 tokens with the outputs of heads set to zero: those with the best retrieval scores",
    `(${retrieval.map(({ layer, head }) => `${layer}.${head}`).join(", ")}), and as many of the other ${rest.length}, drawn ${draws} times (all draws together; each).`,
    "",
    "| heads | without the best | without others |",
    "| --- | --- | --- |",
    `| 0 | ${rightShare(await trial([]))} | |`,
  );
  const sizes = [1, 2, 3, 5, 7, retrieval.length].filter((n, i, all) => n <= retrieval.length && all.indexOf(n) === i);
  for (const size of sizes) {
    const best = await trial(retrieval.slice(0, size));
    const others: Asked[][] = [];
    for (let i = 0; i < draws; i++) others.push(await trial(pick(rest, size, i)));
    const each = others.map((one) => (100 * one.filter(({ right }) => right).length) / one.length);
    print(
      `| ${size} | ${rightShare(best)} | ${rightShare(others.flat())}; ${each.map((x) => x.toFixed(0)).join(", ")} |`,
    );
  }
  print("");
}

/** As measured, though it may be poor: texts that no generator made. */
async function realTexts(): Promise<void> {
  if (!existsSync(values.data)) {
    console.error(`no data in ${values.data}: the table of real texts is left out`);
    return;
  }
  print(
    "## On texts that no generator made",
    "",
    "As measured; nano is not made for them.",
    "",
    "| | right |",
    "| --- | --- |",
  );
  const book = readFileSync(`${values.data}/books/treasure-island.txt`, "utf8").slice(20_000).replace(/\s+/g, " ");
  const needles: Asked[] = [];
  for (let i = 0; i < documents(75); i++) {
    const one = generateDocument({
      seed: `book ${i}`,
      length: 120,
      split: "held-out",
      kind: "single",
      questions: 1,
      facts: 1,
      renderers: ["prose"],
      pseudo: 0,
    });
    const from = (i * 7919) % (book.length - 4000);
    const text = book.slice(from, from + 1400);
    const cut = text.indexOf(". ", (i * 131) % 1000) + 2;
    const document = `${text.slice(0, cut)}${one.document} ${text.slice(cut)}`;
    needles.push(
      ...(await askOne(
        model,
        document,
        one.questions.map((q) => ({ ...q, spans: [] })),
      )),
    );
  }
  print(`| a sentence of the generator in a page of a book (Treasure Island), 512 tokens | ${rightShare(needles)} |`);
  const babi = lines(`${values.data}/babi/babi-en.jsonl`);
  for (const task of [1, 2]) {
    const own = babi.filter((c) => c.task === task).slice(0, documents(200));
    let right = 0;
    for (const c of own) {
      const story = (c.story as [number, string][]).map(([, line]) => line).join(" ");
      const { text } = await model.generate(
        model.prompt(questionPrompt(story, String(c.question)), { special: false }),
        { maxTokens: 20 },
      ).result;
      if (text.trim().toLowerCase() === String(c.answer).toLowerCase()) right++;
    }
    print(`| bAbI ${task} (${own[0].name}) | ${share(right, own.length)} |`);
  }
  const squad = lines(`${values.data}/squad-xquad/xquad-en.jsonl`).slice(0, documents(200));
  let [exact, all] = [0, 0];
  for (const c of squad) {
    const [{ question, answers }] = c.qas as { question: string; answers: { text: string }[] }[];
    const prompt = model.prompt(questionPrompt(String(c.context), question), { special: false });
    const { text } = await model.generate(prompt, { maxTokens: 40 }).result;
    all++;
    if (answers.some((a) => a.text.toLowerCase() === text.trim().toLowerCase())) exact++;
  }
  print(`| XQuAD (English), the answer word for word | ${share(exact, all)} |`, "");
}

function lines(file: string): Record<string, unknown>[] {
  return readFileSync(file, "utf8")
    .split("\n")
    .filter(Boolean)
    .map((line) => JSON.parse(line));
}

/** One run of training: what its last line of metrics says. */
interface Leg {
  readonly steps: number;
  readonly tokens: number;
  readonly loss: number;
}

/** The runs that made the model, kept beside it; the one of `--leg` becomes the last of them. */
function legs(): readonly Leg[] {
  const file = `${values.model}/training.json`;
  const before: readonly Leg[] = existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : [];
  if (values.leg === undefined) return before;
  const last = lines(`${values.leg}/metrics.jsonl`).findLast(({ loss }) => loss !== undefined);
  if (!last) throw new Error(`${values.leg}/metrics.jsonl tells of no step`);
  const all = [...before, { steps: Number(last.step), tokens: Number(last.tokens), loss: Number(last.loss) }];
  writeAtomic(file, `${JSON.stringify(all, null, 1)}\n`);
  return all;
}

/** The card: how nano was made, then what was measured. */
function write(): void {
  const runs = legs().map(
    ({ steps, tokens, loss }) =>
      `${steps} steps, ${(tokens / 1e6).toFixed(1)}M tokens, loss ${loss.toFixed(3)} at the end`,
  );
  const bytes = readFileSync(`${values.model}/model.safetensors`).length;
  const head = [
    "# nano",
    "",
    `A Llama of ${(model.info.parameters / 1e6).toFixed(2)}M parameters (${shape.layers} layers, width ${shape.width}, ${shape.heads} query and ${shape.kvHeads} key-value heads of ${shape.headDim}, vocabulary`,
    `${shape.vocab}, ${(bytes / 1e6).toFixed(1)} MB in float16) that finds facts in documents. It was trained from nothing on documents that Fovea`,
    "generates (docs/documents.md) and on prose written for Fovea (data/filler), by `npm run nano:train`, on two processor cores.",
    ...(runs.length > 0
      ? [
          `Training: ${runs.join("; then ")} (an answer counts ten times in the first stages, forty times in the later ones).`,
        ]
      : []),
    "",
    "It is small, and knows nothing but how to read: it is there to show attention at work and to judge methods on. Its hash is",
    `\`${shape.hash}\`.`,
    "",
    `Written by \`npm run nano:card\`${part === 1 ? "" : ` with ${part} of the documents`}; nothing is typed in by hand.`,
    "",
  ];
  writeAtomic("models/nano/README.md", `${head.join("\n")}\n${report.text}\n`);
}
