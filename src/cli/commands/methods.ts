import { type Card, listMethods } from "../../attention/index.js";
import { FoveaError } from "../../error.js";
import { command } from "../command.js";
import { clip, json, table } from "../format.js";
import { jsonOption } from "../model.js";
import { nearest } from "../suggest.js";

export const methods = command({
  name: "methods",
  summary: "list the methods, or show one",
  about: "Lists the methods that --attention takes, or shows one with its parameters.",
  positionals: [{ name: "name", help: "a method", optional: true }],
  options: { ...jsonOption },
  examples: ["fovea methods", "fovea methods streaming-llm"],
  async run(values, [name], io) {
    const cards = listMethods();
    const chosen = name === undefined ? cards : [findCard(cards, name)];
    if (values.json) io.out(json(chosen, io.outTty));
    else
      io.out(
        name === undefined
          ? list(chosen, io.outTty ? io.columns : Number.POSITIVE_INFINITY)
          : chosen.map(show).join("\n"),
      );
  },
});

function findCard(cards: readonly Card[], name: string): Card {
  const found = cards.find((card) => card.name === name);
  if (found) return found;
  const names = cards.map((card) => card.name);
  const meant = nearest(name, names);
  throw new FoveaError("unknown-method", `there is no method "${name}"`, {
    hint: meant ? `did you mean ${meant}?` : "fovea methods lists them all",
  });
}

function list(cards: readonly Card[], width: number): string {
  const rows = cards.map(({ name, family, hooks, does }) => [name, family, hooks.join(", "), does]);
  const fixed = [0, 1, 2].map((column) => Math.max(...rows.map((row) => row[column].length), 6));
  const room = Math.max(24, width - fixed.reduce((sum, size) => sum + size + 2, 0));
  return table(
    ["method", "family", "hooks", "what it does"],
    rows.map(([name, family, hooks, does]) => [name, family, hooks, clip(does, room)]),
  );
}

function show(card: Card): string {
  const { paper, exact } = card;
  const facts: [string, string][] = [
    ["paper", paper ? `${paper.title}, ${paper.venue}${paper.url ? ` (${paper.url})` : ""}` : "none"],
    ["family", card.family],
    ["hooks", card.hooks.join(", ") || "none"],
    ["needs", card.needs],
    ["cost", card.cost],
    ["facts from", card.facts],
    ["departs", card.deviations.join("; ")],
    ["exact at", exact ? JSON.stringify(exact) : "no parameters"],
    ["status", `${card.status}: ${card.measured || "not measured yet"}`],
  ];
  const lines = facts.filter(([, fact]) => fact !== "").map(([key, fact]) => `  ${key.padEnd(11)}${fact}`);
  const parameters = card.parameters.map(({ name, type, default: fallback, required, description }) => {
    const value = required ? "required" : `default ${fallback === null ? "none" : JSON.stringify(fallback)}`;
    return [`  ${name}`, type, value, description];
  });
  const shown = parameters.length > 0 ? `\n${table(["  parameter", "type", "default", "meaning"], parameters)}` : "";
  return `${card.name}\n  ${card.does}\n\n${lines.join("\n")}\n${shown}`;
}
