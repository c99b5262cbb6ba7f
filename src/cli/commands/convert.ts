import { convert as convertModel } from "../../models/index.js";
import { command } from "../command.js";
import { formatBytes, json } from "../format.js";
import { jsonOption, loadOptions, modelName } from "../model.js";
import { choice, flag, text, UsageError } from "../options.js";
import { progressLine } from "../progress.js";

export const convert = command({
  name: "convert",
  summary: "write a model as GGUF or safetensors",
  about:
    "Writes a model in another format: a GGUF file that llama.cpp runs when --out ends in .gguf, else a folder with\n" +
    "config.json, model.safetensors and tokenizer.json.",
  options: {
    model: loadOptions.model,
    out: text("file.gguf, or a folder", "path", { short: "o" }),
    type: choice("type of the matrices; q8_0 for GGUF, bf16 for safetensors", ["f32", "f16", "bf16", "q8_0"], {
      fallbackText: "f16 for GGUF, f32 for safetensors",
    }),
    overwrite: flag("replace a folder that is there already"),
    ...jsonOption,
  },
  examples: [
    "fovea convert -m ./model --out model-q8_0.gguf --type q8_0",
    "fovea convert -m model.gguf --out model-folder --type f16",
  ],
  async run({ model, out, type, overwrite, json: asJson }, _positionals, io) {
    if (out === undefined) throw new UsageError("where to? name a .gguf file or a folder with --out");
    if (/\.safetensors$/i.test(out)) {
      throw new UsageError(`--out ${out}: a safetensors checkpoint is a folder, with its config and tokenizer`);
    }
    const progress = progressLine(io);
    try {
      const done = await convertModel(modelName(model), out, {
        ...(type && { type }),
        overwrite,
        signal: io.signal,
        onProgress: (step) => progress.report({ stage: "load", ...step, label: step.label ?? out }),
      });
      progress.clear();
      if (asJson)
        io.out(json({ file: done.path, format: done.format, tensors: done.tensors, bytes: done.bytes }, io.outTty));
      else io.out(`wrote ${done.path}: ${done.tensors} tensors, ${formatBytes(done.bytes)} (${done.format})\n`);
    } finally {
      progress.clear();
    }
  },
});
