/**
 * Trains nano by the stages of curriculum.ts. Ctrl-C saves and stops, the same command goes on:
 *
 *   npm run build && npm run nano:train                            until it is stopped
 *   npm run nano:train -- --steps 8000 --decay 1000                to its end: the rate falls to 0 over the last 1000
 *   npm run nano:train -- --from models/nano --stage "who again"   another leg: from finished weights, at that stage
 *   fovea convert -m out/nano-run/step-0008000 -o models/nano --type f16
 */
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { createTokenizer, openCheckpoint, type Tokenizer } from "fovea/models";
import { CHAT_TEMPLATE, generateDocument, KINDS, loadFiller, SPECIAL_TOKEN_LIST, trainingText } from "fovea/tasks";
import {
  type Batch,
  checkpoints,
  type DataSource,
  decoder,
  type Evaluator,
  fineTune,
  type Metric,
  muon,
  train,
  trainTokenizerFiles,
} from "fovea/train";
import { Draw, documentOf, POSITIONS, STAGES, type Stage, stageData } from "./curriculum.js";

const { values } = parseArgs({
  options: {
    folder: { type: "string", default: "out/nano-run" },
    from: { type: "string" },
    stage: { type: "string" },
    layers: { type: "string", default: "5" },
    width: { type: "string", default: "256" },
    heads: { type: "string", default: "8" },
    "kv-heads": { type: "string", default: "4" },
    mlp: { type: "string", default: "640" },
    rate: { type: "string", default: "4e-3" },
    steps: { type: "string", default: "100000" },
    spread: { type: "string", default: "0.06" },
    decay: { type: "string", default: "1" },
    threads: { type: "string", default: "2" },
  },
});
const { folder, from } = values;
mkdirSync(folder, { recursive: true });
const first = values.stage === undefined ? 0 : STAGES.findIndex((stage) => stage.name === values.stage);
if (first < 0) throw new Error(`no stage "${values.stage}": one of ${STAGES.map((stage) => stage.name).join(", ")}`);
const filler = await loadFiller("data/filler");

/** Tokenizers beside nano's own for training, each without a part of its merges. */
const OTHERS = 24;
const DROPPED = 0.2;

/** The tokenizer, of texts as they are trained on, and others with the same ids. */
function tokenizers(): [Tokenizer, ...Tokenizer[]] {
  const file = `${folder}/tokenizer.json`;
  if (from !== undefined && !existsSync(file)) {
    const [tokenizer, config] = ["tokenizer", "tokenizer_config"].map((name) =>
      readFileSync(`${from}/${name}.json`, "utf8"),
    );
    writeFileSync(file, `{"tokenizer":${tokenizer},"config":${config}}`);
  }
  if (!existsSync(file)) {
    const kinds = KINDS.filter((kind) => kind !== "rewriting");
    const texts = Array.from(
      { length: 4000 },
      (_, i) => trainingText(generateDocument({ seed: `tokenizer ${i}`, length: 900, kind: kinds, filler })).text,
    );
    const files = trainTokenizerFiles(texts, {
      vocabulary: 2048,
      special: SPECIAL_TOKEN_LIST,
      chatTemplate: CHAT_TEMPLATE,
    });
    writeFileSync(file, JSON.stringify(files));
  }
  const { tokenizer, config } = JSON.parse(readFileSync(file, "utf8"));
  const { merges } = tokenizer.model;
  return [
    createTokenizer(tokenizer, config),
    ...Array.from({ length: OTHERS }, (_, i) => {
      const random = new Draw(i);
      const kept = merges.filter(() => random.next() >= DROPPED);
      return createTokenizer({ ...tokenizer, model: { ...tokenizer.model, merges: kept } }, config);
    }),
  ];
}

const pieces = tokenizers();
const [words] = pieces;
const model =
  from !== undefined
    ? fineTune(await openCheckpoint(from))
    : decoder({
        name: "nano",
        layers: Number(values.layers),
        width: Number(values.width),
        heads: Number(values.heads),
        kvHeads: Number(values["kv-heads"]),
        mlp: Number(values.mlp),
        positions: POSITIONS,
        rotaryBase: 500_000,
        tokenizer: words,
        chatTemplate: CHAT_TEMPLATE,
        spread: Number(values.spread),
        seed: 1,
      });

/**
 * The step at which each stage began; written down, so that a run that goes on knows what it was doing. Steps behind the
 * last checkpoint are taken again, and so is what was decided in them.
 */
const journal = `${folder}/stages.json`;
const [newest] = (await checkpoints(folder)).slice(-1);
const written: number[] = existsSync(journal)
  ? JSON.parse(readFileSync(journal, "utf8"))
  : Array<number>(first + 1).fill(0);
const starts = written.filter((step) => step <= (newest?.step ?? 0));
const stageAt = (step: number): number => starts.findLastIndex((from) => from <= step);
const sources = STAGES.map((stage) => stageData(stage, pieces, filler));
const data: DataSource = {
  name: "nano",
  vocabulary: words.vocabSize,
  batch: (step) => sources[stageAt(step)].batch(step),
};

/** Held-out documents of each sort that a stage is judged by. */
const PROBES = 8;

/** Held-out questions of a stage, a document a row, its sorts in turns. */
function probe(stage: Stage, length: number): Batch[] {
  const rows = Math.max(1, Math.floor(8192 / length));
  const count = Math.ceil((PROBES * stage.sorts.length) / rows);
  return Array.from({ length: count }, (_, b) => {
    const batch = {
      ...{ rows, length, ids: new Int32Array(rows * length), targets: new Int32Array(rows * length).fill(-1) },
      ...{ weights: new Float32Array(rows * length), documents: new Int32Array(rows * length).fill(1) },
    };
    for (let r = 0; r < rows; r++) {
      const number = b * rows + r;
      const sort = stage.sorts[number % stage.sorts.length];
      const tokens = sort.tokens ?? 0.8 * length;
      const { ids, weights } = documentOf(sort, tokens, `probe ${number}`, "held-out", words, filler);
      const end = Math.min(length, ids.length);
      for (let i = 0; i < end; i++) {
        batch.ids[r * length + i] = ids[i];
        batch.documents[r * length + i] = 0;
        if (i + 1 === end || !((weights?.[i + 1] ?? 0) > 1)) continue;
        batch.targets[r * length + i] = ids[i + 1];
        batch.weights[r * length + i] = 1;
      }
    }
    return batch;
  });
}

/** Share of the answers of which every token is the most likely one, by sort of document. */
async function answered(evaluator: Evaluator, probes: readonly Batch[], sorts: number): Promise<number[]> {
  const counts = Array.from({ length: sorts }, () => [0, 0]);
  let number = 0;
  for (const { rows, length, weights, targets, ...rest } of probes) {
    const { predicted } = await evaluator.evaluate({ rows, length, weights, targets, ...rest });
    for (let r = 0; r < rows; r++, number++) {
      let right: boolean | undefined;
      for (let i = r * length; i <= (r + 1) * length; i++) {
        const on = i < (r + 1) * length && weights[i] > 0;
        if (on) right = (right ?? true) && predicted[i] === targets[i];
        else if (right !== undefined) {
          counts[number % sorts][1]++;
          if (right) counts[number % sorts][0]++;
          right = undefined;
        }
      }
    }
  }
  return counts.map(([right, all]) => right / Math.max(1, all));
}

let current = -1;
let probes: readonly Batch[] = [];
const controller = new AbortController();
process.on("SIGINT", () => controller.abort());
const started = performance.now();
await train({
  ...{
    model,
    data,
    steps: Number(values.steps),
    folder,
    saveEvery: 250,
    logEvery: 50,
    threads: Number(values.threads),
  },
  optimizer: muon({ rate: Number(values.rate), betas: [0.9, 0.98], weightDecay: 0.05 }),
  schedule: (step) => Math.min(1, (step + 1) / 100, (Number(values.steps) - step) / Number(values.decay)),
  signal: controller.signal,
  evaluate: {
    every: 100,
    async measure(evaluator, step) {
      const index = stageAt(step - 1);
      const stage = STAGES[index];
      if (index !== current) {
        current = index;
        probes = probe(stage, Math.max(...stage.lengths));
      }
      const shares = await answered(evaluator, probes, stage.sorts.length);
      const mean = shares.reduce((a, b) => a + b, 0) / shares.length;
      if ((mean >= stage.until || step - starts[index] >= stage.atMost) && index + 1 < STAGES.length) {
        starts.push(step);
        writeFileSync(`${journal}.tmp`, JSON.stringify(starts));
        renameSync(`${journal}.tmp`, journal);
      }
      console.log(`${step} ${stage.name}: ${shares.map((x) => x.toFixed(2)).join(" ")}`);
      return { stage: index, right: mean };
    },
  },
  onMetric: ({ step, loss = 0, norm = 0, tokens = 0, tokens_per_second, right }: Metric) => {
    const minutes = (performance.now() - started) / 60_000;
    console.log(
      `  ${step} loss ${loss.toFixed(3)} norm ${norm.toFixed(2)} ${tokens_per_second} tokens/s, ` +
        `${(tokens / 1e6).toFixed(2)}M tokens, ${minutes.toFixed(1)} min, right ${right?.toFixed(3) ?? ""}`,
    );
  },
});
