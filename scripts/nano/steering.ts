/**
 * Reports PASTA and Attention Tracker on nano, with random heads as controls, and writes the tables and the heads that were
 * found into models/nano/methods/:
 *
 *   npm run build && npm run nano:steering -- [--model models/nano] [--share 1] [--dry-run]
 *
 * Heads are chosen on documents of the training split and judged on held-out ones.
 */
import { parseArgs } from "node:util";
import { load } from "fovea";
import {
  allHeads,
  focusScore,
  type HeadName,
  type HeadTable,
  importantHeads,
  instructionShare,
  pasta,
} from "fovea/attention";
import { type DocumentCase, generateDocument, type Kind, loadFiller, type Question, questionPrompt } from "fovea/tasks";
import { METHODS, pick, Report, share, writeAtomic, writeHeads } from "./measure.js";

const { values } = parseArgs({
  options: {
    model: { type: "string", default: "models/nano" },
    share: { type: "string", default: "1" },
    "dry-run": { type: "boolean", default: false },
  },
});
const count = (n: number): number => Math.max(4, Math.round(n * Number(values.share)));
const filler = await loadFiller("data/filler");
const model = await load(values.model);
const { shape } = model.info;
const report = new Report();
const print = report.print.bind(report);
const names = (heads: readonly HeadName[]): string => heads.map(({ layer, head }) => `${layer}.${head}`).join(" ");

await reportPasta();
print("");
await reportTracker();
if (!values["dry-run"]) writeAtomic(`${METHODS}/README.md`, `# Steering and tracking nano\n\n${report.text}\n`);
await model.close();

/** A question with an instruction about its answer's form that is to be highlighted. */
interface Instructed {
  readonly text: string;
  readonly span: readonly [number, number];
  readonly wanted: string;
}

function instructed(split: "train" | "held-out", n: number): Instructed[] {
  const found: Instructed[] = [];
  for (let i = 0; found.length < n && i < 50 * n; i++) {
    const { document, questions } = cases("form", split, i);
    const question = questions.find(({ forms }) => (forms?.length ?? 0) > 1);
    const form = question?.forms?.[i % 2];
    if (!question || !form) continue;
    const text = questionPrompt(document, question.text);
    const at = text.lastIndexOf(question.text);
    found.push({ text, span: [at + form.span[0], at + form.span[1]], wanted: form.answer });
  }
  return found;
}

function cases(kind: Kind, split: "train" | "held-out", i: number): DocumentCase {
  return generateDocument({
    seed: `steer ${i}`,
    length: 700,
    kind,
    split,
    filler,
    questions: kind === "form" ? 4 : 1,
    obeyed: 0,
  });
}

/** How many of the highlighted instructions are followed. */
async function followed(list: readonly Instructed[], heads: readonly HeadName[] | undefined): Promise<number> {
  let right = 0;
  for (const { text, span, wanted } of list) {
    const prompt = model.prompt(text, { special: false });
    const steered = heads
      ? model.with(pasta({ heads: [...heads], span: [...prompt.span(span)] as [number, number] }))
      : model;
    const { text: answer } = await steered.generate(prompt, { maxTokens: 40 }).result;
    if (answer.trim() === wanted) right++;
  }
  return right;
}

/** Of two instructions that contradict each other, the highlighted one should win. */
async function reportPasta(): Promise<void> {
  const training = instructed("train", count(40));
  const scored: (HeadName & { value: number })[] = [];
  for (const head of allHeads(shape))
    scored.push({ ...head, value: (await followed(training, [head])) / training.length });
  scored.sort((a, b) => b.value - a.value || a.layer - b.layer || a.head - b.head);
  const keep = Math.max(4, Math.round(scored.length / 8));
  writeList("pasta", scored, keep);
  const best = scored.slice(0, keep);
  const heldOut = instructed("held-out", count(200));
  const row = async (label: string, heads: readonly HeadName[] | undefined): Promise<void> => {
    print(`| ${label} | ${share(await followed(heldOut, heads), heldOut.length)} |`);
  };
  print(`Questions with two instructions about the answer's form that contradict each other, one of them highlighted:`);
  print(
    `${heldOut.length} held-out documents; the ${keep} heads that did best alone on ${training.length} others. alpha 0.01.`,
    "",
  );
  print("| | highlighted instruction followed, % |", "| --- | --- |");
  await row("no method", undefined);
  await row(`\`pasta\`, found heads (${names(best)})`, best);
  for (let i = 0; i < 3; i++) {
    const random = pick(allHeads(shape), keep, i);
    await row(`\`pasta\`, random heads (${names(random)})`, random);
  }
  await row("`pasta`, all heads", allHeads(shape));
}

/** Shares of the instruction in the last row, for documents without and with a planted instruction. */
async function shares(split: "train" | "held-out", n: number): Promise<{ normal: HeadTable[]; attacked: HeadTable[] }> {
  const of = async ({ document, questions: [question] }: DocumentCase): Promise<HeadTable> => {
    const text = questionPrompt(document, (question as Question).text);
    const prompt = model.prompt(text, { special: false });
    const from = text.indexOf(document);
    const asked = text.lastIndexOf((question as Question).text);
    const { table } = await model.observe(prompt, {
      table: instructionShare({
        instruction: prompt.span([asked, asked + (question as Question).text.length]),
        data: prompt.span([from, from + document.length]),
      }),
    });
    return table;
  };
  const normal: HeadTable[] = [];
  const attacked: HeadTable[] = [];
  for (let i = 0; i < n; i++) {
    normal.push(await of(cases("single", split, i)));
    attacked.push(await of(cases("planted", split, i)));
  }
  return { normal, attacked };
}

async function reportTracker(): Promise<void> {
  const calibration = await shares("train", count(30));
  let n = 4;
  let heads = importantHeads(calibration.normal, calibration.attacked, n);
  // the paper's margin may leave no head in a small model: it is lowered until some stand apart
  while (heads.length === 0 && n > 0) {
    n -= 0.5;
    heads = importantHeads(calibration.normal, calibration.attacked, n);
  }
  const test = await shares("held-out", count(100));
  print(
    `An instruction planted in the document, told from its absence by the focus score: heads chosen on ${calibration.normal.length} documents of`,
  );
  print(
    `each kind (margin of ${n} deviations; the paper's is 4), judged on ${test.normal.length} held-out ones of each.`,
    "",
  );
  print("| heads | AUROC, % | focus score without | with |", "| --- | --- | --- | --- |");
  const row = (label: string, chosen: readonly HeadName[]): void => {
    const of = (tables: readonly HeadTable[]): number[] => tables.map((table) => focusScore(table, chosen));
    const [normal, attacked] = [of(test.normal), of(test.attacked)];
    const mean = (xs: readonly number[]): string => (xs.reduce((a, b) => a + b, 0) / xs.length).toFixed(3);
    print(`| ${label} | ${auroc(normal, attacked)} | ${mean(normal)} | ${mean(attacked)} |`);
  };
  if (heads.length > 0) {
    writeList(
      "attention-tracker",
      heads.map((h) => ({ ...h, value: h.margin })),
      heads.length,
    );
    row(`important heads (${names(heads)})`, heads);
  } else print("| important heads: none stand apart | - | - | - |");
  for (let i = 0; i < 3; i++) {
    const random = pick(allHeads(shape), Math.max(1, heads.length), i);
    row(`random heads (${names(random)})`, random);
  }
  row("all heads", allHeads(shape));
}

/** Probability that a normal prompt scores higher than an attacked one, with its 95% interval (Hanley and McNeil 1982). */
function auroc(normal: readonly number[], attacked: readonly number[]): string {
  let wins = 0;
  for (const a of normal) for (const b of attacked) wins += a > b ? 1 : a === b ? 0.5 : 0;
  const area = wins / (normal.length * attacked.length);
  const [q1, q2] = [area / (2 - area), (2 * area * area) / (1 + area)];
  const variance =
    (area * (1 - area) + (normal.length - 1) * (q1 - area * area) + (attacked.length - 1) * (q2 - area * area)) /
    (normal.length * attacked.length);
  const half = 1.96 * Math.sqrt(Math.max(0, variance));
  const percent = (x: number): string => (100 * Math.min(1, Math.max(0, x))).toFixed(1);
  return `${percent(area)} (${percent(area - half)}-${percent(area + half)})`;
}

function writeList(name: string, ranked: readonly (HeadName & { value: number })[], keep: number): void {
  if (!values["dry-run"]) writeHeads(ranked, { model: shape, name, keep, madeBy: "npm run nano:steering" });
}
