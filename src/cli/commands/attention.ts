import { extname } from "node:path";
import type { Model } from "../../engine/api.js";
import { command } from "../command.js";
import { writeAtomic } from "../files.js";
import { json, visible } from "../format.js";
import { mostRead, svgMap, terminalMap } from "../heatmap.js";
import { mapReducer, type ObservedMap } from "../map-reducer.js";
import { jsonOption, loadOptions, promptOptions, readPrompt, withModel } from "../model.js";
import { integer, type Option, text, UsageError } from "../options.js";

type HeadChoice = number | "mean";

const headOption: Option<HeadChoice> = {
  help: "a head by number, or mean: the average of the layer's heads",
  value: "n|mean",
  fallback: "mean",
  parse: (given) => {
    if (given.toLowerCase() === "mean") return "mean";
    const head = given.trim() === "" ? Number.NaN : Number(given);
    if (Number.isSafeInteger(head)) return head;
    throw new UsageError(`--head takes a head's number or mean, got "${given}"`);
  },
};

const rowsOption: Option<readonly [number, number] | undefined> = {
  help: "only these reading tokens, [from, to)",
  value: "from:to",
  fallback: undefined,
  parse: (given) => {
    const match = /^(\d+):(\d+)$/.exec(given.trim());
    if (match && Number(match[1]) < Number(match[2])) return [Number(match[1]), Number(match[2])];
    throw new UsageError(`--rows takes a range such as 0:64, got "${given}"`);
  },
};

/** Most rows and columns that are kept of a map; JSON has one cell a token up to here, pictures are smaller anyway. */
const CELLS = 2048;

export const attention = command({
  name: "attention",
  summary: "what each token reads, as a heat map",
  about:
    "Draws one head's attention weights: a row for each reading token, a column for each token read. Colours show the\n" +
    "square root of a weight's share of the largest. Long texts are made smaller: sums over columns, means over rows.",
  options: {
    ...promptOptions,
    ...loadOptions,
    layer: integer("layer; negative counts from the last", { fallback: -1, short: "l" }),
    head: headOption,
    rows: rowsOption,
    out: text("write to file.svg or file.json instead of the terminal", "file", { short: "o" }),
    ...jsonOption,
  },
  examples: [
    'fovea attention -p "The cat sat on the mat because it was tired" --layer 1 --head 0',
    "fovea attention --file report.txt --layer -1 --out map.svg",
  ],
  async run(values, _positionals, io) {
    const type = values.out === undefined ? undefined : extname(values.out).toLowerCase();
    if (type !== undefined && type !== ".svg" && type !== ".json") {
      throw new UsageError(`--out writes .svg or .json, got "${values.out}"`);
    }
    const prompt = await readPrompt(values, io);
    return withModel(values, io, async (model, progress) => {
      const layer = fromEnd(values.layer, model.info.shape.layers, "layer");
      const head = values.head === "mean" ? "mean" : fromEnd(values.head, model.info.shape.heads, "head");
      const text = typeof prompt === "string" ? model.prompt(prompt) : prompt;
      const ids = "ids" in text ? text.ids : text;
      const rows = values.rows;
      if (rows && rows[1] > ids.length) {
        throw new UsageError(`--rows ends at ${rows[1]}, but the text has ${ids.length} tokens`);
      }
      const reducer = mapReducer({ layer, head, cells: CELLS, ...(rows && { rows }) });
      const { map } = await model.observe(text, { map: reducer }, { signal: io.signal });
      progress.clear();
      const tokens = ids.map((id) => model.tokenizer.piece(id));
      const shown: Shown = { layer, head, tokens, map };
      const asJson = (): string => json(toJson(shown), false);
      if (values.out !== undefined) {
        const content = type === ".svg" ? svgMap(map, { title: title(shown, model), tokens }) : asJson();
        await writeAtomic(values.out, content);
        if (!values.json) io.err(`wrote ${values.out}\n`);
      }
      if (values.json) io.out(asJson());
      else if (values.out === undefined) {
        io.out(terminalMap(map, { tokens, width: io.columns, color: io.color }));
        io.out(`\n${describe(shown)}\n`);
      }
      return 0;
    });
  },
});

interface Shown {
  readonly layer: number;
  readonly head: HeadChoice;
  readonly tokens: readonly string[];
  readonly map: ObservedMap;
}

function fromEnd(given: number, count: number, what: string): number {
  const index = given < 0 ? count + given : given;
  if (index >= 0 && index < count) return index;
  throw new UsageError(`there is no ${what} ${given}: the model has ${count} ${what}s, 0 to ${count - 1}`);
}

function headName({ head }: Shown): string {
  return head === "mean" ? "mean of all heads" : `head ${head}`;
}

function title(shown: Shown, model: Model): string {
  const methods = model.info.methods.length > 0 ? `, ${model.info.methods.join(" + ")}` : "";
  const name = model.info.name.split(/[\\/]/).at(-1);
  return `${name}, layer ${shown.layer}, ${headName(shown)}${methods}: each row reads columns`;
}

/** `row_tokens` and `column_tokens` say where each cell begins when a text is too long for one cell a token. */
function toJson({ layer, head, tokens, map }: Shown): object {
  const { rows, columns, data, rowEdges, columnEdges } = map;
  const round = (value: number): number => Number(value.toPrecision(6));
  const lines = Array.from({ length: rows }, (_, i) =>
    Array.from(data.subarray(i * columns, (i + 1) * columns), round),
  );
  return { layer, head, rows, columns, tokens, row_tokens: rowEdges, column_tokens: columnEdges, data: lines };
}

function describe(shown: Shown): string {
  const reads = mostRead(shown.map.last, 6).map(
    ({ index, weight }) => `"${visible(shown.tokens[index])}" at ${index} (${(weight * 100).toFixed(1)}%)`,
  );
  return `layer ${shown.layer}, ${headName(shown)}; the last token reads ${reads.join(", ") || "nothing"}`;
}
