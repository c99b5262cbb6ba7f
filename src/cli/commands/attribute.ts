import { type AttributedPiece, type Attribution, attribute, attributedPieces } from "../../context/index.js";
import { openCheckpoint } from "../../models/index.js";
import { attributionHtml } from "../attribution-html.js";
import { paint, RESET, scoreColor } from "../colors.js";
import { command } from "../command.js";
import { readText, writeAtomic } from "../files.js";
import { clip, json, printable, table, visible } from "../format.js";
import type { Io } from "../io.js";
import { jsonOption, loadOptions, modelName, openOptions } from "../model.js";
import { bytes, choice, integer, text, UsageError } from "../options.js";
import { progressLine } from "../progress.js";

const { model, cacheFolder, threads } = loadOptions;

export const attributeCommand = command({
  name: "attribute",
  summary: "which words of a prompt an answer rests on, by gradients",
  about:
    "One backward pass through the model: how the log-probability of the given answer changes with each token of the\n" +
    "prompt. --method input multiplies a token's embedding by its gradient, --method attention the attention weights that\n" +
    "read the token by theirs. Blue speaks for the answer, red against it.",
  options: {
    prompt: text("the text that the answer follows", "text", { short: "p" }),
    file: text("read the text from a file; - is stdin", "file", { short: "f" }),
    answer: text('the answer, with the space before it: --answer " Ada"', "text"),
    model,
    method: choice("what is multiplied by its gradient", ["input", "attention"], { fallbackText: "attention" }),
    of: choice(
      "what is attributed; where the model is certain, only the logit has gradients",
      ["probability", "logit"],
      {
        fallbackText: "probability",
      },
    ),
    by: choice("pieces that are scored", ["token", "word", "line"], { fallbackText: "word" }),
    html: text("write a page that shows it", "file"),
    top: integer("pieces listed under the text", { min: 0, fallback: 8 }),
    memory: bytes("most bytes that the backward pass may take (4GB)"),
    threads,
    cacheFolder,
    ...jsonOption,
  },
  examples: [
    'fovea attribute -p "The keeper is Ada. The cook is Tom. The keeper is" --answer " Ada"',
    'fovea attribute --file report.txt --answer " 1889" --by line --html why.html',
  ],
  async run(values, _positionals, io) {
    const { answer, method = "attention", by = "word", of = "probability" } = values;
    if (answer === undefined || answer === "") throw new UsageError("which answer? give one with --answer");
    const prompt = await promptOf(values, io);
    const progress = progressLine(io);
    try {
      const checkpoint = await openCheckpoint(modelName(values.model), openOptions(values.cacheFolder, io, progress));
      try {
        progress.note("running backwards");
        const result = await attribute(checkpoint, {
          prompt,
          answer,
          method,
          of,
          ...(values.memory !== undefined && { memory: values.memory }),
          ...(values.threads !== undefined && { threads: values.threads }),
        });
        progress.clear();
        const pieces = attributedPieces(result, by);
        if (values.html !== undefined) await writeAtomic(values.html, attributionHtml(result, pieces));
        if (values.json) io.out(json(asJson(result, pieces), io.outTty));
        else show(result, pieces, values.top, io);
        if (values.html !== undefined && !values.json) io.out(`wrote ${values.html}\n`);
        if (of === "probability" && result.logprob > CERTAIN)
          io.err("note: the model is certain of the answer, so these gradients are next to nothing; try --of logit\n");
      } finally {
        await checkpoint.close();
      }
    } finally {
      progress.clear();
    }
  },
});

/** Log-probability from which on gradients say nothing. */
const CERTAIN = -1e-4;

async function promptOf({ prompt, file }: { prompt?: string; file?: string }, io: Io): Promise<string> {
  if ((prompt === undefined) === (file === undefined))
    throw new UsageError(
      prompt === undefined ? "no text was given: -p or --file" : "give one of -p and --file, not both",
    );
  const given = prompt ?? (file === "-" ? await io.input() : await readText(file as string));
  // an answer begins with its space; a line end behind a file's last line is no part of the question
  const trimmed = file === undefined ? given : given.trimEnd();
  if (trimmed === "") throw new UsageError("the text is empty");
  return trimmed;
}

function asJson({ method, answer, logprob, tokens, heads }: Attribution, pieces: readonly AttributedPiece[]): unknown {
  return {
    method,
    answer,
    logprob,
    pieces,
    tokens,
    ...(heads && { heads: { layers: heads.layers, heads: heads.heads, data: [...heads.data] } }),
  };
}

function show({ answer, logprob }: Attribution, pieces: readonly AttributedPiece[], top: number, io: Io): void {
  const largest = pieces.reduce((a, p) => Math.max(a, Math.abs(p.score)), 0);
  if (io.color > 0) {
    for (const { text, score } of pieces) {
      const piece = printable(text);
      const body = piece.trimStart();
      io.out(piece.slice(0, piece.length - body.length));
      const shown = Math.abs(score) > largest / 20;
      io.out(shown ? `${paint(scoreColor(score, largest, [20, 20, 20]), 48, io.color)}${body}${RESET}` : body);
    }
    io.out("\n\n");
  }
  io.out(
    `log-probability of ${visible(JSON.stringify(answer))}: ${logprob.toFixed(4)} (${(100 * Math.exp(logprob)).toFixed(2)}%)\n`,
  );
  const best = [...pieces].sort((a, b) => Math.abs(b.score) - Math.abs(a.score)).slice(0, top);
  if (best.length > 0)
    io.out(
      `\n${table(
        ["score", "at", "text"],
        best.map((p) => [p.score.toFixed(4), String(p.start), clip(visible(p.text.trim()), 60)]),
        [0, 1],
      )}`,
    );
}
