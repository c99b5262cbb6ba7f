import { Random } from "../engine/sampling.js";
import { FoveaError } from "../error.js";
import type { Tokenizer } from "../models/index.js";
import type { Batch, DataSource } from "./batch.js";
import { mix } from "./data.js";

const WORDS = (
  "alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa quebec romeo " +
  "sierra tango uniform victor whiskey xray yankee zulu"
).split(" ");
const ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split(" ");

/** Options of `passkeys`. */
export interface PasskeyOptions {
  readonly tokenizer: Tokenizer;
  /** Text that the passkeys are hidden in; begun again where it is too short. */
  readonly text: string;
  /** Tokens of a row, or several lengths that are drawn from. */
  readonly length: number | readonly number[];
  /** Passkeys of a row, at most ten. Default 10. */
  readonly passkeys?: number;
  /** Words of a passkey. Default 32. */
  readonly words?: number;
  /** Default 1. */
  readonly seed?: number;
}

/**
 * Long texts with passkeys at random depths (5% to 95%), and at the end a question for each with its answer, in order
 * (DuoAttention, ICLR 2025). One row a batch; weight lies on questions and answers alone.
 *
 * @throws FoveaError `bad-input` for lengths that cannot hold the passkeys
 */
export function passkeys(options: PasskeyOptions): DataSource {
  const { tokenizer, text, passkeys: count = 10, words = 32, seed = 1 } = options;
  const lengths = typeof options.length === "number" ? [options.length] : options.length;
  if (!(count >= 1 && count <= ORDINALS.length))
    throw new FoveaError("bad-input", `${count} passkeys; expected 1 to ${ORDINALS.length}`);
  const encode = (piece: string) => tokenizer.encode(piece, { special: false }).ids;
  const filler = encode(text);
  if (filler.length === 0 || lengths.length === 0)
    throw new FoveaError("bad-input", "passkeys need a text to be hidden in, and a length");
  const first = tokenizer.addsBos && tokenizer.bos !== undefined ? [tokenizer.bos] : [];

  const row = (random: Random): Batch => {
    const length = lengths[Math.floor(random.next() * lengths.length)];
    const keys = ORDINALS.slice(0, count).map((ordinal) => ({
      ordinal,
      words: Array.from({ length: words }, () => WORDS[Math.floor(random.next() * WORDS.length)]).join(" "),
    }));
    const hidden = keys.map((k) => encode(` Remember the ${k.ordinal} passkey: ${k.words}.`));
    const asked = keys.flatMap((k) => encode(` What is the ${k.ordinal} passkey? ${k.words}.`));
    const room = length - first.length - asked.length - hidden.reduce((sum, ids) => sum + ids.length, 0);
    if (room < count)
      throw new FoveaError("bad-input", `rows of ${length} tokens cannot hold ${count} passkeys of ${words} words`, {
        hint: `they need ${length - room + count} tokens and more; fewer or shorter passkeys need less`,
      });
    const depths = keys.map(() => Math.floor((0.05 + 0.9 * random.next()) * room)).sort((a, b) => a - b);
    const start = Math.floor(random.next() * filler.length);
    const ids = [...first];
    for (let i = 0, next = 0; i < room; i++) {
      while (next < count && depths[next] === i) ids.push(...hidden[next++]);
      ids.push(filler[(start + i) % filler.length]);
    }
    ids.push(...asked);
    const answers = length - asked.length;
    const targets = Int32Array.from({ length }, (_, i) => ids[i + 1] ?? -1);
    const weights = Float32Array.from({ length }, (_, i) => Number(i + 1 >= answers && i + 1 < length));
    return { rows: 1, length, ids: Int32Array.from(ids), targets, weights };
  };
  return {
    name: `passkeys(${count},${words},${lengths.join("/")},${seed})`,
    vocabulary: tokenizer.vocabSize,
    batch: (step) => row(new Random(mix(seed, step))),
  };
}
