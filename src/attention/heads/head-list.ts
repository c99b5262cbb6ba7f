import { z } from "zod";
import type { ModelShape } from "../../engine/hooks.js";
import { FoveaError } from "../../error.js";
import { checkModelHash, oncePerModel, readParameterFile } from "../files.js";
import { type HeadName, isHead } from "../string.js";

const name = z.string().regex(/^\d+\.\d+$/, 'expected a head as "layer.head"');
const fileSchema = z.object({
  format: z.literal("fovea-heads"),
  /** Hash of the checkpoint that the heads were found in. */
  model: z.string(),
  /** What the heads do or are for, in a word or two. */
  name: z.string(),
  /** Best first. */
  heads: z.array(name),
  /** What ranked them, one number for each of `heads`. */
  scores: z.array(z.number()).optional(),
  /** The command that makes the file anew. */
  madeBy: z.string(),
});

/** Heads of one model that a search found: portable between machines, bound to the checkpoint by its hash. */
export interface HeadList {
  readonly model: string;
  readonly name: string;
  readonly heads: readonly HeadName[];
  readonly scores?: readonly number[];
  readonly madeBy: string;
}

/** A head list as the text of its JSON file. */
export function printHeadList({ model, name: what, heads, scores, madeBy }: HeadList): string {
  const file: z.input<typeof fileSchema> = {
    format: "fovea-heads",
    model,
    name: what,
    heads: heads.map(({ layer, head }) => `${layer}.${head}`),
    ...(scores && { scores: scores.map((s) => Number(s.toPrecision(6))) }),
    madeBy,
  };
  return `${JSON.stringify(file, null, 1)}\n`;
}

/**
 * Reads a head list. With `model`, refuses one that was made for another checkpoint or names heads that it lacks.
 *
 * @throws FoveaError `bad-file` for text that is no head list, `bad-input` for a list of another model
 */
export function parseHeadList(text: string, model?: ModelShape, from = "the head list"): HeadList {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new FoveaError("bad-file", `${from} is no JSON`, { cause, hint: "expected a file that a head search wrote" });
  }
  const parsed = fileSchema.safeParse(json);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw new FoveaError("bad-file", `${from} is no head list: ${issue.path.join(".") || "it"}: ${issue.message}`, {
      hint: 'expected {"format": "fovea-heads", "model": hash, "name", "heads": ["layer.head", ...], "madeBy"}',
    });
  }
  const { heads, scores, ...rest } = parsed.data;
  if (scores && scores.length !== heads.length)
    throw new FoveaError("bad-file", `${from} has ${scores.length} scores for ${heads.length} heads`);
  const list: HeadList = {
    model: rest.model,
    name: rest.name,
    madeBy: rest.madeBy,
    ...(scores && { scores }),
    heads: heads.map((text) => {
      const [layer, head] = text.split(".").map(Number);
      return { layer, head };
    }),
  };
  if (model) checkHeadList(list, model, from);
  return list;
}

function checkHeadList(list: HeadList, model: ModelShape, from: string): void {
  checkModelHash(from, list, model.hash);
  const wrong = list.heads.find(({ layer, head }) => layer >= model.layers || head >= model.heads);
  if (wrong)
    throw new FoveaError("bad-file", `${from} names head ${wrong.layer}.${wrong.head}, which the model does not have`);
}

/** Heads as a method's parameter takes them: a list, one head, or a head-list file's name. */
export const headsParameter = z.union([
  z.string().min(1),
  z.array(z.custom<HeadName>(isHead, "expected heads as layer.head")),
  z.custom<HeadName>(isHead, "expected a head as layer.head"),
]);

/**
 * The heads that a parameter stands for in this model; a file is read where files can be (Node).
 *
 * @throws FoveaError `not-found`, and as `parseHeadList`; `unsupported` for a file's name in a browser
 */
export function headsOf(parameter: z.output<typeof headsParameter>, model: ModelShape): readonly HeadName[] {
  if (typeof parameter !== "string") return "layer" in parameter ? [parameter] : parameter;
  const make = "give the path of a file that a head search wrote, or heads as heads=[3.0-2,4.7]";
  const text = new TextDecoder().decode(readParameterFile(parameter, "head list", make));
  return parseHeadList(text, model, parameter).heads;
}

/** `headsOf` that reads a file once: for hooks, which run at every step. */
export function headsOnce(parameter: z.output<typeof headsParameter>): (model: ModelShape) => readonly HeadName[] {
  return oncePerModel((model) => headsOf(parameter, model));
}
