import { command } from "../command.js";
import { clip, formatNumber, json, table, visible } from "../format.js";
import { jsonOption, loadOptions, promptOptions, readPrompt, withModel } from "../model.js";

export const score = command({
  name: "score",
  summary: "log-probability of each token of a text, and its sum",
  about:
    "Prints the natural logarithm of each token's probability given the tokens before it, and the sum. The first token\n" +
    "has none (0) when nothing stands before it.",
  options: { ...promptOptions, ...loadOptions, ...jsonOption },
  examples: ['fovea score -p "The sky is blue."', "fovea score -m ./model --ids 1,403,407 --json"],
  async run(values, _positionals, io) {
    const prompt = await readPrompt(values, io);
    return withModel(values, io, async (model, progress) => {
      const result = await model.score(prompt, { signal: io.signal, onProgress: (step) => progress.report(step) });
      progress.clear();
      if (values.json) {
        io.out(json(result, io.outTty));
        return 0;
      }
      const rows = result.tokens.map(({ id, text, logprob }, i) => [
        String(i),
        String(id),
        clip(visible(text), 32),
        logprob.toFixed(4),
      ]);
      io.out(table(["position", "id", "token", "logprob"], rows, [0, 1, 3]));
      const scored = Math.max(1, result.tokens.length - 1);
      const perplexity = Math.exp(-result.logprob / scored);
      io.out(`\nsum ${result.logprob.toFixed(4)}, perplexity ${formatNumber(perplexity)}\n`);
      return 0;
    });
  },
});
