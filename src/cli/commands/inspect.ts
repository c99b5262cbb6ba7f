import { boundMechanism, type Checkpoint, type ModelConfig, openCheckpoint } from "../../models/index.js";
import { mechanismString } from "../../train/index.js";
import { columns, command } from "../command.js";
import { formatBytes, formatCount, json } from "../format.js";
import { jsonOption, loadOptions, modelName, openOptions } from "../model.js";
import { progressLine } from "../progress.js";

/** What `inspect` prints, as JSON. */
interface Inspection {
  readonly name: string;
  readonly family: string;
  readonly architecture: string;
  readonly format: string;
  readonly hash: string;
  readonly shape: Pick<
    ModelConfig,
    "layers" | "width" | "heads" | "kvHeads" | "headDim" | "mlpWidth" | "vocab" | "maxPositions"
  >;
  readonly parameters: number;
  /** Bytes of the tensors in the files. */
  readonly bytes: number;
  /** Types of the tensors in the files with the number of tensors of each. */
  readonly types: Readonly<Record<string, number>>;
  /** Bytes that one token takes in all layers' caches, page bounds included; f16 is what others keep. */
  readonly cache_bytes_per_token: { readonly float32: number; readonly int8: number; readonly f16: number };
  readonly attention: ModelConfig["attention"];
  /** What stands in softmax attention's place, and the bytes of state that a sequence takes. */
  readonly mechanism?: { readonly name: string; readonly state_bytes: number };
  readonly rotary: ModelConfig["rotary"];
  readonly tokenizer: {
    readonly vocab: number;
    readonly type: string;
    readonly bos?: number;
    readonly eos: readonly number[];
    readonly adds_bos: boolean;
    readonly chat_template: boolean;
  };
}

const { model, cacheFolder } = loadOptions;

export const inspect = command({
  name: "inspect",
  summary: "a model's shape, parameters, bytes, cache and tokenizer",
  about: "Describes a checkpoint from its files, without reading the weights.",
  options: { model, cacheFolder, ...jsonOption },
  examples: ["fovea inspect", "fovea inspect -m model.gguf --json"],
  async run(values, _positionals, io) {
    const progress = progressLine(io);
    const name = modelName(values.model);
    try {
      const checkpoint = await openCheckpoint(name, openOptions(values.cacheFolder, io, progress));
      try {
        const inspection = await describe(checkpoint);
        progress.clear();
        io.out(values.json ? json(inspection, io.outTty) : print(inspection));
      } finally {
        await checkpoint.close();
      }
    } finally {
      progress.clear();
    }
  },
});

async function describe({ name, config, ...checkpoint }: Checkpoint): Promise<Inspection> {
  const { bytesPerToken } = await import("../../engine/engine.js");
  const { tokenizer, file, source } = checkpoint;
  const { layers, width, heads, kvHeads, headDim, mlpWidth, vocab, maxPositions } = config;
  const types: Record<string, number> = {};
  let bytes = 0;
  for (const tensor of file.tensors.values()) {
    types[tensor.dtype] = (types[tensor.dtype] ?? 0) + 1;
    bytes += tensor.bytes;
  }
  const kind = tokenizer.files.tokenizer.model;
  return {
    name,
    family: config.family,
    architecture: config.architecture,
    format: source.kind,
    hash: checkpoint.hash,
    shape: { layers, width, heads, kvHeads, headDim, mlpWidth, vocab, maxPositions },
    parameters: checkpoint.parameters,
    bytes,
    types,
    cache_bytes_per_token: {
      float32: Math.ceil(bytesPerToken(config, "float32")),
      int8: Math.ceil(bytesPerToken(config, "int8")),
      f16: 2 * 2 * layers * kvHeads * headDim,
    },
    attention: config.attention,
    ...(config.mechanism && {
      mechanism: {
        name: mechanismString(config.mechanism),
        state_bytes: layers * (boundMechanism(config)?.stateBytes ?? 0),
      },
    }),
    rotary: config.rotary,
    tokenizer: {
      vocab: tokenizer.vocabSize,
      type: typeof kind === "object" && kind !== null && "type" in kind ? String(kind.type) : "unknown",
      ...(tokenizer.bos !== undefined && { bos: tokenizer.bos }),
      eos: checkpoint.generation.eos,
      adds_bos: tokenizer.addsBos,
      chat_template: checkpoint.chatTemplate !== undefined,
    },
  };
}

function print(inspection: Inspection): string {
  const { shape, attention, mechanism, rotary, tokenizer, cache_bytes_per_token: cache } = inspection;
  const group = shape.heads / shape.kvHeads;
  const windows = attention.windowLayers.filter(Boolean).length;
  const extras = [
    attention.softcap !== undefined ? `logits capped at ${attention.softcap}` : "",
    attention.window !== undefined ? `window of ${attention.window} in ${windows} layers` : "",
    attention.qkNorm !== "none" ? `queries and keys normed (${attention.qkNorm})` : "",
    attention.biasQKV ? "biases on q, k and v" : "",
  ].filter((extra) => extra !== "");
  const special = [
    tokenizer.bos === undefined ? "no BOS" : `BOS ${tokenizer.bos}${tokenizer.adds_bos ? " put first" : ""}`,
    tokenizer.eos.length === 0 ? "no EOS" : `EOS ${tokenizer.eos.join(", ")}`,
    tokenizer.chat_template ? "chat template" : "no chat template",
  ];
  const types = Object.entries(inspection.types).map(([type, count]) => `${count} ${type}`);
  const rows: [string, string][] = [
    ["family", `${inspection.family} (${inspection.architecture}), ${inspection.format}`],
    ["layers", String(shape.layers)],
    ["width", `${shape.width}, MLP ${shape.mlpWidth}`],
    ["heads", `${shape.heads} of ${shape.headDim}, ${shape.kvHeads} key-value heads (${group} queries each)`],
    ["attention", mechanism?.name ?? (extras.join("; ") || "full")],
    ["positions", `${shape.maxPositions}${rotary ? `, rotary base ${rotary.base}` : ", learned"}`],
    ["parameters", formatCount(inspection.parameters)],
    ["weights", `${formatBytes(inspection.bytes)} (${types.join(", ")})`],
    mechanism && mechanism.state_bytes > 0
      ? ["state", `${formatBytes(mechanism.state_bytes)}, however long the text is`]
      : ["cache", `a token takes ${formatBytes(cache.int8)} in int8, ${formatBytes(cache.float32)} in float32`],
    ["tokenizer", `${tokenizer.type} of ${tokenizer.vocab}; ${special.join("; ")}`],
    ["hash", inspection.hash],
  ];
  return `${inspection.name}\n${columns(rows.map(([key, value]) => [`  ${key}`, value])).join("\n")}\n`;
}
