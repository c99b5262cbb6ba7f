import { FoveaError } from "../error.js";
import { factTasks } from "./babilong/facts.js";
import { documentTasks } from "./document-tasks.js";
import { loogleSubstitutes } from "./loogle/substitute.js";
import { nolimaSubstitutes } from "./nolima/nolima.js";
import { commonWords, frequentWords } from "./ruler/counting.js";
import { needleTasks } from "./ruler/needle.js";
import { variableTracking } from "./ruler/variables.js";
import type { Task } from "./task.js";

/** All tasks that need no data of their own. To add one is to add its line. */
const TASKS: readonly Task[] = [
  ...documentTasks,
  ...needleTasks,
  variableTracking,
  commonWords,
  frequentWords,
  ...factTasks,
  ...nolimaSubstitutes,
  ...loogleSubstitutes,
];

/** The tasks by name, in the order of the list. */
export const taskCatalog: ReadonlyMap<string, Task> = new Map(TASKS.map((task) => [task.name, task]));

/** RULER's thirteen, but for the two of question answering. */
const RULER = ["needle", "variables", "common-words", "frequent-words"];
/** Those two: over SQuAD and HotpotQA where their files are given, and what stands in for them. */
const RULER_QUESTIONS = [
  ["questions-set/squad", "questions/single"],
  ["questions-set/hotpot", "questions/two-hop"],
] as const;

/** Families that are read from files, and what gives the file. */
const FROM_FILES = [
  ["questions-set", "--squad FILE or --hotpot FILE (in the library squadTask, hotpotTask)"],
  ["loogle-set", "--loogle FILE (in the library loogleTasks)"],
  ["nolima-set", "--nolima FILE (in the library nolimaTasks)"],
] as const;

/**
 * Tasks by name: `needle/single`, a family (`needle`), `ruler` for all of RULER or `all`. In the order of the list, none twice.
 * @throws FoveaError `bad-input` for a name that is neither
 */
export function tasksByName(names: readonly string[], catalog: ReadonlyMap<string, Task> = taskCatalog): Task[] {
  const found = new Set<Task>();
  for (const name of names) {
    const questions = RULER_QUESTIONS.map(([set, substitute]) => (catalog.has(set) ? set : substitute));
    const wanted = name === "ruler" ? [...RULER, ...questions] : [name];
    const own = [...catalog.values()].filter(
      (task) => name === "all" || wanted.includes(task.family) || wanted.includes(task.name),
    );
    const file = FROM_FILES.find(([family]) => name === family || name.startsWith(`${family}/`));
    if (own.length === 0 && file)
      throw new FoveaError("bad-input", `${name} is not among the tasks: their questions come from a file`, {
        hint: `give ${file[1]}; the names of its tasks depend on what it holds (docs/benchmark.md)`,
      });
    if (own.length === 0)
      throw new FoveaError("bad-input", `there is no task ${JSON.stringify(name)}`, {
        hint: `the tasks are ${[...catalog.keys()].join(", ")}; a family (${[...new Set([...catalog.values()].map((t) => t.family))].join(", ")}), ruler and all name several`,
      });
    for (const task of own) found.add(task);
  }
  return [...found];
}
