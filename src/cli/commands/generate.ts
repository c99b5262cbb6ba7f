import type { GenerateOptions, Generation, Message } from "../../engine/api.js";
import { aborted } from "../../error.js";
import { command } from "../command.js";
import { formatBytes, formatNumber, json } from "../format.js";
import { jsonOption, loadOptions, promptOptions, readPrompt, withModel } from "../model.js";
import { decimal, flag, integer, type OptionValues, text } from "../options.js";

const options = {
  ...promptOptions,
  ...loadOptions,
  maxTokens: integer("most tokens to generate", { min: 0, fallback: 128, short: "n" }),
  temperature: decimal("0 is greedy", { min: 0, short: "t", fallbackText: "0" }),
  topK: integer("sample from the k most probable tokens", { min: 0 }),
  topP: decimal("sample from the most probable tokens that together have this probability", { min: 0, max: 1 }),
  minP: decimal("leave out tokens below this share of the best one's probability", { min: 0, max: 1 }),
  repetitionPenalty: decimal("above 1: tokens that occurred become less probable", { min: 0 }),
  seed: integer("seed of the sampling", { min: 0 }),
  stop: text("stop at this text", "text"),
  ignoreEos: flag("go on past the model's end of text"),
  chat: flag("the text is a user's message: apply the model's chat template"),
  system: text("system message in front of it (implies --chat)", "text"),
  stats: flag("print speed and cache size to stderr (also when it is no terminal)"),
  ...jsonOption,
};

function sampling(values: OptionValues<typeof options>, signal: AbortSignal): GenerateOptions {
  const { maxTokens, temperature, topK, topP, minP, repetitionPenalty, seed, stop, ignoreEos } = values;
  return {
    maxTokens,
    ...(temperature !== undefined && { temperature }),
    ...(topK !== undefined && { topK }),
    ...(topP !== undefined && { topP }),
    ...(minP !== undefined && { minP }),
    ...(repetitionPenalty !== undefined && { repetitionPenalty }),
    ...(seed !== undefined && { seed }),
    ...(stop !== undefined && { stop: [stop] }),
    ignoreEos,
    signal,
  };
}

export const generate = command({
  name: "generate",
  summary: "continue a text",
  about: "Continues a text, token by token. Ctrl-C stops and keeps what there is.",
  options,
  examples: [
    'fovea generate -p "Once upon a time"',
    'fovea generate -m hf:Qwen/Qwen2.5-0.5B-Instruct --chat -p "Why is the sky blue?" -a "streaming-llm(sinks=4,window=512)"',
    "fovea generate -m model.gguf --file notes.txt -n 64 --temperature 0.8 --seed 1 --json",
  ],
  async run(values, _positionals, io) {
    const prompt = await readPrompt(values, io);
    return withModel(values, io, async (model, progress) => {
      const generationOptions: GenerateOptions = {
        ...sampling(values, io.signal),
        onProgress: (step) => progress.report(step),
      };
      const chat = typeof prompt === "string" && (values.chat || values.system !== undefined);
      const messages: Message[] = [
        ...(values.system === undefined ? [] : [{ role: "system", content: values.system }]),
        { role: "user", content: String(prompt) },
      ];
      const generation: Generation = model.generate(chat ? messages : prompt, generationOptions);
      for await (const piece of generation) {
        progress.clear();
        if (!values.json) io.out(piece.text);
      }
      const result = await generation.result;
      progress.clear();
      if (result.finish === "aborted") {
        if (!values.json) io.out("\n");
        throw aborted(io.signal);
      }
      if (values.json) {
        const { prompt_ids, ids, text, timings, finish, cache_bytes } = result;
        io.out(json({ prompt_ids, ids, text, timings, finish, cache_bytes }, io.outTty));
        return 0;
      }
      io.out("\n");
      if (values.stats || io.errTty) {
        const { prompt_tokens, prefill_tps, generated_tokens, decode_tps } = result.timings;
        io.err(
          `${prompt_tokens} tokens read at ${formatNumber(prefill_tps)}/s, ${generated_tokens} generated at ` +
            `${formatNumber(decode_tps)}/s, cache ${formatBytes(result.cache_bytes)} (${result.finish})\n`,
        );
      }
      return 0;
    });
  },
});
