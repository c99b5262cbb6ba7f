import { basename } from "node:path";
import { parseHeadList } from "../../attention/index.js";
import { type Answer, type AskedDocument, ask } from "../../context/index.js";
import { aborted } from "../../error.js";
import { command } from "../command.js";
import { readText } from "../files.js";
import { clip, formatBytes, formatNumber, json, visible } from "../format.js";
import { jsonOption, loadOptions, withModel } from "../model.js";
import { integer, text } from "../options.js";

export const askCommand = command({
  name: "ask",
  summary: "answer a question from files, with the lines that the answer rests on",
  about:
    "Reads the files, answers, and shows the lines that attention read most sharply while the answer was written. The last\n" +
    "argument is the question, those before it are files (- is stdin).",
  positionals: [
    { name: "file", help: "texts to answer from; - is stdin", many: true },
    { name: "question", help: "what is asked, in one argument" },
  ],
  options: {
    ...loadOptions,
    maxTokens: integer("most tokens of the answer", { min: 1, fallback: 64, short: "n" }),
    lines: integer("lines of evidence", { min: 0, fallback: 3 }),
    heads: text("a head-list file: only these heads' reading counts as evidence", "file"),
    ...jsonOption,
  },
  examples: [
    'fovea ask report.txt "When was the north light built?"',
    'fovea ask handbook.md notes.md "Who signs the orders?" -m hf:Qwen/Qwen2.5-0.5B-Instruct -a "quest(tokens=512)"',
  ],
  async run(values, positionals, io) {
    const files = positionals.slice(0, -1);
    const question = positionals[files.length];
    const documents: AskedDocument[] = [];
    for (const file of files)
      documents.push(
        file === "-" ? { name: "stdin", text: await io.input() } : { name: basename(file), text: await readText(file) },
      );
    const list = values.heads === undefined ? undefined : await readText(values.heads);
    return withModel(values, io, async (model, progress) => {
      const heads = list === undefined ? undefined : parseHeadList(list, model.info.shape, values.heads);
      const answer = await ask(model, {
        ...{ question, documents, maxTokens: values.maxTokens, lines: values.lines, signal: io.signal },
        ...(heads && { heads }),
        onProgress: (step) => progress.report(step),
        onText: (piece) => {
          progress.clear();
          if (!values.json) io.out(piece);
        },
      });
      progress.clear();
      if (answer.finish === "aborted") throw aborted(io.signal);
      if (values.json) io.out(json(answer, io.outTty));
      else {
        io.out(answer.text === "" ? "(no answer: the model ended at once)\n\n" : "\n\n");
        for (const line of evidenceLines(answer, documents.length > 1)) io.out(`${line}\n`);
        io.out(`\n${readingLine(answer)}\n`);
      }
      return 0;
    });
  },
});

/** "   88%  line 12: the text of it", a line for each piece of evidence. */
export function evidenceLines({ evidence }: Answer, named: boolean): string[] {
  return evidence.map(({ document, line, text: shown, share }) => {
    const where = named ? `${document}, line ${line}` : `line ${line}`;
    return `${`${Math.round(share * 100)}%`.padStart(5)}  ${where}: ${clip(visible(shown), 120)}`;
  });
}

/** What was read, at which cost. */
export function readingLine(answer: Answer): string {
  const { text: said, tokens_read, depth, cache_bytes, ms_per_token, prompt_tokens, prefill_ms, supported } = answer;
  const share = `${Math.round((100 * tokens_read) / depth)}% of ${depth} tokens read for a token of the answer`;
  const speed = ms_per_token === null ? "" : `${formatNumber(ms_per_token)} ms a token, `;
  const prompt = `${prompt_tokens} tokens of prompt in ${formatNumber(prefill_ms / 1000)} s`;
  const doubt = supported || said === "" ? "" : "The answer does not stand in these lines word for word. ";
  return `${doubt}${share}, ${speed}${prompt}, cache ${formatBytes(cache_bytes)}.`;
}
