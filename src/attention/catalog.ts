import type { AttachedMethod } from "../engine/hooks.js";
import { FoveaError } from "../error.js";
import { chai } from "./compression/chai.js";
import { compressKvHeads } from "./compression/compress-kv-heads.js";
import { compresskv } from "./compression/compresskv.js";
import { mha2mla } from "./compression/mha2mla.js";
import { sharedAttention } from "./compression/shared-attention.js";
import { attnrank } from "./context/attnrank.js";
import { gemfilter } from "./context/gemfilter.js";
import { adaKv } from "./eviction/ada-kv.js";
import { expectedAttention } from "./eviction/expected-attention.js";
import { h2o } from "./eviction/h2o.js";
import { snapkv } from "./eviction/snapkv.js";
import { tova } from "./eviction/tova.js";
import { full } from "./full.js";
import { knockOut } from "./heads/knock-out.js";
import { type Card, cardOf, type MethodFactory } from "./method.js";
import { duoattention } from "./policies/duoattention.js";
import { lserve } from "./policies/lserve.js";
import { attentionBuckets } from "./positions/attention-buckets.js";
import { entropyAbf } from "./positions/entropy-abf.js";
import { harpe } from "./positions/harpe.js";
import { ropeScaling } from "./positions/rope-scaling.js";
import { selfExtend } from "./positions/self-extend.js";
import { dhsa } from "./prefill/dhsa.js";
import { hip } from "./prefill/hip.js";
import { moba } from "./prefill/moba.js";
import { sale } from "./prefill/sale.js";
import { starAttention } from "./prefill/star-attention.js";
import { randomPages } from "./random-pages.js";
import { lessismore } from "./selection/lessismore.js";
import { longheads } from "./selection/longheads.js";
import { magicpig } from "./selection/magicpig.js";
import { qada } from "./selection/qada.js";
import { quest } from "./selection/quest.js";
import { sparq } from "./selection/sparq.js";
import { tidaldecode } from "./selection/tidaldecode.js";
import { tokenselect } from "./selection/tokenselect.js";
import { pasta } from "./steering/pasta.js";
import { streamingLlm } from "./streaming/streaming-llm.js";
import { didYouMean, parseMethods } from "./string.js";

/** A method of any parameters, as the catalog holds it. */
export type AnyMethod = Pick<MethodFactory, "card" | "from">;

/** All methods. To add one is to add its line. */
const METHODS: readonly AnyMethod[] = [
  full,
  randomPages,
  streamingLlm,
  h2o,
  snapkv,
  compresskv,
  sharedAttention,
  chai,
  compressKvHeads,
  mha2mla,
  duoattention,
  lserve,
  knockOut,
  pasta,
  quest,
  tidaldecode,
  lessismore,
  tokenselect,
  sparq,
  ropeScaling,
  selfExtend,
  entropyAbf,
  harpe,
  attentionBuckets,
  gemfilter,
  attnrank,
  magicpig,
  moba,
  hip,
  starAttention,
  sale,
  dhsa,
  qada,
  longheads,
  tova,
  adaKv,
  expectedAttention,
];

/** The methods by name, in the order of the list. */
export const catalog: ReadonlyMap<string, AnyMethod> = new Map(METHODS.map((m) => [m.card.name, m]));

/** What `resolve` takes: a method string, an attached method, or a list of both. */
export type MethodsInput = string | AttachedMethod | readonly (string | AttachedMethod)[];

/**
 * Attached methods from strings and methods, in order; "" is none. Throws bad-input for a string that does not parse or
 * a parameter out of range, unknown-method for a name that is not in the catalog.
 */
export function resolve(input: MethodsInput, methods: ReadonlyMap<string, AnyMethod> = catalog): AttachedMethod[] {
  if (typeof input !== "string") return "hooks" in input ? [input] : input.flatMap((one) => resolve(one, methods));
  if (input.trim() === "") return [];
  return parseMethods(input).map(({ name, params, at }) => {
    const found = methods.get(name);
    if (!found)
      throw new FoveaError(
        "unknown-method",
        `unknown method ${JSON.stringify(name)} at position ${at} of the method string`,
        {
          hint: didYouMean(name, methods.keys()),
        },
      );
    return found.from(params);
  });
}

/**
 * The string by which an attached method can be had in another thread: functions do not cross, names of the catalog do.
 * Throws `unsupported` for a method that the catalog does not have.
 */
export function methodString(attached: AttachedMethod): string {
  const card = cardOf(attached);
  if (!card || catalog.get(attached.name)?.card !== card)
    throw new FoveaError(
      "unsupported",
      `${attached.name} is a method of your own, and the engine runs in another thread`,
      {
        hint: "load the model with { worker: false }",
      },
    );
  return attached.spec;
}

/** The catalog as `fovea methods` prints it. */
export function listMethods(): Card[] {
  return [...catalog.values()].map((m) => m.card);
}
