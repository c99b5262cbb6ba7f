import { cpus } from "node:os";
import { FoveaError } from "../../error.js";
import { command } from "../command.js";
import { formatBytes, formatNumber, json, table } from "../format.js";
import type { Io } from "../io.js";
import { jsonOption, loadOptions, modelName, toLoadOptions } from "../model.js";
import { choice, integer, integers, methodList, type OptionValues } from "../options.js";
import { progressLine } from "../progress.js";
import { type FoveaSetting, foveaSetting } from "../speed/fovea.js";
import { withQ8Gguf } from "../speed/gguf.js";
import { llamaSettings, Q8_0_SHARE } from "../speed/llama.js";
import { measureAll, type Ratio, type Row, ratios, type Setting } from "../speed/measure.js";

const { attention: _, config: _config, ...base } = loadOptions;

const options = {
  ...base,
  depths: integers("lengths of the text in the cache, e.g. 512,8k", "n,n,...", { min: 1, fallbackText: "512,2048" }),
  methods: methodList("methods to measure, separated by commas", ["full"]),
  runs: integer("runs per figure (medians are printed); depths of 16k and more run once", { min: 1, fallback: 5 }),
  decodeTokens: integer("tokens generated in a run", { min: 1, fallback: 128 }),
  warmUp: integer("tokens that every setting reads, and generates behind, before anything is measured", {
    min: 0,
    fallback: 1024,
  }),
  against: choice("measure this engine on the same weights, in turns with ours", ["llama.cpp"]),
  llamaBatches: integers("batch sizes of llama.cpp to try", "n,n", { min: 1, fallbackText: "512,2048" }),
  ...jsonOption,
};

/** What `bench speed` measured; `rows` and `ratios` are its JSON. */
export interface SpeedReport {
  readonly model: string;
  readonly date: string;
  readonly cpu: string;
  readonly threads: number;
  readonly node: string;
  /** Tokens generated in a run. */
  readonly decode_tokens: number;
  readonly rows: readonly Row[];
  readonly ratios: readonly Ratio[];
  /** Milliseconds that attaching each method took. */
  readonly attach_ms: Readonly<Record<string, number>>;
}

export const benchSpeed = command({
  name: "bench speed",
  summary: "measure speed: prefill, decode and cache size at given depths and methods",
  about:
    "fovea bench speed measures, for each depth and method, the tokens per second of reading a text of that length\n" +
    "(prefill), the tokens per second of generating behind it (decode) and the bytes of the cache. With --against\n" +
    "llama.cpp the same weights run there too, in turns with ours, with flash attention off and on and an f16 cache;\n" +
    "ratios are against its best setting for each figure. A model that is no GGUF file is converted to Q8_0 for it.",
  positionals: [],
  options,
  examples: [
    'fovea bench speed --depths 512,8k --methods "full,streaming-llm(sinks=4,window=512)"',
    "fovea bench speed -m model-q8_0.gguf --against llama.cpp --threads 2 --json",
  ],
  async run(values, _, io) {
    const report = await measureSpeed(values, io);
    io.out(values.json ? json(report, io.outTty) : describe(report));
  },
});

async function measureSpeed(values: OptionValues<typeof options>, io: Io): Promise<SpeedReport> {
  const name = modelName(values.model);
  const { resolve } = await import("../../index.js");
  // A mistake in a method string is better told before anything is measured.
  for (const method of values.methods) resolve(method);
  const threads = values.threads ?? cpus().length;
  const measure = (file: string): Promise<SpeedReport> => measureFile(file, { ...values, threads }, io);
  const report = values.against === undefined ? await measure(name) : await withQ8Gguf(name, measure);
  return { ...report, model: name };
}

async function measureFile(
  file: string,
  values: OptionValues<typeof options> & { threads: number },
  io: Io,
): Promise<SpeedReport> {
  const progress = progressLine(io);
  const { load } = await import("../../index.js");
  const model = await load(file, toLoadOptions({ ...values, attention: undefined }, io, progress));
  const settings: Setting[] = [];
  try {
    const { layers, kvHeads, headDim, vocab } = model.info.shape;
    const ours: FoveaSetting[] = [];
    for (const method of values.methods) ours.push(await foveaSetting(model, method));
    settings.push(...ours);
    if (values.against !== undefined) {
      const shape = { layers, kvHeads, headDim };
      const batches = values.llamaBatches ?? [512, 2048];
      settings.push(...(await llamaSettings({ file, threads: values.threads, batches, shape })));
    }
    const rows = await measureAll(settings, {
      depths: values.depths ?? [512, 2048],
      runs: values.runs,
      decodeTokens: values.decodeTokens,
      warmUp: Math.min(values.warmUp, Math.max(...(values.depths ?? [512, 2048]))),
      vocab,
      signal: io.signal,
      onStep: (text) => progress.note(text),
    });
    return {
      model: file,
      date: new Date().toISOString(),
      cpu: cpus()[0]?.model.trim() ?? "unknown",
      threads: values.threads,
      node: process.version,
      decode_tokens: values.decodeTokens,
      rows,
      ratios: ratios(rows, Q8_0_SHARE),
      attach_ms: Object.fromEntries(ours.map(({ method, attachMs }) => [method, Number(attachMs.toFixed(3))])),
    };
  } finally {
    progress.clear();
    for (const setting of settings) await setting.close();
    await model.close();
  }
}

function describe({ rows, ratios: compared, model, cpu, threads }: SpeedReport): string {
  if (rows.length === 0) throw new FoveaError("bad-input", "nothing was measured: no depths or no methods");
  const lines = [`${model} on ${cpu}, ${threads} threads\n`];
  lines.push(
    table(
      ["depth", "engine", "method", "prefill/s", "decode/s", "cache", "runs"],
      rows.map((row) => [
        String(row.depth),
        row.engine,
        row.method,
        formatNumber(row.prefill_tps),
        formatNumber(row.decode_tps),
        formatBytes(row.cache_bytes),
        String(row.runs),
      ]),
      [0, 3, 4, 5, 6],
    ),
  );
  if (compared.length > 0) {
    lines.push(
      "\nratios against llama.cpp's best setting (above 1: ours is faster; cache: ours over theirs)\n",
      table(
        ["depth", "method", "prefill", "decode", "cache/f16", "cache/q8_0"],
        compared.map((ratio) => [
          String(ratio.depth),
          ratio.method,
          ratio.prefill.toFixed(2),
          ratio.decode.toFixed(2),
          ratio.cache_f16.toFixed(2),
          ratio.cache_q8_0.toFixed(2),
        ]),
        [0, 2, 3, 4, 5],
      ),
    );
  }
  return lines.join("");
}
