import { exportModel } from "../../models/export.js";
import { boundMechanism, openCheckpoint } from "../../models/index.js";
import { command } from "../command.js";
import { writeAtomic } from "../files.js";
import { formatBytes, json } from "../format.js";
import { jsonOption, loadOptions, modelName, openOptions } from "../model.js";
import { choice, text, textOr, UsageError } from "../options.js";
import { progressLine } from "../progress.js";

const { model, cacheFolder } = loadOptions;

export const exportCommand = command({
  name: "export",
  summary: "write a model as a standard .onnx file",
  about:
    "Writes the whole model as one ONNX file with the input ids (int64 [T]) and the outputs asked for: logits ([T, V]) or\n" +
    "any tap, such as pattern.3 (attention weights of layer 3) or residual.0.",
  options: {
    model,
    out: text("the .onnx file", "file", { short: "o" }),
    outputs: textOr("taps to give out, separated by commas", "names", "logits"),
    precision: choice("weights; int8 and int4 run in ONNX Runtime only", ["float32", "int8", "int4"], {
      fallbackText: "float32",
    }),
    cacheFolder,
    ...jsonOption,
  },
  examples: [
    "fovea export --out model.onnx",
    "fovea export -m ./model --outputs logits,pattern.0 --out attention.onnx",
  ],
  async run({ model: given, out, outputs, precision, cacheFolder: folder, json: asJson }, _positionals, io) {
    if (out === undefined) throw new UsageError("where to? name a file with --out model.onnx");
    const progress = progressLine(io);
    try {
      const checkpoint = await openCheckpoint(modelName(given), openOptions(folder, io, progress));
      try {
        const names = outputs.split(",").map((name) => name.trim());
        progress.note(`writing ${out}`);
        const bytes = await exportModel(checkpoint.config, checkpoint.weights, { precision, outputs: names });
        await writeAtomic(out, bytes);
        progress.clear();
        const size = bytes.byteLength;
        const inputs = boundMechanism(checkpoint.config)?.memory === undefined ? ["ids"] : ["ids", "memory"];
        if (asJson) io.out(json({ file: out, bytes: size, inputs, outputs: names }, io.outTty));
        else io.out(`wrote ${out} (${formatBytes(size)}): ${inputs.join(", ")} -> ${names.join(", ")}\n`);
      } finally {
        await checkpoint.close();
      }
    } finally {
      progress.clear();
    }
  },
});
