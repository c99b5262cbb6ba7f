import { extname } from "node:path";
import type { AttentionMap, Model, PromptInput } from "../../engine/api.js";
import { checkAbort } from "../../error.js";
import { command } from "../command.js";
import { writeAtomic } from "../files.js";
import { json, visible } from "../format.js";
import { mostRead, type PlacedMap, svgMap, terminalMap } from "../heatmap.js";
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

/** Maps with more rows than this are cut to their last rows unless --rows asks for others. */
const MOST_ROWS = 4096;

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
      const map = await readMap(model, prompt, layer, head, values.rows, io.signal);
      progress.clear();
      if (values.out !== undefined && type === ".svg") {
        const title = `${model.info.name}: layer ${layer}, ${head === "mean" ? "mean of all heads" : `head ${head}`}`;
        await writeAtomic(values.out, svgMap(map, { title }));
      } else if (values.out !== undefined) await writeAtomic(values.out, json(toJson(map, head), false));
      if (values.json && type !== ".json") io.out(json(toJson(map, head), false));
      else if (values.out !== undefined) io.err(`wrote ${values.out}\n`);
      else {
        io.out(terminalMap(map, { width: io.columns, color: io.color }));
        io.out(`\n${describe(map, head)}\n`);
      }
      return 0;
    });
  },
});

function fromEnd(given: number, count: number, what: string): number {
  const index = given < 0 ? count + given : given;
  if (index >= 0 && index < count) return index;
  throw new UsageError(`there is no ${what} ${given}: the model has ${count} ${what}s, 0 to ${count - 1}`);
}

/** One head's map, or the mean over the layer's heads (one map at a time is held). */
async function readMap(
  model: Model,
  prompt: PromptInput,
  layer: number,
  head: HeadChoice,
  asked: readonly [number, number] | undefined,
  signal: AbortSignal,
): Promise<PlacedMap> {
  const text = typeof prompt === "string" ? model.prompt(prompt) : prompt;
  const length = "ids" in text ? text.ids.length : text.length;
  const rows = asked ?? (length > MOST_ROWS ? ([length - MOST_ROWS, length] as const) : undefined);
  if (rows && rows[1] > length) throw new UsageError(`--rows ends at ${rows[1]}, but the text has ${length} tokens`);
  const at = (h: number): Promise<AttentionMap> => model.attention(text, { layer, head: h, ...(rows && { rows }) });
  const firstRow = rows?.[0] ?? 0;
  if (head !== "mean") return { ...(await at(head)), firstRow };
  const { heads } = model.info.shape;
  const first = await at(0);
  const sum = Float32Array.from(first.data);
  for (let h = 1; h < heads; h++) {
    checkAbort(signal);
    const { data } = await at(h);
    for (let i = 0; i < sum.length; i++) sum[i] += data[i];
  }
  return { ...first, firstRow, data: sum.map((value) => value / heads) };
}

function toJson(map: PlacedMap, head: HeadChoice): object {
  const { layer, rows, columns, firstRow, tokens, data } = map;
  const round = (value: number): number => Number(value.toPrecision(6));
  const lines = Array.from({ length: rows }, (_, i) =>
    Array.from(data.subarray(i * columns, (i + 1) * columns), round),
  );
  return { layer, head, rows, columns, first_row: firstRow, tokens, data: lines };
}

function describe(map: AttentionMap, head: HeadChoice): string {
  const reads = mostRead(map, map.rows - 1, 6).map(
    ({ index, token, weight }) => `"${visible(token)}" at ${index} (${(weight * 100).toFixed(1)}%)`,
  );
  const which = head === "mean" ? "mean of all heads" : `head ${head}`;
  return `layer ${map.layer}, ${which}; the last token reads ${reads.join(", ") || "nothing"}`;
}
