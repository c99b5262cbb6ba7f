import { recall } from "../metrics.js";
import { type CaseOptions, largestCase, type Task, type TaskCase } from "../task.js";
import { inLines, moved, NOISE } from "./haystack.js";
import { capitals, numbers, stream } from "./words.js";

const HOPS = 4;
const NEW_TOKENS = 30;

const question = (value: string) => `Find all variables that hold the value ${value} in the text above.`;
const prefix = (value: string) =>
  `By the chain of assignments in the text, ${HOPS + 1} variables hold the value ${value}: they are`;

/** Lines of a chain: the first variable has the value, each later one that of the one before. */
function chain(names: readonly string[], value: string): string[] {
  return names.map((name, i) => `VAR ${name} = ${i === 0 ? value : `VAR ${names[i - 1]}`}`);
}

/** RULER's variable tracking: a chain of assignments, scattered in order, after one worked example. */
export const variableTracking: Task = {
  name: "variables",
  family: "variables",
  does: "Follows a chain of assignments that are scattered in order.",
  metric: "recall",
  make(options: CaseOptions): TaskCase {
    const seed = `variables ${options.seed}`;
    const draw = stream(seed, "chain");
    const names = capitals(HOPS + 1, 5, draw);
    const [value, example] = numbers(2, 5, draw);
    const shown = capitals(HOPS + 1, 3, stream(seed, "example"));
    const make = (n: number): TaskCase => {
      const noise = Array.from({ length: n }, (_, i) => NOISE[i % NOISE.length]);
      const hay = inLines(chain(names, value), noise, seed, { ordered: true });
      const worked = inLines(chain(shown, example), noise.slice(0, Math.min(n, 5)), `${seed} example`, {
        ordered: true,
      });
      const head =
        `Remember the chain of assignments that is hidden in the following text.\n\n${worked.text}\n` +
        `${question(example)} ${prefix(example)} ${shown.join(", ")}\n\n` +
        "Remember the chain of assignments that is hidden in the following text.\n\n";
      return {
        document: head + hay.text,
        questions: [
          {
            text: question(value),
            prefix: prefix(value),
            references: names,
            answer: names.join(", "),
            evidence: moved(hay.spans, head.length),
            newTokens: NEW_TOKENS,
          },
        ],
      };
    };
    return largestCase(make, options, { task: "variables" });
  },
  score: (reply, { references }) => recall(reply, references),
  oracle(document, asked) {
    const value = /value (\d+)/.exec(asked)?.[1] ?? "";
    const holding = new Set<string>();
    for (const [, name, of] of document.matchAll(/^VAR (\w+) = (?:VAR )?(\w+)$/gm))
      if (of === value || holding.has(of)) holding.add(name);
    return [...holding].join(", ");
  },
};
